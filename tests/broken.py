"""How each promise of the design can be broken: one place of the code changed, and the test that
has to notice. tests/promises.py breaks them all.
"""

from dataclasses import dataclass
from typing import Final

PROMISES: Final = tuple(f"P{number}" for number in range(1, 9))


@dataclass(frozen=True, slots=True)
class Mutation:
    promise: str
    broken: str  # what is no longer so, in one sentence
    file: str
    old: str  # occurs once in the file
    new: str
    test: str  # pytest's name of it, without parameters

    def apply(self, text: str) -> str:
        if text.count(self.old) != 1:
            raise ValueError(f"{self.file} holds this {text.count(self.old)} times: {self.old!r}")
        return text.replace(self.old, self.new)


def mutations() -> tuple[Mutation, ...]:
    """The table, from the parts of it below."""
    parts = (_P1, _P2, (*_P3, *_P3_SUMS, *_P3_GOSSIP), _P4, _P5, _P6, _P7, _P8)
    return tuple(
        Mutation(promise, *fields)
        for promise, part in zip(PROMISES, parts, strict=True)
        for fields in part
    )


_Rows = tuple[tuple[str, str, str, str, str], ...]
_MACHINE: Final = "tests/machine/"

_P1: Final[_Rows] = (
    (
        "A replica whose digest is not the others' believes that it agrees.",
        "protocol/mending.py",
        "if mine == entry.body.state:",
        "if mine is not None:",
        _MACHINE + "test_mending.py::test_a_mismatch_is_said_loudly_and_looked_into",
    ),
    (
        "Damage that does not go away is patched for ever, and never rebuilt.",
        "protocol/mending.py",
        "elif self._tries > _TRIES:",
        "elif self._tries < 0:",
        _MACHINE + "test_mending.py::test_damage_that_stays_is_rebuilt_in_the_end",
    ),
    (
        "A closer lists work that was done on other weights.",
        "protocol/building.py",
        "for held in listed if held.state == state)",
        "for held in listed)",
        _MACHINE + "test_closing.py::test_the_state_most_share_is_listed",
    ),
    (
        "A snapshot holds its tensors in the order of a dictionary.",
        "node/stream.py",
        "ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))",
        "ordered = list(tensors.items())",
        "tests/shell/test_snapshots.py::test_a_state_is_one_string_of_bytes_however_it_is_held",
    ),
    (
        "A snapshot's header is written in the order of a dictionary.",
        "node/stream.py",
        "dict(sorted(meta.items()))",
        "dict(meta.items())",
        "tests/shell/test_snapshots.py::test_a_state_is_one_string_of_bytes_however_it_is_held",
    ),
    (
        "Each peer rounds its bfloat16 weights with noise of its own.",
        "node/methods/spsa.py",
        "noise = seeds.noise_key(round.run, round.round, number)",
        "noise = seeds.noise_key(round.run, round.round, number) ^ round.peer[0]",
        "tests/methods/test_spsa.py::test_a_peer_that_replays_the_ledger_has_the_same_bits",
    ),
    (
        "The unit of the bytes is not part of a snapshot's state.",
        "node/methods/spsa.py",
        "self._exponent, self._queue = int(exponent), queue",
        "self._queue = queue",
        "tests/methods/test_spsa.py::test_a_peer_that_replays_the_ledger_has_the_same_bits",
    ),
    (
        "The outer step on CPUs keeps products that some devices flush to 0.",
        "node/kernels/dense.py",
        "return _ZERO if abs(product) < tiny else product",
        "return product",
        "tests/methods/test_outer_step.py::test_both_ways_give_the_same_bits",
    ),
    (
        "The outer step on CPUs adds what peers sent from the last one to the first.",
        "node/kernels/dense.py",
        "for r in range(senders.size):",
        "for r in range(senders.size - 1, -1, -1):",
        "tests/methods/test_outer_step.py::test_both_ways_give_the_same_bits",
    ),
)

