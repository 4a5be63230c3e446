"""The trainer's thread between two ways of catching up: what comes first, and what it leads to."""

import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from node import worker as worker_module
from node.attachments import Attachments
from node.chunks import Blob
from node.following import Reports, Setting
from node.keeper import StateKeeper, _Taking
from node.local import FILE, LocalState
from node.methods.base import Contribution, GoesOn, RoundContext, WorkResult
from node.snapshots import Snapshots
from node.store import Store
from node.stream import StateStream
from node.worker import Trainer, TrainingWorker
from protocol.blobs import chunk_id, root_of
from protocol.codec import CHUNK_BYTES
from protocol.effects import (
    AddUp,
    GiveBack,
    Hold,
    Patch,
    Proceed,
    Rebuild,
    Restore,
    StartWork,
)
from protocol.entries import Attachment
from protocol.events import Applied, Behind, Event, Patched, Summed, WorkDone
from protocol.ids import Hash, PeerId, RunId
from protocol.ledger import Ledger, Mark
from protocol.parts import SumName, whole_of
from protocol.rules import Rules
from protocol.snapshots import SnapshotAt
from tests.machine.making import RUN, closed, entry, genesis, ids, judge

(ME,) = ids(1)
ROUNDS = 60
RULES = Rules(snapshot_every=1_000, window_ms=3_600_000, deadline_floor_ms=50)


class Counting:
    """A method whose state is the number of merges; `gate` lets one through at a time."""

    def __init__(self) -> None:
        self.count = torch.zeros(1, dtype=torch.int64)
        self.gate = threading.Semaphore(0)
        self.waits = threading.Event()
        self.goes_on = GoesOn.WHEN_OVERDUE
        self.went_on = threading.Event()
        self.given_back = threading.Event()
        self.digests = 0
        self.was_over: bool | None = None  # the window, when work began
        self.mine = 0  # what no other peer knows

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        self.waits.set()
        self.gate.acquire()
        self.count += 1

    def work(self, round: RoundContext) -> WorkResult:
        self.was_over = round.expired()
        return WorkResult(b"8 bytes!", None)

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        pass

    def overtime(self, round: RoundContext) -> None:
        self.went_on.set()
        while not round.expired():
            pass

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        self.given_back.set()

    def local_state(self) -> dict[str, Tensor]:
        return {"mine": torch.tensor([self.mine])}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self.mine = int(state["mine"])

    def state_digest(self, key: int) -> int:
        self.digests += 1
        return int(self.count)

    def replicated_state(self) -> dict[str, Tensor]:
        return {"count": self.count}

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        self.count.copy_(state["count"])


class Bench:
    """A worker with a chain of so many rounds on its disk, and a snapshot that was fetched."""

    def __init__(self, home: Path, snapshot_round: int, rules: Rules = RULES) -> None:
        self.rules = rules
        self.store = Store.open(home)
        self.marks = self._write_chain()
        self.method = Counting()
        self.snapshots = Snapshots(home, self.store, rules.snapshot_every)
        self.attachments = Attachments(home, self.store)
        self.local = LocalState(home)
        self.notes: list[str] = []
        self.events: list[Event] = []
        self.told = threading.Condition()
        self.loading = threading.Semaphore(1)
        trainer = Trainer(
            self.method,  # type: ignore[arg-type]
            lambda: 0.0,
            lambda: {"count": torch.zeros(1, dtype=torch.int64)},
        )
        setting = Setting(RunId(RUN), ME, (ME,), rules)
        reports = Reports(
            self._post, lambda to, message: None, lambda note: self.notes.append(note.event), _fail,
            lambda what, done, total: None, lambda seconds: None,
        )  # fmt: skip

        def make() -> Trainer:
            self.loading.acquire()
            return trainer

        def worker() -> TrainingWorker:
            return TrainingWorker(
                make, setting, self.store, self.snapshots, self.attachments, self.local, reports
            )

        self.worker, self._new_worker = worker(), worker
        self.snapshot = self._fetched(snapshot_round)

    def again(self) -> TrainingWorker:
        """As after a start, when the trainer is there; nothing is asked of it yet."""
        self.method.mine = 0
        self.loading.release()
        worker = self._new_worker()
        worker.start()
        assert worker._is_ready.wait(60)
        return worker

    def _write_chain(self) -> list[Mark]:
        mark = genesis([ME])
        ledger, marks = Ledger(judge(self.rules), [ME]), [mark]
        for _ in range(ROUNDS):
            self.store.commit(ledger.extend(entry(ledger.head, ME)))
            marks.append(ledger.head)
        return marks

    def _fetched(self, round: int) -> SnapshotAt:
        meta = {"format": "1", "run": RUN.hex(), "round": str(round)}
        meta["entry"] = self.marks[round].hash.hex()
        stream = StateStream({"count": torch.tensor([round])}, meta)
        names = chunk_id(stream.chunk(0))
        root = root_of(stream.size, names)
        self.snapshots.files.open(Blob(root, stream.size, names))
        self.snapshots.files.put(root, 0, stream.chunk(0))
        return SnapshotAt(round, root)

    def _post(self, event: Event) -> None:
        with self.told:
            self.events.append(event)
            self.told.notify_all()

    def rebuild(self) -> None:
        head = self.marks[-1]
        self.worker.rebuild(
            Rebuild(head.round, head.hash, switched=False, from_scratch=False, reason="start")
        )

    def let_through(self, merges: int) -> None:
        for _ in range(merges):
            self.method.gate.release()

    def of(self, kind: type[Event]) -> list[Event]:
        return [event for event in self.events if isinstance(event, kind)]

    def wait_until(self, done: Callable[[], bool]) -> bool:
        with self.told:
            return self.told.wait_for(done, 60)

    def wait_for(self, kind: type[Event]) -> Event:
        with self.told:
            found = self.told.wait_for(
                lambda: next((one for one in self.events if isinstance(one, kind)), None), 60
            )
        assert found is not None
        return found


