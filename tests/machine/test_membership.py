"""Who is up: SWIM with Lifeguard, one peer at a time, on a clock that the test holds (P4, P8)."""

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings

from protocol.codec import RUMORS_MAX
from protocol.dice import Dice
from protocol.ids import Millis, PeerId
from protocol.membership import Membership
from protocol.messages import Ack, Head, Health, Message, Nack, Ping, PingRequest, Rumor
from protocol.roster import Roster
from protocol.rules import Rules
from tests.machine.making import ids

RULES = Rules()  # a ping a second, half a second to answer
HEAD = Head(0, 0, bytes(8))
P = ids(8)
ME, ONE, TWO, THREE = P[:4]
ALIVE, SUSPECT, DEAD, LEFT = Health


class View:
    """A membership and its clock."""

    def __init__(self, members: int = 4) -> None:
        self.now = 0
        roster = Roster(P[:members])
        self.view = Membership(ME, RULES, Dice(b"seed"), roster, lambda: HEAD, Millis(0))

    def at(self, ms: int) -> list[tuple[PeerId, Message]]:
        self.now = ms
        return list(self.view.tick(Millis(ms)))

    def hear(self, sender: PeerId, *rumors: Rumor) -> None:
        list(self.view.on_ping(sender, Ping(1, HEAD, rumors), Millis(self.now)))

    def until(self, ms: int, *, deaf: bool = True) -> list[tuple[PeerId, Message]]:
        """Tick whenever it is wanted; nobody answers."""
        sent = []
        while self.view.wake_ms <= ms:
            wake = self.view.wake_ms
            sent += self.at(wake)
            assert self.view.wake_ms > wake, "time moves on"
        self.now = ms
        return sent


@pytest.mark.parametrize(
    ("held", "heard", "then"),
    [
        # Nothing but "alive" at incarnation 0 is held of somebody who was never spoken of.
        (None, (ALIVE, 0), (ALIVE, 0)),
        (None, (SUSPECT, 0), (SUSPECT, 0)),
        (None, (DEAD, 0), (DEAD, 0)),
        (None, (LEFT, 0), (LEFT, 0)),
        (None, (ALIVE, 1), (ALIVE, 1)),
        # At one incarnation, the worse wins.
        ((SUSPECT, 1), (ALIVE, 1), (SUSPECT, 1)),
        ((SUSPECT, 1), (SUSPECT, 1), (SUSPECT, 1)),
        ((SUSPECT, 1), (DEAD, 1), (DEAD, 1)),
        ((DEAD, 1), (ALIVE, 1), (DEAD, 1)),
        ((DEAD, 1), (SUSPECT, 1), (DEAD, 1)),
        ((DEAD, 1), (LEFT, 1), (LEFT, 1)),
        ((LEFT, 1), (DEAD, 1), (LEFT, 1)),
        # A higher incarnation wins, whatever it says: only the peer itself makes one.
        ((SUSPECT, 1), (ALIVE, 2), (ALIVE, 2)),
        ((DEAD, 1), (ALIVE, 2), (ALIVE, 2)),
        ((DEAD, 1), (SUSPECT, 2), (SUSPECT, 2)),
        ((LEFT, 1), (ALIVE, 2), (ALIVE, 2)),
        # A lower one is old news.
        ((ALIVE, 2), (SUSPECT, 1), (ALIVE, 2)),
        ((ALIVE, 2), (DEAD, 1), (ALIVE, 2)),
        ((SUSPECT, 2), (LEFT, 1), (SUSPECT, 2)),
    ],
)
def test_what_is_believed(
    held: tuple[Health, int] | None, heard: tuple[Health, int], then: tuple[Health, int]
) -> None:
    view = View()
    if held is not None:
        view.hear(TWO, Rumor(ONE, *held))
    view.hear(TWO, Rumor(ONE, *heard))
    found = {rumor.peer: rumor for rumor in view.view.view()}.get(ONE, Rumor(ONE, ALIVE, 0))
    assert (found.health, found.incarnation) == then
    assert (ONE in view.view.down()) == (then[0] is not ALIVE)
    assert (ONE in view.view.others_up()) == (then[0] < DEAD)


