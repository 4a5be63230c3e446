"""One side of a meeting, stretch by stretch, in any order. Nothing here knows how bytes travel.

For each stretch: `offer` what is sent, `receive` what the others sent, and once it is sure that all
sides have everything of it, `commit`. Only the last one moves anything, and both sides move by the
same numbers, so a stretch counts on both or on neither. Between `offer` and `commit` the model may
take steps. Memory: what the open stretches hold, decoded.

`close` ends the meeting, whole or not. Stretches that were not committed go on alone.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from node.gossip.pairings import Meeting
from node.gossip.party import Party
from node.methods.parts.mixing import MODEL, Offer
from node.methods.variance_corrected import VarianceCorrected


@dataclass(slots=True)
class _Open:
    """A stretch that is on its way."""

    mine: Offer | None = None
    data: bytes = b""
    others: dict[bytes, Offer] = field(default_factory=dict)


class Exchange:
    def __init__(self, party: Party, me: bytes, meeting: Meeting) -> None:
        self._party, self._me, self.meeting = party, me, meeting
        assert me in meeting.peers, "it is one's own meeting"
        senders = meeting.peers[:1] if meeting.directed else meeting.peers
        self._sends = me in senders
        self._from = () if self._sends and meeting.directed else tuple(
            peer for peer in senders if peer != me
        )  # fmt: skip
        self._open: dict[int, _Open] = {}
        self.committed: set[int] = set()
        self._sums: dict[int, Tensor] = {}  # by tensor, where a method wants them
        self.sent_bytes = 0

    @property
    def count(self) -> int:
        """Stretches."""
        return len(self._party.stretches)

    def offer(self, number: int) -> bytes:
        """What this side sends of a stretch; the same bytes if it is asked again; none if it only
        receives. Raises DivergedError.
        """
        assert number not in self.committed, number
        if not self._sends:
            return b""
        one = self._open.setdefault(number, _Open())
        if one.mine is None:
            party = self._party
            turn, offer = self.meeting.turn, party.mixing.offer(party.part(number))
            one.data = party.coder.encode(number, offer, turn)
            # What others decode, not what we hold: only so both sides move by the same.
            one.mine = party.coder.decode(number, one.data, party.device, turn)
            self.sent_bytes += len(one.data) * (len(self.meeting.peers) - 1)
        return one.data

    def receive(self, number: int, sender: bytes, data: bytes) -> None:
        """What another side sends of a stretch, once or more often: the first counts. Raises
        ValueError for bytes that no honest peer sends, and for who has nothing to send.
        """
        if not 0 <= number < self.count:
            raise ValueError(f"stretch {number} of {self.count}")
        if sender not in self._from:
            raise ValueError("it sends nothing in this meeting")
        if number in self.committed:
            return
        one = self._open.setdefault(number, _Open())
        if sender not in one.others:
            party = self._party
            one.others[sender] = party.coder.decode(number, data, party.device, self.meeting.turn)

    def is_whole(self, number: int) -> bool:
        """This side has all of a stretch that it needs to commit it."""
        one = self._open.get(number)
        if one is None:
            return False
        return (one.mine is not None or not self._sends) and len(one.others) == len(self._from)

    def commit(self, number: int) -> None:
        """Move by it, once."""
        assert self.is_whole(number), number
        one = self._open.pop(number)
        party, others = self._party, [one.others[peer] for peer in self._from]
        self._tally(number, one.mine, others)
        party.mixing.apply(party.part(number), party.mixing.moves(one.mine, others))
        self.committed.add(number)

    def close(self) -> bool:
        """End it. True: all of it counted."""
        party = self._party
        missing = [number for number in range(self.count) if number not in self.committed]
        for number in missing:
            party.mixing.alone(party.part(number))
        self._open.clear()
        if not missing:
            self._correct()
        return not missing

    # Variance correction

    def _tally(self, number: int, mine: Offer | None, others: list[Offer]) -> None:
        mixing = self._party.mixing
        if isinstance(mixing, VarianceCorrected):
            stretch = self._party.stretches[number]
            sums = mixing.sums(mine, others, stretch.sizes)
            for tensor, part in zip(stretch.tensors, sums, strict=True):
                self._sums[tensor] = self._sums[tensor] + part if tensor in self._sums else part

    def _correct(self) -> None:
        party = self._party
        if isinstance(party.mixing, VarianceCorrected):
            for number, tensor in enumerate(torch.split(party.state[MODEL], party.sizes)):
                party.mixing.correct(tensor, self._sums[number])


def stay_alone(party: Party) -> None:
    """A round without a meeting."""
    for number in range(len(party.stretches)):
        party.mixing.alone(party.part(number))
