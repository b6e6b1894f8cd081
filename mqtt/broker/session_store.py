"""Sessions and retained messages in one SQLite file, written with group commits.

Changes gather while a commit is under way and go into the next one: one transaction, one fsync,
one hop to the database's thread. What is made and ended within one group is never written.

Invariants:
- a callback of `when_durable` runs after the commit that holds everything put before it, and
  not while commits fail: the group is kept, tried again every second, and the broker told that the
  store is saturated;
- changes reach the file in the order they were put, as far as they concern the same row;
- the file is this program's (`application_id`) and version (`user_version`), or opening fails.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiosqlite
import structlog

from mqtt.broker.changes import (
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundSaved,
    MessageEnded,
    MessageSaved,
    RetainedEnded,
    RetainedSaved,
    SessionEnded,
    SessionSaved,
    StoredState,
    SubscriptionEnded,
    SubscriptionSaved,
)

__all__ = ["SessionStoreError", "SqliteSessionStore"]

_APPLICATION_ID: Final = 0x7469_6473  # "tids"
_VERSION: Final = 1
_RETRY_S: Final = 1.0
_GROUP_MAX: Final = 20_000  # changes of one transaction

_SCHEMA: Final = """
CREATE TABLE sessions (
    client_id TEXT PRIMARY KEY, version INTEGER NOT NULL, expiry_s INTEGER NOT NULL,
    away_since_us INTEGER NOT NULL, will_topic BLOB, will_payload BLOB NOT NULL,
    will_properties BLOB NOT NULL, will_flags INTEGER NOT NULL, will_delay_s INTEGER NOT NULL,
    will_expiry_s INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE subscriptions (
    client_id TEXT NOT NULL, topic_filter TEXT NOT NULL, options INTEGER NOT NULL,
    identifier INTEGER NOT NULL, PRIMARY KEY (client_id, topic_filter)) WITHOUT ROWID;
CREATE TABLE messages (
    message_id INTEGER PRIMARY KEY, topic BLOB NOT NULL, payload BLOB NOT NULL,
    properties BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    expires_us INTEGER NOT NULL, publisher TEXT);
CREATE TABLE deliveries (
    position INTEGER PRIMARY KEY, client_id TEXT NOT NULL, packet_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL, share TEXT NOT NULL, released INTEGER NOT NULL,
    UNIQUE (client_id, packet_id));
CREATE TABLE inbound (
    client_id TEXT NOT NULL, packet_id INTEGER NOT NULL,
    PRIMARY KEY (client_id, packet_id)) WITHOUT ROWID;
CREATE TABLE retained (
    topic BLOB PRIMARY KEY, payload BLOB NOT NULL, properties BLOB NOT NULL,
    qos INTEGER NOT NULL, expires_us INTEGER NOT NULL, publisher TEXT) WITHOUT ROWID;
"""

_STATEMENTS: Final[dict[type, tuple[str, ...]]] = {
    SessionSaved: (
        "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?)",
        # The client is back: from now on what is UNSENT may be sent at any time.
        (
            "UPDATE deliveries SET released = 0"
            " WHERE client_id = ?1 AND released = 2 AND ?4 = 0 AND ?10 NOTNULL"
        ),
    ),
    SessionEnded: (
        "DELETE FROM sessions WHERE client_id = ?",
        "DELETE FROM subscriptions WHERE client_id = ?",
        "DELETE FROM deliveries WHERE client_id = ?",
        "DELETE FROM inbound WHERE client_id = ?",
    ),
    SubscriptionSaved: ("INSERT OR REPLACE INTO subscriptions VALUES (?,?,?,?)",),
    SubscriptionEnded: ("DELETE FROM subscriptions WHERE client_id = ? AND topic_filter = ?",),
    MessageSaved: ("INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?,?)",),
    MessageEnded: ("DELETE FROM messages WHERE message_id = ?",),
    DeliverySaved: ("INSERT OR REPLACE INTO deliveries VALUES (NULL,?,?,?,?,?,?,?,?)",),
    DeliveryReleased: ("UPDATE deliveries SET released = 1 WHERE client_id = ? AND packet_id = ?",),
    DeliveryEnded: ("DELETE FROM deliveries WHERE client_id = ? AND packet_id = ?",),
    InboundSaved: ("INSERT OR REPLACE INTO inbound VALUES (?,?)",),
    InboundEnded: ("DELETE FROM inbound WHERE client_id = ? AND packet_id = ?",),
    RetainedSaved: ("INSERT OR REPLACE INTO retained VALUES (?,?,?,?,?,?)",),
    RetainedEnded: ("DELETE FROM retained WHERE topic = ?",),
}


class SessionStoreError(Exception):
    """The file cannot be used; `str()` is one line: which file, why, what to do."""


class SqliteSessionStore:
    """The `mqtt.broker.seams.SessionStore` of one node.

    Args:
        path: The database file; its folder exists.
        waiting_bytes_max: Changes that wait for the disk before the broker stops reading.
    """

    def __init__(self, path: Path, *, waiting_bytes_max: int = 8 << 20) -> None:
        self.path = path
        self.commits = 0  # since the start
        self._waiting_bytes_max = waiting_bytes_max
        self._database = _Database(partial(_connect, path))
        # What waits, by row: a change that undoes one that was not written takes it out.
        self._waiting: dict[object, Change] = {}
        self._waiting_bytes = 0
        self._count = 0  # of unique keys for changes that nothing undoes
        self._callbacks: list[Callable[[], None]] = []
        self._relieved: list[Callable[[], None]] = []
        self._wake = asyncio.Event()
        self._failing = False
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self._log = structlog.get_logger("mqtt.session_store")

    async def open(self) -> StoredState:
        """Open or make the file and return what it holds.

        Raises:
            SessionStoreError: the file cannot be opened, or is not a session store.
        """
        try:
            await self._database
            state: StoredState = await self._database.hop(_load)
        except (sqlite3.Error, OSError) as error:
            await self._database.close()
            await self._database.ended()
            raise SessionStoreError(
                f"{self.path}: cannot be used as session store ({error});"
                " move it away to start with none"
            ) from error
        self._task = asyncio.get_running_loop().create_task(self._run(), name="mqtt-session-store")
        return state

    def put(self, change: Change) -> None:
        """Take a change into the next group."""
        self._waiting_bytes += 100 + sum(len(v) for v in change if isinstance(v, bytes))
        waiting = self._waiting
        if isinstance(change, DeliverySaved):
            waiting[DeliverySaved, change.client_id, change.packet_id] = change
        elif isinstance(change, MessageSaved):
            waiting[MessageSaved, change.message_id] = change
        elif isinstance(change, RetainedSaved | RetainedEnded):
            waiting.pop((RetainedSaved, change.topic), None)  # the last one counts
            waiting[RetainedSaved, change.topic] = change
        elif not self._undoes(change):
            self._count += 1
            waiting[self._count] = change
        self._wake.set()

    def _undoes(self, change: Change) -> bool:
        """Take out what was not written yet and has ended already; True when that was it."""
        if isinstance(change, DeliveryEnded):
            return self._waiting.pop((DeliverySaved, *change), None) is not None
        if isinstance(change, MessageEnded):
            return self._waiting.pop((MessageSaved, *change), None) is not None
        return False

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Call back when all that was put so far is on disk."""
        self._callbacks.append(callback)
        self._wake.set()

    def saturated(self) -> bool:
        """Return True when too much waits, or the disk fails."""
        return self._failing or self._waiting_bytes > self._waiting_bytes_max

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call back when the store is not saturated any more."""
        self._relieved.append(callback)
        self._wake.set()

    async def close(self) -> None:
        """Write what waits and close; what cannot be written is given up, unanswered."""
        if self._task is None:
            return
        self._closing = True
        self._wake.set()
        await self._task
        self._task = None
        await self._database.close()

    async def _run(self) -> None:
        while not (self._closing and not self._waiting and not self._callbacks):
            if not self._waiting and not self._callbacks and not self._relieved:
                self._wake.clear()
                await self._wake.wait()
                continue
            changes = list(self._waiting.values())
            callbacks, self._callbacks = self._callbacks, []
            bytes_before, self._waiting_bytes = self._waiting_bytes, 0
            self._waiting = {}
            try:
                for at in range(0, len(changes), _GROUP_MAX):
                    await self._database.hop(partial(_apply, changes[at : at + _GROUP_MAX]))
                    self.commits += 1
            except Exception as error:  # noqa: BLE001 - the task's root: nothing may be lost
                self._put_back(changes, callbacks, bytes_before, error)
                if self._closing:
                    return
                await asyncio.sleep(_RETRY_S)
                continue
            if self._failing:
                self._failing = False
                self._log.info("mqtt.session_store_works_again", file=str(self.path))
            for callback in callbacks:
                callback()
            self._relieve()

    def _put_back(
        self,
        changes: list[Change],
        callbacks: list[Callable[[], None]],
        waiting_bytes: int,
        error: Exception,
    ) -> None:
        """A group was not written: it goes before all that came meanwhile."""
        if not self._failing:
            self._failing = True
            self._log.error(
                "mqtt.session_store_failed",
                file=str(self.path),
                error=str(error),
                hint="clients whose messages need it wait until it can be written",
            )
        # Keys that nothing undoes: some of the group may have been written already.
        again: dict[object, Change] = {(self._count, i): c for i, c in enumerate(changes)}
        self._count += 1
        again.update(self._waiting)
        self._waiting = again
        self._waiting_bytes += waiting_bytes
        self._callbacks = callbacks + self._callbacks

    def _relieve(self) -> None:
        if self._relieved and not self.saturated():
            relieved, self._relieved = self._relieved, []
            for callback in relieved:
                callback()


class _Database(aiosqlite.Connection):
    """One connection and its thread; a whole transaction is one hop to it."""

    def __init__(self, connector: Callable[[], sqlite3.Connection]) -> None:
        super().__init__(connector, iter_chunk_size=64)

    def hop(self, function: Callable[[sqlite3.Connection], Any]) -> Awaitable[Any]:
        """Call `function` with the connection, on the connection's thread."""
        run = partial(self._call, function)
        hop: Awaitable[Any] = self._execute(run)  # type: ignore[no-untyped-call] # aiosqlite
        return hop

    async def ended(self) -> None:
        """Return when the thread has ended; after a failed opening aiosqlite does not wait."""
        await asyncio.to_thread(self._thread.join)

    def _call(self, function: Callable[[sqlite3.Connection], Any]) -> Any:
        return function(self._conn)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    try:
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        owner = connection.execute("PRAGMA application_id").fetchone()[0]
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if not (empty and not owner) and (owner, version) != (_APPLICATION_ID, _VERSION):
            raise _foreign(version)  # noqa: TRY301 - closed below like any other failure
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Debian builds SQLite to overwrite what is deleted with zeros: writes that nobody asked for
        connection.execute("PRAGMA secure_delete = OFF")
        if empty:
            connection.executescript(
                f"BEGIN; {_SCHEMA} PRAGMA application_id = {_APPLICATION_ID};"
                f" PRAGMA user_version = {_VERSION}; COMMIT;"
            )
    except BaseException:
        connection.close()
        raise
    return connection


def _foreign(version: int) -> sqlite3.DatabaseError:
    return sqlite3.DatabaseError(f"no session store, or one of another release: {version}")


def _load(connection: sqlite3.Connection) -> StoredState:
    # Rows whose other half was not written by an earlier release, or lost by hand.
    connection.execute(
        "DELETE FROM messages WHERE message_id NOT IN (SELECT message_id FROM deliveries)"
    )
    rows = connection.execute
    return StoredState(
        [SessionSaved(*row) for row in rows("SELECT * FROM sessions")],
        [SubscriptionSaved(*row) for row in rows("SELECT * FROM subscriptions")],
        [MessageSaved(*row) for row in rows("SELECT * FROM messages")],
        [
            DeliverySaved(*row)
            for row in rows(
                "SELECT client_id, packet_id, message_id, qos, retain, identifiers, share,"
                " released FROM deliveries ORDER BY position"
            )
        ],
        [InboundSaved(*row) for row in rows("SELECT * FROM inbound")],
        [RetainedSaved(*row) for row in rows("SELECT * FROM retained")],
    )


def _apply(changes: Sequence[Change], connection: sqlite3.Connection) -> None:
    """Apply changes in one transaction; runs of one kind in one call."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        at = 0
        while at < len(changes):
            kind = type(changes[at])
            end = at + 1
            while end < len(changes) and type(changes[end]) is kind:
                end += 1
            for statement in _STATEMENTS[kind]:
                connection.executemany(statement, changes[at:end])
            at = end
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
