"""`peer simulate` of a run whose peers gossip."""

from pathlib import Path
from typing import TYPE_CHECKING, Final

from cli.console import Teller, known, print_json, say, size

if TYPE_CHECKING:
    from node.config import RunFile
    from node.sim.gossip.report import GossipReport

_DEATH: Final = 0.01  # of meetings, with --faults


def simulate_gossip(
    run_file: "RunFile",
    config: Path,
    peers: int,
    exchanges: int,
    links: str,
    seed: int,
    *,
    faults: bool,
    split: bool,
    partition: tuple[int, int] | None,
    plot: Path | None,
    as_json: bool,
) -> None:
    """Raises UserError."""
    from node.sim.gossip.report import simulate_gossip as run
    from node.sim.links import links_named

    if plot is not None:
        _check_picture(plot)
    teller = Teller(0.5)

    def tell(done: float, left_s: float | None) -> None:
        teller(f"exchange {done:.0f}/{exchanges} of each peer, {known(left_s, '{:.0f} s left')}")

    report = run(
        run_file,
        config.resolve().parent,
        peers=peers,
        exchanges=exchanges,
        links=links_named(links),
        seed=seed,
        death=_DEATH if faults else 0.0,
        joins=faults,
        split=split,
        partition=partition,
        follow=partition is not None or plot is not None,
        tell=tell,
    )
    print_json(report.model_dump(mode="json")) if as_json else _tell(report)
    if plot is not None:
        from node.sim.gossip.plot import draw

        draw(report, plot)
        say(f"{plot}: how far models are apart")


def _check_picture(path: Path) -> None:
    """Before minutes of simulation. Raises UserError."""
    from node.errors import ConfigError
    from node.picture import check_plot

    check_plot()
    if path.is_dir() or not path.resolve().parent.is_dir():
        raise ConfigError(f"{path} cannot be written", "name a file in a folder that is there")


def _tell(report: "GossipReport") -> None:
    mix = ", ".join(f"{count} {kind}" for kind, count in sorted(report.links.items()))
    theory = known(report.expected_mixing, "; {:.3f} if all met in each round")
    last = report.looks[-1]
    rows = [
        ("swarm", f"{report.peers} peers ({mix}), {report.method}, seed {report.seed}"),
        ("model", f"{report.parameters:,} weights, {size(report.coded_bytes)} as they are coded"),
        (
            "exchanges",
            f"{report.exchanges_a_peer:.1f} of each peer in {report.virtual_s:.0f} simulated"
            f" seconds; {report.waited_share:.0%} of the time spent waiting",
        ),
        ("sent", f"{size(report.bytes_an_exchange)} an exchange, to each other peer in it"),
        (
            "came and went",
            f"{report.deaths} died in the middle of an exchange, {report.joins} joined;"
            f" {report.alive} at the end",
        ),
        ("met nobody", f"{report.alone} times; {report.sent_again} stretches sent again"),
        ("mixing", f"{known(last.mixing, '{:.3f}')} of the distance left by a round{theory}"),
        ("sum kept", _kept(report)),
    ]
    for name, value in rows:
        print(f"{name:<15}{value}")
    print(f"{'exchanges':>10}{'seconds':>9}{'merged':>9}{'own':>9}{'distance':>11}{'estimate':>11}")
    for look in report.looks:
        print(
            f"{look.exchanges:>10.1f}{look.virtual_s:>9.0f}{known(look.merged_loss, '{:.3f}'):>9}"
            f"{known(look.own_loss, '{:.3f}'):>9}{look.distance:>11.4g}{look.estimated:>11.4g}"
        )
    print("merged, own: held-out loss of the mean of all models, and of a few peers' own")
    if report.partition is not None:
        print(_halves(report))


def _halves(report: "GossipReport") -> str:
    """What a partition did."""
    assert report.partition is not None
    first, last = report.partition
    measured = [(one.exchanges, one.all) for one in report.distances]
    before = max((d for at, d in measured if at <= first), default=0.0)
    apart = max((d for at, d in measured if first < at <= last), default=0.0)
    return (
        f"halves apart from exchange {first} to {last}: the distance was at most {before:.4g}"
        f" before, {apart:.4g} then, and is {measured[-1][1]:.4g} at the end"
    )


def _kept(report: "GossipReport") -> str:
    if report.kept_worst is None:
        return "this method keeps none"
    return (
        f"to {report.kept_worst:.1f} roundings in every exchange; the mean of all is"
        f" {known(report.kept_drift, '{:.1g}')} from what steps made of it"
    )
