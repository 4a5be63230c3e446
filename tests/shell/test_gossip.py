"""Peers that gossip, as real processes over real sockets."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.swarm import PeerProcess, Swarm
from tests.chaos.logs import read_events, told_faults
from tests.shell.runs import DILOCO, NOLOCO, UNHURRIED, write_run
from tests.shell.swarms import WAIT_S, Run, ending, grow, grow_unhurried, words


@pytest.fixture
def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Swarm]:
    method = getattr(request, "param", NOLOCO)
    config = write_run(tmp_path, method=method, window_s=0.5, node=UNHURRIED)
    swarm = Swarm(tmp_path / "swarm", config, ["--threads", "1"])
    with ending(swarm):
        yield swarm


def done(peer: PeerProcess) -> int:
    return 0 if peer.seen is None else int(peer.seen.get("exchanges_done", 0))


def wait_for_exchanges(swarm: Swarm, more: int) -> None:
    """Everybody that should be up, so many more than now."""
    up = [peer for peer in swarm.peers if not peer.gone]
    before = {peer.name: done(peer) for peer in up}

    def there() -> bool:
        return all(done(peer) >= before[peer.name] + more for peer in up)

    assert swarm.wait(there, WAIT_S, every_s=0.2), words(swarm)


def test_a_swarm_gossips_through_a_kill_and_ends_with_one_model(
    swarm: Swarm, tmp_path: Path, peer: Run
) -> None:
    """1. Three peers meet two by two; the two that joined began with the founder's model.
    2. One is killed. The others go on at once.
    3. Started again, it goes on with the model that it had, and meets the others.
    4. `peer export --merge` writes the mean of all three, while they train on, and says who is in
       it and what each is worth.
    """
    grow_unhurried(swarm, 3)
    wait_for_exchanges(swarm, 5)
    for joined in swarm.peers[1:]:
        assert "started from the model of member" in joined.log.read_text()
    victim = swarm.peers[1]
    assert victim.seen is not None
    before = victim.seen["exchange"]
    swarm.kill(victim)
    wait_for_exchanges(swarm, 5)
    victim.seen = None
    swarm.restart(victim)
    assert swarm.wait(lambda: bool(victim.seen and victim.seen["member"]), WAIT_S), words(swarm)
    wait_for_exchanges(swarm, 5)
    assert victim.log.read_text().count("started from the model of member") == 1
    assert victim.seen is not None
    assert victim.seen["exchange"] >= before
    home = str(swarm.peers[0].home)
    code, out, err = peer("export", str(tmp_path / "model"), "--merge", "--home", home, "--json")
    assert code == 0, err
    facts = json.loads(out)
    assert {one["peer"] for one in facts["members"]} == {
        p.seen["peer"] for p in swarm.peers if p.seen
    }
    assert facts["missing"] == []
    # So small a model is noisy, and its held-out data few: no worse than they are, about. What is
    # no mean of them knows nothing, which is 5.5.
    assert facts["heldout_loss"] < facts["mean_heldout_loss"] + 0.3
    assert facts["mean_heldout_loss"] < 3
    assert (tmp_path / "model" / "model.safetensors").exists()
    swarm.look()
    assert told_faults(swarm.peers) == []
    for one in swarm.peers:
        assert one.seen is not None
        assert one.seen["faults"] == one.seen["mismatches"] == 0
        assert one.seen["consensus_distance"] is not None
    code, out, err = peer("status", "--home", home)
    assert code == 0, err
    assert "this member's own" in out
    assert "exchanges     at number" in out
    code, _, err = peer("export", str(tmp_path / "own"), "--home", home)
    assert code == 0, err
    assert "one member's own model" in err
    code, _, err = peer("generate", "x", "--tokens", "4", "--home", home)
    assert code == 0, err
    assert "one member's own model" in err
    code, _, err = peer("export", str(tmp_path / "patch"), "--patch", "--home", home)
    assert code == 1
    assert "there is no patch" in err
    assert "loading" not in err


def exchanges(peer: PeerProcess) -> list[dict[str, object]]:
    return [event for event in read_events(peer.home) if event["event"] == "exchange"]


AD_PSGD = """
[method]
name = "ad-psgd"

[method.inner]
steps = 2
optimizer = {{ name = "adamw", lr = 0.01 }}
"""
PUSH_SUM = AD_PSGD.replace("ad-psgd", "push-sum")


@pytest.mark.parametrize("swarm", [AD_PSGD, PUSH_SUM], indirect=True, ids=["ad-psgd", "push-sum"])
def test_peers_that_ask_each_other_and_such_that_only_send(swarm: Swarm) -> None:
    grow_unhurried(swarm, 2)
    wait_for_exchanges(swarm, 6)
    swarm.stop()
    for peer in swarm.peers:
        assert "Traceback" not in peer.log.read_text()
        assert any(one["whole"] for one in exchanges(peer))


def test_nothing_is_merged_where_all_hold_one_model(tmp_path: Path, peer: Run) -> None:
    swarm = Swarm(tmp_path / "swarm", write_run(tmp_path, method=DILOCO), ["--threads", "1"])
    with ending(swarm):
        grow(swarm, 1)
        home = str(swarm.peers[0].home)
        code, _, err = peer("export", str(tmp_path / "out"), "--merge", "--home", home)
    assert code == 1
    assert "hold one model in common" in err
