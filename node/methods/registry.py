"""The only list of methods. Nothing outside this package asks which one runs."""

from typing import TYPE_CHECKING, Annotated, assert_never

from pydantic import Discriminator

from node.methods.base import Method
from node.methods.demo_config import DemoConfig
from node.methods.diloco_config import DilocoConfig
from node.methods.econtrol_config import EControlConfig
from node.methods.sparseloco_config import SparseLocoConfig
from node.methods.spsa_config import SpsaConfig

if TYPE_CHECKING:
    from node.methods.parts.setup import Setup

MethodConfig = Annotated[
    SpsaConfig | SparseLocoConfig | DilocoConfig | EControlConfig | DemoConfig,
    Discriminator("name"),
]
"""The `[method]` table; `name` says which."""


def build_method(config: MethodConfig, setup: "Setup") -> Method:
    """Methods are imported here: torch and compiled loops are for who trains."""
    match config:
        case SpsaConfig():
            from node.methods.spsa import Spsa

            return Spsa(config, setup)
        case SparseLocoConfig():
            from node.methods.sparseloco import SparseLoco

            return SparseLoco(config, setup)
        case DilocoConfig():
            from node.methods.diloco import Diloco

            return Diloco(config, setup)
        case EControlConfig():
            from node.methods.econtrol import EControl

            return EControl(config, setup)
        case DemoConfig():
            from node.methods.demo import Demo

            return Demo(config, setup)
        case _:
            assert_never(config)
