"""`peer bench`: comparisons that run on this machine. `methods` is the one a user wants first."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    DataOption,
    DeviceOption,
    ExitCode,
    JsonOption,
    ModelOption,
    Teller,
    print_json,
    say,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    from node.compare.report import Report, Row, Spread
    from node.compare.run import Progress
    from rich.table import Table

bench = typer.Typer(
    help="Comparisons that run on this machine alone.", no_args_is_help=True, rich_markup_mode=None
)


@bench.callback()
def _bench() -> None:
    """With a callback, `methods` stays a command's name when it is the only one."""


@bench.command("methods")
def methods(
    config: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="A run file: its model, its data, the inner steps of its method, and its method's"
            " own settings.",
        ),
    ],
    peers: Annotated[int, typer.Option(min=1, max=256, help="How many train together.")] = 4,
    steps: Annotated[
        str, typer.Option(help="H, the inner steps between two exchanges: one or several.")
    ] = "1,5,15,50",
    total_steps: Annotated[
        int | None,
        typer.Option(min=1, help="Inner steps of each peer in all, for every method [300]."),
    ] = None,
    tokens: Annotated[
        int | None, typer.Option(min=1, help="Instead: tokens of all peers, rounded up.")
    ] = None,
    seeds: Annotated[
        str, typer.Option(help="How many seeds, or which: `0,7`. Of weights and data order.")
    ] = "2",
    methods: Annotated[
        str | None,
        typer.Option(
            help="Names of methods, or run files whose [method] is meant; left out, all that train"
            " from scratch: of those with rounds, or of those that gossip, as the run file's does."
        ),
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(
            help="Rates of everyone's update to try: `0.5,1` for all methods, `NAME=0.5,1` for one,"
            " `NAME@15=1` for it at H = 15, `own` for what its settings say; left out, a small grid"
            " of each method's own."
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Where it all goes [runs/NAME-methods]. What is there is not redone."),
    ] = None,
    plot: Annotated[bool, typer.Option(help="Draw methods.png, too.")] = True,
    split: Annotated[
        bool,
        typer.Option("--split", help="Each peer trains on a stretch of the data of its own."),
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, max=256, help="Processes that train at the same time.")
    ] = 2,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each process.")] = 1,
    device: DeviceOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Train one model on the same tokens by every method, and synchronously by AdamW; say how the
    held-out losses, the bytes and the hours on real links differ.

    The peers of a training run share one process, each has a replica of its own, and they exchange
    real payloads. Each method is shown at the best outer rate of its grid: the one with the lowest
    mean of final held-out losses over the seeds. `synchronous` is data-parallel training with the
    run's inner optimizer, by the mean gradient of all peers in each step.

    Peers that gossip have each a model of their own: `loss` is that of the mean of all, by work,
    and `own` the mean of what each has by itself.

    Hours are simulated, for links of 10, 100 and 1,000 Mbit/s up and down, from what was measured:
    rounds * (seconds of one peer's work and merge + 8 * bytes that it receives / rate). Members
    pass on what they hold, so on average a peer sends as much as it receives. Nothing overlaps;
    --json has the hours with perfect overlap, too.

    Ctrl-C keeps what is finished; the same command goes on from there.
    """
    from node.compare.run import Comparison, Wishes
    from node.config import load_run_file
    from node.errors import ConfigError

    from cli.options import node_config

    run_file = load_run_file(config)
    if total_steps and tokens:
        raise ConfigError("--total-steps and --tokens are both given", "give one of them")
    if plot:
        from node.picture import check_plot

        check_plot()
    wishes = Wishes(
        run_file=run_file,
        node=node_config(
            run_file.node,
            listen=None,
            advertise=None,
            device=device,
            threads=threads,
            model=model,
            data=data,
        ),
        root=config.resolve().parent,
        out=out or Path("runs") / f"{run_file.name}-methods",
        peers=peers,
        steps=_numbers(steps, "--steps", least=1),
        seeds=_seeds(seeds),
        methods=None if methods is None else _listed(methods, "--methods"),
        rates=dict(_rates(text) for text in rates or ()),
        total_steps=total_steps,
        tokens=tokens,
        jobs=jobs,
        split=split,
    )
    say(f"loading model and data of {config}")
    comparison = Comparison(wishes)
    with _showing(live=not as_json) as tell:
        is_whole = comparison.run(tell)
    path = comparison.write()
    report = comparison.report()
    written = [str(path)]
    if plot and report.is_drawable:
        from node.compare.plot import PICTURE, draw

        draw(report, path.with_name(PICTURE))
        written.append(str(path.with_name(PICTURE)))
    print_json(report.model_dump(mode="json")) if as_json else _tell(report)
    say(f"written: {', '.join(written)}")
    _end(report, is_whole=is_whole)


def _end(report: "Report", *, is_whole: bool) -> None:
    from node.errors import IdentityError

    if not report.digests_equal:
        raise IdentityError("replicas differ (P1)", "please report this, with methods.json")
    if not is_whole:
        say("stopped: the same command with the same --out goes on from here")
        raise typer.Exit(ExitCode.INTERRUPTED.value)


# What the options say


def _listed(text: str, option: str) -> tuple[str, ...]:
    from node.errors import ConfigError

    items = tuple(item for part in text.split(",") if (item := part.strip()))
    if not items or len(set(items)) < len(items):
        raise ConfigError(f"{option} {text!r} names nothing, or one thing twice", "write a,b,c")
    return items


def _numbers(text: str, option: str, *, least: int) -> tuple[int, ...]:
    from node.errors import ConfigError

    items = _listed(text, option)
    if not all(item.isascii() and item.isdigit() and int(item) >= least for item in items):
        raise ConfigError(
            f"{option} {text!r} is no list of whole numbers from {least} on", "write 1,5,15"
        )
    return tuple(int(item) for item in items)


def _seeds(text: str) -> tuple[int, ...]:
    """`3` is how many; `3,` and `0,3` say which."""
    numbers = _numbers(text, "--seeds", least=0)
    if "," in text:
        return numbers
    from node.errors import ConfigError

    if not 1 <= numbers[0] <= 1_000:
        raise ConfigError(f"--seeds {text} is no number of seeds", "one seed is the least")
    return tuple(range(numbers[0]))


def _rates(text: str) -> tuple[str, tuple[str, ...]]:
    label, _, listed = text.rpartition("=")
    return label, _listed(listed, "--rates")


# Progress


@contextmanager
def _showing(*, live: bool) -> "Iterator[Callable[[Progress], None]]":
    """A bar on a terminal, a line now and then elsewhere; both with a rate and an estimate."""
    from rich.console import Console

    console = Console(stderr=True)
    started = time.monotonic()
    if not (live and console.is_terminal):
        teller = Teller(10.0)
        yield lambda progress: teller(_line(progress, started))
        return
    from rich import progress as rich_progress

    columns = (rich_progress.TextColumn("{task.description}"), rich_progress.BarColumn(30))
    with rich_progress.Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)

        def tell(progress: "Progress") -> None:
            bar.update(
                task,
                total=progress.batches_asked,
                completed=progress.batches,
                description=_line(progress, started),
            )

        yield tell


def _line(progress: "Progress", started: float) -> str:
    rate = progress.batches / max(1e-9, time.monotonic() - started)
    left = (progress.batches_asked - progress.batches) / rate if rate else None
    return (
        f"trained {progress.cells}/{progress.cells_asked} runs ({progress.cell}),"
        f" {rate:.0f} batches/s, {_duration(left)} left"
    )


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return "unknown time"
    if seconds < 100:
        return f"{_short(seconds)} s"
    return f"{_short(seconds / 60)} min" if seconds < 6_000 else f"{_short(seconds / 3600)} h"


def _short(value: float) -> str:
    """Three digits that count."""
    return f"{float(f'{value:.3g}'):,g}"


# The table


def _tell(report: "Report") -> None:
    if not report.rows:
        print("no setting has been trained to its end with all seeds")
        for setting in report.diverged:
            print(f"diverged at every rate: {setting}")
        return
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    console.print(_table(report))
    for line in _notes(report):
        print(line)


def _table(report: "Report") -> "Table":
    from rich import box
    from rich.table import Table

    links = tuple(report.rows[0].hours)
    gossips = any(row.own_loss is not None for row in report.rows)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", no_wrap=True)
    for name in (
        "H", "rate", "loss", *(["own"] if gossips else []), "above sync.", "sent B/token",
        "received", *(f"{mbit:,} Mbit/s" for mbit in links), "digests",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in report.rows:
        table.add_row(*_cells(row, gossips))
    return table


def _cells(row: "Row", gossips: bool) -> list[str]:
    from node.compare.records import BASELINE

    equal = {True: "equal", False: "DIFFERENT", None: "-"}[row.digests_equal]
    is_baseline = row.label == BASELINE
    own = "-" if row.own_loss is None else _spread(row.own_loss)
    return [
        row.label,
        f"{row.steps:g}",
        row.rate or ("-" if is_baseline else "own"),
        _spread(row.loss),
        *([own] if gossips else []),
        "-" if row.gap is None or is_baseline else _spread(row.gap, sign="+"),
        _short(row.sent_bytes_a_token),
        _short(row.received_bytes_a_token),
        *(_duration(hours * 3600) for hours in row.hours.values()),
        equal,
    ]


def _spread(value: "Spread", sign: str = "") -> str:
    mean = f"{value.mean:{sign}.3f}"
    return mean if value.deviation is None else f"{mean} ± {value.deviation:.3f}"


def _grids(grids: dict[float, list[str]]) -> str:
    """Rates by H; said once where they are the same at each."""
    first, *others = grids.values()
    if all(rates == first for rates in others):
        return ", ".join(first)
    return "; ".join(f"at H = {steps:g}: {', '.join(rates)}" for steps, rates in grids.items())


def _notes(report: "Report") -> Iterator[str]:
    from node.compare.records import BASELINE

    task = report.task
    seeds = ", ".join(str(seed) for seed in report.seeds)
    yield (
        f"{report.name}: {task.peers} peers, {report.steps:g} inner steps of"
        f" {task.inner.optimizer.name} each, {report.rows[0].tokens:,} tokens in all; seeds {seeds}"
    )
    yield "loss: held out, nats a token, mean and deviation over seeds; at the best rate of:"
    tried: dict[str, dict[float, list[str]]] = {}
    for trial in report.grid:
        if trial.label != BASELINE:
            grids = tried.setdefault(trial.label, {})
            grids.setdefault(trial.steps, []).append(trial.rate or "own")
    for label, grids in tried.items():
        yield f"  {label} {_grids(grids)}"
    if task.split:
        yield "each peer trains on a stretch of the data of its own"
    if any(row.own_loss is not None for row in report.rows):
        yield "own: of each peer's own model where peers gossip; `loss` is that of the mean of all"
    yield "sent: a peer's contributions; received: all others'; both for each token it trains on"
    yield "synchronous: a ring all-reduce of float32 gradients, 2 (R - 1) / R * 4 P bytes a step"
    yield "Mbit/s: simulated time on links of so much up and down, work and exchange in turns"
    for setting in report.diverged:
        yield f"diverged at every rate: {setting}"
    if not report.is_whole:
        yield "not finished: rates and settings that are still missing are left out"
