"""Envelopes: who may send one, what it must bear, and what comes of it (P6)."""

from collections.abc import Sequence
from dataclasses import replace

import pytest

from node.sim.world import StubKeys
from protocol.codec import FILLER_BYTES_MAX, RELAYED_BYTES_MAX, decode, encode
from protocol.effects import Answer, Connect, EchoBack, Send, TryDial
from protocol.events import Ask, Dialled, Tick
from protocol.ids import Millis, PeerId
from protocol.messages import (
    Ack,
    DialBack,
    DialledBack,
    Echo,
    Echoed,
    Head,
    Hello,
    Message,
    Nack,
    Ping,
    PingRequest,
    Relay,
    Unrelayed,
    View,
    Way,
    Why,
)
from protocol.relaying import RelayLimits, relay_bytes
from tests.machine.making import RUN, Door, card, ids

P = ids(6)
ME, ORIGIN, HIDDEN, OTHER, FOURTH, STRANGER = P
MEMBERS = P[:5]
HEAD = Head(0, 0, bytes(8))


def sealed(
    message: Message | bytes,
    origin: PeerId = ORIGIN,
    target: PeerId = ME,
    epoch: int = 1,
    count: int = 1,
) -> Relay:
    frame = message if isinstance(message, bytes) else encode(message)
    signed = relay_bytes(RUN, origin, target, epoch, count, frame)
    return Relay(origin, target, epoch, count, frame, StubKeys(origin).sign(signed))


def door(hidden: Sequence[PeerId] = (), limits: RelayLimits | None = None) -> Door:
    """Knows that these cannot be dialled."""
    made = Door(ME, MEMBERS, limits=limits)
    made.hear(OTHER, View((), tuple(card(peer, 2, ()) for peer in hidden), wants_reply=False))
    assert not made.faults()
    return made


def routed(door: Door, to: PeerId) -> tuple[PeerId, Message]:
    """Where a message to `to` goes first, and as what."""
    ((hop, frame),) = door.peer.route(to, encode(Nack(1)))
    return PeerId(hop), decode(frame)


# As a target


def test_a_relayed_ping_is_answered_through_its_relay() -> None:
    me = door(hidden=[ORIGIN])
    me.hear(OTHER, sealed(Ping(5, HEAD, ())))
    ((to, ack),) = me.sent(Ack)
    assert (to, ack.sequence) == ((ORIGIN,), 5)
    assert me.peer.relay_of(ORIGIN) == OTHER
    hop, envelope = routed(me, ORIGIN)
    assert hop == OTHER
    assert isinstance(envelope, Relay)
    assert decode(envelope.frame) == Nack(1)
    assert (envelope.origin, envelope.target, envelope.epoch) == (ME, ORIGIN, 1)


