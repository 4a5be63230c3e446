"""What tests of methods are given."""

from collections.abc import Callable

import pytest
import torch

from node.methods.base import RoundContext
from node.methods.parts.setup import Setup
from tests.methods.making import round_of, tiny_setup

torch.set_num_threads(1)  # the models here are tiny: threads only wait for each other

MakeSetup = Callable[..., Setup]
MakeRound = Callable[..., RoundContext]


@pytest.fixture
def make_setup() -> MakeSetup:
    return tiny_setup


@pytest.fixture
def make_round() -> MakeRound:
    return round_of
