"""DeMo: a momentum of one's own, of which each round sends the part that moves fastest.

*DeMo: Decoupled Momentum Optimization* (2024), https://arxiv.org/abs/2411.19870, and the
replicators of *DeToNATION* (2025). A round is one step of all. Peer r, whose mean gradient over its
micro-batches is g_r:

    delta_r <- beta * delta_r + g_r
    C_r = top-k by magnitude of DCT(delta_r) in each tile        or the elements that a mask names
    send sign(C_r)                                               or C_r in 8 bits
    delta_r <- delta_r - IDCT(C_r)                               once the round holds it

and everyone's update, over the contributions that the round holds:

    C_j = mean of what was sent of j, over those who sent it     by their tokens
    theta <- (1 - rate * decay) * theta - rate * sign(IDCT(C))   or rate * IDCT(C)

Differences from the papers:

* The learning rate stays outside delta. A sign does not feel it there, and what waits does not
  depend on where the schedule was when it was computed: late work counts like any other.
* delta is kept as its transform. The transform is orthonormal, so it is the same momentum; what
  was sent is taken off exactly, coefficient by coefficient, without going through the transform.
  It uses this machine's own floats. What moves the weights is the exact inverse of what was sent.
* What was sent is taken off when it is committed, not when it is sent. Of signs the sender takes
  off the coefficients as they were, which it has kept; of integers, what everybody decodes.
* Tiles are padded, never shrunk to a divisor of a side, so no shape is sent whole. A coefficient
  that is 0 is not sent.
* Masks come from the round's number or the exact generator, tensor by tensor.
"""

from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from node.methods.base import RoundContext
from node.methods.demo_config import DemoConfig
from node.methods.parts.coefficient_codec import Coefficients, decode, encode, quantised
from node.methods.parts.coefficient_merge import Sender, mean, move, multipliers
from node.methods.parts.dct import BASIS_BITS, forward, inverse
from node.methods.parts.feedback import Feedback, Sent
from node.methods.parts.inner_outer import InnerOuter
from node.methods.parts.masks import slots_of
from node.methods.parts.outgoing import Outgoing
from node.methods.parts.setup import Setup
from node.methods.parts.tiles import Strides, Tiles
from node.methods.parts.token_weights import shares
from node.training.gradient import MeanGradient
from node.training.inner import InnerWork

Update = list[Coefficients]  # of each tensor


