"""Grant a peer's wishes: one match over its effects, in order."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import assert_never

from node.ports import Blobs, Disk, Transport, Watcher, Worker
from protocol.codec import encode
from protocol.events import (
    Apply,
    Connect,
    Disconnect,
    DropBlob,
    Effect,
    GiveBack,
    Halt,
    Hold,
    Note,
    OfferBlob,
    OpenBlob,
    Patch,
    Rebuild,
    Restore,
    Save,
    Send,
    ServeEntries,
    ServeMend,
    ServePieces,
    StartWork,
    StopWork,
    StorePiece,
    TakeChecks,
)
from protocol.messages import Entries
from protocol.peer import Peer
from protocol.restore import entries_after, unlisted


@dataclass(frozen=True, slots=True)
class Shell:
    """A peer and everything that its effects act on."""

    peer: Peer
    transport: Transport
    disk: Disk
    worker: Worker
    blobs: Blobs
    watcher: Watcher


def perform(effects: Iterable[Effect], shell: Shell) -> None:
    """Errors of the ports (a full disk, say) leave the remaining effects undone: the process must
    then end.
    """
    for effect in effects:
        match effect:
            case Send():
                frame = encode(effect.message)
                for to in effect.to:
                    shell.transport.send(to, frame)
            case Save():
                shell.disk.commit(effect.writes)
            case Connect():
                shell.transport.connect(effect.card)
            case Disconnect():
                shell.transport.disconnect(effect.peer)
            case StartWork():
                shell.worker.start_work(effect)
            case StopWork():
                shell.worker.stop_work()
            case Apply():
                shell.worker.apply(effect)
            case Rebuild():
                _rebuild(effect, shell)
            case GiveBack():
                shell.worker.give_back(effect.round, effect.payload)
            case ServeEntries():
                found = entries_after(shell.disk, effect.locators)
                reply = Entries(found, shell.peer.ledger.summary())
                shell.transport.send(effect.to, encode(reply))
            case OfferBlob():
                shell.blobs.offer(effect.to, effect.root)
            case ServePieces():
                shell.blobs.serve(effect)
            case OpenBlob():
                shell.blobs.open(effect)
            case StorePiece():
                shell.blobs.put(effect)
            case DropBlob():
                shell.blobs.drop(effect.root)
            case Hold():
                shell.worker.hold(effect)
            case Restore():
                shell.worker.restore(effect)
            case TakeChecks():
                shell.worker.take_checks(effect)
            case ServeMend():
                shell.worker.serve_mend(effect)
            case Patch():
                shell.worker.patch(effect)
            case Note():
                shell.watcher.note(effect)
            case Halt():
                shell.watcher.halt(effect)
            case _:
                assert_never(effect)


def _rebuild(task: Rebuild, shell: Shell) -> None:
    """After a switch, our own work that the new chain does not list is given back."""
    shell.worker.rebuild(task)
    if task.switched:
        for round, payload in unlisted(shell.disk, shell.peer.ledger.head):
            shell.worker.give_back(round, payload)
