"""How long from a newcomer's start until its first contribution is committed.

A ledger of 1,000 rounds, 8 members, 8 probes each, over a model of a million weights is made with
real signatures and real merges. One member serves it; a newcomer joins with an invite, replays all
of it and trains.
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from node import bootstrap, offline  # noqa: E402
from node.build import Workshop  # noqa: E402
from node.config import NodeConfig, load_run_file  # noqa: E402
from node.keeper import StateKeeper  # noqa: E402
from node.methods.parts.probes import Probe, encode  # noqa: E402
from node.replica import Replica  # noqa: E402
from node.snapshots import Snapshots  # noqa: E402
from node.store import Store  # noqa: E402
from node.swarm import Swarm  # noqa: E402
from protocol.codec import encode_body  # noqa: E402
from protocol.entries import (  # noqa: E402
    Admission,
    Body,
    Card,
    Cause,
    Departure,
    Entry,
    Line,
    card_bytes,
    contribution_bytes,
    entry_hash,
    leave_bytes,
    seal_bytes,
)
from protocol.identity import Identity  # noqa: E402
from protocol.ids import RunId, digest  # noqa: E402
from protocol.invites import mint_token  # noqa: E402
from protocol.ledger import Judge, Ledger  # noqa: E402
from tests.bench.common import report  # noqa: E402
from tests.shell.runs import write_run  # noqa: E402

ROUNDS = 1_000
MEMBERS = 8
PROBES = 8
MOST_S = 30.0


class History:
    """Makes the ledger: entries that the real judge accepts, with the digests of real merges."""

    def __init__(self, store: Store, workshop: Workshop, kept: bootstrap.Membership) -> None:
        self.run, self.store = RunId(kept.run), store
        self.keys = [Identity(store.identity())]
        self.keys += [Identity(digest("bench", bytes([n]))) for n in range(1, MEMBERS)]
        trainer = workshop.trainer(self.run, kept.manifest.method)
        founders = (self.keys[0].peer,)
        self.replica = Replica(
            trainer.method, trainer.initial_state, self.run, self.keys[0].peer, founders
        )
        rules = kept.manifest.rules.rules()
        self.ledger = Ledger(Judge(self.run, rules, self.keys[0], trainer.method.weigh), founders)

    def close(self, admissions: tuple[Admission, ...] = (), leaving: bool = False) -> None:
        """One more entry, on disk."""
        mark, state = self.ledger.head, self.replica.digest()
        by_id = {key.peer: key for key in self.keys}
        seats = [by_id[peer] for peer in mark.roster.members]
        lines = [
            Line(seat, self._payload(mark.round, seat), None, None) for seat in range(len(seats))
        ]
        signed = [
            key.sign(contribution_bytes(self.run, mark.round, mark.hash, state, line))
            for key, line in zip(seats, lines, strict=True)
        ]
        departures = tuple(
            Departure(
                seat, Cause.LEFT, mark.round, key.sign(leave_bytes(self.run, key.peer, mark.round))
            )
            for seat, key in enumerate(seats)
            if leaving and key is not self.keys[0]
        )
        closer = mark.round % len(seats)
        body = Body(mark.round, mark.hash, closer, 100, state, tuple(lines), admissions, departures)
        raw = encode_body(body)
        seal = seats[closer].sign(seal_bytes(self.run, body.round, body.parent, entry_hash(raw)))
        entry = Entry(body, raw, seal, tuple(signed))
        self.store.commit(self.ledger.extend(entry))
        self.replica.merge(entry, mark.roster.members)

    def _payload(self, round: int, seat: int) -> bytes:
        noise = digest("probes", round.to_bytes(4, "big"), bytes([seat]))
        return encode([Probe(0, n, (noise[n] % 61) - 30) for n in range(PROBES)])

    def admissions(self) -> tuple[Admission, ...]:
        token = mint_token(self.keys[0], self.run, 1 << 40, bytes(8))
        found = []
        for key in self.keys[1:]:
            signature = key.sign(card_bytes(self.run, key.peer, 1, ()))
            found.append(Admission(Card(key.peer, 1, (), signature), token))
        return tuple(sorted(found, key=lambda admission: admission.card.peer))


def write_history(home: Path, config: Path) -> int:
    """Returns the number of weights."""
    run_file = load_run_file(config)
    node = NodeConfig(threads=2)
    workshop = Workshop.open(run_file.model, run_file.data, node, config.parent)
    with Store.open(home) as store:
        identity = Identity(store.identity())
        data = workshop.data_digest()
        kept = bootstrap.found(store, run_file, identity, workshop.model_digest(), data)
        history = History(store, workshop, kept)
        history.close(history.admissions())
        for _ in range(ROUNDS - 1):
            history.close()
        history.close(leaving=True)
        snapshots = Snapshots(home, store, run_file.rules.snapshot_every)
        keeper = StateKeeper(
            history.replica, snapshots, lambda event: None, lambda to, message: None, _raise
        )
        keeper.start()
        keeper.take_snapshot()
        keeper.close(60.0)
    return sum(p.numel() for p in workshop.model.module.parameters())


def _raise(error: BaseException) -> None:
    raise error


def main() -> None:
    folder = Path(tempfile.mkdtemp(prefix="newcomer-"))
    config = write_run(folder, probes=PROBES, window_s=2.0)
    text = config.read_text()
    config.write_text(
        text.replace("layers = 1\nwidth = 8\nheads = 1", "layers = 5\nwidth = 128\nheads = 4")
    )
    swarm = Swarm(folder / "swarm", config, ["--threads", "2"])
    try:
        weights = write_history(folder / "swarm" / "p1", config)
        swarm.found()
        assert swarm.wait(swarm.invite_file.exists, 120), swarm.last_words(swarm.peers[0])
        assert swarm.wait(lambda: swarm.rounds().get("p1", 0) > ROUNDS + 2, 120)
        started = time.monotonic()
        newcomer = swarm.join()
        seconds = first_contribution(swarm, folder / "swarm" / "p1") - started
        assert swarm.wait(lambda: swarm.common_digests(["p1", "p2"]) is not None, 60, every_s=0.05)
        round, digests = swarm.common_digests(["p1", "p2"]) or (0, {})
        equal = len(set(digests.values())) == 1
        assert newcomer.up
        swarm.stop()
    finally:
        for peer in swarm.peers:
            if peer.up:
                peer.process.kill()
            peer.process.wait()
        shutil.rmtree(folder, ignore_errors=True)
    numbers = {
        "rounds_replayed": ROUNDS,
        "members": MEMBERS,
        "probes_each": PROBES,
        "weights": weights,
        "seconds": seconds,
        "seconds_max": MOST_S,
        "digest_round": round,
        "digests_equal": equal,
    }
    report("newcomer", seconds <= MOST_S and equal, numbers)


def first_contribution(swarm: Swarm, home: Path) -> float:
    """When an entry of two contributions is on the founder's disk."""
    disk = offline.ReadOnlyStore(home)
    from protocol.restore import entry_at

    try:
        round = ROUNDS
        while True:
            entry = entry_at(disk, round)
            if entry is None:
                assert all(peer.up for peer in swarm.peers), swarm.last_words(swarm.peers[-1])
                time.sleep(0.02)
            elif round > ROUNDS and len(entry.body.lines) == 2:
                return time.monotonic()
            else:
                round += 1
    finally:
        disk.close()


if __name__ == "__main__":
    main()
