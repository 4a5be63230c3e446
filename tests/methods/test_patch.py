"""A patch holds the ledger alone."""

from dataclasses import replace
from pathlib import Path

import pytest

from node.patch import Patch, PatchError, write_patch
from protocol.codec import encode_body
from protocol.entries import Attachment, Body
from protocol.ids import Hash, run_id
from tests.machine.making import RUN, genesis, ids, line


def test_a_run_with_attachments_fits_no_patch(tmp_path: Path) -> None:
    """Neither is one written, nor is one read that somebody else made."""
    (me,) = ids(1)
    made, _ = line(genesis([me]), me)
    bulky = replace(made, attached=Attachment(Hash(bytes(32)), 9))
    raw = encode_body(Body(0, Hash(RUN), 0, 1, 7, (bulky,), (), ()))
    path = tmp_path / "tune.patch"
    with pytest.raises(PatchError, match="no patch can hold it"):
        write_patch(path, b"manifest", [raw], 7)
    assert not path.exists()
    first = encode_body(Body(0, Hash(run_id(b"manifest")), 0, 1, 7, (bulky,), (), ()))
    with pytest.raises(PatchError, match="no patch can hold it"):
        list(Patch(b"manifest", (first,), 7).entries())