class Demo(InnerOuter[DemoConfig, Update]):
    def __init__(self, config: DemoConfig, setup: Setup) -> None:
        self._gradient = MeanGradient(setup.model)
        super().__init__(config, setup)
        self._run = setup.run
        self._layout = config.layout(self._weights.shapes)
        self._feedback = Feedback(self._layout.size, self._weights.device, self._sent_in)
        self._outgoing = Outgoing(room=2 * self._layout.size)

    # delta <- beta * delta + g

    def _make_trainer(self, setup: Setup) -> InnerWork:
        return setup.inner(self.config.inner, self._gradient)

    def _add_work(self, round: int, total: Tensor) -> None:
        gradients = self._gradient.take(self.config.gradient.clip_norm)
        parts = torch.split(total, self._layout.sizes)
        # Without a gradient there is nothing to add.
        for gradient, part, of in zip(gradients, parts, self._layout.tensors, strict=False):
            flat = gradient.reshape(-1)
            part += forward(flat, of) if isinstance(of, Tiles) else flat

    # What is sent of it, and taken off

    def _encode(self, round: int) -> bytes:
        chosen = list(self._chosen(round))
        data = encode(self._layout, [coefficients for coefficients, _ in chosen])
        if self.config.values == "sign":
            self._outgoing.keep(round, data, torch.cat([kept for _, kept in chosen]))
        return data

    def _chosen(self, round: int) -> Iterator[tuple[Coefficients, Tensor]]:
        """Of each tensor what is sent, and of what is not 0 in it the magnitudes, too."""
        parts = torch.split(self._feedback.values, self._layout.sizes)
        for number, (of, values) in enumerate(zip(self._layout.tensors, parts, strict=True)):
            if isinstance(of, Tiles):
                yield self._largest(self._weights.names[number], of, values)
            else:
                yield self._masked(round, number, of, values)

    def _largest(self, name: str, of: Tiles, values: Tensor) -> tuple[Coefficients, Tensor]:
        tiles = values.view(of.count, of.length)
        places = tiles.abs().topk(of.k, dim=1, sorted=False).indices.sort(dim=1).values
        places += torch.arange(of.count, device=values.device)[:, None] * of.length
        positions = places.reshape(-1)
        scale, symbols = quantised(name, values[positions], self.config.values)
        if of.rank_bits is not None:
            positions, symbols = positions[symbols != 0], symbols[symbols != 0]
        sent = Coefficients(scale, symbols.cpu().numpy(), positions.cpu().numpy())
        return sent, values[positions[symbols != 0]]

    def _masked(
        self, round: int, number: int, of: Strides, values: Tensor
    ) -> tuple[Coefficients, Tensor]:
        chosen = values[self._masked_in(round, number, of)]
        scale, found = quantised(self._weights.names[number], chosen, self.config.values)
        symbols = torch.zeros(of.slots, dtype=torch.int8)
        symbols[: len(found)] = found.cpu()
        return Coefficients(scale, symbols.numpy()), chosen[found != 0]

    def _masked_in(self, round: int, number: int, of: Strides) -> Tensor:
        """(n,) int64: the elements in the first n slots; those behind them hold nothing."""
        assert self.config.replicator != "dct"
        slots = slots_of(self.config.replicator, self._run, round, number, of)
        return torch.from_numpy(slots[slots < of.elements]).to(self._weights.device)

    def _decode(self, round: int, attachment: bytes) -> Update:
        return decode(self._layout, attachment)

    def _sent_in(self, round: int, attachment: bytes) -> Sent:
        """As it was before it became signs, where that is known."""
        positions, values = super()._sent_in(round, attachment)
        kept = self._outgoing.find(round, attachment)
        if kept is None or kept.shape != values.shape:
            return positions, values
        return positions, kept

    def _sent(self, round: int, update: Update) -> Sent:
        positions, values = [], []
        for number, (offset, one) in enumerate(zip(self._layout.offsets, update, strict=True)):
            sender = self._senders(round, number, [one], [1])[0]
            there = sender.symbols != 0
            positions.append(sender.positions[there] + offset)
            values.append(sender.symbols[there].float() * one.scale)
        return torch.cat(positions), torch.cat(values)

    def _senders(
        self, round: int, number: int, sent: Sequence[Coefficients], counted: Sequence[int]
    ) -> list[Sender]:
        """Of one tensor: where everybody's coefficients are."""
        device, of = self._weights.device, self._layout.tensors[number]
        masked = None if isinstance(of, Tiles) else self._masked_in(round, number, of)
        found = []
        for one, share in zip(sent, counted, strict=True):
            symbols = torch.from_numpy(one.symbols).to(device)
            if masked is None:
                assert one.positions is not None
                positions = torch.from_numpy(one.positions).to(device)
                found.append(Sender(positions, symbols, one.scale, share))
            else:
                found.append(Sender(masked, symbols[: len(masked)], one.scale, share))
        return found

    # The update of all

    def _move(self, round: RoundContext, updates: Sequence[Update], weights: Sequence[int]) -> None:
        config, rate = self.config, self.config.learning_rate.rate(round.round)
        by_sign, keep = config.update == "sign", 1 - rate * Fraction(config.weight_decay)
        votes, counted = by_sign and config.values == "sign", shares(weights)
        parts = torch.split(self._weights.theta, self._weights.sizes)
        for number, theta in enumerate(parts if updates else ()):
            of = self._layout.tensors[number]
            senders = self._senders(
                round.round, number, [update[number] for update in updates], counted
            )
            scales = [sender.scale for sender in senders]
            factors, exponent = multipliers(scales, config.values, votes)
            by_senders = config.average == "senders" and isinstance(of, Tiles)
            along = mean(of.size, senders, factors, by_senders)
            if isinstance(of, Tiles):
                along, exponent = inverse(along, of), exponent - 2 * BASIS_BITS
            step = rate if by_sign else rate * Fraction(2) ** exponent
            move(theta, along.double(), step, keep, by_sign)

    # State

    def local_state(self) -> dict[str, Tensor]:
        return super().local_state() | self._outgoing.state()

    def load_local_state(self, state: Mapping[str, Tensor]) -> None:
        self._outgoing.load(state, self._weights.device)
        super().load_local_state(state)
