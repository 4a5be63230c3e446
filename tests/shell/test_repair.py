"""One bit of one weight flips in one live replica: found, named, mended, without a restart (P1)."""

import json
import signal
import sys
from pathlib import Path

from node.swarm import PeerProcess, Swarm
from tests.shell.swarms import WAIT_S, grow, reach, words

FAILING = Path(__file__).with_name("failing_memory.py")


def told(peer: PeerProcess, event: str) -> list[dict[str, object]]:
    lines = (peer.home / "events.jsonl").read_text().splitlines()
    return [line for line in map(json.loads, lines) if line["event"] == event]


def test_a_flipped_bit_is_found_and_mended(swarm: Swarm) -> None:
    grow(swarm, 2)
    failing = swarm.join()
    swarm.kill(failing)
    failing.command = (sys.executable, str(FAILING), *failing.command[3:])
    swarm.restart(failing)
    assert swarm.wait(lambda: bool(failing.seen and failing.seen["member"]), WAIT_S), words(swarm)
    reach(swarm, 3)
    assert swarm.wait(lambda: bool(failing.seen and failing.seen["work_made"]), WAIT_S)
    assert failing.seen is not None
    hit = int(failing.seen["round"])
    failing.process.send_signal(signal.SIGUSR1)
    assert swarm.wait(lambda: bool(failing.seen and failing.seen["repairs"]), WAIT_S), words(swarm)
    found, (mended,) = told(failing, "digest-mismatch"), told(failing, "repaired")
    # The state of a round is compared when its entry comes, so a flip shows in the next one.
    assert int(str(found[0]["round"])) <= hit + 2
    assert mended["bytes"] == 1
    assert str(mended["tensors"]).startswith("weights.")
    healthy = int(str(mended["round"])) + 1

    def agree() -> bool:
        common = swarm.common_digests()
        return common is not None and common[0] > healthy and len(set(common[1].values())) == 1

    assert swarm.wait(agree, WAIT_S, every_s=0.1), words(swarm)
    assert len(told(failing, "digest-mismatch")) <= 3
    assert failing.up, "it was mended while it ran"
