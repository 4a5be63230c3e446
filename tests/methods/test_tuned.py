"""What a comparison turns in a method's settings: a law for all of them."""

import pytest

from node.methods.base import Tunable
from node.methods.registry import CONFIGS, MethodConfig, config_beside
from node.methods.sparseloco_config import SparseLocoConfig

OWN = {"spsa": {"learning_rate": {"peak": "0.1"}}}  # what has no defaults


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> MethodConfig:
    name = request.param
    return CONFIGS[name].model_validate({"name": name, **OWN.get(name, {})})


def test_a_round_has_a_known_length(config: MethodConfig) -> None:
    assert isinstance(config, Tunable)
    tuned = config.with_steps(3)
    assert type(tuned) is type(config)
    length = tuned.batches_a_round
    assert length == tuned.with_steps(length or 0).batches_a_round
    assert tuned.with_rounds(7).batches_a_round == length


def test_the_grid_is_of_different_rates(config: MethodConfig) -> None:
    rates = [float(rate) for rate in config.rates]
    assert rates == sorted(rates)
    if not rates and hasattr(config, "exchanges_a_round"):  # no update is everyone's in gossip
        with pytest.raises(ValueError, match="no rate"):
            config.with_rate("0.123")
        return
    tuned = [config.with_rate(rate) for rate in (*config.rates, "0.123")]
    assert len({one.model_dump_json() for one in tuned}) == len(tuned)
    with pytest.raises(ValueError, match="rate"):
        config.with_rate("0")


def test_defaults_take_the_inner_steps_of_another() -> None:
    other = SparseLocoConfig.model_validate({"name": "sparseloco", "inner": {"accumulation": 3}})
    for name, kind in CONFIGS.items():
        if kind.from_scratch:
            made = config_beside(name, other)
            assert made.name == name
            if "inner" in kind.model_fields:
                assert getattr(made, "inner") == other.inner  # noqa: B009 - not all have one
