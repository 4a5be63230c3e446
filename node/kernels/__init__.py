"""Exact random directions and fused updates: one interface, three back ends with the same bits.

`reference` is plain torch and runs anywhere, `cpu` is Numba, `gpu` is Triton. `base` says what each
operation computes, `philox` where its random numbers come from.
"""

import importlib
from importlib.util import find_spec

import torch

from node.kernels.base import Kernels
from node.kernels.philox import philox_words
from node.kernels.reference import ReferenceKernels

__all__ = ["Kernels", "kernels_for", "philox_words"]

_MODULES = {"cpu": ("numba", "node.kernels.cpu"), "gpu": ("triton", "node.kernels.gpu")}


def kernels_for(device: torch.device, name: str = "auto") -> Kernels:
    """The back end for tensors on `device`.

    "auto" takes Triton on CUDA and Numba on the CPU where they can be imported, else the reference.
    A back end asked for by name must be there: ImportError if it is not, ValueError for an unknown
    name or one that cannot work on this device.
    """
    if name == "auto":
        fast = {"cuda": "gpu", "cpu": "cpu"}.get(device.type)
        name = fast if fast and find_spec(_MODULES[fast][0]) else "reference"
    if name == "reference":
        return ReferenceKernels()
    if name not in _MODULES:
        raise ValueError(f"unknown kernels {name!r}; known: auto, reference, cpu, gpu")
    if name == "cpu" and device.type != "cpu":
        raise ValueError(f"the cpu kernels cannot reach a tensor on {device}")
    # Imported only here: both compilers take long to load, and either may be missing.
    kernels: Kernels = importlib.import_module(_MODULES[name][1]).create()
    return kernels
