"""A peer whose probes come with a large attachment, which must be whole before they are merged.

python tests/shell/bulky_probes.py start run.toml ...
"""

import sys
from typing import Final

from blake3 import blake3

from cli.app import main
from node.methods import spsa
from node.methods.base import RoundContext, WorkResult

BYTES: Final = 700_000  # three chunks


def bulk(payload: bytes) -> bytes:
    """What belongs to a payload."""
    return blake3(payload).digest(length=BYTES)


class BulkySpsa(spsa.Spsa):
    def work(self, round: RoundContext) -> WorkResult:
        done = super().work(round)
        return WorkResult(done.payload, done.loss, bulk(done.payload))

    def check(self, round: int, payload: bytes, attachment: bytes) -> None:
        if attachment != bulk(payload):
            raise ValueError("not what belongs to this payload")

    def give_back(self, round: int, payload: bytes, attachment: bytes = b"") -> None:
        self.check(round, payload, attachment)
        super().give_back(round, payload)


if __name__ == "__main__":
    spsa.Spsa = BulkySpsa  # type: ignore[misc]
    sys.exit(main())
