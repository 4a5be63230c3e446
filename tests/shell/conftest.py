"""What several files here need."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli import app
from node.swarm import Swarm
from tests.shell.runs import write_run
from tests.shell.swarms import Run, ending


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    where = tmp_path / "disk"
    where.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(where)]
    if os.geteuid() or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a small file system here")
    yield where
    subprocess.run(["umount", str(where)], check=True)


@pytest.fixture
def swarm(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Swarm]:
    """An empty swarm; its quorum is the test's parameter, if it has one. Leaves no process."""
    config = write_run(tmp_path, quorum=getattr(request, "param", "any"))
    swarm = Swarm(tmp_path / "swarm", config, ["--threads", "1"])
    with ending(swarm):
        yield swarm


@pytest.fixture
def peer(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs a command in this process: exit code, stdout, stderr."""

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["peer", *arguments])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            app.main()
        out, err = capsys.readouterr()
        code = ended.value.code
        return int(code) if code else 0, out, err

    return run
