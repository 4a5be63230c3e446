"""The daemon's loop: wait for an event or a deadline, ask the peer, do what it wants.

One thread, on uvloop, owns the protocol and the disk; the transport and the trainer have threads of
their own and post events here. Nothing in this file knows what state the protocol is in.
"""

import asyncio
import logging
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, Final

from node.metrics import Metrics
from node.perform import Shell, perform
from node.ports import Worker
from node.stats import Stats
from node.telemetry import EventLog, Level
from node.transport_zmq import Inbound, ZmqTransport
from protocol.effects import (
    AddUp,
    Apply,
    GiveBack,
    Halt,
    Hold,
    Note,
    Patch,
    Proceed,
    Rebuild,
    Restore,
    ServeMend,
    StartWork,
    TakeChecks,
)
from protocol.entries import Card
from protocol.events import Applied, Event, Received, StopAsked, Tick, WorkDone
from protocol.ids import Millis, PeerId
from protocol.peer import Peer

_TRAFFIC_MS: Final = 1_000
_EVENTS_AT_ONCE: Final = 512  # then signals and the control socket get their turn
_LEVELS: Final = {
    "debug": Level.DEBUG,
    "info": Level.INFO,
    "warning": Level.WARN,
    "error": Level.ERROR,
}
_log = logging.getLogger(__name__)


