"""The only list of methods. Nothing outside this package asks which one runs."""

from typing import assert_never

from node.methods.base import Method
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa, SpsaConfig

MethodConfig = SpsaConfig
"""The `[method]` table; `name` says which."""


def build_method(config: MethodConfig, setup: Setup) -> Method:
    match config:
        case SpsaConfig():
            return Spsa(config, setup)
        case _:
            assert_never(config)