def _fail(error: BaseException) -> None:
    raise error


@pytest.fixture
def bench(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Bench]:
    args = request.param if isinstance(request.param, tuple) else (request.param,)
    bench = Bench(tmp_path / "home", *args)
    yield bench
    bench.loading.release()
    bench.let_through(10 * ROUNDS)
    bench.worker.close(30.0)
    bench.store.close()


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_a_snapshot_may_come_while_the_model_loads(bench: Bench) -> None:
    """What is behind is told at once, without a pace that nobody measured (P7)."""
    bench.loading.acquire()
    bench.worker.start()
    bench.rebuild()
    assert bench.wait_for(Behind) == Behind(0, ROUNDS, None, ())
    bench.worker.restore(Restore(bench.snapshot))
    bench.let_through(ROUNDS - 50)
    bench.loading.release()
    assert bench.wait_for(Applied) == Applied(ROUNDS, bench.marks[-1].hash, ROUNDS)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_a_model_that_cannot_be_loaded_ends_the_process(bench: Bench) -> None:
    failed: list[BaseException] = []
    told = threading.Event()

    def fail(error: BaseException) -> None:
        failed.append(error)
        told.set()

    def make() -> Trainer:
        raise ValueError("no such model")

    reports = Reports(
        bench._post, lambda to, message: None, lambda note: None, fail,
        lambda what, done, total: None, lambda seconds: None,
    )  # fmt: skip
    setting = Setting(RunId(RUN), ME, (ME,), bench.rules)
    worker = TrainingWorker(
        make, setting, bench.store, bench.snapshots, bench.attachments, bench.local, reports
    )
    bench.worker.start()
    worker.start()
    assert told.wait(60)
    assert worker.close(30.0)
    assert [str(error) for error in failed] == ["no such model"]


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_what_is_this_machine_s_alone_outlives_the_process(bench: Bench) -> None:
    """P3: late work and feedback are there again after a stop."""
    bench.worker.start()
    bench.rebuild()
    bench.let_through(ROUNDS)
    bench.wait_for(Applied)
    bench.method.mine = 7
    assert bench.worker.close(60.0)
    assert bench.local.load() == {"mine": torch.tensor([7])}
    bench.again().close(60.0)
    assert bench.method.mine == 7


