"""`peer status`: what a running peer sees."""

from typing import Any, Final

from cli.console import HomeOption, JsonOption, drives, find_home, known, print_json, size

_PARTNERS_SHOWN: Final = 4


def status(home: HomeOption = None, as_json: JsonOption = False) -> None:
    """Show round, loss, members, traffic and digest of the peer that runs in a home."""
    from node.control import ask

    facts = ask(find_home(home), {"do": "status"})
    if as_json:
        print_json(facts)
        return
    for name, value in lines(facts):
        print(f"{name:<14}{value}")
    for member in facts["members"]:
        print(f"{'  ' + member['peer'][:8]:<14}{member['health']}, {way_to(member)}")


def way_to(member: dict[str, Any]) -> str:
    """How a member is reached."""
    if member["reached"] == "self":
        return "this peer"
    if member["reached"] == "relay":
        return f"reached through {member['through'][:8]}"
    words = {"direct": "reached directly", "inbound": "reached over its own connection"}
    return words.get(member["reached"], "not reached yet")


def lines(facts: dict[str, Any]) -> list[tuple[str, str]]:
    members = facts["members"]
    up = sum(member["health"] == "alive" for member in members)
    round = facts["heldout_round"]
    when = "" if round is None else f" (round {round})"
    return [
        ("run", f"{facts['name']} {facts['run'][:8]}"),
        ("peer", f"{facts['peer'][:8]}, pid {facts['pid']}, {', '.join(facts['addresses'])}"),
        ("device", drives(facts)),
        ("member", "yes" if facts["member"] else "not yet"),
        ("model", model(facts)),
        ("activity", facts["activity"]),
        ("round", f"{facts['round']}, {facts['work']} {facts['unit_of_work']} committed in all"),
        *losses(facts, when),
        ("rate", known(facts["work_per_s"], f"{{:.1f}} {facts['unit_of_work']}/s by all")),
        ("traffic", f"{size(facts['bytes_per_s'])}/s, {size(facts['bytes_out'])} sent in all"),
        ("relayed", f"{facts['relayed']} messages, {size(facts['relayed_bytes'])} for others"),
        ("digest", f"{facts['state'] or 'unknown'} at round {known(facts['state_round'])}"),
        ("snapshots", snapshots(facts)),
        ("newcomers", newcomers(facts)),
        ("damage", damage(facts)),
        ("disk", disk(facts)),
        ("members", f"{up} of {len(members)} up"),
    ]


def model(facts: dict[str, Any]) -> str:
    """Is there one for all?"""
    if not facts["gossips"]:
        return "one, the same on all members, bit for bit"
    return (
        "this member's own: in this run members average two by two, and never share a state;"
        f" {facts['gossip_activity']}"
    )


def losses(facts: dict[str, Any], when: str) -> list[tuple[str, str]]:
    """And of a run that gossips, how far members are apart, and whom this one met."""
    shared = [
        ("held-out loss", known(facts["heldout_loss"], "{:.4f}") + when),
        ("training loss", known(facts["train_loss"], "{:.4f}")),
    ]
    if not facts["gossips"]:
        return shared
    others = [loss for loss in facts.get("others_heldout_loss", {}).values() if loss is not None]
    least = f"; others' {min(others):.4f} to {max(others):.4f}" if others else ""
    distance, round = facts.get("consensus_distance"), facts.get("consensus_round")
    apart = known(distance, "{:.4g}") + ("" if round is None else f" (round {round})")
    return [
        ("held-out loss", f"{known(facts.get('own_heldout_loss'), '{:.4f}')} of its own{least}"),
        ("training loss", known(facts.get("own_train_loss"), "{:.4f}")),
        ("consensus", f"{apart}: mean squared distance of members' models from their mean"),
        ("exchanges", exchanges(facts)),
    ]


def exchanges(facts: dict[str, Any]) -> str:
    if "exchanges_done" not in facts:
        return "none yet"
    whom = list(facts["met"].items())[-_PARTNERS_SHOWN:]
    met = ", ".join(f"{peer[:8]} {_times(count, 'time')}" for peer, count in reversed(whom))
    why = ", ".join(f"{reason} ({count})" for reason, count in facts["given_up_why"].items())
    doubt = facts["exchanges_in_doubt"]
    return (
        f"at number {facts['exchange']}; {facts['exchanges_done']} done"
        + (f", with {met}" if met else "")
        + f"; {facts['exchanges_given_up']} given up"
        + (f": {why}" if why else "")
        + (f"; {doubt} in doubt" if doubt else "")
    )


def snapshots(facts: dict[str, Any]) -> str:
    """What newcomers can start from here."""
    every, rounds = facts["snapshot_every"], facts["snapshots"]
    if not rounds:
        return f"none yet; the state goes to disk every {every} rounds"
    listed = ", ".join(map(str, rounds))
    return f"of {'round' if len(rounds) == 1 else 'rounds'} {listed}; one every {every} rounds"


def newcomers(facts: dict[str, Any]) -> str:
    """Who starts from a snapshot fetches it from members, instead of replaying every round."""
    served, fetched = facts["chunks_served_bytes"], facts["chunks_fetched_bytes"]
    return f"{size(served)} of snapshots sent to them, {size(fetched)} fetched by this peer"


def damage(facts: dict[str, Any]) -> str:
    """What was found since the process started."""
    found = []
    if facts["mismatches"]:
        found.append(
            f"weights differed from the others' in {_times(facts['mismatches'], 'round')},"
            f" repaired {_times(facts['repairs'], 'time')}"
        )
    if facts["damaged_chunks"]:
        chunks = _times(facts["damaged_chunks"], "piece")
        found.append(f"{chunks} of snapshots damaged on this disk, and not used")
    return "; ".join(found) or "none found since the start"


def disk(facts: dict[str, Any]) -> str:
    parts = ", ".join(f"{name} {size(held)}" for name, held in facts["disk"].items())
    return f"{size(facts['disk_bytes'])}: {parts}"


def _times(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
