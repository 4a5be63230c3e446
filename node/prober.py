"""Answers other members' check-ups, and puts our own questions to them."""

import asyncio
import contextlib
import itertools
import queue
import threading
import time
from collections.abc import Callable
from typing import Final

from node.curve import CurveKeys
from node.dialback import dial
from protocol.effects import Answer, EchoBack, TryDial
from protocol.events import Ask, Dialled, Event
from protocol.ids import PeerId
from protocol.messages import DialBack, DialledBack, Echo, Echoed

_DIALS_WAITING: Final = 8
_DIALBACK_S: Final = 30.0  # eight addresses, three seconds each, and the way


def wall_ms() -> int:
    return time.time_ns() // 1_000_000


class NodeProber:
    """All methods but `_dial_all` run on the driver's loop."""

    def __init__(self, post: Callable[[Event], None], keys: CurveKeys) -> None:
        self._post, self._keys = post, keys
        self._sequences = itertools.count(1)
        self._waiting: dict[tuple[PeerId, int], asyncio.Future[DialledBack | Echoed]] = {}
        self._tasks: queue.Queue[TryDial] = queue.Queue(_DIALS_WAITING)
        self._thread: threading.Thread | None = None

    # For others

    def try_dial(self, task: TryDial) -> None:
        if self._thread is None:
            self._thread = threading.Thread(target=self._dial_all, name="peer-dial", daemon=True)
            self._thread.start()
        with contextlib.suppress(queue.Full):  # whoever asked waits no longer than it wants to
            self._tasks.put_nowait(task)

    def _dial_all(self) -> None:
        while True:
            task = self._tasks.get()
            ways = tuple(dial(task.to, task.card.addresses, self._keys))
            self._post(Dialled(task.to, task.sequence, ways))

    def echo(self, task: EchoBack) -> tuple[int, bytes]:
        return wall_ms(), bytes(task.want)

    # For ourselves

    def answered(self, answer: Answer) -> None:
        waiting = self._waiting.pop((answer.source, answer.message.sequence), None)
        if waiting is not None and not waiting.done():
            waiting.set_result(answer.message)

    async def dial_back(self, member: PeerId, wait_s: float = _DIALBACK_S) -> DialledBack | None:
        """What worked from there; None if it did not say."""
        answer = await self._ask(member, DialBack(next(self._sequences)), wait_s)
        return answer if isinstance(answer, DialledBack) else None

    async def echo_from(
        self, member: PeerId, want: int, filler: bytes, wait_s: float
    ) -> Echoed | None:
        answer = await self._ask(member, Echo(next(self._sequences), want, filler), wait_s)
        return answer if isinstance(answer, Echoed) and len(answer.filler) == want else None

    async def _ask(
        self, member: PeerId, message: DialBack | Echo, wait_s: float
    ) -> DialledBack | Echoed | None:
        key = member, message.sequence
        self._waiting[key] = waiting = asyncio.get_running_loop().create_future()
        self._post(Ask(member, message))
        try:
            return await asyncio.wait_for(waiting, wait_s)
        except TimeoutError:
            return None
        finally:
            self._waiting.pop(key, None)
