"""Which rounds have a snapshot, and how its root gets into the ledger.

Everybody puts the state of the same rounds on disk. Half a period later, when that is surely done,
contributions name its root; the root that most of the round's members name is in the ledger for
good.
"""

from collections import Counter
from dataclasses import dataclass

from protocol.entries import Entry
from protocol.ids import Hash
from protocol.rules import Rules


@dataclass(frozen=True, slots=True)
class SnapshotAt:
    """The state where `round` is open, as a blob."""

    round: int
    root: Hash


def is_taken(round: int, rules: Rules) -> bool:
    """Is the state at the opening of `round` to be kept?"""
    return round > 0 and round % rules.snapshot_every == 0


def naming_round(taken: int, rules: Rules) -> int:
    """The round in which roots of the snapshot of round `taken` are named."""
    return taken + max(1, rules.snapshot_every // 2)


def named_in(round: int, rules: Rules) -> int | None:
    """The snapshot that contributions to `round` name the root of; None: none."""
    taken = round - naming_round(0, rules)
    return taken if is_taken(taken, rules) else None


def naming_rounds(head: int, rules: Rules) -> range:
    """Closed rounds in which roots were named, newest first."""
    every, lag = rules.snapshot_every, naming_round(0, rules)
    newest = (head - 1 - lag) // every * every + lag
    return range(newest, lag, -every)


def established(entry: Entry, rules: Rules, members: int) -> SnapshotAt | None:
    """The snapshot whose root most of the round's members name in this entry's lines."""
    round = named_in(entry.round, rules)
    if round is None:
        return None
    counts = Counter(line.snapshot for line in entry.body.lines if line.snapshot is not None)
    for root, count in counts.items():
        if 2 * count > members:
            return SnapshotAt(round, root)
    return None
