"""A run file: what all peers agree on, and what is this machine's own business.

`[model] [data] [method] [rules]` become the manifest, whose hash names the run. `[node]` stays on
this machine and is never hashed. Unknown keys are refused, with the nearest known one.
"""

import difflib
import json
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from node.errors import ConfigError
from node.methods.base import Attaches
from node.methods.registry import MethodConfig
from node.training.data_config import DataConfig
from node.training.model_config import ModelConfig
from node.training.optimizer_config import OwnOptimizer
from protocol.rules import PRESETS, Quorum, Rules

MANIFEST_FORMAT = 1


class _Table(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RulesConfig(_Table):
    """How rounds go; the same for all peers."""

    quorum: Literal["any", "majority"] = "any"
    """`any`: the swarm goes on whatever happens, and halves that were cut off heal later.
    `majority`: a minority waits.
    """
    network: Literal["local", "lan", "wan"] = "lan"
    """How patient peers are with each other: one machine, one building, the internet."""
    window_s: Annotated[float, Field(ge=0.001, le=86_400)] = 5.0
    """How long a peer works for one round."""
    grace_s: Annotated[float, Field(ge=0.01, le=3_600)] = 0.5
    """The least time that stragglers get past the window."""
    patience_s: Annotated[float, Field(ge=0.1, le=86_400)] = 30.0
    """The most time that stragglers get past the window."""
    heldout_every: Annotated[int, Field(ge=1, le=1_000_000)] = 10
    """Every so many rounds one member measures the held-out loss."""
    snapshot_every: Annotated[int, Field(ge=1, le=1_000_000)] = 50
    """Every so many rounds the state goes to disk on all peers, for newcomers to fetch from many.
    """
    attachment_bytes_max: Annotated[int, Field(ge=0, le=64 << 30)] | None = None
    """What one contribution may bring beside its payload, for peers to fetch from each other; left
    out, as much as the method needs for the model.
    """
    parts_max: Annotated[int, Field(ge=0, le=1_024)] | None = None
    """Into how many parts that is cut at most, each summed by one peer for all; 0: everybody gets
    everybody's; left out, as the method and the model make it worth while.
    """
    members_max: Annotated[int, Field(ge=1, le=4_096)] = 1_024

    def saying(self, attaches: Attaches) -> "RulesConfig":
        """With what a method needs where nothing was said."""
        said = self.model_dump(exclude_none=True)
        return self.model_copy(
            update={
                "attachment_bytes_max": said.get("attachment_bytes_max", attaches.bytes_max),
                "parts_max": said.get("parts_max", attaches.parts_max),
            }
        )

    def rules(self) -> Rules:
        return Rules(
            quorum=Quorum(self.quorum),
            window_ms=round(self.window_s * 1000),
            deadline_floor_ms=round(self.grace_s * 1000),
            deadline_ceiling_ms=round(max(self.grace_s, self.patience_s) * 1000),
            heldout_every=self.heldout_every,
            snapshot_every=self.snapshot_every,
            attachment_bytes_max=self.attachment_bytes_max or 0,
            parts_max=self.parts_max or 0,
            members_max=self.members_max,
            **PRESETS[self.network],
        )


class NodeConfig(_Table):
    """One machine's own settings."""

    listen: tuple[str, ...] = ("tcp://0.0.0.0:7700",)
    """Where to listen; an empty list means that nobody can dial this peer, and it dials others."""
    advertise: tuple[str, ...] = ()
    """What to tell others to dial; left out, this machine's own addresses."""
    map_port: bool = False
    """Ask the router to forward a port to this peer (NAT-PMP, then UPnP)."""
    gateway: str | None = None
    """The router to ask: its address, or the URL of its UPnP description; left out, look for it."""
    relay_bytes_per_s: Annotated[int, Field(ge=0)] = 1 << 20
    """How much to carry for members that cannot reach each other; 0: nothing."""
    device: str = "auto"
    """`auto`, `cpu`, `cuda`, `cuda:1`, `mps`."""
    kernels: Literal["auto", "reference", "cpu", "gpu"] = "auto"
    threads: Annotated[int, Field(ge=1, le=1_024)] | None = None
    """CPU threads for the arithmetic; left out, PyTorch decides."""
    processes: Annotated[int, Field(ge=1, le=64)] = 1
    """Of this peer, one for each GPU of the machine: they share out the model and take inner steps
    together. For methods that take inner steps; torchrun may start them instead.
    """
    model: str | None = None
    """Where the model is on this machine, if not where the run file says."""
    data: tuple[str, ...] = ()
    """Where the data is on this machine, if not where the run file says."""
    factories: dict[str, str] = Field(default_factory=dict)
    """For `model.kind = "factory"`: label -> `module:function`. Only this file may name code."""
    optimizer: OwnOptimizer | None = None
    """For methods that take inner steps: this machine's own, instead of the one that the run names.
    """
    metrics: str | None = None
    """`127.0.0.1:9100`: answer Prometheus there."""
    upload_mbit: Annotated[float, Field(ge=0)] = 0.0
    """At most so many Mbit/s for chunks of snapshots and large payloads that others fetch from
    here; 0: as much as the line takes.
    """


def _check_parts(method: MethodConfig, rules: RulesConfig) -> None:
    if rules.parts_max and not method.sums:
        raise ValueError(f"`rules.parts_max` is 0 for {method.name}, which merges no sums")


class RunFile(_Table):
    """A whole run, as it is written in one TOML file."""

    name: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]*$")
    ]
    model: ModelConfig
    data: DataConfig
    method: MethodConfig
    rules: RulesConfig = RulesConfig()
    node: NodeConfig = NodeConfig()

    @model_validator(mode="after")
    def _parts_are_summed(self) -> Self:
        _check_parts(self.method, self.rules)
        return self


