"""Arguments that would break exactness are refused before anything is touched."""

import pytest
import torch

from node.kernels import Kernels, kernels_for

F32, BF16, I64 = torch.float32, torch.bfloat16, torch.int64


@pytest.mark.parametrize(
    ("keys", "values", "step", "message"),
    [
        ([1] * 257, [1] * 257, 1.0, "257 contributions"),
        ([1], [128], 1.0, "-127"),
        ([1], [-128], 1.0, "-127"),
        ([1, 2], [1], 1.0, "2 keys but 1 values"),
        ([-1], [1], 1.0, "unsigned"),
        ([2**64], [1], 1.0, "unsigned"),
        ([1], [1], 257 / 256, "significant bits"),
        ([1], [1], 0.1, "significant bits"),
        ([1], [1], float("nan"), "outside"),
        ([1], [1], float("inf"), "outside"),
        ([1], [1], 2.0**-120, "outside"),
    ],
)
def test_merge_refuses(
    kernels: Kernels, keys: list[int], values: list[int], step: float, message: str
) -> None:
    weights = torch.ones(3)
    with pytest.raises(ValueError, match=message):
        kernels.merge(weights, 0, keys, values, step, 0)
    assert weights.tolist() == [1.0] * 3


@pytest.mark.parametrize("step", [255 / 256, -129.0, 2.0**-100, 2.0**100, 0.0])
def test_merge_takes_steps_of_eight_bits(
    kernels: Kernels, device: torch.device, step: float
) -> None:
    weights = torch.zeros(3, device=device)
    kernels.merge(weights, 0, [1], [127], step, 0)
    assert weights.abs().tolist() == [abs(step) * 127] * 3


def test_tensors_that_do_not_fit_are_refused(kernels: Kernels) -> None:
    weights = torch.ones(4, 4)
    with pytest.raises(ValueError, match="contiguous"):
        kernels.merge(weights.T, 0, [1], [1], 1.0, 0)
    with pytest.raises(ValueError, match="fp32 or bf16"):
        kernels.merge(weights.double(), 0, [1], [1], 1.0, 0)
    with pytest.raises(ValueError, match="outside the flat vector"):
        kernels.merge(weights, -1, [1], [1], 1.0, 0)
    with pytest.raises(ValueError, match="outside the flat vector"):
        kernels.digest(weights, 2**62, 0)
    with pytest.raises(ValueError, match="shape, dtype and device"):
        kernels.perturb(weights, 0, 1, 1.0, torch.empty(16))
    with pytest.raises(ValueError, match="shape, dtype and device"):
        kernels.perturb(weights, 0, 1, 1.0, torch.empty(4, 4, dtype=BF16))
    with pytest.raises(ValueError, match="finite"):
        kernels.perturb(weights, 0, 1, 1e39, torch.empty(4, 4))
    with pytest.raises(ValueError, match="int64"):
        kernels.accumulate(weights, 0, [1], [1])
    with pytest.raises(ValueError, match="elements"):
        kernels.digest(torch.zeros(3, dtype=torch.uint8), 0, 0)


def test_accumulate_refuses_sums_that_could_wrap(kernels: Kernels, device: torch.device) -> None:
    total = torch.zeros(3, dtype=I64, device=device)
    with pytest.raises(ValueError, match="2\\^62"):
        kernels.accumulate(total, 0, [1, 2], [2**61, -(2**61)])
    kernels.accumulate(total, 0, [1, 2], [2**61, 1 - 2**61])
    assert {abs(n) for n in total.tolist()} <= {1, 2**62 - 1}


def test_back_ends_by_name() -> None:
    cpu = torch.device("cpu")
    assert kernels_for(cpu, "reference").name == "reference"
    assert kernels_for(cpu).name in ("cpu", "reference")
    assert kernels_for(torch.device("meta")).name == "reference"
    with pytest.raises(ValueError, match="unknown kernels"):
        kernels_for(cpu, "fast")
    with pytest.raises(ValueError, match="cannot reach"):
        kernels_for(torch.device("cuda"), "cpu")


def test_auto_falls_back_where_a_compiler_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.kernels.find_spec", lambda name: None)
    assert kernels_for(torch.device("cpu")).name == "reference"
    assert kernels_for(torch.device("cuda")).name == "reference"
