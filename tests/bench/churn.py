"""Two hundred rounds of each method by gradients, while peers are late, killed, come and go.

    python tests/bench/churn.py [--rounds 200] [--seed 1]

Peers in one process, through the same calls as the daemon's: nothing but the network is left out.
Each round some of them are late: what they made is given back. Now and then one is killed, and
goes on from what it had put on disk at the end of the round before; one leaves for good; a newcomer
comes with somebody's replicated state. Bound, for each method: all replicas have one digest after
each round; and what all computed is what was committed, and what still waits, those who left
included, to one part in 10^5 of the largest. With `econtrol`, and where parts are summed, what was
committed is what moved the weights.
"""

import argparse
import random
import sys
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parents[2]))  # runnable as a file, too

from node.methods.base import Contribution, RoundContext
from node.methods.diloco import Diloco
from node.methods.econtrol import EControl
from node.methods.registry import CONFIGS, build_method
from tests.bench.common import report
from tests.methods.inner_outer import Method, contribution, go_on, sent, theta, waiting
from tests.methods.making import RUN, peer, tiny_setup

ERROR_MAX = 1e-5
MEMBERS_MAX = 6
INNER = {"steps": 2, "optimizer": {"name": "adamw", "lr": 0.01}}
SPARSE = {"inner": INNER, "chunk": 64, "kept": 4, "feedback_decay": 1.0}
METHODS: dict[str, dict[str, object]] = {
    "sparseloco": {"name": "sparseloco", **SPARSE},
    "sparseloco, senders": {
        "name": "sparseloco", **SPARSE, "average": "senders", "learning_rate": {"peak": "0.5"}
    },
    "sparseloco, overlap": {"name": "sparseloco", **SPARSE, "overlap": True},
    "sparseloco, 3 fragments": {"name": "sparseloco", **SPARSE, "fragments": 3},
    "diloco, 2 fragments, overlap": {
        "name": "diloco", "inner": INNER, "momentum": "0.5", "fragments": 2, "overlap": True
    },
    "diloco": {"name": "diloco", "inner": INNER, "momentum": "0.5"},
    "diloco, 8 bits": {"name": "diloco", "inner": INNER, "momentum": "0.5", "value_bits": 8},
    "diloco, 4 bits, overlap": {
        "name": "diloco", "inner": INNER, "momentum": "0.5", "value_bits": 4, "overlap": True
    },
    "muloco, 4 bits": {
        "name": "diloco", "momentum": "0.5", "value_bits": 4,
        "inner": {"steps": 2, "optimizer": {"name": "muon", "lr": 0.01}},
    },
    "econtrol": {"name": "econtrol", **SPARSE},
    "ef21": {"name": "econtrol", **SPARSE, "error_share": 0},
    **{
        f"demo, {replicator}": {
            "name": "demo", "momentum": 1.0, "replicator": replicator, "kept": 64, "one_in": 4,
            "values": values, "gradient": {"batches": 1},
        }
        for replicator, values in (
            ("dct", "sign"), ("random", "int8"), ("striding", "sign"), ("slicing", "int8"),
            ("full", "sign"),
        )
    },
}  # fmt: skip

# Of those with these settings, what is attached is summed in so many parts.
BY_PARTS: dict[str, tuple[str, int]] = {
    "diloco, 3 parts": ("diloco", 3),
    "diloco, 8 bits, 2 parts": ("diloco, 8 bits", 2),
    "diloco, 4 bits, overlap, 3 parts": ("diloco, 4 bits, overlap", 3),
}


def make(settings: dict[str, object]) -> Method:
    kind = CONFIGS[str(settings["name"])]
    method = build_method(kind.model_validate(settings), tiny_setup())
    assert isinstance(method, Method)
    return method


