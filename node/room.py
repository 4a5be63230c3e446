"""How much of the disk a peer's home takes, and what for."""

import stat
from pathlib import Path
from typing import Final

_BLOCK: Final = 512  # what st_blocks counts in
_DATABASE, _LOG = "peer.db", "events.jsonl"
_FOLDERS: Final = ("snapshots", "attachments")
PARTS: Final = ("ledger", *_FOLDERS, "log", "other")


def disk_by_part(home: Path) -> dict[str, int]:
    """Bytes on disk: a file with holes, as one that is being fetched, counts what it holds."""
    found = dict.fromkeys(PARTS, 0)
    for path in home.rglob("*"):
        try:
            facts = path.lstat()
        except FileNotFoundError:
            continue  # snapshots come and go meanwhile
        if stat.S_ISREG(facts.st_mode):
            found[_part(path.relative_to(home))] += facts.st_blocks * _BLOCK
    return found


def _part(path: Path) -> str:
    if path.parts[0] in _FOLDERS:
        return path.parts[0]
    if path.name.startswith(_DATABASE):  # the ledger, and SQLite's files beside it
        return "ledger"
    return "log" if path.name.startswith(_LOG) else "other"
