"""One session: what a meeting's peers send each other, stretch by stretch, and which of it counts.

Each side asks for the frames of what it lacks, a few at a time, so nobody sends more than the other
has room for, and what is lost is asked for again. A stretch counts on all sides or on none. The
smallest id decides. The others say that they are ready once nothing but the word is missing, also
after a crash; the decider writes down that a stretch counts, moves by it, and only then says so.

Who was ready and heard no more is in doubt about these stretches, and asks until it knows
(`verdicts`). The decider is never in doubt: what it did not write down does not count.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

from protocol.codec import CHUNK_BYTES
from protocol.core import Core
from protocol.effects import MoveStretch, OfferStretch, OpenExchange, TakeStretch
from protocol.errors import RemoteError
from protocol.events import Crew, Offering
from protocol.ids import Hash, PeerId
from protocol.messages import Counted, Ready, StretchFrame, StretchRequest, Verdict

UNDER_WAY: Final = 4  # stretches at once
_FRAMES_UNDER_WAY: Final = 4  # of one sender and stretch
AGAIN_MS: Final = 1_000


def pack(numbers: Iterable[int]) -> bytes:
    """Numbers as a map: bit n % 8 of byte n // 8; as short as it can be."""
    raw = bytearray()
    for number in sorted(numbers):
        raw.extend(bytes(max(0, (number >> 3) + 1 - len(raw))))
        raw[number >> 3] |= 1 << (number & 7)
    return bytes(raw)


def unpack(raw: bytes) -> Iterator[int]:
    """The numbers of a map, ascending."""
    for at, byte in enumerate(raw):
        for bit in range(8):
            if byte >> bit & 1:
                yield 8 * at + bit


