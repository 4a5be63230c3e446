"""EControl and EF21: all remember what each peer stands for, and a peer sends how that changes.

*EControl: Fast Distributed Optimization with Compression and Error Control* (2023),
https://arxiv.org/abs/2311.05645; with error_share = 0 it is *EF21: A New, Simpler, Theoretically
Better, and Practically Faster Error Feedback* (2021), https://arxiv.org/abs/2106.05203. Peer r in a
round of R members, where H inner steps made theta_r of theta:

    Delta_r = theta - theta_r
    c_r = Q(top-k of each chunk of  error_share * e_r + Delta_r - h_r)      sent
    e_r <- e_r + Delta_r - h_r - c_r
    h_r <- h_r + c_r

and everyone's update, over the contributions that the round holds:

    h <- h + (1 / R) sum_r c_r                                              the mean of all h_r
    theta <- theta - rate * h

Differences from the papers: a gradient is the difference that inner steps made; what was sent
counts once its round is committed, and h_r is applied in rounds that miss its contribution, too,
which e_r accounts for. Members come and go, and nobody keeps every other's h_r: when the members of
a round are not those of the round before, or one of them says that it has lost its own h_r (it was
restarted, say), all begin anew with h = h_r = 0 in that round. e_r stays, so what was computed
stays; only the memory is built up again. All members count alike, because h is one mean for all
rounds. What a swarm of members that keep beginning anew does is plain top-k with a small share of
error feedback.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import torch
from blake3 import blake3
from torch import Tensor

from node.methods.base import Contribution, RoundContext, WorkResult
from node.methods.econtrol_config import ANEW, GOES_ON, EControlConfig
from node.methods.parts.feedback import Sent
from node.methods.parts.outer_step import descend
from node.methods.parts.setup import Setup
from node.methods.parts.sparse_codec import SparseUpdate
from node.methods.parts.sparse_merge import Term, merge
from node.methods.parts.sparse_method import SparseMethod

_TOTAL, _SEATS = "outer.remembered", "members.remembered"
_MINE, _MARKS = "econtrol.mine", "econtrol.marks"
_MARKS_KEPT: Final = 4


class EControl(SparseMethod[EControlConfig]):
    def __init__(self, config: EControlConfig, setup: Setup) -> None:
        super().__init__(config, setup)
        self._total = torch.zeros_like(self._weights.theta)  # h: replicated
        self._seats = torch.zeros(1, dtype=torch.int64)  # whose h it is the mean of: replicated
        self._mine = torch.zeros_like(self._total)  # h_r: this peer's own
        self._is_lost = False  # `_mine` is not what the total holds of us
        self._counted = -1  # the last round that `_mine` and the feedback know of
        self._belongs: tuple[int, int] | None = None  # `_mine`, to a state that is to be loaded
        self._change: Tensor | None = None  # error_share * e + Delta - h_r, until it is coded
        self._is_anew = False  # in the round that is worked for, or merged

    # Local work

    def work(self, round: RoundContext) -> WorkResult:
        self._compare_place()
        self._is_anew = self._are_others(round)
        result = super().work(round)
        self._change = None
        return replace(result, payload=result.payload + (ANEW if self._is_lost else GOES_ON))

    def _add_work(self, round: int, total: Tensor) -> None:
        change = total * (self.config.error_share - 1)
        super()._add_work(round, total)
        change += total
        if not self._is_anew:
            change -= self._mine
        self._change = change

    def _wanted(self) -> Tensor:
        assert self._change is not None, "there was work"
        return self._change

    # The replicated update

    def merge(self, round: RoundContext, contributions: Sequence[Contribution]) -> None:
        self._compare_place()
        says_so = any(one.payload.endswith(ANEW) for one in contributions)
        self._is_anew = says_so or self._are_others(round)
        own = [one for one in contributions if one.peer == round.peer]
        counted = [one.attachment for one in own if self._header(one.payload).tokens]
        sent = [self._sent_in(round.round, attachment) for attachment in counted]
        super().merge(round, contributions)
        if round.peer in round.seats and round.round > self._counted:
            self._count(round.round, sent)

    def _move(
        self, round: RoundContext, updates: Sequence[SparseUpdate], weights: Sequence[int]
    ) -> None:
        if self._is_anew:
            self._total.zero_()
            self._seats.fill_(_fingerprint(round.seats))
        terms = [Term(update, -1 / len(round.seats)) for update in updates]
        merge(self._split(round.round, self._total), terms, False, 0)
        descend(self._weights.theta, self._total, self.config.learning_rate.rate(round.round))

    def _are_others(self, round: RoundContext) -> bool:
        return int(self._seats) != _fingerprint(round.seats)

    def _count(self, round: int, sent: Sequence[Sent]) -> None:
        """What was applied for us, beside what we sent, which the feedback knows of."""
        if self._is_anew:
            self._mine.zero_()
            self._is_lost = False
        self._feedback.values -= self._mine
        for positions, values in sent:
            self._mine[positions] += values
        self._counted = round

    # State

    def _outer_state(self) -> dict[str, Tensor]:
        return {_TOTAL: self._total}

    def _outer_integers(self) -> dict[str, Tensor]:
        return {_SEATS: self._seats}

    def load_replicated_state(self, state: Mapping[str, Tensor]) -> None:
        belongs = self._belongs or self._place()
        super().load_replicated_state(state)
        self._belongs = belongs
        self._compare_place()

    def _compare_place(self) -> None:
        """In another state than that which `_mine` belongs to, it is lost."""
        if self._belongs not in (None, self._place()):
            self._mine.zero_()
            self._is_lost, self._counted = True, -1
        self._belongs = None

    def _place(self) -> tuple[int, int]:
        return self._kernels.digest(self._total, 0, 0) >> 1, int(self._seats)

    def local_state(self) -> dict[str, Tensor]:
        self._compare_place()
        marks = torch.tensor([*self._place(), self._counted, int(self._is_lost)])
        return super().local_state() | {_MINE: self._mine, _MARKS: marks}

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        """Raises ValueError for what is not ours."""
        mine, marks = state.get(_MINE), state.get(_MARKS)
        if mine is None or mine.dtype != torch.float32 or mine.shape != self._mine.shape:
            raise ValueError(f"{_MINE} is float32 {tuple(self._mine.shape)}")
        if not bool(mine.isfinite().all()):
            raise ValueError(f"{_MINE} is not finite")
        if marks is None or marks.dtype != torch.int64 or marks.shape != (_MARKS_KEPT,):
            raise ValueError(f"{_MARKS} is {_MARKS_KEPT} int64")
        super().load_local_state(state)
        self._mine.copy_(mine)
        total, seats, self._counted, is_lost = marks.tolist()
        self._belongs, self._is_lost = (total, seats), bool(is_lost)


def _fingerprint(seats: Sequence[bytes]) -> int:
    """63 bits, never 0."""
    return int.from_bytes(blake3(b"".join(seats)).digest(length=8), "little") >> 1 | 1
