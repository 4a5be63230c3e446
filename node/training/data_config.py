"""The `[data]` table: what can be said of a run's data before any of it is read."""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


Strings = Annotated[tuple[str, ...], BeforeValidator(_listed)]


class DataConfig(BaseModel):
    """Part of the manifest: all peers agree on it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    source: Literal["python-stdlib", "text", "jsonl", "parquet", "tokens", "hub"]
    """`tokens`: flat binary files of token ids. `hub`: a Hugging Face data set."""
    path: Strings = ()
    """Files, folders or globs, relative to this machine's data folder; for `hub` the data set's
    name.
    """
    subset: str | None = None
    """Of a hub data set."""
    split: str = "train"
    """Of a hub data set. Held-out samples are taken from it, too."""
    task: Literal["language-model", "label-words", "classifier"] = "language-model"
    """`label-words` asks a language model which of a few words follows a prompt; `classifier` uses
    the model's head.
    """
    text_field: str = "text"
    label_field: str = "label"
    labels: tuple[str | int, ...] = ()
    """What the label field may hold, in the order of the model's outputs."""
    template: str = "{text}"
    """The prompt, for `label-words` and `classifier`."""
    label_words: tuple[str, ...] = ()
    """One for each of `labels`; with the leading space that the tokenizer wants. Their first tokens
    must differ.
    """
    token_bytes: Literal[2, 4] = 2
    """Width of one id in `tokens` files, little endian."""
    context: Annotated[int, Field(ge=2, le=1 << 20)] = 128
    """Tokens in a sample. Longer texts lose their beginning."""
    batch: Annotated[int, Field(ge=1, le=1 << 16)] = 8
    """Samples in a batch; one probe looks at one batch."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Share of the documents that no peer trains on."""
    held_out_batches: Annotated[int, Field(ge=1, le=4096)] = 16
    """How many batches of them an evaluation reads."""
    bytes_max: Annotated[int, Field(ge=1 << 10)] = 4 << 20
    """Text beyond this is left unread. Token files are never cut."""
    seed: Annotated[int, Field(ge=0, lt=1 << 63)] = 0
    """Of the split and the order."""
    private: bool = False
    """Each peer trains on its own folder, which nobody else sees or can check."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.source != "python-stdlib" and not self.path:
            raise ValueError(f"source = {self.source!r} needs a `path`")
        if self.source == "hub" and len(self.path) != 1:
            raise ValueError("source = 'hub' takes one name in `path`")
        if self.task != "language-model":
            if self.source in ("python-stdlib", "text", "tokens"):
                raise ValueError(f"source = {self.source!r} has no labels")
            if len(self.labels) < 2 or "{text}" not in self.template:
                raise ValueError("a classification names its `labels` and has {text} in `template`")
        if self.task == "label-words" and len(self.label_words) != len(self.labels):
            raise ValueError("`label_words` has one word for each of `labels`")
        return self
