"""Inner steps that the ranks of a box take together: the same steps as one process would take.

A step is as many micro-batches as the run says, whatever the number of ranks. As long as there is
one left for each rank, each takes one whole; what is left over is split by rows. So all ranks run
the model equally often, as FSDP2 needs, and peers of any size count their steps alike.

Rank 0 alone knows the slots and the time. Before each turn it says which micro-batches come next,
or that it is over, so the ranks never part.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

import torch
from torch import Tensor, nn

from node.box import sharding
from node.box.group import Group
from node.errors import UserError
from node.training.gradient import MeanGradient, parameter_number
from node.training.inner import InnerReport, InnerTrainer, Seen
from node.training.inner_config import InnerConfig
from node.training.inner_optimizer import parameter_in
from node.training.losses import Batch

_OVER: Final = -1  # in place of a slot

Described = Sequence[tuple[str, str, Sequence[int]]]  # of tensors: name, type, shape


class SharedSteps(InnerTrainer):
    """Each method is called by all ranks at once."""

    def __init__(
        self,
        config: InnerConfig,
        model: nn.Module,  # shared out here, in place
        loss: Callable[[nn.Module, Batch], Tensor],
        batch: Callable[[int], Batch],
        group: Group,
        whole: nn.Module | None,  # rank 0's: every rank begins with its weights and buffers
        adds_up: bool = False,  # gradients, instead of taking steps
    ) -> None:
        """Raises UserError, on all ranks, when the model cannot be trained or shared out."""
        refusal: UserError | None = None
        try:
            sharding.shard(model, group.mesh)
            gradient = MeanGradient(model) if adds_up else None
            super().__init__(config, model, loss, batch, None, gradient)
        except UserError as error:
            refusal = error
        group.agree(refusal)  # this is where those wait that have loaded faster
        self._group = group
        self._shares = [share for _, share in self._named]
        for of in (nn.Module.parameters, nn.Module.buffers):
            source = None if whole is None else list(of(whole))
            sharding.spread(source, list(of(model)), group.mesh)
        names = {name for name, _ in self._named}
        self._whole = None
        if whole is not None:
            self._whole = [p for name, p in whole.named_parameters() if name in names]

    def take_round(
        self,
        round: int,
        slots: Iterator[int],  # these two are rank 0's to ask
        expired: Callable[[], bool],
        before: InnerReport,
        least: int | None,
    ) -> InnerReport:
        """Inner steps from the weights of rank 0's whole model, in place there. All ranks report
        the same.
        """
        sharding.spread(self._whole, self._shares, self._group.mesh)
        report = self.work(round, slots, expired, before, least)
        sharding.gather(self._shares, self._whole)
        return report

    def whole_state(self) -> dict[str, Tensor]:
        """What one process would have as its local state, on the CPU."""
        return {name: sharding.whole_of(t).cpu() for name, t in self.local_state().items()}

    def load_whole_state(self, described: Described, state: Mapping[str, Tensor]) -> None:
        """`state` is rank 0's, and `described` what all know of it. Raises ValueError on all ranks
        alike, and leaves everything as it was, when it is not the state of such an optimizer.
        """
        self.load_local_state(
            {name: self._share(name, t) for name, t in self._copies(described, state)}
        )

    def _copies(
        self, described: Described, state: Mapping[str, Tensor]
    ) -> Iterator[tuple[str, Tensor]]:
        for name, dtype, shape in described:
            if self._group.rank == 0:
                copy = state[name].cpu().contiguous()
            else:
                copy = torch.empty(shape, dtype=getattr(torch, dtype))
            self._group.copy(copy)
            yield name, copy

    def _share(self, full_name: str, whole: Tensor) -> Tensor:
        name, number = parameter_in(full_name), parameter_number(full_name)
        if number is None:
            like = next((share for of, share in self._named if of == name), None)
        else:
            like = self._shares[number] if number < len(self._shares) else None
        return whole if like is None else sharding.share_of(whole, like)

    # One step

    def _accumulate(self, slots: Iterator[int], expired: Callable[[], bool]) -> Seen | None:
        """Not cut short: all ranks have begun with what a loss that is not finite is part of."""
        group, count = self._group, self.config.accumulation
        losses, tokens = torch.zeros(2, count, dtype=torch.float64)
        done = 0
        while done < count:
            each = count - done >= group.size  # has a micro-batch of its own
            dealt = self._dealt(group.size if each else 1, slots, expired)
            if dealt is None:
                return None
            mine = group.rank if each else 0
            batch = self._batch(dealt[mine])
            part, share = (batch, 1.0) if each else rows_of(batch, group.rank, group.size)
            loss = self._backward_share(part.to(self._device), share)
            losses[done + mine] = loss * share
            tokens[done + mine] = part.targets.numel() if share else 0
            done += len(dealt)
        return self._together(losses, tokens)

    def _dealt(
        self, count: int, slots: Iterator[int], expired: Callable[[], bool]
    ) -> list[int] | None:
        """The slots of the next micro-batches, as rank 0 says. None when time or slots ran out."""
        dealt = torch.full((count,), _OVER)
        if self._group.rank == 0 and not expired():
            taken = list(islice(slots, count))
            if len(taken) == count:
                dealt = torch.tensor(taken)
        self._group.copy(dealt)
        return None if _OVER in dealt else dealt.tolist()

    def _backward_share(self, batch: Batch, share: float) -> float:
        """`batch` is `share` of a micro-batch. FSDP2 takes the mean over ranks; the sum is due."""
        with torch.autocast(self._device.type, torch.bfloat16, self.config.autocast is not None):
            loss = self._loss(self._model, batch)
        weight = share * self._group.size / self.config.accumulation
        (loss * weight).backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def _together(self, losses: Tensor, tokens: Tensor) -> Seen:
        both = torch.stack([losses, tokens])
        self._group.total(both)
        seen = Seen()
        for loss, count in both.T.tolist():
            seen.add(loss, int(count))
        return seen

    def _norm(self) -> Tensor:
        return sharding.whole_of(super()._norm())

    def _clip(self) -> bool:
        return self._group.is_unanimous(super()._clip())


def rows_of(batch: Batch, rank: int, size: int) -> tuple[Batch, float]:
    """A rank's rows of a micro-batch, and what share of it they are. Who has none looks at one all
    the same, which does not count: FSDP2 needs everybody.
    """
    rows = len(batch.inputs)
    mine = slice(rank, rows, size) if rank < rows else slice(0, 1)
    part = Batch(
        batch.inputs[mine],
        batch.targets[mine],
        None if batch.lengths is None else batch.lengths[mine],
        batch.label_words,
    )
    return part, part.targets.numel() / batch.targets.numel() if rank < rows else 0.0
