"""The only list of methods. Nothing outside this package asks which one runs."""

from collections.abc import Callable, Sequence
from typing import Annotated, assert_never

from pydantic import Discriminator

from node.methods import sparseloco_config, spsa
from node.methods.base import Method
from node.methods.parts.setup import Setup
from node.methods.sparseloco_config import SparseLocoConfig
from node.methods.spsa import Spsa, SpsaConfig

MethodConfig = Annotated[SpsaConfig | SparseLocoConfig, Discriminator("name")]
"""The `[method]` table; `name` says which."""


def build_method(config: MethodConfig, setup: Setup) -> Method:
    match config:
        case SpsaConfig():
            return Spsa(config, setup)
        case SparseLocoConfig():
            from node.methods.sparseloco import SparseLoco  # compiled loops: for who trains

            return SparseLoco(config, setup)
        case _:
            assert_never(config)


def weigher(config: MethodConfig) -> Callable[[bytes], int]:
    """The method's `weigh`, which needs no model: entries are judged before one is loaded."""
    match config:
        case SpsaConfig():
            return spsa.weigher_of(config)
        case SparseLocoConfig():
            return sparseloco_config.weigher_of(config)
        case _:
            assert_never(config)


def attachment_bytes_max(config: MethodConfig, sizes: Sequence[int]) -> int:
    """What a contribution brings beside its payload, at most; 0: nothing. `sizes`: elements of each
    trainable parameter.
    """
    match config:
        case SpsaConfig():
            return 0
        case SparseLocoConfig():
            return config.layout(sizes).bytes_max
        case _:
            assert_never(config)


def ledger_bytes(config: MethodConfig) -> int | None:
    """Of a usual round's payload; None when most of a contribution is attached to it."""
    match config:
        case SpsaConfig():
            return min(config.probes or config.probes_max, 64) + 3
        case SparseLocoConfig():
            return None
        case _:
            assert_never(config)


def unit_of_work(config: MethodConfig) -> str:
    """What is counted, in the plural."""
    match config:
        case SpsaConfig():
            return "probes"
        case SparseLocoConfig():
            return "batches"
        case _:
            assert_never(config)
