"""SQLite through aiosqlite, with whole transactions as one hop to its thread.

A hop costs two changes of thread and, while the loop is busy, up to the interpreter's switch
interval each; a transaction of five statements in five hops would hold up commits for that long.

Invariants:
- Autocommit: nothing is open between two calls; `transact` commits or rolls back before it returns.
- With `synchronous = FULL` whatever returned is on the disk. With NORMAL only `durable=True` is.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

from runtime.sqlite import SqliteConnection

__all__ = ["Database", "Rows", "Statement", "connect_file", "make_file", "uri_of"]

T = TypeVar("T")
Statement: TypeAlias = tuple[str, Sequence[Any]]
Rows: TypeAlias = list[tuple[Any, ...]]

BUSY_TIMEOUT_S = 5.0
CACHED_STATEMENTS = 64


def uri_of(path: Path, mode: str) -> str:
    """Return the URI that opens `path` in `mode`: "rw", "ro" or "rwc"."""
    return f"{path.absolute().as_uri()}?mode={mode}"


def connect_file(path: Path, mode: str) -> sqlite3.Connection:
    """Open a database file in autocommit; blocks, so not on the loop's thread."""
    return sqlite3.connect(
        uri_of(path, mode),
        uri=True,
        timeout=BUSY_TIMEOUT_S,
        isolation_level=None,
        cached_statements=CACHED_STATEMENTS,
        check_same_thread=False,  # opened on one helper thread, used on another, never on two
    )


def make_file(path: Path, application_id: int, schema: str) -> sqlite3.Connection:
    """Open a database of ours whose every transaction is on the disk when it returns, made if new.

    Blocks, so not on the loop's thread.

    Raises:
        sqlite3.Error: it is another program's, damaged, or cannot be written.
        OSError: the folder cannot be made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = connect_file(path, "rwc")
    try:
        _check_owner(connection, application_id)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA application_id = {application_id}")
        connection.executescript(schema)
    except BaseException:
        connection.close()
        raise
    return connection


class Database(SqliteConnection):
    """One connection and its thread."""

    def __init__(self, connector: Callable[[], sqlite3.Connection], *, durable: bool) -> None:
        """Prepare a connection; `await` it to open it.

        Args:
            connector: Opens the file and sets its pragmas; runs on the connection's thread.
            durable: Whether `connector` left it at `synchronous = FULL`.
        """
        super().__init__(connector)
        self._durable = durable

    async def run(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """Call `function` with the connection, on the connection's thread."""
        return await self.hop(function)

    async def query(self, sql: str, parameters: Sequence[Any] = ()) -> Rows:
        """Run one statement in autocommit and return its rows."""
        return await self.hop(partial(_query, sql, parameters))

    async def transact(
        self, statements: Sequence[Statement], *, durable: bool = False
    ) -> list[Rows]:
        """Run statements as one transaction: all of them or none.

        Args:
            statements: SQL and parameters, in order.
            durable: On the disk when this returns, whatever `synchronous` is.

        Returns:
            The rows of each statement.

        Raises:
            sqlite3.Error: nothing of it happened.
        """
        return await self.hop(partial(self._transact, statements, durable=durable))

    def _transact(
        self, statements: Sequence[Statement], connection: sqlite3.Connection, *, durable: bool
    ) -> list[Rows]:
        sync_now = durable and not self._durable
        if sync_now:
            connection.execute("PRAGMA synchronous = FULL")
        try:
            connection.execute("BEGIN IMMEDIATE")
            try:
                rows = [connection.execute(sql, values).fetchall() for sql, values in statements]
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:
                    connection.execute("ROLLBACK")
                raise
        finally:
            if sync_now:
                connection.execute("PRAGMA synchronous = NORMAL")
        return rows


def _query(sql: str, parameters: Sequence[Any], connection: sqlite3.Connection) -> Rows:
    return connection.execute(sql, parameters).fetchall()


def _check_owner(connection: sqlite3.Connection, application_id: int) -> None:
    (found,) = connection.execute("PRAGMA application_id").fetchone()
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if tables and found != application_id:
        raise sqlite3.DatabaseError("the database of another program")