_P2: Final[_Rows] = (
    (
        "A replica leaves out the last contribution that an entry lists.",
        "node/replica.py",
        "        return found\n\n    def patch",
        "        return found[:-1]\n\n    def patch",
        "tests/methods/test_replica.py::test_a_replica_merges_what_the_entry_lists",
    ),
    (
        "A replica takes contributions for those of another member.",
        "node/replica.py",
        "found.append(Contribution(seats[line.seat], line.payload, data))",
        "found.append(Contribution(self._me, line.payload, data))",
        "tests/methods/test_replica.py::test_a_replica_merges_what_the_entry_lists",
    ),
    (
        "A method leaves out what comes first in a round.",
        "node/methods/spsa.py",
        "for c in contributions for m in self._decode(round.round, c)]",
        "for c in contributions[1:] for m in self._decode(round.round, c)]",
        "tests/methods/test_spsa.py::test_the_update_is_the_mean_over_probes",
    ),
    (
        "An entry may list one contribution twice.",
        "protocol/ledger.py",
        "if not last < line.seat < len(members):",
        "if not line.seat < len(members):",
        _MACHINE + "test_ledger.py::test_what_was_not_signed_so_does_not_follow",
    ),
    (
        "A closer leaves out one of the contributions that it holds.",
        "protocol/building.py",
        "tuple(held.line for held in chosen),",
        "tuple(held.line for held in chosen[:-1]),",
        _MACHINE + "test_closing.py::test_the_closer_closes_once_all_are_in",
    ),
    (
        "A closer lists what it does not hold.",
        "protocol/closing.py",
        "        if line.attached is None:\n            self._list(",
        "        if line is not None:\n            self._list(",
        _MACHINE + "test_attachments.py::test_a_contribution_counts_once_its_attachment_is_here",
    ),
    (
        "A replica merges an attachment that is not what its payload says.",
        "node/replica.py",
        "                self.method.check(entry.round, line.payload, data)",
        "                pass",
        "tests/methods/test_replica.py::test_what_cannot_be_merged_is_left_out_by_all",
    ),
)

_P3: Final[_Rows] = (
    (
        "Work that ends after its round was closed is thrown away.",
        "protocol/closing.py",
        "core.out.append(GiveBack(done.round, done.payload, done.attached))",
        "pass",
        _MACHINE + "test_closing.py::test_work_for_a_round_that_is_closed_is_given_back",
    ),
    (
        "Work that an entry left out is thrown away.",
        "protocol/peer.py",
        "if missed is not None:",
        "if missed is None and self._halted:",
        _MACHINE + "test_closing.py::test_work_that_was_not_listed_is_given_back",
    ),
    (
        "What was given back is not offered again.",
        "node/methods/parts/backlog.py",
        "self._waiting.update(probes or {})",
        "self._offers.get((round, _tag(payload)), {})",
        "tests/methods/test_spsa.py::test_late_probes_ride_along_with_their_own_directions",
    ),
    (
        "A vote is told before it is on disk, and never gets there.",
        "protocol/ballots.py",
        "            self._save_vote()\n        elif round.accepted[1].hash",
        "        elif round.accepted[1].hash",
        _MACHINE + "test_closing.py::test_a_vote_is_on_disk_before_it_is_told",
    ),
    (
        "A contribution is sent and not written down.",
        "protocol/closing.py",
        'writes.append(Write("outbox", round_key(done.round), encode(round.mine)))',
        "pass",
        _MACHINE + "test_closing.py::test_work_goes_to_the_closer_and_its_deputies",
    ),
    (
        "Work of round 0 is forgotten in round 1, and lost if the chain switches.",
        "protocol/closing.py",
        "if done.round >= OUTBOX_ROUNDS else []",
        "if done.round >= OUTBOX_ROUNDS else [0]",
        "tests/scenarios/test_splits.py::test_halves_that_part_before_the_first_round",
    ),
    (
        "After a crash a closer forgets what it had sealed, and seals another entry.",
        "protocol/ballots.py",
        "known = self._seals.get((round.mark.round, round.mark.hash))",
        "known = None",
        _MACHINE + "test_closing.py::test_after_a_crash_the_same_entry_is_sealed",
    ),
    (
        "A fetch that was cut off forgets what is on disk.",
        "node/chunks.py",
        "have = sound_chunks(path, blob)",
        "have = Bits(blob.chunks)",
        "tests/shell/test_snapshots.py::test_a_fetch_goes_on_after_a_kill",
    ),
    (
        "A fetch asks for what the disk says it has.",
        "protocol/blobs.py",
        "        self._have = have\n        self._missing = have.count - have.total()",
        "        self._have = Bits(have.count)\n        self._missing = have.count",
        _MACHINE + "test_blobs.py::test_what_is_on_disk_already_is_not_asked_for",
    ),
    (
        "A member accepts what it could not merge.",
        "protocol/ballots.py",
        "        self._want(entry, lambda: self._accept(round, sender, message))",
        "        self._accept(round, sender, message)",
        _MACHINE + "test_attachments.py::test_a_member_accepts_only_what_it_could_merge",
    ),
    (
        "Attachments of work that may be given back are thrown away.",
        "node/attachments.py",
        "gone = [root for root in old if root not in stay]",
        "gone = list(old)",
        "tests/shell/test_attachments.py::test_old_ones_go_and_what_may_be_given_back_stays",
    ),
)

