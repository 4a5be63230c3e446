"""What a peer remembers: its identity and ordered records, in one folder that one process owns.

Records live in one SQLite file in WAL mode with full synchronisation: a commit is on the disk when
`commit` returns, and a process killed at any instant leaves exactly the transactions that had
returned (and perhaps the one under way, whole). What the records mean is the protocol's business.
"""

import errno
import fcntl
import os
import secrets
import shutil
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from node.durable import write_atomically
from node.errors import UserError
from protocol.ledger import Write
from protocol.restore import TABLES

SCHEMA_VERSION = 1
_APPLICATION_ID = 0x50454552  # "PEER": a file of another program is refused, not filled
_PAGE_ROWS = 64  # a scan holds so many records at a time, and no lock between them
_CHECK_BYTES_MAX = 256 << 20  # larger files are not read through at each start
_WAL_BYTES_KEPT = 16 << 20
_FREE_BYTES_MIN = 1 << 20


class StoreError(UserError):
    """The folder cannot be used as it is."""


class HomeInUse(StoreError):
    """Another process owns this folder."""


class StoreFull(StoreError):
    """No room: the last committed state is intact, and nothing of the failed commit is there."""


class StoreCorrupt(StoreError):
    """The file holds something else than what was written."""


class Store:
    """Safe to call from several threads; calls take turns."""

    def __init__(self, home: Path, tables: Sequence[str] = TABLES) -> None:
        """Opens or creates the folder. Raises StoreError."""
        assert all(table.isidentifier() for table in tables), "table names go into SQL"
        self.home = home
        self.path = home / "peer.db"
        self._tables = frozenset(tables)
        self._turn = threading.Lock()
        _make_home(home)
        self._lock_fd = _lock(home)
        try:
            self._db = self._open_database()
        except BaseException:
            os.close(self._lock_fd)
            raise

    @classmethod
    def open(cls, home: Path, tables: Sequence[str] = TABLES) -> "Store":
        return cls(home, tables)

    def identity(self) -> bytes:
        """The 32-byte seed of this peer's key; made at first use, never readable by others."""
        return load_identity(self.home)

    def commit(self, writes: Sequence[Write]) -> None:
        """All of them or none, durable on return. Raises StoreFull."""
        with self._turn, self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                for write in writes:
                    self._write(write)
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise

    def get(self, table: str, key: bytes) -> bytes | None:
        rows = self._select(table, "key = ?", (key,), limit=1)
        return rows[0][1] if rows else None

    def scan(
        self,
        table: str,
        first: bytes = b"",
        last: bytes | None = None,  # included, as `first` is
        limit: int | None = None,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Records in the order of their keys. Commits between two steps of the walk may show."""
        after, bound = "key >= ?", first
        upto = "" if last is None else " AND key <= ?"
        bounds = () if last is None else (last,)
        left = limit
        while left is None or left > 0:
            page = _PAGE_ROWS if left is None else min(_PAGE_ROWS, left)
            rows = self._select(table, after + upto, (bound, *bounds), page)
            yield from rows
            if len(rows) < page:
                return
            left = None if left is None else left - page
            after, bound = "key > ?", rows[-1][0]

    def last(self, table: str) -> tuple[bytes, bytes] | None:
        """The record with the greatest key."""
        rows = self._select(table, "1", (), limit=1, order="DESC")
        return rows[0] if rows else None

    def close(self) -> None:
        """Fold the log into the file and let the folder go. A second call does nothing."""
        if self._lock_fd < 0:
            return
        with self._turn:
            try:
                self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            except sqlite3.Error:
                pass  # a full disk: the log stays beside the file and is read at the next start
            finally:
                self._db.close()
                os.close(self._lock_fd)
                self._lock_fd = -1

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- SQLite ------------------------------------------------------------------------------------

    def _write(self, write: Write) -> None:
        assert write.table in self._tables, f"unknown table {write.table!r}"
        if write.value is None:
            self._db.execute(f'DELETE FROM "{write.table}" WHERE key = ?', (write.key,))
        else:
            self._db.execute(
                f'INSERT OR REPLACE INTO "{write.table}" VALUES (?, ?)', (write.key, write.value)
            )

    def _select(
        self, table: str, condition: str, bounds: tuple[bytes, ...], limit: int, order: str = "ASC"
    ) -> list[tuple[bytes, bytes]]:
        assert table in self._tables, f"unknown table {table!r}"
        query = f'SELECT key, value FROM "{table}" WHERE {condition} ORDER BY key {order} LIMIT ?'
        with self._turn, self._explained():
            return self._db.execute(query, (*bounds, limit)).fetchall()

    def _open_database(self) -> sqlite3.Connection:
        with self._explained():
            if not self.path.exists():
                write_atomically(self.path, lambda _: None)  # SQLite would make it world-readable
            database = sqlite3.connect(
                self.path, isolation_level=None, check_same_thread=False, cached_statements=256
            )
            try:
                self._prepare(database)
            except BaseException:
                database.close()
                raise
            return database

    def _prepare(self, database: sqlite3.Connection) -> None:
        self._check_version(database)
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute(f"PRAGMA journal_size_limit = {_WAL_BYTES_KEPT}")
        if self.path.stat().st_size <= _CHECK_BYTES_MAX:
            verdict = database.execute("PRAGMA quick_check(1)").fetchone()[0]
            if verdict != "ok":
                raise self._corrupt(str(verdict))
        database.execute("BEGIN IMMEDIATE")
        for table in sorted(self._tables):
            database.execute(
                f'CREATE TABLE IF NOT EXISTS "{table}"'
                " (key BLOB PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID"
            )
        database.execute(f"PRAGMA application_id = {_APPLICATION_ID}")
        database.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
        database.execute("COMMIT")

    def _check_version(self, database: sqlite3.Connection) -> None:
        (application,) = database.execute("PRAGMA application_id").fetchone()
        (version,) = database.execute("PRAGMA user_version").fetchone()
        (objects,) = database.execute("SELECT count(*) FROM sqlite_schema").fetchone()
        if application != _APPLICATION_ID and objects:
            raise StoreError(
                f"{self.path} is a database of another program", "choose another --home"
            )
        if version > SCHEMA_VERSION:
            raise StoreError(
                f"{self.path} was written by a newer version of this program"
                f" (format {version}, this one knows {SCHEMA_VERSION})",
                "update peertrain on this machine",
            )

    # -- errors ------------------------------------------------------------------------------------

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """SQLite's errors, in words that lead somewhere."""
        try:
            yield
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF == sqlite3.SQLITE_FULL or _is_disk_full(self.home):
                raise self._full() from error
            raise StoreError(
                f"cannot use {self.path}: {error}",
                "check that the disk is well and that this user may write there",
            ) from error
        except sqlite3.DatabaseError as error:
            if error.sqlite_errorcode & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
                raise self._corrupt(str(error)) from error
            raise
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._full() from error
            raise StoreError(f"cannot use {self.path}: {error.strerror}") from error

    def _full(self) -> StoreFull:
        return StoreFull(
            f"no room left on the disk that holds {self.home}",
            "free some space and start again: everything up to the last round is safe",
        )

    def _corrupt(self, what: str) -> StoreCorrupt:
        return StoreCorrupt(
            f"{self.path} is damaged ({what})",
            f"move {self.path.name} and its -wal file away and start again: the ledger is fetched"
            " from the other peers; leave the file named identity where it is",
        )


def load_identity(home: Path) -> bytes:
    """The seed in HOME/identity; made when there is none."""
    path = home / "identity"
    if not path.exists():
        seed = secrets.token_bytes(32)
        try:
            write_atomically(path, lambda temporary: temporary.write_text(seed.hex() + "\n"))
        except OSError as error:
            raise StoreError(f"cannot write {path}: {error.strerror}", "check the disk") from error
    if path.stat().st_mode & 0o077:
        raise StoreError(f"{path} can be read by other users", f"chmod 600 {path}")
    try:
        seed = bytes.fromhex(path.read_text().strip())
    except (ValueError, OSError):
        seed = b""
    if len(seed) != 32:
        raise StoreCorrupt(
            f"{path} does not hold an identity",
            "restore it from a copy, or delete it: the peer then gets a new identity",
        )
    return seed


def _make_home(home: Path) -> None:
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(
            f"cannot make the folder {home}: {error.strerror}", "choose another --home"
        ) from error


def _lock(home: Path) -> int:
    """One process a home. The lock falls with its process, so there is nothing to clean up."""
    try:
        fd = os.open(home / "lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise StoreError(
            f"cannot write in {home}: {error.strerror}", "choose another --home"
        ) from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
        os.close(fd)
        raise HomeInUse(
            f"another peer (pid {holder}) already runs with this identity in {home}",
            "stop it first, or give this one its own folder with --home",
        ) from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


def _is_disk_full(home: Path) -> bool:
    """Some failures to write reach us as plain I/O errors."""
    return shutil.disk_usage(home).free < _FREE_BYTES_MIN
