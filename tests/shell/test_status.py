"""What `peer status` and the metrics of a running peer say of its disk: the same, and true."""

import socket
import urllib.request

from node.snapshots import KEPT, bytes_max
from node.swarm import Swarm
from tests.shell.swarms import WAIT_S, ask, peer_command, words


def test_disk_and_snapshots_are_shown(swarm: Swarm) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        metrics = f"127.0.0.1:{taken.getsockname()[1]}"
    config = swarm.folder.parent / "run.toml"
    config.write_text(config.read_text() + f'metrics = "{metrics}"\n')
    founder = swarm.found()

    def has_some() -> bool:
        return founder.seen is not None and len(founder.seen["snapshots"]) >= 2

    assert swarm.wait(has_some, WAIT_S), words(swarm)
    home = str(founder.home)
    facts = ask("status", "--home", home)
    first, second, *_ = facts["snapshots"]
    assert second - first == facts["snapshot_every"] == 10
    assert facts["disk_bytes"] == sum(facts["disk"].values())
    assert all(facts["disk"][part] > 0 for part in ("ledger", "snapshots", "log"))
    one = ask("check", str(config))["snapshot_bytes"]
    assert KEPT * one <= facts["disk"]["snapshots"] <= 2 * bytes_max(one)  # they come and go

    said = peer_command("status", "--home", home)
    assert said.returncode == 0, said.stderr
    rows = dict(line.split(maxsplit=1) for line in said.stdout.splitlines())
    assert rows["snapshots"].endswith("one every 10 rounds")
    assert rows["damage"] == "none found since the start"
    assert "ledger" in rows["disk"]

    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=10) as answer:
        shown = answer.read().decode()
    assert 'peer_disk_bytes{part="snapshots"} ' in shown
    assert 'peer_chunk_bytes_total{direction="out"} 0.0' in shown
    assert "peer_damaged_chunks_total 0.0" in shown

    swarm.stop()
    assert {path.stat().st_size for path in founder.home.glob("snapshots/*.safetensors")} == {one}
