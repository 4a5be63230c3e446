"""The folder in which models wait to be merged."""

import os
import time
from pathlib import Path

import pytest

from node.gossip.merging import _folder
from node.store import StoreError


def test_a_killed_merge_leaves_nothing_for_good(tmp_path: Path) -> None:
    """The next one removes what nobody holds, and nothing that is in use or was just made."""
    old = time.time() - 3600
    left, fresh = tmp_path / "merging-left", tmp_path / "merging-fresh"
    for folder in (left, fresh):
        folder.mkdir()
        (folder / "model").write_bytes(b"a model")
    os.utime(left, (old, old))
    with _folder(tmp_path) as used:
        assert not left.exists()
        os.utime(used, (old, old))
        with _folder(tmp_path) as other:
            assert {used, other, fresh} == set(tmp_path.iterdir())
    assert set(tmp_path.iterdir()) == {fresh}


def test_a_home_that_cannot_be_written_is_an_error_for_people(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot write"), _folder(tmp_path / "gone"):
        pass
