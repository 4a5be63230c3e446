"""A run's model from a home's ledger, for commands that only read."""

from pathlib import Path
from typing import TYPE_CHECKING

from cli.console import Teller, find_home, say

if TYPE_CHECKING:
    from node.offline import Rebuilt


def open_home(
    home: Path | None, model: str | None, data: list[str] | None, teller: Teller
) -> "Rebuilt":
    """Raises UserError."""
    from node.offline import rebuild

    changes = known_changes(model, data)
    teller("loading model and data")
    return rebuild(
        find_home(home), lambda what, done, total: teller(f"{what} {done}/{total}"), changes
    )


def say_whose(rebuilt: "Rebuilt") -> None:
    """If it is not everybody's."""
    if rebuilt.membership.manifest.method.gossips:
        say(
            "this is one member's own model; `peer export DIR --merge` writes the mean of all"
            " members'"
        )


def known_changes(model: str | None, data: list[str] | None) -> dict[str, object]:
    """What a command says otherwise than the settings that the peer last ran with."""
    changes: dict[str, object] = {}
    if model is not None:
        changes["model"] = model
    if data:
        changes["data"] = tuple(data)
    return changes
