"""The table of broken promises fits the code; `make promises` breaks them one by one."""

from collections import Counter
from dataclasses import replace

import pytest

from tests.broken import PROMISES, Mutation, mutations
from tests.promises import why_not

TABLE = mutations()


@pytest.mark.parametrize("mutation", TABLE, ids=lambda mutation: mutation.broken)
def test_each_line_names_a_place_and_a_test_that_cites_the_promise(mutation: Mutation) -> None:
    assert why_not(mutation) is None


def test_every_promise_is_broken_in_more_than_one_way() -> None:
    counts = Counter(mutation.promise for mutation in TABLE)
    assert set(counts) == set(PROMISES)
    assert min(counts.values()) >= 2
    assert len({(mutation.file, mutation.old, mutation.new) for mutation in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"promise": "P9"}, "does not cite P9"),
        ({"test": TABLE[0].test + "_"}, "there is no test"),
        ({"test": "tests/machine/nowhere.py::test"}, "there is no test"),
        ({"old": "nobody wrote this"}, "holds 0 times"),
        ({"old": "self"}, "times: self"),
        ({"new": "if:"}, "no Python"),
    ],
)
def test_a_line_that_does_not_fit_is_refused(change: dict[str, str], why: str) -> None:
    assert why in (why_not(replace(TABLE[0], **change)) or "")
