"""Gossiping peers for tests: real ones with tiny models, and bare vectors."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from node.config import parse_run_file
from node.gossip.exchange import Exchange, stay_alone
from node.gossip.pairings import Meeting
from node.gossip.party import Party
from node.methods.parts.gossip_config import GossipConfig
from node.methods.parts.mixing import MODEL, Mixing, Offer
from node.methods.registry import AnyGossip
from tests.methods.making import peer, tiny_setup


def config(name: str, **settings: object) -> AnyGossip:
    raw = {
        "name": "test",
        "model": {"kind": "gpt"},
        "data": {"source": "python-stdlib"},
        "method": {"name": name, **settings},
    }
    method = parse_run_file(raw, "a test").method
    assert isinstance(method, GossipConfig)
    return method


def parties(method: AnyGossip, count: int, noise: float = 0.1) -> list[Party]:
    """With models that differ, by normal numbers of such a deviation."""
    chance = torch.Generator().manual_seed(3)
    found = []
    for _ in range(count):
        setup = tiny_setup()
        with torch.no_grad():
            for parameter in setup.model.parameters():
                parameter.add_(noise * torch.randn(parameter.shape, generator=chance))
        found.append(Party(method, setup))
    return found


def model(party: Party) -> Tensor:
    return party.state[MODEL].clone()


def meet(
    swarm: Sequence[Party],
    seats: Sequence[int],
    *,
    directed: bool = False,
    turn: int = 0,
    stops: Callable[[int], bool] = lambda number: False,  # before this stretch, for good
    between: Callable[[], object] = lambda: None,  # offers and commits
) -> list[Exchange]:
    """A whole exchange of these peers, stretch by stretch."""
    meeting = Meeting(tuple(peer(seat) for seat in seats), directed, turn)
    sides = [Exchange(swarm[seat], peer(seat), meeting) for seat in seats]
    for number in range(sides[0].count):
        if stops(number):
            break
        offers = [side.offer(number) for side in sides]
        between()
        for seat, data in zip(seats, offers, strict=True):
            for other, side in zip(seats, sides, strict=True):
                if other != seat and data:
                    side.receive(number, peer(seat), data)
        assert all(side.is_whole(number) for side in sides)
        for side in sides:
            side.commit(number)
    for side in sides:
        side.close()
    return sides


def round_of(swarm: Sequence[Party], meetings: Sequence[Sequence[int]]) -> None:
    """Meetings that take place at once, and a step alone for all others."""
    for seats in meetings:
        meet(swarm, seats)
    for seat in set(range(len(swarm))) - {seat for seats in meetings for seat in seats}:
        stay_alone(swarm[seat])


# Bare vectors, in float64 where numbers are compared with formulas


def state_of(mixing: Mixing, vector: Tensor) -> dict[str, Tensor]:
    state = {MODEL: vector.clone()}
    state |= {name: torch.zeros_like(vector) for name in mixing.vectors}
    state |= {name: vector.new_zeros(1).double() for name in mixing.per_stretch}
    mixing.begin(state)
    return state


def mix(mixing: Mixing, states: Sequence[dict[str, Tensor]]) -> None:
    """All these meet, and nothing is coded."""
    offers: list[Offer] = [[part.clone() for part in mixing.offer(state)] for state in states]
    for at, state in enumerate(states):
        mixing.apply(state, mixing.moves(offers[at], [*offers[:at], *offers[at + 1 :]]))


def push(mixing: Mixing, states: Sequence[dict[str, Tensor]], targets: Sequence[int]) -> None:
    """Each sends to its target, all at once."""
    offers: list[Offer] = [[part.clone() for part in mixing.offer(state)] for state in states]
    for sender, target in enumerate(targets):
        mixing.apply(states[sender], mixing.moves(offers[sender], []))
        mixing.apply(states[target], mixing.moves(None, [offers[sender]]))
