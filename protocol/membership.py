"""Who is up? SWIM, with Lifeguard's three additions.

The ledger says who is a member; this says which members can be reached. Each interval one member is
asked, in shuffled order; a silent one is asked again through others; if nobody hears it, it is
suspected, and if it does not deny that in time, it is held for dead. What changes spreads as rumors
on pings and acks. Lifeguard: a peer that misses answers trusts itself less and waits longer; a
suspicion shortens as others confirm it; a suspect is told so with the next ping.

Sources: Das, Gupta, Motivala, "SWIM" (2002); Dadgar, Phillips, Currey, "Lifeguard" (2017).
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from typing import Final

from protocol.codec import RUMORS_MAX
from protocol.dice import Dice
from protocol.ids import Millis, PeerId, digest
from protocol.messages import Ack, Head, Health, Message, Nack, Ping, PingRequest, Rumor
from protocol.roster import Roster
from protocol.rules import Rules
from protocol.spreading import Spreading

_AWARENESS_MAX: Final = 8
_SUSPICION_STRETCH: Final = 3  # an unconfirmed suspicion lasts this many times a confirmed one
_CONFIRMATIONS: Final = 3
_SEQUENCES: Final = 1 << 32
_LAST_INCARNATION: Final = (1 << 32) - 1
_FORMER_MAX: Final = 64
_DEATHS_SLACK: Final = 64
_RELAYS_MAX: Final = 256
_RELAYS_EACH_MAX: Final = 4
_DAY_MS: Final = 86_400_000

Outgoing = tuple[PeerId, Message]


@dataclass(slots=True)
class _Suspicion:
    since_ms: Millis
    accusers: set[PeerId] = field(default_factory=set)


@dataclass(slots=True)
class _Probe:
    target: PeerId
    sequence: int
    relay_at_ms: int
    ends_ms: int
    relayed: int = 0  # how many were asked to relay
    nacks: int = 0
    answered: bool = False


@dataclass(slots=True)
class _Relay:
    """A ping that we sent on somebody's behalf."""

    asker: PeerId
    target: PeerId
    sequence: int
    ends_ms: int


