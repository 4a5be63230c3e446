"""The only list of methods. Nothing outside this package asks which one runs."""

from typing import Annotated, assert_never

from pydantic import Discriminator

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