def frames_of(data: bytes) -> int:
    return max(1, -(-len(data) // CHUNK_BYTES))


@dataclass(slots=True)
class _Incoming:
    """What one sender offers of a stretch."""

    frames: int | None = None  # None: not known before the first one is here
    parts: dict[int, bytes] = field(default_factory=dict)
    owed: dict[int, int] = field(default_factory=dict)  # frame -> when it was asked for

    @property
    def is_whole(self) -> bool:
        return self.frames is not None and len(self.parts) == self.frames

    def data(self) -> bytes:
        return b"".join(self.parts[number] for number in range(len(self.parts)))

    def due(self, now: int) -> list[int]:
        """Frames to ask for, for the first time or again."""
        known = range(1 if self.frames is None else self.frames)
        fresh = (n for n in known if n not in self.parts and n not in self.owed)
        room = _FRAMES_UNDER_WAY - len(self.owed)
        late = [n for n, asked_ms in self.owed.items() if now - asked_ms >= AGAIN_MS]
        chosen = [*late, *(n for n, _ in zip(fresh, range(room), strict=False))]
        self.owed.update(dict.fromkeys(chosen, now))
        return chosen


@dataclass(slots=True)
class _Stretch:
    """One that is under way."""

    incoming: dict[PeerId, _Incoming]
    mine: bytes | None = None  # None: it is being made
    asked: dict[PeerId, tuple[int, ...]] = field(default_factory=dict)  # before it was made
    wanted_by: set[PeerId] = field(default_factory=set)
    is_taken: bool = False
    is_prepared: bool = False
    is_moving: bool = False
    ready: set[PeerId] = field(default_factory=set)


class Session:
    """`why_over` says that, and why, nothing more will come of it."""

    def __init__(
        self,
        core: Core,
        name: Hash,
        number: int,
        crew: Crew,
        offering: Offering,
        wait_ms: int,
    ) -> None:
        self._core, self.name, self.number, self.crew = core, name, number, crew
        self._count = offering.stretches
        self._frames_max = -(-offering.stretch_bytes_max // CHUNK_BYTES)
        self._wait_ms = wait_ms
        me, peers = core.me, crew.peers
        senders = peers[:1] if crew.is_directed else peers
        self.others = tuple(peer for peer in peers if peer != me)
        self._sends = me in senders
        self._sources = tuple(peer for peer in senders if peer != me)
        if crew.is_directed and self._sends:
            self._sources = ()
        self.decider = min(peers)
        self._under_way: dict[int, _Stretch] = {}
        self._early: dict[tuple[PeerId, int], tuple[int, ...]] = {}  # asked for before it began
        self._next = 0
        self.moved: set[int] = set()
        self.counted: dict[PeerId, set[int]] = {peer: set() for peer in self.others}
        self._moved_ms = self._asked_ms = int(core.now)
        self.ends: str | None = None  # no stretch is decided any more, and why
        self._is_final = False  # the decider has said so
        core.out.append(OpenExchange(name, number, crew))
        self._fill()

    # Reading

    @property
    def decides(self) -> bool:
        return self.decider == self._core.me

    @property
    def is_whole(self) -> bool:
        return len(self.moved) == self._count

    @property
    def doubts(self) -> set[int]:
        """Prepared, and not known whether they count."""
        if self.decides or self._is_final:
            return set()
        return {number for number, one in self._under_way.items() if one.is_prepared}

    @property
    def why_over(self) -> str | None:
        if self.is_whole:
            return "done"
        if self.ends is None or any(one.is_moving for one in self._under_way.values()):
            return None
        return self.ends

    @property
    def wake_ms(self) -> int:
        again_ms = self._asked_ms + AGAIN_MS
        return again_ms if self.ends else min(again_ms, self._moved_ms + self._wait_ms)

    # Under way

    def _fill(self) -> None:
        core = self._core
        while len(self._under_way) < UNDER_WAY and self._next < self._count and self.ends is None:
            number = self._next
            self._next += 1
            one = _Stretch({peer: _Incoming() for peer in self._sources})
            self._under_way[number] = one
            for peer in self.others:
                asked = self._early.pop((peer, number), None)
                if asked is not None:
                    one.asked[peer] = asked
                    one.wanted_by.add(peer)
            if self._sends:
                core.out.append(OfferStretch(self.name, number))
            else:
                one.mine = b""
            self._ask(number, one)
            self._take_if_whole(number, one)

    def _ask(self, number: int, one: _Stretch) -> None:
        for peer, incoming in one.incoming.items():
            frames = incoming.due(self._core.now)
            if frames:
                self._core.send(peer, StretchRequest(self.name, number, tuple(frames)))

    def tick(self) -> None:
        core = self._core
        if core.now - self._moved_ms >= self._wait_ms:
            self.ends = self.ends or "nothing came for too long"
        if core.now - self._asked_ms < AGAIN_MS:
            return
        self._asked_ms = core.now
        for number, one in self._under_way.items():
            self._ask(number, one)
        if self.doubts:
            core.send(self.decider, Ready(self.name, pack(self.doubts)))

    def offered(self, number: int, data: bytes) -> None:
        one = self._under_way.get(number)
        if one is None or one.mine is not None:
            return
        one.mine = data
        for peer, frames in one.asked.items():
            self._send_frames(peer, number, data, frames)
        one.asked.clear()
        self._take_if_whole(number, one)

    def _send_frames(self, to: PeerId, number: int, data: bytes, frames: tuple[int, ...]) -> None:
        count = frames_of(data)
        for frame in frames:
            if frame < count:
                part = data[frame * CHUNK_BYTES : (frame + 1) * CHUNK_BYTES]
                self._core.send(to, StretchFrame(self.name, number, frame, count, part))

    def on_request(self, sender: PeerId, message: StretchRequest) -> None:
        if not self._sends or len(set(message.frames)) != len(message.frames):
            raise RemoteError("it asks for frames that nobody offers")
        number, frames = message.stretch, message.frames
        one = self._under_way.get(number)
        if one is not None:
            one.wanted_by.add(sender)
        if one is not None and one.mine is not None:
            self._send_frames(sender, number, one.mine, frames)
            self._take_if_whole(number, one)
        elif one is not None:
            one.asked[sender] = frames
        elif self._next <= number < min(self._count, self._next + UNDER_WAY):
            self._early[sender, number] = frames

    def on_frame(self, sender: PeerId, message: StretchFrame) -> None:
        one = self._under_way.get(message.stretch)
        incoming = None if one is None else one.incoming.get(sender)
        if one is None or incoming is None:
            return  # it came again, after all was here
        if not 1 <= message.frames <= self._frames_max or message.frame >= message.frames:
            raise RemoteError("an offer of too many frames")
        if incoming.frames not in (None, message.frames):
            raise RemoteError("an offer that changed its length")
        is_last = message.frame == message.frames - 1
        if not is_last and len(message.data) != CHUNK_BYTES:
            raise RemoteError("a frame that is too short")
        if incoming.owed.pop(message.frame, None) is None:
            return
        incoming.frames = message.frames
        incoming.parts[message.frame] = message.data
        self._moved_ms = self._core.now
        self._ask(message.stretch, one)
        self._take_if_whole(message.stretch, one)

    def _take_if_whole(self, number: int, one: _Stretch) -> None:
        is_whole = all(incoming.is_whole for incoming in one.incoming.values())
        # Who gets nothing from others knows by their questions that they are in this session.
        is_wanted = bool(self._sources) or one.wanted_by.issuperset(self.others)
        if one.mine is None or one.is_taken or self.ends is not None:
            return
        if not is_whole or not is_wanted:
            return
        one.is_taken = True
        offers = tuple((peer, incoming.data()) for peer, incoming in one.incoming.items())
        self._core.out.append(TakeStretch(self.name, number, offers, self.decider))

    # What counts

    def prepared(self, number: int, spoiler: PeerId | None) -> None:
        one = self._under_way.get(number)
        if one is None or self.ends is not None:
            return
        if spoiler is not None:
            self._core.blame(spoiler, RemoteError("an offer that cannot be read"))
            self.ends = "what came cannot be read"
            return
        one.is_prepared = True
        if self.decides:
            self._decide(number, one)
        else:
            self._core.send(self.decider, Ready(self.name, pack([number])))

    def on_ready(self, sender: PeerId, message: Ready) -> None:
        if not self.decides:
            raise RemoteError("it is not for us to decide")
        numbers = set(unpack(message.stretches))
        for number in sorted(numbers & self._under_way.keys()):
            one = self._under_way[number]
            one.ready.add(sender)
            self._decide(number, one)
        if numbers & self.moved:
            self._core.send(sender, self.verdict())

    def _decide(self, number: int, one: _Stretch) -> None:
        is_ready = one.is_prepared and one.ready.issuperset(self.others)
        if is_ready and not one.is_moving and self.ends is None:
            self._move(number, one)

    def _move(self, number: int, one: _Stretch) -> None:
        one.is_moving = True
        others = self.others if self.decides else ()
        self._core.out.append(MoveStretch(self.name, number, others))

    def verdict(self) -> Verdict:
        return Verdict(self.name, pack(self.moved), self.why_over is not None)

    def on_verdict(self, sender: PeerId, message: Verdict) -> None:
        if sender != self.decider:
            raise RemoteError("it is not for the sender to decide")
        numbers = set(unpack(message.stretches))
        for number in sorted(numbers & self._under_way.keys()):
            one = self._under_way[number]
            if one.is_prepared and not one.is_moving:
                self._move(number, one)
        again = numbers & self.moved
        if again:
            self._core.send(sender, Counted(self.name, pack(again)))
        if message.is_final:
            self._is_final = True
            self.ends = self.ends or "the other side ended it"

    def has_moved(self, number: int) -> None:
        del self._under_way[number]
        self.moved.add(number)
        self._moved_ms = self._core.now
        if self.decides:
            self._core.send(self.others, self.verdict())
        else:
            self._core.send(self.decider, Counted(self.name, pack([number])))
        self._fill()

    def on_counted(self, sender: PeerId, message: Counted) -> None:
        self.counted[sender].update(self.moved & set(unpack(message.stretches)))

    def unheard(self) -> dict[PeerId, set[int]]:
        """What counts, and others may not have moved by yet."""
        return {peer: self.moved - known for peer, known in self.counted.items()}
