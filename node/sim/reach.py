"""Who can reach whom: splits, one-way cuts, and peers that nobody can dial.

A peer behind a NAT is never dialled. It dials others, by sending to them, and what they send to it
comes back over that connection, for as long as neither process has ended since. So two such peers
never reach each other directly, however long they try.
"""

from collections.abc import Callable, Iterable

from protocol.ids import PeerId


class Reach:
    """`is_hidden` says who cannot be dialled."""

    def __init__(self, is_hidden: Callable[[PeerId], bool]) -> None:
        self._is_hidden = is_hidden
        self._sides: dict[PeerId, int] = {}
        self._cuts: list[tuple[frozenset[PeerId], frozenset[PeerId]]] = []
        self._dialled: dict[PeerId, set[PeerId]] = {}  # a hidden peer -> whom it has dialled

    # Cuts

    def split(self, side: Iterable[PeerId]) -> None:
        """Cut these off from all others; earlier cuts stay."""
        number = 1 + max(self._sides.values(), default=0)
        for peer in side:
            self._sides[peer] = number

    def cut(self, senders: Iterable[PeerId], receivers: Iterable[PeerId]) -> None:
        """What these send to those is lost; the other way stays open."""
        self._cuts.append((frozenset(senders), frozenset(receivers)))

    def heal(self) -> None:
        self._sides.clear()
        self._cuts.clear()

    # Connections

    def restarted(self, peer: PeerId) -> None:
        """Its process ended or began: all its connections are gone."""
        self._dialled.pop(peer, None)
        for dialled in self._dialled.values():
            dialled.discard(peer)

    def passes(self, sender: PeerId, to: PeerId) -> bool:
        """Does what `sender` sends now get through? A hidden sender dials by it."""
        if not self._is_open(sender, to):
            return False
        if self._is_hidden(to):
            return sender in self._dialled.get(to, ())
        # A connection takes packets both ways to come up.
        if self._is_hidden(sender) and self._is_open(to, sender):
            self._dialled.setdefault(sender, set()).add(to)
        return True

    def joined(self, one: PeerId, other: PeerId) -> bool:
        """Can the two talk to each other, without a third, once the right one has dialled?"""
        both_hidden = self._is_hidden(one) and self._is_hidden(other)
        return not both_hidden and self._is_open(one, other) and self._is_open(other, one)

    def _is_open(self, sender: PeerId, to: PeerId) -> bool:
        if self._sides and self._sides.get(sender, 0) != self._sides.get(to, 0):
            return False
        return not any(sender in senders and to in receivers for senders, receivers in self._cuts)
