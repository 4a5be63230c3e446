"""Fixtures: each back end that this machine can run, and the device it works on.

Without a GPU the Triton kernels run in Triton's interpreter, which must be chosen before Triton is
imported; so it happens here, while tests are collected.
"""

import os
from importlib.util import find_spec

import pytest
import torch

from node.kernels import Kernels, kernels_for

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

_NEEDS = {"cpu": "numba", "gpu": "triton"}


@pytest.fixture(params=["reference", "cpu", "gpu"], scope="session")
def kernels(request: pytest.FixtureRequest) -> Kernels:
    return backend(request.param)


@pytest.fixture(params=["cpu", "gpu"], scope="session")
def fast(request: pytest.FixtureRequest) -> Kernels:
    return backend(request.param)


@pytest.fixture(scope="session")
def reference() -> Kernels:
    return kernels_for(torch.device("cpu"), "reference")


@pytest.fixture
def device(request: pytest.FixtureRequest) -> torch.device:
    """Where tensors for the test's `kernels` or `fast` must live."""
    chosen = "kernels" if "kernels" in request.fixturenames else "fast"
    used: Kernels = request.getfixturevalue(chosen)
    on_gpu = used.name == "gpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def backend(name: str) -> Kernels:
    if name in _NEEDS and not find_spec(_NEEDS[name]):
        pytest.skip(f"{_NEEDS[name]} is not installed")
    on_gpu = name == "gpu" and torch.cuda.is_available()
    return kernels_for(torch.device("cuda" if on_gpu else "cpu"), name)
