"""The doors between the protocol's wishes and the world. The daemon and the simulator differ only
in what is behind.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

from protocol.effects import (
    AddUp,
    Answer,
    Apply,
    EchoBack,
    GiveBack,
    Gossip,
    Halt,
    Hold,
    KeepBlob,
    Note,
    OfferSum,
    OpenBlob,
    Patch,
    Proceed,
    Rebuild,
    Restore,
    ServeMend,
    ServePieces,
    StartWork,
    StorePiece,
    TakeChecks,
    TryDial,
)
from protocol.entries import Card
from protocol.ids import Hash, PeerId
from protocol.ledger import Write


class Transport(Protocol):
    def connect(self, card: Card) -> None:
        """Let this peer in, and remember where it can be dialled."""
        ...

    def disconnect(self, peer: PeerId) -> None: ...

    def send(self, to: bytes, data: bytes) -> None:
        """Promises nothing: retries are the protocol's business."""
        ...


class Disk(Protocol):
    def commit(self, writes: Sequence[Write]) -> None:
        """All of them or none, durable on return."""
        ...

    def get(self, table: str, key: bytes) -> bytes | None: ...

    def scan(self, table: str, first: bytes = b"") -> Iterator[tuple[bytes, bytes]]: ...


class Worker(Protocol):
    """Holds the replicated state. Commands are done in the order given; results come back as
    events.
    """

    def start_work(self, task: StartWork) -> None: ...

    def stop_work(self) -> None: ...

    def apply(self, task: Apply) -> None: ...

    def add_up(self, task: AddUp) -> None: ...

    def rebuild(self, task: Rebuild) -> None: ...

    def give_back(self, task: GiveBack) -> None: ...

    def proceed(self, task: Proceed) -> None: ...

    def hold(self, task: Hold) -> None: ...

    def restore(self, task: Restore) -> None: ...

    def take_checks(self, task: TakeChecks) -> None: ...

    def serve_mend(self, task: ServeMend) -> None: ...

    def patch(self, task: Patch) -> None: ...


class Blobs(Protocol):
    """Chunks on disk: what others may have of us, and what we fetch."""

    def offer(self, to: PeerId, root: Hash) -> None: ...

    def offer_sum(self, task: OfferSum) -> None: ...

    def serve(self, task: ServePieces) -> None: ...

    def open(self, task: OpenBlob) -> None:
        """Answered with `BlobOpened`."""
        ...

    def put(self, task: StorePiece) -> None: ...

    def keep(self, task: KeepBlob) -> None:
        """Answered with `BlobKept`."""
        ...

    def drop(self, root: Hash) -> None: ...


class Watcher(Protocol):
    def note(self, note: Note) -> None: ...

    def halt(self, halt: Halt) -> None: ...


class Prober(Protocol):
    """Tries out connections and clocks, for members who examine theirs."""

    def try_dial(self, task: TryDial) -> None: ...

    def echo(self, task: EchoBack) -> tuple[int, bytes]:
        """Unix time in milliseconds, and as many bytes as are wanted."""
        ...

    def answered(self, answer: Answer) -> None: ...


class Gossiper(Protocol):
    """Holds a model of this peer's own, where peers gossip. Wishes are granted in the order given;
    results come back as events.
    """

    def do(self, wish: Gossip) -> None: ...


class NoGossiper:
    """Where all hold one model in common."""

    def do(self, wish: Gossip) -> None:
        pass


class NoProber:
    """Where nobody examines anything."""

    def try_dial(self, task: TryDial) -> None:
        pass

    def echo(self, task: EchoBack) -> tuple[int, bytes]:
        return 0, bytes(task.want)

    def answered(self, answer: Answer) -> None:
        pass