@pytest.mark.parametrize(
    "change",
    [
        {"frame": encode(Nack(2))},
        {"origin": FOURTH},
        {"epoch": 2},
        {"count": 2},
        {"signature": bytes(64)},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_the_origin_did_not_sign_is_its_relay_s_fault(change: dict[str, object]) -> None:
    """P6: whoever brings it is to blame, and nothing comes of it."""
    me = door()
    me.hear(OTHER, replace(sealed(Ping(5, HEAD, ())), **change))  # type: ignore[arg-type]
    assert me.faults() == ["a relayed frame that its origin did not sign"]
    assert me.peer.faults == {OTHER: 1}
    assert not me.sent(Ack)


def test_an_envelope_for_another_target_cannot_be_turned_to_us() -> None:
    me = door()
    other = sealed(Ping(5, HEAD, ()), target=FOURTH)
    me.hear(OTHER, replace(other, target=ME))
    assert me.peer.faults == {OTHER: 1}


def test_a_liar_relays_nothing_of_ours() -> None:
    me = door(hidden=[ORIGIN, HIDDEN])
    anchors = {me.peer.relay_of(HIDDEN)}
    me.hear(OTHER, replace(sealed(Nack(1)), signature=bytes(64)))
    me.hear(FOURTH, replace(sealed(Nack(1)), signature=bytes(64)))
    assert anchors <= {OTHER, FOURTH}
    assert me.peer.relay_of(HIDDEN) is None


def test_the_origin_is_to_blame_for_what_is_inside() -> None:
    me = door()
    me.hear(OTHER, sealed(b"\x01\xff\x90"))
    me.hear(OTHER, sealed(Hello(card(ORIGIN), None), count=2))
    me.hear(OTHER, sealed(sealed(Nack(1)), count=3))
    me.hear(OTHER, sealed(Unrelayed(HIDDEN, Why.NO_WAY), count=4))
    assert me.peer.faults == {ORIGIN: 4}


def test_an_envelope_counts_once() -> None:
    """Whatever the order, however often; a new start of the origin has numbers of its own."""
    me = door()
    for epoch, count, counts in (
        (1, 1, True),
        (1, 1, False),
        (1, 5, True),
        (1, 3, True),
        (1, 3, False),
        (1, 5, False),
        (1, 5_000, True),
        (1, 4_999, True),
        (1, 5_000 - 1_023, True),
        (1, 5_000 - 1_024, False),
        (2, 1, True),
        (2, 1, False),
        (1, 9_999, False),
        (2**64 - 1, 2**64 - 1, True),
        (2**64 - 1, 0, False),
    ):
        me.hear(OTHER, sealed(Ping(5, HEAD, ()), epoch=epoch, count=count))
        assert bool(me.sent(Ack)) is counts, (epoch, count)
    assert me.peer.relay_counts.repeated == 7
    assert not me.peer.faults


def test_a_stranger_s_envelope_is_not_opened() -> None:
    me = door()
    me.hear(OTHER, sealed(Ping(5, HEAD, ()), origin=STRANGER))
    me.hear(STRANGER, sealed(Ping(5, HEAD, ())))
    assert not me.sent(Ack)


# As a relay


def relayed(door: Door) -> list[tuple[tuple[bytes, ...], Relay]]:
    return door.sent(Relay)


def test_a_relay_passes_on_what_it_was_given() -> None:
    me = door(hidden=[HIDDEN])
    envelope = sealed(Nack(1), target=HIDDEN)
    me.hear(ORIGIN, envelope)
    assert not relayed(me)
    assert me.sent(Unrelayed) == [((ORIGIN,), Unrelayed(HIDDEN, Why.NO_WAY))]
    me.hear(HIDDEN, Nack(1))
    me.hear(ORIGIN, envelope)
    assert relayed(me) == [((HIDDEN,), envelope)]
    ((hop, frame),) = me.peer.route(HIDDEN, encode(envelope))
    assert (hop, decode(frame)) == (HIDDEN, envelope), "an envelope is not put into another"
    assert me.peer.relay_counts.relayed == 1


def test_what_is_not_relayed() -> None:
    me = door()
    me.hear(OTHER, sealed(Nack(1), target=HIDDEN))
    assert me.faults() == ["relays have one hop"]
    me.hear(ORIGIN, replace(sealed(Nack(1), target=HIDDEN), signature=bytes(64)))
    assert me.faults() == ["a relayed frame that its origin did not sign"]
    for message in (sealed(Nack(1)), Hello(card(ORIGIN), None), Unrelayed(HIDDEN, Why.NO_WAY)):
        me.hear(ORIGIN, sealed(message, target=HIDDEN))
        assert me.faults() == ["this kind of message is not relayed"]
    me.hear(ORIGIN, sealed(Nack(1), target=STRANGER))
    assert me.sent(Unrelayed) == [((ORIGIN,), Unrelayed(STRANGER, Why.NO_MEMBER))]
    me.hear(STRANGER, sealed(Nack(1), origin=STRANGER, target=HIDDEN))
    assert not me.of(Send)
    assert me.peer.relay_counts.relayed == 0


def test_the_cap_and_each_source_s_share() -> None:
    """P8: 10,000 bytes a second, at most two seconds' worth at once; one source has a quarter of
    it.
    """
    me = door(limits=RelayLimits(bytes_per_s=10_000))
    count = 0

    def carried(origin: PeerId) -> int:
        nonlocal count
        before = me.peer.relay_counts.relayed_bytes
        for _ in range(40):
            count += 1
            frame = encode(Echo(1, 0, bytes(840)))
            me.hear(origin, sealed(frame, origin, HIDDEN, count=count))
        return me.peer.relay_counts.relayed_bytes - before

    me.hear(HIDDEN, Nack(1))
    one = carried(ORIGIN)
    assert 4_000 < one <= 5_000
    assert carried(ORIGIN) == 0
    assert me.sent(Unrelayed) == [], "that there is no room is said now and then only"
    everybody = one + sum(carried(peer) for peer in (OTHER, FOURTH))
    assert 12_000 < everybody <= 15_000
    me.now += 1_000
    assert 1_500 < carried(ORIGIN) <= 2_500 + 1_100  # and what was left of the burst
    assert me.peer.relay_counts.refused[Why.OVER_CAP] > 60


def test_a_peer_that_relays_nothing() -> None:
    me = door(limits=RelayLimits(bytes_per_s=0))
    me.hear(HIDDEN, Nack(1))
    me.hear(ORIGIN, sealed(Nack(1), target=HIDDEN))
    assert me.sent(Unrelayed) == [((ORIGIN,), Unrelayed(HIDDEN, Why.OVER_CAP))]


# As a sender


def test_the_next_anchor_after_one_that_has_no_way() -> None:
    me = door(hidden=[HIDDEN])
    seen = []
    for _ in range(3):
        relay = me.peer.relay_of(HIDDEN)
        assert relay is not None
        seen.append(relay)
        me.hear(relay, Unrelayed(HIDDEN, Why.NO_WAY))
    assert sorted(seen) == sorted({ORIGIN, OTHER, FOURTH})
    assert me.peer.relay_of(HIDDEN) in seen, "rather one that failed than none"
    me.hear(HIDDEN, Nack(1))
    assert me.peer.relay_of(HIDDEN) is None, "it has a connection to us"
    me.now += 60_000
    assert me.peer.handle(Tick(), Millis(me.now)) is not None
    assert me.peer.relay_of(HIDDEN) is not None, "and may have lost it"


def test_who_has_no_addresses_keeps_connections_to_its_anchors() -> None:
    me = door()
    assert me.peer.relay_of(HIDDEN) is None
    hidden = Door(HIDDEN, MEMBERS, addresses=())
    pinged = {to for targets, _ in hidden.sent(Ping) for to in targets}
    assert pinged >= {ME, ORIGIN, OTHER, FOURTH}
    for peer in (ME, ORIGIN, OTHER, FOURTH):
        hidden.hear(peer, Nack(1))
    hidden.now += 10_000
    hidden.effects = hidden.peer.handle(Tick(), Millis(hidden.now))
    assert len({to for targets, _ in hidden.sent(Ping) for to in targets}) in (3, 4)


def test_who_brings_an_answer_relays_until_the_direct_way_works() -> None:
    me = door()
    me.now = 20_000
    for _ in range(40):
        me.now += 100
        me.effects = me.peer.handle(Tick(), Millis(me.now))
        if me.sent(PingRequest):
            break
    ((_, request), *_) = me.sent(PingRequest)
    target = request.target
    helper = next(peer for peer in MEMBERS if peer not in (ME, target))
    assert me.peer.relay_of(target) is None
    me.hear(helper, Ack(request.sequence, HEAD, ()))
    assert me.peer.relay_of(target) == helper
    me.now += 1_000
    me.effects = me.peer.handle(Tick(), Millis(me.now))
    (again,) = (message for to, message in me.sent(Ping) if to == (target,))
    hops = [hop for hop, _ in me.peer.route(target, encode(again))]
    assert sorted(hops) == sorted([target, helper]), (
        "both ways, to see whether the direct one works"
    )
    assert [hop for hop, _ in me.peer.route(target, encode(again))] == [helper]
    me.hear(target, Nack(1))
    assert me.peer.relay_of(target) is None


def test_what_is_too_large_for_an_envelope_is_left_out() -> None:
    me = door(hidden=[HIDDEN])
    assert len(me.peer.route(HIDDEN, bytes(RELAYED_BYTES_MAX))) == 1
    assert me.peer.route(HIDDEN, bytes(RELAYED_BYTES_MAX + 1)) == ()
    assert me.peer.relay_counts.too_large == 1
    assert me.peer.reply_bytes_max(HIDDEN) < me.peer.reply_bytes_max(OTHER)


# Check-ups


def test_only_the_addresses_of_the_asker_s_card_are_dialled() -> None:
    me = door(hidden=[HIDDEN])
    me.hear(OTHER, DialBack(7))
    (task,) = me.of(TryDial)
    assert (task.to, task.sequence, task.card) == (OTHER, 7, card(OTHER))
    ways = (Way("tcp://a:1", 3),)
    effects = me.peer.handle(Dialled(OTHER, 7, ways), Millis(me.now))
    assert effects == [Send((OTHER,), DialledBack(7, ways))]
    me.hear(HIDDEN, DialBack(8))
    assert me.sent(DialledBack) == [((HIDDEN,), DialledBack(8, ()))]
    assert not me.of(TryDial)
    me.hear(STRANGER, DialBack(9))
    assert not me.of(TryDial)
    assert not me.of(Connect)


def test_dialling_is_rationed() -> None:
    """By asker, and in all."""
    me = door()
    tries = 0
    for _ in range(50):
        me.hear(OTHER, DialBack(7))
        tries += len(me.of(TryDial))
    assert tries == 3
    for peer in (ORIGIN, HIDDEN, FOURTH):
        for _ in range(50):
            me.hear(peer, DialBack(7))
            tries += len(me.of(TryDial))
    assert tries == 8


def test_echoes_are_rationed() -> None:
    me = door()
    granted = 0
    for sequence in range(400):
        me.hear(OTHER, Echo(sequence, FILLER_BYTES_MAX, b""))
        granted += sum(task.want for task in me.of(EchoBack))
    assert 8 << 20 <= granted <= 12 << 20
    me.hear(FOURTH, Echo(1, 10, b"abc"))
    assert me.of(EchoBack) == [EchoBack(FOURTH, 1, 10)]
    me.hear(STRANGER, Echo(1, 10, b"abc"))
    assert not me.of(EchoBack)


def test_only_answers_to_our_own_questions_are_handed_over() -> None:
    me = door()
    me.peer.handle(Ask(OTHER, Echo(9, 4, b"")), Millis(me.now))
    for source, sequence in ((FOURTH, 9), (OTHER, 8)):
        me.hear(source, Echoed(sequence, 1, bytes(4)))
        assert not me.of(Answer)
    me.hear(OTHER, Echoed(9, 1, bytes(4)))
    assert me.of(Answer) == [Answer(OTHER, Echoed(9, 1, bytes(4)))]
    me.hear(OTHER, Echoed(9, 1, bytes(4)))
    assert not me.of(Answer)