_P3_SUMS: Final[_Rows] = (
    (
        "Who starts again does not know whose parts it has.",
        "protocol/scattering.py",
        '        self._core.save([Write("dealt", kept.key, kept.value)])\n',
        "",
        _MACHINE + "test_scattering.py::test_who_starts_again_knows_whose_parts_it_has",
    ),
    (
        "An author's own word for its parts is enough to list it.",
        "protocol/deal.py",
        "            if members[seat] != holder:\n",
        "            if members[seat]:\n",
        _MACHINE + "test_scattering.py::test_a_contribution_counts_once_others_hold_all_of_it",
    ),
    (
        "What a sum rounds away is gone.",
        "node/methods/diloco.py",
        "            self._feedback.values[due][run.elements] += rounded",
        "            pass",
        "tests/methods/test_dense_parts.py::test_nothing_is_lost_in_sums",
    ),
    (
        "A member accepts a proposal before it has its sums.",
        "protocol/gathering.py",
        "        self._waits.append(_Wait(entry.round, set(missing), done))",
        "        done()",
        _MACHINE + "test_sums.py::test_most_accept_only_what_they_could_merge",
    ),
)

_P3_GOSSIP: Final[_Rows] = (
    (
        "A stretch counts before the other side could move by it.",
        "protocol/exchanging.py",
        "one.is_prepared and one.ready.issuperset(self.others)",
        "one.is_prepared",
        _MACHINE
        + "test_meetings.py"
        + "::test_a_stretch_counts_once_it_is_prepared_here_and_all_others_are_ready",
    ),
    (
        "A session begins after somebody heard that nothing of it counts.",
        "protocol/verdicts.py",
        "            self._void[message.session] = None\n",
        "            pass\n",
        _MACHINE + "test_meetings.py::test_a_session_that_was_denied_never_begins",
    ),
    (
        "Who was ready and heard nothing takes that for a no.",
        "protocol/verdicts.py",
        "        elif session.doubts:\n",
        "        elif session.name is None:\n",
        _MACHINE + "test_meetings.py::test_who_was_ready_and_hears_nothing_asks_until_it_knows",
    ),
    (
        "What moves a stretch is not on the disk before it is said to be.",
        "node/gossip/journal.py",
        "        self._append(fields, [*image.values(), *moves])\n",
        "",
        "tests/gossip/test_journal.py::test_a_pair_is_killed_before_any_of_its_writes",
    ),
    (
        "A record that a kill cut short is taken for whole.",
        "node/gossip/journal.py",
        "        if len(body) != length or blake3(body).digest(length=8) != check:\n",
        "        if not body:\n",
        "tests/gossip/test_journal.py::test_a_log_that_was_cut_short_holds_what_was_whole",
    ),
)

