"""A model shared out over the ranks by FSDP2: each holds a slice of every tensor.

Layers of the model's stack are gathered one at a time, so a rank never holds more than one of them
whole, beside what is in no layer.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from node.errors import ConfigError
from node.training.checkpointing import find_layers

_HINT = "leave out `processes` in [node]: one process can train it"


def shard(model: nn.Module, mesh: DeviceMesh) -> None:
    """In place. Raises ConfigError for a model that cannot be shared out."""
    layers = find_layers(model)
    _check_ties(model, layers)
    for module in model.modules():
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            module.sparse = False  # sparse gradients cannot be averaged; dense ones are the same
    left_whole = _left_whole(model)
    for part in (*layers, model):
        fully_shard(part, mesh=mesh, ignored_params=left_whole)


def _left_whole(model: nn.Module) -> set[nn.Parameter]:
    """What FSDP2 cannot slice. None of it may be trained: nobody would average its gradient."""
    scalars = {name: p for name, p in model.named_parameters() if p.dim() == 0}
    for name, parameter in scalars.items():
        if parameter.requires_grad:
            raise ConfigError(
                f"{name} is a single number without dimensions, which FSDP2 cannot share out",
                f"{_HINT}; or give it a dimension",
            )
    return {p for p in model.parameters() if not p.numel()} | set(scalars.values())


def _check_ties(model: nn.Module, layers: Sequence[nn.Module]) -> None:
    """FSDP2 slices each layer by itself, so a tensor that two of them use would fall apart."""
    inside = {id(module) for layer in layers for module in layer.modules()}
    groups = [list(layer.parameters()) for layer in layers]
    groups.append(
        [p for m in model.modules() if id(m) not in inside for p in m.parameters(recurse=False)]
    )
    names = {id(p): name for name, p in model.named_parameters()}
    owner: dict[int, int] = {}
    for number, group in enumerate(groups):
        for parameter in group:
            if owner.setdefault(id(parameter), number) != number:
                raise ConfigError(
                    f"{names[id(parameter)]} is used in more than one layer of the stack", _HINT
                )


def spread(
    whole: Sequence[Tensor] | None,  # of rank 0; the others give None
    shares: Sequence[Tensor],
    mesh: DeviceMesh,
) -> None:
    """Every rank's share becomes that of rank 0's tensors."""
    with torch.no_grad():
        for number, share in enumerate(shares):
            given = None if whole is None else whole[number].detach()
            if isinstance(share, DTensor):
                _spread_sliced(given, share)
            elif share.numel():
                _copy(given, share, mesh)


def _spread_sliced(whole: Tensor | None, share: DTensor) -> None:
    if whole is None:
        whole = torch.empty(share.shape, dtype=share.dtype, device=share.device)
    part = distribute_tensor(whole, share.device_mesh, share.placements)
    share.to_local().copy_(part.to_local())


def _copy(whole: Tensor | None, copy: Tensor, mesh: DeviceMesh) -> None:
    """As bytes: not every backend knows every type."""
    sent = (copy if whole is None else whole).detach().clone().contiguous()
    dist.broadcast(sent.view(-1).view(torch.uint8), group=mesh.get_group(), group_src=0)
    copy.copy_(sent)


def gather(shares: Sequence[nn.Parameter], whole: Sequence[Tensor] | None) -> None:
    """Rank 0's tensors become what the ranks hold, one after the other."""
    with torch.no_grad():
        for number, share in enumerate(shares):
            full = whole_of(share)
            if whole is not None:
                whole[number].copy_(full)


def whole_of(tensor: Tensor) -> Tensor:
    """Of a tensor that may be shared out. All ranks ask, or none."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def share_of(whole: Tensor, like: Tensor) -> Tensor:
    """This rank's share of a tensor that all ranks have, cut as `like` is."""
    if not isinstance(like, DTensor) or whole.shape != like.shape:
        return whole
    return distribute_tensor(
        whole.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )
