"""`peer doctor`: is this machine fit to be a peer, and what would make it fitter?"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cli.console import (
    DeviceOption,
    ExitCode,
    HomeOption,
    JsonOption,
    ListenOption,
    Teller,
    print_json,
)

if TYPE_CHECKING:
    from node.config import NodeConfig
    from node.doctor import Finding

_EXAMINE_S = 90.0


def doctor(
    place: Annotated[
        Path | None, typer.Argument(metavar="[HOME]", help="The peer's folder.")
    ] = None,
    invite: Annotated[
        str | None, typer.Option("--invite", help="Before joining: can its contacts be dialled?")
    ] = None,
    home: HomeOption = None,
    listen: ListenOption = None,
    device: DeviceOption = None,
    as_json: JsonOption = False,
) -> None:
    """Check ports, reachability, bandwidth, clock, disk, device and versions; say what to do.

    A running peer has other members dial it and measures with them (at most 4 MiB or 2 s each way);
    without one, what this machine can say alone is said. Ends with 6 if there is a problem.
    """
    from node import doctor as checks

    from cli.console import say

    folder = place or home or _only_home(invite)
    findings = _findings(folder, invite, listen, device)
    if as_json:
        facts = {
            "home": None if folder is None else str(folder),
            "verdict": checks.worst(findings).value,
            "findings": [finding.as_json() for finding in findings],
        }
        print_json(facts)
    else:
        for finding in findings:
            print(f"{finding.verdict.value:<9}{finding.check:<14}{finding.figure}")
            if finding.advice:
                print(f"{'':<23}-> {finding.advice}")
    if checks.worst(findings) is checks.Verdict.PROBLEM:
        if not as_json:
            say("there is a problem: see above")
        raise typer.Exit(ExitCode.UNHEALTHY.value)


def _only_home(invite: str | None) -> Path | None:
    """The peer on this machine, if there is just one."""
    from node.homes import default_home

    if invite is not None:
        return None
    base = default_home("x").parent
    homes = sorted(path for path in base.glob("*") if (path / "identity").exists())
    return homes[0] if len(homes) == 1 else None


def _findings(
    folder: Path | None, invite: str | None, listen: list[str] | None, device: str | None
) -> "list[Finding]":
    """Raises ConfigError for an invite that is none, or a folder without a peer."""
    from node import doctor as checks
    from node.control import NotRunning, ask
    from node.errors import UserError

    from cli.options import node_config

    tell = Teller()
    base = _settings(folder)
    node = node_config(
        base,
        listen=listen,
        advertise=None,
        device=device,
        threads=None,
        model=None,
        data=None,
    )
    findings = [checks.versions()]
    try:
        if folder is None:
            raise NotRunning("no peer was named")
        tell("asking other members (at most a minute)")
        examined = ask(folder, {"do": "doctor"}, _EXAMINE_S)
        if "error" in examined:
            raise UserError(examined["error"], examined.get("hint", ""))
        findings += checks.network(examined)
    except NotRunning:
        findings.append(checks.ports(node.listen))
        tell("dialling contacts")
        findings.append(_contacts(folder, invite))
        findings += checks.not_running()
    tell("measuring disk and device")
    return [*findings, checks.disk(folder or Path.cwd()), checks.device(node.device)]


def _settings(folder: Path | None) -> "NodeConfig":
    """What the peer last ran with."""
    from node.bootstrap import recall_settings
    from node.config import NodeConfig
    from node.offline import ReadOnlyStore

    if folder is None:
        return NodeConfig()
    disk = ReadOnlyStore(folder)
    try:
        return recall_settings(disk.get("meta", b"settings"))[0]
    finally:
        disk.close()


def _contacts(folder: Path | None, invite: str | None) -> "Finding":
    from node.curve import door_keys, identity_keys
    from node.doctor import contacts
    from node.errors import ConfigError
    from node.offline import ReadOnlyStore
    from node.store import load_identity
    from protocol.errors import RemoteError
    from protocol.identity import Identity
    from protocol.invites import decode_invite
    from protocol.restore import saved_cards

    if invite is not None:
        try:
            parsed = decode_invite(invite)
        except RemoteError as error:
            raise ConfigError(str(error), "paste the whole invite, or ask for a new one") from error
        named = [(contact.peer, contact.addresses) for contact in parsed.contacts]
        return contacts(named, door_keys(parsed.door), needed=True)
    if folder is None:
        from node.doctor import Finding, Verdict

        return Finding("contacts", Verdict.UNKNOWN, "unknown", "pass --invite, or a peer's home")
    seed = load_identity(folder)
    disk = ReadOnlyStore(folder)
    try:
        me = Identity(seed).peer
        cards = [card for card in saved_cards(disk) if card.peer != me and card.addresses]
    finally:
        disk.close()
    known = [(card.peer, card.addresses) for card in cards[:4]]
    return contacts(known, identity_keys(seed), needed=False)
