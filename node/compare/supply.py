"""The training data of one cell: the same for every method, in the same order."""

from node.training.data import Data
from node.training.losses import Batch

_EPOCHS = 1 << 20  # between two seeds; no comparison lasts so long


class Supply:
    """`SlotData` that counts. Each seed has an order of its own over the same samples, and the same
    samples are held out: seed s begins with the epoch s * 2^20, and every epoch is shuffled anew.
    """

    private = False  # one machine holds all of it: no peer sees what another sees

    def __init__(self, data: Data, seed: int) -> None:
        self._data = data
        self._first = seed * _EPOCHS * data.batches
        self.batches = 0  # that were asked for
        self.tokens = 0  # in them

    def batch(self, slot: int) -> Batch:
        batch = self._data.batch(self._first + slot)
        self.batches += 1
        self.tokens += batch.targets.numel()
        return batch

    def held_out(self) -> list[Batch]:
        return self._data.held_out()
