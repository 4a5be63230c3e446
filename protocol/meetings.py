"""Peers that gossip come to a meeting, or do not, and nobody waits for long.

Meetings have nothing to do with rounds: they go on while the ledger stands still. Who meets whom in
the exchange of some number follows from the members, so all sides know it; the one that comes first
says so (`Meet`) until the others are there, or for as long as it has patience. Whoever is past that
exchange, is busy, or knows other members says that at once, and then both go on by themselves.

A meeting's *topic* names it: number, view and peers. Its *session* (`exchanging`) is named by the
topic and the *epoch* of each peer, which every start of a process raises. So what was sent by, or
to, a process that has ended since belongs to another session, and is never mixed up with this one.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from protocol.core import Core
from protocol.effects import CloseExchange, Members
from protocol.errors import RemoteError
from protocol.events import (
    Crew,
    MeetAsked,
    MeetsAnyone,
    Moved,
    Offered,
    Offering,
    Prepared,
    Recalled,
)
from protocol.exchanging import UNDER_WAY, Session, pack
from protocol.ids import Hash, Millis, PeerId, RunId, digest
from protocol.messages import (
    Absence,
    Counted,
    Meet,
    NotMeeting,
    Ready,
    StretchFrame,
    StretchRequest,
    Verdict,
)
from protocol.roster import Roster
from protocol.verdicts import Verdicts

_KNOCK_MS: Final = 500
_EARLY_MAX: Final = 2  # meetings of one pair in one exchange: each may send to the other
_WHY: Final = {
    Absence.PAST: "the other side is past it",
    Absence.BUSY: "the other side is busy",
    Absence.OTHER_VIEW: "the other side knows other members",
}


def topic_of(run: RunId, number: int, view: bytes, crew: Crew) -> Hash:
    """The same on all sides of a meeting, and on no side of another."""
    kind = bytes([crew.is_directed + 2 * crew.is_asked])
    return digest("meeting", run, number.to_bytes(8, "big"), view, kind, *crew.peers)


def session_of(topic: Hash, epochs: Iterable[int]) -> Hash:
    """`epochs`: of the meeting's peers, in its order."""
    return Hash(digest("session", topic, *(epoch.to_bytes(8, "big") for epoch in epochs)))


@dataclass(slots=True)
class _Waiting:
    """A meeting that not everybody has come to."""

    number: int
    crew: Crew
    offering: Offering
    wait_ms: int
    ends_ms: int
    knock_ms: int
    epochs: dict[PeerId, int] = field(default_factory=dict)


