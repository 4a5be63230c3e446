"""The `[model]` table: what can be said of a model before one is loaded, or torch is."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, model_validator


class LoraConfig(BaseModel):
    """*LoRA: Low-Rank Adaptation of Large Language Models*, https://arxiv.org/abs/2106.09685."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rank: Annotated[int, Field(ge=1, le=4096)] = 8
    alpha: Annotated[int, Field(ge=1, le=1 << 16)] = 16
    """The adapter's output is scaled by alpha / rank."""
    targets: tuple[str, ...] = ()
    """Names of the linear layers that get an adapter (`q_proj`); none: all but the output layer."""


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    dtype: Literal["fp32", "bf16"] = "fp32"
    """Of the weights. bf16 halves the memory; its updates round at random, so small steps are not
    lost.
    """
    trainable: tuple[str, ...] = ("*",)
    """Name patterns of the parameters to train (`*.mlp.*`); the others stay as they are. With
    `lora`, of the adapter's.
    """
    lora: LoraConfig | None = None
    """Train small low-rank factors beside the weights instead of the weights."""


class GptConfig(_Model):
    """The built-in model over bytes: no download, any size."""

    kind: Literal["gpt"]
    layers: Annotated[int, Field(ge=1, le=256)] = 2
    width: Annotated[int, Field(ge=4, le=1 << 14)] = 32
    heads: Annotated[int, Field(ge=1, le=256)] = 2
    hidden: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    """Width of the feed-forward layer; left out, 8/3 of `width`, rounded up to a multiple of 8."""
    context: Annotated[int, Field(ge=2, le=1 << 17)] = 64
    """The most tokens it sees at once."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Of the starting weights, which are the same on every machine."""

    @model_validator(mode="after")
    def _even_heads(self) -> Self:
        if self.width % (2 * self.heads):
            raise ValueError("`width` is a multiple of twice `heads`")
        return self

    @property
    def hidden_width(self) -> int:
        return self.hidden or -(-8 * self.width // 24) * 8


class HfConfig(_Model):
    """A Hugging Face model. Code that comes with a model is never run."""

    kind: Literal["hf"]
    path: str
    """A folder, a hub id, or `package:NAME/FOLDER` for files inside an installed Python package,
    which is not imported.
    """
    revision: str | None = None
    """Of a hub id: a branch, tag or commit."""
    gguf_file: str | None = None
    """Read this GGUF file of the folder, and de-quantise it."""
    head: Literal["causal-lm", "classifier"] = "causal-lm"
    labels: Annotated[int, Field(ge=2, le=1 << 16)] | None = None
    """Outputs of the classifier; left out, as many as the model was saved with."""


class FactoryConfig(_Model):
    """A model that each machine's owner builds with code of their own."""

    kind: Literal["factory"]
    label: str
    """Each machine's own settings say which `module:factory` this label stands for. No code is
    named here.
    """


AnyModel = GptConfig | HfConfig | FactoryConfig
ModelConfig = Annotated[AnyModel, Field(discriminator="kind")]
"""The `[model]` table, part of the manifest."""
model_config_adapter: TypeAdapter[AnyModel] = TypeAdapter(ModelConfig)