rumors = st.lists(
    st.builds(Rumor, st.sampled_from(P[:4]), st.sampled_from(Health), st.integers(0, 3)),
    max_size=12,
)


@given(rumors, st.randoms(use_true_random=False))
@settings(max_examples=100)
def test_the_order_of_rumors_does_not_matter(heard: list[Rumor], chance: object) -> None:
    """Of others, at least; what is said of ourselves we answer, each time anew."""
    heard = [rumor for rumor in heard if rumor.peer != ME]
    one, other = View(), View()
    one.hear(TWO, *heard)
    shuffled = list(heard)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    other.hear(TWO, *shuffled)
    assert one.view.view_hash() == other.view.view_hash()


def test_a_silent_peer_is_asked_again_through_others_then_suspected_then_dead() -> None:
    """1. A ping. 2. After half a second, requests to others. 3. Suspicion. 4. Death."""
    view = View()
    sent = view.until(2_000)
    (target, first) = sent[0]
    assert isinstance(first, Ping)
    requests = [(to, said) for to, said in sent[1:] if isinstance(said, PingRequest)]
    assert {said.target for _, said in requests[:2]} == {target}
    assert target not in [to for to, said in requests if said.target == target]
    view.until(4_000)
    assert view.view.health(target) is SUSPECT
    least = RULES.suspicion_intervals * RULES.ping_interval_ms
    view.until(least)
    assert view.view.health(target) is SUSPECT, "an unconfirmed suspicion lasts longer"
    view.until(4 * least + 10_000)
    assert view.view.health(target) is DEAD


def test_an_answer_ends_the_probe() -> None:
    view = View()
    ((target, ping),) = view.until(view.view.wake_ms)
    assert isinstance(ping, Ping)
    list(view.view.on_ack(target, Ack(ping.sequence, HEAD, ()), Millis(view.now)))
    view.until(view.now + RULES.ping_interval_ms)
    assert view.view.health(target) is ALIVE


def test_any_message_of_the_target_ends_the_probe() -> None:
    view = View()
    ((target, _),) = view.until(view.view.wake_ms)
    view.view.heard(target, Millis(view.now))
    sent = view.until(view.now + RULES.ping_timeout_ms)
    assert not [said for _, said in sent if isinstance(said, PingRequest)]


def test_who_was_just_heard_is_not_asked() -> None:
    """P8: a busy swarm needs no pings."""
    view = View()
    sent = []
    for ms in range(0, 20_000, 100):
        for peer in (ONE, TWO, THREE):
            view.view.heard(peer, Millis(ms))
        sent += view.at(ms)
    assert sent == []


def test_a_suspicion_of_us_is_denied_with_a_new_incarnation() -> None:
    view = View()
    view.hear(ONE, Rumor(ME, SUSPECT, 0))
    assert view.view.incarnation == 1
    assert Rumor(ME, ALIVE, 1) in view.view.rumors_for(ONE)
    view.hear(ONE, Rumor(ME, DEAD, 7))
    assert view.view.incarnation == 8
    view.hear(ONE, Rumor(ME, SUSPECT, 3))
    assert view.view.incarnation == 8, "old news"


def test_what_nobody_could_deny_is_not_believed() -> None:
    """P6: a liar that tells of deaths at the last incarnation is not heard; one before, it is, and
    the denial at the last one stands for good.
    """
    view, last = View(), (1 << 32) - 1
    for health in (SUSPECT, DEAD, LEFT):
        view.hear(TWO, Rumor(ONE, health, last))
        assert view.view.health(ONE) is ALIVE
    view.hear(TWO, Rumor(ONE, DEAD, last - 1))
    assert view.view.health(ONE) is DEAD
    view.hear(ONE, Rumor(ONE, ALIVE, last))
    view.hear(TWO, Rumor(ONE, DEAD, last))
    assert view.view.health(ONE) is ALIVE
    view.hear(TWO, Rumor(ME, DEAD, last))
    assert view.view.incarnation == 0
    view.hear(TWO, Rumor(ME, DEAD, last - 1))
    assert view.view.incarnation == last


