"""How an attachment in parts is named, and how a part shows where it belongs."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.entries import Attachment
from protocol.errors import RemoteError
from protocol.ids import Hash, digest
from protocol.parts import check_part, path_to, whole_of


@given(st.integers(1, 40), st.data())
def test_a_part_belongs_to_one_place_of_one_whole(count: int, data: st.DataObject) -> None:
    made = [Attachment(digest("a part", bytes([n])), 1 + n) for n in range(count)]
    whole, number = whole_of(made), data.draw(st.integers(0, count - 1))
    path = path_to(made, number)
    check_part(whole, count, number, made[number], path)
    assert len(path) <= 6
    for bad in (
        (whole, count, number, made[number], (*path, whole.root)),
        (whole, count, number, replace(made[number], size=made[number].size + 1), path),
        (whole, count, number, replace(made[number], root=Hash(bytes(32))), path),
        (whole, count, number + 1, made[number], path),
        (replace(whole, root=Hash(bytes(32))), count, number, made[number], path),
        *([(whole, count, number, made[number], path[:-1])] if path else []),
    ):
        with pytest.raises(RemoteError):
            check_part(*bad)


def test_a_size_beyond_the_whole_is_refused() -> None:
    made = (Attachment(Hash(bytes(32)), 5), Attachment(Hash(bytes(32)), 0))
    whole = whole_of(made)
    with pytest.raises(RemoteError, match="of 0 bytes"):
        check_part(whole, 2, 1, made[1], path_to(made, 1))
    with pytest.raises(RemoteError, match="of 6 bytes"):
        check_part(whole, 2, 0, replace(made[0], size=6), path_to(made, 0))
