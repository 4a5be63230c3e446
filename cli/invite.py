"""`peer invite`: let one more machine in."""

from typing import Annotated

import typer

from cli.console import HomeOption, JsonOption, find_home, print_json


def invite(
    home: HomeOption = None,
    days: Annotated[float, typer.Option(help="How long it can be used.")] = 7.0,
    as_json: JsonOption = False,
) -> None:
    """Print an invite: one string that lets its holder join. Any member can."""
    from node.control import ask
    from node.errors import UserError

    answer = ask(find_home(home), {"do": "invite", "days": days})
    if "error" in answer:
        raise UserError(answer["error"], answer.get("hint", "see peer invite --help"))
    print_json(answer) if as_json else print(answer["invite"])
