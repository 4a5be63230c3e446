"""Optimizers of inner steps: those that a run may name, and one that a machine's owner brings."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Rate = Annotated[float, Field(gt=0, le=1000, allow_inf_nan=False)]
Decay = Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)]
Momentum = Annotated[float, Field(ge=0, lt=1, allow_inf_nan=False)]
_NAME = r"[A-Za-z_][A-Za-z0-9_]*"


class Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class AdamWConfig(Table):
    """*Decoupled Weight Decay Regularization*, https://arxiv.org/abs/1711.05101."""

    name: Literal["adamw"] = "adamw"
    lr: Rate = 4e-4
    betas: tuple[Momentum, Momentum] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 1e-8
    weight_decay: Decay = 0.1
    """Shrinks a weight by `lr * weight_decay` of itself a step."""


class SgdConfig(Table):
    name: Literal["sgd"]
    lr: Rate
    momentum: Momentum = 0.0


class MuonConfig(Table):
    """*Muon: An optimizer for hidden layers in neural networks*, https://kellerjordan.github.io/posts/muon/.

    It moves the matrices of hidden layers, by `lr * sqrt(fan_out / fan_in)` times an orthogonal
    matrix. Embeddings, output layers and everything that is not a matrix go by AdamW.
    """

    name: Literal["muon"]
    lr: Rate = 0.02
    momentum: Momentum = 0.95
    weight_decay: Decay = 0.01
    """Shrinks a weight by `lr * weight_decay` of itself a step, whatever its matrix' shape."""
    ns_steps: Annotated[int, Field(ge=1, le=20)] = 5
    """Newton-Schulz iterations: how nearly orthogonal an update is."""
    others: AdamWConfig = AdamWConfig()
    """For what Muon does not move."""
    not_hidden: tuple[str, ...] = ("*embed*", "*lm_head.*", "*score.*", "*classifier.*", "head.*")
    """Name patterns of matrices that go by AdamW, too. Embedding layers need not be named."""


OptimizerConfig = AdamWConfig | SgdConfig | MuonConfig


class OwnOptimizer(Table):
    """The `[node.optimizer]` table."""

    path: Annotated[str, Field(pattern=rf"^{_NAME}(\.{_NAME})*[.:]{_NAME}$")]
    """`torch.optim.Adagrad`, or `my_module:make_optimizer`: a class or a function that is called
    with a list of parameters and `options`.
    """
    options: dict[str, Any] = Field(default_factory=dict)
    """Its keyword arguments."""
