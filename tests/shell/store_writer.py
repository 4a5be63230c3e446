"""A child process that commits numbered transactions until it is killed; it prints each one."""

import sys
from pathlib import Path

from node.store import Store
from protocol.ledger import Write


def main(home: Path) -> None:
    store = Store.open(home)
    count = int.from_bytes(store.get("meta", b"count") or b"", "big")
    while True:
        key = count.to_bytes(8, "big")
        count += 1
        value = count.to_bytes(8, "big")
        store.commit(
            [
                Write("entries", key, key * (1 + count * 37 % 900)),
                Write("outbox", b"only", value),
                Write("outbox", b"gone", None if count % 2 else value),
                Write("meta", b"count", value),
            ]
        )
        sys.stdout.write(f"{count}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
