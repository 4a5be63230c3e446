"""The only list of methods. Nothing outside this package asks which one runs."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, assert_never, get_args

from pydantic import Discriminator

from node.methods.base import Method
from node.methods.demo_config import DemoConfig
from node.methods.diloco_config import DilocoConfig
from node.methods.econtrol_config import EControlConfig
from node.methods.sparseloco_config import SparseLocoConfig
from node.methods.spsa_config import SpsaConfig

if TYPE_CHECKING:
    from node.methods.parts.setup import Setup

AnyMethod = SpsaConfig | SparseLocoConfig | DilocoConfig | EControlConfig | DemoConfig
MethodConfig = Annotated[AnyMethod, Discriminator("name")]
"""The `[method]` table; `name` says which."""

CONFIGS: Final[Mapping[str, type[AnyMethod]]] = {
    get_args(kind.model_fields["name"].annotation)[0]: kind for kind in get_args(AnyMethod)
}
"""The settings of every method, by its name."""


def config_beside(name: str, other: MethodConfig) -> MethodConfig:
    """The method called `name` as its own defaults have it, with the inner steps of `other` where
    both take such steps. Raises ValidationError when it has no defaults.
    """
    kind, inner = CONFIGS[name], getattr(other, "inner", None)
    shared = {"inner": inner} if inner is not None and "inner" in kind.model_fields else {}
    return kind.model_validate({"name": name, **shared})


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
