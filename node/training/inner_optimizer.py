"""Optimizers over named parameters: stepped together, saved and loaded by name.

torch numbers an optimizer's state by the order of its parameters, as nested tables of anything.
Here it becomes flat tensors under names that mean the same in the next process:

    inner.state.KIND.KEY.PARAMETER      what is kept for one parameter
    inner.group.KIND.I.J.OPTION         of optimizer I's group J, an option that moves by itself

where KIND is `tensor`, or `number` for a plain number, which is written as a tensor of its type.
Learning rates are not among them: they come from the settings and the schedule.
"""

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from node.training.optimizers import Build, Named

_STATE, _GROUP = "inner.state.", "inner.group."
_TENSOR, _NUMBER = "tensor", "number"
_SETTINGS = ("params", "param_names", "lr", "initial_lr")  # of a group; never saved

Values = dict[str, Any]  # what an optimizer keeps for one parameter, or a group's options


class InnerOptimizer:
    def __init__(self, build: Build, named: Named) -> None:
        """`build` must use every parameter of `named` and no other; it is called again, with copies
        of them, when a state is loaded.
        """
        self._build = build
        self._named = list(named)
        self._optimizers = build(self._named)
        self._initial = [[_options(g) for g in o.param_groups] for o in self._optimizers]
        self._rates = [[g.get("lr") for g in o.param_groups] for o in self._optimizers]

    def parameters(self) -> Iterator[nn.Parameter]:
        """What is moved, in the optimizers' order."""
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                yield from group["params"]

    def step(self, share: float) -> None:
        """One step by the gradients that the parameters hold, with `share` of the learning rate."""
        for optimizer, rates in zip(self._optimizers, self._rates, strict=True):
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                if rate is not None:
                    group["lr"] = rate * share
            optimizer.step()

    def state(self) -> dict[str, Tensor]:
        """Everything that a later process needs to go on: live tensors, not copies.

        Raises ValueError when that is more than tensors and plain numbers.
        """
        return {
            **_flat_states(self._optimizers, self._named),
            **_flat_groups(self._optimizers, self._initial),
        }

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` wrote; other names are left alone.

        Raises ValueError, and leaves everything as it was, when it is not the state of such
        optimizers over such parameters.
        """
        states = self._read_states({n: t for n, t in state.items() if n.startswith(_STATE)})
        groups = self._read_groups({n: t for n, t in state.items() if n.startswith(_GROUP)})
        for optimizer, options in zip(self._optimizers, groups, strict=True):
            optimizer.state.clear()
            for group, changed in zip(optimizer.param_groups, options, strict=True):
                group.update(changed)
                optimizer.state.update({p: states[p] for p in group["params"] if states[p]})

    # Reading

    def _read_states(self, state: Mapping[str, Tensor]) -> dict[nn.Parameter, Values]:
        given: dict[str, dict[str, tuple[str, Tensor]]] = {name: {} for name, _ in self._named}
        for full, tensor in state.items():
            kind, key, name = _split(full.removeprefix(_STATE), full)
            if name not in given:
                raise ValueError(f"{full} is of no parameter that is trained")
            if key in given[name]:
                raise ValueError(f"{full} is there twice")
            given[name][key] = kind, tensor
        return {p: self._read_state(name, p, given[name]) for name, p in self._named}

    def _read_state(
        self, name: str, parameter: nn.Parameter, given: Mapping[str, tuple[str, Tensor]]
    ) -> Values:
        fresh, stepped = _rehearse(self._build, name, parameter)
        if given.keys() not in (fresh, stepped.keys()):
            raise ValueError(
                f"the optimizer's state of {name} holds {sorted(given)}, not {sorted(stepped)}"
            )
        return {
            key: _decode(kind, tensor, stepped[key], f"{key} of {name}")
            for key, (kind, tensor) in given.items()
        }

    def _read_groups(self, state: Mapping[str, Tensor]) -> list[list[Values]]:
        groups = [[copy.deepcopy(g) for g in groups] for groups in self._initial]
        for full, tensor in state.items():
            kind, i, rest = _split(full.removeprefix(_GROUP), full)
            j, _, option = rest.partition(".")
            try:
                options = groups[int(i)][int(j)]
            except (ValueError, IndexError) as error:
                raise ValueError(f"{full} is of no group of the optimizer") from error
            if option not in options:
                raise ValueError(f"{full} is no option of the optimizer")
            options[option] = _decode(kind, tensor, options[option], full)
        return groups


# Flat names, and what stands under them


def _flat_states(optimizers: Sequence[Optimizer], named: Named) -> dict[str, Tensor]:
    names: dict[Tensor, str] = {p: name for name, p in named}
    flat: dict[str, Tensor] = {}
    for optimizer in optimizers:
        for parameter, values in optimizer.state.items():
            if parameter not in names:
                raise ValueError("the optimizer keeps state for something that is no parameter")
            for key, value in values.items():
                if not isinstance(key, str) or not key or "." in key:
                    raise ValueError(f"the optimizer keeps state under {key!r}, which is no name")
                kind, tensor = _encode(value, key)
                flat[f"{_STATE}{kind}.{key}.{names[parameter]}"] = tensor
    return flat


def _flat_groups(
    optimizers: Sequence[Optimizer], initial: Sequence[Sequence[Values]]
) -> dict[str, Tensor]:
    """Options that are not what they were when the optimizer was made."""
    flat: dict[str, Tensor] = {}
    for i, (optimizer, before) in enumerate(zip(optimizers, initial, strict=True)):
        for j, (group, options) in enumerate(zip(optimizer.param_groups, before, strict=True)):
            for option, value in _options(group).items():
                if option not in options or _differs(value, options[option]):
                    kind, tensor = _encode(value, option)
                    flat[f"{_GROUP}{kind}.{i}.{j}.{option}"] = tensor
    return flat


def _options(group: Mapping[str, Any]) -> Values:
    return {k: copy.deepcopy(v) for k, v in group.items() if k not in _SETTINGS}


def _differs(value: object, before: object) -> bool:
    if isinstance(value, Tensor) or isinstance(before, Tensor):
        return True
    return bool(value != before)


def _encode(value: object, key: str) -> tuple[str, Tensor]:
    """A value's kind and its tensor; None is an empty one."""
    match value:
        case Tensor():
            return _TENSOR, value.detach().contiguous()
        case None:
            return _NUMBER, torch.zeros(0, dtype=torch.bool)
        case bool():
            return _NUMBER, torch.tensor(value)
        case int() if abs(value) < 1 << 63:
            return _NUMBER, torch.tensor(value, dtype=torch.int64)
        case float():
            return _NUMBER, torch.tensor(value, dtype=torch.float64)
        case _:
            raise ValueError(
                f"the optimizer keeps a {type(value).__name__} under {key!r}; only tensors and"
                " plain numbers can be saved"
            )


def _decode(
    kind: str,
    tensor: Tensor,
    like: object,  # what an optimizer of this kind keeps there
    where: str,
) -> object:
    """Raises ValueError when the tensor is not what `_encode` makes of such a value."""
    if kind == _TENSOR and isinstance(like, Tensor):
        if tensor.shape != like.shape or tensor.dtype != like.dtype:
            raise ValueError(
                f"{where} is {tensor.dtype} {tuple(tensor.shape)},"
                f" not {like.dtype} {tuple(like.shape)}"
            )
        return tensor.detach().to(like.device, copy=True)
    if kind == _NUMBER and not isinstance(like, Tensor):
        if tensor.dtype == torch.bool and tensor.shape == (0,):
            return None
        if tensor.dtype in (torch.bool, torch.int64, torch.float64) and tensor.dim() == 0:
            return tensor.item()
    raise ValueError(f"{where} is not what the optimizer keeps there")


def parameter_in(full: str) -> str | None:
    """Whose state stands under a flat name; None for a name of another kind."""
    parts = full.removeprefix(_STATE).split(".", 2)
    return parts[2] if full.startswith(_STATE) and len(parts) == 3 else None


def _split(rest: str, full: str) -> tuple[str, str, str]:
    parts = rest.split(".", 2)
    if len(parts) != 3 or parts[0] not in (_TENSOR, _NUMBER):
        raise ValueError(f"{full} is no name of an optimizer's state")
    return parts[0], parts[1], parts[2]


def _rehearse(build: Build, name: str, parameter: nn.Parameter) -> tuple[set[str], Values]:
    """What an optimizer keeps for a parameter: keys before its first step, values after it."""
    twin = nn.Parameter(parameter.detach().clone())
    twin.grad = torch.zeros_like(twin)
    optimizers = build([(name, twin)])
    fresh = {key for o in optimizers for key in o.state.get(twin, {})}
    for optimizer in optimizers:
        optimizer.step()
    return fresh, {k: v for o in optimizers for k, v in o.state.get(twin, {}).items()}
