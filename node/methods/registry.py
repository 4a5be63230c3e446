"""The only list of methods. Nothing outside this package asks which one runs.

There are two kinds: those of rounds, whose peers hold one model in common, and those that gossip.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Final, assert_never, get_args

from pydantic import Discriminator

from node.methods.ad_psgd_config import AdPsgdConfig
from node.methods.base import Method
from node.methods.d_psgd_config import DPsgdConfig
from node.methods.demo_config import DemoConfig
from node.methods.dfedsam_config import DFedSamConfig
from node.methods.diloco_config import DilocoConfig
from node.methods.econtrol_config import EControlConfig
from node.methods.noloco_config import NoLoCoConfig
from node.methods.parts.gossip_config import GossipConfig
from node.methods.push_sum_config import PushSumConfig
from node.methods.sparseloco_config import SparseLocoConfig
from node.methods.spsa_config import SpsaConfig
from node.methods.variance_corrected_config import VarianceCorrectedConfig

if TYPE_CHECKING:
    from node.methods.parts.mixing import Mixing, State
    from node.methods.parts.setup import Setup
    from node.training.inner import InnerWork

AnyRounds = SpsaConfig | SparseLocoConfig | DilocoConfig | EControlConfig | DemoConfig
AnyGossip = (
    DPsgdConfig
    | NoLoCoConfig
    | PushSumConfig
    | DFedSamConfig
    | VarianceCorrectedConfig
    | AdPsgdConfig
)
AnyMethod = AnyRounds | AnyGossip
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
    """Methods are imported here: torch and compiled loops are for who trains. Of one that gossips,
    what its rounds hold: checkpoints.
    """
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
        case GossipConfig():
            from node.gossip.checkpoints import Checkpoints

            return Checkpoints(config, setup)
        case _:
            assert_never(config)


def build_mixing(config: AnyGossip) -> "Mixing":
    """What an exchange of a method that gossips moves."""
    match config:
        case DPsgdConfig() | DFedSamConfig():
            from node.methods.d_psgd import Averaging

            return Averaging()
        case NoLoCoConfig():
            from node.methods.noloco import NoLoCo, NoLoCoInParts

            kind = NoLoCo if config.coded == 1 else NoLoCoInParts
            return kind(
                config.learning_rate, config.spring, config.momentum, nesterov=config.nesterov
            )
        case PushSumConfig():
            from node.methods.push_sum import PushSum

            return PushSum()
        case VarianceCorrectedConfig():
            from node.methods.variance_corrected import VarianceCorrected

            return VarianceCorrected(config.cap)
        case AdPsgdConfig():
            from node.methods import ad_psgd

            return ad_psgd.mixing(config)
        case _:
            assert_never(config)


def build_inner(config: AnyGossip, setup: "Setup", mixing: "Mixing", state: "State") -> "InnerWork":
    """What takes the inner steps of a method that gossips. Raises ConfigError."""
    match config:
        case DFedSamConfig():
            from node.methods import dfedsam

            return dfedsam.trainer(config, setup)
        case AdPsgdConfig():
            from node.methods import ad_psgd

            return ad_psgd.trainer(config, setup, mixing, state)
        case _:
            return setup.inner(config.inner)
