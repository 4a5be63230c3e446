"""The transport over real loopback sockets: who hears what, from whom, over which connection."""

import os
import socket
import threading
from pathlib import Path

import pytest
import zmq
from zmq.utils import z85

from node.addresses import ListenError, PortInUse
from node.curve import curve_public, door_keys, identity_keys, peer_id
from node.transport_zmq import Drop, TransportLimits, ZmqTransport
from tests.shell.transport_net import DOOR, Node, pair, seed, until


def test_a_peer_id_tells_its_curve_key() -> None:
    keys = identity_keys(seed("ada"))
    raw = curve_public(peer_id(seed("ada")))
    assert raw is not None
    assert keys.public == z85.encode(raw)
    assert keys.public == zmq.curve_public(keys.secret), "the secret is the public key's own"
    assert door_keys(DOOR).public == zmq.curve_public(door_keys(DOOR).secret)
    assert repr(keys.secret) not in repr(keys)


@pytest.mark.parametrize(
    "bad",
    [b"", b"\0" * 32, b"\x01" + b"\0" * 31, b"\xff" * 32, b"x" * 31, b"x" * 33],
    ids=["empty", "order 4", "order 1", "spare encoding", "short", "long"],
)
def test_bytes_that_are_no_key_are_dropped_and_counted(bad: bytes) -> None:
    assert curve_public(bad) is None
    with Node("ada") as ada:
        ada.transport.set_peer(bad, ["tcp://127.0.0.1:1"])
        until(lambda: ada.dropped(Drop.BAD_KEY) == 1, "the bad key is counted")


def test_two_peers_talk_and_each_knows_who_spoke() -> None:
    with pair() as (low, high):
        low.says(high, "hello")
        high.hears("hello", low)
        high.says(low, "hello yourself")
        low.hears("hello yourself", high)
        until(lambda: high.transport.counters().total.messages_out == 1, "the send is counted")
        counters = high.transport.counters()
        assert counters.total.bytes_in == counters.peers[low.id].bytes_in == len("hello")
        assert counters.total.bytes_out == counters.peers[low.id].bytes_out == len("hello yourself")
        assert counters.guests.messages_in == 0


def test_messages_keep_their_order_and_arrive_in_batches() -> None:
    with pair() as (low, high):
        for number in range(2_000):
            low.says(high, f"n{number}")
        high.source_of("n1999")
        assert [inbound.data for inbound in high.got] == [b"n%d" % n for n in range(2_000)]
        assert high.batches < 1_000


def test_a_peer_that_no_one_can_dial_is_reached_over_its_own_connection() -> None:
    with Node("ada") as ada, Node("nat", listen=()) as nat:
        assert nat.addresses == ()
        ada.knows(nat)
        nat.knows(ada)
        nat.says(ada, "it is me")
        ada.hears("it is me", nat)
        ada.says(nat, "found you")
        nat.hears("found you", ada)
        assert ada.dials() == 0


def test_one_connection_is_enough() -> None:
    with pair() as (low, high):
        high.says(low, "first")
        low.hears("first", high)
        for turn in range(20):
            low.says(high, f"ping {turn}")
            high.hears(f"ping {turn}", low)
            high.says(low, f"pong {turn}")
            low.hears(f"pong {turn}", high)
        assert (low.dials(), high.dials()) == (0, 1)


def test_two_that_dial_at_once_settle_on_the_smaller_ones_connection() -> None:
    """Nothing may be lost while they do."""
    with pair(TransportLimits(settle_ms=300)) as (low, high):
        for number in range(200):
            low.says(high, f"l{number}")
            high.says(low, f"h{number}")
        until(lambda: len(low.got) == len(high.got) == 200, "all arrive")
        until(lambda: (low.dials(), high.dials()) == (1, 0), "the larger one lets go")
        for number in range(200, 220):
            low.says(high, f"l{number}")
            high.says(low, f"h{number}")
            high.hears(f"l{number}", low)
            low.hears(f"h{number}", high)
        assert sorted(i.data for i in high.got) == sorted(b"l%d" % n for n in range(220))
        assert sorted(i.data for i in low.got) == sorted(b"h%d" % n for n in range(220))
        assert (low.dials(), high.dials()) == (1, 0)


