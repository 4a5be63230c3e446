"""One peer: the one door in.

`handle(event, now)` is the only way to change a peer, and the effects it returns are the only way
that it acts. It never raises for what a stranger sends: bad bytes are dropped and counted against
their sender (P6). A `LocalError` that escapes is a bug of ours.
"""

from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, assert_never

from protocol import codec
from protocol.admission import Admissions, is_peer
from protocol.attachments import Attachments
from protocol.ballots import Ballots
from protocol.catchup import CatchUp
from protocol.checkups import Checkups
from protocol.closing import Closing
from protocol.core import Core
from protocol.deal import PartKept
from protocol.dice import Dice
from protocol.effects import (
    Apply,
    Connect,
    Disconnect,
    Effect,
    GiveBack,
    Halt,
    Rebuild,
    StopWork,
)
from protocol.entries import Attachment, Card, Entry
from protocol.errors import LocalError, RemoteError
from protocol.events import (
    Applied,
    Ask,
    Behind,
    BlobKept,
    BlobOpened,
    ChecksTaken,
    Dialled,
    Event,
    MeetAsked,
    MeetsAnyone,
    ModelTaken,
    ModelWanted,
    MoveAsked,
    Moved,
    Offered,
    Patched,
    Prepared,
    Recalled,
    Received,
    Started,
    StopAsked,
    Summed,
    SumRefused,
    Tick,
    WorkDone,
)
from protocol.gathering import Gathering
from protocol.holdings import Holdings
from protocol.identity import Keys
from protocol.ids import Hash, Millis, PeerId, RunId
from protocol.ledger import Judge, Ledger, Mark, Step
from protocol.meetings import Meetings
from protocol.membership import Membership
from protocol.mending import Mending
from protocol.messages import (
    Accepted,
    Ack,
    BlobOffer,
    BlobRequest,
    Closed,
    Commit,
    Contribute,
    Counted,
    DialBack,
    DialledBack,
    Echo,
    Echoed,
    Entries,
    EntriesRequest,
    Evidence,
    Hello,
    Introduce,
    Join,
    Leave,
    Meet,
    Mend,
    MendRequest,
    Message,
    ModelHeld,
    ModelRequest,
    Nack,
    NotMeeting,
    Part,
    PartRequest,
    PartsHeld,
    Piece,
    PieceRefused,
    PieceRequest,
    Ping,
    PingRequest,
    Prepare,
    Promise,
    Propose,
    Ready,
    Refused,
    Relay,
    StretchFrame,
    StretchRequest,
    Sum,
    SumRequest,
    Sync,
    Unrelayed,
    Verdict,
    View,
    Welcome,
)
from protocol.models import Models
from protocol.open_round import Vote
from protocol.parts import SumName
from protocol.recovery import Recovery
from protocol.relaying import RelayCounts, Relaying, RelayLimits
from protocol.retreat import Retreat
from protocol.rules import Rules
from protocol.scattering import Scattering
from protocol.transfers import Transfers
from protocol.views import Views

STOP_MS_MAX: Final = 3_000
_READY_ROUNDS: Final = 2
_AHEAD_ROUNDS: Final = 4  # what the newest entries need is fetched before the state comes to them
_STORY_LENGTH: Final = 64

Decode = Callable[[bytes], Message]


@dataclass(frozen=True, slots=True)
class Saved:
    """What a peer finds on its disk when it starts; all empty for a new one."""

    marks: tuple[Mark, ...] = ()
    last: Entry | None = None  # the newest entry of the chain
    vote: Vote | None = None  # for the open round
    mine: Contribute | None = None  # our contribution to the open round, sent or about to be
    parts: tuple[Attachment, ...] = ()  # that it attaches
    returned: tuple[GiveBack, ...] = ()  # our own work that no entry on the chain lists
    attachments: tuple[Hash, ...] = ()  # on disk
    sums: tuple[tuple[SumName, Attachment], ...] = ()  # on disk
    dealt: tuple[PartKept, ...] = ()  # of others' attachments, on disk
    # Our contribution to the round that the newest entry closed, and what that attaches.
    before: tuple[Contribute, tuple[Attachment, ...]] | None = None
    seals: tuple[Entry, ...] = ()  # our own, of the last rounds
    took: tuple[int, ...] = ()  # ms, by the newest entries, oldest first


