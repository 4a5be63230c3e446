"""One seed is one world: nothing may depend on how Python orders a set that day (P1)."""

import os
import subprocess
import sys
from pathlib import Path

TRACE = Path(__file__).parent / "trace.py"


def start(hash_seed: str) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    command = [sys.executable, str(TRACE), "11", "15"]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)


def test_hash_seeds_change_nothing() -> None:
    """Four bad worlds, in both ways of counting, in two processes."""
    running = [start("1"), start("2")]
    traces = [process.communicate(timeout=120)[0] for process in running]
    assert [process.returncode for process in running] == [0, 0]
    assert len(set(traces[0].splitlines())) == 8
    assert traces[0] == traces[1]
