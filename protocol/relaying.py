"""Reaching members that nobody can dial: through a member that both sides reach.

A peer whose card has no addresses (it is *hidden*) is reached over the connections that it opened.
It keeps some to its *anchors*: the members with addresses that come after it on a ring of hashes,
the same for everybody who computes it; where they are few, former members, too. Whoever has no
connection to it sends what it has to say to an anchor, in an envelope signed for the target. Nobody
announces anything, envelopes are small, and a peer's anchors are as many in a swarm of ten as of a
thousand (P8).

A peer whose addresses do not work from here is found out by SWIM's indirect pings: whoever brings
its answer can reach it, and relays until a direct ping is answered.
"""

from dataclasses import dataclass, field
from typing import Final, TypeVar

from protocol.anchors import Ring
from protocol.codec import RELAYED_BYTES_MAX, encode, number_of
from protocol.core import STRANGERS_MAX, Core
from protocol.errors import RemoteError
from protocol.ids import ID_BYTES, Hash, Millis, PeerId, RunId, digest
from protocol.messages import Hello, Message, Ping, Refused, Relay, Unrelayed, Welcome, Why
from protocol.ration import ByteBucket, ByteRations, Ration

ANCHORS: Final = 3
_CANDIDATES: Final = 2 * ANCHORS  # who is asked to relay, before we give up
_ATTACH_MS: Final = 10_000
_DIRECT_MS: Final = 60_000  # a connection on which nothing was heard for so long may be gone
_AVOID_MS: Final = 10_000  # a relay that had no way or no room
_LIAR_MS: Final = 600_000  # a relay that altered what it passed on
_AVOIDED_MAX: Final = 1_024
_RETRY_MS_MAX: Final = 64_000
_WINDOW: Final = 1_024  # how far behind the newest frame an older one may come
_BURST_MS: Final = 2_000
_RELAY: Final = number_of(Relay)
_PING: Final = number_of(Ping)
_NEVER_RELAYED: Final = frozenset(map(number_of, (Relay, Unrelayed, Hello, Welcome, Refused)))
_ENVELOPE_BYTES: Final = 160  # what an envelope adds to its frame, at most
_T = TypeVar("_T")


def relay_bytes(
    run: RunId, origin: PeerId, target: PeerId, epoch: int, count: int, frame: bytes
) -> Hash:
    """What an origin signs: the envelope, bound to run, target and place in its order."""
    numbers = epoch.to_bytes(8, "big"), count.to_bytes(8, "big")
    return digest("relay", run, origin, target, *numbers, frame)


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """One machine's own business: what it carries for others."""

    bytes_per_s: int = 1 << 20  # 0: relays nothing
    source_share: int = 4  # one source gets at most this part of it


@dataclass(slots=True)
class RelayCounts:
    """What was measured, for people to see."""

    relayed: int = 0
    relayed_bytes: int = 0
    refused: dict[Why, int] = field(default_factory=lambda: dict.fromkeys(Why, 0))
    too_large: int = 0  # of our own: no relay takes them
    repeated: int = 0  # envelopes that came again, or far too late


@dataclass(slots=True)
class _Detour:
    """A member whom somebody else reaches for us."""

    relay: PeerId
    retry_ms: int  # when the direct way is tried again, if there is one
    patience_ms: int
    retries: bool = False  # the next ping goes both ways


@dataclass(slots=True)
class _Window:
    """Which envelopes of one origin have come: each counts once."""

    epoch: int
    newest: int
    seen: int  # bit i: newest - i

    def admit(self, epoch: int, count: int) -> bool:
        if epoch > self.epoch:
            self.epoch, self.newest, self.seen = epoch, count, 1
            return True
        behind = self.newest - count
        if epoch < self.epoch or behind >= _WINDOW or (behind >= 0 and self.seen >> behind & 1):
            return False
        if behind < 0:
            shift = min(-behind, _WINDOW)
            self.seen = (self.seen << shift | 1) & ((1 << _WINDOW) - 1)
            self.newest = count
        else:
            self.seen |= 1 << behind
        return True


