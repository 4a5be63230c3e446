"""`peer export`: the trained model, as a Hugging Face folder or as a patch."""

from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.console import (
    DataOption,
    HomeOption,
    JsonOption,
    ModelOption,
    Teller,
    find_home,
    print_json,
    size,
)

_MODELS_S: Final = 900.0


def export(
    target: Annotated[Path, typer.Argument(help="The folder, or with --patch the file, to write.")],
    patch: Annotated[
        bool, typer.Option("--patch", help="Write the base's hash and the ledger: kilobytes.")
    ] = False,
    merge: Annotated[
        bool,
        typer.Option(
            "--merge",
            help="Of a run that gossips: one mean of the models of all members that are up.",
        ),
    ] = False,
    merge_adapter: Annotated[
        bool, typer.Option(help="Fold a LoRA adapter into the base model's weights.")
    ] = False,
    home: HomeOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Write the model that a peer has trained. It may be running; for --merge it has to be."""
    from node.errors import UserError
    from node.patch import write_patch
    from node.training import weights

    from cli.rebuilt import open_home, say_whose

    teller = Teller()
    if merge:
        if patch:
            raise UserError("a patch holds no merged model", "leave out --patch or --merge")
        _merge(target, home, model, data, teller, merge_adapter=merge_adapter, as_json=as_json)
        return
    if patch:
        _check_patch(target, home)
    rebuilt = open_home(home, model, data, teller)
    state = rebuilt.replica.digest()
    facts: dict[str, Any] = {
        "round": rebuilt.replica.round,
        "digest": f"{state:016x}",
        "path": str(target),
    }
    if patch:
        facts["bytes"] = write_patch(target, rebuilt.membership.raw, rebuilt.bodies, state)
    else:
        weights.export(rebuilt.workshop.model, target, merge_adapter=merge_adapter)
        facts["bytes"] = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
    if as_json:
        print_json(facts)
    else:
        print(f"{target}: {size(facts['bytes'])}, round {facts['round']}, digest {facts['digest']}")
        say_whose(rebuilt)


def _check_patch(target: Path, home: Path | None) -> None:
    """Before anything is loaded. Raises UserError."""
    from node.errors import UserError
    from node.offline import ReadOnlyStore, recall_membership

    place = find_home(home)
    disk = ReadOnlyStore(place)
    try:
        membership, _, _ = recall_membership(place, disk, {})
    finally:
        disk.close()
    if membership.manifest.method.gossips:
        raise UserError(
            "models of a run that gossips do not follow from its ledger, so there is no patch",
            "`peer export DIR --merge` writes the mean of all members' models",
        )
    if target.is_dir():
        raise UserError(f"{target} is a folder", "--patch writes a file; name one")


def _merge(
    target: Path,
    home: Path | None,
    model: str | None,
    data: list[str] | None,
    teller: Teller,
    *,
    merge_adapter: bool,
    as_json: bool,
) -> None:
    """Members go on training meanwhile."""
    from node.control import ask
    from node.errors import UserError
    from node.gossip.merging import merge_models

    from cli.rebuilt import known_changes

    place = find_home(home)
    teller("asking all members for their models")
    answer = ask(place, {"do": "models"}, _MODELS_S)
    if "error" in answer:
        raise UserError(answer["error"], answer.get("hint", ""))
    changes = known_changes(model, data)
    facts = merge_models(place, answer["models"], target, changes, merge_adapter, teller).facts
    if as_json:
        print_json(facts)
        return
    for one in facts["members"]:
        share = 100 * one["share"]
        print(
            f"{one['peer'][:8]}  held-out {one['heldout_loss']:.4f}, {one['tokens']:,} tokens,"
            f" {share:.1f}% of the mean"
        )
    for one in facts["missing"]:
        print(f"{one['peer'][:8]}  left out: {one['why']}")
    print(
        f"merged    held-out {facts['heldout_loss']:.4f},"
        f" the members' mean is {facts['mean_heldout_loss']:.4f}"
    )
    print(f"{target}: {size(facts['bytes'])}")
