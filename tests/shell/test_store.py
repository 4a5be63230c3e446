"""The store against kills, full disks, damage and a second process."""

import os
import random
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from node.store import HomeInUse, Store, StoreCorrupt, StoreError, StoreFull
from protocol.ledger import Write

ROOT = Path(__file__).parents[2]
KEYS = st.binary(max_size=3)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "home") as opened:
        yield opened


def put(store: Store, *numbers: int, table: str = "entries") -> None:
    store.commit([Write(table, bytes([n]), b"v%d" % n) for n in numbers])


def test_records_come_back_in_order_and_after_a_restart(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        put(store, 5, 1, 200, 9)
        store.commit([Write("entries", b"\x05", None), Write("meta", b"k", b"")])
    with Store.open(tmp_path) as store:
        assert [key[0] for key, _ in store.scan("entries")] == [1, 9, 200]
        assert store.get("entries", b"\x09") == b"v9"
        assert store.get("entries", b"\x05") is None
        assert store.get("meta", b"k") == b"", "an empty value is a value"
        assert store.last("entries") == (b"\xc8", b"v200")
        assert store.last("votes") is None


@settings(max_examples=60, deadline=None)
@given(
    written=st.dictionaries(KEYS, st.binary(max_size=4), max_size=200),
    first=KEYS,
    last=st.none() | KEYS,
    limit=st.none() | st.integers(0, 150),
)
def test_scan_is_a_sorted_dictionary(
    tmp_path_factory: pytest.TempPathFactory,
    written: dict[bytes, bytes],
    first: bytes,
    last: bytes | None,
    limit: int | None,
) -> None:
    with Store.open(tmp_path_factory.mktemp("home")) as store:
        store.commit([Write("chain", key, value) for key, value in written.items()])
        expected = [
            (key, value)
            for key, value in sorted(written.items())
            if key >= first and (last is None or key <= last)
        ]
        assert list(store.scan("chain", first, last, limit)) == expected[:limit]


def test_a_scan_may_be_left_early_and_commits_go_on_beside_it(store: Store) -> None:
    put(store, *range(200))
    walk = store.scan("entries")
    assert next(walk)[0] == b"\0"
    put(store, 250)
    assert [key[0] for key, _ in walk] == [*range(1, 200), 250]


def test_a_limit_holds_across_pages(store: Store) -> None:
    put(store, *range(200))
    for limit in (0, 1, 63, 64, 65, 128, 150, 200, 999):
        assert len(list(store.scan("entries", limit=limit))) == min(limit, 200)


def test_a_failed_commit_leaves_nothing(store: Store) -> None:
    put(store, 1)
    with pytest.raises(AssertionError, match="unknown table"):
        store.commit([Write("entries", b"\x02", b"x"), Write("typo", b"k", b"v")])
    assert [key[0] for key, _ in store.scan("entries")] == [1]
    put(store, 3)
    assert [key[0] for key, _ in store.scan("entries")] == [1, 3]


def test_threads_take_turns(store: Store) -> None:
    threads = [
        threading.Thread(target=lambda t=t: [put(store, n) for n in range(t, 200, 4)])
        for t in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(list(store.scan("entries"))) == 200


# -- kill -9 ---------------------------------------------------------------------------------------


def _write_until(home: Path, acknowledged: int, moment: random.Random) -> int:
    """Start a writer, kill it at a random instant; returns the last commit that it reported."""
    command = [sys.executable, str(ROOT / "tests/shell/store_writer.py"), str(home)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as writer:
        assert writer.stdout is not None
        seen = acknowledged
        for _ in range(moment.randrange(1, 60)):
            seen = int(writer.stdout.readline())
        threading.Event().wait(moment.random() * 0.002)  # somewhere inside a later transaction
        writer.send_signal(signal.SIGKILL)
        rest = writer.stdout.read().splitlines(keepends=True)
    reported = [int(line) for line in rest if line.endswith(b"\n")]
    return max([seen, *reported])


def test_kill_at_any_instant_leaves_a_prefix(tmp_path: Path) -> None:
    acknowledged, moment = 0, random.Random(20)
    for _ in range(20):
        acknowledged = _write_until(tmp_path, acknowledged, moment)
        with Store.open(tmp_path) as store:
            count = int.from_bytes(store.get("meta", b"count") or b"", "big")
            # At most the one commit that was under way is there without having been reported.
            assert acknowledged <= count <= acknowledged + 1
            value = count.to_bytes(8, "big")
            assert store.get("outbox", b"only") == value
            assert store.get("outbox", b"gone") == (None if count % 2 else value)
            keys = [key for key, _ in store.scan("entries")]
            assert keys == [n.to_bytes(8, "big") for n in range(count)]
            for number, (key, record) in enumerate(store.scan("entries")):
                assert record == key * (1 + (number + 1) * 37 % 900)


# -- one process -----------------------------------------------------------------------------------


def test_a_second_process_is_told_who_has_the_folder(store: Store) -> None:
    code = (
        "import sys; from pathlib import Path; from node.store import HomeInUse, Store\n"
        "try: Store.open(Path(sys.argv[1]))\n"
        "except HomeInUse as error: sys.stdout.write(f'{error}|{error.hint}')"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    told = subprocess.run(
        [sys.executable, "-c", code, str(store.home)],
        capture_output=True,
        text=True,
        env=environment,
        check=True,
    ).stdout
    assert f"another peer (pid {os.getpid()}) already runs with this identity in" in told
    assert "--home" in told
    with pytest.raises(HomeInUse):
        Store.open(store.home)


def test_the_folder_is_free_again_after_close(tmp_path: Path) -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Store.open(tmp_path).close()
    opened = Store.open(tmp_path)
    opened.close()
    opened.close()
    assert len(os.listdir("/proc/self/fd")) == before


# -- identity --------------------------------------------------------------------------------------


def test_the_identity_is_made_once_and_private(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        with Store.open(tmp_path / "a" / "home") as store:
            seed = store.identity()
            put(store, 1)
            modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in store.home.iterdir()}
            assert {"identity", "lock", "peer.db", "peer.db-wal", "peer.db-shm"} == set(modes)
            assert set(modes.values()) == {0o600}
            assert stat.S_IMODE(store.home.stat().st_mode) == 0o700
    finally:
        os.umask(old)
    assert len(seed) == 32
    with Store.open(tmp_path / "a" / "home") as store:
        assert store.identity() == seed
    with Store.open(tmp_path / "b") as other:
        assert other.identity() != seed


def test_an_identity_that_others_can_read_or_that_is_none_is_refused(store: Store) -> None:
    store.identity()
    path = store.home / "identity"
    path.chmod(0o644)
    with pytest.raises(StoreError, match="read by other users") as caught:
        store.identity()
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    path.write_text("torn")
    with pytest.raises(StoreCorrupt, match="does not hold an identity"):
        store.identity()


# -- damage, other versions, no room ---------------------------------------------------------------


def test_a_damaged_file_is_named_with_what_to_do(tmp_path: Path) -> None:
    with Store.open(tmp_path) as store:
        store.commit([Write("entries", bytes([n]), b"v" * 3_000) for n in range(100)])
    path = tmp_path / "peer.db"
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2 : len(raw) // 2 + 20_000] = b"\xa5" * 20_000
    path.write_bytes(raw)
    with pytest.raises(StoreCorrupt) as caught:
        Store.open(tmp_path)
    assert str(path) in str(caught.value)
    assert "move peer.db" in caught.value.hint
    path.write_bytes(b"not a database at all, only text" * 200)
    with pytest.raises(StoreCorrupt):
        Store.open(tmp_path)
    path.unlink()
    Store.open(tmp_path).close()  # the lock was let go each time


def test_newer_and_foreign_files_are_refused(tmp_path: Path) -> None:
    Store.open(tmp_path).close()
    with sqlite3.connect(tmp_path / "peer.db") as database:
        database.execute("PRAGMA user_version = 99")
    database.close()
    with pytest.raises(StoreError, match="newer version"):
        Store.open(tmp_path)
    (tmp_path / "peer.db").unlink()
    with sqlite3.connect(tmp_path / "peer.db") as database:
        database.execute("CREATE TABLE theirs (x)")
    database.close()
    with pytest.raises(StoreError, match="another program"):
        Store.open(tmp_path)


def _fill(store: Store) -> int:
    """Commit until there is no room; returns how many commits stand."""
    stands = 0

    def commit_on() -> None:
        nonlocal stands
        while stands < 10_000:
            key = stands.to_bytes(4, "big")
            store.commit([Write("entries", key, os.urandom(8_000)), Write("meta", b"n", key)])
            stands += 1

    with pytest.raises(StoreFull) as caught:
        commit_on()
    assert "free some space" in caught.value.hint
    return stands


def _assert_intact(store: Store, stands: int) -> None:
    assert [key for key, _ in store.scan("entries")] == [
        n.to_bytes(4, "big") for n in range(stands)
    ]
    assert store.get("meta", b"n") == (stands - 1).to_bytes(4, "big")


def test_a_full_database_keeps_what_was_committed(store: Store) -> None:
    pages = store._db.execute("PRAGMA page_count").fetchone()[0]
    store._db.execute(f"PRAGMA max_page_count = {pages + 100}")
    stands = _fill(store)
    assert stands > 10
    _assert_intact(store, stands)
    store._db.execute("PRAGMA max_page_count = 1000000")
    put(store, 1, table="votes")  # there is room again: no restart needed
    assert store.get("votes", b"\x01") == b"v1"


def test_a_full_disk_keeps_what_was_committed(small_disk: Path) -> None:
    home = small_disk / "home"
    ballast = small_disk / "ballast"
    ballast.write_bytes(b"\0" * 300_000)
    with Store.open(home) as store:
        stands = _fill(store)
        assert stands > 10
        _assert_intact(store, stands)
    ballast.unlink()  # as the error says
    with Store.open(home) as store:
        _assert_intact(store, stands)
        put(store, 1, table="votes")
        assert store.identity()