class Meetings:
    def __init__(self, core: Core) -> None:
        self._core = core
        self._verdicts = Verdicts(core)
        self._epoch = 0
        self._number = 0  # of the exchange that we are at, or were at last
        self._ahead = 0  # the highest that another is at, as far as we were told
        self._anyone: MeetsAnyone | None = None
        self._waiting: dict[Hash, _Waiting] = {}  # by topic
        self._sessions: dict[Hash, Session] = {}
        # What each member asked for of sessions that have not begun here: the last few.
        self._early_requests: dict[PeerId, list[StretchRequest]] = {}
        # The last exchange that each member asked us for: none takes place twice.
        self._asked_by: dict[PeerId, tuple[int, int]] = {}
        self._held: set[Hash] = set()  # topics of this exchange whose meeting is over
        self._members: Roster | None = None  # that were told
        self._is_recalled = False  # somebody is there who holds a model

    # Reading

    @property
    def doubts(self) -> int:
        """Sessions of which we do not know what counts."""
        return self._verdicts.doubts

    @property
    def wake_ms(self) -> Millis | None:
        due = [min(one.ends_ms, one.knock_ms) for one in self._waiting.values()]
        due += [session.wake_ms for session in self._sessions.values()]
        settled = self._verdicts.wake_ms
        if settled is not None:
            due.append(settled)
        return Millis(min(due)) if due else None

    # What happens

    def start(self) -> None:
        core = self._core
        self._epoch = core.cards[core.me].sequence

    def recall(self, event: Recalled) -> None:
        self._is_recalled = True
        self._verdicts.recall(event)
        self.moved()

    def meet(self, event: MeetAsked) -> None:
        core = self._core
        assert event.number > self._number, "each exchange is come to once"
        self._number = event.number
        self._held.clear()
        for crew in event.crews:
            ends_ms = core.now + event.wait_ms
            one = _Waiting(
                event.number, crew, event.offering, event.wait_ms, ends_ms, int(core.now)
            )
            one.epochs[core.me] = self._epoch
            topic = topic_of(core.run, event.number, event.offering.view, crew)
            self._waiting[topic] = one
        self.tick()

    def meet_anyone(self, event: MeetsAnyone) -> None:
        self._anyone = None if event.offering is None else event

    def offered(self, event: Offered) -> None:
        session = self._sessions.get(event.session)
        if session is not None:
            session.offered(event.stretch, event.data)

    def prepared(self, event: Prepared) -> None:
        session = self._sessions.get(event.session)
        if session is not None:
            session.prepared(event.stretch, event.spoiler)

    def has_moved(self, event: Moved) -> None:
        session = self._sessions.get(event.session)
        if session is None:
            self._verdicts.has_moved(event.session, event.stretch)
        else:
            session.has_moved(event.stretch)

    def moved(self) -> None:
        """The chain did."""
        core, roster = self._core, self._core.head.roster
        if not self._is_recalled:
            return
        if self._members is None or self._members.members != roster.members:
            self._members = roster
            core.out.append(Members(roster.members))
            self._verdicts.moved()
        for known in (self._early_requests, self._asked_by):
            for peer in [peer for peer in known if peer not in roster]:
                del known[peer]

    # Time

    def tick(self) -> None:
        core = self._core
        for topic, one in list(self._waiting.items()):
            why = self._why_not(one)
            if why is not None:
                self._give_up(topic, one, why)
            elif core.now >= one.knock_ms:
                one.knock_ms = core.now + _KNOCK_MS
                missing = [peer for peer in one.crew.peers if peer not in one.epochs]
                core.send(missing, self._meet(topic, one, wants_reply=True))
        for session in list(self._sessions.values()):
            if any(self._is_gone(peer) for peer in session.others):
                session.ends = session.ends or "the other side is down"
            session.tick()
        self._end_sessions()
        self._verdicts.tick()  # asks at once about what those that ended left in doubt

    def _why_not(self, one: _Waiting) -> str | None:
        core = self._core
        if core.now >= one.ends_ms:
            return "the other side did not come in time"
        for peer in one.crew.peers:
            if peer != core.me and self._is_gone(peer):
                return "the other side is down"
            if peer != core.me and not core.can_fetch_from(peer):
                return "neither side can dial the other"
        return None

    def _is_gone(self, peer: PeerId) -> bool:
        core = self._core
        return peer not in core.head.roster or peer in core.membership.down()

    def _give_up(self, topic: Hash, one: _Waiting, why: str) -> None:
        del self._waiting[topic]
        self._held.add(topic)
        self._closed(one, why)

    def _closed(self, one: _Waiting, why: str) -> None:
        self._core.out.append(
            CloseExchange(
                one.crew,
                one.number,
                None,
                is_whole=False,
                doubts=b"",
                reason=why,
                ahead=self._ahead,
            )
        )

    def _end_sessions(self) -> None:
        for name, session in list(self._sessions.items()):
            why = session.why_over
            if why is None:
                continue
            del self._sessions[name]
            self._core.out.append(
                CloseExchange(
                    session.crew,
                    session.number,
                    name,
                    is_whole=session.is_whole,
                    doubts=pack(session.doubts),
                    reason=why,
                    ahead=self._ahead,
                )
            )
            self._verdicts.ended(session)

    # Coming together

    def _meet(self, topic: Hash, one: _Waiting, *, wants_reply: bool) -> Meet:
        return Meet(topic, one.number, one.offering.view, self._epoch, wants_reply)

    def _begin_if_all_here(self, topic: Hash, one: _Waiting) -> None:
        if any(peer not in one.epochs for peer in one.crew.peers):
            return
        del self._waiting[topic]
        self._begin(topic, one)

    def _begin(self, topic: Hash, one: _Waiting) -> None:
        self._held.add(topic)
        name = session_of(topic, (one.epochs[peer] for peer in one.crew.peers))
        if self._verdicts.is_void(name):
            self._closed(one, "it was over before it began")
            return
        session = self._sessions[name] = Session(
            self._core, name, one.number, one.crew, one.offering, one.wait_ms
        )
        for peer in session.others:
            for request in self._early_requests.get(peer, ()):
                if request.session == name:
                    session.on_request(peer, request)

    def _keep_request(self, sender: PeerId, message: StretchRequest) -> None:
        """The other side knew first that all are there."""
        kept = self._early_requests.setdefault(sender, [])
        kept.append(message)
        del kept[: -_EARLY_MAX * UNDER_WAY]

    def _on_meet(self, sender: PeerId, message: Meet) -> None:
        core, topic = self._core, message.topic
        one = self._waiting.get(topic)
        self._ahead = max(self._ahead, message.number)
        if one is not None and sender in one.crew.peers:
            one.epochs[sender] = message.epoch
            if message.wants_reply:
                core.send(sender, self._meet(topic, one, wants_reply=False))
            self._begin_if_all_here(topic, one)
            return
        if not message.wants_reply or self._is_under_way(sender, message):
            return
        if topic == topic_of(core.run, message.number, message.view, self._asked(sender)):
            self._on_asked(sender, message)
        elif message.number <= self._number:  # to a later one we will come
            past = message.number < self._number or topic in self._held
            self._refuse(sender, topic, Absence.PAST if past else Absence.OTHER_VIEW)

    def _is_under_way(self, sender: PeerId, message: Meet) -> bool:
        """Our own word that we are there was lost on the way: say it again."""
        core = self._core
        for session in self._sessions.values():
            if session.number != message.number or sender not in session.others:
                continue
            topic = topic_of(core.run, session.number, message.view, session.crew)
            if topic == message.topic:
                meet = Meet(topic, session.number, message.view, self._epoch, wants_reply=False)
                core.send(sender, meet)
                return True
        return False

    def _asked(self, sender: PeerId) -> Crew:
        return Crew((sender, self._core.me), is_asked=True)

    def _on_asked(self, sender: PeerId, message: Meet) -> None:
        """Somebody wants an exchange with us that we do not know of."""
        core, anyone = self._core, self._anyone
        last = self._asked_by.get(sender, (-1, -1))
        if (message.epoch, message.number) <= last:
            self._refuse(sender, message.topic, Absence.PAST)
        elif anyone is None or self._waiting or self._sessions or self._verdicts.doubts:
            self._refuse(sender, message.topic, Absence.BUSY)
        elif anyone.offering is not None and anyone.offering.view == message.view:
            self._asked_by[sender] = message.epoch, message.number
            meet = Meet(message.topic, message.number, message.view, self._epoch, wants_reply=False)
            core.send(sender, meet)
            one = _Waiting(
                message.number, self._asked(sender), anyone.offering, anyone.wait_ms, 0, 0
            )
            one.epochs.update({sender: message.epoch, core.me: self._epoch})
            self._begin(message.topic, one)
        else:
            self._refuse(sender, message.topic, Absence.OTHER_VIEW)

    def _refuse(self, sender: PeerId, topic: Hash, why: Absence) -> None:
        if self._core.may_answer(sender):
            self._core.send(sender, NotMeeting(topic, self._number, why))

    def _on_not_meeting(self, sender: PeerId, message: NotMeeting) -> None:
        one = self._waiting.get(message.topic)
        if one is None or sender not in one.crew.peers:
            return
        self._ahead = max(self._ahead, message.number)
        self._give_up(message.topic, one, _WHY[message.why])

    # Receiving

    def hear(
        self,
        sender: PeerId,
        message: Meet | NotMeeting | StretchRequest | StretchFrame | Ready | Verdict | Counted,
    ) -> None:
        if sender not in self._core.head.roster:
            return
        match message:
            case Meet():
                self._on_meet(sender, message)
            case NotMeeting():
                self._on_not_meeting(sender, message)
            case _:
                self._hear_in_session(sender, message)
        self._end_sessions()

    def _hear_in_session(
        self, sender: PeerId, message: StretchRequest | StretchFrame | Ready | Verdict | Counted
    ) -> None:
        session = self._sessions.get(message.session)
        if session is not None and sender not in session.others:
            raise RemoteError("it takes no part in that meeting")
        match message:
            case StretchRequest():
                if session is not None:
                    session.on_request(sender, message)
                else:
                    self._keep_request(sender, message)
            case StretchFrame():
                if session is not None:
                    session.on_frame(sender, message)
            case Ready():
                (session or self._verdicts).on_ready(sender, message)
            case Verdict():
                (session or self._verdicts).on_verdict(sender, message)
            case Counted():
                (session or self._verdicts).on_counted(sender, message)
