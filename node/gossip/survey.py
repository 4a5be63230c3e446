"""What a run that gossips would take on this machine: one stretch of steps and one exchange, done
here with a twin, are timed and counted.
"""

import itertools
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from node.gossip.consensus import expected
from node.gossip.exchange import Exchange
from node.gossip.journal import LOG_BYTES_MIN, LOG_SHARE, encode
from node.gossip.pairings import Meeting
from node.gossip.party import Party
from node.methods.parts.mixing import MODEL
from node.methods.registry import AnyGossip
from node.training.inner import InnerReport
from protocol.exchanging import UNDER_WAY

FAR: Final = 1000  # by so much the distance falls in the rounds that are told
_RING_WELL: Final = 16


@dataclass(frozen=True, slots=True)
class Work:
    batches: int  # between two exchanges, or rounds of them
    seconds: float  # that these take


@dataclass(frozen=True, slots=True)
class Trade:
    """One exchange of a peer with all others of a meeting."""

    sent_bytes: int  # to each other, frames left out
    disk_bytes: int  # written by who does not decide, which is more
    open_bytes: int  # in memory, for the stretches that are on their way at once
    seconds: float  # to code, decode and move


def time_work(party: Party, window_s: float) -> Work:
    """At most for a window; the steps of an exchange that are left are reckoned from those."""
    inner = party.config.inner
    slots = itertools.count()
    _step(party, slots, 0.0)  # the first one compiles and allocates
    started = time.monotonic()
    done = _step(party, slots, window_s)
    seconds = time.monotonic() - started
    wanted = done.batches if inner.steps is None else inner.batches_max
    return Work(wanted, seconds * wanted / done.batches)


def _step(party: Party, slots: "itertools.count[int]", seconds: float) -> InnerReport:
    """For so long, and a step at least."""
    end_s = time.monotonic() + seconds
    return party.work(0, slots, lambda: time.monotonic() >= end_s, least=1)


def time_exchange(party: Party) -> Trade:
    """With as many others as the run wants, whose models are this one."""
    _exchange(party, 1)  # the first one compiles and allocates
    return _exchange(party, len(party.stretches))


def _exchange(party: Party, stretches: int) -> Trade:
    config = party.config
    peers = tuple(bytes([number]) * 32 for number in range(config.meeting_size))
    directed = config.kind in ("exponential", "random")
    meeting = Meeting(peers, directed)
    sender = Exchange(party, peers[0], meeting)
    receiver = Exchange(party, peers[1], meeting) if directed else sender
    sent, written, most_open, seconds = 0, 0, 0, 0.0
    for number in range(stretches):
        started = time.monotonic()
        data = sender.offer(number)
        for other in peers[:1] if directed else peers[1:]:
            receiver.receive(number, other, data)
        moves = receiver.moves(number)
        receiver.commit(number)
        if directed:
            sender.commit(number)
        seconds += time.monotonic() - started
        sent += len(data)
        written += _written(party, number, moves)
        most_open = max(most_open, _held(party, number, moves, len(data)))
    return Trade(sent, written, UNDER_WAY * most_open, seconds)


def _written(party: Party, number: int, moves: Sequence[Tensor]) -> int:
    """By the two records of a stretch that this peer does not decide on."""
    image = list(party.part(number).values())
    fields = [bytes(32), number, bytes(32)]
    prepared = encode(["prepared", *fields], [*image, *moves])
    return len(prepared) + len(encode(["moved", *fields], image))


def _held(party: Party, number: int, moves: Sequence[Tensor], coded: int) -> int:
    """As bytes and decoded, of all that meet; and the moves."""
    length = party.part(number)[MODEL].numel()
    decoded = 4 * length * party.config.coded
    moved = sum(tensor.numel() * tensor.element_size() for tensor in moves)
    return party.config.meeting_size * (coded + decoded) + moved


# What follows


def facts_of(party: Party, work: Work, trade: Trade, peers: int) -> dict[str, Any]:
    config = party.config
    state_bytes = sum(t.numel() * t.element_size() for t in party.local_state().values())
    vectors = sum(t.numel() * t.element_size() for t in party.state.values())
    factor = mixing(config, peers)
    rounds = None if factor is None or not 0 < factor < 1 else math.log(FAR) / -math.log(factor)
    return {
        "kind": config.kind or "whoever is ready",
        "meeting_size": config.meeting_size,
        "exchanges_a_round": config.exchanges_a_round,
        "work_per_round": work.batches,
        "seconds_per_unit": work.seconds / work.batches,
        "exchange_bytes": trade.sent_bytes,
        "exchange_cpu_s": trade.seconds,
        "exchange_disk_bytes": trade.disk_bytes,
        "model_bytes": 4 * party.state[MODEL].numel(),
        "state_bytes": state_bytes,
        "journal_bytes_max": max(LOG_BYTES_MIN, LOG_SHARE * vectors),
        "mixing": factor,
        "mixing_rounds": rounds,
    }


def mixing(config: AnyGossip, peers: int) -> float | None:
    """What a round's exchanges leave of the expected distance; None: theory has no number."""
    if config.kind is None:
        return None
    once = expected(config.kind, peers, config.meeting_size)
    return None if once is None else once**config.exchanges_a_round


def cautions(config: AnyGossip, peers: int, *, is_private: bool) -> list[str]:
    """Beside those of the settings alone."""
    found = []
    if peers < config.meeting_size:
        found.append(
            f"{peers} peers do not fill a meeting of {config.meeting_size}: who is alone only"
            " trains"
        )
    if config.kind == "ring" and peers > _RING_WELL:
        found.append(
            f"a ring of {peers} peers: what one learned takes some {peers // 2} exchanges to reach"
            " all (D-PSGD, 1705.09056); a random matching mixes alike whatever their number"
        )
    if is_private:
        found.append(
            "data are private: each member's held-out loss, and that of the merged model, is of its"
            " own data, and no two can be compared"
        )
    return found


def outlook(
    samples: int,  # of an epoch
    samples_per_round: int,  # of one peer
    work: Work,
    facts: Mapping[str, Any],
    peers: int,
    uplink_mbit: float,
    *,
    waits: bool,  # an exchange takes turns with work
) -> dict[str, float]:
    """Alike peers on alike lines: all of a meeting send at the same time, each to all others."""
    others = facts["meeting_size"] - 1
    line_s = others * facts["exchange_bytes"] * 8 / (uplink_mbit * 1e6)
    exchange_s = facts["exchanges_a_round"] * (line_s + facts["exchange_cpu_s"])
    round_s = work.seconds + exchange_s if waits else max(work.seconds, exchange_s)
    return {
        "uplink_mbit": uplink_mbit,
        "exchange_s": exchange_s,
        "round_s": round_s,
        "epoch_h": samples / (samples_per_round * peers) * round_s / 3600,
        "merge_s": (peers - 1) * facts["model_bytes"] * 8 / (uplink_mbit * 1e6),
    }
