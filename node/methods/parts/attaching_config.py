"""What the settings of all methods by gradients share: what they send is attached to the ledger."""

from collections.abc import Sequence
from typing import ClassVar

from node.methods.parts.tuned import TunedConfig


class AttachingConfig(TunedConfig):
    overlap: bool = False
    """Go on with the next round's work while a round is exchanged: no peer waits for a line, and
    what the others did is known one exchange late. Takes one more number a weight.
    """

    unit_of_work: ClassVar[str] = "batches"

    def parts_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return 0

    @property
    def ledger_bytes(self) -> None:
        return None

    @property
    def overlaps(self) -> bool:
        return self.overlap

    @property
    def takes_gradients(self) -> bool:
        return True

    def cautions(self) -> Sequence[str]:
        return []
