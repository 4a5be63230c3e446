"""`peer check`: is a run file right, and what would the run take?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import (
    DataOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    Teller,
    known,
    print_json,
    size,
)


def check(
    config: Annotated[Path, typer.Argument(help="A run file.")],
    model: ModelOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only read the file; load nothing, measure nothing.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Validate a run file; say parameters, memory and bytes per round, measured here."""
    from node.config import load_run_file

    from cli.options import node_config

    run_file = load_run_file(config)
    facts: dict[str, Any] = {"file": str(config), "name": run_file.name, "valid": True}
    if not quick:
        from node.survey import survey

        settings = node_config(
            run_file.node,
            listen=None,
            advertise=None,
            device=device,
            threads=None,
            model=model,
            data=data,
        )
        Teller()("loading model and data, and timing one round of work")
        facts |= survey(run_file, settings, config.resolve().parent)
    if as_json:
        print_json(facts)
        return
    print(f"{config}: a valid run file, {run_file.name!r}")
    if quick:
        return
    for name, value in _rows(facts):
        print(f"{name:<14}{value}")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("parameters", f"{facts['parameters']:,}, {facts['trainable']:,} of them trained"),
        ("weights", size(facts["weights_bytes"])),
        ("peak memory", f"{size(facts['peak_bytes'])} while working, this process in all"),
        ("state", f"{size(facts['state_bytes'])} that all peers keep alike"),
        (
            "snapshot",
            f"{size(facts['snapshot_bytes'])}, written to disk every {facts['snapshot_every']}"
            f" rounds; the newest {facts['snapshots_kept']} stay",
        ),
        (
            "disk",
            f"{size(facts['snapshots_bytes_max'])} for snapshots at most; the ledger, which grows"
            " with each round, comes on top",
        ),
        (
            "samples",
            f"{facts['samples']:,} to train on, {facts['heldout_batches']} held-out batches",
        ),
        ("held-out loss", known(facts["heldout_loss"], "{:.4f} before training")),
        (
            "work",
            f"{facts['work_per_round']} {facts['unit_of_work']} a round,"
            f" {facts['seconds_per_unit']:.3f} s each",
        ),
        (
            "sent",
            f"{facts['payload_bytes']} bytes of payload"
            + (f" and {size(facts['attachment_bytes'])} attached" * bool(facts["attachment_bytes"]))
            + " a round and peer",
        ),
        ("model digest", facts["model_digest"][:16]),
        ("data digest", (facts["data_digest"] or "none: private")[:16]),
    ]
