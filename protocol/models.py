"""A member's model as it is now, for a newcomer to start from, or for whoever merges all of them.

It is put on its owner's disk as a blob and fetched as one: in chunks that are checked by name, by
the same ways and caps as all blobs.
"""

from dataclasses import dataclass, field
from typing import Final

from protocol.core import Core
from protocol.effects import BlobKind, KeepBlob, ModelFetched, TakeModel
from protocol.events import BlobKept, ModelTaken, ModelWanted
from protocol.ids import Hash, Millis, PeerId
from protocol.messages import ModelHeld, ModelRequest
from protocol.ration import Ration
from protocol.transfers import Transfers

_AGAIN_MS: Final = 2_000
_ANSWER_MS: Final = 30_000  # until somebody has said what it has
_STUCK_MS: Final = 60_000  # nothing came of it for so long
_WANTED_MAX: Final = 4_096


@dataclass(slots=True)
class _Wanted:
    since_ms: int
    asked_ms: int
    round: int  # until which it is kept
    size: int
    held: ModelHeld | None = None  # what its owner said


@dataclass(slots=True)
class Models:
    core: Core
    transfers: Transfers
    _wanted: dict[tuple[PeerId, int], _Wanted] = field(default_factory=dict)
    _keeping: dict[Hash, list[tuple[PeerId, int]]] = field(default_factory=dict)
    # Each question makes its owner write the whole model.
    _rations: Ration = field(default_factory=lambda: Ration(4, 5_000))

    @property
    def wake_ms(self) -> Millis | None:
        due = [one.asked_ms + _AGAIN_MS for one in self._wanted.values()]
        return Millis(min(due)) if due else None

    def want(self, event: ModelWanted) -> None:
        core = self.core
        if event.peer == core.me:
            core.out.append(TakeModel(core.me, event.sequence))
            return
        if len(self._wanted) >= _WANTED_MAX or not core.can_fetch_from(event.peer):
            self._fail(event.peer, event.sequence, "neither side can dial the other")
            return
        now = int(core.now)
        kept_for = core.head.round + core.rules.snapshot_every
        self._wanted[event.peer, event.sequence] = _Wanted(now, now, kept_for, event.size)
        core.send(event.peer, ModelRequest(event.sequence))

    def tick(self) -> None:
        core = self.core
        for (peer, sequence), one in list(self._wanted.items()):
            if core.now < one.asked_ms + _AGAIN_MS:
                continue
            one.asked_ms = core.now
            if peer not in core.head.roster:
                self._give_up(peer, sequence, "it is no member any more")
            elif one.held is None and core.now - one.since_ms >= _ANSWER_MS:
                self._give_up(peer, sequence, "it does not answer")
            elif one.held is None:
                core.send(peer, ModelRequest(sequence))
            elif self._is_stuck(one):
                self._give_up(peer, sequence, "it stopped sending")

    def _is_stuck(self, one: _Wanted) -> bool:
        assert one.held is not None
        model = one.held.model
        fetch = None if model is None else self.transfers.get(model.root)
        return fetch is not None and self.core.now - fetch.moved_ms >= _STUCK_MS

    def _give_up(self, peer: PeerId, sequence: int, why: str) -> None:
        one = self._wanted.pop((peer, sequence))
        model = None if one.held is None else one.held.model
        if model is not None and not self._is_shared(model.root):
            self.transfers.cancel(model.root)
        self._fail(peer, sequence, why)

    def _is_shared(self, root: Hash) -> bool:
        return any(
            other.held is not None
            and other.held.model is not None
            and other.held.model.root == root
            for other in self._wanted.values()
        )

    def _fail(self, peer: PeerId, sequence: int, why: str) -> None:
        self.core.out.append(ModelFetched(peer, sequence, 0, None, 0, 0, None, why))

    def hear(self, sender: PeerId, message: ModelRequest | ModelHeld) -> None:
        match message:
            case ModelRequest():
                self._on_request(sender, message)
            case ModelHeld():
                self._on_held(sender, message)

    # Somebody asks us

    def _on_request(self, sender: PeerId, message: ModelRequest) -> None:
        core = self.core
        if sender in core.head.roster and self._rations.take(sender, core.now):
            core.out.append(TakeModel(sender, message.sequence))

    def taken(self, event: ModelTaken) -> None:
        if event.to == self.core.me:
            self.core.out.append(
                ModelFetched(
                    event.to,
                    event.sequence,
                    self.core.head.round,
                    event.model,
                    event.tokens,
                    event.number,
                    event.heldout,
                    "taken" if event.model is not None else "it has no model yet",
                )
            )
            return
        held = ModelHeld(event.sequence, event.model, event.tokens, event.number, event.heldout)
        self.core.send(event.to, held)

    # Somebody answers

    def _on_held(self, sender: PeerId, message: ModelHeld) -> None:
        one = self._wanted.get((sender, message.sequence))
        if one is None or one.held is not None:
            return
        if message.model is None:
            self._give_up(sender, message.sequence, "it has no model yet")
            return
        if message.model.size != one.size:  # no room is made for what cannot be ours
            self._give_up(sender, message.sequence, "it is none of this run's")
            return
        one.held = message
        root = message.model.root

        def keep() -> None:
            if (sender, message.sequence) in self._wanted:
                self._keeping.setdefault(root, []).append((sender, message.sequence))
                self.core.out.append(KeepBlob(root, one.round))

        holders = (sender,)
        self.transfers.start(root, keep, holders, BlobKind.ATTACHMENT, message.model.size)

    def kept(self, event: BlobKept) -> None:
        for peer, sequence in self._keeping.pop(event.root, ()):
            one = self._wanted.pop((peer, sequence), None)
            if one is None or one.held is None:
                continue
            if not event.is_here:
                self._fail(peer, sequence, "it was lost on this disk")
                continue
            held = one.held
            self.core.out.append(
                ModelFetched(
                    peer,
                    sequence,
                    one.round,
                    held.model,
                    held.tokens,
                    held.number,
                    held.heldout,
                    "fetched",
                )
            )
