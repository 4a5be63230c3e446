"""What the gossip bench draws and adds up."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from node.methods.parts.mixing import MODEL
from protocol.ids import PeerId
from tests.chaos.gossip import JOINED, KILLED, draw
from tests.chaos.mass import is_whole, sum_up
from tests.gossip.test_exchange import wide
from tests.gossip.test_journal import KilledError, Side, exchange
from tests.methods.making import peer

BENCH = Path(__file__).with_name("gossip.py")


def test_the_same_seed_draws_the_same_turns_and_ends_with_time_to_learn() -> None:
    turns = draw(3, 6, 300.0)
    assert turns == draw(3, 6, 300.0) != draw(4, 6, 300.0)
    victims = [turn.victim for turn in turns if turn.victim is not None]
    assert len(set(victims)) == len(victims) == KILLED
    assert len(turns) - len(victims) == JOINED
    assert [turn.at_s for turn in turns] == sorted(turn.at_s for turn in turns)
    assert all(30 <= turn.at_s <= 200 for turn in turns)


def killed_after(writes: int) -> Callable[[], None]:
    left = iter(range(writes))

    def before_write() -> None:
        if next(left, None) is None:
            raise KilledError

    return before_write


def test_disks_hold_together_what_they_held_wherever_an_exchange_ends_p3(tmp_path: Path) -> None:
    """A pair is killed before each of its writes: what one has counted, the other is ready for."""
    counting = 0
    for writes in range(5):
        one, other = (Side(tmp_path / f"{writes}-{seat}", "d-psgd", seat) for seat in range(2))
        homes = {PeerId(peer(seat)): side.home for seat, side in enumerate((one, other))}
        before = (one.party.state[MODEL].double() + other.party.state[MODEL].double()).clone()
        with pytest.raises(KilledError):
            exchange(one, other, before_write=killed_after(writes))
        one.journal.close()
        other.journal.close()
        found = sum_up(homes, wide("d-psgd")[0])
        assert found.open >= found.counting
        counting += found.counting
        total = before.split([len(part) for part in found.parts])
        for part, wanted in zip(found.parts, total, strict=True):
            assert float((part - wanted).abs().max()) < 1e-6
    assert counting


def test_a_stretch_is_whole_when_all_its_weights_are_one_whole_number() -> None:
    assert is_whole(torch.tensor([4.001, 3.999, 4.0]))
    assert not is_whole(torch.tensor([4.0, 5.0]))
    assert not is_whole(torch.tensor([4.25, 4.25]))


@pytest.mark.slow
def test_a_short_run() -> None:
    """It must not rot between the long runs. So little training may leave the mean no better."""
    options = "--peers 3 --minutes 0.6 --mass-minutes 0.3 --step 0.05 --seed 2"
    command = [sys.executable, str(BENCH), *options.split()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stderr
    facts = json.loads(done.stdout)
    assert len(facts["killed"]) == KILLED
    assert len(facts["members"]) == 3
    assert facts["missing"] == facts["faults"] == []
    assert facts["all_members_at_the_end"]
    assert facts["exchanges"] > 20
    assert facts["merged_heldout_loss"] < 4
    assert facts["mass"]["met"]
    assert facts["mass"]["kills"] > 4
