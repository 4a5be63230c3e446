"""The protocol's way to a model that is still being loaded: what it wishes is kept until then.

Torch takes seconds to import, and nobody who joins waits for that.
"""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from protocol.effects import Gossip, ModelFetched
from protocol.ids import PeerId

if TYPE_CHECKING:
    from node.gossip.gossiper import TrainingGossiper

ASKED_BY_PEOPLE: Final = 1 << 16  # numbers of questions from here on are not the trainer's own


@dataclass(slots=True)
class GossipPort:
    """A `Gossiper`. Safe to call from several threads."""

    _lock: threading.Lock = field(default_factory=threading.Lock)
    _kept: list[Gossip] = field(default_factory=list)
    _live: "TrainingGossiper | None" = None
    _asked: dict[tuple[PeerId, int], Callable[[ModelFetched], None]] = field(default_factory=dict)
    _sequence: int = ASKED_BY_PEOPLE
    _has_begun: bool = False

    def do(self, wish: Gossip) -> None:
        if isinstance(wish, ModelFetched) and wish.sequence > ASKED_BY_PEOPLE:
            waiting = self._asked.pop((wish.peer, wish.sequence), None)
            if waiting is not None:
                waiting(wish)
            return
        with self._lock:
            if self._live is None:
                self._kept.append(wish)
            else:
                self._live.do(wish)

    def attach(self, live: "TrainingGossiper") -> None:
        with self._lock:
            self._live = live
            for wish in self._kept:
                live.do(wish)
            self._kept.clear()
            if self._has_begun:
                live.start()

    def begin(self) -> None:
        """The protocol listens from now on."""
        with self._lock:
            self._has_begun = True
            if self._live is not None:
                self._live.start()

    def close(self, timeout_s: float) -> None:
        with self._lock:
            self._has_begun = False
        if self._live is not None:
            self._live.close(timeout_s)

    def expect(self, peer: PeerId, done: Callable[[ModelFetched], None]) -> int:
        """The number of a question for a model; `done` is called with its answer."""
        with self._lock:
            self._sequence += 1
            self._asked[peer, self._sequence] = done
            return self._sequence

    def expect_no_more(self, peer: PeerId, sequence: int) -> None:
        """Its answer would come too late."""
        self._asked.pop((peer, sequence), None)

    @property
    def model_bytes(self) -> int | None:
        """Of a whole model; None while ours is being loaded."""
        return None if self._live is None else self._live.model_bytes

    def facts(self) -> dict[str, Any]:
        """For people."""
        return {"gossip_activity": "loading"} if self._live is None else self._live.facts()