def test_who_was_just_heard_is_not_missing() -> None:
    """P4, P6: whom others call dead, and who spoke to us a moment ago, is not to be dropped."""
    view = View()
    view.at(1_000)
    view.view.heard(ONE, Millis(1_000))
    view.hear(TWO, Rumor(ONE, DEAD, 0), Rumor(THREE, DEAD, 0))
    assert view.view.dead() == sorted([ONE, THREE])
    assert view.view.missing(Millis(1_000)) == [THREE]
    patience = RULES.suspicion_intervals * RULES.ping_interval_ms // 2
    assert view.view.missing(Millis(1_000 + patience)) == sorted([ONE, THREE])


def test_a_denial_lifts_the_suspicion() -> None:
    view = View()
    view.hear(TWO, Rumor(ONE, SUSPECT, 0))
    view.hear(ONE, Rumor(ONE, ALIVE, 1))
    view.until(400_000)
    assert view.view.incarnation == 0
    assert ONE not in view.view.down() or view.view.health(ONE) is not ALIVE


@pytest.mark.parametrize("accusers", [1, 2, 3])
def test_a_suspicion_shortens_as_others_confirm_it(accusers: int) -> None:
    """Lifeguard: three times as long alone as with three accusers."""
    view = View(6)
    for peer in P[2 : 2 + accusers]:
        view.hear(peer, Rumor(ONE, SUSPECT, 0))
    least = RULES.suspicion_intervals * RULES.ping_interval_ms
    dies = view.view._dies_at(ONE)
    assert dies == pytest.approx({1: 3 * least, 2: 1.738 * least, 3: least}[accusers], rel=0.01)


def test_an_accuser_counts_once() -> None:
    view = View(6)
    for _ in range(5):
        view.hear(TWO, Rumor(ONE, SUSPECT, 0))
    assert view.view._dies_at(ONE) == 3 * RULES.suspicion_intervals * RULES.ping_interval_ms


def test_who_hears_nothing_trusts_itself_less_and_waits_longer() -> None:
    """Lifeguard: when even relays are silent, the trouble may be here; pings slow down."""
    view = View(6)
    pings = [(view.now, said) for _, said in view.until(60_000) if isinstance(said, Ping)]
    assert view.view._awareness > 4
    assert len(pings) < 30
    for sequence in range(20):
        for peer in P[1:6]:
            view.view.heard(peer, Millis(60_000 + sequence))
    before = view.view._awareness
    view.until(120_000)
    assert view.view._awareness >= before - 1


@pytest.mark.parametrize(("nacks", "trust"), [(True, 0), (False, 1)])
def test_nacks_keep_the_trust(nacks: bool, trust: int) -> None:
    """Relays that say "not yet" are up, so it is the target that is silent; else it may be us."""
    view = View()
    while view.view.health(ONE) is ALIVE:
        for peer in (TWO, THREE):
            view.view.heard(peer, Millis(view.now))
        for _, said in view.at(view.view.wake_ms):
            if isinstance(said, PingRequest) and nacks:
                view.view.on_nack(Nack(said.sequence))
    assert view.view._awareness == trust


def test_a_relay_says_when_it_has_not_heard() -> None:
    view = View()
    asked = list(view.view.on_ping_request(ONE, PingRequest(9, TWO, ()), Millis(0)))
    ((to, ping),) = asked
    assert to == TWO
    assert isinstance(ping, Ping)
    sent = view.until(RULES.ping_timeout_ms)
    assert (ONE, Nack(9)) in sent
    assert not list(view.view.on_ack(TWO, Ack(ping.sequence, HEAD, ()), Millis(600)))


