"""Questions that `peer doctor` puts to other members, and our answers to theirs.

Can you dial me? How far, how fast, and what time is it? What an answer costs us is rationed by
asker, and nobody can be made to dial anything but the addresses of the asker's own signed card.
"""

from dataclasses import dataclass, field
from typing import Final

from protocol.core import Core
from protocol.effects import Answer, EchoBack, TryDial
from protocol.events import Ask, Dialled
from protocol.ids import PeerId
from protocol.messages import DialBack, DialledBack, Echo, Echoed
from protocol.ration import ByteRations, Ration

_ASKED_MAX: Final = 256
ECHO_BYTES_PER_S: Final = 128 << 10
ECHO_BURST_MS: Final = 96_000  # 12 MiB at once: one check-up takes at most 8


@dataclass(slots=True)
class Checkups:
    core: Core
    _dials: Ration = field(default_factory=lambda: Ration(3, 20_000))
    _all_dials: Ration = field(default_factory=lambda: Ration(8, 2_000))
    _echoes: ByteRations = field(
        default_factory=lambda: ByteRations(ECHO_BYTES_PER_S, ECHO_BURST_MS)
    )
    _asked: dict[tuple[PeerId, int], None] = field(default_factory=dict)

    def ask(self, event: Ask) -> None:
        self._asked[(event.to, event.message.sequence)] = None
        while len(self._asked) > _ASKED_MAX:
            del self._asked[next(iter(self._asked))]
        self.core.send(event.to, event.message)

    def hear(self, sender: PeerId, message: DialBack | DialledBack | Echo | Echoed) -> None:
        if sender not in self.core.head.roster:
            return
        match message:
            case DialBack():
                self._on_dial_back(sender, message)
            case Echo():
                self._on_echo(sender, message)
            case DialledBack() | Echoed():
                if (sender, message.sequence) in self._asked:
                    del self._asked[(sender, message.sequence)]
                    self.core.out.append(Answer(sender, message))

    def _on_dial_back(self, sender: PeerId, message: DialBack) -> None:
        core = self.core
        card = core.cards.get(sender)
        if card is None or not card.addresses:
            core.send(sender, DialledBack(message.sequence, ()))
        elif self._dials.take(sender, core.now) and self._all_dials.take(b"", core.now):
            core.out.append(TryDial(sender, message.sequence, card))

    def dialled(self, event: Dialled) -> None:
        self.core.send(event.to, DialledBack(event.sequence, event.ways))

    def _on_echo(self, sender: PeerId, message: Echo) -> None:
        size, bucket = message.want + len(message.filler), self._echoes.of(sender)
        if bucket.has_room(size, self.core.now):
            bucket.take(size, self.core.now)
            self.core.out.append(EchoBack(sender, message.sequence, message.want))
