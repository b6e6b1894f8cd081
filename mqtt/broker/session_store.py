"""Sessions and retained messages in one SQLite file, written with group commits.

Changes gather while a commit is under way and go into the next one: one transaction, one fsync,
one hop to the database's thread. What is made and ended within one group is never written.

Invariants:
- a callback of `when_durable` runs after the commit that holds everything put before it, and
  not while commits fail: the group is kept, tried again every second, and the broker told that the
  store is saturated;
- changes reach the file in the order they were put, as far as they concern the same row;
- a file that is damaged is replaced by what can be read of it, at opening and while in use
  (`mqtt.broker.session_file`); a fault in one callback keeps no other from being called.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Final

import structlog

from mqtt.broker.changes import (
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundRecovered,
    InboundSaved,
    Marked,
    MessageEnded,
    MessageSaved,
    OfferEnded,
    OfferSaved,
    OfferTaken,
    RetainedEnded,
    RetainedSaved,
    SessionEnded,
    SessionSaved,
    StoredState,
    SubscriptionEnded,
    SubscriptionSaved,
)
from mqtt.broker.session_file import is_damage, load, open_file, salvage
from runtime.clock import Clock, SystemClock
from runtime.sqlite import SqliteConnection

__all__ = ["SessionStoreError", "SqliteSessionStore"]

_RETRY_S: Final = 1.0
_GROUP_MAX: Final = 20_000  # changes of one transaction
_ROWS_MAX: Final = 40  # of one INSERT
_CHANGE_BYTES: Final = 100  # that a change takes besides its contents

_STATEMENTS: Final[dict[type, tuple[str, ...]]] = {
    SessionSaved: (
        "INSERT OR REPLACE INTO sessions VALUES (?,?,?,?,?,?,?,?,?,?)",
        # The client is back: from now on what is UNSENT may be sent at any time.
        (
            "WITH saved (client_id, b, c, d, e, f, g, h, i, j) AS (SELECT ?,?,?,?,?,?,?,?,?,?)"
            " UPDATE deliveries SET released = 0 WHERE released = 2"
            " AND client_id = (SELECT client_id FROM saved WHERE d = 0 AND j NOTNULL)"
        ),
    ),
    SessionEnded: (
        "DELETE FROM sessions WHERE client_id = ?",
        "DELETE FROM subscriptions WHERE client_id = ?",
        "DELETE FROM deliveries WHERE client_id = ?",
        "DELETE FROM inbound WHERE client_id = ?",
        "DELETE FROM recovered WHERE client_id = ?",
    ),
    SubscriptionSaved: ("INSERT OR REPLACE INTO subscriptions VALUES (?,?,?,?)",),
    SubscriptionEnded: ("DELETE FROM subscriptions WHERE client_id = ? AND topic_filter = ?",),
    MessageSaved: ("INSERT OR REPLACE INTO messages VALUES (?,?,?,?,?,?,?,?)",),
    MessageEnded: ("DELETE FROM messages WHERE message_id = ?",),
    DeliverySaved: ("INSERT OR REPLACE INTO deliveries VALUES (NULL,?,?,?,?,?,?,?,?)",),
    DeliveryReleased: ("UPDATE deliveries SET released = 1 WHERE client_id = ? AND packet_id = ?",),
    DeliveryEnded: ("DELETE FROM deliveries WHERE client_id = ? AND packet_id = ?",),
    InboundSaved: ("INSERT OR REPLACE INTO inbound VALUES (?,?)",),
    InboundEnded: (
        "DELETE FROM inbound WHERE client_id = ? AND packet_id = ?",
        "DELETE FROM recovered WHERE client_id = ? AND packet_id = ?",
    ),
    InboundRecovered: ("INSERT OR REPLACE INTO recovered VALUES (?,?,?)",),
    Marked: ("INSERT OR REPLACE INTO mark VALUES (1,?,?)",),
    OfferSaved: ("INSERT OR REPLACE INTO offers VALUES (?,?,?,?)",),
    OfferTaken: ("UPDATE offers SET taken = 1 WHERE token = ?",),
    OfferEnded: ("DELETE FROM offers WHERE token = ?",),
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
        clock: Names what a damaged file is moved to.
    """

    def __init__(
        self, path: Path, *, waiting_bytes_max: int = 8 << 20, clock: Clock | None = None
    ) -> None:
        self.path = path
        self.commits = 0  # since the start
        self._waiting_bytes_max = waiting_bytes_max
        self.salvages = 0  # times the file was found damaged and replaced
        self._clock = clock or SystemClock()
        self._is_unusable = False  # damaged, and not replaced yet
        self._database = SqliteConnection(partial(open_file, path))
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
        self._log = structlog.get_logger(component="sessions")

    async def open(self) -> StoredState:
        """Open or make the file and return what it holds; a damaged one is replaced.

        Raises:
            SessionStoreError: the file cannot be opened, or is not a session store.
        """
        try:
            try:
                state = await self._open()
            except sqlite3.Error as error:
                if not is_damage(error):
                    raise
                await self._salvage(error)
                state = await self._open()
        except (sqlite3.Error, OSError) as error:
            await self._shut()
            raise SessionStoreError(
                f"{self.path}: cannot be used as session store ({error});"
                " move it away to start with none"
            ) from error
        self._task = asyncio.get_running_loop().create_task(self._run(), name="mqtt-session-store")
        return state

    async def _open(self) -> StoredState:
        await self._database
        state: StoredState = await self._database.hop(load)
        return state

    async def _shut(self) -> None:
        await self._database.close()
        await self._database.ended()

    async def _salvage(self, error: Exception) -> None:
        """Replace the damaged file, and be ready to open the new one."""
        await self._shut()
        done = await asyncio.to_thread(salvage, self.path, self._clock.wall_us())
        self.salvages += 1
        self._log.error(
            "mqtt_session_store_damaged",
            file=str(self.path),
            error=str(error),
            moved_to=str(done.moved_to),
            rows_kept=done.rows,
            tables_incomplete=list(done.incomplete),
            hint="sessions, queued or retained messages may be missing; clients find out by"
            " Session Present 0, or by what does not come",
        )
        self._database = SqliteConnection(partial(open_file, self.path))

    def put(self, change: Change) -> None:
        """Take a change into the next group."""
        waiting = self._waiting
        kind = type(change)
        if kind is RetainedSaved or kind is RetainedEnded:
            # by topic, the only keys that are bytes: the last one counts
            waiting[change[0]] = change
        elif kind is DeliverySaved:
            waiting[DeliverySaved, *change[:2]] = change
        elif kind is MessageSaved:
            waiting[MessageSaved, change[0]] = change
        elif kind is Marked:
            waiting.pop(Marked, None)  # it goes behind what it speaks of
            waiting[Marked] = change
        elif not self._undoes(change):
            self._count += 1
            waiting[self._count] = change
        size = _CHANGE_BYTES
        for value in change:
            if value.__class__ is bytes:
                size += len(value)
        self._waiting_bytes += size
        if not self._wake.is_set():
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
                if self._is_unusable or (isinstance(error, sqlite3.Error) and is_damage(error)):
                    await self._repair(error)
                if self._closing:
                    return
                await asyncio.sleep(_RETRY_S)
                continue
            if self._failing:
                self._failing = False
                self._log.info("mqtt_session_store_works_again", file=str(self.path))
            for callback in callbacks:
                self._call(callback)
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
                "mqtt_session_store_failed",
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
                self._call(callback)

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 - one connection's fault must not end the store
            self._log.exception("mqtt_session_store_callback_broke")

    async def _repair(self, error: Exception) -> None:
        """Replace a file that turned out to be damaged; what could not be written is put again."""
        self._is_unusable = True
        try:
            await self._salvage(error)
            await self._database
            self._is_unusable = False
        except (sqlite3.Error, OSError) as fault:
            self._log.error(
                "mqtt_session_store_not_repaired", file=str(self.path), error=str(fault)
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
            _apply_run(kind, changes[at:end], connection)
            at = end
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _apply_run(kind: type, changes: Sequence[Change], connection: sqlite3.Connection) -> None:
    """Apply changes of one kind; rows that are only put go by the dozen in one statement."""
    statements = _STATEMENTS[kind]
    head, values, row = statements[0].partition(" VALUES ")
    whole = len(changes) - len(changes) % _ROWS_MAX if values and len(statements) == 1 else 0
    many = f"{head}{values}{','.join([row] * _ROWS_MAX)}"
    for at in range(0, whole, _ROWS_MAX):
        connection.execute(many, list(chain.from_iterable(changes[at : at + _ROWS_MAX])))
    for statement in statements:
        connection.executemany(statement, changes[whole:])