def test_a_route_that_died_is_replaced_by_a_dial() -> None:
    """1. the high one dials, 2. it goes away and comes back on its old port without a word, 3. we
    dial it.
    """
    with Node("ada") as ada:
        bob = Node("bob")
        ada.knows(bob)
        bob.knows(ada)
        bob.says(ada, "before")
        ada.hears("before", bob)
        assert ada.dials() == 0
        bob.close()
        with Node("bob", listen=bob.addresses) as again:
            again.knows(ada)
            ada.says(again, "after")
            again.hears("after", ada)
            assert ada.dials() == 1


def test_a_restarted_peer_takes_its_route_over_at_once() -> None:
    """The peer cannot be dialled, so only its newest connection leads to it."""
    with Node("ada") as ada:
        for life in range(4):
            with Node("nat", listen=()) as nat:
                ada.knows(nat)
                nat.knows(ada)
                nat.says(ada, f"life {life}")
                ada.hears(f"life {life}", nat)
                ada.says(nat, f"welcome {life}")
                nat.hears(f"welcome {life}", ada)


def test_the_newest_connection_wins_while_an_older_one_still_talks() -> None:
    """A machine that lost power leaves a connection that looks alive; what is left in it must not
    win.
    """
    with Node("ada") as ada, Node("nat", listen=()) as old, Node("nat", listen=()) as new:
        ada.knows(old)
        for life, text in ((old, "old"), (new, "new"), (old, "old again")):
            life.knows(ada)
            life.says(ada, text)
            ada.hears(text, old)
        ada.says(new.id, "to the newest")
        new.hears("to the newest", ada)
        new.close()
        ada.says(old.id, "to the one that is left")
        old.hears("to the one that is left", ada)


def test_an_address_that_accepts_and_says_nothing_gives_way_to_the_next() -> None:
    limits = TransportLimits(dial_ms=200)
    mute = socket.create_server(("127.0.0.1", 0))
    with mute, Node("ada", limits=limits) as ada, Node("bob") as bob:
        bob.knows(ada)
        dead = f"tcp://127.0.0.1:{mute.getsockname()[1]}"
        ada.transport.set_peer(bob.id, [dead, *bob.addresses])
        ada.says(bob, "finally")
        bob.hears("finally", ada)


def test_new_addresses_move_the_connection_and_repeated_ones_do_not() -> None:
    with Node("ada") as ada, Node("bob", listen=["tcp://127.0.0.1:0", "tcp://127.0.0.1:0"]) as bob:
        bob.knows(ada, dials=False)
        first, second = bob.addresses
        for addresses in ([first], [second, first], [second]):
            ada.transport.set_peer(bob.id, addresses)
            ada.says(bob, str(addresses))
            bob.hears(str(addresses), ada)
            bob.says(ada, f"heard {addresses}")
            ada.hears(f"heard {addresses}", bob)
        assert ada.dials() == 1


def test_what_waits_is_sent_when_the_other_side_appears() -> None:
    with Node("ada") as ada, socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
        reserved.close()
        address = f"tcp://127.0.0.1:{port}"
        bob_id = peer_id(seed("bob"))
        ada.transport.set_peer(bob_id, [address])
        ada.says(bob_id, "early")
        until(lambda: ada.dials() == 1, "the dial starts")
        with Node("bob", listen=[address]) as bob:
            bob.knows(ada)
            bob.hears("early", ada)


def test_a_dead_address_gives_way_to_the_next_and_names_are_resolved() -> None:
    with Node("ada") as ada, Node("bob") as bob:
        port = bob.addresses[0].rpartition(":")[2]
        bob.knows(ada)
        ada.transport.set_peer(bob.id, ["tcp://127.0.0.1:1", f"tcp://localhost:{port}"])
        ada.says(bob, "over the name")
        bob.hears("over the name", ada)


