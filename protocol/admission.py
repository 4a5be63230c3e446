"""Who comes and who goes: guests, applicants, leavers, the dead and the liars.

A stranger shows a card and a token (`Hello`) and gets the manifest (`Welcome`). It reads the
ledger, then asks to be listed (`Join`). Members pass that on to the round's collectors until an
entry lists it. Members that come back after being dropped need no token: the ledger remembers them.
"""

from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from protocol.catchup import CatchUp
from protocol.core import Core, encode_card
from protocol.entries import (
    ENTRY_BYTES_MAX,
    Admission,
    Card,
    Cause,
    Departure,
    Token,
    leave_bytes,
)
from protocol.errors import RemoteError
from protocol.ids import ID_BYTES, Millis, PeerId
from protocol.messages import Evidence, Hello, Introduce, Join, Leave, Refused, Welcome

_T = TypeVar("_T")

_CHANGES_BYTES_MAX: Final = ENTRY_BYTES_MAX // 8  # for admissions, and as much for departures
_TOKEN_OVERHEAD: Final = 128
_DEPARTURE_OVERHEAD: Final = 16
_PENDING_MAX: Final = 256
_INTRODUCED: Final = 8
_WELCOME_CARDS: Final = 32
_PENDING_ROUNDS: Final = 16


class Admissions:
    def __init__(self, core: Core, catchup: CatchUp, is_ready: Callable[[], bool]) -> None:
        self._core, self._catchup, self._is_ready = core, catchup, is_ready
        self._joins: dict[PeerId, tuple[Admission, int]] = {}  # and the round in which it was heard
        self._leaves: dict[PeerId, Departure] = {}
        self._welcomed: dict[PeerId, Admission] = {}  # by us, and no members yet
        self._known = core.head.roster  # when the last round opened
        self._token: Token | None = None
        self._sponsor: PeerId | None = None
        self._next_join_ms: int | None = None
        self._asked_to_join_ms: int | None = None

    # As an applicant

    def start(self, token: Token | None, sponsor: PeerId | None) -> None:
        self._token, self._sponsor = token, sponsor
        self._next_join_ms = self._core.now

    @property
    def wake_ms(self) -> Millis | None:
        if self._core.is_member or self._next_join_ms is None:
            return None
        return Millis(self._next_join_ms)

    def tick(self) -> None:
        """Read the ledger until the state is near its head; then ask to be listed, a few members
        at a time, until an entry says so. Who joined earlier would be waited for in vain.
        """
        core = self._core
        if core.is_member or self._next_join_ms is None:
            return
        pause, is_due = 2 * core.rules.ping_interval_ms, core.now >= self._next_join_ms
        if is_due:
            self._next_join_ms = core.now + pause
            for peer in self._some_members():
                self._catchup.ask(peer)
        since = self._asked_to_join_ms
        if since is not None and core.now < since + pause:
            return
        if self._catchup.is_level and self._is_ready():
            self._asked_to_join_ms = core.now
            # The ledger remembers alumni for longer than an invite lasts; it knows nothing of who
            # joined on a branch that was given up.
            token = None if core.me in core.head.roster.alumni else self._token
            core.send(self._some_members(), Join(core.cards[core.me], token))

    def _some_members(self) -> list[PeerId]:
        core = self._core
        others = sorted(peer for peer in core.cards if peer != core.me)
        known = [peer for peer in others if core.cards[peer].addresses] or others
        # A short ledger knows early members alone, who may be gone long since (P4).
        members = [peer for peer in known if peer in core.head.roster]
        pool = members if members and self._catchup.is_level else known
        chosen = core.dice.pick(pool, core.rules.collectors)
        if self._sponsor in core.cards and self._sponsor not in chosen:
            chosen.insert(0, self._sponsor)
        return sorted(chosen, key=lambda peer: peer != self._sponsor)

    # As a member

    def on_hello(self, guest: bytes, message: Hello, wall_s: int) -> None:
        core = self._core
        try:
            self._verify(message.card, message.token)
            reason = self._refusal(message.card, message.token, wall_s)
            if reason is not None:
                raise RemoteError(reason)
        except RemoteError as error:
            core.send(guest, Refused(str(error)))
            raise
        if message.card.peer not in core.cards:
            self._introduce(core.membership.others_up(), message.card, message.token)
        core.learn_card(message.card)
        self._welcomed[message.card.peer] = Admission(message.card, message.token)
        if len(self._welcomed) > _PENDING_MAX:
            del self._welcomed[next(iter(self._welcomed))]
        mine = core.cards[core.me]
        others = [
            card
            for peer, card in sorted(core.cards.items())
            if peer in core.head.roster and peer != core.me
        ]
        cards = (mine, *core.dice.pick(others, _WELCOME_CARDS - 1))
        core.send(guest, Welcome(core.manifest, cards, core.ledger.summary()))
        core.note("info", "welcomed", peer=message.card.peer)

    def _introduce(self, members: Sequence[PeerId], card: Card, token: Token | None) -> None:
        core = self._core
        core.send(core.dice.pick(members, _INTRODUCED), Introduce(card, token))

    def on_introduce(self, member: bytes, message: Introduce, wall_s: int) -> None:
        """Somebody whom another member let in: a long state comes faster from many. An entry that
        is not here yet may say more of both, so neither is blamed for what ours says.
        """
        core = self._core
        if member not in core.head.roster or not core.may_answer(member):
            return
        self._verify(message.card, message.token)
        if self._refusal(message.card, message.token, wall_s) is None:
            core.learn_card(message.card)

    def _verify(self, card: Card, token: Token | None) -> None:
        """Raises RemoteError if one of the two is forged."""
        core = self._core
        if not core.keys.is_peer(card.peer):
            raise RemoteError("a card without a public key")
        core.judge.check_card(card)
        if token is not None:
            core.judge.check_token(token)

    def _refusal(self, card: Card, token: Token | None, wall_s: int) -> str | None:
        """Why the owner of this card may not become a member, by our ledger and our clock."""
        core, roster = self._core, self._core.head.roster
        if card.peer in roster.banned:
            return "this peer was expelled"
        if card.peer in roster:
            return None
        if token is None and card.peer not in roster.alumni:
            return "an invite is needed"
        if token is not None and not roster.knows(token.minter):
            return "the invite was made by nobody we know"
        if token is not None and token.expires_s < wall_s:
            return "the invite has expired"
        return "the run is full" if len(roster) >= core.rules.members_max else None

    def on_join(self, source: bytes, message: Join, wall_s: int) -> None:
        core = self._core
        peer = message.card.peer
        self._verify(message.card, message.token)
        if self._refusal(message.card, message.token, wall_s) is not None:
            return
        core.learn_card(message.card)
        if peer in core.head.roster:
            return
        is_news = peer not in self._joins
        if is_news and len(self._joins) >= _PENDING_MAX:
            return
        self._joins[peer] = (Admission(message.card, message.token), core.head.round)
        if source == peer or is_news:
            self._pass_on(message)

    def on_leave(self, message: Leave) -> None:
        core = self._core
        seat = core.head.roster.seat(message.peer)
        if seat is None or message.peer in self._leaves or message.peer == core.me:
            return
        departure = Departure(seat, Cause.LEFT, message.round, message.signature)
        may_leave = core.head.roster.may_leave(message.peer, message.round, core.head.round)
        if not may_leave or message.round > core.head.round + 1:
            return
        if not core.keys.verify(
            message.peer, leave_bytes(core.run, message.peer, message.round), message.signature
        ):
            raise RemoteError("a notice of leaving with a false signature")
        self._leaves[message.peer] = departure
        core.membership.mark_left(message.peer, core.now)
        core.note("info", "leaving", peer=message.peer)
        self._pass_on(message)

    def _pass_on(self, message: Join | Leave | Evidence) -> None:
        core = self._core
        core.send([peer for peer in core.collectors() if peer != core.me], message)

    def opened(self) -> None:
        """A round opened: its collectors are others, so tell them what is still pending."""
        core, roster = self._core, self._core.head.roster
        self._introduce_to_new()
        for peer, (admission, heard) in list(self._joins.items()):
            if peer in roster or core.head.round - heard > _PENDING_ROUNDS:
                del self._joins[peer]
            elif core.is_member:
                self._pass_on(Join(admission.card, admission.token))
        for peer, departure in list(self._leaves.items()):
            may_leave = roster.may_leave(peer, departure.round, core.head.round)
            if peer not in roster or not may_leave:
                del self._leaves[peer]
            elif core.is_member:
                self._pass_on(Leave(peer, departure.round, departure.proof))
        for peer in [peer for peer in self._catchup.guilty if peer not in roster]:
            del self._catchup.guilty[peer]

    def _introduce_to_new(self) -> None:
        """Whom we let in, to who became a member since: they would refuse its connection, and it
        asks whoever is a member for what it lacks.
        """
        core, roster = self._core, self._core.head.roster
        if roster is self._known:
            return
        fresh = [p for p in roster.members if p not in self._known and p != core.me]
        self._known = roster
        for peer in [peer for peer in self._welcomed if peer in roster]:
            del self._welcomed[peer]
        if fresh and core.is_member:
            for admission in core.dice.pick(list(self._welcomed.values()), _INTRODUCED):
                self._introduce(fresh, admission.card, admission.token)

    def changes(self) -> tuple[tuple[Admission, ...], tuple[Departure, ...]]:
        """What the next entry should say about members."""
        core, roster = self._core, self._core.head.roster
        room = min(core.rules.joins_per_entry_max, core.rules.members_max - len(roster))
        waiting = [self._joins[peer][0] for peer in sorted(self._joins)]
        admissions = self._holding(
            waiting,
            lambda admission: core.judge.check_admission(roster, admission),
            _admission_bytes,
        )
        departures: dict[int, Departure] = {}
        for peer in core.membership.missing(core.now):
            self._depart(departures, peer, Departure(0, Cause.DEAD, core.head.round, b""))
        for peer, departure in self._leaves.items():
            if departure.round <= core.head.round:
                self._depart(departures, peer, departure)
        for peer, evidence in self._catchup.guilty.items():
            proof = (
                evidence.parent
                + evidence.first
                + evidence.first_seal
                + evidence.second
                + evidence.second_seal
            )
            self._depart(departures, peer, Departure(0, Cause.EQUIVOCATED, evidence.round, proof))
        ordered = self._holding(
            [departures[seat] for seat in sorted(departures)],
            lambda departure: core.judge.check_departure(core.head, departure),
            lambda departure: len(departure.proof) + _DEPARTURE_OVERHEAD,
        )
        if len(ordered) >= len(roster):
            ordered = []  # somebody has to stay
        return tuple(admissions[:room]), tuple(ordered)

    @staticmethod
    def _holding(
        items: list[_T], check: Callable[[_T], None], size: Callable[[_T], int]
    ) -> list[_T]:
        """Those that every peer will find valid, as many as fit beside the contributions."""
        left, found = _CHANGES_BYTES_MAX, []
        for item in items:
            try:
                check(item)
            except RemoteError:
                continue  # true when it was heard, overtaken by what came since
            left -= size(item)
            if left < 0:
                break
            found.append(item)
        return found

    def _depart(self, departures: dict[int, Departure], peer: PeerId, departure: Departure) -> None:
        seat = self._core.head.roster.seat(peer)
        if seat is not None and peer != self._core.me:
            departures[seat] = Departure(seat, departure.cause, departure.round, departure.proof)

    def forget(self, peer: PeerId) -> None:
        """`peer` is no member any more: what it asked for before is over."""
        self._joins.pop(peer, None)
        self._leaves.pop(peer, None)

    # Leaving

    def leave(self) -> None:
        """Say goodbye: collectors list it, everybody else hears that there is no need to wait."""
        core = self._core
        if not core.is_member or len(core.head.roster) == 1:
            return
        round = core.head.round
        signature = core.keys.sign(leave_bytes(core.run, core.me, round))
        others = core.membership.others_up()
        first = [peer for peer in core.collectors() if peer != core.me]
        more = core.dice.pick([peer for peer in others if peer not in first], core.rules.fanout)
        core.send(first + more, Leave(core.me, round, signature))


def _admission_bytes(admission: Admission) -> int:
    return len(encode_card(admission.card)) + _TOKEN_OVERHEAD


def is_peer(source: bytes) -> bool:
    """Authenticated peers are named by 32 bytes; guests by anything else."""
    return len(source) == ID_BYTES