_P4: Final[_Rows] = (
    (
        "Members that came after it do not know an applicant.",
        "protocol/admission.py",
        "                self._introduce(fresh, admission.card, admission.token)",
        "                pass",
        "tests/scenarios/test_scattering.py"
        "::test_an_applicant_is_known_to_members_that_came_after_it",
    ),
    (
        "An applicant asks those first who may refuse it.",
        "protocol/gathering.py",
        "core.dice.pick(heard or fresh)",
        "core.dice.pick(fresh)",
        _MACHINE + "test_gathering.py::test_who_is_heard_is_asked_before_who_may_not_know_us",
    ),
    (
        "A closer lists what nobody who is left can add up.",
        "protocol/ballots.py",
        "if self._holdings.is_within_reach(by, gone)",
        "if by",
        _MACHINE + "test_scattering.py::test_what_nobody_else_has_any_more_is_not_listed",
    ),
    (
        "A part whose first adder is silent is offered to nobody else.",
        "protocol/scattering.py",
        "            if is_stuck or is_gone or not offered:",
        "            if not offered:",
        _MACHINE + "test_scattering.py::test_what_nobody_takes_is_offered_to_the_next",
    ),
    (
        "Who is asked in place of a silent adder has no parts, and calls for none.",
        "protocol/gathering.py",
        "        elif lacking and (is_asked or self._is_first(wanted)):",
        "        elif lacking and self._is_first(wanted):",
        _MACHINE + "test_sums.py::test_the_next_calls_for_parts_and_adds_up_when_asked",
    ),
    (
        "Deputies never take over from a silent closer.",
        "protocol/closing.py",
        "if owner(ranked, ballot) == core.me:",
        "if ballot < 0:",
        _MACHINE + "test_closing.py::test_a_closer_that_is_up_and_closes_nothing_is_not_waited_for",
    ),
    (
        "The same member closes every round.",
        "protocol/rounds.py",
        'key = digest("rank", run, round.to_bytes(8, "big"))',
        'key = digest("rank", run)',
        _MACHINE + "test_rounds.py::test_the_task_rotates_fairly",
    ),
    (
        "What a dead donor was asked for is never asked of another.",
        "protocol/blobs.py",
        "                self._release(holder)\n                holder.strikes += 1",
        "                holder.strikes += 1",
        _MACHINE + "test_blobs.py::test_a_holder_that_dies_is_replaced_and_nothing_comes_twice",
    ),
    (
        "A newcomer waits for ever for a snapshot that nobody sends any more.",
        "protocol/recovery.py",
        "if core.now - fetch.moved_ms < patience_ms:",
        "if core.now >= fetch.started_ms:",
        _MACHINE + "test_recovery.py::test_a_snapshot_that_stops_coming_is_given_up",
    ),
    (
        "Rounds wait for all, however long that takes.",
        "protocol/rounds.py",
        "    if now_ms < deadline_ms:\n",
        "    if deadline_ms:\n",
        "tests/scenarios/test_nobody_is_needed.py::test_nobody_waits_for_the_slowest",
    ),
    (
        "An attachment that is lost holds everybody up for ever.",
        "protocol/holdings.py",
        "            self._lost(event)",
        "            pass",
        _MACHINE + "test_attachments.py::test_what_nobody_sends_is_left_behind_with_its_entry",
    ),
)

_P5: Final[_Rows] = (
    (
        "Of two ledgers the longer is kept, not the one with more work.",
        "protocol/ledger.py",
        "return (one.weight, other.hash) > (other.weight, one.hash)",
        "return (one.round, other.hash) > (other.round, one.hash)",
        _MACHINE + "test_ledger.py::test_the_heavier_branch_wins_on_both_sides",
    ),
    (
        "Of two ledgers with as much work each side keeps its own.",
        "protocol/ledger.py",
        "return (one.weight, other.hash) > (other.weight, one.hash)",
        "return one.weight > other.weight",
        _MACHINE + "test_ledger.py::test_fork_choice_is_a_total_order",
    ),
    (
        "Where most have to accept an entry, its closer alone is enough.",
        "protocol/ballots.py",
        "if len(lead.accepts) >= self._core.head.roster.majority:",
        "if lead.accepts:",
        _MACHINE + "test_closing.py::test_one_seal_is_not_enough",
    ),
    (
        "Where most have to agree, a deputy goes on without hearing of them.",
        "protocol/ballots.py",
        "enough = len(lead.promises) + 1 >= core.head.roster.majority",
        "enough = True",
        _MACHINE + "test_closing.py::test_a_deputy_needs_most_promises",
    ),
    (
        "A deputy proposes its own entry though another may have been accepted.",
        "protocol/ballots.py",
        "        if best is None:",
        "        if True:",
        _MACHINE + "test_closing.py::test_a_deputy_proposes_what_may_have_been_accepted",
    ),
    (
        "A member accepts two entries under one ballot.",
        "protocol/ballots.py",
        "        elif round.accepted[1].hash != entry.hash:",
        "        elif round.accepted is None:",
        _MACHINE + "test_hostile.py::test_a_second_proposal_under_one_ballot_is_refused",
    ),
    (
        "Who stands on another branch is not told of ours.",
        "protocol/closing.py",
        "core.send(other, Sync(core.membership.view_hash(), core.ledger.summary()))",
        "pass",
        _MACHINE + "test_closing.py::test_another_branch_is_answered_with_our_head",
    ),
    (
        "A chain that shares its beginning with another one read before is never read.",
        "protocol/ledger.py",
        "        tip = self._on_branch(entry.round)\n",
        "        tip = self._branch[-1] if self._branch else None\n",
        _MACHINE + "test_ledger.py::test_a_branch_that_parts_from_another_branch_is_read",
    ),
)

