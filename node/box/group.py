"""How the processes of a peer talk to each other, by torch.distributed.

Two groups. Over `control`, on the CPU, rank 0 says what is done next; the others wait there for as
long as it takes, for a round may come in a day. Over `mesh`, on the devices, FSDP2 shares weights
and gradients; there everybody is at work, and who keeps the others waiting for many minutes is
taken for lost.
"""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from node.errors import UserError

_MEET: Final = timedelta(minutes=5)
_FOREVER: Final = timedelta(days=3650)
_LOOK_S: Final = 0.02
INTERFACES: Final = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
_LOOPBACK: Final = "lo0" if sys.platform == "darwin" else "lo"

Order = Mapping[str, Any]  # `do`, and what goes with it; as JSON


class Group:
    """What all collectives go through; each is called by all ranks, in the same order."""

    def __init__(
        self,
        rank: int,
        size: int,
        file: Path | None,  # to meet over; None: as torchrun says
        waiting: Callable[[], None] = lambda: None,  # called now and then; may raise
    ) -> None:
        """Waits for the others."""
        self.rank, self.size = rank, size
        for name in INTERFACES:
            os.environ.setdefault(name, _LOOPBACK)  # one machine: nobody else may connect
        meeting: dict[str, Any] = {"init_method": "env://"}
        if file is not None:
            store = dist.FileStore(str(file), size)  # type: ignore[attr-defined]
            store.set(f"here/{rank}", "")
            while not store.check([f"here/{other}" for other in range(size)]):
                waiting()
                time.sleep(_LOOK_S)
            meeting = {"store": store, "rank": rank, "world_size": size}
        dist.init_process_group("gloo", timeout=_MEET, **meeting)
        self._control = dist.new_group(backend="gloo", timeout=_FOREVER)
        self._mesh: DeviceMesh | None = None

    @property
    def mesh(self) -> DeviceMesh:
        assert self._mesh is not None, "`use` comes first"
        return self._mesh

    def use(self, kind: str) -> torch.device:
        """Where the shares lie: `cpu`, or `cuda`, of which each rank takes one. Returns ours."""
        device = torch.device("cuda", self.rank) if kind == "cuda" else torch.device("cpu")
        if kind == "cuda":
            torch.cuda.set_device(device)
        elif "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(max(1, torch.get_num_threads() // self.size))
        data = dist.new_group(backend="nccl" if kind == "cuda" else "gloo")
        self._mesh = DeviceMesh.from_group(data, kind)
        return device

    # Control

    def tell(self, order: Order) -> None:
        """Rank 0: what all do next."""
        raw = bytearray(json.dumps(order).encode())
        self.copy(torch.tensor([len(raw)]))
        self.copy(torch.frombuffer(raw, dtype=torch.uint8))

    def hear(self) -> dict[str, Any]:
        """The others: what rank 0 tells. Raises RuntimeError when it is gone."""
        length = torch.empty(1, dtype=torch.int64)
        self.copy(length)
        raw = torch.empty(int(length), dtype=torch.uint8)
        self.copy(raw)
        order: dict[str, Any] = json.loads(raw.numpy().tobytes())
        return order

    def copy(self, tensor: Tensor, source: int = 0) -> None:
        """It becomes what rank `source` has, in place. On the CPU, contiguous, of any type."""
        if tensor.numel():
            dist.broadcast(tensor.view(-1).view(torch.uint8), source, self._control)

    def total(self, tensor: Tensor) -> None:
        """It becomes the sum of all ranks', in place. On the CPU."""
        dist.all_reduce(tensor, group=self._control)

    def is_unanimous(self, vote: bool) -> bool:
        votes = torch.tensor(int(vote))
        self.total(votes)
        return int(votes) == self.size

    def agree(self, refusal: UserError | None) -> None:
        """Raises, if any rank refuses, on all of them: its own refusal, or the first other one."""
        said = b"" if refusal is None else f"{refusal.message}\n{refusal.hint}".encode()
        lengths = torch.zeros(self.size, dtype=torch.int64)
        lengths[self.rank] = len(said)
        self.total(lengths)
        if refusal is not None:
            self._hear_out(lengths, said)
            raise refusal
        if lengths.any():
            message, _, hint = self._hear_out(lengths, said).decode().partition("\n")
            raise UserError(message, hint)

    def _hear_out(self, lengths: Tensor, said: bytes) -> bytes:
        first = int(lengths.nonzero()[0])
        raw = torch.zeros(int(lengths[first]), dtype=torch.uint8)
        if self.rank == first:
            raw = torch.frombuffer(bytearray(said), dtype=torch.uint8)
        self.copy(raw, first)
        return raw.numpy().tobytes()
