"""`peer generate`: text from the model that a run has trained."""

from typing import Annotated

import typer

from cli.console import DataOption, HomeOption, JsonOption, ModelOption, Teller, print_json


def generate(
    prompt: Annotated[str, typer.Argument(help="What the text begins with.")] = "",
    home: HomeOption = None,
    tokens: Annotated[int, typer.Option(min=1, max=100_000, help="How many to make.")] = 200,
    temperature: Annotated[float, typer.Option(min=0.0, help="0: always the likeliest.")] = 0.8,
    top_k: Annotated[int, typer.Option(min=0, help="Choose among so many; 0: among all.")] = 40,
    seed: Annotated[int | None, typer.Option(help="The same text every time.")] = None,
    model: ModelOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the model from a peer's ledger (which may be running) and let it write. Of a run that
    gossips it is this peer's own model, as it last wrote it down.
    """
    from node.training.generate import generate as write

    from cli.rebuilt import open_home, say_whose

    rebuilt = open_home(home, model, data, Teller())
    say_whose(rebuilt)
    pieces = write(
        rebuilt.workshop.model,
        prompt,
        tokens=tokens,
        temperature=temperature,
        top_k=top_k,
        seed=seed,
    )
    if as_json:
        text = "".join(pieces)
        print_json({"prompt": prompt, "text": text, "round": rebuilt.replica.round})
        return
    print(prompt, end="", flush=True)
    for piece in pieces:
        print(piece, end="", flush=True)
    print()
