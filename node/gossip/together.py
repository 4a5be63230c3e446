"""Meetings of peers that share a process: all offer, then all commit, and bytes are counted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from node.gossip.exchange import Exchange, stay_alone
from node.gossip.pairings import Meeting, View, meetings, partners
from node.gossip.party import Party
from node.methods.registry import AnyGossip


@dataclass(slots=True)
class Together:
    """Meetings that go on at the same time, between `open` and `finish`."""

    parties: Mapping[bytes, Party]
    meetings: Sequence[Meeting]
    sent_bytes: int = 0  # of all peers
    _sides: list[tuple[Meeting, dict[bytes, Exchange]]] = field(default_factory=list)
    _offers: list[list[dict[bytes, bytes]]] = field(default_factory=list)  # by meeting and stretch

    def open(self) -> None:
        """Everybody offers what it has now."""
        for meeting in self.meetings:
            sides = {peer: Exchange(self.parties[peer], peer, meeting) for peer in meeting.peers}
            count = next(iter(sides.values())).count
            self._sides.append((meeting, sides))
            self._offers.append(
                [{peer: side.offer(at) for peer, side in sides.items()} for at in range(count)]
            )

    def finish(self) -> None:
        """Everybody moves. Who met nobody goes on alone."""
        for (_, sides), stretches in zip(self._sides, self._offers, strict=True):
            for number, offers in enumerate(stretches):
                _deliver(number, offers, sides)
            for side in sides.values():
                side.close()
                self.sent_bytes += side.sent_bytes
        met = {peer for meeting in self.meetings for peer in meeting.peers}
        for peer in sorted(self.parties.keys() - met):
            stay_alone(self.parties[peer])


def _deliver(number: int, offers: Mapping[bytes, bytes], sides: Mapping[bytes, Exchange]) -> None:
    for sender, data in offers.items():
        for peer, side in sides.items():
            if peer != sender and data:
                side.receive(number, sender, data)
    for side in sides.values():
        side.commit(number)


def hold(parties: Mapping[bytes, Party], found: Sequence[Meeting]) -> int:
    """One round's meetings; bytes that all sent."""
    together = Together(parties, found)
    together.open()
    together.finish()
    return together.sent_bytes


def meetings_of(config: AnyGossip, view: View, round: int, step: int = 0) -> list[Meeting]:
    """Of a round's exchange `step`. Of asynchronous peers: all are ready at once."""
    number = round * config.exchanges_a_round + step
    if config.kind is None:
        return all_ready(view, number)
    return meetings(config.kind, view, number, config.meeting_size)


def all_ready(view: View, number: int) -> list[Meeting]:
    """One after the other asks the first of its ranking that is free."""
    free = set(view.members)
    found = []
    for peer in _turns(view, number):
        if peer in free:
            other = next((one for one in partners(view, peer, number) if one in free), None)
            if other is not None:
                free -= {peer, other}
                found.append(Meeting((peer, other)))
    return found


def _turns(view: View, number: int) -> Iterable[bytes]:
    first = number % max(1, len(view.members))
    return view.order[first:] + view.order[:first]
