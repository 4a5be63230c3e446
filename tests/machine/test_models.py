"""A member's model is asked for, put on its disk, and fetched as a blob."""

from protocol.blobs import chunk_id, pages_of, root_of
from protocol.effects import KeepBlob, ModelFetched, OpenBlob, TakeModel
from protocol.entries import Attachment
from protocol.events import BlobKept, BlobOpened, ModelTaken, ModelWanted, Tick
from protocol.ids import digest
from protocol.messages import (
    BlobOffer,
    BlobRequest,
    Level,
    ModelHeld,
    ModelRequest,
    Piece,
    PieceRequest,
)
from tests.machine.making import Door, card, ids

P = ids(3)
DATA = b"a model" * 8
NAME = chunk_id(DATA)
ROOT = root_of(len(DATA), NAME)
MODEL = Attachment(ROOT, len(DATA))


def test_whoever_is_asked_puts_its_model_on_the_disk_and_says_where() -> None:
    one = Door(P[0], P)
    one.hear(P[1], ModelRequest(7))
    assert one.of(TakeModel) == [TakeModel(P[1], 7)]
    one.on(ModelTaken(P[1], 7, MODEL, 640, 12, 1.5))
    assert one.sent(ModelHeld) == [((P[1],), ModelHeld(7, MODEL, 640, 12, 1.5))]


def test_who_asks_all_the_time_is_not_answered_each_time() -> None:
    """It costs us a write of the whole model."""
    one = Door(P[0], P)
    taken = 0
    for number in range(20):
        one.hear(P[1], ModelRequest(number))
        taken += len(one.of(TakeModel))
    assert taken == 4


def test_strangers_get_no_model() -> None:
    one = Door(P[0], P[:2], known=P[2:])
    one.hear(P[2], ModelRequest(1))
    assert not one.of(TakeModel)


def test_a_model_is_fetched_from_whoever_has_it() -> None:
    one = Door(P[0], P)
    one.on(ModelWanted(P[1], 3, len(DATA)))
    assert one.sent(ModelRequest) == [((P[1],), ModelRequest(3))]
    one.hear(P[1], ModelHeld(3, MODEL, 640, 12, 1.5))
    assert any(P[1] in to for to, _ in one.sent(BlobRequest))
    one.hear(
        P[1], BlobOffer(ROOT, len(DATA), tuple(digest("page", p) for p in pages_of(NAME)), None)
    )
    one.hear(P[1], Piece(ROOT, Level.PAGE, 0, NAME))
    assert one.of(OpenBlob)
    one.on(BlobOpened(ROOT, b"\0"))
    assert one.sent(PieceRequest)
    one.hear(P[1], Piece(ROOT, Level.CHUNK, 0, DATA))
    keep = one.of(KeepBlob)[0]
    one.on(BlobKept(ROOT, True))
    fetched = one.of(ModelFetched)[0]
    assert (fetched.peer, fetched.sequence, fetched.model) == (P[1], 3, MODEL)
    assert (fetched.round, fetched.tokens, fetched.number) == (keep.round, 640, 12)


def test_no_room_is_made_for_what_is_no_model_of_this_run() -> None:
    one = Door(P[0], P)
    one.on(ModelWanted(P[1], 3, len(DATA)))
    one.hear(P[1], ModelHeld(3, Attachment(ROOT, 1 << 40), 640, 12, None))
    assert one.of(ModelFetched)[0].model is None
    assert not one.sent(BlobRequest)


def test_who_has_none_or_does_not_answer_is_given_up() -> None:
    one = Door(P[0], P)
    one.on(ModelWanted(P[1], 1, len(DATA)))
    one.hear(P[1], ModelHeld(1, None, 0, 0, None))
    assert "no model yet" in one.of(ModelFetched)[0].reason
    one.on(ModelWanted(P[2], 2, len(DATA)))
    one.now = 4_000
    one.on(Tick())
    assert (P[2],) in [to for to, _ in one.sent(ModelRequest)], "asked again"
    one.now = 32_000
    one.on(Tick())
    assert "does not answer" in one.of(ModelFetched)[0].reason


def test_our_own_comes_the_same_way() -> None:
    one = Door(P[0], P)
    one.on(ModelWanted(P[0], 5, len(DATA)))
    assert one.of(TakeModel) == [TakeModel(P[0], 5)]
    one.on(ModelTaken(P[0], 5, MODEL, 1, 2, None))
    assert one.of(ModelFetched)[0].model == MODEL


def test_two_that_nobody_can_dial_do_not_try() -> None:
    one = Door(P[0], P, addresses=())
    one.peer._core.cards[P[1]] = card(P[1], addresses=())
    one.on(ModelWanted(P[1], 1, len(DATA)))
    assert "dial" in one.of(ModelFetched)[0].reason
