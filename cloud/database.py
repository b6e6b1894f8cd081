"""SQLite files of the cloud: opened with every check, locked, and worked on by one thread each.

A `Database` is an aiosqlite connection on which a whole transaction runs as one function: each
statement of sqlite3 gives up the interpreter and has to win it back, so work is few statements,
and never a hop to the event loop between two of them.

A file is ours when its `application_id` says so; `user_version` is the version of its tables.
A second process is kept out by a lock on `<file>.lock` (flock: gone with its process), so that
readers may still open the file read-only beside the one that writes.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from runtime.sqlite import SqliteConnection

__all__ = [
    "Database",
    "DatabaseError",
    "DatabaseKind",
    "DatabaseMissing",
    "FileLock",
    "execute_flat",
    "execute_rows",
    "file_bytes",
    "open_database",
    "open_read_only",
    "transaction",
]

T = TypeVar("T")
Row = Sequence[Any]

_BUSY_TIMEOUT_S = 10.0
_WAL_KEPT_BYTES = 64 << 20


class DatabaseError(Exception):
    """A database file that cannot be used; `str()` is one line: which, why, what to do."""


class DatabaseMissing(DatabaseError):  # noqa: N818 - what it is of says that it is one
    """There is no such file."""

    def __init__(self, path: Path) -> None:
        super().__init__(f"{path}: no such file")


@dataclass(slots=True, frozen=True)
class DatabaseKind:
    """What a file must be."""

    title: str  # "a Tidegate stream"
    application_id: int
    version: int
    schema: str
    additions: str = ""  # statements that add what files made earlier may lack; harmless again


class FileLock:
    """An exclusive lock on `<path>.lock` that ends with the process or with `release`.

    Raises:
        DatabaseError: another process (or object) has it, or the folder cannot be written.
    """

    __slots__ = ("_fd",)

    def __init__(self, path: Path) -> None:
        lock = path.with_name(path.name + ".lock")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise DatabaseError(
                f"{path}: cannot be opened for writing ({error.strerror}); "
                "check the folder and its permissions"
            ) from error
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.pread(self._fd, 20, 0).decode("ascii", "replace").strip()
            os.close(self._fd)
            self._fd = -1
            raise DatabaseError(
                f"{path}: in use by process {owner or 'unknown'}; "
                "stop it or give this one another data folder"
            ) from error
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode("ascii"), 0)

    def release(self) -> None:
        """Let others have it; harmless when released already."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Database(SqliteConnection):
    """A connection with a thread of its own; made by `open_database`."""

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`, run on the connection's thread; cancelling does not stop it.

        Raises:
            Exception: what `work` raised.
        """
        return await self.hop(work)


async def open_database(
    path: Path, kind: DatabaseKind, *, cache_bytes: int = 8 << 20, create: bool = True
) -> Database:
    """Open a file for writing, making it when it is new. The caller holds its `FileLock`.

    Args:
        path: The file.
        kind: What it must be.
        cache_bytes: Page cache of this connection.
        create: False for a further connection to a file that is open already.

    Raises:
        DatabaseError: it is something else, newer, damaged, or cannot be written.
    """

    def connect() -> sqlite3.Connection:
        connection = _connect(path, "rwc" if create else "rw")
        try:
            if create:
                _prepare(connection, path, kind)
            _tune(connection, cache_bytes)
        except BaseException:
            connection.close()
            raise
        return connection

    return await _start(path, kind, connect)


async def open_read_only(path: Path, kind: DatabaseKind) -> Database:
    """Open an existing file for reading only; another process may be writing it meanwhile.

    Raises:
        DatabaseError: it is absent, something else, newer, or damaged.
    """

    def connect() -> sqlite3.Connection:
        if not path.exists():
            raise DatabaseMissing(path)
        connection = _connect(path, "ro")
        try:
            ours = _is_ours(connection, path, kind)
        except BaseException:
            connection.close()
            raise
        if not ours:
            connection.close()
            raise DatabaseError(f"{path}: empty, not {kind.title}")
        return connection

    return await _start(path, kind, connect)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """Commit what is done inside, or roll all of it back when it raises."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


_SIZES = (250, 50, 10, 1)  # rows a statement; few sizes, so that each stays prepared


def execute_rows(
    connection: sqlite3.Connection, head: str, rows: Sequence[Row], tail: str = ""
) -> None:
    """Execute `head VALUES (...), (...) tail` over `rows` with as few steps as may be.

    `executemany` makes a step a row, and at each step sqlite3 lets go of the interpreter. Into
    `readings` both do the same on an idle loop (within 5 %); while the loop was busy, statements of
    250 rows did 86,000 rows/s where executemany did 52,000, and left the loop more of its time.

    Args:
        connection: Within a transaction.
        head: Such as "INSERT INTO table (columns)".
        rows: All of the same width; may be empty.
        tail: What follows the values, such as an ON CONFLICT clause or a parenthesis.
    """
    if rows:
        flat = [value for row in rows for value in row]
        execute_flat(connection, head, len(rows[0]), flat, tail)


def execute_flat(
    connection: sqlite3.Connection, head: str, width: int, values: Sequence[Any], tail: str = ""
) -> None:
    """Do as `execute_rows`, with the rows' values end to end, `width` to a row."""
    one = "(" + ",".join("?" * width) + ")"
    at, left = 0, len(values) // width
    for size in _SIZES:
        if left < size:
            continue
        sql = f"{head} VALUES {','.join([one] * size)} {tail}"
        while left >= size:
            connection.execute(sql, values[at : at + size * width])
            at += size * width
            left -= size


def file_bytes(connection: sqlite3.Connection) -> int:
    """Return the bytes of the file in use: free pages, which the next rows take, do not count."""
    (size,) = connection.execute(
        "SELECT (p.page_count - f.freelist_count) * s.page_size"
        " FROM pragma_page_count p, pragma_freelist_count f, pragma_page_size s"
    ).fetchone()
    return int(size)


# ---- opening -------------------------------------------------------------------------------------


async def _start(
    path: Path, kind: DatabaseKind, connect: Callable[[], sqlite3.Connection]
) -> Database:
    database = Database(connect)
    try:
        return await database  # type: ignore[return-value]
    except BaseException as error:
        await database.ended()
        if isinstance(error, sqlite3.Error):
            raise _explained(path, kind, error) from error
        raise


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(
        f"file:{quote(str(path.absolute()))}?mode={mode}",
        uri=True,
        isolation_level=None,
        check_same_thread=False,  # aiosqlite closes it on its thread, errors here on any
        timeout=_BUSY_TIMEOUT_S,
        cached_statements=256,
    )


def _is_ours(connection: sqlite3.Connection, path: Path, kind: DatabaseKind) -> bool:
    """Return True when the file is of `kind`, False when it is new."""
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id == 0 and not tables:
        return False
    if application_id != kind.application_id:
        raise DatabaseError(
            f"{path}: a database, but not {kind.title}; move it away or use another data folder"
        )
    if version > kind.version:
        raise DatabaseError(
            f"{path}: {kind.title} of version {version}, this program knows {kind.version}; "
            "use a newer tidegate"
        )
    return True


def _prepare(connection: sqlite3.Connection, path: Path, kind: DatabaseKind) -> None:
    if not _is_ours(connection, path, kind):
        connection.execute("PRAGMA auto_vacuum = INCREMENTAL")  # only before the first table
        connection.executescript(
            f"BEGIN IMMEDIATE; {kind.schema}; PRAGMA application_id = {kind.application_id};"
            f"PRAGMA user_version = {kind.version}; COMMIT"
        )
    connection.execute("PRAGMA journal_mode = WAL")
    if kind.additions:
        connection.executescript(f"BEGIN IMMEDIATE; {kind.additions}; COMMIT")
    with transaction(connection):  # a file that cannot be written says so now, not at first use
        connection.execute(f"PRAGMA user_version = {kind.version}")


def _tune(connection: sqlite3.Connection, cache_bytes: int) -> None:
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA cache_size = {-(cache_bytes // 1024)}")
    connection.execute(f"PRAGMA journal_size_limit = {_WAL_KEPT_BYTES}")
    connection.execute("PRAGMA temp_store = MEMORY")
    # Debian builds SQLite to overwrite what is deleted with zeros: writes that nobody asked for
    connection.execute("PRAGMA secure_delete = OFF")


def _explained(path: Path, kind: DatabaseKind, error: sqlite3.Error) -> DatabaseError:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if path.is_dir():
        return DatabaseError(f"{path}: a folder where {kind.title} belongs")
    if code == sqlite3.SQLITE_NOTADB:
        return DatabaseError(
            f"{path}: not a database, so not {kind.title}; move it away or use another data folder"
        )
    if code in {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM}:
        return DatabaseError(f"{path}: write-protected; check permissions and the file system")
    if code == sqlite3.SQLITE_CANTOPEN:
        return DatabaseError(f"{path}: cannot be opened; check the folder and its permissions")
    if code == sqlite3.SQLITE_CORRUPT:
        return DatabaseError(f"{path}: damaged ({error}); restore it from a snapshot")
    return DatabaseError(f"{path}: {error}")
