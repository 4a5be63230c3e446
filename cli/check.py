"""`peer check`: is a run file right, and what would the run take?"""

from pathlib import Path
from typing import Annotated, Any

import typer

from cli.console import (
    DataOption,
    DeviceOption,
    JsonOption,
    ModelOption,
    ProcessesOption,
    Teller,
    drives,
    known,
    print_json,
    size,
)


def check(
    config: Annotated[Path, typer.Argument(help="A run file.")],
    model: ModelOption = None,
    data: DataOption = None,
    device: DeviceOption = None,
    processes: ProcessesOption = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Only read the file; load nothing, measure nothing.")
    ] = False,
    peers: Annotated[int, typer.Option(min=1, help="How many peers the outlook is for.")] = 4,
    uplink: Annotated[
        list[float] | None,
        typer.Option(min=0.001, help="Mbit/s of each peer's line; else 10, 100 and 1000."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Validate a run file; say parameters, memory, bytes a round and hours an epoch, as measured
    here, and warn of settings that are known to disappoint.
    """
    from node.config import load_run_file
    from node.methods.registry import check_has_rounds

    from cli.options import node_config

    run_file = load_run_file(config)
    facts: dict[str, Any] = {"file": str(config), "name": run_file.name, "valid": True}
    if not quick:
        check_has_rounds(run_file.method)
        from node.survey import UPLINKS, Swarm, survey

        settings = node_config(
            run_file.node,
            listen=None,
            advertise=None,
            device=device,
            threads=None,
            model=model,
            data=data,
            processes=processes,
        )
        Teller()("loading model and data, and timing one round of work")
        swarm = Swarm(peers, uplink or UPLINKS)
        facts |= survey(run_file, settings, config.resolve().parent, swarm)
    if as_json:
        print_json(facts)
        return
    print(f"{config}: a valid run file, {run_file.name!r}")
    if quick:
        return
    for name, value in _rows(facts):
        print(f"{name:<14}{value}")
    for caution in facts["cautions"]:
        print(f"{'caution':<14}{caution}")


def _rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    return [
        ("parameters", f"{facts['parameters']:,}, {facts['trainable']:,} of them trained"),
        ("weights", size(facts["weights_bytes"])),
        ("peak memory", f"{size(facts['peak_bytes'])} while working, this process in all"),
        ("memory", ", ".join(f"{part} {size(count)}" for part, count in facts["memory"].items())),
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
            + (", summed part by part" * bool(facts["summed_parts"]))
            + " a round and peer",
        ),
        ("device", drives(facts)),
        *(_outlook(facts["peers"], line) for line in facts["outlooks"]),
        ("model digest", facts["model_digest"][:16]),
        ("data digest", (facts["data_digest"] or "none: private")[:16]),
    ]


def _outlook(peers: int, line: dict[str, float]) -> tuple[str, str]:
    """Calculated from what was measured, for machines like this one."""
    return (
        f"{line['uplink_mbit']:g} Mbit/s",
        f"{peers} such peers: {line['round_s']:.3g} s a round, {line['exchange_s']:.2g} s of it"
        f" exchange; an epoch in {line['epoch_h']:.3g} h",
    )
