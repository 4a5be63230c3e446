"""What every back end promises, and the checks that they share.

The four operations are exact or correctly rounded element by element, in integers and IEEE fp32, so
that every back end gives the same bits on any machine. Element i of a tensor sits at `offset + i`
of the flat vector of all trainable parameters, and everything random is a function of that position
and a key (see `philox`), so a vector may be cut into tensors, tiles or threads anywhere.

* perturb: out = weights + scale * s. The product is +-scale: one rounding, fused or not.
* merge: A_i = sum over c of values[c] * s_i(keys[c]) in integers, |A_i| <= 256 * 127 < 2^15; then
  weights - step * A. `step` has at most 8 significant bits, so the product has at most 23 and is
  exact: again one rounding.
* bf16: the same in fp32. `perturb` rounds to nearest even. `merge` rounds stochastically: it adds
  16 random bits to the fp32 pattern and drops the low half, so a value is rounded up with the
  probability of the fraction dropped; what is past the largest finite bf16 may become infinite.
* NaN: a result that is not a number is the one pattern 0x7fc00000 (bf16: 0x7fc0), because machines
  differ in what they keep of a NaN's payload.
* digest: sum of c_j * w_j modulo 2^64 over the raw words w_j, with 64-bit coefficients c_j that the
  key chooses (the multilinear family of Carter and Wegman; Lemire and Kaser, "Strongly universal
  string hashing is fast", 2014). If two tensors differ and 2^z is the largest power of two that
  divides every difference of two words, they collide for a fraction 2^(z-64) of coefficients: at
  most 2^-33 for 32-bit words (only sign bits differ), 2^-49 for bf16, 2^-64 for most changes. The
  key must be chosen after the weights are fixed, anew every round: then one miss is caught in the
  next round. It finds accidents; it does not stop someone who knows the key beforehand.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Final, Protocol

import torch
from torch import Tensor

MERGE_CONTRIBUTIONS_MAX: Final = 256
BYTE_MAX: Final = 127
STEP_BITS: Final = 8
STEP_MIN: Final = 2.0**-100  # far from subnormals, and a product with A stays finite up to STEP_MAX
STEP_MAX: Final = 2.0**100
ACCUMULATE_BOUND: Final = 2**62
POSITION_MAX: Final = 2**62  # so that positions, doubled for 64-bit words, stay signed 64-bit

_WORD_BITS: Final = {2: 16, 4: 32, 8: 32}  # element bytes -> bits of a digest word


class Kernels(Protocol):
    """The exact arithmetic on replicated state. One object may be used from several threads."""

    name: str  # "reference", "cpu" or "gpu"

    def perturb(self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor) -> None:
        """out = weights + scale * s(key); `scale` is rounded to fp32 first.

        `weights` and `out`: fp32 or bf16, contiguous, of one shape; they may be the same tensor.
        """
        ...

    def merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None:
        """In place: weights -= step * sum over c of values[c] * s(keys[c]).

        `weights`: fp32 or bf16, contiguous. At most 256 keys; values in -127..127. `noise_key`
        drives the stochastic rounding of bf16 and is unused for fp32. With no keys, a no-op.
        Raises ValueError for anything else, and for a `step` of more than 8 significant bits.
        """
        ...

    def accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None:
        """In place: total += sum over c of values[c] * s(keys[c]), for any number of keys.

        `total`: int64, contiguous. Raises ValueError when the values' magnitudes sum to 2^62.
        """
        ...

    def digest(self, tensor: Tensor, offset: int, key: int) -> int:
        """The keyed hash of a tensor's raw words, 0 <= digest < 2^64.

        Digests of parts at their own offsets add up modulo 2^64 to the digest of the whole. A
        64-bit element at position p is two words, low first, at 2p and 2p + 1; others are one.
        """
        ...


class CheckedKernels(ABC):
    """The checks in front of a back end; each underscore method may rely on them."""

    name: str

    def perturb(self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor) -> None:
        _check_floats(weights)
        _check_floats(out)
        _check_place(weights, offset)
        _check_key(key)
        if out.shape != weights.shape or out.dtype != weights.dtype or out.device != weights.device:
            raise ValueError("out must have the shape, dtype and device of weights")
        if not math.isfinite(scale) or abs(scale) > torch.finfo(torch.float32).max:
            raise ValueError(f"scale {scale} is not a finite fp32 number")
        if weights.numel():
            self._perturb(_flat(weights), offset, key, scale, _flat(out))

    def merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None:
        _check_floats(weights)
        _check_place(weights, offset)
        _check_terms(keys, values)
        _check_key(noise_key)
        _check_step(step)
        if len(keys) > MERGE_CONTRIBUTIONS_MAX:
            raise ValueError(f"{len(keys)} contributions; at most {MERGE_CONTRIBUTIONS_MAX} a call")
        if any(abs(value) > BYTE_MAX for value in values):
            raise ValueError(f"values must lie within -{BYTE_MAX}..{BYTE_MAX}")
        if weights.numel() and len(keys):
            self._merge(_flat(weights), offset, keys, values, step, noise_key)

    def accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None:
        if total.dtype != torch.int64:
            raise ValueError(f"total must be int64, not {total.dtype}")
        _check_place(total, offset)
        _check_terms(keys, values)
        if sum(abs(int(value)) for value in values) >= ACCUMULATE_BOUND:
            raise ValueError("the values' magnitudes sum to 2^62 or more")
        if total.numel() and len(keys):
            self._accumulate(_flat(total), offset, keys, values)

    def digest(self, tensor: Tensor, offset: int, key: int) -> int:
        size = tensor.element_size()
        if size not in _WORD_BITS or tensor.is_complex():
            raise ValueError(f"no digest of {tensor.dtype}: elements must have 2, 4 or 8 bytes")
        _check_place(tensor, offset)
        _check_key(key)
        if not tensor.numel():
            return 0
        words = _flat(tensor).view(torch.int16 if _WORD_BITS[size] == 16 else torch.int32)
        return self._digest(words, offset * (2 if size == 8 else 1), key) % 2**64

    @abstractmethod
    def _perturb(
        self, weights: Tensor, offset: int, key: int, scale: float, out: Tensor
    ) -> None: ...

    @abstractmethod
    def _merge(
        self,
        weights: Tensor,
        offset: int,
        keys: Sequence[int],
        values: Sequence[int],
        step: float,
        noise_key: int,
    ) -> None: ...

    @abstractmethod
    def _accumulate(
        self, total: Tensor, offset: int, keys: Sequence[int], values: Sequence[int]
    ) -> None: ...

    @abstractmethod
    def _digest(self, words: Tensor, first: int, key: int) -> int:
        """`words`: int32 or int16 bit patterns, to be read as unsigned; `first`: position of
        words[0]. Any integer that is right modulo 2^64 will do."""


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1)  # a view: contiguity was checked


def _check_floats(tensor: Tensor) -> None:
    if tensor.dtype not in (torch.float32, torch.bfloat16):
        raise ValueError(f"weights must be fp32 or bf16, not {tensor.dtype}")
    if not tensor.is_contiguous():
        raise ValueError("the tensor must be contiguous")


def _check_place(tensor: Tensor, offset: int) -> None:
    if not tensor.is_contiguous():
        raise ValueError("the tensor must be contiguous")
    if offset < 0 or offset + tensor.numel() > POSITION_MAX:
        raise ValueError(f"offset {offset} is outside the flat vector")


def _check_key(key: int) -> None:
    if not 0 <= key < 2**64:
        raise ValueError(f"key {key} is not an unsigned 64-bit number")


def _check_terms(keys: Sequence[int], values: Sequence[int]) -> None:
    if len(keys) != len(values):
        raise ValueError(f"{len(keys)} keys but {len(values)} values")
    for key in keys:
        _check_key(key)


def _check_step(step: float) -> None:
    if step == 0:
        return
    if not STEP_MIN <= abs(step) <= STEP_MAX:  # false for a NaN, too
        raise ValueError(f"step {step} is outside {STEP_MIN}..{STEP_MAX}")
    mantissa, _ = math.frexp(step)
    if not (mantissa * 2**STEP_BITS).is_integer():
        raise ValueError(f"step {step} has more than {STEP_BITS} significant bits")
