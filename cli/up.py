"""`peer up`: a whole swarm on this machine, with a live table."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from cli.console import DataOption, JsonOption, ModelOption, known, print_json, say, size

if TYPE_CHECKING:
    from node.swarm import PeerProcess, Swarm
    from rich.table import Table

_SAMPLE_TOKENS: Final = 240


def up(
    config: Annotated[Path, typer.Argument(help="A run file (see configs/).")],
    peers: Annotated[int, typer.Option(min=1, max=64, help="How many processes.")] = 4,
    rounds: Annotated[
        int | None, typer.Option(min=1, help="Stop once all have come so far; else at Ctrl-C.")
    ] = None,
    churn: Annotated[
        bool, typer.Option("--churn", help="On the way, kill one peer (-9) and admit a new one.")
    ] = False,
    folder: Annotated[
        Path | None, typer.Option("--folder", help="Where it all goes; else a new one in runs/.")
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="CPU threads of each peer.")] = 1,
    sample: Annotated[
        str | None, typer.Option(help="At the end, let the model write on from this.")
    ] = None,
    model: ModelOption = None,
    data: DataOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a local swarm, show it at work, and say where the model is."""
    from node.config import load_run_file
    from node.methods.registry import check_has_rounds
    from node.swarm import Swarm

    run_file = load_run_file(config)
    check_has_rounds(run_file.method)
    place = folder or _free_folder(run_file.name)
    options = ["--threads", str(threads), *(["--model", model] if model else [])]
    options += [part for path in data or () for part in ("--data", str(Path(path).resolve()))]
    swarm = Swarm(place, config, options)
    show = _Show(swarm, rounds, live=not as_json)
    say(f"starting {peers} peers in {place} (their output: {place}/p1.log, ...)")
    try:
        with show:
            script = _script(swarm, peers, rounds if churn else None, show)
            _run(swarm, rounds, script, show)
    except KeyboardInterrupt:
        say("stopping the swarm (again to leave at once)")
    finally:
        _stop(swarm)
    _conclude(swarm, show, sample, as_json=as_json)


def _free_folder(name: str) -> Path:
    number = 1
    while (place := Path("runs") / f"{name}-{number}").exists():
        number += 1
    return place


def _script(swarm: "Swarm", peers: int, churn: int | None, show: "_Show") -> Iterator[None]:
    """What happens on the way; resumed at every look."""
    swarm.found()
    for _ in range(peers - 1):
        swarm.join()  # they wait for the founder's invite
    while any(peer.seen is None or not peer.seen["member"] for peer in swarm.peers):
        yield
    if churn is None:
        return
    while show.round < churn // 3:
        yield
    victim = swarm.peers[1 % len(swarm.peers)]
    show.event(f"round {show.round}: {victim.name} is killed (kill -9)")
    swarm.kill(victim)
    while show.round < churn // 2:
        yield
    newcomer = swarm.join()
    show.event(f"round {show.round}: {newcomer.name} is let in")
    while newcomer.seen is None or not newcomer.seen["member"]:
        yield
    show.event(f"round {show.round}: {newcomer.name} is a member and trains")


def _run(swarm: "Swarm", rounds: int | None, script: Iterator[None], show: "_Show") -> None:
    done = False
    while True:
        done = done or next(script, StopIteration) is StopIteration
        swarm.look()
        show.refresh()
        reached = swarm.rounds()
        up = [peer for peer in swarm.peers if not peer.gone]
        everyone = len(reached) == len(up) and min(reached.values(), default=0)
        if done and rounds is not None and everyone >= rounds:
            return
        time.sleep(0.5)


def _stop(swarm: "Swarm") -> None:
    try:
        swarm.stop()
    except KeyboardInterrupt:
        for peer in swarm.peers:
            peer.process.kill()
            peer.process.wait()


