"""One simulated bad world, as a digest of every frame that was sent in it and of where it ended."""

import sys

from node.sim.faults import bad_world
from protocol.ids import digest
from protocol.rules import Quorum


def trace(seed: int, quorum: Quorum, seconds: int) -> str:
    world, storm = bad_world(seed, quorum)
    seen = digest("trace", seed.to_bytes(8, "big"))

    def on_frame(frame: bytes) -> None:
        nonlocal seen
        at_us = int(world.now_ms * 1_000)
        seen = digest("trace", seen, at_us.to_bytes(8, "big"), frame)

    world.on_frame = on_frame
    for _ in range(seconds):
        storm.second()
        world.run_for(1_000)
    ends = [who.peer.ledger.head.hash for who in world.up()]
    return digest("trace", seen, *ends).hex()


if __name__ == "__main__":
    for number in range(int(sys.argv[1]), int(sys.argv[2])):
        for kind in Quorum:
            sys.stdout.write(f"{number} {kind} {trace(number, kind, 15)}\n")
