"""`peer leave`: stop a peer in good order."""

import time
from typing import Annotated

import typer

from cli.console import HomeOption, JsonOption, find_home, print_json, say


def leave(
    home: HomeOption = None,
    wait: Annotated[float, typer.Option(help="Seconds to wait until it has ended.")] = 40.0,
    as_json: JsonOption = False,
) -> None:
    """Say goodbye to the others and end. Its folder stays: started again, it goes on."""
    from node.control import NotRunning, ask
    from node.errors import UserError

    place = find_home(home)
    ask(place, {"do": "leave"})
    end, told = time.monotonic() + wait, time.monotonic()
    while time.monotonic() < end:
        try:
            ask(place, {"do": "status"}, 2.0)
        except NotRunning:
            print_json({"left": True}) if as_json else say("left")
            return
        if time.monotonic() - told > 2:
            told = time.monotonic()
            say("finishing the work at hand")
        time.sleep(0.1)
    raise UserError("the peer is still running", "wait, or end its process")
