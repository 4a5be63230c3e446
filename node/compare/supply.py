"""The training data of one cell: the same for every method, in the same order."""

from node.errors import ConfigError
from node.training.data import Data
from node.training.losses import Batch

_EPOCHS = 1 << 20  # between two seeds; no comparison lasts so long


class Supply:
    """`SlotData` that counts. Each seed has an order of its own over the same samples, and the same
    samples are held out: seed s begins with the epoch s * 2^20, and every epoch is shuffled anew.

    Split into parts, each peer has a stretch of the samples to itself (`share`); slots of the whole
    then go through the parts in turns.
    """

    private = False  # one machine holds all of it: no peer sees what another sees

    def __init__(self, data: Data, seed: int, parts: int = 1) -> None:
        """Raises ConfigError when a part would hold no batch."""
        if not data.batches_in(parts):
            raise ConfigError(
                f"the data is too short for {parts} parts: {data.samples} samples",
                "give more text, compare fewer --peers, or leave out --split",
            )
        self._data, self._parts = data, parts
        self.is_split = parts > 1
        self._first = seed * _EPOCHS * data.batches_in(parts)
        self.batches = 0  # that were asked for
        self.tokens = 0  # in them

    def batch(self, slot: int) -> Batch:
        return self.batch_of(slot % self._parts, slot // self._parts)

    def batch_of(self, part: int, slot: int) -> Batch:
        batch = self._data.batch(self._first + slot, part, self._parts)
        self.batches += 1
        self.tokens += batch.targets.numel()
        return batch

    def held_out(self) -> list[Batch]:
        return self._data.held_out()

    def share(self, seat: int) -> "Supply | Share":
        """What one peer trains on."""
        return Share(self, seat) if self.is_split else self


class Share:
    """One part, as `SlotData` of one peer alone; the whole counts."""

    private = True

    def __init__(self, supply: Supply, part: int) -> None:
        self._supply, self._part = supply, part

    def batch(self, slot: int) -> Batch:
        return self._supply.batch_of(self._part, slot)

    def held_out(self) -> list[Batch]:
        return self._supply.held_out()
