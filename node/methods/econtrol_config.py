"""What a run file says of EControl and EF21, and what follows from that alone."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from node.methods.parts.header import decode_header
from node.methods.parts.sparse_config import SparseConfig

ANEW, GOES_ON = b"\x01", b"\x00"  # behind a payload's header


class EControlConfig(SparseConfig):
    """Part of the manifest. With `error_share = 0` it is EF21."""

    name: Literal["econtrol"]
    error_share: Annotated[float, Field(ge=0, le=1)] = 1e-3
    """eta: how much of what was never sent is tried again each round. Large ones bring back the
    swings that the method is there to avoid.
    """

    rates: ClassVar[tuple[str, ...]] = ("0.5", "1", "2")

    @model_validator(mode="after")
    def _forgets_nothing(self) -> Self:
        if self.feedback_decay != 1:
            raise ValueError("`feedback_decay` is 1: what all remember is not forgotten by one")
        if self.fragments != 1:
            raise ValueError("`fragments` is 1: what all remember is applied every round")
        return self

    def weigh(self, payload: bytes) -> int:
        header, rest = decode_header(payload, self.inner)
        if rest not in (ANEW, GOES_ON):
            raise ValueError("behind the header is one byte, 0 or 1")
        return header.batches