def test_ipv6() -> None:
    if not Path("/proc/net/if_inet6").exists():
        pytest.skip("no IPv6 here")
    with Node("ada") as ada, Node("bob", listen=["tcp://[::1]:0"]) as bob:
        assert bob.addresses[0].startswith("tcp://[::1]:")
        bob.knows(ada)
        ada.knows(bob)
        ada.says(bob, "six")
        bob.hears("six", ada)


@pytest.mark.parametrize(
    "address",
    [
        "inproc://zeromq.zap.01",
        "ipc:///tmp/x",
        "tcp://*:1",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:99999",
        "tcp://0.0.0.0:7700",
        "tcp://[::]:7700",
        "tcp://a b:1",
        "tcp://127.0.0.1:1;tcp://127.0.0.1:2",
        "",
    ],
)
def test_addresses_that_may_not_be_dialled(address: str) -> None:
    with Node("ada") as ada:
        ada.transport.set_peer(peer_id(seed("bob")), [address])
        ada.says(peer_id(seed("bob")), "x")
        until(lambda: ada.dropped(Drop.BAD_ADDRESS) == 1, "the bad address is counted")
        assert ada.dials() == 0


# -- who may enter ---------------------------------------------------------------------------------


def test_a_stranger_is_refused_and_counted() -> None:
    with Node("ada") as ada, Node("eve") as eve:
        eve.knows(ada)
        eve.says(ada, "let me in")
        until(lambda: ada.transport.counters().refused_handshakes > 0, "the refusal is counted")
        assert ada.got == []


def test_a_refused_peer_gets_through_once_it_is_known() -> None:
    """ZeroMQ does not try again after a refusal; the transport must."""
    with Node("ada") as ada, Node("bob") as bob:
        bob.knows(ada)
        bob.says(ada, "patience")
        until(lambda: ada.transport.counters().refused_handshakes > 0, "the refusal")
        ada.knows(bob, dials=False)
        ada.hears("patience", bob)


def test_a_guest_is_answered_and_comes_back_as_itself() -> None:
    with Node("ada") as ada, Node("new") as new:
        new.knows(ada, as_guest=True)
        new.says(ada, "may I join")
        handle = ada.source_of("may I join")
        assert handle.startswith(b"guest:")
        assert len(handle) != 32
        ada.knows(new)  # admitted, then told so: orders keep their sequence
        ada.says(handle, "welcome")
        new.hears("welcome", ada)
        new.knows(ada)
        new.says(ada, "here I am")
        ada.hears("here I am", new)
        counters = ada.transport.counters()
        assert counters.guests.messages_in == counters.guests.messages_out == 1
        assert counters.peers[new.id].bytes_in == len("here I am")


def test_a_closed_door_and_a_wrong_door_refuse_guests() -> None:
    with (
        Node("ada", open_door=False) as shut,
        Node("bob") as other,
        Node("eve", door=b"e" * 32) as eve,
    ):
        for host in (shut, other):
            eve.knows(host, as_guest=True)
            eve.says(host, "knock")
        with Node("new") as invited:
            invited.knows(shut, as_guest=True)
            invited.says(shut, "knock")
            until(lambda: shut.transport.counters().refused_handshakes >= 2, "the door is shut")
        until(lambda: other.transport.counters().refused_handshakes >= 1, "the wrong key")
        assert shut.got == other.got == []


def test_the_source_is_the_key_not_a_claim() -> None:
    """A member that sets another's PeerId as its routing id is still heard as itself."""
    with Node("ada") as ada, Node("bob") as bob:
        eve = identity_keys(seed("eve"))
        ada.knows(bob, dials=False)
        ada.transport.set_peer(peer_id(seed("eve")), [])
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        raw = context.socket(zmq.DEALER)
        raw.curve_publickey, raw.curve_secretkey = eve.public, eve.secret
        raw.curve_serverkey = identity_keys(seed("ada")).public
        raw.routing_id = bob.id
        raw.connect(ada.addresses[0])
        raw.send(b"I am bob")
        assert ada.source_of("I am bob") == peer_id(seed("eve"))
        raw.send_multipart([b"two", b"frames"])
        until(lambda: ada.dropped(Drop.MALFORMED) == 1, "two frames are dropped")
        context.destroy(0)


