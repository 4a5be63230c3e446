"""What is trained in a comparison, and what came of it: what is written to disk.

A cell is one training run. It says everything on which its outcome depends, together with the task,
which all cells share; a hash of both is the cell's name on disk.
"""

import json

from blake3 import blake3
from pydantic import BaseModel, ConfigDict

from node.methods.registry import MethodConfig
from node.training.data_config import DataConfig
from node.training.inner_config import InnerConfig
from node.training.model_config import ModelConfig
from node.training.optimizer_config import OwnOptimizer

BASELINE = "synchronous"
_FORMAT = "peertrain comparison 1"


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Task(Record):
    """What all cells of a comparison share."""

    model: ModelConfig
    model_digest: str
    data: DataConfig
    data_digest: str
    inner: InnerConfig
    """Of the baseline, and of methods that say nothing else."""
    optimizer: OwnOptimizer | None
    """This machine's own, instead of the one in `inner`."""
    peers: int
    batches: int
    """Micro-batches that each peer goes through, in all."""
    device: str
    split: bool = False
    """Each peer trains on a stretch of the data that no other sees."""

    @property
    def parts(self) -> int:
        return self.peers if self.split else 1


class Cell(Record):
    """One training run."""

    label: str
    """What the method is called in tables."""
    method: MethodConfig | None
    """Ready to be built; None: the baseline."""
    rate: str | None
    """Of everyone's update; None: as `method` has it."""
    interval: int
    """Micro-batches that each peer goes through between two exchanges."""
    rounds: int
    seed: int

    def key(self, task: Task) -> str:
        known = self.model_dump(mode="json", exclude={"label", "rate"})
        fields = [_FORMAT, task.model_dump(mode="json"), known]
        return blake3(json.dumps(fields, sort_keys=True).encode()).hexdigest(length=12)


class Outcome(Record):
    """Measured while a cell was trained. Bytes and seconds are of one peer and one round."""

    loss: float | None
    """Held out, at the end; None: training diverged."""
    curve: tuple[tuple[int, float], ...]
    """Micro-batches that each peer has gone through, and the held-out loss then."""
    tokens: int
    """That all peers together trained on."""
    parameters: int
    """Trained ones."""
    sent_bytes: float
    """Payload and attachment, once, on average over rounds and peers. Where parts are summed: all
    that leaves a peer.
    """
    received_bytes: float
    """Payloads and attachments of all others; or payloads, parts that it sums, and sums."""
    work_s: float
    """Inner steps and what makes a payload of them: the median over rounds and peers."""
    merge_s: float
    """To check and merge a round's contributions: the median over rounds and peers."""
    digests: tuple[str, ...]
    """Of each replica at the end; empty for the baseline, which has one, and where peers gossip."""
    own_losses: tuple[float, ...] = ()
    """Held out at the end, of each peer's own model, where peers gossip. `loss` is then that of
    their mean.
    """

    @property
    def agrees(self) -> bool:
        """P1"""
        return len(set(self.digests)) <= 1


class Finished(Record):
    task: Task
    cell: Cell
    outcome: Outcome
