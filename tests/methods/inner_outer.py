"""Looking at methods of inner steps from outside and from within."""

from dataclasses import replace

import torch
from torch import Tensor

from node.methods.base import Contribution, GoesOn, RoundContext
from node.methods.demo import Demo
from node.methods.diloco import Diloco
from node.methods.econtrol import EControl
from node.methods.parts.feed import Feed
from node.methods.parts.setup import Setup
from node.methods.sparseloco import SparseLoco

Method = SparseLoco | Diloco | EControl | Demo


def contribution(method: Method, context: RoundContext) -> Contribution:
    done = method.work(context)
    if done.parts:  # as it is kept at home: in one piece
        return Contribution(context.peer, done.payload, b"".join(done.parts))
    assert len(done.attachment) <= method.config.attachment_bytes_max(method._weights.shapes)
    method.check(context.round, done.payload, done.attachment)
    return Contribution(context.peer, done.payload, done.attachment)


def go_on(method: Method, context: RoundContext, steps: int) -> None:
    """The next round's first steps, if the method overlaps, with one micro-batch in each."""
    if method.goes_on is GoesOn.AT_ONCE:
        left = iter(range(steps))
        method.overtime(replace(context, expired=lambda: next(left, None) is None))


def waiting(method: Method) -> Tensor:
    return method._feedback.values.clone()


def theta(method: Method) -> Tensor:
    return method._weights.theta.clone()


def sent(method: Method, one: Contribution, round: int = 0) -> Tensor:
    """Dense, what is taken off for it: as everybody decodes it, or as the sender knows it."""
    positions, values = method._sent_in(round, one.attachment)
    dense = torch.zeros_like(method._feedback.values)
    dense[positions] = values
    return dense


def dealt(feed: Feed) -> list[int]:
    """The slots that merges took, rising."""
    taken = [
        turn + len(feed.queues) * slot
        for turn, queue in enumerate(feed.queues)
        for slot in range(queue.frontier)
        if not any(start <= slot < end for start, end in queue.leftover)
    ]
    return sorted(taken)


def gradient(setup: Setup, slot: int) -> Tensor:
    """Of the mean loss of one batch, at the model's weights."""
    setup.model.zero_grad()
    setup.loss(setup.model, setup.data.batch(slot)).backward()
    found = torch.cat([p.grad.reshape(-1) for p in setup.model.parameters() if p.grad is not None])
    setup.model.zero_grad()
    return found