def test_a_forgotten_peer_is_heard_no_more() -> None:
    with pair() as (low, high):
        low.says(high, "one")
        high.hears("one", low)
        high.transport.forget(low.id)
        until(lambda: low.id not in high.transport.counters().peers, "it is forgotten")
        low.says(high, "two")
        until(lambda: high.dropped(Drop.STRANGER) == 1, "its messages are dropped")
        high.says(low, "who?")
        until(lambda: high.dropped(Drop.UNKNOWN) == 1, "and it is not spoken to")
        assert not high.heard("two")
        low.close()
        with Node(low.name) as again:
            again.knows(high)
            again.says(high, "three")
            until(lambda: high.transport.counters().refused_handshakes > 0, "and is let in no more")


def test_the_first_of_two_peers_with_one_curve_key_keeps_it() -> None:
    """P and -P, the same point with its sign bit turned, share their X25519 image."""
    with Node("ada") as ada, Node("bob") as bob:
        twin = bob.id[:31] + bytes([bob.id[31] ^ 0x80])
        ada.knows(bob, dials=False)
        ada.transport.set_peer(twin, [])
        bob.knows(ada)
        bob.says(ada, "mine")
        ada.hears("mine", bob)
        assert ada.dropped(Drop.BAD_KEY) == 1


# -- bounds ----------------------------------------------------------------------------------------


def test_the_largest_message_passes_and_a_larger_one_is_refused() -> None:
    with pair(TransportLimits(message_bytes_max=200_000)) as (low, high):
        low.transport.send(high.id, b"x" * 200_001)
        low.transport.send(high.id, b"y" * 200_000)
        until(lambda: len(high.got) == 1, "the legal one arrives")
        assert high.got[0].data == b"y" * 200_000
        assert low.dropped(Drop.TOO_LARGE) == 1


def test_an_oversized_message_ends_its_connection_and_harms_nobody_else() -> None:
    with (
        Node("ada", limits=TransportLimits(message_bytes_max=1_000)) as ada,
        Node("bob") as bob,
        Node("eve") as eve,
    ):
        for other in (bob, eve):
            ada.knows(other, dials=False)
            other.knows(ada)
        bob.says(ada, "a")
        ada.hears("a", bob)
        eve.transport.send(ada.id, b"z" * 100_000)
        eve.says(ada, "lost with it")
        bob.says(ada, "b")
        ada.hears("b", bob)
        until(lambda: eve.transport.counters().total.messages_out == 2, "eve has sent both")

        def eve_is_heard_again() -> bool:
            eve.says(ada, "again")
            return any(inbound.source == eve.id for inbound in ada.got)

        until(eve_is_heard_again, "eve's new connection")
        assert all(len(i.data) < 1_000 for i in ada.got)


def test_guests_are_few_small_and_slow() -> None:
    limits = TransportLimits(guest_message_bytes_max=100, guests_max=2, guest_messages_per_s=0.001)
    with Node("ada", limits=limits) as ada:
        guests = [Node(f"guest {n}", listen=()) for n in range(3)]
        handles = []
        for number, guest in enumerate(guests):
            guest.knows(ada, as_guest=True)
            guest.says(ada, f"g{number}")
            handles.append(ada.source_of(f"g{number}"))
        assert len(set(handles)) == 3
        ada.says(handles[0], "who?")
        until(lambda: ada.dropped(Drop.UNKNOWN) == 1, "the oldest of three handles is gone")
        ada.says(handles[2], "you")
        guests[2].source_of("you")
        guests[2].says(ada, "too soon")
        until(lambda: ada.dropped(Drop.RATE) == 1, "the allowance was one message")
        with Node("large", listen=()) as large:
            large.knows(ada, as_guest=True)
            large.says(ada, "x" * 101)
            until(lambda: ada.dropped(Drop.GUEST_TOO_LARGE) == 1, "too large for a guest")
        for guest in guests:
            guest.close()
        assert len(ada.got) == 3


