"""A gossiping peer's model on disk: all of it now and then, and what exchanges did to it since.

    gossip.safetensors   everything that `Party` keeps, as it was at some moment; says which
                         generation it is
    gossip-N.log         what happened since generation N was written, one record after the other

A record is

    u32be length ‖ first 8 bytes of BLAKE3 ‖ msgpack [kind, session, ...] ‖ tensors

and is forced onto the disk before anybody is told of it. `moved`: a stretch as it is after an
exchange, so also with the steps before it; if others have to hear that it counts, it names them.
`prepared`: a stretch as it is, and the moves that make it count; who decides it. `dropped` and
`forgot` end what those began. What a kill cut short at the end is left out.

So an exchange that this peer told others of is never undone, whatever it was killed in: it goes on
with each stretch as of its last exchange. The steps since then are lost, as with any machine that
dies, and the optimizer's state is that of the last whole file.
"""

import os
import struct
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final

import msgpack
import torch
from blake3 import blake3
from safetensors import SafetensorError, safe_open
from torch import Tensor

from node.chunks import explained
from node.durable import sync, write_atomically
from node.gossip.party import Party
from protocol.events import Decision, Doubt, Recalled
from protocol.exchanging import pack
from protocol.ids import Hash, PeerId

if TYPE_CHECKING:
    from node.methods.parts.mixing import State

FILE: Final = "gossip.safetensors"
_HEAD: Final = struct.Struct(">I8s")
_DTYPES: Final = {"f4": torch.float32, "f8": torch.float64}
LOG_BYTES_MIN: Final = 16 << 20
LOG_SHARE: Final = 4  # the log may be so many times the state
_TRIES: Final = 5
# Steps of who meets nobody, and the optimizer's state, are in the whole file only. It is written so
# often that this takes a fiftieth of the time at most, and loses so many seconds at most.
_SAVE_S: Final = 10.0
_SAVE_S_MAX: Final = 300.0
_SAVE_SHARE: Final = 50

Key = tuple[bytes, int]  # session, stretch


@dataclass(slots=True)
class Prepared:
    """A stretch that counts once its decider says so."""

    decider: bytes
    moves: Sequence[Tensor]


@dataclass(slots=True)
class Kept:
    """What is not settled yet."""

    prepared: dict[Key, Prepared] = field(default_factory=dict)
    decided: dict[bytes, tuple[set[int], tuple[bytes, ...]]] = field(default_factory=dict)

    def recalled(self) -> Recalled:
        doubts: dict[tuple[bytes, bytes], set[int]] = {}
        for (session, stretch), one in self.prepared.items():
            doubts.setdefault((session, one.decider), set()).add(stretch)
        return Recalled(
            tuple(
                Decision(Hash(session), pack(stretches), tuple(map(PeerId, others)))
                for session, (stretches, others) in self.decided.items()
            ),
            tuple(
                Doubt(Hash(session), pack(stretches), PeerId(decider))
                for (session, decider), stretches in doubts.items()
            ),
        )


class Journal:
    """One thread's: that of whoever trains. Raises StoreError when the disk takes no more."""

    def __init__(self, home: Path, party: Party) -> None:
        self._home, self._party = home, party
        self.kept = Kept()
        self._generation = 0
        self._log: IO[bytes] | None = None
        self._size = 0
        self._state_bytes = sum(v.numel() * v.element_size() for v in party.state.values())
        self._saved_s = time.monotonic()
        self._every_s = _SAVE_S

    # Reading

    def load(self) -> dict[str, str] | None:
        """Bring the party to where it was; what was told to `save`. None, with the party as it was,
        if there is nothing. Raises ValueError for a damaged file.
        """
        found = read_whole(self._home)
        if found is None:
            return None
        state, told = found
        self._party.load_local_state(state)
        self._generation = int(told["generation"])
        path = self._path(self._generation)
        for record in read_log(path):
            replay(record, self._party, self.kept)
        return told

    # Writing

    def moved(self, session: bytes, stretch: int, others: Sequence[bytes]) -> None:
        """The stretch as it is now counts."""
        self.kept.prepared.pop((session, stretch), None)
        if others:
            stretches, _ = self.kept.decided.setdefault(session, (set(), tuple(others)))
            stretches.add(stretch)
        image = self._party.part(stretch)
        self._append(["moved", session, stretch, list(others)], list(image.values()))

    def prepared(
        self, session: bytes, stretch: int, decider: bytes, moves: Sequence[Tensor]
    ) -> None:
        """The stretch as it is now, and what would move it."""
        self.kept.prepared[session, stretch] = Prepared(decider, moves)
        image = self._party.part(stretch)
        fields = ["prepared", session, stretch, decider]
        self._append(fields, [*image.values(), *moves])

    def dropped(self, session: bytes, keep: Sequence[int] = ()) -> None:
        """What is prepared in that session, but for these, does not count."""
        gone = [key for key in self.kept.prepared if key[0] == session and key[1] not in keep]
        if gone:
            for key in gone:
                del self.kept.prepared[key]
            self._append(["dropped", session, list(keep)], [])

    def forgot(self, session: bytes) -> None:
        """Everybody knows what counts there."""
        if self.kept.decided.pop(session, None) is not None:
            self._append(["forgot", session], [])

    def _append(self, fields: list[Any], tensors: Sequence[Tensor]) -> None:
        assert self._log is not None, "saved once before"
        self._size += self._write(self._log, fields, tensors)

    def _write(self, log: IO[bytes], fields: list[Any], tensors: Sequence[Tensor]) -> int:
        data = encode(fields, tensors)
        try:
            log.write(data)
            log.flush()
            os.fdatasync(log.fileno())
        except OSError as error:
            raise explained(error, self._path(self._generation)) from error
        return len(data)

    # All of it

    def save_if_due(self, told: Callable[[], Mapping[str, str]]) -> None:
        most = max(LOG_BYTES_MIN, LOG_SHARE * self._state_bytes)
        if self._size > most or time.monotonic() - self._saved_s > self._every_s:
            self.save(told())

    def save(self, told: Mapping[str, str]) -> None:
        """The whole party, and a log with nothing but what is not settled."""
        from safetensors.torch import save_file

        began_s = time.monotonic()
        before, self._generation = self._generation, self._generation + 1
        path = self._path(self._generation)
        meta = {**told, "generation": str(self._generation)}
        state = self._party.local_state()
        tensors = {name: tensor.detach().contiguous() for name, tensor in state.items()}
        try:
            fresh = path.open("wb")
            self._size = 0
            for (session, stretch), one in self.kept.prepared.items():
                # Without the stretch itself: that is in the whole file.
                fields = ["open", session, stretch, one.decider]
                self._size += self._write(fresh, fields, list(one.moves))
            for session, (stretches, others) in self.kept.decided.items():
                fields = ["decided", session, sorted(stretches), list(others)]
                self._size += self._write(fresh, fields, [])
            sync(self._home)
            write_atomically(
                self._home / FILE, lambda temporary: save_file(tensors, temporary, metadata=meta)
            )
        except OSError as error:
            raise explained(error, path) from error
        if self._log is not None:
            self._log.close()
        self._log, self._saved_s = fresh, time.monotonic()
        took_s = self._saved_s - began_s
        self._every_s = min(_SAVE_S_MAX, max(_SAVE_S, _SAVE_SHARE * took_s))
        self._path(before).unlink(missing_ok=True)

    def close(self) -> None:
        if self._log is not None:
            self._log.close()

    def _path(self, generation: int) -> Path:
        return log_path(self._home, generation)


