"""All-gather: once an entry is known, each part is summed over its lines by one member, and all
others fetch the sum.

What a sum is follows from the entry, so it does not matter who adds it up: whoever has one passes
it on, and when the first in a part's order is silent, the next adds up what authors still have and
what was left with it. Two different sums of one name show that a member is broken, or lies.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.attachments import Attachments
from protocol.core import Core
from protocol.deal import Deal
from protocol.effects import AddUp, OfferSum
from protocol.entries import Attachment, Entry
from protocol.events import Summed
from protocol.ids import Hash, Millis, PeerId
from protocol.ledger import Write, round_key
from protocol.messages import PartRequest, Sum, SumRequest
from protocol.parts import SumName
from protocol.scattering import Scattering

_AGAIN_MS: Final = 1_000  # a question may have been lost
# After so long another is asked; and a blob of which nothing came for so long is not the sum. Both
# come several times before the state is given up for lack of something.
_PATIENCE_MS: Final = 4_000
_STUCK_MS: Final = 12_000
_NEVER: Final = 1 << 62
_HELD_MAX: Final = 65_536
_WANTED_MAX: Final = 8_192  # sums of which somebody is interested in, or that we are
_ASKERS_MAX: Final = 4_096


@dataclass(slots=True)
class _Wanted:
    """A sum on its way: here, by us, or for others."""

    name: SumName
    round: int
    entry: Entry | None = None  # with the members that its lines are of
    seats: tuple[PeerId, ...] = ()
    is_ours: bool = False  # we want it; else others asked us for it
    sum: Attachment | None = None  # as somebody named it
    named_ms: int = 0
    barred: set[Hash] = field(default_factory=set)  # what came under these was no sum
    doubted: set[tuple[PeerId, Hash]] = field(default_factory=set)  # nothing came, in this turn
    source: PeerId | None = None  # of `sum`
    asked: list[PeerId] = field(default_factory=list)
    asked_ms: int = 0
    turn_ms: int = 0  # when the one who was asked last was asked first
    called_ms: int = 0  # when authors were asked for their parts
    is_adding: bool = False
    askers: dict[PeerId, None] = field(default_factory=dict)


@dataclass(slots=True)
class _Wait:
    round: int
    missing: set[SumName]
    done: Callable[[], None]


class Gathering:
    """Does nothing in a run whose attachments everybody fetches."""

    def __init__(self, core: Core, attachments: Attachments, scattering: Scattering) -> None:
        self._core, self._attachments, self._scattering = core, attachments, scattering
        self._held: dict[SumName, Attachment] = {}  # on disk, as far as we know
        self._wanted: dict[SumName, _Wanted] = {}
        self._waits: list[_Wait] = []
        # Nothing is due before; None: not known. It is asked with every event, so it is looked for
        # again only then, and where something may be due sooner than was known.
        self._next_ms: int | None = None
        self._claimed: set[SumName] = set()  # lacking on the disk, while we believe otherwise
        scattering.came = self._part_came
        self._patience_ms = min(_PATIENCE_MS, core.rules.deadline_ceiling_ms // 4)
        self._stuck_ms = min(_STUCK_MS, core.rules.deadline_ceiling_ms // 3)

    @property
    def wake_ms(self) -> Millis | None:
        if self._next_ms is None:
            due = [at for one in self._wanted.values() if (at := self._due(one)) is not None]
            self._next_ms = min(due, default=_NEVER)
        return None if self._next_ms == _NEVER else Millis(self._next_ms)

    # What is here

    def hold(self, name: SumName, sum: Attachment) -> None:
        """It is on disk."""
        self._held[name] = sum
        if len(self._held) > _HELD_MAX:
            del self._held[next(iter(self._held))]

    def holds(self, names: Iterable[SumName]) -> bool:
        return not self.missing(names)

    def missing(self, names: Iterable[SumName]) -> tuple[SumName, ...]:
        return tuple(name for name in names if name not in self._held)

    def names(self, entry: Entry, members: int) -> tuple[SumName, ...]:
        """All sums of an entry that attaches anything."""
        if not entry.body.attachments:
            return ()
        return tuple(SumName(entry.hash, n) for n in range(self._core.rules.parts(members)))

    def _came(self, name: SumName, sum: Attachment) -> None:
        """It is on disk since now."""
        core = self._core
        self.hold(name, sum)
        self._claimed.discard(name)
        wanted = self._wanted.pop(name, None)
        if wanted is not None:
            core.save([sum_record(wanted.round, name, sum)])
            core.send(wanted.askers, Sum(name.entry, name.number, sum))
        for wait in self._waits:
            wait.missing.discard(name)
        ready = [wait for wait in self._waits if not wait.missing]
        self._waits = [wait for wait in self._waits if wait.missing]
        for wait in ready:
            wait.done()

    # What is wanted

    def want(self, entry: Entry, seats: tuple[PeerId, ...], done: Callable[[], None]) -> None:
        """`done` is called once all sums of an entry are on disk, which may be at once, or never.
        `seats`: the members of its round.
        """
        missing = self._missing_of(entry, seats)
        if not missing:
            done()
            return
        self._waits.append(_Wait(entry.round, set(missing), done))
        self._want_all(missing, entry, seats)

    def need(self, entry: Entry, seats: tuple[PeerId, ...]) -> None:
        """The state is about to merge this entry."""
        self._want_all(self._missing_of(entry, seats), entry, seats)

    def _missing_of(self, entry: Entry, seats: tuple[PeerId, ...]) -> tuple[SumName, ...]:
        """Of its sums. What its lines attach is known from now on: parts may have come before."""
        deal = self._scattering.deal_before(entry)
        if deal is not None:
            for line in entry.body.lines:
                if line.attached is not None:
                    self._scattering.settle(deal, seats[line.seat], line.attached)
        return self.missing(self.names(entry, len(seats)))

    def _want_all(self, names: Iterable[SumName], entry: Entry, seats: tuple[PeerId, ...]) -> None:
        fresh: list[_Wanted] = []
        for name in names:
            wanted = self._get(name, entry.round)
            wanted.round = entry.round  # who asked us for it could not know
            wanted.entry, wanted.seats, wanted.is_ours = entry, seats, True
            fresh.append(wanted)
        self._ask(fresh)
        for wanted in fresh:
            self._add_up(wanted, is_asked=bool(wanted.askers))

    def _get(self, name: SumName, round: int) -> _Wanted:
        self._next_ms = None
        return self._wanted.setdefault(name, _Wanted(name, round))

    def lacking(self, names: Iterable[SumName], round: int) -> None:
        """The state cannot move on without them. One that we believe to be on disk may have come
        while this was said; said twice, it is not there any more.
        """
        fresh: list[_Wanted] = []
        for name in names:
            if name in self._held and name not in self._claimed:
                self._claimed.add(name)
                continue
            self._held.pop(name, None)
            wanted = self._get(name, round)
            wanted.round, wanted.is_ours = round, True
            fresh.append(wanted)
        self._ask([wanted for wanted in fresh if not wanted.asked])

    def roots(self, names: Iterable[SumName]) -> list[Hash]:
        """Of those that are on their way."""
        found = (self._wanted.get(name) for name in names)
        return [one.sum.root for one in found if one is not None and one.sum is not None]

    # Asking

    def _candidates(self, wanted: _Wanted) -> tuple[PeerId, ...]:
        """Who should have it, in order; us among them. Of an old round: anybody."""
        core, down = self._core, self._core.membership.down()
        deal = None if wanted.entry is None else self._scattering.deal_before(wanted.entry)
        if deal is None:
            return tuple(p for p in core.membership.likely_up() if core.can_fetch_from(p))
        return tuple(
            peer
            for peer in deal.order(wanted.name.number)
            if peer == core.me or (peer not in down and core.can_fetch_from(peer))
        )

    def _is_first(self, wanted: _Wanted) -> bool:
        return self._candidates(wanted)[:1] == (self._core.me,)

    def _ask(self, wanted: Iterable[_Wanted]) -> None:
        """Each of the next who should have it."""
        turned = list(wanted)
        for one in turned:
            one.turn_ms = self._core.now
            to = self._next(one)
            if to is not None:
                one.asked.append(to)
        self._ask_again(turned)

    def _next(self, one: _Wanted) -> PeerId | None:
        """Whose turn it is: ours first, if it is ours to add up; should that take long, others may
        have it. Of an old round, whoever sent us something is more likely to answer than who may
        not know us.
        """
        core, candidates = self._core, self._candidates(one)
        if candidates[:1] == (core.me,) and not one.asked:
            return core.me
        others = [peer for peer in candidates if peer != core.me]
        fresh = [peer for peer in others if peer not in one.asked]
        if not fresh:
            one.asked.clear()
            one.doubted.clear()
            if candidates[:1] == (core.me,):
                return core.me
            fresh = others
        if one.entry is not None and self._scattering.deal_before(one.entry) is not None:
            return next(iter(fresh), None)
        heard = [peer for peer in fresh if core.membership.has_heard(peer)]
        return next(iter(core.dice.pick(heard or fresh)), None)

    def _ask_again(self, wanted: Iterable[_Wanted]) -> None:
        """Whose turn it is; one message to each peer and entry."""
        core = self._core
        asked: dict[tuple[PeerId, Hash], list[int]] = {}
        for one in wanted:
            one.asked_ms = core.now
            if one.asked and one.asked[-1] != core.me:
                asked.setdefault((one.asked[-1], one.name.entry), []).append(one.name.number)
        for (to, entry), numbers in asked.items():
            core.send(to, SumRequest(entry, tuple(numbers)))

    def hear(self, sender: PeerId, message: SumRequest | Sum) -> None:
        match message:
            case SumRequest():
                self._on_request(sender, message)
            case Sum():
                self._on_sum(sender, message)

    def _on_request(self, sender: PeerId, message: SumRequest) -> None:
        core = self._core
        if not core.may_answer(sender):
            return
        for number in message.numbers:
            name = SumName(message.entry, number)
            known = self._held.get(name)
            if known is not None:
                core.out.append(OfferSum(sender, Sum(message.entry, number, known)))
                continue
            wanted = self._wanted.get(name)
            is_member, has_room = sender in core.head.roster, len(self._wanted) < _WANTED_MAX
            if wanted is None and is_member and has_room:
                # It heard of the entry before we did, or our state is past it.
                wanted = self._get(name, core.head.round)
            if wanted is not None and len(wanted.askers) < _ASKERS_MAX:
                wanted.askers[sender] = None
                self._add_up(wanted, is_asked=True)

    def _on_sum(self, sender: PeerId, message: Sum) -> None:
        core, name = self._core, SumName(message.entry, message.number)
        known = self._held.get(name)
        wanted = self._wanted.get(name)
        is_asked = wanted is not None and sender in wanted.asked
        if not is_asked and sender not in core.head.roster:
            return  # anybody can make up a name
        if known is None and wanted is not None:
            known = wanted.sum
        if known is not None and known != message.sum:
            core.note("error", "sums-differ", peer=sender, part=message.number)
            return
        if wanted is None or known is not None:
            return
        size, root = message.sum.size, message.sum.root
        if sender not in wanted.asked or (sender, root) in wanted.doubted or root in wanted.barred:
            return
        if not 1 <= size <= core.rules.attachment_bytes_max:
            core.note("error", "sum-refused", peer=sender, bytes=size)
            return
        wanted.sum, wanted.source, wanted.named_ms = message.sum, sender, core.now
        self._next_ms = None

        def done() -> None:
            if self._wanted.get(name) is wanted and wanted.sum == message.sum:
                self._came(name, message.sum)

        self._attachments.want((message.sum,), wanted.round, (sender,), done, is_needed=True)

    def refused(self, name: SumName, round: int) -> None:
        """What came under this name is no sum."""
        known = self._held.pop(name, None)
        if known is not None:
            wanted = self._get(name, round)
            wanted.barred.add(known.root)
            wanted.is_ours = True
            self._ask([wanted])

    # Adding up

    def _part_came(self, deal: Deal) -> None:
        for wanted in list(self._wanted.values()):
            entry = wanted.entry
            if entry is not None and entry.body.parent == deal.mark.hash:
                self._add_up(wanted, is_asked=bool(wanted.askers))

    def _add_up(self, wanted: _Wanted, *, is_asked: bool = False) -> None:
        """If it is ours to do, and all parts are here; else call for those that are not."""
        entry, number = wanted.entry, wanted.name.number
        deal = None if entry is None else self._scattering.deal_before(entry)
        if entry is None or deal is None or wanted.is_adding:
            return
        listed = {
            wanted.seats[line.seat]: line.attached
            for line in entry.body.lines
            if line.attached is not None
        }
        lacking = [
            author
            for author, whole in listed.items()
            if not deal.holds(author, number) or deal.wholes.get(author) != whole
        ]
        if not lacking and (is_asked or self._core.me in wanted.asked or self._is_first(wanted)):
            wanted.is_adding = True
            parts = tuple(deal.parts[author, number] for author in listed)
            is_first = deal.order(number)[0] == self._core.me
            self._core.out.append(AddUp(wanted.name, entry, wanted.seats, parts, is_first))
        elif lacking and (is_asked or self._is_first(wanted)):
            self._call(wanted, deal, lacking)

    def _call(self, wanted: _Wanted, deal: Deal, authors: list[PeerId]) -> None:
        """For parts that were not left with us: the one who had them is gone."""
        core = self._core
        if wanted.called_ms and core.now < wanted.called_ms + self._patience_ms:
            return
        wanted.called_ms = core.now
        down = core.membership.down()
        up = [author for author in authors if author != core.me and author not in down]
        core.send(up, PartRequest(*deal.place, wanted.name.number))

    def summed(self, event: Summed) -> None:
        """By us; or a part is gone from the disk, and is fetched again of its author."""
        wanted = self._wanted.get(event.name)
        if wanted is None:
            return
        wanted.is_adding = False
        if event.sum is not None:
            self._attachments.hold(event.sum.root, wanted.round)
            self._came(event.name, event.sum)
        elif wanted.entry is not None:
            self._scattering.is_missing(wanted.entry, event.name.number)

    # Time

    def _due(self, wanted: _Wanted) -> int | None:
        if wanted.sum is not None:
            return self._moved_ms(wanted) + self._stuck_ms
        return wanted.asked_ms + _AGAIN_MS if wanted.is_ours else None

    def _moved_ms(self, wanted: _Wanted) -> int:
        assert wanted.sum is not None
        return max(wanted.named_ms, self._attachments.moved_ms(wanted.sum.root))

    def moved(self) -> None:
        """The chain did: nobody asks any more for what was older."""
        oldest = self._core.head.round - 2
        self._waits = [wait for wait in self._waits if wait.round >= oldest]
        old = [n for n, one in self._wanted.items() if one.round < oldest and not one.is_ours]
        for name in old:
            del self._wanted[name]

    def stands(self, round: int) -> None:
        """The state came to where `round` is open: it needs nothing older."""
        self._claimed.clear()
        for wanted in list(self._wanted.values()):
            if wanted.round < round and not any(wanted.name in w.missing for w in self._waits):
                wanted.is_ours = False
                if not wanted.askers:
                    del self._wanted[wanted.name]

    def start_over(self) -> None:
        """The state is being rebuilt: it will say what it lacks."""
        for wanted in self._wanted.values():
            wanted.is_ours = any(wanted.name in wait.missing for wait in self._waits)

    def tick(self) -> None:
        now, down = self._core.now, self._core.membership.down()
        if self.wake_ms is None or now < self.wake_ms:
            return
        self._next_ms = None
        same: list[_Wanted] = []
        again: list[_Wanted] = []
        for wanted in self._wanted.values():
            due = self._due(wanted)
            if due is None or now < due:
                continue
            is_waiting = wanted.sum is None and now < wanted.turn_ms + self._patience_ms
            if is_waiting and wanted.asked and wanted.asked[-1] not in down:
                same.append(wanted)
                continue
            if wanted.sum is not None:
                assert wanted.source is not None
                self._attachments.unneeded(wanted.sum.root)
                wanted.doubted.add((wanted.source, wanted.sum.root))
                wanted.sum = None
            again.append(wanted)
        self._ask_again(same)
        self._ask(again)
        for wanted in (*same, *again):
            self._add_up(wanted, is_asked=bool(wanted.askers))


def sum_key(round: int, name: SumName) -> bytes:
    """Of its record on disk: by round."""
    return round_key(round) + name.entry + name.number.to_bytes(2, "big")


def sum_record(round: int, name: SumName, sum: Attachment) -> Write:
    """What `read_sum` reads."""
    return Write("sums", sum_key(round, name), sum.root + sum.size.to_bytes(8, "big"))


def read_sum(key: bytes, raw: bytes) -> tuple[SumName, Attachment]:
    name = SumName(Hash(key[8:40]), int.from_bytes(key[40:42], "big"))
    return name, Attachment(Hash(raw[:32]), int.from_bytes(raw[32:40], "big"))