def test_a_peer_that_sends_too_fast_loses_the_surplus() -> None:
    with Node("ada", limits=TransportLimits(peer_messages_per_s=10)) as ada, Node("bob") as bob:
        ada.knows(bob, dials=False)
        bob.knows(ada)
        for number in range(300):
            bob.says(ada, f"{number}")
        until(lambda: len(ada.got) + ada.dropped(Drop.RATE) == 300, "all are accounted for")
        assert 30 <= len(ada.got) < 150


def test_a_full_backlog_and_a_stale_one_are_dropped_and_counted() -> None:
    limits = TransportLimits(backlog_messages_max=10, backlog_ms=300)
    with Node("ada", limits=limits) as ada:
        nowhere = peer_id(seed("bob"))
        ada.transport.set_peer(nowhere, [])
        for number in range(15):
            ada.says(nowhere, f"{number}")
        until(lambda: ada.dropped(Drop.QUEUE_FULL) == 5, "ten fit")
        until(lambda: ada.dropped(Drop.EXPIRED) == 10, "and are dropped in time")


def test_the_queue_of_orders_is_bounded() -> None:
    """The thread is held up inside on_batch while the queue fills."""
    held, go = threading.Event(), threading.Event()

    def hold(_: object) -> None:
        held.set()
        go.wait(10)

    limits = TransportLimits(queue_messages_max=5, queue_bytes_max=100)
    slow = ZmqTransport(
        seed("ada"), listen=["tcp://127.0.0.1:0"], door=DOOR, on_batch=hold, limits=limits
    )
    (address,) = slow.start()
    with Node("bob") as bob:
        slow.set_peer(bob.id, [])
        bob.transport.set_peer(slow.me, [address])
        bob.says(slow.me, "x")
        assert held.wait(10)
        for _ in range(3):
            slow.send(bob.id, b"y" * 40)  # two fit
        for _ in range(7):
            slow.send(bob.id, b"z")  # three more fit
        assert slow.counters().dropped[Drop.QUEUE_FULL] == 5
        go.set()
        until(lambda: len(bob.got) == 5, "what fitted is sent")
    slow.close()


def test_a_receiver_that_stops_reading_does_not_stop_the_others() -> None:
    """Route and dial both fill up, then empty again: nothing within the bounds is lost."""
    limits = TransportLimits(
        pipe_messages_max=4, backlog_messages_max=1_000, peer_messages_per_s=1e9
    )
    held, go = threading.Event(), threading.Event()
    got: list[bytes] = []

    def hold(batch: list[object]) -> None:
        got.extend(i.data for i in batch)  # type: ignore[attr-defined]
        held.set()
        go.wait(20)

    slow = ZmqTransport(seed("slow"), listen=[], door=DOOR, on_batch=hold, limits=limits)  # type: ignore[arg-type]
    slow.start()
    with Node("ada", limits=limits) as ada, Node("bob", limits=limits) as bob:
        ada.transport.set_peer(slow.me, [])
        ada.knows(bob)
        bob.knows(ada)
        slow.set_peer(ada.id, ada.addresses)
        slow.send(ada.id, b"hello")
        ada.source_of("hello")
        big = b"b" * 400_000
        for _ in range(60):
            ada.transport.send(slow.me, big)
        assert held.wait(10)
        ada.says(bob, "not held up")
        bob.hears("not held up", ada)
        assert ada.transport.counters().peers[slow.me].messages_out < 60
        go.set()
        until(lambda: len(got) == 60, "everything arrives in the end")
    slow.close()