class Relaying:
    def __init__(self, core: Core, limits: RelayLimits) -> None:
        self._core = core
        self.counts = RelayCounts()
        self._direct_ms: dict[PeerId, Millis] = {}  # last heard without a relay; newest last
        self._detours: dict[PeerId, _Detour] = {}
        self._broken: dict[PeerId, None] = {}  # those of them that have addresses, in vain
        self._avoided: dict[tuple[PeerId | None, PeerId], int] = {}  # (target, relay): until when
        self._windows: dict[PeerId, _Window] = {}
        self._count = 0  # of our own envelopes
        self._attach_ms: int = core.now
        self._total = ByteBucket(limits.bytes_per_s, _BURST_MS)
        self._sources = ByteRations(limits.bytes_per_s // limits.source_share, _BURST_MS)
        self._told = Ration(8, 250)
        self._ring = Ring(core)

    # Which way

    def relay_of(self, peer: bytes) -> PeerId | None:
        """Who passes on what we send to `peer`; None: it goes there by itself."""
        core, target = self._core, PeerId(peer)
        detour = self._detours.get(target)
        if detour is None and self._core.can_be_dialled(target):
            return None
        if len(peer) != ID_BYTES or not core.is_member or target not in core.head.roster:
            return None
        if detour is not None:
            if self._may_relay(target, detour.relay):
                return detour.relay
            self._end_detour(target)
        if self._reaches(target):
            return None
        anchors = self._ring.anchors(target, _CANDIDATES)
        usable = [anchor for anchor in anchors if self._can_relay(target, anchor)]
        # The first that did not fail us lately; if all did, the one that failed us longest ago.
        return min(usable, key=lambda anchor: self._avoided_until(target, anchor), default=None)

    def _reaches(self, peer: PeerId) -> bool:
        """Without a relay, as far as we know."""
        if peer in self._detours:
            return False
        return self._is_connected(peer) or self._core.can_be_dialled(peer)

    def _is_connected(self, peer: PeerId) -> bool:
        heard_ms = self._direct_ms.get(peer)
        return heard_ms is not None and self._core.now - heard_ms < _DIRECT_MS

    def _can_relay(self, target: PeerId, relay: PeerId) -> bool:
        core = self._core
        if relay in (core.me, target) or not core.head.roster.knows(relay):
            return False
        is_up = relay not in core.membership.down() and self._reaches(relay)
        if relay not in core.head.roster:  # nobody probes it: what is heard of it must do
            is_up = is_up and self._is_connected(relay)
        return is_up and self._avoided_until(None, relay) == 0

    def _avoided_until(self, target: PeerId | None, relay: PeerId) -> int:
        """0: not any more."""
        until_ms = self._avoided.get((target, relay), 0)
        return until_ms if until_ms > self._core.now else 0

    def _may_relay(self, target: PeerId, relay: PeerId) -> bool:
        return self._can_relay(target, relay) and self._avoided_until(target, relay) == 0

    # As a sender

    def route(self, to: bytes, frame: bytes) -> tuple[tuple[bytes, bytes], ...]:
        """Which frames to send to whom, so that `frame` reaches `to`."""
        relay = None if frame[1] == _RELAY else self.relay_of(to)
        if relay is None:
            return ((to, frame),)
        if len(frame) > RELAYED_BYTES_MAX:
            self.counts.too_large += 1
            return ()
        target = PeerId(to)
        wrapped = relay, encode(self._envelope(target, frame))
        detour = self._detours.get(target)
        if detour is None or not detour.retries or frame[1] != _PING:
            return (wrapped,)
        detour.retries = False
        return ((to, frame), wrapped)

    def _envelope(self, target: PeerId, frame: bytes) -> Relay:
        core = self._core
        self._count += 1
        place = core.cards[core.me].sequence, self._count
        signature = core.keys.sign(relay_bytes(core.run, core.me, target, *place, frame))
        return Relay(core.me, target, *place, frame, signature)

    # What was heard

    def heard(self, peer: PeerId) -> None:
        """A message came from `peer` itself, over a connection between us."""
        core = self._core
        if peer not in core.head.roster and peer not in core.cards:
            return
        self._direct_ms.pop(peer, None)
        self._direct_ms[peer] = core.now
        self._end_detour(peer)
        self._trim(self._direct_ms)

    def vouched(self, peer: PeerId, helper: PeerId) -> None:
        """`helper` has an answer of `peer`, who did not answer us."""
        if self._heard_lately(peer) or not self._may_relay(peer, helper):
            return
        silent = self.relay_of(peer)
        if silent is not None and silent != helper:
            self._avoid(peer, silent, _AVOID_MS)
        self._detour(peer, helper, self._core.rules.ping_interval_ms)

    def _heard_lately(self, peer: PeerId) -> bool:
        heard_ms = self._direct_ms.get(peer)
        patience_ms = 2 * self._core.rules.ping_interval_ms
        return heard_ms is not None and self._core.now - heard_ms < patience_ms

    def _detour(self, peer: PeerId, relay: PeerId, patience_ms: int) -> None:
        core = self._core
        if peer not in core.head.roster or not self._may_relay(peer, relay):
            return
        while len(self._detours) > len(core.head.roster):
            self._end_detour(next(iter(self._detours)))
        if self._core.can_be_dialled(peer):
            self._broken[peer] = None
        self._detours[peer] = _Detour(relay, core.now + patience_ms, patience_ms)

    def _end_detour(self, peer: PeerId) -> None:
        self._detours.pop(peer, None)
        self._broken.pop(peer, None)

    def _avoid(self, target: PeerId | None, relay: PeerId, ms: int) -> None:
        self._avoided.pop((target, relay), None)
        self._avoided[(target, relay)] = self._core.now + ms
        while len(self._avoided) > _AVOIDED_MAX:
            del self._avoided[next(iter(self._avoided))]

    def on_unrelayed(self, sender: PeerId, message: Unrelayed) -> None:
        """Another relay is used from now on."""
        core = self._core
        if not core.head.roster.knows(sender) or message.target not in core.head.roster:
            return
        self._avoid(message.target, sender, _AVOID_MS)
        detour = self._detours.get(message.target)
        if detour is not None and detour.relay == sender:
            self._end_detour(message.target)

    # As a relay, and as a target

    def on_relay(self, sender: PeerId, message: Relay) -> bytes | None:
        """The frame, if it is for us and new; passed on, if it is for another. Raises RemoteError
        for what `sender` should not have sent.
        """
        core = self._core
        roster = core.head.roster
        if not roster.knows(sender) or not roster.knows(core.me):
            return None  # one of us is behind
        if message.target == core.me:
            return self._open(sender, message)
        if message.origin != sender:
            raise RemoteError("relays have one hop")
        if sender not in roster:
            return None
        if message.frame[1] in _NEVER_RELAYED:
            raise RemoteError("this kind of message is not relayed")
        why = self._why_not(message)
        if why is None:
            self._check(sender, message)
            size = len(message.frame) + _ENVELOPE_BYTES
            self._total.take(size, core.now)
            self._sources.of(sender).take(size, core.now)
            self.counts.relayed += 1
            self.counts.relayed_bytes += size
            core.send(message.target, message)
            return None
        self.counts.refused[why] += 1
        if self._told.take(sender, core.now):
            core.send(sender, Unrelayed(message.target, why))
        return None

    def _why_not(self, message: Relay) -> Why | None:
        core, size = self._core, len(message.frame) + _ENVELOPE_BYTES
        if message.target not in core.head.roster:
            return Why.NO_MEMBER
        if not self._reaches(message.target):
            return Why.NO_WAY
        buckets = self._total, self._sources.of(message.origin)
        has_room = all(bucket.has_room(size, core.now) for bucket in buckets)
        return None if has_room else Why.OVER_CAP

    def _open(self, sender: PeerId, message: Relay) -> bytes | None:
        core, origin = self._core, message.origin
        self._check(sender, message)
        if origin not in core.head.roster:
            return None
        window = self._windows.pop(origin, None) or _Window(message.epoch, message.count, 0)
        self._windows[origin] = window
        self._trim(self._windows)
        if not window.admit(message.epoch, message.count):
            self.counts.repeated += 1
            return None
        if not self._heard_lately(origin):
            self._follow(origin, sender)
        return message.frame

    def _follow(self, origin: PeerId, relay: PeerId) -> None:
        """Its direct way to us is not open, and this one is: answers go back the way that questions
        came, until it answers directly.
        """
        self._avoided.pop((origin, relay), None)
        known = self._detours.get(origin)
        if known is None:
            self._detour(origin, relay, patience_ms=0)
        elif self._may_relay(origin, relay):
            known.relay = relay

    @staticmethod
    def relayed(message: Message) -> Message:
        """A message that came in an envelope, if it is of a kind that may."""
        if number_of(type(message)) in _NEVER_RELAYED:
            raise RemoteError(f"a relayed {type(message).__name__}")
        return message

    def _check(self, sender: PeerId, message: Relay) -> None:
        """Is this what the origin signed? A relay checks before it passes anything on, so whoever
        hands over what is not has altered it, and relays nothing of ours for a while.
        """
        core = self._core
        place = message.epoch, message.count
        signed = relay_bytes(core.run, message.origin, message.target, *place, message.frame)
        if not core.keys.verify(message.origin, signed, message.signature):
            self._avoid(None, sender, _LIAR_MS)
            raise RemoteError("a relayed frame that its origin did not sign")

    def _trim(self, table: dict[PeerId, _T]) -> None:
        while len(table) > len(self._core.head.roster) + STRANGERS_MAX:
            del table[next(iter(table))]

    # Time

    @property
    def wake_ms(self) -> Millis | None:
        due = [self._detours[peer].retry_ms for peer in self._broken]
        if self._is_hidden:
            due.append(self._attach_ms)
        return Millis(min(due)) if due and self._core.is_member else None

    @property
    def _is_hidden(self) -> bool:
        return not self._core.can_be_dialled(self._core.me)

    def tick(self) -> None:
        core = self._core
        if not core.is_member:
            return
        if self._is_hidden and core.now >= self._attach_ms:
            self._attach_ms = core.now + _ATTACH_MS
            self._attach()
        for peer in [peer for peer in self._broken if core.now >= self._detours[peer].retry_ms]:
            detour = self._detours[peer]
            least_ms = core.rules.ping_interval_ms
            detour.patience_ms = min(2 * max(detour.patience_ms, least_ms), _RETRY_MS_MAX)
            detour.retry_ms = core.now + detour.patience_ms
            detour.retries = True
            core.send(peer, core.membership.ping(peer))

    def _attach(self) -> None:
        """Keep connections to our anchors; beyond those that are silent, to the next ones."""
        core, holding = self._core, 0
        for anchor in self._ring.anchors(core.me, _CANDIDATES):
            core.send(anchor, core.membership.ping(anchor))
            heard_ms = self._direct_ms.get(anchor)
            holding += heard_ms is not None and core.now - heard_ms <= 2 * _ATTACH_MS
            if holding == ANCHORS:
                break
