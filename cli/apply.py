"""`peer apply`: a fine-tuned model from its base and a patch."""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import (
    DataOption,
    DeviceOption,
    JsonOption,
    Teller,
    ThreadsOption,
    print_json,
    size,
)


def apply(
    base: Annotated[
        str,
        typer.Argument(help="The base model: a folder, a hub id, or `-` for what the patch names."),
    ],
    patch: Annotated[Path, typer.Argument(help="What `peer export --patch` wrote.")],
    out: Annotated[Path, typer.Argument(help="The folder to write the model to.")],
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Rebuild the weights, check their digest, and write a Hugging Face folder."""
    from node.bootstrap import Membership
    from node.config import NodeConfig
    from node.offline import make_replica
    from node.patch import apply_patch, read_patch
    from node.training import weights
    from protocol.ids import PeerId

    teller = Teller()
    read = read_patch(patch)
    settings = NodeConfig(
        device=device or "auto",
        threads=threads,
        model=None if base == "-" else base,
        data=tuple(data or ()),
    )
    teller("loading the base model")
    membership = Membership(read.raw_manifest, read.manifest, b"", None)
    replica, workshop = make_replica(membership, settings, Path.cwd(), PeerId(bytes(32)))
    workshop.check_model(read.manifest)
    apply_patch(read, replica, lambda what, done, total: teller(f"{what} {done}/{total}"))
    weights.export(workshop.model, out)
    facts: dict[str, Any] = {
        "round": replica.round,
        "digest": f"{read.state:016x}",
        "path": str(out),
        "bytes": sum(path.stat().st_size for path in out.rglob("*") if path.is_file()),
    }
    if as_json:
        print_json(facts)
    else:
        written = size(facts["bytes"])
        print(f"{out}: {written}, round {replica.round}, digest {facts['digest']} checked")