@pytest.mark.parametrize("bench", [50], indirect=True)
@pytest.mark.parametrize("damaged", [False, True])
def test_what_another_method_or_a_bad_disk_left_is_not_loaded(
    bench: Bench, damaged: bool, tmp_path: Path
) -> None:
    bench.local.save({"other": torch.tensor([1])})
    if damaged:
        (tmp_path / "home" / FILE).write_bytes(b"no such file")
    bench.worker.start()
    bench.rebuild()
    bench.let_through(ROUNDS)
    bench.wait_for(Applied)
    assert bench.notes == ["local-state-unusable"]


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_a_place_is_hashed_once(bench: Bench) -> None:
    """For what the others are told, and for the contribution made there."""
    bench.worker.start()
    bench.rebuild()
    bench.let_through(ROUNDS)
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    bench.wait_for(WorkDone)
    assert bench.method.digests == 1


@pytest.mark.parametrize("bench", [50], indirect=True)
@pytest.mark.parametrize("late_s", [0.0, RULES.window_ms / 1000])
def test_who_comes_to_a_round_late_works_for_what_is_left_of_it(
    bench: Bench, late_s: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: now_s[0])
    bench.worker.start()
    bench.worker.hold(Hold())
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    now_s[0] = late_s
    bench.let_through(ROUNDS)
    bench.worker.restore(Restore(bench.snapshot))
    bench.wait_for(WorkDone)
    assert bench.method.was_over == (late_s > 0)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_who_was_mended_on_the_way_goes_on(bench: Bench) -> None:
    bench.worker.start()
    bench.rebuild()
    assert bench.method.waits.wait(60)
    bench.worker.patch(Patch(1, bench.marks[1].hash, ()))
    bench.let_through(ROUNDS)
    bench.wait_for(Patched)
    reached = [Applied(1, bench.marks[1].hash, 1), Applied(ROUNDS, bench.marks[-1].hash, ROUNDS)]
    assert bench.wait_until(
        lambda: [one for one in bench.events if type(one) is Applied] == reached
    )


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_a_snapshot_cuts_a_replay_short(bench: Bench) -> None:
    """It came while the first of many rounds was merged: the rest up to it are not."""
    bench.worker.start()
    bench.rebuild()
    assert bench.method.waits.wait(60)
    bench.worker.restore(Restore(bench.snapshot))
    bench.let_through(1 + ROUNDS - 50)
    applied = bench.wait_for(Applied)
    assert applied == Applied(ROUNDS, bench.marks[-1].hash, ROUNDS)


@pytest.mark.parametrize("bench", [(10, replace(RULES, snapshot_every=10))], indirect=True)
@pytest.mark.parametrize(("start", "written"), [(0, [10, 30, 50, 60]), (10, [30, 50, 60])])
def test_who_is_far_behind_writes_every_other_snapshot(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, start: int, written: list[int]
) -> None:
    """Here each is written at once: a slow disk skips some anyway."""
    taken: list[int] = []

    def take_at_once(keeper: StateKeeper) -> bool:
        taken.append(keeper.replica.round)
        keeper._snapshot(_Taking(keeper.replica.place, keeper.replica.stream()))
        return True

    monkeypatch.setattr(StateKeeper, "take_snapshot", take_at_once)
    bench.worker.start()
    bench.rebuild()
    assert bench.method.waits.wait(60)
    if start:
        bench.worker.restore(Restore(bench.snapshot))
    bench.let_through(1 + ROUNDS - start)
    bench.wait_for(Applied)
    assert taken == written  # and the head's, which is everybody's to name


@pytest.mark.parametrize("bench", [2], indirect=True)
def test_a_snapshot_that_comes_too_late_does_not_lead_back(bench: Bench) -> None:
    bench.worker.start()
    bench.rebuild()
    bench.let_through(5)
    while int(bench.method.count) < 5:
        bench.method.waits.wait(60)
    bench.worker.restore(Restore(bench.snapshot))
    bench.let_through(ROUNDS - 5)
    assert bench.wait_for(Applied) == Applied(ROUNDS, bench.marks[-1].hash, ROUNDS)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_work_that_waited_for_a_snapshot_is_done(bench: Bench) -> None:
    """P4: whoever is alone closes no round without it."""
    bench.worker.start()
    bench.worker.hold(Hold())
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    bench.let_through(ROUNDS)
    bench.worker.restore(Restore(bench.snapshot))
    done = bench.wait_for(WorkDone)
    assert isinstance(done, WorkDone)
    assert (done.round, done.parent, done.state) == (ROUNDS, Hash(head.hash), ROUNDS)


