"""The thread that holds a gossiping peer's model: inner steps, meetings, and the disk.

What the protocol wishes comes in through `do` and is granted here, in order: while this peer waits
in a meeting at once, while it takes inner steps between two of them. So nothing is ever added to
weights while a gradient of them is computed.
"""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from node.attachments import Attachments
from node.gossip.checkpoints import Checkpoints
from node.gossip.exchange import Exchange, stay_alone
from node.gossip.journal import Journal
from node.gossip.models import read_model, write_model
from node.gossip.pairings import Meeting, View, meetings, next_number, partners
from node.gossip.party import Party
from node.methods.ad_psgd import wait
from node.methods.ad_psgd_config import AdPsgdConfig
from node.methods.parts.mixing import MODEL
from protocol.effects import (
    CloseExchange,
    DropDoubts,
    ForgetDecision,
    Gossip,
    Members,
    ModelFetched,
    MoveStretch,
    Note,
    OfferStretch,
    OpenExchange,
    TakeModel,
    TakeStretch,
)
from protocol.entries import Attachment
from protocol.events import (
    Crew,
    Event,
    MeetAsked,
    MeetsAnyone,
    ModelTaken,
    ModelWanted,
    Moved,
    Offered,
    Offering,
    Prepared,
)
from protocol.exchanging import unpack
from protocol.ids import Hash, PeerId, RunId, short
from protocol.rules import Rules

_LOOK_S: Final = 0.1
_ASKED_MAX: Final = 3  # whom an asynchronous peer asks for one exchange
_MODELS_ASKED_MAX: Final = 8  # whom a newcomer asks for a model
_SAME_S: Final = 10.0  # a model that was put on the disk so lately will do for the next asker
_STAYS_PERIODS: Final = 4
_PATIENCE: Final = 2  # others may take so many times as long as we did


@dataclass(frozen=True, slots=True)
class Learner:
    """What the thread works with."""

    method: Checkpoints
    heldout: Callable[[], float]
    needs_model: bool  # of a member: others are at work already


class _StopError(Exception):
    """The process is to end."""


@dataclass(slots=True)
class _Taken:
    """The model as it was put on the disk for others."""

    at_s: float
    number: int
    tokens: int
    model: Attachment


