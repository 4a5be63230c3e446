"""A comparison from a run file to a report: plans, trains what is not on disk yet, keeps it there.

Cells are independent, so several processes may train them, each on one core. Only the process that
was asked writes.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import closing, contextmanager
from dataclasses import dataclass
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
from typing import Final

import torch

from node.build import Workshop
from node.compare import plan
from node.compare.records import Cell, Outcome, Task
from node.compare.report import Report, report
from node.compare.shelf import Shelf
from node.compare.supply import Supply
from node.compare.trial import contender_for, train
from node.config import NodeConfig, RunFile
from node.durable import write_atomically
from node.errors import UserError
from node.training.data_config import DataConfig

REPORT: Final = "methods.json"
_LOOK_S: Final = 0.5  # how often other processes' progress is looked at


@dataclass(frozen=True, slots=True)
class Wishes:
    """What was asked for."""

    run_file: RunFile
    node: NodeConfig
    root: Path
    out: Path
    peers: int
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    methods: tuple[str, ...] | None = None
    rates: Mapping[str, tuple[str, ...]] | None = None
    total_steps: int | None = None
    tokens: int | None = None
    jobs: int = 1
    split: bool = False


@dataclass(frozen=True, slots=True)
class Progress:
    cells: int  # finished
    cells_asked: int
    cell: str  # what is being trained, in words
    batches: int  # micro-batches of all peers and cells, gone through in this process' life
    batches_asked: int


class Comparison:
    def __init__(self, wishes: Wishes) -> None:
        """Loads model and data. Raises UserError for everything that would end it later."""
        run_file, node = wishes.run_file, wishes.node
        self._wishes = wishes
        # What one machine holds is not private to any of the peers that it plays.
        data = run_file.data.model_copy(update={"private": False})
        self._workshop = Workshop.open(run_file.model, data, node, wishes.root)
        self._task, self.cells = self._planned(data)
        self._try_out()
        self._shelf = Shelf(wishes.out, self._task)
        self._done = self._shelf.get(self.cells)

    def _planned(self, data: DataConfig) -> tuple[Task, list[Cell]]:
        wishes, workshop = self._wishes, self._workshop
        inner = plan.inner_of(wishes.run_file)
        entrants = plan.entrants(wishes.run_file, wishes.methods)
        batches = plan.batches_for(
            wishes.total_steps,
            wishes.tokens,
            tokens_a_batch=workshop.data.batch(0).targets.numel(),
            peers=wishes.peers,
            inner=inner,
            intervals=[i for one in entrants for i, _ in plan.paced(one, wishes.steps)],
        )
        digest = workshop.data_digest()
        assert digest is not None, "the data are not private"
        task = Task(
            model=wishes.run_file.model,
            model_digest=workshop.model_digest().hex(),
            data=data,
            data_digest=digest.hex(),
            inner=inner,
            optimizer=wishes.node.optimizer,
            peers=wishes.peers,
            batches=batches,
            device=workshop.device.type,
            split=wishes.split,
        )
        rates = wishes.rates or {}
        return task, plan.cells(entrants, wishes.steps, rates, wishes.seeds, batches, inner)

    def _try_out(self) -> None:
        """Is the model one that the baseline and each method can train?"""
        supply = Supply(self._workshop.data, 0, self._task.parts)
        alone = self._task.model_copy(update={"peers": 1})
        for method in {cell.label: cell.method for cell in self.cells}.values():
            contender_for(alone, method, 1, self._workshop, self._workshop.model.module, supply)

    def run(self, tell: Callable[[Progress], None]) -> bool:
        """Train what is missing. False when Ctrl-C ended it: what is finished is kept."""
        left = [cell for cell in self.cells if cell not in self._done]
        each = self._task.batches * self._task.peers
        asked = len(left) * each

        def told(cell: str, batches: int) -> None:
            tell(Progress(len(self._done), len(self.cells), cell, batches, asked))

        finished = self._parallel if min(self._wishes.jobs, len(left)) > 1 else self._serial
        try:
            with closing(finished(left, told)) as outcomes:
                for cell, outcome in outcomes:
                    self._shelf.put(cell, outcome)
                    self._done[cell] = outcome
                    self.write()
        except KeyboardInterrupt:
            return False
        except BrokenProcessPool as error:
            raise UserError(
                "a process that trained ended by itself", "if memory was short, lower --jobs"
            ) from error
        return True

    def report(self) -> Report:
        wishes = self._wishes
        machine = {
            "torch": torch.__version__,
            "device": str(self._workshop.device),
            "threads": torch.get_num_threads(),
            "jobs": wishes.jobs,
        }
        return report(wishes.run_file.name, self._task, self.cells, self._done, machine)

    def write(self) -> Path:
        path = self._wishes.out / REPORT
        text = self.report().model_dump_json(indent=1)
        write_atomically(path, lambda to: to.write_text(text, "utf-8"), mode=0o644)
        return path

    # Who trains

    def _serial(
        self, left: Sequence[Cell], tell: Callable[[str, int], None]
    ) -> Generator[tuple[Cell, Outcome]]:
        batches = 0
        for cell in left:
            name = in_words(cell, self._task)

            def moved(more: int, name: str = name) -> None:
                nonlocal batches
                batches += more
                tell(name, batches)

            yield cell, train(self._task, cell, self._workshop, moved)

    def _parallel(
        self, left: Sequence[Cell], tell: Callable[[str, int], None]
    ) -> Generator[tuple[Cell, Outcome]]:
        context = multiprocessing.get_context("spawn")  # torch's threads do not survive a fork
        counter = context.Value("q", 0)
        wishes, jobs = self._wishes, min(self._wishes.jobs, len(left))
        setup = (self._task, wishes.node, wishes.root, counter)
        with _ending(ProcessPoolExecutor(jobs, context, _open, setup)) as pool:
            running = {pool.submit(_train, cell): cell for cell in left}
            while running:
                ready, _ = wait(running, _LOOK_S, FIRST_COMPLETED)
                tell(f"{min(jobs, len(running))} at a time", counter.value)
                for future in ready:
                    yield running.pop(future), future.result()


def in_words(cell: Cell, task: Task) -> str:
    if cell.method is None:
        return f"{cell.label} seed {cell.seed}"
    rate = "" if cell.rate is None else f" rate {cell.rate}"
    return f"{cell.label} H {cell.interval / task.inner.accumulation:g}{rate} seed {cell.seed}"


# Processes that train for another


@contextmanager
def _ending(pool: ProcessPoolExecutor) -> Iterator[ProcessPoolExecutor]:
    """Whatever ends it early ends its processes, too, in the middle of their cells."""
    before = multiprocessing.active_children()
    try:
        yield pool
    except BaseException:
        for child in multiprocessing.active_children():
            if child not in before:
                child.terminate()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


_trains: Callable[[Cell], Outcome]  # in such a process, once it is open


def _open(task: Task, node: NodeConfig, root: Path, counter: "Synchronized[int]") -> None:
    global _trains
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that was asked
    threading.Thread(target=_end_with_parent, daemon=True).start()
    workshop = Workshop.open(task.model, task.data, node, root)

    def moved(batches: int) -> None:
        with counter.get_lock():
            counter.value += batches

    def trains(cell: Cell) -> Outcome:
        return train(task, cell, workshop, moved)

    _trains = trains


def _end_with_parent() -> None:
    """Killed, it ends no others; and what they train, nobody would take."""
    parent = multiprocessing.parent_process()
    assert parent is not None, "the pool started this one"
    parent.join()
    os._exit(1)


def _train(cell: Cell) -> Outcome:
    return _trains(cell)
