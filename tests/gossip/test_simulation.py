"""The simulation of many gossiping peers: its rows against real peers, its world against theory."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from node.config import RunFile, load_run_file
from node.errors import ConfigError
from node.gossip.pairings import View
from node.gossip.together import hold, meetings_of
from node.methods.noloco_config import NoLoCoConfig
from node.methods.parts.mixing import MODEL
from node.methods.registry import AnyGossip
from node.sim.gossip.crowd import Crowd
from node.sim.gossip.plot import draw
from node.sim.gossip.report import GossipReport, simulate_gossip
from node.sim.gossip.steps import Rows
from node.sim.links import PRESETS, LinkKind
from node.store import StoreError
from node.training.inner import InnerTrainer
from node.training.inner_config import InnerConfig
from node.training.losses import batch_loss
from node.training.optimizer_config import AdamWConfig, MuonConfig, SgdConfig
from node.training.sam import SamTrainer
from tests.gossip.swarm import config, parties
from tests.methods.making import peer, tiny_setup
from tests.shell.runs import write_run

Simulate = Callable[..., GossipReport]

GOSSIP = """
[method]
name = "{name}"
{settings}

[method.inner]
steps = 2
optimizer = {{{{ name = "adamw", lr = 0.01 }}}}
"""


def run_of(folder: Path, name: str, settings: str, width: int) -> RunFile:
    path = write_run(folder, method=GOSSIP.format(name=name, settings=settings), patience_s=1.0)
    path.write_text(path.read_text().replace("width = 8", f"width = {width}"))
    return load_run_file(path)


@pytest.fixture
def simulate(tmp_path: Path) -> Simulate:
    def run(
        name: str = "d-psgd",
        settings: str = "",
        width: int = 8,
        **asked: Any,  # noqa: ANN401
    ) -> GossipReport:
        run_file = run_of(tmp_path, name, settings, width)
        wanted: dict[str, Any] = {"peers": 6, "exchanges": 4, "links": (PRESETS["home"],)}
        return simulate_gossip(run_file, tmp_path, **{**wanted, **asked})

    return run


# Rows against one peer


@pytest.mark.parametrize(
    ("inner", "radius"),
    [
        (InnerConfig(steps=4, optimizer=AdamWConfig(lr=0.01)), 0.0),
        (InnerConfig(steps=3, optimizer=SgdConfig(name="sgd", lr=0.1)), 0.0),
        (InnerConfig(steps=4, optimizer=SgdConfig(name="sgd", lr=0.1, momentum=0.8)), 0.0),
        (InnerConfig(steps=2, accumulation=2, clip_norm=0.5), 0.0),
        (InnerConfig(steps=3, schedule={"warmup_steps": 4, "decay_rounds": 3}), 0.0),  # type: ignore[arg-type]
        (InnerConfig(steps=2, optimizer=SgdConfig(name="sgd", lr=0.1)), 0.3),
    ],
)
def test_rows_step_as_a_trainer_does(inner: InnerConfig, radius: float) -> None:
    setup, peers = tiny_setup(), 3
    size = sum(p.numel() for p in setup.model.parameters())
    rows = Rows(tiny_setup().model, setup.data, inner, peers, radius=radius)  # type: ignore[arg-type]
    start = torch.cat([p.detach().reshape(-1) for p in setup.model.parameters()])
    models = start.repeat(peers, 1)
    for some, round in (([0, 2], 0), ([1, 2], 1), ([2], 2)):  # each as often as it is ready
        losses = rows.work(models, np.array(some), round)
        assert losses.shape == (len(some),)
    own = tiny_setup()
    trainer = (
        SamTrainer(inner, own.model, batch_loss, own.data.batch, radius=radius)
        if radius
        else InnerTrainer(inner, own.model, batch_loss, own.data.batch)
    )
    slots = count(2, peers)
    for round in range(3):
        report = trainer.work(round, slots, lambda: False)
    moved = torch.cat([p.detach().reshape(-1) for p in own.model.parameters()])
    assert moved.shape == (size,)
    assert torch.allclose(models[2], moved, atol=2e-5)
    assert float((moved - start).abs().max()) > 1e-3
    assert report.loss == pytest.approx(float(losses[0]), abs=1e-5)
    assert not torch.equal(models[0], models[1])


def test_a_newcomer_to_a_row_has_a_new_optimizer() -> None:
    setup = tiny_setup()
    rows = Rows(setup.model, setup.data, InnerConfig(steps=2), 2)  # type: ignore[arg-type]
    models = torch.cat([p.detach().reshape(-1) for p in setup.model.parameters()]).repeat(2, 1)
    rows.work(models, np.array([0, 1]), 0)
    rows.forget(1)
    assert [float(moment[1].abs().max()) for moment in rows._moments] == [0.0, 0.0]
    assert float(rows._moments[0][0].abs().max()) > 0
    assert rows._taken.tolist() == [2, 0]


@pytest.mark.parametrize("bits", [32, 16, 8])
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("d-psgd", {"pairing": "groups", "group": 3}),
        ("noloco", {}),
        ("noloco", {"kept": 64, "slow_every": 2, "nesterov": True, "pairing": "hypercube"}),
        ("push-sum", {}),
        ("dfedsam", {"pairing": "ring"}),
        ("variance-corrected", {}),
        ("ad-psgd", {}),
    ],
)
def test_rows_exchange_as_real_peers_do_to_the_bit(
    name: str, settings: dict[str, Any], bits: int
) -> None:
    method: AnyGossip = config(name, value_bits=bits, **settings)
    real = parties(method, 5)
    crowd = Crowd(method, tiny_setup().model, None, 5)
    for row, party in enumerate(real):
        crowd.state[MODEL][row] = party.state[MODEL]
    crowd._all(crowd.mixing.begin)
    view = View.of(bytes(32), [peer(number) for number in range(5)])
    by_id = {peer(number): party for number, party in enumerate(real)}
    for round in range(4):
        for step, vector in enumerate(crowd.state[MODEL]):
            vector += 0.01 * step
        for step, party in enumerate(real):
            party.state[MODEL] += 0.01 * step
        found = meetings_of(method, view, round)
        hold(by_id, found)
        offers = [crowd.offers(row, round) for row in range(5)]
        for one in found:
            seats = [view.members.index(member) for member in one.peers]
            for at, row in enumerate(seats):
                if one.directed:
                    mine, others = (offers[row], []) if at == 0 else (None, [offers[seats[0]]])
                else:
                    mine, others = offers[row], [offers[other] for other in seats if other != row]
                crowd.commit(row, mine, others, len(crowd.stretches))
        for row in set(range(5)) - {view.members.index(m) for one in found for m in one.peers}:
            crowd.alone(row)
    for row, party in enumerate(real):
        for vector, own in party.state.items():
            assert torch.equal(crowd.state[vector][row], own), vector


# The world


@pytest.mark.parametrize("name", ["d-psgd", "noloco", "push-sum", "dfedsam", "ad-psgd"])
def test_peers_learn_and_their_mean_is_judged(simulate: Simulate, name: str) -> None:
    report = simulate(name, exchanges=12)
    first, last = report.looks[0], report.looks[-1]
    assert first.merged_loss is not None
    assert last.merged_loss is not None
    assert last.merged_loss < first.merged_loss - 0.1
    assert first.distance == 0.0 < last.distance
    assert last.estimated == pytest.approx(last.distance, rel=1.0)
    assert report.exchanges_a_peer >= 10
    assert report.bytes_an_exchange > report.coded_bytes
    assert report.coded_bytes == pytest.approx(2904 * 4, rel=0.01)
    if name != "noloco":
        assert report.kept_worst is not None
        assert report.kept_worst <= 4
        assert report.kept_drift is not None
        assert report.kept_drift < 1e-5


def test_the_same_seed_gives_the_same_world(simulate: Simulate) -> None:
    one, other, third = (
        simulate(death=0.05, joins=True, seed=seed).model_dump(exclude={"wall_s"})
        for seed in (3, 3, 4)
    )
    assert one == other != third


def test_without_steps_distance_falls_as_theory_says(simulate: Simulate) -> None:
    """From where peers are far apart, side by side with the factor of random matching."""
    report = simulate(train=False, spread=1.0, peers=64, exchanges=8)
    assert report.expected_mixing == pytest.approx(62 / 126)
    first, last = report.looks[0], report.looks[-1]
    assert report.alone <= 2, "on lines like these one may be too slow for its partner's patience"
    assert last.exchanges == 8 - report.alone / 64
    assert last.distance / first.distance == pytest.approx((62 / 126) ** 8, rel=0.5)
    rates = [look.mixing for look in report.looks if look.mixing is not None]
    assert len(rates) > 4
    assert sum(rates) / len(rates) == pytest.approx(62 / 126, rel=0.15)
    assert last.merged_loss is None


@pytest.mark.parametrize("bits", [32, 8])
@pytest.mark.parametrize("name", ["d-psgd", "push-sum", "ad-psgd"])
def test_who_dies_in_the_middle_of_an_exchange_leaves_the_sum_right(
    simulate: Simulate, name: str, bits: int
) -> None:
    report = simulate(
        name, f"value_bits = {bits}\nstretch = 4096", 32, peers=40, exchanges=10, death=0.05,
        train=False, spread=1.0,
    )  # fmt: skip
    assert report.parameters > 4 * 4096
    assert report.deaths > 3
    assert report.alive == 40 - report.deaths
    assert report.kept_worst is not None
    assert report.kept_drift is not None
    assert report.kept_worst <= 4
    assert report.kept_drift < 1e-5


@pytest.mark.parametrize("name", ["d-psgd", "push-sum"])
def test_new_peers_take_the_places_of_the_dead(simulate: Simulate, name: str) -> None:
    """Also of those that die while others still count on them for another exchange."""
    report = simulate(name, peers=10, exchanges=15, death=0.1, joins=True)
    assert report.deaths >= report.joins > 2
    assert report.alive == 10 - report.deaths + report.joins
    assert report.kept_drift is not None
    assert report.kept_drift < 1e-5
    assert report.alone > 0  # who waited for one that died


@pytest.mark.parametrize("name", ["d-psgd", "push-sum", "ad-psgd"])
def test_halves_that_cannot_meet_come_to_a_model_each_and_then_to_one(
    simulate: Simulate, name: str
) -> None:
    """Without steps: what is left between halves stays to the last digit until they meet again."""
    found = simulate(
        name, peers=10, exchanges=60, train=False, spread=1.0, seed=2, partition=(2, 30),
        follow=True,
    )  # fmt: skip
    by = {round(one.exchanges): one for one in found.distances}
    assert by[29].halves < by[2].halves / 1000
    assert by[29].all > 0.1
    assert by[29].all == pytest.approx(by[25].all, rel=1e-2)
    assert found.distances[-1].all < by[29].all / 1000
    assert found.kept_drift is not None
    assert found.kept_drift < 1e-6
    assert found.partition == (2, 30)


def test_models_part_while_halves_cannot_meet_and_come_together_after(simulate: Simulate) -> None:
    found = simulate(peers=8, exchanges=40, split=True, partition=(12, 28), follow=True)
    before = max(one.all for one in found.distances if one.exchanges <= 12)
    apart = [one for one in found.distances if 12 < one.exchanges <= 28]
    assert apart[-1].all > 3 * before
    assert apart[-1].all > apart[len(apart) // 2].all > apart[0].all
    assert all(one.halves < 1.5 * before for one in apart)
    assert found.distances[-1].all < apart[-1].all / 5
    assert found.waited_share < 0.5


@pytest.mark.parametrize("partition", [(0, 3), (3, 3), (3, 2), (2, 4)])
def test_a_swarm_is_in_halves_for_a_while_only(
    simulate: Simulate, partition: tuple[int, int]
) -> None:
    with pytest.raises(ConfigError, match="cannot be in halves"):
        simulate(exchanges=4, partition=partition)


def test_distances_are_drawn(simulate: Simulate, tmp_path: Path) -> None:
    found = simulate(exchanges=4, train=False, spread=1.0, partition=(1, 2), follow=True)
    with pytest.raises(StoreError, match="cannot write"):
        draw(found, tmp_path / "gone" / "apart.png")
    draw(found, tmp_path / "apart.png")
    assert (tmp_path / "apart.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(("momentum", "pairing", "size"), [(0.9, "", 2), (0.95, "groups", 4)])
def test_too_much_spring_drives_models_apart(
    simulate: Simulate, momentum: float, pairing: str, size: int
) -> None:
    """What `peer check` warns of, as 24 peers do it that take no steps."""
    changes = {"momentum": momentum, **({"pairing": pairing, "group": size} if pairing else {})}
    most = NoLoCoConfig.model_validate({"name": "noloco", **changes}).spring_max
    group = f'pairing = "{pairing}"\ngroup = {size}' if pairing else ""

    def left(spring: float) -> float:
        settings = f"momentum = {momentum}\nspring = {spring:.4f}\n{group}"
        found = simulate("noloco", settings, peers=24, exchanges=80, train=False, spread=1.0)
        return found.looks[-1].distance / found.looks[0].distance

    assert left(0.5 * most) < 0.3
    assert left(1.8 * most) > 4


def test_asynchronous_peers_do_not_wait(simulate: Simulate) -> None:
    report, rounds = simulate("ad-psgd", exchanges=8), simulate(exchanges=8)
    assert report.waited_share == 0.0 < rounds.waited_share
    assert report.alone == 0
    poisson = simulate("ad-psgd", 'clock = "poisson"', exchanges=8)
    assert poisson.virtual_s > report.virtual_s


def link(name: str, **changes: Any) -> LinkKind:  # noqa: ANN401 - of `LinkKind`
    return LinkKind(name=name, **{"down_mbit": 40, "up_mbit": 10, "delay_ms": 30, **changes})


def test_slow_and_lossy_links_take_longer(simulate: Simulate) -> None:
    quick = simulate(train=False, links=(link("quick"),))
    slow = simulate(train=False, links=(link("slow", up_mbit=0.1, down_mbit=0.1),))
    lossy = simulate(train=False, links=(link("lossy", loss=0.5),))
    assert slow.virtual_s > quick.virtual_s + 1
    assert lossy.sent_again > quick.sent_again == 0
    assert lossy.virtual_s > quick.virtual_s


def test_two_whom_nobody_can_dial_do_not_meet(simulate: Simulate) -> None:
    hidden = simulate(train=False, spread=1.0, links=(link("hidden", nat=True),))
    assert hidden.exchanges == 0
    assert hidden.looks[-1].distance == hidden.looks[0].distance
    mixed = simulate(train=False, links=(link("hidden", nat=True), link("open")), exchanges=10)
    assert mixed.exchanges > 0


def test_each_peer_may_train_on_a_part_of_its_own(simulate: Simulate) -> None:
    one, split = simulate(exchanges=8), simulate(exchanges=8, split=True)
    assert one.looks[-1].own_loss != split.looks[-1].own_loss


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("steps = 2", "steps_max = 2", "steps"),
        ('name = "adamw", lr = 0.01', 'name = "muon"', "Muon"),
        ('kind = "gpt"\nlayers = 1\nwidth = 8\nheads = 1', 'kind = "hf"\npath = "x"', "built-in"),
        ('name = "d-psgd"', 'name = "sparseloco"', "does not gossip"),
        (
            'name = "d-psgd"',
            'name = "ad-psgd"\ndadao = { smoothness = 2, convexity = 1 }',
            "DADAO",
        ),
    ],
)
def test_what_cannot_be_simulated_is_said(tmp_path: Path, old: str, new: str, what: str) -> None:
    path = write_run(tmp_path, method=GOSSIP.format(name="d-psgd", settings=""))
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new).replace('path = "x"\ncontext = 16', 'path = "x"'))
    with pytest.raises(ConfigError, match=what):
        simulate_gossip(
            load_run_file(path), tmp_path, peers=2, exchanges=1, links=(PRESETS["lan"],)
        )


def test_muon_is_refused_by_rows() -> None:
    setup = tiny_setup()
    with pytest.raises(ConfigError, match="Muon"):
        Rows(setup.model, setup.data, InnerConfig(optimizer=MuonConfig(name="muon")), 2)  # type: ignore[arg-type]
