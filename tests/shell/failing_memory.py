"""A peer whose memory fails: `peer` as it is, but on SIGUSR1 one bit of one weight flips."""

import gc
import signal

import torch

from cli.app import main
from node.worker import TrainingWorker


def flip(*_: object) -> None:
    (worker,) = [thing for thing in gc.get_objects() if isinstance(thing, TrainingWorker)]
    state = worker._replica.method.replicated_state()
    largest = max(state.values(), key=lambda tensor: tensor.numel())
    words = largest.view(-1).view(torch.uint8)
    words[words.numel() // 2 + 1] ^= 4


if __name__ == "__main__":
    signal.signal(signal.SIGUSR1, flip)
    main()
