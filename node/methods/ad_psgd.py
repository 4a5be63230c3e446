"""AD-PSGD: nobody waits for a round; who is ready averages with one other, and both step on.

*Asynchronous Decentralized Parallel Stochastic Gradient Descent* (2017),
https://arxiv.org/abs/1710.06952. When peer i is ready it picks j at random, and both do

    x_i, x_j <- (x_i + x_j) / 2

in one atomic step, while gradients that were computed at older weights are still to be added. Here
the exchange is a difference, (x_j - x_i) / 2 as both decoded it, which each adds when it arrives:
the steps that were taken meanwhile stay, on both sides, and so does the sum.

A peer takes part in one exchange at a time. One that is asked while it is busy says so instead of
letting the other one wait, so no circle of peers that wait for each other can form (the paper keeps
active and passive peers apart for that), and the next of the ranking is asked.

With `dadao` it is DADAO (`dadao.py`) on the same schedule.
"""

from node.gossip.pairings import exponential_wait
from node.methods.ad_psgd_config import AdPsgdConfig
from node.methods.d_psgd import Averaging
from node.methods.dadao import Dadao, DadaoSteps
from node.methods.parts.mixing import Mixing, State
from node.methods.parts.setup import Setup
from node.training.inner import InnerWork


def mixing(config: AdPsgdConfig) -> Mixing:
    return Averaging() if config.dadao is None else Dadao.of(config.dadao)


def trainer(config: AdPsgdConfig, setup: Setup, mixing: Mixing, state: State) -> InnerWork:
    """Raises ConfigError when the model cannot be trained so."""
    if isinstance(mixing, Dadao):
        return setup.inner(config.inner, DadaoSteps(mixing, state, setup.model))
    return setup.inner(config.inner)


def wait(
    config: AdPsgdConfig,
    seed: bytes,  # of the run
    me: bytes,
    number: int,  # of my exchanges
    work: int,  # time that inner steps take, in the caller's unit
) -> int:
    """From the beginning of the inner steps until this peer asks others, in the same unit."""
    if config.clock == "ready":
        return work
    return max(work, exponential_wait(seed, me, number, work))
