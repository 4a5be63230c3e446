"""Which training runs does a comparison take? Every method at every length of a round, at every
rate of its grid, from every seed; and the baseline from every seed.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from node.compare.records import BASELINE, Cell
from node.config import RunFile, load_run_file
from node.errors import ConfigError
from node.methods.registry import CONFIGS, MethodConfig, config_beside
from node.training.inner_config import InnerConfig

STEPS: Final = 300  # inner steps of each peer, unless it is said how many
OWN_RATE: Final = "own"
EVERYWHERE: Final = ""  # whose rates hold for every method without rates of its own


@dataclass(frozen=True, slots=True)
class Entrant:
    label: str
    method: MethodConfig


def entrants(run_file: RunFile, names: Sequence[str] | None) -> list[Entrant]:
    """The methods called so: names, or other run files whose [method] is meant. None: all that can
    train from scratch, of the run file's own kind. The run file's own method is as it says. Raises
    ConfigError.
    """
    own = run_file.method
    if names is None:
        kinds = CONFIGS.items()
        names = [n for n, kind in kinds if kind.from_scratch and kind.gossips == own.gossips]
    found = [_entrant(own, name) for name in names]
    if len({one.label for one in found}) < len(found):
        raise ConfigError("two methods have one name", "give their run files different names")
    return found


def _entrant(own: MethodConfig, name: str) -> Entrant:
    if name.endswith(".toml"):
        other = load_run_file(Path(name))
        return Entrant(other.name, other.method)
    if name == own.name:
        return Entrant(name, own)
    if name not in CONFIGS:
        known = ", ".join(CONFIGS)
        raise ConfigError(f"there is no method {name!r}", f"one of {known}, or a run file")
    try:
        return Entrant(name, config_beside(name, own))
    except ValidationError as error:
        missing = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise ConfigError(
            f"{name} has no defaults that fit every model: {missing} is missing",
            "name a run file with its settings instead: --methods FILE.toml",
        ) from error


def inner_of(run_file: RunFile) -> InnerConfig:
    """The inner steps that the baseline takes."""
    inner = getattr(run_file.method, "inner", None)
    return inner if isinstance(inner, InnerConfig) else InnerConfig()


def batches_for(
    steps: int | None,
    tokens: int | None,  # of all peers
    *,
    tokens_a_batch: int,
    peers: int,
    inner: InnerConfig,
    intervals: Sequence[int],
) -> int:
    """Micro-batches that each peer goes through: whole rounds of every length. A number of steps
    that was asked for is kept, or refused with ConfigError; tokens are rounded up.
    """
    whole = math.lcm(inner.accumulation, *intervals)
    if steps is not None:
        batches = steps * inner.accumulation
        if batches % whole:
            near = max(1, round(batches / whole)) * whole // inner.accumulation
            raise ConfigError(
                f"{steps} steps are no whole number of rounds of every length",
                f"--total-steps {near} are",
            )
        return batches
    least = STEPS * inner.accumulation
    if tokens is not None:
        least = -(-tokens // (tokens_a_batch * peers))
    return max(1, -(-least // whole)) * whole


def paced(entrant: Entrant, steps: Sequence[int]) -> list[tuple[int, MethodConfig]]:
    """An entrant's settings for each length of a round, with the micro-batches that a peer goes
    through in it. A method whose rounds have one length is there once. Raises ConfigError.
    """
    found: dict[int, MethodConfig] = {}
    for each in steps:
        try:
            method = entrant.method.with_steps(each)
        except ValidationError as error:
            raise ConfigError(
                f"{entrant.label} takes no {each} steps a round: {_reason(error)}", "see --steps"
            ) from error
        interval = method.batches_a_round
        if interval is None:
            raise ConfigError(f"{entrant.label} has rounds of no fixed length", "leave it out")
        found.setdefault(interval, method)
    return list(found.items())


def cells(
    entrants: Sequence[Entrant],
    steps: Sequence[int],
    # By label, or by label@H for one H; those of EVERYWHERE for all others.
    rates: Mapping[str, Sequence[str]],
    seeds: Sequence[int],
    batches: int,
    inner: InnerConfig,
) -> list[Cell]:
    """The baseline first, then a method at a time, the seeds of one setting together. Raises
    ConfigError.
    """
    _check_labels(rates, entrants, steps)
    rounds = batches // inner.accumulation
    planned = [
        Cell(
            label=BASELINE,
            method=None,
            rate=None,
            interval=inner.accumulation,
            rounds=rounds,
            seed=seed,
        )
        for seed in seeds
    ]
    for entrant in entrants:
        for interval, method in paced(entrant, steps):
            rounds = batches // interval
            for rate in _rates(entrant, interval / inner.accumulation, rates):
                tuned = _tuned(entrant, method.with_rounds(rounds), rate)
                planned += [
                    Cell(
                        label=entrant.label,
                        method=tuned,
                        rate=rate,
                        interval=interval,
                        rounds=rounds,
                        seed=seed,
                    )
                    for seed in seeds
                ]
    return planned


def _check_labels(
    rates: Mapping[str, Sequence[str]], entrants: Sequence[Entrant], steps: Sequence[int]
) -> None:
    labels = {entrant.label for entrant in entrants}
    for key in rates.keys() - {EVERYWHERE}:
        label, at, asked = key.partition("@")
        if label not in labels:
            raise ConfigError(
                f"rates are given for {label!r}, which is not compared",
                f"one of {', '.join(sorted(labels))}",
            )
        if at and asked not in map(str, steps):
            raise ConfigError(
                f"rates are given for {key!r}, and {asked or 'nothing'} is no H of this comparison",
                f"H is one of {', '.join(map(str, steps))}; see --steps",
            )


def _rates(
    entrant: Entrant, steps: float, rates: Mapping[str, Sequence[str]]
) -> Sequence[str | None]:
    """Those asked for, at this H before those for all; or the method's own grid; without one, its
    own rate.
    """
    label = entrant.label
    asked = rates.get(f"{label}@{steps:g}", rates.get(label, rates.get(EVERYWHERE)))
    grid = entrant.method.rates if asked is None else asked
    return [None if rate == OWN_RATE else rate for rate in grid] or [None]


def _tuned(entrant: Entrant, method: MethodConfig, rate: str | None) -> MethodConfig:
    if rate is None:
        return method
    try:
        return method.with_rate(rate)
    except (ValidationError, ValueError) as error:
        raise ConfigError(f"{rate!r} is no rate of {entrant.label}: {_reason(error)}",
                          "see --rates") from error  # fmt: skip


def _reason(error: ValueError) -> str:
    if isinstance(error, ValidationError):
        return str(error.errors()[0]["msg"]).removeprefix("Value error, ")
    return str(error)
