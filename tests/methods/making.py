"""A small run that fits a test: a tiny byte-level model on text made up on the spot."""

from typing import Literal

import numpy as np
import torch

from node.kernels import kernels_for
from node.methods.base import RoundContext
from node.methods.parts.setup import Setup
from node.training.data import Data, Windows
from node.training.data_config import DataConfig
from node.training.losses import batch_loss
from node.training.model_config import GptConfig
from node.training.models import build_model

RUN = bytes(range(32))


def peer(number: int) -> bytes:
    return bytes([number]) * 32


def tiny_setup(dtype: Literal["fp32", "bf16"] = "fp32", private: bool = False) -> Setup:
    """Each call gives a fresh model with the same weights, as another peer would have."""
    model = build_model(GptConfig(kind="gpt", layers=1, width=8, heads=1, context=8, dtype=dtype))
    config = DataConfig(source="text", path=("unused",), context=8, batch=2, private=private)
    stream = np.arange(4000, dtype=np.uint32) * 7 % 11 + 97
    data = Data(config, Windows([stream[:3000]], 8), Windows([stream[3000:]], 8))
    return Setup(model.module, data, batch_loss, kernels_for(torch.device("cpu")), RUN)


def round_of(number: int, me: int, seats: int = 3) -> RoundContext:
    members = tuple(peer(i) for i in range(seats))
    return RoundContext(RUN, number, peer(me), members, lambda: True)
