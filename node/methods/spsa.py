"""SPSA with shared directions: one byte a gradient.

*Just One Byte (per gradient): A Note on Low-Bandwidth Decentralized Language Model Finetuning Using
Shared Randomness* (Zelikman et al., 2023, https://arxiv.org/abs/2306.10015), on MeZO, *Fine-Tuning
Language Models with Just Forward Passes* (Malladi et al., 2023, https://arxiv.org/abs/2305.17333).
Probe j of peer m in round r:

    s = s(run, r, m, j), one random sign an element
    g = (L(theta + epsilon s) - L(theta - epsilon s)) / (2 epsilon)
    b = g / unit, rounded to a byte

and everyone's update, over the n probes that the round holds:

    theta <- theta - (rate * unit / n) * sum b s

Differences from the paper: signs instead of Gaussians, because they are the same on every device;
the mean over n, not the sum over sqrt(n); bytes linear in g with a unit that the ledger sets; theta
is never perturbed in place.

With `seeds.pool` it becomes FedKSeed: directions come from a fixed pool and the model is one
integer for each of them (`parts/pool.py`).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from node.methods.base import Contribution, GoesOn, RoundContext, WorkResult
from node.methods.parts import seeds, units
from node.methods.parts.backlog import Backlog, Measured
from node.methods.parts.pool import SHIFT_MAX, Chooser
from node.methods.parts.probes import AGE_MAX, PROBES_MAX, Probe, decode, encode
from node.methods.parts.setup import Setup
from node.methods.parts.slots import Consumed, SlotQueue
from node.methods.parts.weights import FreeWeights, PooledWeights
from node.methods.spsa_config import SpsaConfig
from node.training.losses import Batch

BATCH = 256  # probes in one pass over the weights: step * their sum is exact in float32


@dataclass(slots=True)
class _Merging:
    """One probe on its way into the weights."""

    peer: bytes
    origin: int  # round
    probe: Probe


class Spsa:
    def __init__(self, config: SpsaConfig, setup: Setup, draw: random.Random | None = None) -> None:
        """`draw` rounds this peer's own bytes; it is private, and from the system unless a test
        gives one.
        """
        self.config = config
        self._setup = setup
        self._draw = draw or random.Random()
        self._view = setup.perturbed()
        self._exponent = config.unit_exponent
        self._exponent_range = (units.EXPONENT_MIN, units.EXPONENT_MAX)
        self._queue = SlotQueue()
        self._backlog = Backlog()
        self._units: dict[int, int] = {}  # exponents of the last rounds that were merged
        self._weights: FreeWeights | PooledWeights = FreeWeights(self._view, setup.kernels)
        if config.seeds is not None:
            self._exponent_range = (self._exponent - SHIFT_MAX, self._exponent + SHIFT_MAX)
            self._weights = PooledWeights(
                self._view, setup.kernels, setup.run, config.seeds.pool, config.seeds.significance,
                Fraction(config.learning_rate.peak), config.unit_exponent,
            )  # fmt: skip

    # Local work.

    def work(self, round: RoundContext) -> WorkResult:
        """Probe until the window is over. Work that missed an earlier round rides along."""
        late = self._backlog.take(round.round, PROBES_MAX - 1)
        count = min(self.config.probes or self.config.probes_max, PROBES_MAX - len(late))
        first = self._backlog.first_index(round.round, count)
        chooser = self._weights.chooser()
        fresh: dict[int, Measured] = {}
        losses: list[float] = []
        for index in range(first, first + count):
            fresh[index], loss = self._measure(round, index, chooser)
            if loss - loss == 0:  # finite
                losses.append(loss)
            if self.config.probes is None and round.expired():
                break
        offered = late | {(round.round, index): probe for index, probe in fresh.items()}
        payload = encode(self._as_probes(round.round, offered), self._weights.pool_size is not None)
        self._backlog.offer(round.round, payload, offered)
        return WorkResult(payload, sum(losses) / len(losses) if losses else None)

    @property
    def goes_on(self) -> GoesOn:
        return GoesOn.NEVER if self.config.probes is not None else GoesOn.WHEN_OVERDUE

    def overtime(self, round: RoundContext) -> None:
        """More probes of an overdue round, for the next one to carry."""
        chooser = self._weights.chooser()
        index = self._backlog.first_index(round.round, 1)
        while index < self.config.probes_max and not round.expired():
            measured, _ = self._measure(round, index, chooser)
            self._backlog.wait((round.round, index), measured)
            index += 1

    def _measure(
        self, round: RoundContext, index: int, chooser: Chooser | None
    ) -> tuple[Measured, float]:
        """One probe: its byte, and the mean of its two losses."""
        if chooser is None:
            choice, key = None, seeds.probe_key(round.run, round.round, round.peer, index)
        else:
            choice = chooser.choose(round.round, round.peer, index)
            key = seeds.pool_key(round.run, choice)
        epsilon = self.config.epsilon
        batch = self._setup.data.batch(self._slot(round, index)).to(self._view.device)
        up, down = (self._loss_at(key, scale, batch) for scale in (epsilon, -epsilon))
        gradient = (up - down) / (2 * epsilon)
        value = units.quantise(gradient, self._exponent, self._draw)
        return Measured(value, self._exponent, choice), (up + down) / 2

    def _loss_at(self, key: int, scale: float, batch: Batch) -> float:
        with torch.no_grad(), self._view.at(key, scale):
            return float(self._setup.loss(self._view.model, batch))

    def _slot(self, round: RoundContext, index: int) -> int:
        if self._setup.data.private:
            return self._backlog.next_private_slot()
        return self._queue.slot(round.seats.index(round.peer), len(round.seats), index)

    def _as_probes(self, now: int, measured: Mapping[tuple[int, int], Measured]) -> Iterator[Probe]:
        for (origin, index), m in measured.items():
            value = units.recode(m.value, m.exponent, self._exponent)
            yield Probe(now - origin, index, value, m.choice if origin < now else None)

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        if attachment:
            raise ValueError("probes need no attachment")

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """What we offered to `round` is not in it, or no longer: it waits for the next one."""
        if not self._backlog.give_back(round, payload):
            self._recall(round, payload)

    def _recall(self, round: int, payload: bytes) -> None:
        """Offered before this process began: the bytes are from the disk, the unit from the ledger,
        as far back as it was replayed. In a pooled run the directions of fresh probes are gone.
        """
        exponent, pool = self._units.get(round), self._weights.pool_size
        if exponent is not None:
            probes = {
                (round - p.age, p.index): Measured(p.value, exponent, p.choice)
                for p in decode(payload, pool)
                if pool is None or p.choice is not None
            }
            self._backlog.offer(round, payload, probes)
            self._backlog.give_back(round, payload)

    def settled(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        """What we offered to `round` is in the state that was loaded."""
        probes = decode(payload, self._weights.pool_size)
        self._backlog.committed((round - p.age, p.index) for p in probes)

    # The replicated update.

    def weigh(self, payload: bytes) -> int:
        return self.config.weigh(payload)

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        self._units[round.round] = self._exponent
        oldest = round.round - AGE_MAX
        self._units = {number: unit for number, unit in self._units.items() if number >= oldest}
        merging = [m for c in contributions for m in self._decode(round.round, c)]
        self._backlog.committed((m.origin, m.probe.index) for m in merging if m.peer == round.peer)
        self._backlog.forget_before(round.round)
        if not merging:
            return
        if not self._setup.data.private:
            self._queue = self._queue.consume(len(round.seats), _consumed(round, merging))
        rate = self.config.learning_rate.rate(round.round)
        self._move(round, merging, rate)
        values = [m.probe.value for m in merging]
        self._exponent = units.next_exponent(self._exponent, values, *self._exponent_range)

    def _decode(self, now: int, contribution: Contribution) -> Iterator[_Merging]:
        for probe in decode(contribution.payload, self._weights.pool_size):
            if probe.age <= now:
                yield _Merging(contribution.peer, now - probe.age, probe)

    def _move(self, round: RoundContext, merging: Sequence[_Merging], rate: Fraction) -> None:
        """theta <- theta - (rate * unit / n) * sum b s."""
        weight = max(len(merging), self.config.full_round)
        if isinstance(self._weights, FreeWeights):
            unit = Fraction(2) ** self._exponent
            step = units.round_step(rate * unit / weight)
            moving = [m for m in merging if m.probe.value]
            for number, at in enumerate(range(0, len(moving), BATCH)):
                batch = moving[at : at + BATCH]
                keys = [seeds.probe_key(round.run, m.origin, m.peer, m.probe.index) for m in batch]
                noise = seeds.noise_key(round.run, round.round, number)
                self._weights.move(keys, [m.probe.value for m in batch], step, noise)
            return
        chooser = self._weights.chooser()
        probes = [(_choice(m, chooser), m.probe.value) for m in merging]
        self._weights.move(probes, rate / weight, self._exponent)

    # State.

    def replicated_state(self) -> dict[str, Tensor]:
        return {
            **self._weights.state(),
            "spsa.exponent": torch.tensor([self._exponent]),
            "spsa.slots": self._queue.tensor(),
        }

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError, and leaves everything as it was, when the state is not one of ours."""
        exponent = state["spsa.exponent"]
        if exponent.dtype != torch.int64 or exponent.shape != (1,):
            raise ValueError("spsa.exponent is one int64")
        low, high = self._exponent_range
        if not low <= int(exponent) <= high:
            raise ValueError("spsa.exponent is out of range")
        queue = SlotQueue.from_tensor(state["spsa.slots"])
        self._weights.load(state)
        self._exponent, self._queue = int(exponent), queue

    def state_digest(self, key: int = 0) -> int:
        """A hash of the replicated state, modulo 2**64. `key` should come from the round that is
        checked.
        """
        small = [
            t.cpu().flatten() for n, t in self.replicated_state().items() if t.dtype == torch.int64
        ]
        total = self._weights.digest(key)
        integers = torch.cat(small).to(self._view.device)
        total += self._setup.kernels.digest(integers, self._view.size, key)
        return total % 2**64

    def local_state(self) -> dict[str, Tensor]:
        return self._backlog.state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._backlog.load(state)


def _consumed(round: RoundContext, merging: Sequence[_Merging]) -> list[Consumed]:
    """Which places of the queue the fresh probes took. Late ones had theirs in an earlier round."""
    seat = {peer: i for i, peer in enumerate(round.seats)}
    counts: dict[int, list[int]] = {}
    for m in merging:
        if m.origin == round.round and m.peer in seat:
            counts.setdefault(seat[m.peer], []).append(m.probe.index)
    return [c for s, indices in counts.items() for c in _spans(s, indices)]


def _spans(seat: int, indices: Sequence[int]) -> Iterator[Consumed]:
    start = 0
    for i in range(1, len(indices) + 1):
        if i == len(indices) or indices[i] != indices[i - 1] + 1:
            yield Consumed(seat, indices[start], i - start)
            start = i


def _choice(merging: _Merging, chooser: Chooser | None) -> int:
    """A late probe names its pool index, because the weights it was drawn with are gone."""
    if merging.probe.choice is not None:
        return merging.probe.choice
    assert chooser is not None
    return chooser.choose(merging.origin, merging.peer, merging.probe.index)
