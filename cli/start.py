"""`peer start`: found a run, or go on with it."""

from pathlib import Path
from typing import Annotated

import typer

from cli.console import (
    AdvertiseOption,
    DataOption,
    DeviceOption,
    HomeOption,
    ListenOption,
    MapPortOption,
    ModelOption,
    ProcessesOption,
    Teller,
    ThreadsOption,
)


def start(
    config: Annotated[Path, typer.Argument(help="A run file (see configs/).")],
    home: HomeOption = None,
    listen: ListenOption = None,
    advertise: AdvertiseOption = None,
    map_port: MapPortOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    processes: ProcessesOption = None,
    model: ModelOption = None,
    data: DataOption = None,
    invite_file: Annotated[
        Path | None, typer.Option(help="Write an invite to this file, for `peer join`.")
    ] = None,
) -> None:
    """Found a run and train; others join with the invite it prints. Started again, it goes on."""
    from node.compose import Node, Plan
    from node.config import load_run_file
    from node.homes import default_home
    from node.methods.registry import check_has_rounds

    from cli.options import node_config

    run_file = load_run_file(config)
    check_has_rounds(run_file.method)
    settings = node_config(
        run_file.node,
        listen=listen,
        advertise=advertise,
        device=device,
        threads=threads,
        processes=processes,
        model=model,
        data=data,
        map_port=map_port,
    )
    place = home or default_home(run_file.name)
    plan = Plan(
        home=place,
        node=settings,
        root=config.resolve().parent,
        run_file=run_file,
        invite_file=invite_file or place / "invite",
        tell=Teller(),
    )
    Node(plan).run()