def test_one_asker_has_a_few_relays() -> None:
    view = View()
    sent = [
        said
        for number in range(50)
        for said in view.view.on_ping_request(ONE, PingRequest(number, TWO, ()), Millis(0))
    ]
    assert len(sent) == 4
    assert list(view.view.on_ping_request(THREE, PingRequest(1, TWO, ()), Millis(0)))


@pytest.mark.parametrize("target", [ME, PeerId(bytes(32))])
def test_nobody_is_asked_about_us_or_about_strangers(target: PeerId) -> None:
    view = View()
    assert not list(view.view.on_ping_request(ONE, PingRequest(1, target, ()), Millis(0)))


def test_a_rumor_is_told_a_few_times_only() -> None:
    """P8: about three times log10 of the members, then it rests."""
    view = View()
    view.hear(TWO, Rumor(ONE, DEAD, 0))
    told = sum(bool(view.view.rumors_for(THREE)) for _ in range(50))
    assert told == 3, "and once with the answer to whom it came from"
    view.hear(TWO, Rumor(ONE, DEAD, 0))
    assert view.view.rumors_for(THREE) == (), "old news does not start again"


def test_a_ping_carries_a_bounded_number_of_rumors() -> None:
    many = [PeerId(number.to_bytes(32, "big")) for number in range(100)]
    view = Membership(ME, RULES, Dice(b"s"), Roster([ME, *many]), lambda: HEAD, Millis(0))
    for start in range(0, 100, 16):
        rumors = tuple(Rumor(peer, SUSPECT, 0) for peer in many[start : start + 16])
        list(view.on_ping(many[0], Ping(1, HEAD, rumors), Millis(0)))
    seen: set[PeerId] = set()
    for _ in range(200):
        told = view.rumors_for(many[50])
        assert len(told) <= RUMORS_MAX
        seen |= {rumor.peer for rumor in told}
    assert seen == set(many), "and all are told in the end"


def test_a_suspect_always_hears_of_it() -> None:
    view = View()
    view.hear(TWO, Rumor(ONE, SUSPECT, 0))
    for _ in range(50):
        view.view.rumors_for(THREE)
    assert view.view.rumors_for(ONE) == (Rumor(ONE, SUSPECT, 0),)


def test_rumors_about_strangers_are_not_kept() -> None:
    view = View()
    view.hear(ONE, *(Rumor(PeerId(number.to_bytes(32, "big")), DEAD, 1) for number in range(16)))
    assert view.view.view() == ()


def test_a_departed_member_leaves_no_trace_but_is_called_again() -> None:
    """P5: halves that dropped each other meet again this way; also after a restart."""
    view = View(4)
    view.hear(TWO, Rumor(ONE, DEAD, 3))
    view.view.set_roster(Roster([ME, TWO, THREE], (ONE,)))
    assert view.view.view() == ()
    assert view.view.former() == [ONE]
    view.view.set_roster(Roster([ME, ONE, TWO, THREE]))
    assert view.view.former() == []
    assert view.view.health(ONE) is ALIVE
    again = Membership(ME, RULES, Dice(b"s"), Roster([ME], (ONE,)), lambda: HEAD, Millis(0))
    assert again.former() == [ONE]


def test_who_is_no_member_believes_what_it_hears_itself() -> None:
    """P4: nobody denies to it that a member is dead; a message of that member does."""
    view = View(4)
    view.hear(TWO, Rumor(ONE, DEAD, 3))
    view.view.heard(ONE, Millis(1))
    assert view.view.health(ONE) is DEAD, "a member waits for the others to hear of it"
    view.view.set_roster(Roster([ONE, TWO, THREE], (ME,)))
    assert ONE in view.view.down()
    view.view.heard(ONE, Millis(2))
    assert ONE not in view.view.down()
    assert ONE in view.view.likely_up()


def test_the_last_one_left_waits_for_nobody() -> None:
    """P4."""
    view = Membership(ME, RULES, Dice(b"s"), Roster([ME]), lambda: HEAD, Millis(0))
    now = 0
    for _ in range(10):
        now = max(now + 1, view.wake_ms)
        assert list(view.tick(Millis(now))) == []
    assert view.alive() == [ME]
