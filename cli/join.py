"""`peer join`: become a member with an invite, or go on as one."""

import time
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


def join(
    invite: Annotated[str | None, typer.Argument(help="What `peer invite` printed.")] = None,
    invite_file: Annotated[
        Path | None, typer.Option(help="Read the invite from this file; waits until it is there.")
    ] = None,
    wait: Annotated[
        float, typer.Option(help="Seconds to wait for the file and for an answer.")
    ] = 60.0,
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with a [node] table: this machine's settings.")
    ] = None,
    home: HomeOption = None,
    listen: ListenOption = None,
    advertise: AdvertiseOption = None,
    map_port: MapPortOption = False,
    device: DeviceOption = None,
    threads: ThreadsOption = None,
    processes: ProcessesOption = None,
    model: ModelOption = None,
    data: DataOption = None,
) -> None:
    """Join a run and train. Started again, it goes on; then the invite may be left out."""
    from node.compose import Node, Plan
    from node.config import NodeConfig, load_node_config
    from node.errors import ConfigError
    from node.homes import default_home
    from protocol.errors import RemoteError
    from protocol.ids import short
    from protocol.invites import decode_invite

    from cli.options import node_config

    text = invite or (_read_when_there(invite_file, wait) if invite_file is not None else None)
    try:
        parsed = decode_invite(text) if text else None
    except RemoteError as error:
        raise ConfigError(str(error), "paste the whole invite, or ask for a new one") from error
    if parsed is None and home is None:
        raise ConfigError("an invite is needed", "peer join INVITE, or --home of an earlier one")
    base = (
        load_node_config(config) if config is not None else NodeConfig(listen=("tcp://0.0.0.0:0",))
    )
    settings = node_config(
        base,
        listen=listen,
        advertise=advertise,
        device=device,
        threads=threads,
        processes=processes,
        model=model,
        data=data,
        map_port=map_port,
    )
    if home is None:
        assert parsed is not None
        home = default_home(short(parsed.run))
    Node(Plan(home=home, node=settings, invite=parsed, wait_s=wait, tell=Teller())).run()


def _read_when_there(path: Path, wait_s: float) -> str:
    from node.errors import UserError

    from cli.console import say

    end, told = time.monotonic() + wait_s, 0.0
    while True:
        try:
            text = path.read_text().strip()
            if text:
                return text
        except FileNotFoundError:
            pass
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(
                f"cannot read the invite in {path}: {error}", "check the file"
            ) from error
        now = time.monotonic()
        if now > end:
            raise UserError(f"no invite came to {path} within {wait_s:.0f} s", "is the founder up?")
        if now - told > 2:
            told = now
            say(f"waiting for an invite in {path} ({end - now:.0f} s left)")
        time.sleep(0.2)
