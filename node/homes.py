"""Where peers keep their identity and ledger, unless told otherwise. Imports nothing heavy."""

import os
from pathlib import Path


def default_home(name: str) -> Path:
    """Where a peer keeps its identity and ledger, unless told otherwise."""
    base = os.environ.get("PEER_HOME")
    if base:
        return Path(base)
    state = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(state) / "peertrain" / name
