"""The only list of methods. Nothing outside this package asks which one runs."""

from collections.abc import Callable
from typing import assert_never

from node.methods.base import Method
from node.methods.parts.setup import Setup
from node.methods.spsa import Spsa, SpsaConfig, weigher_of

MethodConfig = SpsaConfig
"""The `[method]` table; `name` says which."""


def build_method(config: MethodConfig, setup: Setup) -> Method:
    match config:
        case SpsaConfig():
            return Spsa(config, setup)
        case _:
            assert_never(config)


def weigher(config: MethodConfig) -> Callable[[bytes], int]:
    """The method's `weigh`, which needs no model: entries are judged before one is loaded."""
    match config:
        case SpsaConfig():
            return weigher_of(config)
        case _:
            assert_never(config)