_P6: Final[_Rows] = (
    (
        "Any blob passes for a part of a contribution.",
        "protocol/parts.py",
        "    if rest or name != whole.root:",
        "    if rest:",
        _MACHINE + "test_scattering.py::test_what_does_not_fit_is_counted_against_its_sender",
    ),
    (
        "A sum of any size is fetched.",
        "protocol/gathering.py",
        "        if not 1 <= size <= core.rules.attachment_bytes_max:",
        "        if not size:",
        _MACHINE + "test_sums.py::test_a_sum_of_an_impossible_size_is_not_fetched",
    ),
    (
        "What was no sum is taken for one again.",
        "protocol/gathering.py",
        "            wanted.barred.add(known.root)",
        "            pass",
        _MACHINE + "test_sums.py::test_a_sum_that_was_refused_is_fetched_of_another",
    ),
    (
        "Lists on the wire may be as long as they like.",
        "protocol/wire.py",
        "if type(raw) is not tuple or len(raw) > most:",
        "if type(raw) is not tuple:",
        _MACHINE + "test_codec.py::test_what_is_out_of_bounds_is_refused",
    ),
    (
        "Byte strings on the wire may be as long as they like.",
        "protocol/wire.py",
        "if type(raw) is not bytes or not least <= len(raw) <= most:",
        "if type(raw) is not bytes:",
        _MACHINE + "test_codec.py::test_what_is_out_of_bounds_is_refused",
    ),
    (
        "Scalars on the wire need not be finite.",
        "protocol/wire.py",
        "    if not math.isfinite(value):\n",
        "    if value is None:\n",
        _MACHINE + "test_codec.py::test_what_is_out_of_bounds_is_refused",
    ),
    (
        "A stranger may send frames as long as a member's.",
        "protocol/peer.py",
        "if not is_peer(source) and len(event.data) > codec.GUEST_FRAME_BYTES_MAX:",
        "if not is_peer(source) and len(event.data) > codec.FRAME_BYTES_MAX:",
        _MACHINE + "test_hostile.py::test_guests_must_be_brief",
    ),
    (
        "A chunk is taken for what it says it is.",
        "protocol/blobs.py",
        "return len(name) == ID_BYTES and chunk_id(data) == name",
        "return len(name) == ID_BYTES",
        _MACHINE + "test_blobs.py::test_a_chunk_that_is_not_what_it_says_ends_its_sender",
    ),
    (
        "Nobody looks at a closer's seal.",
        "protocol/ledger.py",
        "if not self._keys.verify(members[body.closer], seal, entry.seal):",
        "if not seal:",
        _MACHINE + "test_hostile.py::test_a_forged_seal_convicts_nobody",
    ),
    (
        "Nobody looks at the signatures of contributions.",
        "protocol/ledger.py",
        "if not self._keys.verify(members[line.seat], signed, signature):",
        "if not signed:",
        _MACHINE + "test_ledger.py::test_what_was_not_signed_so_does_not_follow",
    ),
    (
        "Nobody looks at the signature of an envelope.",
        "protocol/relaying.py",
        "if not core.keys.verify(message.origin, signed, message.signature):",
        "if not signed:",
        _MACHINE + "test_relaying.py::test_what_the_origin_did_not_sign_is_its_relay_s_fault",
    ),
    (
        "Any member may write into another's weights.",
        "protocol/mending.py",
        "if self._asked != (place, sender) or not self._is_damaged:",
        "if not self._is_damaged:",
        _MACHINE + "test_mending.py::test_what_nobody_asked_for_is_not_put_in_place",
    ),
    (
        "A blob larger than its author said is fetched.",
        "protocol/transfers.py",
        "if order.size is None or message.size == order.size:",
        "if order.size is None or message.size > 0:",
        _MACHINE + "test_attachments.py::test_a_blob_of_another_size_is_not_what_was_named",
    ),
)

