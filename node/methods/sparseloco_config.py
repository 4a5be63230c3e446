"""What a run file says of SparseLoCo, and what follows from that alone: reading a manifest and
judging entries take neither a model nor compiled loops.
"""

from collections.abc import Sequence
from fractions import Fraction
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from node.methods.parts.sparse_config import SparseConfig


class SparseLocoConfig(SparseConfig):
    """Part of the manifest."""

    name: Literal["sparseloco"]
    feedback_decay: Annotated[float, Field(ge=0, le=1)] = 0.95
    """As the paper has it: what was never sent is forgotten in the end."""
    average: Literal["peers", "senders"] = "peers"
    """Peers seldom send the same place, so the mean over those who sent one is up to as many times
    larger as there are peers: it wants a smaller rate.
    """

    rates: ClassVar[tuple[str, ...]] = ("0.5", "1", "2", "4")
    """The mean over all peers makes the moves small that few of them sent: it wants the upper ones,
    the mean over senders the lower ones.
    """

    def cautions(self) -> Sequence[str]:
        found = list(super().cautions())
        if not self.feedback_decay:
            found.append(
                "feedback_decay = 0 forgets whatever is not sent: top-k without error feedback is"
                " biased, and stalls (Karimireddy et al. 2019, 1901.09847)"
            )
        if self.average == "senders" and Fraction(self.learning_rate.peak) > 1:
            found.append(
                'a rate above 1 with average = "senders": where one peer alone sent, the weights'
                " move farther than that peer did"
            )
        return found
