"""Grant a peer's wishes: one match over its effects, in order."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_never

from node.ports import (
    Blobs,
    Disk,
    Gossiper,
    NoGossiper,
    NoProber,
    Prober,
    Transport,
    Watcher,
    Worker,
)
from protocol.codec import encode
from protocol.effects import (
    AddUp,
    Answer,
    Apply,
    CloseExchange,
    Connect,
    Disconnect,
    DropBlob,
    DropDoubts,
    EchoBack,
    Effect,
    ForgetDecision,
    GiveBack,
    Halt,
    Hold,
    KeepBlob,
    Members,
    ModelFetched,
    MoveStretch,
    Note,
    OfferBlob,
    OfferStretch,
    OfferSum,
    OpenBlob,
    OpenExchange,
    Patch,
    Proceed,
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
    TakeModel,
    TakeStretch,
    TryDial,
)
from protocol.messages import Echoed, Entries
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
    prober: Prober = field(default_factory=NoProber)
    gossiper: Gossiper = field(default_factory=NoGossiper)


def perform(effects: Iterable[Effect], shell: Shell) -> None:
    """Errors of the ports (a full disk, say) leave the remaining effects undone: the process must
    then end.
    """
    for effect in effects:
        match effect:
            case Send():
                frame = encode(effect.message)
                for to in effect.to:
                    _send(shell, to, frame)
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
            case AddUp():
                shell.worker.add_up(effect)
            case GiveBack():
                shell.worker.give_back(effect)
            case Proceed():
                shell.worker.proceed(effect)
            case ServeEntries():
                room = shell.peer.reply_bytes_max(effect.to) // 2
                found = entries_after(shell.disk, effect.locators, room)
                reply = Entries(found, shell.peer.ledger.summary())
                _send(shell, effect.to, encode(reply))
            case TryDial():
                shell.prober.try_dial(effect)
            case EchoBack():
                wall_ms, filler = shell.prober.echo(effect)
                _send(shell, effect.to, encode(Echoed(effect.sequence, wall_ms, filler)))
            case Answer():
                shell.prober.answered(effect)
            case OfferBlob():
                shell.blobs.offer(effect.to, effect.root)
            case OfferSum():
                shell.blobs.offer_sum(effect)
            case ServePieces():
                shell.blobs.serve(effect)
            case OpenBlob():
                shell.blobs.open(effect)
            case StorePiece():
                shell.blobs.put(effect)
            case KeepBlob():
                shell.blobs.keep(effect)
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
            case (
                Members()
                | OpenExchange()
                | OfferStretch()
                | TakeStretch()
                | MoveStretch()
                | CloseExchange()
                | DropDoubts()
                | ForgetDecision()
                | TakeModel()
                | ModelFetched()
            ):
                shell.gossiper.do(effect)
            case Note():
                shell.watcher.note(effect)
            case Halt():
                shell.watcher.halt(effect)
            case _:
                assert_never(effect)


def _send(shell: Shell, to: bytes, frame: bytes) -> None:
    """By itself, or through a relay."""
    for hop, data in shell.peer.route(to, frame):
        shell.transport.send(hop, data)


def _rebuild(task: Rebuild, shell: Shell) -> None:
    """After a switch, our own work that the new chain does not list is given back."""
    shell.worker.rebuild(task)
    if task.switched:
        for work in unlisted(shell.disk):
            shell.worker.give_back(work)