class Manifest(_Table):
    """What all peers of a run agree on. Its bytes are hashed, so they are kept as they came."""

    format: Literal[1] = 1
    name: str
    founder: str  # public key, hexadecimal
    nonce: str  # tells apart two runs of one founder
    model: ModelConfig
    model_digest: str  # of the starting weights
    data: DataConfig
    data_digest: str | None  # None: private data, each peer's own
    method: MethodConfig
    rules: RulesConfig

    @model_validator(mode="after")
    def _parts_are_summed(self) -> Self:
        _check_parts(self.method, self.rules)
        return self

    def encode(self) -> bytes:
        return json.dumps(
            self.model_dump(mode="json"), sort_keys=True, separators=(",", ":")
        ).encode()

    @classmethod
    def decode(cls, raw: bytes) -> "Manifest":
        """Raises ConfigError for a manifest that this version cannot follow."""
        try:
            return cls.model_validate_json(raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(
                f"the run's manifest does not fit this version: {where}: {first['msg']}",
                "install the version of peertrain that the founder uses",
            ) from error


def load_run_file(path: Path) -> RunFile:
    """Raises ConfigError that names the file, the key and the nearest known key."""
    return parse_run_file(_read_toml(path), str(path))


def load_node_config(path: Path) -> NodeConfig:
    """The `[node]` table of a file; others are left alone. Raises ConfigError."""
    try:
        return NodeConfig.model_validate(_read_toml(path).get("node", {}))
    except ValidationError as error:
        raise _explain(error, str(path), ["node"]) from error


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"there is no run file {path}", "run files are in configs/") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"cannot read {path}: {error}", "a run file is a TOML text file"
        ) from error
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not TOML: {error}", "see configs/ for examples") from error


def parse_run_file(raw: Mapping[str, Any], where: str) -> RunFile:
    try:
        return RunFile.model_validate(raw)
    except ValidationError as error:
        raise _explain(error, where) from error


def _explain(error: ValidationError, where: str, table: Sequence[str] = ()) -> ConfigError:
    # A mistyped key shows twice: as one that is unknown, and as another that is missing.
    first = min(error.errors(), key=lambda found: found["type"] != "extra_forbidden")
    loc = [*table, *(str(part) for part in first["loc"])]
    if first["type"] == "extra_forbidden":
        known = sorted(_keys_beside(loc))
        near = difflib.get_close_matches(loc[-1], known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
        return ConfigError(f"{where}: unknown key {_dotted(loc)}", hint)
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = first["ctx"]
        key = f"{_dotted(loc)}.{context['discriminator'].strip(chr(39))}"
        kinds = context.get("expected_tags") or ", ".join(repr(kind) for kind in _kinds(loc))
        said = f"is {context['tag']!r}, which is none" if "tag" in context else "is missing"
        return ConfigError(f"{where}: {key} {said}", f"one of {kinds}")
    if first["type"] == "missing":
        return ConfigError(f"{where}: {_dotted(loc)} is missing", "see configs/ for examples")
    given = first.get("input")
    shown = f" (it is {given!r})" if isinstance(given, (str, int, float, bool)) else ""
    message = first["msg"].removeprefix("Value error, ")
    return ConfigError(f"{where}: {_dotted(loc)}: {message}{shown}", "see configs/ for examples")


def _dotted(loc: list[str]) -> str:
    """`model.gpt.width` -> `model.width`: the kind of a union is not a key that people write."""
    return ".".join(part for part, kinds, _ in _along(loc) if part not in kinds)


def _keys_beside(loc: list[str]) -> Iterator[str]:
    """The keys that the table around `loc` knows."""
    *_, (_, _, table) = _along(loc)
    yield from table.get("properties", {})


def _kinds(loc: list[str]) -> Iterable[str]:
    """Of the union at `loc`."""
    *_, (_, kinds, _) = _along([*loc, ""])
    return kinds


def _along(loc: list[str]) -> Iterator[tuple[str, Mapping[str, str], dict[str, Any]]]:
    """Each part of `loc`, with the kinds and the schema of the table or union that it is in."""
    schema = RunFile.model_json_schema()
    node = _resolve(schema, schema)
    for part in loc:
        kinds: dict[str, str] = node.get("discriminator", {}).get("mapping", {})
        yield part, kinds, node
        below = {"$ref": kinds[part]} if part in kinds else node.get("properties", {}).get(part, {})
        node = _resolve(schema, below)


def _resolve(schema: dict[str, Any], node: dict[str, Any]) -> dict[str, Any]:
    while True:
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[-1]]
        elif "anyOf" in node:
            tables = [option for option in node["anyOf"] if "$ref" in option]
            if not tables:
                return node
            node = tables[0]
        else:
            return node
