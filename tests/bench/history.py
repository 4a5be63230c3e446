"""A long ledger, made quickly: entries that the real judge accepts, with the digests of real merges
and, where the rules want them, real snapshots.
"""

from collections.abc import Sequence
from pathlib import Path

from node import bootstrap
from node.build import Workshop
from node.config import RunFile
from node.keeper import StateKeeper
from node.methods.parts.probes import Probe, encode
from node.replica import Replica
from node.snapshots import Snapshots
from node.store import Store
from protocol.codec import encode_body
from protocol.core import encode_card
from protocol.entries import (
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
from protocol.identity import Identity
from protocol.ids import Hash, RunId, digest
from protocol.invites import mint_token
from protocol.ledger import Judge, Ledger, Write
from protocol.snapshots import is_taken, named_in

_SNAPSHOT_S = 120.0


class History:
    """`keys`: of the members, the founder's first. The founder's home gets the records.
    `took_ms`: of each round, as the entries say; newcomers go by it when they close one.
    """

    def __init__(
        self,
        home: Path,
        run_file: RunFile,
        root: Path,
        keys: Sequence[Identity],
        took_ms: int = 100,
    ) -> None:
        self.home, self.keys, self._took_ms = home, list(keys), took_ms
        node = run_file.node.model_copy(update={"threads": 2})
        workshop = Workshop.open(run_file.model, run_file.data, node, root)
        self.weights = sum(p.numel() for p in workshop.model.module.parameters())
        self.store = Store.open(home)
        data = workshop.data_digest()
        kept = bootstrap.found(self.store, run_file, keys[0], workshop.model_digest(), data)
        self.run = RunId(kept.run)
        trainer = workshop.trainer(self.run, kept.manifest.method)
        founders = (keys[0].peer,)
        self.replica = Replica(
            trainer.method, trainer.initial_state, self.run, keys[0].peer, founders
        )
        self.rules = kept.manifest.rules.rules()
        self.snapshots = Snapshots(home, self.store, self.rules.snapshot_every)
        self.ledger = Ledger(Judge(self.run, self.rules, keys[0], trainer.method.weigh), founders)

    def admit_all(self, addresses: Sequence[tuple[str, ...]] = ()) -> None:
        """The first round: all others join. `addresses`: of each member, the founder included."""
        token = mint_token(self.keys[0], self.run, 1 << 40, bytes(8))
        places = addresses or [()] * len(self.keys)
        cards = []
        for key, place in zip(self.keys, places, strict=True):
            signature = key.sign(card_bytes(self.run, key.peer, 1, place))
            cards.append(Card(key.peer, 1, place, signature))
        self.store.commit([Write("cards", card.peer, encode_card(card)) for card in cards])
        admissions = [Admission(card, token) for card in cards[1:]]
        self.close(admissions=tuple(sorted(admissions, key=lambda one: one.card.peer)))

    def close(
        self, probes: int = 8, admissions: tuple[Admission, ...] = (), leaving: bool = False
    ) -> None:
        """One more entry, on disk and merged."""
        mark, state = self.ledger.head, self.replica.digest()
        by_id = {key.peer: key for key in self.keys}
        seats = [by_id[peer] for peer in mark.roster.members]
        named = self._root_named_in(mark.round)
        lines = [
            Line(seat, _payload(mark.round, seat, probes), None, None, named)
            for seat in range(len(seats))
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
        body = Body(
            mark.round,
            mark.hash,
            closer,
            self._took_ms,
            state,
            tuple(lines),
            admissions,
            departures,
        )
        raw = encode_body(body)
        seal = seats[closer].sign(seal_bytes(self.run, body.round, body.parent, entry_hash(raw)))
        entry = Entry(body, raw, seal, tuple(signed))
        self.store.commit(self.ledger.extend(entry))
        self.replica.merge(entry, mark.roster.members)
        if is_taken(self.replica.round, self.rules):
            self.take_snapshot()

    def _root_named_in(self, round: int) -> Hash | None:
        taken = named_in(round, self.rules)
        found = [record.root for record in self.snapshots.newest() if record.round == taken]
        return found[0] if taken is not None else None

    def take_snapshot(self) -> None:
        keeper = StateKeeper(
            self.replica,
            self.snapshots,
            lambda event: None,
            lambda to, message: None,
            lambda note: None,
            _raise,
        )
        keeper.take_snapshot()
        keeper.start()
        keeper.close(_SNAPSHOT_S)

    def end(self) -> None:
        self.store.close()


def _payload(round: int, seat: int, probes: int) -> bytes:
    noise = digest("probes", round.to_bytes(4, "big"), bytes([seat]))
    return encode([Probe(0, n, (noise[n % 32] % 61) - 30) for n in range(probes)])


def _raise(error: BaseException) -> None:
    raise error
