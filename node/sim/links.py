"""Kinds of connections, and who has which: presets, or a TOML file with shares.

[[link]]
name = "home"
share = 3         # three peers in four
down_mbit = 40
up_mbit = 10
delay_ms = 30     # one way, from end to end
jitter_ms = 20    # up to so much more or less
heavy_tail = true # few messages come far later still
nat = true        # nobody can dial it
loss = 0.001      # of messages

[[link]]
name = "campus"
share = 1
...

`configs/links-home.toml` is one to start from.
"""

import random
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from node.errors import ConfigError
from node.sim.network import Link

_BYTES_PER_MS: Final = 125.0  # in one Mbit/s

Rate = Annotated[float, Field(gt=0, le=1_000_000)]
Time = Annotated[float, Field(ge=0, le=60_000)]
Chance = Annotated[float, Field(ge=0, lt=1)]


class LinkKind(BaseModel):
    """One kind of connection."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Annotated[str, Field(min_length=1, max_length=64)]
    share: Annotated[float, Field(gt=0)] = 1.0
    """Out of the sum of all shares: how many peers have it."""
    down_mbit: Rate
    up_mbit: Rate
    delay_ms: Time
    """One way, from end to end. Between two kinds it is the mean of theirs."""
    jitter_ms: Time = 0.0
    """The delay is up to so much longer or shorter."""
    heavy_tail: bool = False
    """Wireless and busy lines: the delay is longer only, in half of all cases by more than
    `jitter_ms`, in one of a hundred by more than ten times as much, and never by more than fifty.
    """
    loss: Chance = 0.0
    """Of messages. TCP repairs what its packets lose, so this is for broken connections."""
    nat: bool = False
    """Behind a router that lets nobody in: reached over the connections that it opened itself."""

    @model_validator(mode="after")
    def _no_time_travel(self) -> Self:
        if self.jitter_ms > self.delay_ms and not self.heavy_tail:
            raise ValueError("jitter_ms must not be more than delay_ms")
        return self

    def link(self) -> Link:
        delay_ms, jitter_ms = self.delay_ms - self.jitter_ms, 2 * self.jitter_ms
        if self.heavy_tail:
            delay_ms, jitter_ms = self.delay_ms, self.jitter_ms
        return Link(
            delay_ms=delay_ms,
            jitter_ms=jitter_ms,
            heavy_tail=self.heavy_tail,
            loss=self.loss,
            nat=self.nat,
            up_bytes_per_ms=self.up_mbit * _BYTES_PER_MS,
            down_bytes_per_ms=self.down_mbit * _BYTES_PER_MS,
        )


class LinkFile(BaseModel):
    """What `--links` reads."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    link: Annotated[tuple[LinkKind, ...], Field(min_length=1, max_length=64)]


PRESETS: Final[dict[str, LinkKind]] = {
    "lan": LinkKind(name="lan", down_mbit=1000, up_mbit=1000, delay_ms=0.5, jitter_ms=0.3),
    "home": LinkKind(name="home", down_mbit=40, up_mbit=10, delay_ms=30, jitter_ms=20),
    "wan": LinkKind(name="wan", down_mbit=200, up_mbit=200, delay_ms=80, jitter_ms=40),
}


def load_links(path: Path) -> tuple[LinkKind, ...]:
    """The kinds in a file. Raises ConfigError with what is wrong and where."""
    try:
        return LinkFile.model_validate(tomllib.loads(path.read_text("utf-8"))).link
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", "check the path") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not TOML: {error}", "mend that line") from error
    except ValidationError as error:
        # A misspelt key is also a missing one; the misspelling is the better hint.
        first = min(error.errors(), key=lambda one: one["type"] != "extra_forbidden")
        where = ".".join(str(part) for part in first["loc"])
        keys = ", ".join(LinkKind.model_fields)
        raise ConfigError(f"{path}: {where}: {first['msg']}", f"keys: {keys}") from error


def links_named(name: str) -> tuple[LinkKind, ...]:
    """A preset's name, or the path of a file."""
    if name in PRESETS:
        return (PRESETS[name],)
    if not name.endswith(".toml"):
        known = ", ".join(sorted(PRESETS))
        raise ConfigError(f"no kind of link is called {name!r}", f"one of {known}, or a .toml file")
    return load_links(Path(name))


def deal(kinds: Sequence[LinkKind], peers: int, seed: int) -> list[LinkKind]:
    """One kind for each peer: by share to the nearest whole peer, in an order drawn from `seed`."""
    total = sum(kind.share for kind in kinds)
    exact = [kind.share / total * peers for kind in kinds]
    counts = [int(count) for count in exact]
    # What rounding down left over goes to whoever lost most by it.
    losses = sorted(range(len(kinds)), key=lambda at: counts[at] - exact[at])
    for at in losses[: peers - sum(counts)]:
        counts[at] += 1
    dealt = [kind for kind, count in zip(kinds, counts, strict=True) for _ in range(count)]
    random.Random(f"links {seed}").shuffle(dealt)
    return dealt
