"""The settings of SPSA, and how a payload is weighed: neither takes a model."""

from collections.abc import Sequence
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field

from node.methods.parts.probes import PROBES_MAX, decode
from node.methods.parts.schedule import Schedule
from node.methods.parts.tuned import TunedConfig

_POOL_WELL: Final = 1024


class SeedPool(BaseModel):
    """FedKSeed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    pool: Annotated[int, Field(ge=1, le=1 << 16)]
    """K, the number of directions. The model moves within their span; catching up costs K passes at
    most.
    """
    significance: bool = False
    """FedKSeed-Pro: directions with larger gradients are tried more often."""


class SpsaConfig(TunedConfig):
    """Part of the manifest."""

    name: Literal["spsa"] = "spsa"
    learning_rate: Schedule
    """Of the mean over a round's probes. Too large a rate diverges at once: E|g s|**2 grows with
    the number of weights.
    """
    epsilon: Annotated[float, Field(gt=0, le=100)] = 1e-3
    """How far a probe looks. Too small and the two losses differ by rounding only; too large and
    curvature hides the slope. bfloat16 weights want 1e-2.
    """
    full_round: Annotated[int, Field(ge=1, le=1 << 20)] = 1
    """A round of fewer probes than this moves the weights less, in proportion, because its mean is
    noisier: a swarm that shrinks to one peer does not diverge at a rate made for many. 1: never."""
    probes: Annotated[int, Field(ge=1, le=PROBES_MAX)] | None = None
    """Exactly so many a round and peer; left out, as many as the window allows."""
    probes_max: Annotated[int, Field(ge=1, le=PROBES_MAX)] = PROBES_MAX
    """At most so many a round and peer, however long the window."""
    unit_exponent: Annotated[int, Field(ge=-32, le=32)] = -4
    """The first rounds' bytes count in 2**this; the ledger adjusts it within a few rounds."""
    seeds: SeedPool | None = None

    unit_of_work: ClassVar[str] = "probes"
    from_scratch: ClassVar[bool] = False  # the larger the model, the slower

    def weigh(self, payload: bytes) -> int:
        return len(decode(payload, None if self.seeds is None else self.seeds.pool))

    def parts_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return 0

    def attachment_bytes_max(self, shapes: Sequence[Sequence[int]]) -> int:
        return 0

    @property
    def ledger_bytes(self) -> int:
        return min(self.probes or self.probes_max, 64) + 3

    @property
    def overlaps(self) -> bool:
        return False

    @property
    def takes_gradients(self) -> bool:
        return False

    def cautions(self) -> Sequence[str]:
        if self.seeds is not None and self.seeds.pool < _POOL_WELL:
            return [
                f"a pool of {self.seeds.pool} directions: the weights never leave their span;"
                f" FedKSeed's authors (2312.06353) take {_POOL_WELL} to 4096"
            ]
        return []

    @property
    def batches_a_round(self) -> int | None:
        return self.probes

    def with_steps(self, steps: int) -> Self:
        """A probe for a step, unless the settings say how many."""
        return self if self.probes else self.changed(probes=steps)