@dataclass
class Trial:
    settings: dict[str, object]
    draw: random.Random
    parts_max: int = 0
    members: dict[int, Method] = field(default_factory=dict)  # by the number in their name
    disks: dict[int, dict[str, Tensor]] = field(default_factory=dict)
    round: int = 0
    named: int = 0
    happened: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("late", "killed", "joined", "left"), 0)
    )
    differed: int = 0  # rounds after which two replicas did

    def __post_init__(self) -> None:
        for _ in range(3):
            self._admit(None)
        first = next(iter(self.members.values()))
        self.computed = torch.zeros_like(waiting(first), dtype=torch.float64)
        self.committed, self.left = torch.zeros_like(self.computed), torch.zeros_like(self.computed)

    def run(self, rounds: int) -> None:
        for _ in range(rounds):
            self._something_happens()
            self._close()

    def error(self) -> float:
        there = sum((waiting(m).double() for m in self.members.values()), start=self.left)
        return float(
            (self.committed + there - self.computed).abs().max() / self.computed.abs().max()
        )

    # One round

    def _close(self) -> None:
        names, draw = sorted(self.members), self.draw
        contexts = {name: self._context(name) for name in names}
        made = {name: self._work(name, contexts[name]) for name in names}
        late = {name for name in names if draw.random() < 0.2}
        if len(late) == len(names):
            late.pop()
        listed = [made[name] for name in names if name not in late]
        first = self.members[names[0]]
        start = theta(first).double()
        for name in names:
            go_on(self.members[name], contexts[name], draw.randrange(3))
        sums = self._sums(names, contexts, listed)
        for name in names:
            method = self.members[name]
            if sums:
                self._merge_sums(method, contexts[name], listed, sums)
            else:
                if name not in late and not isinstance(method, EControl):
                    self.committed += sent(method, made[name], self.round)
                method.merge(contexts[name], listed)
            if name in late:
                method.give_back(self.round, made[name].payload, made[name].attachment)
            self.disks[name] = {k: v.clone() for k, v in method.local_state().items()}
        if sums:
            self.committed += self._summed(first, contexts[names[0]], sums) * len(listed)
        elif isinstance(first, EControl):
            self.committed += (start - theta(first).double()) * len(names)
        self.happened["late"] += len(late)
        self.differed += len({method.state_digest(3) for method in self.members.values()}) > 1
        self.round += 1

    # Part by part: everybody alive may add up, whether its own work is listed or not

    def _sums(
        self, names: list[int], contexts: dict[int, RoundContext], listed: list[Contribution]
    ) -> list[bytes]:
        sums: list[bytes] = []
        for number in range(contexts[names[0]].parts):
            method, context = self.members[names[number]], contexts[names[number]]
            assert isinstance(method, Diloco)
            lengths = [run.length for run in method._runs(context)]
            at = sum(lengths[:number])
            lines = [
                replace(one, attachment=one.attachment[at : at + lengths[number]]) for one in listed
            ]
            sums.append(method.add_up(replace(context, answers_for=number), number, lines))
        return sums

    def _merge_sums(
        self,
        method: Method,
        context: RoundContext,
        listed: list[Contribution],
        sums: list[bytes],
    ) -> None:
        assert isinstance(method, Diloco)
        lines = [
            one if one.peer == context.peer else replace(one, attachment=b"") for one in listed
        ]
        method.merge_sums(context, lines, sums)

    def _summed(self, method: Method, context: RoundContext, sums: list[bytes]) -> Tensor:
        """The mean that moved the weights."""
        assert isinstance(method, Diloco)
        found = torch.zeros_like(self.computed)
        due = found[method._due(self.round).elements]
        for run, data in zip(method._runs(context), sums, strict=True):
            values = run.decode(data).values(found.device)
            due[run.elements] = torch.cat([found[:0], *(one.double() for one in values)])
        return found

    def _context(self, name: int) -> RoundContext:
        seats = tuple(peer(other) for other in sorted(self.members))
        parts = min(self.parts_max, len(seats))
        return RoundContext(RUN, self.round, peer(name), seats, lambda: True, parts)

    def _work(self, name: int, context: RoundContext) -> Contribution:
        before = waiting(self.members[name]).double()
        made = contribution(self.members[name], context)
        self.computed += waiting(self.members[name]).double() - before
        return made

    # What happens between rounds

    def _something_happens(self) -> None:
        chance = self.draw.random()
        if chance < 0.1:
            self._kill(self.draw.choice(sorted(self.members)))
        elif chance < 0.15 and len(self.members) > 2:
            self._leave(self.draw.choice(sorted(self.members)))
        elif chance < 0.22 and len(self.members) < MEMBERS_MAX:
            self.happened["joined"] += 1
            self._admit(next(iter(self.members.values())))

    def _kill(self, name: int) -> None:
        """The process is gone, and its memory; another begins with its disk."""
        self.happened["killed"] += 1
        state = {k: v.clone() for k, v in self.members[name].replicated_state().items()}
        self.members[name] = make(self.settings)
        self.members[name].load_local_state(self.disks[name])
        self.members[name].load_replicated_state(state)

    def _leave(self, name: int) -> None:
        self.happened["left"] += 1
        self.left = self.left + waiting(self.members.pop(name)).double()

    def _admit(self, teacher: Method | None) -> None:
        newcomer = make(self.settings)
        if teacher is not None:
            state = {k: v.clone() for k, v in teacher.replicated_state().items()}
            newcomer.load_replicated_state(state)
        self.members[self.named] = newcomer
        self.named += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    is_met = True
    trials = {name: (settings, 0) for name, settings in METHODS.items()}
    trials |= {name: (METHODS[like], parts) for name, (like, parts) in BY_PARTS.items()}
    for name, (settings, parts) in trials.items():
        trial = Trial(settings, random.Random(options.seed), parts)
        trial.run(options.rounds)
        met = not trial.differed and trial.error() <= ERROR_MAX
        is_met = is_met and met
        report(
            f"churn, {name}",
            met,
            {
                "rounds": trial.round,
                "seed": options.seed,
                **trial.happened,
                "rounds_that_differed": trial.differed,
                "lost_share": trial.error(),
                "lost_share_max": ERROR_MAX,
            },
        )
    return 0 if is_met else 1


if __name__ == "__main__":
    sys.exit(main())
