"""What only the Numba back end can get wrong: threads, and a cache that cannot be used."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

numba = pytest.importorskip("numba")
from node.kernels import cpu, jit  # noqa: E402
from node.kernels.cpu import CpuKernels  # noqa: E402


@pytest.mark.parametrize("threads", [2, 3, 7, 80])
def test_the_number_of_threads_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    monkeypatch.setattr(cpu, "_PARALLEL_MIN", 1)
    one, many = CpuKernels(threads=1), CpuKernels(threads=threads)
    for dtype in (torch.float32, torch.bfloat16):
        weights = torch.linspace(-1, 1, 30_000).to(dtype)
        copy, out, out_copy = weights.clone(), weights.clone(), weights.clone()
        one.merge(weights, 1234, [1, 2], [3, -4], 0.5, 6)
        many.merge(copy, 1234, [1, 2], [3, -4], 0.5, 6)
        one.perturb(weights, 77, 1, 0.1, out)
        many.perturb(weights, 77, 1, 0.1, out_copy)
        assert torch.equal(weights, copy)
        assert torch.equal(out, out_copy)
        assert one.digest(weights, 1234, 7) == many.digest(weights, 1234, 7)


def test_a_kernel_compiles_without_a_usable_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    compile_: Any = numba.njit

    def refuse(signature: str, cache: bool = False, **options: object) -> Callable[..., Any]:
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        compiled: Callable[..., Any] = compile_(signature, **options)
        return compiled

    monkeypatch.setattr(jit, "njit", refuse)
    kernel = jit.Kernel("int64(int64)", lambda number: number + 1)
    assert kernel(41) == 42
