"""A model seen at theta + scale * s(key), while theta itself stays untouched.

MeZO adds the perturbation to the weights and takes it off again, which does not return to the same
bits. Here the perturbed weights live in one small scratch buffer instead, a piece at a time, and
only for as long as the forward pass needs that piece:

* `nn.Linear`: a block of rows is perturbed, multiplied and forgotten, so the block never leaves the
  cache;
* `nn.Embedding`: only the rows that are looked up;
* everything else: the parameters of one module are swapped for perturbed copies while its forward
  runs;
* a small model: all parameters at once, from one flat vector.

Which module reads which parameter is not guessed from where the parameter is registered:
`nn.MultiheadAttention`, for one, reads the weights of its child `out_proj` without ever calling it.
A dry run watches every operation and notes which module's forward was running when it touched a
parameter's memory. A second dry run, perturbed, checks that no operation touches unperturbed
weights any more. So no parameter is left unperturbed in silence.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ParamSpec, Protocol, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from node.errors import ConfigError

FLAT_BYTES = 8 << 20  # models up to this size are perturbed in one piece
CPU_BLOCK_BYTES = 16 << 20  # of a linear layer's rows; small blocks make slow matrix products
CUDA_BLOCK_BYTES = 64 << 20  # fewer launches; still a bounded scratch
_ALIGN = 64  # bytes


P = ParamSpec("P")
R = TypeVar("R")


class Perturbs(Protocol):
    """The one kernel that is needed here."""

    def perturb(
        self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor
    ) -> None: ...


@dataclass(frozen=True, slots=True)
class Weight:
    """A trainable parameter and its place in the flat vector."""

    name: str
    parameter: nn.Parameter  # what modules read; its data is swapped while a module runs
    tensor: Tensor  # theta itself: contiguous, never swapped
    offset: int  # elements


class Perturbed:
    def __init__(
        self,
        model: nn.Module,
        kernels: Perturbs,
        dry_run: Callable[[], object],  # a forward pass through everything that the loss will use
    ) -> None:
        """Raises ConfigError when nothing is trainable, or when a weight cannot be followed."""
        self.model = model
        self._kernels = kernels
        self.flat = _flatten(model)
        self.weights = _weights(model)
        self.size = sum(w.tensor.numel() for w in self.weights)
        self.device = self.weights[0].tensor.device
        self._arena = _Arena(self.device)
        self._swapped: set[int] = set()
        self._key, self._scale, self._watching_off = 0, 0.0, False
        self._forwards = self._plan(dry_run)
        if self.flat is None:
            self._verify(dry_run)

    @property
    def scratch_bytes(self) -> int:
        """Memory held for perturbed copies."""
        return self._arena.size if self.flat is None else self.flat.nbytes

    @contextmanager
    def at(self, key: int, scale: float) -> Iterator[None]:
        """Inside, the model's forward uses theta + scale * s(key). Not reentrant, one thread at a
        time.
        """
        self._key, self._scale = key, scale
        self._arena.top = 0
        installed: list[nn.Module] = []
        try:
            for module, forward in self._forwards:
                module.forward = forward
                installed.append(module)
            yield
        finally:
            for module in installed:
                del module.forward  # the class's own shows again

    def _plan(self, dry_run: Callable[[], object]) -> list[tuple[nn.Module, Callable[..., Any]]]:
        """The forward that each module gets while perturbed."""
        if self.flat is not None:
            return [(self.model, self._flat_forward(self.model.forward))]
        sites: dict[nn.Module, list[Weight]] = {}
        for weight, readers in zip(
            self.weights, _readers(self.model, self.weights, dry_run), strict=True
        ):
            for module in readers:
                sites.setdefault(module, []).append(weight)
        return [(module, self._forward_for(module, read)) for module, read in sites.items()]

    def _forward_for(self, module: nn.Module, read: list[Weight]) -> Callable[..., Any]:
        own = {name: p for name, p in module.named_parameters(recurse=False)}
        by_name = {name: w for name, p in own.items() for w in read if w.parameter is p}
        plain = "forward" not in module.__dict__ and len(by_name) == len(read)
        if plain and type(module) is nn.Linear and "weight" in by_name:
            return self._linear_forward(module, by_name["weight"], by_name.get("bias"))
        if plain and type(module) is nn.Embedding and module.max_norm is None:
            return self._embedding_forward(module, by_name["weight"])
        return self._swap_forward(module.forward, read)

    # The four ways to run a module with perturbed weights.

    def _flat_forward(self, forward: Callable[P, R]) -> Callable[P, R]:
        flat = self.flat
        assert flat is not None
        scratch = torch.empty_like(flat)
        copies = [
            scratch[w.offset : w.offset + w.tensor.numel()].view(w.tensor.shape)
            for w in self.weights
        ]

        def flat_forward(*args: P.args, **kwargs: P.kwargs) -> R:
            self._perturb(flat, 0, scratch)
            try:
                for weight, copy in zip(self.weights, copies, strict=True):
                    weight.parameter.data = copy
                return forward(*args, **kwargs)
            finally:
                for weight in self.weights:
                    weight.parameter.data = weight.tensor

        return flat_forward

    def _swap_forward(self, forward: Callable[P, R], read: Sequence[Weight]) -> Callable[P, R]:
        def swap_forward(*args: P.args, **kwargs: P.kwargs) -> R:
            mark, mine = self._arena.top, []
            try:
                for weight in read:
                    if weight.offset in self._swapped:
                        continue  # a module further out reads it too, and has swapped it already
                    copy = self._arena.take(weight.tensor.numel(), weight.tensor.dtype)
                    self._perturb(weight.tensor, weight.offset, copy)
                    weight.parameter.data = copy.view(weight.tensor.shape)
                    self._swapped.add(weight.offset)
                    mine.append(weight)
                return forward(*args, **kwargs)
            finally:
                for weight in mine:
                    weight.parameter.data = weight.tensor
                    self._swapped.discard(weight.offset)
                self._arena.top = mark

        return swap_forward

    def _linear_forward(
        self, module: nn.Linear, weight: Weight, bias: Weight | None
    ) -> Callable[..., Any]:
        rows, width = weight.tensor.shape
        block = self._block_rows(weight.tensor)
        firsts = range(0, rows, block)
        parts = [(weight.tensor[f : f + block], weight.offset + f * width, f) for f in firsts]

        def linear_forward(x: Tensor) -> Tensor:
            mark = self._arena.top
            flat_x = x.reshape(-1, width)
            out = x.new_empty(flat_x.shape[0], rows)
            scratch = self._arena.take(block * width, weight.tensor.dtype).view(block, width)
            for part, offset, first in parts:
                copy = scratch[: len(part)]
                self._perturb(part, offset, copy)
                torch.mm(flat_x, copy.t(), out=out[:, first : first + block])
            if bias is not None:
                copy = self._arena.take(rows, bias.tensor.dtype)
                self._perturb(bias.tensor, bias.offset, copy)
                out += copy
            elif module.bias is not None:
                out += module.bias
            self._arena.top = mark
            return out.view(*x.shape[:-1], rows)

        return linear_forward

    def _embedding_forward(self, module: nn.Embedding, weight: Weight) -> Callable[..., Any]:
        if weight.tensor.device.type == "cpu":
            return lambda ids: self._gather(weight, ids)
        return lambda ids: self._sweep(weight, ids)

    def _gather(self, weight: Weight, ids: Tensor) -> Tensor:
        """Perturb the rows that are looked up, neighbours together."""
        width = weight.tensor.shape[1]
        rows, places = torch.unique(ids, return_inverse=True)
        mark = self._arena.top
        copies = self._arena.take(rows.numel() * width, weight.tensor.dtype).view(-1, width)
        at = 0
        for first, count in _runs(rows.tolist()):
            self._perturb_rows(weight, first, copies[at : at + count])
            at += count
        out = F.embedding(places, copies)
        self._arena.top = mark
        return out

    def _sweep(self, weight: Weight, ids: Tensor) -> Tensor:
        """Perturb block after block of all rows: on an accelerator, cheaper than asking which rows
        are needed.
        """
        rows, width = weight.tensor.shape
        block = self._block_rows(weight.tensor)
        mark = self._arena.top
        scratch = self._arena.take(block * width, weight.tensor.dtype).view(block, width)
        out = weight.tensor.new_zeros(*ids.shape, width)
        for first in range(0, rows, block):
            copy = scratch[: rows - first]
            self._perturb_rows(weight, first, copy)
            local = ids - first
            found = F.embedding(local.clamp(0, len(copy) - 1), copy)
            inside = ((local >= 0) & (local < len(copy))).unsqueeze(-1)
            out = torch.where(inside, found, out)
        self._arena.top = mark
        return out

    def _block_rows(self, tensor: Tensor) -> int:
        limit = CPU_BLOCK_BYTES if tensor.device.type == "cpu" else CUDA_BLOCK_BYTES
        row_bytes = tensor.shape[1] * tensor.element_size()
        return max(1, min(len(tensor), limit // max(1, row_bytes)))

    def _perturb_rows(self, weight: Weight, first: int, out: Tensor) -> None:
        """As many rows as `out` has, from row `first` of a matrix."""
        self._watching_off = True
        part = weight.tensor[first : first + len(out)]
        self._perturb(part, weight.offset + first * weight.tensor.shape[1], out)

    def _perturb(self, tensor: Tensor, offset: int, out: Tensor) -> None:
        self._watching_off = True
        self._kernels.perturb(tensor.view(-1), offset, self._key, self._scale, out.view(-1))
        self._watching_off = False

    def _verify(self, dry_run: Callable[[], object]) -> None:
        unperturbed: set[str] = set()

        def note(weight: Weight) -> None:
            if not self._watching_off:
                unperturbed.add(weight.name)

        with torch.no_grad(), self.at(key=1, scale=0.0), _Watch(self.weights, note):
            dry_run()
        if unperturbed:
            names = ", ".join(sorted(unperturbed)[:3])
            raise ConfigError(
                f"{len(unperturbed)} weights are read where they cannot be perturbed: {names}",
                "leave them out of `trainable`, or let a module's forward read them",
            )


# Finding out who reads what.


def _readers(
    model: nn.Module, weights: Sequence[Weight], dry_run: Callable[[], object]
) -> list[list[nn.Module]]:
    """For each weight, the modules whose forward was innermost when an operation touched it.

    A weight that the dry run did not touch (an expert that was not chosen) is given to the module
    that owns it.
    """
    running: list[nn.Module] = [model]
    found: dict[int, dict[nn.Module, None]] = {w.offset: {} for w in weights}

    def note(weight: Weight) -> None:
        found[weight.offset].setdefault(_whole(model, parents, running))

    parents = {child: module for module in model.modules() for child in module.children()}
    hooks = []
    for module in model.modules():
        hooks.append(module.register_forward_pre_hook(lambda m, _: running.append(m)))
        hooks.append(module.register_forward_hook(lambda *_: _drop_last(running), always_call=True))
    try:
        with torch.no_grad(), _Watch(weights, note):
            dry_run()
    finally:
        for hook in hooks:
            hook.remove()
    owners = _owners(model)
    return [list(found[w.offset]) or owners[w.parameter] for w in weights]


def _whole(
    model: nn.Module, parents: Mapping[nn.Module, nn.Module], running: Sequence[nn.Module]
) -> nn.Module:
    """The innermost running module, or one around it that reads its children's weights when it
    takes a fused path.
    """
    module: nn.Module | None = running[-1]
    outer = running[-1]
    while module is not None:
        if isinstance(module, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            outer = module
        module = parents.get(module)
    return outer


def _owners(model: nn.Module) -> dict[nn.Parameter, list[nn.Module]]:
    owners: dict[nn.Parameter, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(parameter, []).append(module)
    return owners


def _drop_last(stack: list[nn.Module]) -> None:
    stack.pop()


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls `note` for each weight whose memory an operation is about to touch."""

    def __init__(self, weights: Sequence[Weight], note: Callable[[Weight], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weights = sorted(weights, key=lambda w: w.tensor.data_ptr())
        self._starts = [w.tensor.data_ptr() for w in self._weights]
        self._note = note

    def __torch_dispatch__(
        self,
        func: Callable[..., object],
        types: object,
        args: tuple[object, ...] = (),
        kwargs: dict[str, object] | None = None,
    ) -> object:
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, Tensor) and value.numel() and value.device.type != "meta":
                self._look_up(value)
        return func(*args, **(kwargs or {}))

    def _look_up(self, value: Tensor) -> None:
        start = value.data_ptr()
        reach = sum((n - 1) * s for n, s in zip(value.shape, value.stride(), strict=True))
        end = start + (reach + 1) * value.element_size()
        i = max(0, bisect_right(self._starts, start) - 1)
        while i < len(self._weights) and self._starts[i] < end:
            tensor = self._weights[i].tensor
            if start < self._starts[i] + tensor.numel() * tensor.element_size():
                self._note(self._weights[i])
            i += 1


# Memory.


class _Arena:
    """Scratch memory as a stack: take pieces, set `top` back to give them up. It grows during the
    dry run only.
    """

    def __init__(self, device: torch.device) -> None:
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self.top = 0  # bytes

    @property
    def size(self) -> int:
        return len(self._buffer)

    def take(self, count: int, dtype: torch.dtype) -> Tensor:
        size = -(-count * dtype.itemsize // _ALIGN) * _ALIGN
        if self.top + size > len(self._buffer):
            # Pieces taken before keep the old buffer alive until they are done with.
            self._buffer = torch.empty(
                self.top + size, dtype=torch.uint8, device=self._buffer.device
            )
        piece = self._buffer[self.top : self.top + count * dtype.itemsize].view(dtype)
        self.top += size
        return piece


def _weights(model: nn.Module) -> list[Weight]:
    weights, offset = [], 0
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad or not parameter.numel():
            continue
        tensor = parameter.detach()
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
            parameter.data = tensor
        weights.append(Weight(name, parameter, tensor, offset))
        offset += tensor.numel()
    if not weights:
        raise ConfigError("no parameter is trainable", "widen `trainable` in [model]")
    return weights


def _flatten(model: nn.Module) -> Tensor | None:
    """Move a small model's trainable parameters into one vector, in place; None when it is not
    small.
    """
    trainable = [p for p in model.parameters() if p.requires_grad and p.numel()]
    kinds = {(p.dtype, p.device) for p in trainable}
    if len(kinds) != 1 or sum(p.numel() * p.element_size() for p in trainable) > FLAT_BYTES:
        return None
    flat = torch.cat([p.detach().reshape(-1) for p in trainable])
    at = 0
    for parameter in trainable:
        parameter.data = flat[at : at + parameter.numel()].view(parameter.shape)
        at += parameter.numel()
    return flat


def _runs(rows: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Ascending numbers as (first, count) of consecutive ones."""
    first = count = 0
    for row in rows:
        if count and row == first + count:
            count += 1
            continue
        if count:
            yield first, count
        first, count = row, 1
    if count:
        yield first, count