class Membership:
    """One peer's view. Methods return what to send; `alive` and `health` read the view."""

    def __init__(
        self,
        me: PeerId,
        rules: Rules,
        dice: Dice,
        roster: Roster,
        head: Callable[[], Head],
        now: Millis,
    ) -> None:
        self._me, self._rules, self._dice, self._head = me, rules, dice, head
        self._roster = roster
        self._view: dict[PeerId, Rumor] = {}  # only what differs from alive at incarnation 0
        self._suspicions: dict[PeerId, _Suspicion] = {}
        self._deaths: list[tuple[int, PeerId]] = []  # a heap: when suspects die; may hold old ones
        self._spreading = Spreading()
        # No longer members, to be called now and then: a half that was cut off may be among them.
        self._former: dict[PeerId, None] = dict.fromkeys(roster.alumni[-_FORMER_MAX:])
        self._queue: list[PeerId] = []
        self._probe: _Probe | None = None
        self._relays: dict[int, _Relay] = {}
        self._heard_ms: dict[PeerId, Millis] = {}
        self._last_heard_ms = now  # of anybody
        self._silence_ms = 0  # the longest time without a word from anybody
        self._sequence = dice.word()
        self._awareness = 0
        self._next_ms: int = now + dice.below(rules.ping_interval_ms)
        self.incarnation = 0
        self._down: set[PeerId] = set()  # members that are not alive
        # Read far more often than they change; None: to be computed anew.
        self._others_up: tuple[PeerId, ...] | None = None
        self._first_death_ms: float | None = None

    # Reading

    def health(self, peer: PeerId) -> Health:
        rumor = self._view.get(peer)
        return rumor.health if rumor else Health.ALIVE

    def down(self) -> Set[PeerId]:
        """Members that are not alive: suspects too. Changes with the view."""
        return self._down

    def dead(self) -> list[PeerId]:
        return sorted(peer for peer in self._down if self.health(peer) >= Health.DEAD)

    def missing(self, now: Millis) -> list[PeerId]:
        """Those held for dead that we have not heard ourselves for half as long as the shortest
        suspicion lasts. Who is truly dead has been silent longer; who was slandered has not.
        """
        recent = now - self._rules.suspicion_intervals * self._rules.ping_interval_ms // 2
        return [peer for peer in self.dead() if self._heard_ms.get(peer, recent) <= recent]

    def alive(self) -> list[PeerId]:
        """Members that are alive, this peer among them, sorted."""
        return [peer for peer in self._roster.members if peer not in self._down]

    def others_up(self) -> tuple[PeerId, ...]:
        """Members not held for dead, without this peer."""
        if self._others_up is None:
            gone = {peer for peer in self._down if self._view[peer].health >= Health.DEAD}
            gone.add(self._me)
            self._others_up = tuple(peer for peer in self._roster.members if peer not in gone)
        return self._others_up

    def likely_up(self) -> Sequence[PeerId]:
        """The others that are alive; if none is, suspects too."""
        return [peer for peer in self.alive() if peer != self._me] or self.others_up()

    def has_heard(self, peer: PeerId) -> bool:
        """Has this member ever sent us anything? Who is let in is known to those who were members
        then, and to few others: they take no connection of a stranger.
        """
        return peer in self._heard_ms

    def view(self) -> tuple[Rumor, ...]:
        """All that is worth telling, our own incarnation included: it denies what is said of us."""
        rumors = [self._view[peer] for peer in sorted(self._view) if peer in self._roster]
        return tuple(rumors + [self._rumor(self._me)] * (self.incarnation > 0))

    def view_hash(self) -> bytes:
        """Equal on two peers exactly if they hold the same of everybody."""
        held = {rumor.peer: rumor for rumor in self.view()}
        parts = [b"%b%d.%d" % (p, held[p].health, held[p].incarnation) for p in sorted(held)]
        return digest("view", *parts)[:8]

    @property
    def wake_ms(self) -> Millis:
        due = min(self._next_ms, self._next_death_ms())
        if self._probe is not None and not self._probe.answered and not self._probe.relayed:
            due = min(due, self._probe.relay_at_ms)
        if self._relays:
            due = min(due, *(relay.ends_ms for relay in self._relays.values()))
        return Millis(int(due))

    # What happens

    def set_roster(self, roster: Roster) -> None:
        """The ledger moved on; newcomers start out alive."""
        if roster is self._roster:
            return
        for peer in self._roster.members:
            if peer not in roster:
                self._forget(peer)
                self._heard_ms.pop(peer, None)
                self._former[peer] = None
        for peer in [peer for peer in self._former if peer in roster]:
            del self._former[peer]
        while len(self._former) > _FORMER_MAX:
            del self._former[next(iter(self._former))]
        self._roster = roster
        self._down = {peer for peer in self._view if self._is_down(peer)}
        self._others_up = self._first_death_ms = None
        self._deaths.clear()
        for peer in self._suspicions:
            self._schedule_death(peer)

    def _forget(self, peer: PeerId) -> None:
        """All that was said of it."""
        self._view.pop(peer, None)
        self._suspicions.pop(peer, None)
        self._spreading.discard(peer)

    def heard(self, peer: PeerId, now: Millis) -> None:
        """Any authenticated message shows that its sender is up."""
        if peer in self._down and self._me not in self._roster:
            # Who is no member takes part in no gossip: nobody would ever deny its suspicions.
            self._forget(peer)
            self._down.discard(peer)
            self._others_up = self._first_death_ms = None
        if peer in self._roster:
            self._heard_ms[peer] = now
            self._silence_ms = max(self._silence_ms, now - self._last_heard_ms)
            self._last_heard_ms = now
        if self._probe is not None and self._probe.target == peer:
            self._answered(self._probe)

    def take_silence(self) -> int:
        """The longest time without a word from anybody, since this was asked before."""
        silence, self._silence_ms = self._silence_ms, 0
        return silence

    def call_roll(self) -> Iterator[Outgoing]:
        """Ask everybody who is up for a sign of life."""
        for peer in self.others_up():
            yield peer, Ping(self._next_sequence(), self._head(), ())

    def unheard_since(self, then: Millis, peers: Iterable[PeerId]) -> Iterator[PeerId]:
        """Those of these, not this peer itself, that have sent nothing since."""
        for peer in peers:
            if peer != self._me and self._heard_ms.get(peer, then - 1) < then:
                yield peer

    def tick(self, now: Millis) -> Iterator[Outgoing]:
        yield from self._expire(now)
        probe = self._probe
        is_waiting = probe is not None and not probe.answered and not probe.relayed
        if probe is not None and is_waiting and now >= probe.relay_at_ms:
            yield from self._ask_relays(probe)
        if now >= self._next_ms:
            self._finish_probe(now)
            yield from self._start_probe(now)

    def on_ping(self, sender: PeerId, ping: Ping, now: Millis) -> Iterator[Outgoing]:
        self._hear(sender, ping.rumors, now)
        yield sender, Ack(ping.sequence, self._head(), self.rumors_for(sender))

    def on_ack(self, sender: PeerId, ack: Ack, now: Millis) -> Iterator[Outgoing]:
        self._hear(sender, ack.rumors, now)
        relay = self._relays.get(ack.sequence)
        if relay is not None and relay.target == sender:
            del self._relays[ack.sequence]
            # Our own head: the asker will ask us, not the target, for what it promises.
            yield relay.asker, Ack(relay.sequence, self._head(), ack.rumors)
        elif self._probe is not None and ack.sequence == self._probe.sequence:
            self._answered(self._probe)

    def on_ping_request(
        self, sender: PeerId, request: PingRequest, now: Millis
    ) -> Iterator[Outgoing]:
        self._hear(sender, request.rumors, now)
        if request.target not in self._roster or request.target == self._me:
            return
        theirs = sum(1 for relay in self._relays.values() if relay.asker == sender)
        if len(self._relays) >= _RELAYS_MAX or theirs >= _RELAYS_EACH_MAX:
            return
        sequence = self._next_sequence()
        ends = now + self._rules.ping_timeout_ms * 4 // 5
        self._relays[sequence] = _Relay(sender, request.target, request.sequence, ends)
        yield request.target, Ping(sequence, self._head(), self.rumors_for(request.target))

    def ping(self, peer: PeerId) -> Ping:
        """One beside the probes: its answer shows that `peer` can be reached."""
        return Ping(self._next_sequence(), self._head(), self.rumors_for(peer))

    def vouched_for(self, sender: PeerId, ack: Ack) -> PeerId | None:
        """Whose answer to our probe does `sender` bring, if not its own?"""
        probe = self._probe
        if probe is None or probe.answered or ack.sequence != probe.sequence:
            return None
        return probe.target if sender != probe.target and sender in self._roster else None

    def on_nack(self, nack: Nack) -> None:
        if self._probe is not None and nack.sequence == self._probe.sequence:
            self._probe.nacks += 1

    def hear_view(self, sender: PeerId, rumors: tuple[Rumor, ...], now: Millis) -> None:
        self._hear(sender, rumors, now)

    def rumors_for(self, peer: PeerId) -> tuple[Rumor, ...]:
        """The least told rumors; a suspect always hears of its own suspicion."""
        limit = 3 * math.ceil(math.log10(len(self._roster) + 1)) + 1
        subjects = self._spreading.take(RUMORS_MAX, limit)
        if self.health(peer) is not Health.ALIVE and peer not in subjects:
            subjects = [peer, *subjects][:RUMORS_MAX]
        return tuple(self._rumor(subject) for subject in subjects)

    def mark_left(self, peer: PeerId, now: Millis) -> None:
        """`peer` said goodbye, with its signature."""
        if peer in self._roster:
            self._adopt(self._me, Rumor(peer, Health.LEFT, self._rumor(peer).incarnation), now)

    def former(self) -> list[PeerId]:
        return [peer for peer in self._former if peer != self._me]

    # Inside

    def _is_down(self, peer: PeerId) -> bool:
        return self.health(peer) is not Health.ALIVE and peer in self._roster and peer != self._me

    def _schedule_death(self, peer: PeerId) -> None:
        if len(self._deaths) > 4 * len(self._suspicions) + _DEATHS_SLACK:
            self._deaths = [(self._dies_at(suspect), suspect) for suspect in self._suspicions]
            heapq.heapify(self._deaths)
        heapq.heappush(self._deaths, (self._dies_at(peer), peer))
        self._first_death_ms = None

    def _next_death_ms(self) -> float:
        """When the first suspect is held for dead."""
        if self._first_death_ms is None:
            while self._deaths and not self._is_due(*self._deaths[0]):
                heapq.heappop(self._deaths)
            self._first_death_ms = self._deaths[0][0] if self._deaths else math.inf
        return self._first_death_ms

    def _is_due(self, at_ms: int, peer: PeerId) -> bool:
        """Does the suspicion still stand, and end then?"""
        return peer in self._suspicions and self._dies_at(peer) == at_ms

    def _next_sequence(self) -> int:
        self._sequence = (self._sequence + 1) % _SEQUENCES
        return self._sequence

    def _rumor(self, peer: PeerId) -> Rumor:
        if peer == self._me:
            return Rumor(peer, Health.ALIVE, self.incarnation)
        return self._view.get(peer) or Rumor(peer, Health.ALIVE, 0)

    def _hear(self, sender: PeerId, rumors: tuple[Rumor, ...], now: Millis) -> None:
        if sender not in self._roster:
            return
        for rumor in rumors:
            if rumor.incarnation == _LAST_INCARNATION and rumor.health is not Health.ALIVE:
                continue  # nobody could deny it
            if rumor.peer == self._me:
                self._deny(rumor)
            elif rumor.peer in self._roster:
                self._believe(sender, rumor, now)

    def _deny(self, rumor: Rumor) -> None:
        if rumor.health is Health.ALIVE or rumor.incarnation < self.incarnation:
            self.incarnation = max(self.incarnation, rumor.incarnation)
            return
        self.incarnation = rumor.incarnation + 1
        self._spreading.add(self._me)
        self._trust_less()

    def _believe(self, sender: PeerId, rumor: Rumor, now: Millis) -> None:
        mine = self._rumor(rumor.peer)
        if rumor.health is Health.SUSPECT and rumor == mine and rumor.peer in self._suspicions:
            accusers = self._suspicions[rumor.peer].accusers
            if len(accusers) < _CONFIRMATIONS and sender not in accusers:
                accusers.add(sender)
                self._spreading.add(rumor.peer)
                self._schedule_death(rumor.peer)
            return
        if (rumor.incarnation, rumor.health) <= (mine.incarnation, mine.health):
            return
        self._adopt(sender, rumor, now)

    def _adopt(self, sender: PeerId, rumor: Rumor, now: Millis) -> None:
        was_dead = self.health(rumor.peer) >= Health.DEAD
        self._view[rumor.peer] = rumor
        self._spreading.add(rumor.peer)
        if self._is_down(rumor.peer):
            self._down.add(rumor.peer)
        else:
            self._down.discard(rumor.peer)
        if was_dead != (rumor.health >= Health.DEAD):
            self._others_up = None
        if rumor.health is Health.SUSPECT:
            self._suspicions[rumor.peer] = _Suspicion(now, {sender})
            self._schedule_death(rumor.peer)
        elif self._suspicions.pop(rumor.peer, None) is not None:
            self._first_death_ms = None

    def _dies_at(self, peer: PeerId) -> int:
        suspicion = self._suspicions[peer]
        scale = max(1.0, math.log10(max(1, len(self._roster))))
        least = self._rules.suspicion_intervals * self._rules.ping_interval_ms * scale
        confirmed = math.log(len(suspicion.accusers)) if suspicion.accusers else 0.0
        share = 1.0 - min(1.0, confirmed / math.log(_CONFIRMATIONS))
        return suspicion.since_ms + int(least * (1.0 + (_SUSPICION_STRETCH - 1) * share))

    def _expire(self, now: Millis) -> Iterator[Outgoing]:
        while now >= self._next_death_ms():
            peer = self._deaths[0][1]
            self._adopt(self._me, Rumor(peer, Health.DEAD, self._rumor(peer).incarnation), now)
        if not self._relays:
            return
        for sequence in [seq for seq, relay in self._relays.items() if now >= relay.ends_ms]:
            relay = self._relays.pop(sequence)
            yield relay.asker, Nack(relay.sequence)

    def _trust_less(self) -> None:
        self._awareness = min(_AWARENESS_MAX, self._awareness + 1)

    def _answered(self, probe: _Probe) -> None:
        if not probe.answered:
            probe.answered = True
            self._awareness = max(0, self._awareness - 1)

    def _finish_probe(self, now: Millis) -> None:
        probe, self._probe = self._probe, None
        if probe is None or probe.answered or probe.target not in self._roster:
            return
        # Relays that did not even say "not yet" hint that the trouble is on our own side.
        if probe.relayed == 0 or probe.nacks < probe.relayed:
            self._trust_less()
        known = self._rumor(probe.target)
        if known.health is Health.ALIVE:
            self._adopt(self._me, Rumor(probe.target, Health.SUSPECT, known.incarnation), now)

    def _start_probe(self, now: Millis) -> Iterator[Outgoing]:
        interval = self._rules.ping_interval_ms * (1 + self._awareness)
        self._next_ms = now + interval
        target = self._next_target(now)
        if target is None:
            return
        timeout = self._rules.ping_timeout_ms * (1 + self._awareness)
        self._probe = _Probe(
            target, self._next_sequence(), now + min(timeout, interval // 2), now + interval
        )
        yield target, Ping(self._probe.sequence, self._head(), self.rumors_for(target))

    def _next_target(self, now: Millis) -> PeerId | None:
        """The next member that has been silent; who was just heard need not be asked."""
        recent = now - self._rules.ping_interval_ms
        for _ in range(min(len(self._roster), 2 * _CONFIRMATIONS)):
            if not self._queue:
                self._queue = self._dice.shuffled(
                    [p for p in self._roster.members if p != self._me]
                )
            if not self._queue:
                return None
            target = self._queue.pop()
            silent = self._heard_ms.get(target, now - _DAY_MS) < recent
            is_wanted = silent or self._spreading or target in self._suspicions
            if target in self._roster and is_wanted and self.health(target) < Health.DEAD:
                return target
        return None

    def _ask_relays(self, probe: _Probe) -> Iterator[Outgoing]:
        helpers = [peer for peer in self.alive() if peer not in (self._me, probe.target)]
        chosen = self._dice.pick(helpers, self._rules.indirect_pings)
        probe.relayed = len(chosen) or 1
        for helper in chosen:
            yield helper, PingRequest(probe.sequence, probe.target, self.rumors_for(helper))
