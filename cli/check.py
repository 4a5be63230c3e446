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

    from cli.options import node_config

    run_file = load_run_file(config)
    facts: dict[str, Any] = {"file": str(config), "name": run_file.name, "valid": True}
    if not quick:
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
        *(_gossip_rows(facts) if facts["gossips"] else _round_rows(facts)),
        ("device", drives(facts)),
        *(_outlook(facts, line) for line in facts["outlooks"]),
        ("model digest", facts["model_digest"][:16]),
        ("data digest", (facts["data_digest"] or "none: private")[:16]),
    ]


def _round_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Of a run whose peers hold one model in common."""
    return [
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
            "sent",
            f"{facts['payload_bytes']} bytes of payload"
            + (f" and {size(facts['attachment_bytes'])} attached" * bool(facts["attachment_bytes"]))
            + (", summed part by part" * bool(facts["summed_parts"]))
            + " a round and peer",
        ),
    ]


def _gossip_rows(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """Of one in which each has a model of its own."""
    times, others = facts["exchanges_a_round"], facts["meeting_size"] - 1
    return [
        ("model", "one for each peer, that averages with whom it meets; one mean is the end"),
        (
            "exchange",
            f"{size(facts['exchange_bytes'])} to each of {others} other{'s' * (others > 1)},"
            f" {times} a round; {facts['exchange_cpu_s']:.2g} s to code and to add",
        ),
        ("pairing", f"{facts['kind']}; {_mixing(facts)}"),
        (
            "disk",
            f"{size(facts['exchange_disk_bytes'])} written in an exchange;"
            f" {size(2 * facts['state_bytes'] + facts['journal_bytes_max'])} at most for the model"
            " and what exchanges did to it",
        ),
    ]


def _mixing(facts: dict[str, Any]) -> str:
    if facts["mixing_rounds"] is None:
        return "theory has no number for how fast it mixes: `peer simulate RUN` measures it"
    return (
        f"a round leaves {facts['mixing']:.3f} of how far {facts['peers']} peers are apart,"
        f" {facts['mixing_rounds']:.0f} rounds a thousandth, but for what steps add"
    )


def _outlook(facts: dict[str, Any], line: dict[str, float]) -> tuple[str, str]:
    """Calculated from what was measured, for machines like this one."""
    merge = f"; {line['merge_s']:.2g} s to merge all models" if facts["gossips"] else ""
    return (
        f"{line['uplink_mbit']:g} Mbit/s",
        f"{facts['peers']} such peers: {line['round_s']:.3g} s a round, {line['exchange_s']:.2g} s"
        f" of it exchange; an epoch in {line['epoch_h']:.3g} h{merge}",
    )