@dataclass(slots=True)
class TrainingGossiper:
    """A `Gossiper` port."""

    learner: Learner

    home: Path
    run: RunId
    me: PeerId
    rules: Rules
    attachments: Attachments
    round: Callable[[], int]  # that is open
    post: Callable[[Event], None]
    note: Callable[[Note], None]
    failed: Callable[[BaseException], None]
    tell: Callable[[str], None]
    _wishes: "queue.SimpleQueue[Gossip]" = field(default_factory=queue.SimpleQueue)
    _stop: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None
    _journal: Journal | None = None
    _members: tuple[PeerId, ...] = ()
    _number: int = 0
    _ahead: int = 0
    _open: dict[Hash, Exchange] = field(default_factory=dict)
    _expected: list[Crew] = field(default_factory=list)  # asked for, and not over yet
    _outcome: CloseExchange | None = None
    _fetched: ModelFetched | None = None
    _sequence: int = 0
    _taken: _Taken | None = None
    _worked_s: float = 1.0
    _measured_round: int | None = None

    # Called on other threads

    def do(self, wish: Gossip) -> None:
        self._wishes.put(wish)

    def start(self) -> None:
        self._thread = threading.Thread(target=self._main, name="gossip", daemon=True)
        self._thread.start()

    def close(self, timeout_s: float) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    @property
    def model_bytes(self) -> int:
        return 4 * self._party.state[MODEL].numel()

    def facts(self) -> dict[str, Any]:
        """For people."""
        method = self._method
        now = method.distances[-1:]
        return {
            **method.tally.facts(),
            "gossip_activity": method.tally.activity,
            "consensus_distance": now[0][1] if now else None,
            "consensus_round": now[0][0] if now else None,
            "others_heldout_loss": {
                peer.hex(): one.heldout for peer, one in method.newest.items() if peer != self.me
            },
        }

    # The thread

    def _main(self) -> None:
        try:
            try:
                self._set_up()
                while True:
                    self._one_exchange()
            except _StopError:
                if self._journal is not None:
                    self._journal.save(self._told())
                    self._journal.close()
        except BaseException as error:  # whatever it is, the process must hear of it
            self.failed(error)

    @property
    def _method(self) -> Checkpoints:
        return self.learner.method

    @property
    def _party(self) -> Party:
        return self._method.party

    def _kept(self) -> Journal:
        assert self._journal is not None
        return self._journal

    def _told(self) -> dict[str, str]:
        return {"number": str(self._number)}

    def _set_up(self) -> None:
        journal = Journal(self.home, self._party)
        needs_model = self.learner.needs_model
        try:
            told = journal.load()
        except ValueError as error:
            self.note(Note("error", "model-unusable", {"error": str(error)}))
            journal, told = Journal(self.home, self._party), None
            needs_model = True
        if told is not None:
            self._number = int(told["number"])
            journal.save(told)  # what is in doubt may be settled at once, and is written down then
            self._journal = journal
        self._say("waiting to be a member")
        self.post(journal.kept.recalled())
        while self.me not in self._members or not self._method.tally.has_lease.is_set():
            self._serve_for(_LOOK_S)
        if told is None:
            if needs_model:
                self._fetch_model()
            journal.save(self._told())
            self._journal = journal

    def _say(self, what: str) -> None:
        self._method.tally.activity = what

    # One exchange, and the steps before it

    def _one_exchange(self) -> None:
        config = self._party.config
        started_s = time.monotonic()
        if (self._number + 1) % config.exchanges_a_round == 0 or config.kind is None:
            self._work()
        self._measure()
        self._worked_s = time.monotonic() - started_s
        journal = self._kept()
        journal.save_if_due(self._told)
        if journal.kept.prepared:
            self._serve_for(_LOOK_S)
        if config.kind is None:
            self._meet_anyone()
        else:
            self._meet()

    def _work(self) -> None:
        """Inner steps, and between them what others ask for."""
        self._say("training")
        config, tally = self._party.config, self._method.tally
        end_s = time.monotonic() + self.rules.window_ms / 1000
        is_timed = config.inner.steps is None
        asked = 0

        def expired() -> bool:
            nonlocal asked
            asked += 1
            if (asked - 1) % config.inner.accumulation:
                return False  # in the middle of a step
            self._serve_waiting()
            return is_timed and asked > 1 and time.monotonic() >= end_s

        tally.worked(self._party.work(self._number, self._slots(), expired, least=0))

    def _slots(self) -> Iterator[int]:
        return self._method.tally.slots()

    def _measure(self) -> None:
        """The held-out loss of our own model, now and then."""
        round = self.round()
        if self._measured_round is None or round - self._measured_round >= self.rules.heldout_every:
            self._say("measuring the held-out loss")
            self._method.tally.measured(self.learner.heldout())
            self._measured_round = round

    # Meetings that follow from the members

    def _meet(self) -> None:
        config = self._party.config
        assert config.kind is not None
        self._step_on()
        view = View.of(self.run, self._members)
        found = meetings(config.kind, view, self._number, config.meeting_size)
        mine = [
            Crew(tuple(map(PeerId, one.peers)), one.directed)
            for one in found
            if self.me in one.peers
        ]
        if self._doubts() or self.me not in self._members or not mine:
            if self._doubts():
                self._method.tally.gave_up("an earlier exchange is in doubt")
            stay_alone(self._party, self._doubts())
            return
        self._say(f"in exchange {self._number}")
        self._ask(mine, view)

    def _step_on(self) -> None:
        self._number = next_number(self._number, self._ahead)
        self._method.tally.at(self._number)

    def _doubts(self) -> set[int]:
        """Stretches of which it is not known whether they count."""
        return {stretch for _, stretch in self._kept().kept.prepared}

    def _offering(self, view: View) -> Offering:
        coder, count = self._party.coder, len(self._party.stretches)
        turns = range(self._party.config.turns)
        most = max(coder.bytes_of(number, turn) for number in range(count) for turn in turns)
        return Offering(view.digest, count, most)

    def _wait_ms(self) -> int:
        """Others have as long as we needed, twice; within what the run allows stragglers."""
        rules = self.rules
        wanted = rules.deadline_floor_ms + round(_PATIENCE * 1000 * self._worked_s)
        return min(wanted, max(rules.deadline_floor_ms, rules.deadline_ceiling_ms))

    def _ask(self, mine: list[Crew], view: View) -> None:
        """Come to these meetings, and stay until all are over."""
        self._expected = list(mine)
        asked = MeetAsked(self._number, tuple(mine), self._offering(view), self._wait_ms())
        self.post(asked)
        while self._expected:
            self._serve_for(_LOOK_S)

    # Meetings of whoever is ready

    def _meet_anyone(self) -> None:
        """A peer takes part in one exchange at a time: one that it is asked for counts as well."""
        view = View.of(self.run, self._members)
        offering = self._offering(view)
        self.post(MeetsAnyone(offering, self._wait_ms()))
        config = self._party.config
        assert isinstance(config, AdPsgdConfig), "the only one without rounds"
        self._wait_for_clock(config)
        while self._open:
            self._serve_for(_LOOK_S)
        if self._doubts() or self.me not in self._members:
            return
        candidates = partners(view, self.me, self._number + 1)
        for other, _ in zip(candidates, range(_ASKED_MAX), strict=False):
            self._number += 1  # nobody compares it with its own
            self._method.tally.at(self._number)
            self._outcome = None
            self._ask([Crew((self.me, PeerId(other)), is_asked=True)], view)
            if self._outcome is not None and self._outcome.session is not None:
                return

    def _wait_for_clock(self, config: AdPsgdConfig) -> None:
        unit = 1_000_000
        work = round(self._worked_s * unit)
        left_s = (wait(config, self.run, self.me, self._number, work) - work) / unit
        end_s = time.monotonic() + left_s
        while (left_s := end_s - time.monotonic()) > 0:
            self._serve_for(min(left_s, _LOOK_S))

    # Wishes

    def _serve_waiting(self) -> None:
        """Those that are there."""
        while True:
            if self._stop.is_set():
                raise _StopError
            try:
                wish = self._wishes.get_nowait()
            except queue.Empty:
                return
            self._grant(wish)

    def _serve_for(self, seconds: float) -> None:
        """At least one, if it comes in time."""
        if self._stop.is_set():
            raise _StopError
        try:
            self._grant(self._wishes.get(timeout=seconds))
        except queue.Empty:
            return
        self._serve_waiting()

    def _grant(self, wish: Gossip) -> None:
        match wish:
            case Members():
                self._members = wish.members
            case OpenExchange():
                crew = wish.crew
                meeting = Meeting(crew.peers, crew.is_directed, wish.number)
                self._open[wish.session] = Exchange(self._party, self.me, meeting)
            case OfferStretch():
                data = self._open[wish.session].offer(wish.stretch)
                self.post(Offered(wish.session, wish.stretch, data))
            case TakeStretch():
                self._take(wish)
            case MoveStretch():
                self._move(wish)
            case CloseExchange():
                self._close(wish)
            case DropDoubts():
                self._kept().dropped(wish.session)
            case ForgetDecision():
                self._kept().forgot(wish.session)
            case TakeModel():
                self._take_model(wish)
            case ModelFetched():
                self._fetched = wish

    def _take(self, wish: TakeStretch) -> None:
        exchange = self._open[wish.session]
        for peer, data in wish.offers:
            try:
                exchange.receive(wish.stretch, peer, data)
            except ValueError as error:
                self.note(Note("warning", "offer-unusable", {"peer": peer, "error": str(error)}))
                self.post(Prepared(wish.session, wish.stretch, peer))
                return
        if wish.decider != self.me:
            moves = exchange.moves(wish.stretch)
            self._kept().prepared(wish.session, wish.stretch, wish.decider, moves)
        self.post(Prepared(wish.session, wish.stretch))

    def _move(self, wish: MoveStretch) -> None:
        journal, exchange = self._kept(), self._open.get(wish.session)
        if exchange is not None:
            exchange.commit(wish.stretch)
        else:
            one = journal.kept.prepared[wish.session, wish.stretch]
            self._party.mixing.apply(self._party.part(wish.stretch), one.moves)
        journal.moved(wish.session, wish.stretch, wish.others)
        self.post(Moved(wish.session, wish.stretch))

    def _close(self, wish: CloseExchange) -> None:
        tally, others = self._method.tally, [p for p in wish.crew.peers if p != self.me]
        self._ahead = max(self._ahead, wish.ahead)
        self._outcome = wish
        doubts = set(unpack(wish.doubts))
        if wish.session is None:
            stay_alone(self._party, self._doubts())
        else:
            self._open.pop(wish.session).close(doubts)
            self._kept().dropped(wish.session, sorted(doubts))
        if wish.is_whole:
            tally.met(tuple(others))
        else:
            tally.gave_up(wish.reason)
        fields: dict[str, object] = {
            "number": wish.number,
            "with": [short(peer) for peer in others],
            "whole": wish.is_whole,
            "why": wish.reason,
        }
        self.note(Note("info", "exchange", fields))
        if wish.crew in self._expected:
            self._expected.remove(wish.crew)

    # Whole models

    def _take_model(self, wish: TakeModel) -> None:
        now = self._method.tally.now()
        if self._journal is None:  # we have none of our own yet
            self.post(ModelTaken(wish.to, wish.sequence, None, 0, self._number, None))
            return
        taken = self._taken
        now_s = time.monotonic()
        if taken is None or now_s - taken.at_s > _SAME_S or not self.attachments.has(taken.model):
            # It stays for as long as somebody may need to fetch it.
            until = self.round() + _STAYS_PERIODS * self.rules.snapshot_every
            model = self.attachments.put(until, write_model(self._party.state[MODEL]))
            taken = self._taken = _Taken(now_s, self._number, self._party.tokens, model)
        self.post(
            ModelTaken(wish.to, wish.sequence, taken.model, taken.tokens, taken.number, now.heldout)
        )

    def _fetch_model(self) -> None:
        """Begin where a member is now; nobody waits for us meanwhile."""
        others = [peer for peer in self._members if peer != self.me]
        view = View.of(self.run, self._members)
        ranking = partners(view, self.me, 0) if others else iter(())
        for peer, _ in zip(ranking, range(_MODELS_ASKED_MAX), strict=False):
            self._sequence += 1
            self._fetched = None
            self._say(f"fetching the model of {short(peer)}")
            self.tell(f"fetching the model of member {short(peer)}")
            self.post(ModelWanted(PeerId(peer), self._sequence, self.model_bytes))
            while self._fetched is None or self._fetched.sequence != self._sequence:
                self._serve_for(_LOOK_S)
            if self._load_model(self._fetched):
                return
        self._not_fetched(None, "no member sent its model")
        self.tell("no member sent its model: starting from the run's first weights")

    def _not_fetched(self, peer: PeerId | None, why: str) -> None:
        self.note(Note("warning", "model-not-fetched", {"peer": peer, "error": why}))

    def _load_model(self, fetched: ModelFetched) -> bool:
        if fetched.model is None:
            self._not_fetched(fetched.peer, fetched.reason)
            return False
        party, data = self._party, self.attachments.read(fetched.model)
        vector = None if data is None else read_model(data, party.state[MODEL].numel())
        if vector is None:
            self._not_fetched(fetched.peer, "it is none of this run's")
            return False
        party.state[MODEL].copy_(vector)
        for number in range(len(party.stretches)):
            party.mixing.begin(party.part(number))
        self._ahead = max(self._ahead, fetched.number)
        self.tell(
            f"started from the model of member {short(fetched.peer)},"
            f" {fetched.model.size / 1e6:.1f} MB"
        )
        return True