@pytest.mark.parametrize("bench", [50], indirect=True)
@pytest.mark.parametrize("late_ms", [0, RULES.window_ms])
def test_who_comes_late_to_a_round_has_less_time(bench: Bench, late_ms: int) -> None:
    """P4: the others are not kept waiting."""
    bench.worker.start()
    bench.let_through(ROUNDS)
    bench.rebuild()
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), False, late_ms))
    bench.wait_for(WorkDone)
    assert bench.method.was_over == (late_ms > 0)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_an_overdue_round_leaves_nobody_idle(bench: Bench) -> None:
    """What is asked for meanwhile is done at once."""
    bench.worker.start()
    bench.let_through(ROUNDS)
    bench.rebuild()
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    assert bench.method.went_on.wait(60)
    bench.events.clear()
    bench.rebuild()
    bench.wait_for(Applied)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_overtime_is_not_added_to_the_next_window(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """P4: a probe that began before the next round opened ends when that window is over."""
    clock = [1_000.0]
    monkeypatch.setattr("node.worker.time.monotonic", lambda: clock[0])
    bench.worker.start()
    bench.let_through(ROUNDS)
    bench.rebuild()
    head = bench.marks[-1]
    task = StartWork(head.round, head.hash, (PeerId(ME),), heldout=False)

    def probe(round: RoundContext) -> None:
        bench.worker.start_work(task)
        clock[0] += RULES.window_ms / 1000

    monkeypatch.setattr(bench.method, "overtime", probe)
    bench.worker.start_work(task)
    with bench.told:
        assert bench.told.wait_for(lambda: len(bench.of(WorkDone)) == 2, 60)
    assert bench.method.was_over


PATIENT = Rules(
    snapshot_every=1_000,
    window_ms=3_600_000,
    deadline_floor_ms=3_600_000,
    deadline_ceiling_ms=7_200_000,
)


@pytest.fixture
def patient(bench: Bench) -> Bench:
    """No round is overdue for an hour."""
    bench.method.goes_on = GoesOn.AT_ONCE
    bench.worker.start()
    bench.let_through(ROUNDS)
    bench.rebuild()
    return bench


@pytest.mark.parametrize("bench", [(50, PATIENT)], indirect=True)
def test_who_overlaps_goes_on_at_once_and_again_after_other_things(patient: Bench) -> None:
    """Exchange takes its time; nothing but the next round ends the steps for it."""
    head = patient.marks[-1]
    patient.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    assert patient.method.went_on.wait(60)
    patient.method.went_on.clear()
    patient.worker.give_back(GiveBack(head.round - 1, b"late", None))
    assert patient.method.given_back.wait(60)
    assert patient.method.went_on.wait(60)


class Watched(queue.SimpleQueue[Any]):
    """What is asked of the worker; tells when it waits for that, as long as it takes."""

    def __init__(self, waits: Callable[[], None]) -> None:
        self._waits = waits

    def get(self, block: bool = True, timeout: float | None = None) -> object:
        if timeout is None and self.empty():
            self._waits()
        return super().get(block, timeout)


@pytest.mark.parametrize("goes_on", [GoesOn.AT_ONCE, GoesOn.WHEN_OVERDUE])
@pytest.mark.parametrize("bench", [50], indirect=True)
def test_who_is_led_to_another_branch_does_not_go_on_there(
    bench: Bench, goes_on: GoesOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same round is open on both, and work was handed in on one.

    1. At the head the work is handed in, and the worker goes on for the next round.
    2. A heavier branch has another last entry: the state is led there.
    3. Nothing was handed in there, so it waits to be asked.
    4. It is asked, hands in, and goes on.
    """
    seen: list[str] = []

    def see(what: str) -> None:
        with bench.told:
            seen.append(what)
            bench.told.notify_all()

    go_on = bench.method.overtime

    def steps(round: RoundContext) -> None:
        see("goes on")
        go_on(round)

    def start_work() -> None:
        head = bench.marks[-1]
        task = StartWork(head.round, head.hash, (PeerId(ME),), heldout=False)
        bench.worker.start_work(task)

    bench.method.goes_on = goes_on
    monkeypatch.setattr(bench.method, "overtime", steps)
    bench.worker._commands = Watched(lambda: see("waits"))
    bench.worker.start()
    bench.let_through(ROUNDS)
    bench.rebuild()
    start_work()
    assert bench.wait_until(lambda: "goes on" in seen)

    bench.marks.pop()
    ledger = Ledger(judge(bench.rules), [ME], bench.marks)
    bench.store.commit(ledger.extend(entry(ledger.head, ME, payload=b"8 bytes!" * 2)))
    bench.marks.append(ledger.head)
    bench.method.waits.clear()
    bench.rebuild()
    assert bench.method.waits.wait(60)
    seen.clear()
    bench.let_through(ROUNDS)
    assert bench.wait_until(lambda: bool(seen))
    assert bench.of(Applied)[-1] == Applied(ROUNDS, ledger.head.hash, ROUNDS)
    assert seen == ["waits"]

    start_work()
    assert bench.wait_until(lambda: "goes on" in seen)


@pytest.mark.parametrize("bench", [(50, PATIENT)], indirect=True)
def test_what_overlaps_is_part_of_the_next_window(
    patient: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rounds keep their pace: who went on for a whole window hands in at once."""
    clock = [1_000.0]
    monkeypatch.setattr("node.worker.time.monotonic", lambda: clock[0])
    head = patient.marks[-1]
    task = StartWork(head.round, head.hash, (PeerId(ME),), heldout=False)

    go_on = patient.method.overtime

    def steps(round: RoundContext) -> None:
        if clock[0] == 1_000.0:
            clock[0] += PATIENT.window_ms / 1000
            patient.worker.start_work(task)
        go_on(round)

    monkeypatch.setattr(patient.method, "overtime", steps)
    patient.worker.start_work(task)
    with patient.told:
        assert patient.told.wait_for(lambda: len(patient.of(WorkDone)) == 2, 60)
    assert patient.method.was_over


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_what_lacks_is_told_and_waited_for(bench: Bench) -> None:
    """P2: a round is merged whole or not at all; what is asked for meanwhile is done afterwards."""
    data = bytes(300_000)
    names = chunk_id(data[:CHUNK_BYTES]) + chunk_id(data[CHUNK_BYTES:])
    attached = Attachment(root_of(len(data), names), len(data))
    rules = replace(RULES, attachment_bytes_max=len(data))
    ledger = Ledger(judge(rules), [ME], bench.marks)
    bench.store.commit(ledger.extend(closed(ledger.head, ME, ME, attached)))
    bench.marks.append(ledger.head)
    bench.worker.start()
    bench.rebuild()
    head = bench.marks[-1]
    bench.worker.start_work(StartWork(head.round, head.hash, (PeerId(ME),), heldout=False))
    bench.let_through(ROUNDS + 1)
    lacking = (attached,)
    assert bench.wait_until(
        lambda: Behind(ROUNDS, ROUNDS + 1, None, (), lacking) in bench.of(Behind)
    )
    assert not bench.of(Applied)
    assert bench.attachments.add(ROUNDS, data) == attached
    bench.worker.proceed(Proceed())
    assert bench.wait_for(Applied) == Applied(ROUNDS + 1, head.hash, ROUNDS + 1)
    bench.wait_for(WorkDone)


@pytest.mark.parametrize("bench", [50], indirect=True)
def test_only_who_is_first_answers_for_a_sum(bench: Bench) -> None:
    """P3: what rounding takes away is kept by one. A part that is gone is told."""
    seen: list[tuple[int | None, int, list[bytes]]] = []

    def add_up(round: RoundContext, number: int, contributions: Sequence[Contribution]) -> bytes:
        seen.append((round.answers_for, number, [one.attachment for one in contributions]))
        return b"sum"

    method = bench.method
    method.add_up = method.check_sum = method.merge_sums = add_up  # type: ignore[attr-defined]
    part = bench.attachments.put(0, b"part")
    one = closed(bench.marks[-1], ME, ME, whole_of((part,)))
    name = SumName(one.hash, 0)
    bench.worker.start()
    for is_first in (True, False):
        bench.worker.add_up(AddUp(name, one, (PeerId(ME),), (part,), is_first))
    bench.worker.add_up(AddUp(name, one, (PeerId(ME),), (Attachment(name.entry, 9),), True))
    assert bench.wait_until(lambda: len(bench.of(Summed)) == 3)
    made, again, none = bench.of(Summed)
    assert isinstance(made, Summed)
    assert made.sum is not None
    assert bench.attachments.read(made.sum) == b"sum"
    assert (made, none) == (again, Summed(name, None))
    assert seen == [(0, 0, [b"part"]), (None, 0, [b"part"])]
