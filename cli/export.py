"""`peer export`: the trained model, as a Hugging Face folder or as a patch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import DataOption, HomeOption, JsonOption, ModelOption, Teller, print_json, size


def export(
    target: Annotated[Path, typer.Argument(help="The folder, or with --patch the file, to write.")],
    patch: Annotated[
        bool, typer.Option("--patch", help="Write the base's hash and the ledger: kilobytes.")
    ] = False,
    merge_adapter: Annotated[
        bool, typer.Option(help="Fold a LoRA adapter into the base model's weights.")
    ] = False,
    home: HomeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write what a peer's ledger makes of the base model. The peer may be running."""
    from node.errors import UserError
    from node.patch import write_patch
    from node.training import weights

    from cli.rebuilt import open_home

    teller = Teller()
    rebuilt = open_home(home, model, data, teller)
    state = rebuilt.replica.digest()
    facts: dict[str, Any] = {
        "round": rebuilt.replica.round,
        "digest": f"{state:016x}",
        "path": str(target),
    }
    if patch:
        if target.is_dir():
            raise UserError(f"{target} is a folder", "--patch writes a file; name one")
        facts["bytes"] = write_patch(target, rebuilt.membership.raw, rebuilt.bodies, state)
    else:
        weights.export(rebuilt.workshop.model, target, merge_adapter=merge_adapter)
        facts["bytes"] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if as_json:
        print_json(facts)
    else:
        print(f"{target}: {size(facts['bytes'])}, round {facts['round']}, digest {facts['digest']}")