class _Show:
    """A live table on a terminal, a line now and then elsewhere."""

    def __init__(self, swarm: "Swarm", rounds: int | None, *, live: bool) -> None:
        from rich.console import Console
        from rich.live import Live

        self._swarm, self._rounds = swarm, rounds
        console = Console(stderr=True)
        self._live = (
            Live(console=console, auto_refresh=False) if live and console.is_terminal else None
        )
        self._events: list[str] = []
        self._told = 0.0
        self._started = time.monotonic()
        self._first: tuple[float, int] | None = None  # when rounds were first seen
        self.curve: dict[int, float] = {}  # held-out loss by round

    def __enter__(self) -> "_Show":
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    @property
    def round(self) -> int:
        return max(self._swarm.rounds().values(), default=0)

    def event(self, text: str) -> None:
        self._events.append(text)
        if self._live is None:
            say(text)

    def refresh(self) -> None:
        for peer in self._swarm.peers:
            if peer.seen and peer.seen["heldout_round"] is not None:
                self.curve[peer.seen["heldout_round"]] = peer.seen["heldout_loss"]
        if self._live is not None:
            self._live.update(self._table(), refresh=True)
        elif time.monotonic() - self._told >= 2:
            self._told = time.monotonic()
            say(self._line())

    def _left(self) -> str:
        """The time that the remaining rounds take at the rate so far."""
        now, round = time.monotonic(), self.round
        if self._first is None and round:
            self._first = (now, round)
        if self._rounds is None or self._first is None or round <= self._first[1]:
            return "unknown"
        per_round = (now - self._first[0]) / (round - self._first[1])
        return f"{max(0, self._rounds - round) * per_round:.0f} s"

    def _line(self) -> str:
        best = self._ahead() or {}
        members = len(best["members"]) if best else "unknown"
        goal = "" if self._rounds is None else f"/{self._rounds}"
        return (
            f"{time.monotonic() - self._started:5.0f} s  round {self.round}{goal}"
            f"  held-out {known(best.get('heldout_loss'), '{:.3f}')}"
            f"  {known(best.get('work_per_s'), '{:.0f}')} {best.get('unit_of_work', 'units')}/s"
            f"  {size(best.get('bytes_per_s'))}/s a peer  members {members}"
            f"  digest {(best.get('state') or 'unknown')[:8]}  left {self._left()}"
        )

    def _ahead(self) -> dict[str, Any] | None:
        seen = [peer.seen for peer in self._swarm.peers if peer.seen and not peer.gone]
        return max(seen, key=lambda facts: facts["round"], default=None)

    def _table(self) -> "Table":
        from rich.table import Table

        goal = "" if self._rounds is None else f" of {self._rounds}, {self._left()} left"
        title = f"round {self.round}{goal}, {time.monotonic() - self._started:.0f} s"
        table = Table(title=title, caption="\n".join(self._events[-4:]) or None)
        for column in (
            "peer",
            "round",
            "held-out",
            "training",
            "work/s",
            "bytes/s",
            "members",
            "digest",
        ):
            table.add_column(column, justify="left" if column in ("peer", "digest") else "right")
        for peer in self._swarm.peers:
            table.add_row(*_row(peer))
        return table


def _row(peer: "PeerProcess") -> list[str]:
    facts = peer.seen
    if peer.gone or facts is None:
        return [peer.name, peer.gone or "starting", *[""] * 6]
    up = sum(member["health"] == "alive" for member in facts["members"])
    return [
        peer.name,
        str(facts["round"]),
        known(facts["heldout_loss"], "{:.3f}"),
        known(facts["train_loss"], "{:.3f}"),
        known(facts["work_per_s"], "{:.0f}"),
        size(facts["bytes_per_s"]),
        f"{up}/{len(facts['members'])}",
        f"{(facts['state'] or 'unknown')[:8]} @{known(facts['state_round'])}",
    ]


def _conclude(swarm: "Swarm", show: _Show, prompt: str | None, *, as_json: bool) -> None:
    """Digests compared, the model written, and what to do with it."""
    from node.errors import IdentityError
    from node.offline import rebuild
    from node.training import weights
    from node.training.generate import generate

    stopped = [peer.name for peer in swarm.peers if peer.gone == "stopped" and peer.digests]
    common = swarm.common_digests(stopped)
    survivor = next((peer for peer in swarm.peers if peer.name in stopped), None)
    if common is None or survivor is None:
        say("the swarm had not closed a round yet")
        return
    round, digests = common
    rebuilt = rebuild(survivor.home, lambda what, done, total: say(f"{what} {done}/{total}"))
    target = swarm.folder / "model"
    weights.export(rebuilt.workshop.model, target)
    losses = sorted(show.curve.items())
    facts = {
        "folder": str(swarm.folder),
        "model": str(target),
        "round": rebuilt.replica.round,
        "heldout": losses,
        "digest_round": round,
        "digests": digests,
        "equal": len(set(digests.values())) == 1,
        "sample": None,
    }
    if prompt is not None:
        pieces = generate(rebuilt.workshop.model, prompt, tokens=_SAMPLE_TOKENS, seed=0)
        facts["sample"] = prompt + "".join(pieces)
    if as_json:
        print_json(facts)
    else:
        _tell(facts, survivor)
    if not facts["equal"]:
        raise IdentityError("the replicas differ", f"please report this, with {swarm.folder}")


def _tell(facts: dict[str, Any], survivor: "PeerProcess") -> None:
    losses = facts["heldout"]
    if losses:
        (first, start), (last, end) = losses[0], losses[-1]
        print(
            f"held-out loss  {start:.3f} at round {first}, {end:.3f} at round {last} (nats a token)"
        )
    verdict = "equal" if facts["equal"] else "DIFFERENT"
    names = ", ".join(facts["digests"])
    state = next(iter(facts["digests"].values()))
    print(f"digests        {verdict} on {names}: {state} at round {facts['digest_round']}")
    print(f"model          {facts['model']} (a Hugging Face folder)")
    if facts["sample"] is not None:
        lines = facts["sample"].splitlines() or [""]
        print("sample         " + "\n               ".join(lines))
    print(f'write text     peer generate --home {survivor.home} "def "')