def now_ms() -> Millis:
    """Monotonic: a clock that jumps moves nothing here."""
    return Millis(time.monotonic_ns() // 1_000_000)


class TransportPort:
    """The transport, as effects see it."""

    def __init__(self, transport: ZmqTransport) -> None:
        self._transport = transport

    def connect(self, card: Card) -> None:
        self._transport.set_peer(card.peer, card.addresses)

    def disconnect(self, peer: PeerId) -> None:
        self._transport.forget(peer)

    def send(self, to: bytes, data: bytes) -> None:
        self._transport.send(to, data)


class ObservedWorker:
    """The trainer, with an eye on what goes through."""

    def __init__(self, worker: Worker, stats: Stats, log: EventLog) -> None:
        self._worker, self._stats, self._log = worker, stats, log

    def start_work(self, task: StartWork) -> None:
        self._stats.activity = "training"
        self._worker.start_work(task)

    def stop_work(self) -> None:
        self._worker.stop_work()

    def apply(self, task: Apply) -> None:
        self._stats.closed(task.entry)
        body = task.entry.body
        self._log.info(
            "round",
            round=body.round,
            entry=task.entry.hash,
            closer=task.seats[body.closer],
            contributions=len(body.lines),
            members=len(task.seats),
            took_ms=body.took_ms,
        )
        self._worker.apply(task)

    def add_up(self, task: AddUp) -> None:
        self._worker.add_up(task)

    def rebuild(self, task: Rebuild) -> None:
        self._stats.activity = f"rebuilding: {task.reason}"
        self._worker.rebuild(task)

    def give_back(self, task: GiveBack) -> None:
        self._stats.late += 1
        self._worker.give_back(task)

    def proceed(self, task: Proceed) -> None:
        self._worker.proceed(task)

    def hold(self, task: Hold) -> None:
        self._stats.activity = "waiting for a snapshot"
        self._worker.hold(task)

    def restore(self, task: Restore) -> None:
        self._stats.activity = f"loading the snapshot of round {task.snapshot.round}"
        self._worker.restore(task)

    def take_checks(self, task: TakeChecks) -> None:
        self._worker.take_checks(task)

    def serve_mend(self, task: ServeMend) -> None:
        self._worker.serve_mend(task)

    def patch(self, task: Patch) -> None:
        self._worker.patch(task)


class NodeWatcher:
    """Notes go to the log and the metrics; a halt ends the driver."""

    def __init__(
        self, log: EventLog, stats: Stats, metrics: Metrics, tell: Callable[[str], None]
    ) -> None:
        self._log, self._stats, self._metrics, self._tell = log, stats, metrics, tell
        self.halted: Halt | None = None

    def note(self, note: Note) -> None:
        if note.event == "digest-mismatch":
            self._stats.mismatches += 1
            self._metrics.add("peer_digest_mismatches")
        elif note.event == "switched":
            self._stats.switches += 1
        elif note.event == "repaired":
            self._stats.repairs += 1
            self._metrics.add("peer_repairs")
        elif note.event == "fetching-snapshot":
            self._stats.activity = fetching(note.fields)
            self._tell(self._stats.activity)
        elif note.event == "snapshot-fetched":
            self._tell(f"loading the snapshot of round {note.fields['round']}")
        elif note.event == "catching-up":
            self._tell(f"catching up by {note.fields['way']}: {note.fields['why']}")
        elif note.event == "caught-up":
            self._tell(caught_up(note.fields))
        self._log.emit(_LEVELS[note.level], note.event, note.fields)

    def halt(self, halt: Halt) -> None:
        self._log.info("halt", reason=halt.reason, clean=halt.clean)
        self.halted = halt


def caught_up(fields: Mapping[str, Any]) -> str:
    return f"caught up with round {fields['round']} after {fields['took_ms'] / 1000:.1f} s"


def fetching(fields: Mapping[str, Any]) -> str:
    """Progress of a snapshot on its way here, for a person."""
    total, missing = fields["bytes"], fields["missing_bytes"]
    if total is None or missing is None:
        return f"looking for somebody with the snapshot of round {fields['round']}"
    rate, left = fields["bytes_per_s"], fields["left_s"]
    pace = "rate unknown" if rate is None else f"{rate / 1e6:.1f} MB/s, {left:.0f} s left"
    return (
        f"fetching the snapshot of round {fields['round']}: {(total - missing) / 1e6:.1f} of"
        f" {total / 1e6:.1f} MB from {fields['holders']} members, {pace}"
    )


class Driver:
    """Runs one peer until it halts. Other threads call `post` and `receive`."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._events: deque[Event] = deque()
        self._wake: asyncio.Event | None = None
        self._failure: BaseException | None = None
        self._signals = 0

    def post(self, event: Event) -> None:
        self._events.append(event)
        self._ring()

    def receive(self, batch: list[Inbound]) -> None:
        wall_s = int(time.time())
        self._events.extend(Received(item.source, item.data, wall_s) for item in batch)
        self._ring()

    def fail(self, error: BaseException) -> None:
        """A thread ended with a bug or a full disk: so do we."""
        self._failure = error
        self._ring()

    def _ring(self) -> None:
        loop, wake = self._loop, self._wake
        if loop is None or wake is None:
            return
        try:
            loop.call_soon_threadsafe(wake.set)
        except RuntimeError:
            _log.debug("an event came after the loop had ended")

    async def run(
        self,
        peer: Peer,
        shell: Shell,
        watcher: NodeWatcher,
        stats: Stats,
        traffic: Callable[[], None],
    ) -> Halt:
        """Raises what a thread failed with, or StoreError for a disk that takes no more."""
        self._loop, self._wake = asyncio.get_running_loop(), asyncio.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._loop.add_signal_handler(number, self._interrupt)
        counted_ms = now_ms()
        while watcher.halted is None:
            if self._failure is not None:
                raise self._failure
            self._wake.clear()
            if not self._events:
                await self._sleep(peer, counted_ms + _TRAFFIC_MS)
            for _ in range(min(len(self._events), _EVENTS_AT_ONCE) or 1):
                event = self._events.popleft() if self._events else Tick()
                if isinstance(event, Applied):
                    stats.applied(event.round, event.state)
                elif isinstance(event, WorkDone):
                    stats.worked(event.payload)
                perform(peer.handle(event, now_ms()), shell)
                if watcher.halted is not None:
                    break
            if now_ms() - counted_ms >= _TRAFFIC_MS:
                counted_ms = now_ms()
                traffic()
            await asyncio.sleep(0)
        return watcher.halted

    async def _sleep(self, peer: Peer, at_most_ms: int) -> None:
        assert self._wake is not None
        wake_ms = peer.wake_ms
        until = at_most_ms if wake_ms is None else min(wake_ms, at_most_ms)
        left_s = max(0, until - now_ms()) / 1000
        try:
            await asyncio.wait_for(self._wake.wait(), left_s)
        except TimeoutError:
            return

    def _interrupt(self) -> None:
        """Once: leave in good order. Twice: at once; what is committed is on disk."""
        self._signals += 1
        if self._signals > 1:
            os._exit(130)
        self.post(StopAsked())