def test_only_so_many_dials_are_kept() -> None:
    with Node("hub", limits=TransportLimits(dials_max=2)) as hub:
        others = [Node(f"peer {n}") for n in range(4)]
        for turn in range(2):
            for other in others:
                hub.knows(other)
                other.transport.set_peer(hub.id, [])
                hub.says(other, f"turn {turn}")
                other.hears(f"turn {turn}", hub)
        assert hub.dials() <= 2
        for other in others:
            other.close()


# -- life ------------------------------------------------------------------------------------------


def test_a_port_in_use_names_its_holder_and_what_to_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        transport = ZmqTransport(
            seed("ada"), listen=[f"tcp://127.0.0.1:{port}"], door=DOOR, on_batch=lambda _: None
        )
        with pytest.raises(PortInUse) as caught:
            transport.start()
        assert f"port {port} is in use by another process" in str(caught.value)
        assert f"pid {os.getpid()}" in str(caught.value)
        assert caught.value.hint == f"pass --listen tcp://127.0.0.1:{port + 1}"
        assert not [t for t in threading.enumerate() if t.name == "peer-transport"]


@pytest.mark.parametrize("address", ["7700", "ipc:///tmp/x", "tcp://192.0.2.1:7700"])
def test_an_address_that_cannot_be_listened_on_says_so(address: str) -> None:
    transport = ZmqTransport(seed("ada"), listen=[address], door=DOOR, on_batch=lambda _: None)
    with pytest.raises(ListenError) as caught:
        transport.start()
    assert address in str(caught.value)
    assert caught.value.hint


def test_close_sends_what_was_queued() -> None:
    with Node("bob") as bob:
        ada = Node("ada")
        bob.knows(ada, dials=False)
        ada.knows(bob)
        for _ in range(100):
            ada.transport.send(bob.id, b"x" * 300_000)
        ada.close(flush_ms=10_000)
        until(lambda: len(bob.got) == 100, "all of it arrives")
        ada.says(bob, "too late")
        assert ada.dropped(Drop.CLOSED) == 1


def test_close_does_not_wait_for_a_peer_that_is_not_there() -> None:
    ada = Node("ada")
    ada.transport.set_peer(peer_id(seed("bob")), ["tcp://127.0.0.1:1"])
    ada.says(peer_id(seed("bob")), "lost")
    done = threading.Thread(target=ada.close, args=(100,))
    done.start()
    done.join(10)
    assert not done.is_alive()


def _open_fds() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_nothing_is_left_behind() -> None:
    with pair() as (low, high):  # warms up what the first use of ZeroMQ leaves for good
        low.says(high, "x")
        high.hears("x", low)
    threads, fds = threading.active_count(), _open_fds()
    for _ in range(5):
        with pair() as (low, high), Node("new", listen=()) as new:
            new.knows(low, as_guest=True)
            new.says(low, "guest")
            low.source_of("guest")
            low.says(high, "x")
            high.says(low, "y")
            high.hears("x", low)
            low.hears("y", high)
            low.transport.forget(high.id)
    assert threading.active_count() == threads
    until(lambda: _open_fds() <= fds, f"file descriptors close (there were {fds})")


def test_a_bug_in_the_receiver_is_reported_and_leaves_nothing_open() -> None:
    failures: list[BaseException] = []

    def burst(_: object) -> None:
        raise ZeroDivisionError("a bug")

    ada = ZmqTransport(
        seed("ada"),
        listen=["tcp://127.0.0.1:0"],
        door=DOOR,
        on_batch=burst,
        on_failure=failures.append,
    )
    (address,) = ada.start()
    with Node("bob") as bob:
        ada.set_peer(bob.id, [])
        bob.transport.set_peer(ada.me, [address])
        bob.says(ada.me, "x")
        until(lambda: len(failures) == 1, "the failure is reported")
        assert isinstance(failures[0], ZeroDivisionError)
        ada.send(bob.id, b"x")
        ada.close()