# Files


@dataclass(frozen=True, slots=True)
class Record:
    fields: list[Any]
    tensors: list[Tensor]


def log_path(home: Path, generation: int) -> Path:
    return home / f"gossip-{generation}.log"


def encode(fields: list[Any], tensors: Sequence[Tensor]) -> bytes:
    names = {dtype: name for name, dtype in _DTYPES.items()}
    shapes = [[names[tensor.dtype], tensor.numel()] for tensor in tensors]
    head = bytes(msgpack.packb([fields, shapes]))
    data = b"".join(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in tensors)
    body = len(head).to_bytes(4, "big") + head + data
    return _HEAD.pack(len(body), blake3(body).digest(length=8)) + body


def read_log(path: Path) -> list[Record]:
    """As far as it was written."""
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    found: list[Record] = []
    at = 0
    while at + _HEAD.size <= len(raw):
        length, check = _HEAD.unpack_from(raw, at)
        body = raw[at + _HEAD.size : at + _HEAD.size + length]
        if len(body) != length or blake3(body).digest(length=8) != check:
            break
        found.append(_decode(body))
        at += _HEAD.size + length
    return found


def _decode(body: bytes) -> Record:
    start = 4 + int.from_bytes(body[:4], "big")
    fields, shapes = msgpack.unpackb(body[4:start])
    tensors: list[Tensor] = []
    for name, count in shapes:
        dtype = _DTYPES[name]
        end = start + count * dtype.itemsize
        tensors.append(torch.frombuffer(bytearray(body[start:end]), dtype=dtype))
        start = end
    return Record(fields, tensors)


def read_whole(home: Path) -> tuple[dict[str, Tensor], dict[str, str]] | None:
    """Raises ValueError for a damaged file."""
    path = home / FILE
    if not path.exists():
        return None
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            told = dict(file.metadata() or {})
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if "generation" not in told:
        raise ValueError(f"{path} is no peer's model")
    return state, told


def recall(home: Path, party: Party) -> bool:
    """A peer's model, which may be at work, as of its last exchange; False if it has none yet.
    Raises ValueError for a damaged file.
    """
    for _ in range(_TRIES):
        found = read_whole(home)
        if found is None:
            return False
        state, told = found
        path = log_path(home, int(told["generation"]))
        if not path.exists():
            continue  # it was being written anew
        party.load_local_state(state)
        kept = Kept()
        for record in read_log(path):
            replay(record, party, kept)
        return True
    raise ValueError(f"the model in {home} changes all the time: try again")


def replay(record: Record, party: Party, kept: Kept) -> None:
    match record.fields:
        case ["moved", session, stretch, others]:
            _show(party.part(stretch), record.tensors)
            kept.prepared.pop((session, stretch), None)
            if others:
                kept.decided.setdefault(session, (set(), tuple(others)))[0].add(stretch)
        case ["prepared", session, stretch, decider]:
            image = party.part(stretch)
            _show(image, record.tensors[: len(image)])
            moves = [tensor.to(party.device) for tensor in record.tensors[len(image) :]]
            kept.prepared[session, stretch] = Prepared(decider, moves)
        case ["open", session, stretch, decider]:
            moves = [tensor.to(party.device) for tensor in record.tensors]
            kept.prepared[session, stretch] = Prepared(decider, moves)
        case ["decided", session, stretches, others]:
            kept.decided[session] = set(stretches), tuple(others)
        case ["dropped", session, keep]:
            for key in [k for k in kept.prepared if k[0] == session and k[1] not in keep]:
                del kept.prepared[key]
        case ["forgot", session]:
            kept.decided.pop(session, None)
        case _:
            raise ValueError(f"a record {record.fields[:1]} is unknown here")


def _show(image: "State", tensors: Sequence[Tensor]) -> None:
    for vector, value in zip(image.values(), tensors, strict=True):
        vector.copy_(value)