class Peer:
    """A peer's whole protocol state. `founders` are the members of round 0; `manifest` is what
    joiners get.
    """

    def __init__(
        self,
        run: RunId,
        rules: Rules,
        keys: Keys,
        founders: Iterable[PeerId],
        manifest: bytes,
        judge: Judge,
        seed: bytes,
        now: Millis,
        saved: Saved | None = None,
        decode: Decode = codec.decode,
        relay_limits: RelayLimits | None = None,
    ) -> None:
        saved = saved or Saved()
        self._decode, self._saved = decode, saved
        dice = Dice(seed)
        ledger = Ledger(judge, founders, saved.marks)
        membership = Membership(keys.peer, rules, dice, ledger.head.roster, ledger.summary, now)
        self._core = Core(run, rules, keys, dice, judge, ledger, membership, manifest, now)
        self._checkups = Checkups(self._core)
        self._relaying = Relaying(self._core, relay_limits or RelayLimits())
        self._transfers = Transfers(self._core)
        self._attachments = Attachments(self._core, self._transfers)
        self._scattering = Scattering(self._core, self._attachments)
        self._gathering = Gathering(self._core, self._attachments, self._scattering)
        self._holdings = Holdings(
            self._core, self._attachments, self._scattering, self._gathering, self._lost
        )
        self._retreat = Retreat(self._core, self._holdings)
        self._catchup = CatchUp(self._core, self._advance, self._retreat.reconsider)
        self._recovery = Recovery(self._core, self._transfers, lambda: self._catchup.busy)
        self._mending = Mending(self._core)
        self._meetings = Meetings(self._core)
        self._models = Models(self._core, self._transfers)
        self._admissions = Admissions(self._core, self._catchup, self._is_ready)
        self._ballots = Ballots(
            self._core,
            self._holdings,
            self._adopt,
            self._admissions.changes,
            self._catchup.ask,
        )
        self._closing = Closing(
            self._core, self._attachments, self._scattering, self._ballots, self._catchup.ask
        )
        self._closing.last = saved.last
        self._views = Views(self._core, self._catchup, self._twin)
        self._applied_round: int | None = None  # where the replicated state stood last
        self._stop_at_ms: Millis | None = None
        self._started = self._halted = False
        self.story: deque[str] = deque(maxlen=_STORY_LENGTH)

    # Reading

    @property
    def ledger(self) -> Ledger:
        return self._core.ledger

    @property
    def membership(self) -> Membership:
        return self._core.membership

    @property
    def is_member(self) -> bool:
        return self._core.is_member

    @property
    def caught_up(self) -> bool:
        """No better chain than ours is known."""
        return not self._catchup.busy

    @property
    def faults(self) -> dict[bytes, int]:
        """Bad messages by sender."""
        return self._core.faults

    def card_addresses(self, peer: PeerId) -> tuple[str, ...]:
        card = self._core.cards.get(peer)
        return card.addresses if card else ()

    def cards(self) -> tuple[Card, ...]:
        return tuple(self._core.cards[peer] for peer in sorted(self._core.cards))

    @property
    def relay_counts(self) -> RelayCounts:
        return self._relaying.counts

    @property
    def doubts(self) -> int:
        """Exchanges of which this peer does not know whether they count."""
        return self._meetings.doubts

    def relay_of(self, peer: bytes) -> PeerId | None:
        """Who passes on what we send to `peer`; None: it goes there by itself."""
        return self._relaying.relay_of(peer)

    def reply_bytes_max(self, to: bytes) -> int:
        """How long an answer from disk may be, if it is to reach `to`."""
        return codec.FRAME_BYTES_MAX if self.relay_of(to) is None else codec.RELAYED_BYTES_MAX

    @property
    def wake_ms(self) -> Millis | None:
        """When `Tick` is wanted next."""
        if self._halted or not self._started:
            return None
        due = self._views.wake_ms
        for time in (
            self._closing.wake_ms,
            self._catchup.wake_ms,
            self._admissions.wake_ms,
            self._transfers.wake_ms,
            self._holdings.wake_ms,
            self._scattering.wake_ms if self._core.is_member else None,
            self._gathering.wake_ms,
            self._recovery.wake_ms,
            self._relaying.wake_ms,
            self._meetings.wake_ms,
            self._models.wake_ms,
            self._stop_at_ms,
            self._core.membership.wake_ms if self._core.is_member else None,
        ):
            if time is not None and time < due:
                due = time
        return Millis(due)

    # The door

    def handle(self, event: Event, now: Millis) -> list[Effect]:
        """What `event` makes this peer want, in order. `now` is monotonic, in milliseconds."""
        core = self._core
        core.now = max(now, core.now)  # a clock that steps back stands still
        core.out = []
        if self._halted or not (self._started or isinstance(event, Started)):
            return []
        try:
            self._dispatch(event)
            self._tick()
        except LocalError as error:
            error.add_note("\n".join(self.story))
            raise
        except RemoteError as error:
            broken = LocalError(f"a fault with nobody to blame: {error}")
            broken.add_note("\n".join(self.story))
            raise broken from error
        return core.out

    def route(self, to: bytes, frame: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """What to hand to the transport so that `frame` reaches `to`: itself, or an envelope for a
        relay. For whoever performs effects.
        """
        return self._relaying.route(to, frame)

    def _dispatch(self, event: Event) -> None:
        match event:
            case Received():
                self._receive(event)
            case Tick():
                pass
            case WorkDone():
                self._tell(f"work done for round {event.round}")
                self._closing.work_done(event)
                if self._stop_at_ms is not None:
                    self._depart()
            case Applied():
                self._applied(event)
            case Started():
                self._start(event)
            case StopAsked():
                self._stop()
            case MoveAsked():
                self._move(event)
            case Behind():
                self._holdings.behind(event)
                self._recovery.behind(event)
            case BlobOpened():
                self._transfers.opened(event)
            case BlobKept():
                self._attachments.kept(event)
                self._models.kept(event)
            case Summed():
                self._gathering.summed(event)
            case SumRefused():
                self._gathering.refused(event.name, event.round)
            case MeetAsked():
                self._meetings.meet(event)
            case MeetsAnyone():
                self._meetings.meet_anyone(event)
            case Offered():
                self._meetings.offered(event)
            case Prepared():
                self._meetings.prepared(event)
            case Moved():
                self._meetings.has_moved(event)
            case Recalled():
                self._meetings.recall(event)
            case ModelWanted():
                self._models.want(event)
            case ModelTaken():
                self._models.taken(event)
            case ChecksTaken():
                self._mending.taken(event)
            case Patched():
                self._mending.patched(event)
            case Ask():
                self._checkups.ask(event)
            case Dialled():
                self._checkups.dialled(event)
            case _:
                assert_never(event)

    def _tell(self, line: str) -> None:
        self.story.append(f"{self._core.now} ms, round {self._core.head.round}: {line}")

    # Starting and stopping

    def _start(self, event: Started) -> None:
        core = self._core
        self._started = True
        core.set_own_card(event.card)
        for card in event.cards:
            core.learn_card(card)
        core.out.append(
            Rebuild(
                core.head.round, core.head.hash, switched=False, from_scratch=False, reason="start"
            )
        )
        for work in self._saved.returned:
            core.out.append(work)
            self._closing.returned(work.round)
        for root in self._saved.attachments:
            self._attachments.hold(root)
        for name, sum in self._saved.sums:
            self._gathering.hold(name, sum)
        for entry in self._saved.seals:
            self._ballots.sealed_before(entry)
        if self._saved.last is not None:
            self._retreat.joined(self._saved.last)
        saved = self._saved
        self._scattering.restore(saved.dealt, *(saved.before or (None, ())))
        self._closing.restore(saved.vote or Vote(), saved.mine, saved.parts, saved.took)
        self._saved = Saved()
        self._meetings.start()
        self._admissions.start(event.token, event.sponsor)
        if core.is_member:
            self._views.announce()
        self._closing.open()
        self._need_newest()

    def _need_newest(self) -> None:
        """Should all have ended while it was added up, nobody else has it."""
        core, last = self._core, self._closing.last
        before = None if last is None else core.ledger.mark_at(last.round)
        if last is not None and before is not None and self._scattering.is_on:
            self._holdings.need(last, before.roster.members)

    def _move(self, event: MoveAsked) -> None:
        self._core.set_own_card(event.card)
        self._views.announce()

    def _stop(self) -> None:
        if self._stop_at_ms is not None:
            self._halt("asked to stop twice", clean=False)
            return
        self._closing.stopping = True
        self._stop_at_ms = Millis(self._core.now + STOP_MS_MAX)
        self._core.out.append(StopWork())
        if not self._core.is_member:
            self._depart()

    def _depart(self) -> None:
        self._admissions.leave()
        self._halt("asked to stop", clean=True)

    def _twin(self) -> None:
        self._halt("another process runs with this identity", clean=False)

    def _halt(self, reason: str, *, clean: bool) -> None:
        self._tell(f"halt: {reason}")
        self._core.out.append(Halt(reason, clean))
        self._halted = True

    # Time

    def _tick(self) -> None:
        core = self._core
        if self._halted:
            return
        if core.is_member:
            core.send_all(core.membership.tick(core.now))
        self._views.tick()
        self._catchup.tick()
        self._transfers.tick()
        if core.is_member:
            self._scattering.tick()
        self._gathering.tick()
        self._holdings.tick()
        self._recovery.tick()
        self._admissions.tick()
        self._relaying.tick()
        self._meetings.tick()
        self._models.tick()
        self._closing.advance()
        if self._stop_at_ms is not None and core.now >= self._stop_at_ms and not self._halted:
            self._depart()

    # Receiving

    def _receive(self, event: Received) -> None:
        core, source = self._core, event.source
        try:
            if not is_peer(source) and len(event.data) > codec.GUEST_FRAME_BYTES_MAX:
                raise RemoteError(f"a guest's frame of {len(event.data)} bytes")
            if source == core.me:
                raise RemoteError("a message from ourselves")
            message = self._decode(event.data)
            if not is_peer(source):
                self._on_guest(source, message, event.wall_s)
                return
            core.membership.heard(PeerId(source), core.now)
            self._relaying.heard(PeerId(source))
            if isinstance(message, Relay):
                frame = self._relaying.on_relay(PeerId(source), message)
                if frame is None:
                    return
                source = message.origin  # it signed: it is to blame for what is inside
                message = self._relaying.relayed(self._decode(frame))
                core.membership.heard(PeerId(source), core.now)
            self._on_peer(PeerId(source), message, event.wall_s)
        except RemoteError as error:
            self._tell(f"fault of {source[:4].hex()}: {error}")
            core.blame(source, error)

    def _on_guest(self, guest: bytes, message: Message, wall_s: int) -> None:
        if not isinstance(message, Hello):
            raise RemoteError(f"a guest that sends {type(message).__name__}")
        self._admissions.on_hello(guest, message, wall_s)

    def _on_peer(self, sender: PeerId, message: Message, wall_s: int) -> None:
        core = self._core
        match message:
            case Ping():
                core.send_all(core.membership.on_ping(sender, message, core.now))
                self._catchup.heard_head(sender, message.head)
            case Ack():
                target = core.membership.vouched_for(sender, message)
                if target is not None:
                    self._relaying.vouched(target, sender)
                core.send_all(core.membership.on_ack(sender, message, core.now))
                self._catchup.heard_head(sender, message.head)
            case PingRequest():
                core.send_all(core.membership.on_ping_request(sender, message, core.now))
            case Nack():
                core.membership.on_nack(message)
            case Sync() | View():
                self._views.hear(sender, message)
            case Contribute():
                self._closing.on_contribute(sender, message)
            case Prepare():
                self._closing.on_prepare(sender, message)
            case Promise():
                self._ballots.on_promise(sender, message)
            case Propose():
                self._ballots.on_propose(sender, message)
            case Accepted():
                self._ballots.on_accepted(sender, message)
            case Commit():
                self._ballots.on_commit(sender, message)
            case Closed():
                self._on_closed(sender, message)
            case EntriesRequest():
                self._catchup.on_request(sender, message)
            case Entries():
                self._catchup.on_entries(sender, message)
                self._admissions.tick()
            case Evidence():
                self._catchup.on_evidence(message)
            case Hello():
                self._admissions.on_hello(sender, message, wall_s)
            case Introduce():
                self._admissions.on_introduce(sender, message, wall_s)
            case Join():
                self._admissions.on_join(sender, message, wall_s)
            case Leave():
                self._admissions.on_leave(message)
            case BlobRequest():
                self._transfers.on_request(sender, message)
            case BlobOffer():
                self._transfers.on_offer(sender, message)
            case PieceRequest():
                self._scattering.asked_for(message.root)
                self._transfers.on_piece_request(sender, message)
            case Piece():
                self._transfers.on_piece(sender, message)
            case PieceRefused():
                self._transfers.on_refused(sender, message)
            case Part() | PartsHeld() | PartRequest():
                self._scattering.hear(sender, message)
            case SumRequest() | Sum():
                self._gathering.hear(sender, message)
            case (
                Meet()
                | NotMeeting()
                | StretchRequest()
                | StretchFrame()
                | Ready()
                | Verdict()
                | Counted()
            ):
                self._meetings.hear(sender, message)
            case ModelRequest() | ModelHeld():
                self._models.hear(sender, message)
            case MendRequest():
                self._mending.on_request(sender, message)
            case Mend():
                self._mending.on_mend(sender, message)
            case Unrelayed():
                self._relaying.on_unrelayed(sender, message)
            case DialBack() | DialledBack() | Echo() | Echoed():
                self._checkups.hear(sender, message)
            case Welcome() | Refused():
                pass  # of use before a peer runs, not after
            case Relay():
                raise RemoteError("an envelope in an envelope")
            case _:
                assert_never(message)

    def _on_closed(self, sender: PeerId, message: Closed) -> None:
        core, entry = self._core, message.entry
        if entry.body.parent == core.head.hash and not core.ledger.has_left(entry.hash):
            self._adopt(entry)
            closer = self._closer_of(entry)
            if closer is not None:
                self._ballots.spread(message, closer, entry)
        elif entry.round > core.head.round:
            self._catchup.ask(sender)
        else:
            self._catchup.offer(sender, (entry,))

    def _closer_of(self, entry: Entry) -> PeerId | None:
        before = self._core.ledger.mark_at(entry.round)
        return before.roster.members[entry.body.closer] if before is not None else None

    # The chain moves

    def _adopt(self, entry: Entry) -> None:
        """An entry that counts follows our head."""
        writes = self._core.ledger.extend(entry)
        self._catchup.watch(entry)
        self._advance(Step(writes, [entry], last=entry))

    def _advance(self, step: Step) -> None:
        core = self._core
        if step.switched_from is not None:
            assert step.fork_round is not None
            core.save(step.writes)
            self._closing.last = step.last
            for entry in step.read:
                self._rejoined(entry)
            why = f"a heavier ledger parts from ours at round {step.fork_round}"
            self._switched(step.switched_from, step.fork_round, why)
        elif step.appended:
            self._append(step)
        else:
            core.save(step.writes)
            return
        self._opened()

    def _rejoined(self, entry: Entry) -> None:
        """Was it read of the chain that is ours now?"""
        before, after = (self._core.ledger.mark_at(entry.round + more) for more in (0, 1))
        if before is not None and after is not None and after.hash == entry.hash:
            self._joined(entry, before)

    def _opened(self) -> None:
        """The head is another."""
        core = self._core
        core.membership.set_roster(core.head.roster)
        self._holdings.moved()
        self._catchup.moved()
        self._admissions.opened()
        self._meetings.moved()
        self._closing.open()

    def _append(self, step: Step) -> None:
        core = self._core
        settled = [self._closing.settle(entry) for entry in step.appended]
        core.save([*step.writes, *(write for writes, _ in settled for write in writes)])
        for entry, (_, missed) in zip(step.appended, settled, strict=True):
            before = core.ledger.mark_at(entry.round)
            assert before is not None, "marks are thinned out only behind the recent ones"
            if entry.round + _AHEAD_ROUNDS >= core.head.round:
                self._holdings.need(entry, before.roster.members)
            core.out.append(Apply(entry, before.roster.members))
            if missed is not None:
                core.out.append(missed)
            self._joined(entry, before)
            self._membership_changed(entry, before)
            self._tell(f"entry {entry.hash[:4].hex()} of {len(entry.body.lines)} contributions")

    def _lost(self, event: Behind) -> None:
        """What the state must merge next does not come. A snapshot may take it past that; else,
        where any seal counts, we go on from before it, with whoever lacks it too (P4).
        """
        core = self._core
        self._holdings.behind(event)
        if self._recovery.instead(event):
            return
        left = self._retreat.from_round(event.round)
        if left is None:
            return
        head = core.head
        core.save(core.ledger.retreat(*left))
        self._scattering.left(event.round)
        self._closing.last = None
        self._switched(head, event.round, f"nobody sends what round {event.round} lists")
        self._opened()

    def _switched(self, before: Mark, fork_round: int, reason: str) -> None:
        core = self._core
        self._tell(reason)
        core.note(
            "warning",
            "switched",
            fork_round=fork_round,
            why=reason,
            left_round=before.round,
            left_weight=before.weight,
            round=core.head.round,
            weight=core.head.weight,
        )
        self._closing.abandon(fork_round, before.round)
        self._holdings.start_over()
        self._recovery.moved()
        core.out.append(
            Rebuild(
                core.head.round, core.head.hash, switched=True, from_scratch=False, reason=reason
            )
        )

    def _membership_changed(self, entry: Entry, before: Mark) -> None:
        core = self._core
        for admission in entry.body.admissions:
            peer = admission.card.peer
            core.learn_card(admission.card)
            if peer in core.cards and peer != core.me:
                core.out.append(Connect(core.cards[peer]))
            core.note("info", "joined", peer=peer, round=entry.round)
            if before.roster.members[entry.body.closer] == core.me:
                core.send(
                    peer, Closed(entry)
                )  # it is in no tree yet, and would only learn by asking
        for departure in entry.body.departures:
            peer = before.roster.members[departure.seat]
            core.note("info", "departed", peer=peer, round=entry.round, cause=departure.cause.name)
            self._admissions.forget(peer)
            if peer in core.head.roster.banned:
                core.out.append(Disconnect(peer))

    # The replicated state

    def _is_ready(self) -> bool:
        """Does the state keep up with the chain, so that we would be of use as a member?"""
        core, stands = self._core, self._applied_round
        if stands is not None and core.head.round - stands <= _READY_ROUNDS:
            return True
        # An entry must list us first, and in the round after it nobody waits for who is new.
        return self._recovery.is_nearly_done(2 * core.rules.window_ms)

    def _applied(self, event: Applied) -> None:
        place = event.round, event.parent
        self._applied_round = event.round
        self._holdings.stands(event.round)
        if event.round + _READY_ROUNDS >= self._core.head.round:
            self._recovery.caught_up()
        self._mending.stands(place, event.state)
        self._admissions.tick()

    def _joined(self, entry: Entry, before: Mark) -> None:
        """The chain; it was not there, or not with us."""
        self._retreat.joined(entry)
        self._mending.claim(entry, before.roster.members)
