"""Which way a message takes, and when to dial: pure, so without sockets."""

import pytest

from node.addresses import parse_remote
from node.transport_links import ROUTES_MAX, Dial, Link, Path
from node.transport_types import Bucket, TransportLimits

LIMITS = TransportLimits(suspect_ms=5_000, dial_ms=1_000, dial_ms_max=6_000)
SMALL, LARGE = b"\x01" * 32, b"\x02" * 32


def a_link(*addresses: str, peer: bytes = LARGE, as_guest: bool = False) -> Link:
    found = tuple(address for text in addresses if (address := parse_remote(text)))
    return Link(peer, b"k" * 32, found, as_guest, Bucket(1.0, 0))


def with_dial(link: Link, up: bool) -> Link:
    address = parse_remote("tcp://127.0.0.1:1")
    assert address is not None
    link.dial = Dial(address, None, None, deadline_ms=0, used_ms=0, up=up)
    return link


@pytest.mark.parametrize(
    ("has_route", "dial", "me", "as_guest", "path"),
    [
        (False, "none", SMALL, False, Path.NONE),
        (False, "down", SMALL, False, Path.NONE),
        (False, "up", LARGE, False, Path.DIAL),
        (True, "none", SMALL, False, Path.ROUTE),
        (True, "down", SMALL, False, Path.ROUTE),
        (True, "up", SMALL, False, Path.DIAL),
        (True, "up", LARGE, False, Path.ROUTE),
        (True, "up", LARGE, True, Path.DIAL),
    ],
)
def test_the_path(has_route: bool, dial: str, me: bytes, as_guest: bool, path: Path) -> None:
    link = a_link(peer=LARGE if me == SMALL else SMALL, as_guest=as_guest)
    if dial != "none":
        with_dial(link, up=dial == "up")
    if has_route:
        link.heard_on_route(b"r")
    assert link.path(me, 0, LIMITS) is path


def test_two_sides_prefer_the_same_connection() -> None:
    ours, theirs = with_dial(a_link(peer=LARGE), True), with_dial(a_link(peer=SMALL), True)
    ours.heard_on_route(b"r")
    theirs.heard_on_route(b"r")
    assert {ours.path(SMALL, 0, LIMITS), theirs.path(LARGE, 0, LIMITS)} == {Path.DIAL, Path.ROUTE}


def test_a_silent_route_no_longer_keeps_us_from_dialling() -> None:
    """1. we send over the route, 2. nothing comes back for five seconds, 3. we dial, 4. it talks
    again.
    """
    link = a_link("tcp://127.0.0.1:1", peer=SMALL)
    link.heard_on_route(b"r")
    link.unanswered_ms = 100
    assert not link.wants_dial(5_100, LIMITS)
    assert link.wants_dial(5_101, LIMITS)
    with_dial(link, up=True)
    assert link.path(LARGE, 5_101, LIMITS) is Path.DIAL
    link.heard_on_route(b"r")
    assert link.path(LARGE, 5_102, LIMITS) is Path.ROUTE


def test_without_an_address_or_a_message_nobody_dials() -> None:
    assert not a_link().wants_dial(0, LIMITS)
    link = a_link("tcp://127.0.0.1:1")
    assert not link.wants_dial(0, LIMITS)
    assert link.queue(0, b"x", LIMITS)
    assert link.wants_dial(0, LIMITS)
    link.not_before_ms = 10
    assert not link.wants_dial(9, LIMITS)
    assert link.wants_dial(10, LIMITS)


def test_addresses_take_turns_with_growing_patience() -> None:
    link = a_link("tcp://127.0.0.1:1", "tcp://127.0.0.1:2")
    tried = []
    for attempt in range(8):
        link.attempts = attempt
        tried.append((link.next_address().port, link.patience_ms(LIMITS)))
    assert tried == [
        (1, 1_000),
        (2, 1_000),
        (1, 2_000),
        (2, 2_000),
        (1, 4_000),
        (2, 4_000),
        (1, 6_000),
        (2, 6_000),
    ]


def test_the_newest_route_is_the_one_first_heard_last_and_old_ones_go() -> None:
    link = a_link()
    for number in range(ROUTES_MAX + 3):
        link.heard_on_route(bytes([number]))
    assert len(link.routes) == ROUTES_MAX
    link.heard_on_route(bytes([ROUTES_MAX]))
    assert link.newest_route() == bytes([ROUTES_MAX + 2])


def test_the_backlog_counts_its_bytes_and_its_age() -> None:
    limits = TransportLimits(backlog_bytes_max=10, backlog_messages_max=3)
    link = a_link()
    assert link.queue(0, b"x" * 6, limits)
    assert not link.queue(0, b"x" * 5, limits)
    assert link.queue(5, b"x" * 4, limits)
    assert link.expire(before_ms=5) == 1
    assert link.backlog_bytes == 4
    assert link.unqueue() == b"x" * 4
    assert link.backlog_bytes == 0


def test_a_bucket_allows_bursts_and_then_its_rate() -> None:
    bucket = Bucket(per_s=2.0, updated_ms=0)
    assert [bucket.take(0) for _ in range(7)] == [True] * 6 + [False]
    assert not bucket.take(400)
    assert bucket.take(500)
    assert not bucket.take(500)
    assert [bucket.take(1_000_000) for _ in range(7)] == [True] * 6 + [False]
