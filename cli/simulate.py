"""`peer simulate`: what a swarm would do, before anyone joins."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import JsonOption, Teller, known, print_json, size

if TYPE_CHECKING:
    from node.sim.report import Progress, Report


def simulate(
    config: Annotated[
        Path | None,
        typer.Argument(
            help="A run file: its [rules] hold, its payload is guessed. One whose peers gossip is"
            " trained, with real models."
        ),
    ] = None,
    peers: Annotated[int, typer.Option(min=1, max=4096, help="How many peers.")] = 16,
    rounds: Annotated[int, typer.Option(min=1, help="How many rounds.")] = 50,
    links: Annotated[
        str,
        typer.Option(help="lan, home, wan, or a TOML file with a mix (configs/links-home.toml)."),
    ] = "home",
    payload: Annotated[
        int | None, typer.Option(min=8, help="Bytes of work that a peer sends a round.")
    ] = None,
    faults: Annotated[
        bool, typer.Option("--faults", help="Peers crash, pause and are cut off.")
    ] = False,
    seed: Annotated[int, typer.Option(help="The same world every time.")] = 0,
    split: Annotated[
        bool,
        typer.Option(
            "--split", help="Gossip: each peer trains on a stretch of the data of its own."
        ),
    ] = False,
    partition: Annotated[
        str | None,
        typer.Option(
            metavar="FROM:TO",
            help="Gossip: the halves of the swarm cannot reach each other between these exchanges.",
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Gossip: a PNG to write, how far models are apart after each exchange."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Run the real protocol under virtual time; say seconds per round, bytes, and who is slow.

    Peers that gossip train small models for real: --rounds is then how many exchanges each has, and
    what is said is how fast they come together, losses, and bytes. --faults: in one exchange of a
    hundred a peer dies half-way, and a new one comes for it later.
    """
    from node.errors import ConfigError
    from node.sim.links import links_named
    from node.sim.report import simulate as run
    from protocol.rules import Rules

    rules, work_bytes = Rules(), 67
    if config is not None:
        from node.config import load_run_file

        run_file = load_run_file(config)
        if run_file.method.gossips:
            if payload is not None:
                raise ConfigError("--payload is given, but gossip has real ones", "leave it out")
            from cli.simulate_gossip import simulate_gossip

            simulate_gossip(
                run_file, config, peers, rounds, links, seed, faults=faults, split=split,
                partition=_span(partition), plot=plot, as_json=as_json,
            )  # fmt: skip
            return
        rules = run_file.rules.rules()
        usual = run_file.method.ledger_bytes
        if usual is None and payload is None:
            raise ConfigError(
                f"contributions of {run_file.method.name} are attached to the ledger, and those"
                " are not simulated yet",
                "pass --payload with a few bytes to see what the rest of a round takes",
            )
        work_bytes = usual or work_bytes
    for name, asked in (("--split", split), ("--partition", partition), ("--plot", plot)):
        if asked:
            raise ConfigError(
                f"{name} is for peers that gossip", "name a run file of a method that gossips"
            )
    teller = Teller(0.5)

    def tell(progress: "Progress") -> None:
        left = known(progress.left_s, "{:.0f} s left")
        teller(f"round {progress.rounds}/{rounds}, {progress.events_per_s:.0f} events/s, {left}")

    report = run(
        peers=peers,
        rounds=rounds,
        rules=rules,
        links=links_named(links),
        seed=seed,
        payload_bytes=payload or work_bytes,
        faults=faults,
        tell=tell,
    )
    print_json(report.model_dump(mode="json")) if as_json else _tell(report)


def _span(text: str | None) -> tuple[int, int] | None:
    """FROM:TO. Raises ConfigError."""
    from node.errors import ConfigError

    if text is None:
        return None
    first, _, last = text.partition(":")
    if not (first.isdecimal() and last.isdecimal()):
        raise ConfigError(f"--partition {text!r} is no span of exchanges", "write it as 20:40")
    return int(first), int(last)


def _tell(report: "Report") -> None:
    sent, received, work = report.sent_per_round, report.received_per_round, report.work
    mix = ", ".join(f"{count} {kind}" for kind, count in report.links.items())
    rows = [
        ("swarm", f"{report.peers} peers ({mix}), quorum {report.quorum}, seed {report.seed}"),
        ("rounds", f"{report.rounds} closed in {report.virtual_s:.0f} simulated seconds"),
        (
            "a round",
            f"{known(report.round_s_median, '{:.2f}')} s median,"
            f" {known(report.round_s_p90, '{:.2f}')} s for the slowest tenth",
        ),
        ("sent", f"{size(sent.mean)} a round and peer; most: {sent.max_peer} {size(sent.max)}"),
        (
            "received",
            f"{size(received.mean)} a round and peer;"
            f" most: {received.max_peer} {size(received.max)}",
        ),
        (
            "control",
            f"{size(report.control_bytes_per_s)}/s a peer, besides contributions and each round's"
            " entry once",
        ),
        (
            "work",
            f"{work.committed} of {work.made} units committed, {work.lost} lost with their"
            " processes",
        ),
        ("rounds lost", _lost(report)),
        ("at the end", f"{report.up} up, {report.members} members"),
        ("digests", "equal" if report.digests_equal else "DIFFERENT"),
        ("bottleneck", report.bottleneck),
    ]
    for name, value in rows:
        print(f"{name:<12}{value}")


def _lost(report: "Report") -> str:
    """Rounds whose entry came without a peer's work, and rounds that were taken back."""
    late = ", ".join(f"{share:.1%} {kind}" for kind, share in report.late_share_by_link.items())
    missed = f"work came too late for its round (and counted in a later one): {late}"
    undone = f"{report.rounds_undone:.1f} a peer taken back after splits"
    return f"{missed}; {undone}" if report.rounds_undone else missed
