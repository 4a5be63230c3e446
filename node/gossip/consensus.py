"""How far are peers apart, and how fast do they come together? From a few hundred bytes a peer.

The consensus distance is (1/N) sum_i ||x_i - x_bar||^2. Each peer says the values of K coordinates
of its model, which a seed chooses anew for each look, the same ones on every peer. The mean over
these of the squared differences, times the number of all coordinates, is an unbiased estimate: its
relative error falls as 1/sqrt(K), and with it the weight of single coordinates that stand out.

Exchanges alone multiply the expected distance by a factor that the pairing determines; `expected`
has those with a closed form. Steps add to it. So a round's mixing rate is the distance after its
exchanges by that before them, both on the same coordinates.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from blake3 import blake3
from torch import Tensor

from node.methods.parts.gossip_config import Kind
from node.training.order import permuted

COORDINATES: Final = 64  # 256 bytes of float32
_CONTEXT: Final = "peertrain 2026-11 gossip sample v1"


def coordinates(
    size: int,  # of the flat vector
    seed: bytes,  # of the run
    look: int,  # which look: each has its own
    count: int = COORDINATES,
) -> Tensor:
    """(min(count, size),) int64: distinct places, in the order in which their values are told."""
    key = int.from_bytes(blake3(seed, derive_key_context=_CONTEXT).digest(length=8), "little")
    places = permuted(np.arange(min(count, size), dtype=np.int64), size, look, key)
    return torch.from_numpy(places)


def sketch(model: Tensor, places: Tensor) -> bytes:
    """What a peer tells of its model: float32, little-endian."""
    return model[places.to(model.device)].float().cpu().numpy().astype("<f4").tobytes()


def read_sketch(data: bytes, count: int) -> Tensor:
    """(count,) float32. Raises ValueError for anything else, and for what is not finite."""
    if len(data) != 4 * count:
        raise ValueError(f"a sketch of {count} values has {4 * count} bytes, not {len(data)}")
    values = torch.from_numpy(np.frombuffer(data, "<f4").astype(np.float32))
    if not bool(values.isfinite().all()):
        raise ValueError("a sketch holds values that are not finite")
    return values


def estimate(sketches: Sequence[Tensor] | Tensor, size: int) -> float:
    """The consensus distance, from (K,) values of each peer."""
    values = (sketches if isinstance(sketches, Tensor) else torch.stack(list(sketches))).double()
    apart = values - values.mean(0)
    return float(apart.square().mean()) * size


def distance(models: Tensor) -> float:
    """The same, exactly, of (N, n) whole models."""
    apart = models.double() - models.double().mean(0)
    return float(apart.square().sum(1).mean())


def expected(kind: Kind, members: int, group: int = 2) -> float | None:
    """By what one round of exchanges multiplies the expected distance, for any models; None: there
    is no such factor (a ring's depends on where models lie along it).

    Random groups of n of N: the mean of n that are drawn without putting back has 1/n of the
    variance, times (N - n) / (N - 1). Who is left over keeps its own, or meets in a smaller group.
    """
    if members < 2:
        return 1.0
    match kind:
        case "matching" | "groups":
            size = 2 if kind == "matching" else group
            whole, rest = divmod(members, size)
            shares = [size] * whole + [rest] * bool(rest)
            kept = sum(n * (members - n) / (n * (members - 1)) for n in shares)
            return kept / members
        case _:
            return None


def rate(distances: Sequence[float]) -> float | None:
    """By what each look's distance is that of the one before, the geometric mean; None: unknown."""
    if len(distances) < 2 or min(distances) <= 0:
        return None
    ratio: float = (distances[-1] / distances[0]) ** (1 / (len(distances) - 1))
    return ratio
