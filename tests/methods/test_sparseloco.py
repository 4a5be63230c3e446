"""SparseLoCo: what it sends, what waits, and what all peers hold alike."""

import torch
from torch import Tensor

from node.methods.base import Contribution, RoundContext
from node.methods.parts.header import decode_header
from node.methods.sparseloco import SparseLoco
from node.methods.sparseloco_config import SparseLocoConfig
from tests.methods.conftest import MakeRound, MakeSetup
from tests.methods.inner_outer import contribution, sent, theta, waiting
from tests.methods.making import peer

CONFIG = SparseLocoConfig.model_validate(
    {
        "name": "sparseloco",
        "inner": {"steps": 2, "optimizer": {"name": "adamw", "lr": 0.01}},
        "chunk": 64,
        "kept": 4,
        "feedback_decay": 1.0,
    }
)


def configured(**changes: object) -> SparseLocoConfig:
    return SparseLocoConfig.model_validate({**CONFIG.model_dump(), **changes})


def test_the_update_is_the_mean_over_peers_by_their_tokens(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Two peers; one took three times as many steps."""
    quick = {**CONFIG.inner.model_dump(), "steps": None, "steps_max": 6}
    config = configured(inner=quick, learning_rate={"peak": "0.5"})
    methods = [SparseLoco(config, make_setup()) for _ in range(2)]
    contexts = [make_round(0, i, 2) for i in range(2)]
    contexts[1] = RoundContext(*_place(contexts[1]), lambda: False)
    made = [contribution(m, context) for m, context in zip(methods, contexts, strict=True)]
    steps = [decode_header(one.payload, config.inner)[0].steps for one in made]
    assert steps == [1, 6]
    start = theta(methods[0])
    wanted = start - 0.5 * (sent(methods[0], made[0]) * 1 + sent(methods[0], made[1]) * 4) / 5
    methods[0].merge(contexts[0], made)
    torch.testing.assert_close(theta(methods[0]), wanted, rtol=0, atol=1e-7)
    # 4 and not 6: nobody counts for more than four times the median, which the lower one is here.


def _place(context: RoundContext) -> tuple[bytes, int, bytes, tuple[bytes, ...]]:
    return context.run, context.round, context.peer, context.seats


def test_the_mean_over_senders_divides_by_who_sent(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    methods = [SparseLoco(configured(average="senders"), make_setup()) for _ in range(2)]
    made = [contribution(m, make_round(0, i, 2)) for i, m in enumerate(methods)]
    values = [sent(methods[0], one) for one in made]
    senders = sum((value != 0).float() for value in values)
    assert isinstance(senders, Tensor)
    assert (senders == 1).any()
    assert (senders == 2).any()
    start = theta(methods[0])
    methods[0].merge(make_round(0, 0, 2), made)
    wanted = start - (values[0] + values[1]) / senders.clamp(min=1)
    torch.testing.assert_close(theta(methods[0]), wanted, rtol=0, atol=1e-7)


def test_a_peer_that_says_it_did_everything_is_not_believed(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """P6: its tokens count for four times the median at most."""
    methods = [SparseLoco(CONFIG, make_setup()) for _ in range(3)]
    made = [contribution(m, make_round(0, i)) for i, m in enumerate(methods)]
    liar = methods[2]
    claimed = decode_header(made[2].payload, CONFIG.inner)[0]
    more = type(claimed)(claimed.steps, claimed.batches, 1 << 40).encode()
    start = theta(liar)
    values = [sent(liar, one) for one in made]
    liar.merge(make_round(0, 2), [*made[:2], Contribution(peer(2), more, made[2].attachment)])
    wanted = start - (values[0] + values[1] + 4 * values[2]) / 6
    torch.testing.assert_close(theta(liar), wanted, rtol=0, atol=1e-7)


# What waits


def test_a_constant_difference_is_sent_in_full(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """METHODS E4: one peer, decay 1: after T rounds, all that was sent and what waits is T times
    the difference.
    """
    me = SparseLoco(CONFIG, make_setup())
    size = me._size
    constant = torch.linspace(-1, 1, size)
    total = torch.zeros(size)
    for number in range(12):
        me._feedback.add(number, 1.0, lambda values: values.add_(constant))
        one = Contribution(peer(0), b"", me._encode(number))
        total += sent(me, one)
        me._feedback.committed(number, one.attachment)
    torch.testing.assert_close(total + waiting(me), 12 * constant, rtol=1e-5, atol=1e-5)


def test_what_a_life_before_sent_later_does_not_wait_in_this_one(
    make_setup: MakeSetup, make_round: MakeRound
) -> None:
    """Killed after round 1; saved after round 0. What round 1 holds is not sent again."""
    before, reborn = SparseLoco(CONFIG, make_setup()), SparseLoco(CONFIG, make_setup())
    first = contribution(before, make_round(0, 0))
    saved = {name: tensor.clone() for name, tensor in before.local_state().items()}
    before.merge(make_round(0, 0), [first])
    second = contribution(before, make_round(1, 0))
    reborn.load_local_state(saved)
    for number, one in enumerate((first, second)):
        reborn.merge(make_round(number, 0), [one])
    positions, _ = reborn._sent_in(1, second.attachment)
    assert not waiting(reborn)[positions].any()
    assert waiting(reborn).any()
