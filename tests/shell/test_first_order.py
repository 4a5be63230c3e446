"""Swarms of real processes whose contributions are attached to the ledger."""

from contextlib import closing
from pathlib import Path

import pytest

from node.local import FILE
from node.offline import ReadOnlyStore
from node.swarm import PeerProcess, Swarm
from tests.shell.runs import DEMO, DILOCO, SPARSELOCO, STREAMING, write_run
from tests.shell.swarms import WAIT_S, agree, ask, ending, entries, grow, members_seen, reach, words


def come_and_go(swarm: Swarm) -> None:
    """One peer is killed and returns, another is let in, and after some rounds, one of which has a
    snapshot, all agree.
    """
    reach(swarm, max(swarm.rounds().values()) + 3)
    victim = swarm.peers[1]
    swarm.kill(victim)
    reach(swarm, max(swarm.rounds().values()) + 2)
    victim.seen = None
    swarm.restart(victim)
    swarm.join()
    assert swarm.wait(lambda: members_seen(swarm) == len(swarm.peers), WAIT_S), words(swarm)
    reach(swarm, max(swarm.rounds().values()) + 12)
    agree(swarm)


def export(founder: PeerProcess, out: Path) -> None:
    written = ask("export", str(out), "--home", str(founder.home))
    assert (out / "model.safetensors").exists(), written


def test_a_swarm_of_sparseloco(tmp_path: Path) -> None:
    """P1, P3, P4: 1. One peer is killed. 2. It returns, and another is let in. 3. All agree. 4. The
    founder leaves, and starts again with what it had kept for itself.
    """
    config = write_run(tmp_path, method=SPARSELOCO)
    with ending(Swarm(tmp_path / "swarm", config, ["--threads", "1"])) as swarm:
        grow(swarm, 3)
        come_and_go(swarm)
        founder = swarm.peers[0]
        facts = ask("status", "--home", str(founder.home))
        assert (facts["method"], facts["unit_of_work"]) == ("sparseloco", "batches")
        lines = [line for entry in entries(founder) for line in entry.body.lines]
        assert all(line.attached is not None for line in lines)
        swarm.stop()
        assert (founder.home / FILE).exists()
        assert "Traceback" not in words(swarm)
        export(founder, tmp_path / "model")
        assert "local-state-unusable" not in (founder.home / "events.jsonl").read_text()


@pytest.mark.parametrize("quorum", ["any", "majority"])
def test_a_swarm_that_sums_part_by_part(quorum: str, tmp_path: Path) -> None:
    """P1, P3, P4: 1. One peer is killed, and whoever was next adds up in its place. 2. It returns,
    and another is let in. 3. All agree, and none has all that the others sent.
    """
    method = DILOCO.replace("steps = 2", "steps_max = 50")
    config = write_run(tmp_path, method=method, quorum=quorum, parts_max=3, window_s=1.0)
    with ending(Swarm(tmp_path / "swarm", config, ["--threads", "1"])) as swarm:
        grow(swarm, 4)
        come_and_go(swarm)
        swarm.stop()
        founder = swarm.peers[0]
        lines = [line for entry in entries(founder) for line in entry.body.lines]
        assert all(line.attached is not None for line in lines)
        with closing(ReadOnlyStore(founder.home)) as disk:
            assert not [one for one in lines if disk.get("attachments", one.attached.root)]
            assert list(disk.scan("sums"))
        events = "".join((peer.home / "events.jsonl").read_text() for peer in swarm.peers)
        assert "Traceback" not in words(swarm)
        for fault in ("sums-differ", "sum-refused", "work-lost", '"fault"', "switched"):
            assert fault not in events, fault
        export(founder, tmp_path / "model")


@pytest.mark.parametrize(("name", "method"), [("diloco", STREAMING), ("demo", DEMO)])
def test_a_swarm_that_overlaps(name: str, method: str, tmp_path: Path) -> None:
    """P1: a newcomer takes over the weights, and the momentum of DiLoCo, which are more than the
    ledger.
    """
    config = write_run(tmp_path, method=method)
    with ending(Swarm(tmp_path / "swarm", config, ["--threads", "1"])) as swarm:
        grow(swarm, 2)
        reach(swarm, max(swarm.rounds().values()) + 12)
        swarm.join()
        assert swarm.wait(lambda: members_seen(swarm) == 3, WAIT_S), words(swarm)
        reach(swarm, max(swarm.rounds().values()) + 3)
        agree(swarm)
        assert ask("status", "--home", str(swarm.peers[2].home))["method"] == name
