"""What the settings of all gossip methods share. Their peers hold no common model; what a round of
the ledger has of them is checkpoints (`node/gossip/checkpoint.py`).
"""

from collections.abc import Sequence
from math import prod
from typing import Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from node.gossip.checkpoint import weigh_checkpoint
from node.methods.parts.chunks import Layout
from node.methods.parts.dense_layout import BLOCK, DenseLayout
from node.methods.parts.stretches import ELEMENTS, cut
from node.training.inner_config import InnerConfig

Kind = Literal["matching", "groups", "ring", "hypercube", "exponential", "random"]


class GossipConfig(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    inner: InnerConfig = InnerConfig()
    value_bits: Literal[32, 16, 8] = 32
    """Of each element that is sent: 32 and 16 are floats, 8 an integer with a scale for each 4096
    of a tensor.
    """
    stretch: Annotated[int, Field(ge=BLOCK, le=1 << 24, multiple_of=BLOCK)] = ELEMENTS
    """Elements that are sent, and count, at once. More of them take more memory."""

    unit_of_work: ClassVar[str] = "batches"
    rates: ClassVar[tuple[str, ...]] = ()
    from_scratch: ClassVar[bool] = True
    gossips: ClassVar[bool] = True
    sums: ClassVar[bool] = False
    exact: ClassVar[int] = 0
    """Numbers that it sends with each stretch."""

    @property
    def coded(self) -> int:
        """Vectors as long as the model that a peer sends in an exchange."""
        return 1

    @property
    def sparse_kept(self) -> int | None:
        """Of each 4096 elements of the first vector so many are sent; None: all."""
        return None

    def vectors_due(self, stretch: int, turn: int) -> int:
        """Vectors that go with this stretch, by its number, in this exchange of all."""
        return self.coded

    @property
    def kind(self) -> Kind | None:
        """How a round's meetings are found; None: there are no rounds, peers meet when they are
        ready.
        """
        raise NotImplementedError

    @property
    def meeting_size(self) -> int:
        return 2

    @property
    def exchanges_a_round(self) -> int:
        """One after the other."""
        return 1

    def exchange_bytes(
        self,
        shapes: Sequence[Sequence[int]],  # of each trainable parameter
    ) -> int:
        """That one peer sends to one other in an exchange, at most; frames left out."""
        return max(self._turn_bytes(shapes, turn) for turn in range(self.turns))

    @property
    def turns(self) -> int:
        """After so many exchanges the same vectors are due again."""
        return 1

    def _turn_bytes(self, shapes: Sequence[Sequence[int]], turn: int) -> int:
        total = 0
        for number, part in enumerate(cut([prod(shape) for shape in shapes], self.stretch)):
            dense = self.vectors_due(number, turn)
            if self.sparse_kept is not None:
                dense -= 1
                total += Layout.of(part.sizes, k=self.sparse_kept).bytes_max
            total += dense * DenseLayout(part.sizes, self.value_bits).bytes + 8 * self.exact
        return total

    # What methods with rounds are asked

    def weigh(self, payload: bytes) -> int:
        return weigh_checkpoint(payload)

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return 0

    def parts_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return 0

    @property
    def ledger_bytes(self) -> int | None:
        return None

    @property
    def overlaps(self) -> bool:
        return False

    @property
    def takes_gradients(self) -> bool:
        return True

    def cautions(self) -> Sequence[str]:
        return []

    # What a comparison turns

    @property
    def batches_a_round(self) -> int | None:
        return self.inner.steps and self.inner.batches_max

    def with_steps(self, steps: int) -> Self:
        return self.changed(inner={**self.inner.model_dump(), "steps": steps})

    def with_rounds(self, rounds: int) -> Self:
        return self.changed(inner=self.inner.over(rounds).model_dump())

    def with_rate(self, rate: str) -> Self:
        raise ValueError("it has no rate of everyone's update")

    def changed(self, **changes: object) -> Self:
        """With other values for some keys, checked. Raises ValidationError."""
        return type(self).model_validate({**self.model_dump(), **changes})


class MeetingConfig(GossipConfig):
    """Of methods in which all that meet send."""

    pairing: Literal["matching", "groups", "ring", "hypercube"] = "matching"
    """Who meets whom in a round. `matching`: two and two at random. `groups`: as many as `group` at
    random. `ring`: one's two neighbours in turns, the same ones for good. `hypercube`: 1, 2, 4, ...
    places away in turns; of 2^q peers, all have the mean after q meetings.
    """
    group: Annotated[int, Field(ge=2, le=64)] = 2
    """Peers in a meeting, for `groups`; each sends to all others of it."""

    @model_validator(mode="after")
    def _group_is_meant(self) -> Self:
        if self.group != 2 and self.pairing != "groups":
            raise ValueError('`group` is for pairing = "groups"')
        return self

    @property
    def kind(self) -> Kind:
        return self.pairing

    @property
    def meeting_size(self) -> int:
        return self.group