_P7: Final[_Rows] = (
    (
        "The rate of a fetch is shown before anything has come.",
        "protocol/blobs.py",
        "        if self.received_bytes < 4 * CHUNK_BYTES and not self.is_whole:\n"
        "            return None",
        "        if self.received_bytes < 4 * CHUNK_BYTES and not self.is_whole:\n"
        "            return 1_000.0",
        _MACHINE + "test_recovery.py::test_progress_is_told_every_two_seconds",
    ),
    (
        "A way is chosen, and reasons are given, before replaying was measured.",
        "protocol/recovery.py",
        "        return None\n    replay_ms =",
        '        return Choice(True, "replaying is slow")\n    replay_ms =',
        _MACHINE + "test_recovery.py::test_the_choice_names_both_ways",
    ),
    (
        "A rate that nothing was counted for is shown as 0.",
        "node/telemetry.py",
        "            return None\n        return sum(amount",
        "            return 0.0\n        return sum(amount",
        "tests/shell/test_telemetry.py::test_a_rate_is_unknown_then_true_then_falls_to_zero",
    ),
    (
        "A loss that is no number is told as 0.",
        "protocol/wire.py",
        "    except (OverflowError, RemoteError):\n        return None",
        "    except (OverflowError, RemoteError):\n        return 0.0",
        _MACHINE + "test_hostile.py::test_a_loss_that_is_no_number_is_unknown",
    ),
)

_P8: Final[_Rows] = (
    (
        "Marks are never thinned out.",
        "protocol/ledger.py",
        "if round % (1 << octaves):",
        "if round < 0:",
        _MACHINE + "test_ledger.py::test_memory_does_not_grow_with_the_rounds",
    ),
    (
        "Old snapshots are never collected.",
        "node/snapshots.py",
        "for record in records if record.root not in stay]",
        "for record in records if record.round is None]",
        "tests/shell/test_snapshots.py::test_two_newest_of_all_and_what_is_being_fetched_stay",
    ),
    (
        "A relay passes on as much as anybody likes.",
        "protocol/relaying.py",
        "return None if has_room else Why.OVER_CAP",
        "return None if has_room else None",
        _MACHINE + "test_relaying.py::test_the_cap_and_each_source_s_share",
    ),
    (
        "Whoever asks for entries gets them, as often as it asks.",
        "protocol/ration.py",
        "granted = full_at - now <= (self.burst - 1) * self.every_ms",
        "granted = True",
        _MACHINE + "test_hostile.py::test_asking_for_entries_is_rationed",
    ),
    (
        "Who spreads an entry sends it to everybody.",
        "protocol/rounds.py",
        "return list(order[fanout * at + 1 : fanout * at + 1 + fanout])",
        "return list(order[1:]) if at == 0 else []",
        _MACHINE + "test_rounds.py::test_a_tree_reaches_everybody_once",
    ),
    (
        "A rumor is told again and again.",
        "protocol/spreading.py",
        "if self._times[peer] >= limit:",
        "if self._times[peer] < 0:",
        _MACHINE + "test_membership.py::test_a_rumor_is_told_a_few_times_only",
    ),
    (
        "Everybody takes an attachment from the few who had it first.",
        "protocol/transfers.py",
        "        if news > order.news:",
        "        if news < 0:",
        _MACHINE + "test_attachments.py::test_those_who_asked_hear_of_what_has_come",
    ),
)
