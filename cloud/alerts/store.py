"""alerts.db: the engine's state, the stream cursors, history and the outbox, in one transaction.

Because a cursor is committed together with what its entries changed, a restart at any point goes
on as if nothing had happened. Transitions and messages have ids made from what they say, so that
writing one twice leaves one.

    cursors   where each partition stands        series   state by (rule, device, topic), as JSON
    history   transitions, the newest            outbox   messages not delivered yet
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bridge.partition import partition_of
from cloud.alerts.engine import StoredSeries
from cloud.alerts.series import Key, Transition
from cloud.database import (
    Database,
    DatabaseKind,
    FileLock,
    execute_rows,
    open_database,
    transaction,
)

__all__ = ["KIND", "AlertStore", "Changes", "HistoryRow", "Kept", "Message", "QueuedMessage"]

KIND = DatabaseKind(
    title="a Tidegate alerts database",
    application_id=0x5447414C,  # "TGAL"
    version=1,
    schema="""
CREATE TABLE cursors (
    partition INTEGER PRIMARY KEY,
    position  INTEGER NOT NULL,
    now_us    INTEGER NOT NULL   -- the engine's time there
);
CREATE TABLE series (
    rule        TEXT NOT NULL,
    device      TEXT NOT NULL,
    topic       TEXT NOT NULL,   -- '' when the rule is by device
    severity    TEXT NOT NULL,
    fingerprint TEXT NOT NULL,   -- of the rule this is the state of
    state       TEXT NOT NULL,   -- JSON
    PRIMARY KEY (rule, device, topic)
) WITHOUT ROWID;
CREATE TABLE history (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    alert_id   TEXT    NOT NULL,
    state      TEXT    NOT NULL,
    rule       TEXT    NOT NULL,
    severity   TEXT    NOT NULL,
    device     TEXT    NOT NULL,
    topic      TEXT    NOT NULL,
    at_us      INTEGER NOT NULL,  -- event time
    decided_us INTEGER NOT NULL,
    value,                        -- number, text or NULL
    reason     TEXT    NOT NULL,
    historical INTEGER NOT NULL,  -- 1: from late readings
    flapping   INTEGER NOT NULL,
    UNIQUE (alert_id, state, at_us)
);
CREATE TABLE outbox (
    id         INTEGER PRIMARY KEY AUTOINCREMENT,
    target     TEXT    NOT NULL,  -- 'mqtt' or 'webhook:<name>'
    message_id TEXT    NOT NULL,
    thread     TEXT    NOT NULL,  -- messages of one thread go out in order
    address    TEXT    NOT NULL,  -- MQTT topic, or ''
    body       BLOB    NOT NULL,
    created_us INTEGER NOT NULL,
    attempts   INTEGER NOT NULL,
    next_us    INTEGER NOT NULL,
    UNIQUE (target, message_id)
);
CREATE INDEX outbox_thread ON outbox (target, thread, id);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID;
""",
)

_HISTORY_COLUMNS = (
    "alert_id, state, rule, severity, device, topic, at_us, decided_us, value, reason, historical,"
    " flapping"
)
_TRIM_COPY = (
    "DELETE FROM history WHERE id <= (SELECT id FROM history ORDER BY id DESC LIMIT 1 OFFSET ?)"
)
_ALONE_IDS = 1 << 40  # a node alone does not give out so many


@dataclass(slots=True, frozen=True)
class Message:
    """Something to deliver."""

    target: str
    message_id: str
    thread: str
    address: str
    body: bytes
    created_us: int


@dataclass(slots=True, frozen=True)
class QueuedMessage:
    """A message that is due."""

    id: int
    message: Message
    attempts: int  # failed ones so far


@dataclass(slots=True, frozen=True)
class HistoryRow:
    """One transition as it was kept."""

    id: int
    transition: Transition


@dataclass(slots=True)
class Changes:
    """What is to be committed together; collects until a commit succeeds."""

    cursors: dict[int, tuple[int, int]] = field(default_factory=dict)  # position, engine's time
    series: dict[Key, StoredSeries] = field(default_factory=dict)
    history: list[Transition] = field(default_factory=list)
    outbox: list[Message] = field(default_factory=list)

    def __bool__(self) -> bool:
        return bool(self.cursors or self.series or self.history or self.outbox)

    def leave_out(self, partition: int) -> None:
        """Drop what concerns a partition: another node does it."""
        self.cursors.pop(partition, None)
        self.series = {k: v for k, v in self.series.items() if partition_of(k[1]) != partition}
        self.history = [one for one in self.history if partition_of(one.device) != partition]
        self.outbox = [
            one for one in self.outbox if partition_of(one.thread.split("\0")[1]) != partition
        ]

    @property
    def urgent(self) -> bool:
        """True when somebody waits to be told of them."""
        return bool(self.history or self.outbox)


@dataclass(slots=True, frozen=True)
class Kept:
    """What a restart finds."""

    stream_epoch: int | None  # of which stream the cursors are
    alive_us: int  # last time something was committed; 0 = never
    cursors: dict[int, tuple[int, int]]
    series: list[StoredSeries]


class AlertStore:
    """The file and its lock."""

    def __init__(self, database: Database, lock: FileLock, *, history_max: int, outbox_max: int):
        """Use `open`."""
        self._database = database
        self._lock = lock
        self._history_max = history_max
        self._outbox_max = outbox_max
        self._copied = 0  # events since the copy was trimmed

    def limit(self, history_max: int, outbox_max: int) -> None:
        """Keep so much from the next write on."""
        self._history_max = history_max
        self._outbox_max = outbox_max

    @classmethod
    async def open(cls, path: Path, *, history_max: int, outbox_max: int) -> AlertStore:
        """Open or make the file.

        Raises:
            DatabaseError: in use, something else, damaged, or not writable; one line.
        """
        lock = FileLock(path)
        try:
            database = await open_database(path, KIND, cache_bytes=2 << 20)
        except BaseException:
            lock.release()
            raise
        return cls(database, lock, history_max=history_max, outbox_max=outbox_max)

    async def close(self) -> None:
        """Release the file."""
        await self._database.close()
        self._lock.release()

    async def load(self) -> Kept:
        """Return everything but history and outbox."""
        return await self._database.run(_load)

    async def begin(self, stream_epoch: int) -> None:
        """Forget the cursors unless they are of this stream."""
        await self._database.run(lambda connection: _begin(connection, stream_epoch))

    async def commit(self, changes: Changes, now_us: int) -> int:
        """Store `changes` whole or not at all.

        Durable when this returns if they hold history or messages. State alone is not fsynced:
        after a power cut it may be older, together with its cursors, and the same entries, read
        once more, bring it to where it was.

        Args:
            changes: Not changed by this.
            now_us: Kept as the time of the last commit.

        Returns:
            How many old messages had to be dropped for want of room in the outbox.
        """

        urgent = changes.urgent

        def work(connection: sqlite3.Connection) -> int:
            connection.execute(f"PRAGMA synchronous = {'FULL' if urgent else 'NORMAL'}")
            with transaction(connection):
                _write(connection, changes)
                _set(connection, "alive_us", now_us)
                return self._trim(connection, changes)

        return await self._database.run(work)

    async def due(self, target: str, now_us: int, limit: int) -> list[QueuedMessage]:
        """Return messages for `target` to deliver now: of each thread the oldest only."""
        sql = (
            "SELECT id, target, message_id, thread, address, body, created_us, attempts "
            "FROM outbox AS o WHERE target = ? AND next_us <= ? AND NOT EXISTS "
            "(SELECT 1 FROM outbox AS e WHERE e.target = o.target AND e.thread = o.thread "
            "AND e.id < o.id) ORDER BY next_us, id LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> list[QueuedMessage]:
            rows = connection.execute(sql, (target, now_us, limit)).fetchall()
            return [QueuedMessage(row[0], Message(*row[1:7]), row[7]) for row in rows]

        return await self._database.run(work)

    async def next_due_us(self, target: str) -> int | None:
        """Return when the next attempt for `target` is due; None when nothing waits for it."""
        sql = (
            "SELECT min(next_us) FROM outbox AS o WHERE target = ? AND NOT EXISTS "
            "(SELECT 1 FROM outbox AS e WHERE e.target = o.target AND e.thread = o.thread "
            "AND e.id < o.id)"
        )

        def work(connection: sqlite3.Connection) -> int | None:
            (moment,) = connection.execute(sql, (target,)).fetchone()
            return int(moment) if moment is not None else None

        return await self._database.run(work)

    async def discard_others(self, targets: Iterable[str]) -> int:
        """Drop messages for targets that are not there any more; return how many.

        What stays is due at once: the clock may have been set since its next attempt was planned.
        """
        names = list(targets)
        marks = ",".join("?" * len(names))
        sql = f"DELETE FROM outbox WHERE target NOT IN ({marks})"  # noqa: S608 - only marks

        def work(connection: sqlite3.Connection) -> int:
            with transaction(connection):
                connection.execute("UPDATE outbox SET next_us = 0")
                return connection.execute(sql, names).rowcount

        return await self._database.run(work)

    async def pending(self) -> list[Message]:
        """Return every message that was not told yet, oldest first."""
        sql = "SELECT target, message_id, thread, address, body, created_us FROM outbox ORDER BY id"
        rows = await self._database.run(lambda connection: connection.execute(sql).fetchall())
        return [Message(*row) for row in rows]

    async def drop(self, messages: Iterable[Message]) -> None:
        """Forget messages: another node tells them."""
        keys = [(one.target, one.message_id) for one in messages]

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany(
                    "DELETE FROM outbox WHERE target = ? AND message_id = ?", keys
                )

        await self._database.run(work)

    async def forget(self) -> None:
        """Forget all but history: the cluster has kept the rest."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                for table in ("cursors", "series", "outbox"):
                    connection.execute(f"DELETE FROM {table}")  # noqa: S608 - our own names

        await self._database.run(work)

    async def share_history(self) -> None:
        """Make way for a copy of the cluster's history; what there is of one node's own stays.

        That gets ids below all of the cluster's, in its order.
        """

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                shared = "SELECT 1 FROM meta WHERE key = 'history_shared'"
                if connection.execute(shared).fetchone() is None:
                    connection.execute("UPDATE history SET id = id - ?", (_ALONE_IDS,))
                    _set(connection, "history_shared", 1)
                connection.execute("DELETE FROM history WHERE id > 0")

        await self._database.run(work)

    async def copy_history(self, rows: Iterable[HistoryRow]) -> None:
        """Write down what happened at any node, under its id; what is there already stays.

        Kept are the newest `history_max`, and up to a hundredth more.
        """
        values = [(row.id, *_history_row(row.transition)) for row in rows]
        self._copied += len(values)
        trims = self._copied > self._history_max // 100  # it looks at all there are
        if trims:
            self._copied = 0

        def work(connection: sqlite3.Connection) -> None:
            connection.execute("PRAGMA synchronous = NORMAL")  # the cluster has it
            with transaction(connection):
                execute_rows(
                    connection, f"INSERT OR IGNORE INTO history (id, {_HISTORY_COLUMNS})", values
                )
                if trims:
                    connection.execute(_TRIM_COPY, (self._history_max,))

        await self._database.run(work)

    async def settle(self, done: Sequence[int], again: Sequence[tuple[int, int]]) -> None:
        """Remove messages by id, and put others off: (next_us, id), one more attempt each."""

        def work(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.executemany("DELETE FROM outbox WHERE id = ?", [(id_,) for id_ in done])
                connection.executemany(
                    "UPDATE outbox SET attempts = attempts + 1, next_us = ? WHERE id = ?", again
                )

        await self._database.run(work)

    async def queued(self) -> dict[str, int]:
        """Return how many messages wait, by target."""

        def work(connection: sqlite3.Connection) -> dict[str, int]:
            sql = "SELECT target, count(*) FROM outbox GROUP BY target"
            return dict(connection.execute(sql).fetchall())

        return await self._database.run(work)

    async def history(
        self, *, rule: str | None, device: str | None, before: int | None, limit: int
    ) -> list[HistoryRow]:
        """Return kept transitions, newest first, those with an id under `before` if it is given."""
        sql = (
            "SELECT id, state, alert_id, rule, severity, device, topic, at_us, decided_us, value, "
            "reason, historical, flapping FROM history WHERE (? IS NULL OR rule = ?) "
            "AND (? IS NULL OR device = ?) AND (? IS NULL OR id < ?) ORDER BY id DESC LIMIT ?"
        )

        def work(connection: sqlite3.Connection) -> list[HistoryRow]:
            values = (rule, rule, device, device, before, before, limit)
            rows = connection.execute(sql, values).fetchall()
            return [HistoryRow(row[0], _transition(row[1:])) for row in rows]

        return await self._database.run(work)

    def _trim(self, connection: sqlite3.Connection, changes: Changes) -> int:
        if changes.history:
            connection.execute(
                "DELETE FROM history WHERE id <= (SELECT max(id) FROM history) - ?",
                (self._history_max,),
            )
        if not changes.outbox:
            return 0
        (count,) = connection.execute("SELECT count(*) FROM outbox").fetchone()
        if count <= self._outbox_max:
            return 0
        excess = int(count - self._outbox_max)
        connection.execute(
            "DELETE FROM outbox WHERE id IN (SELECT id FROM outbox ORDER BY id LIMIT ?)", (excess,)
        )
        return excess


def _transition(row: Sequence[Any]) -> Transition:
    values = (*row[:10], *map(bool, row[10:]))
    return Transition(*values)


def _load(connection: sqlite3.Connection) -> Kept:
    meta: dict[str, Any] = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    cursors = connection.execute("SELECT partition, position, now_us FROM cursors").fetchall()
    series = connection.execute(
        "SELECT rule, device, topic, severity, fingerprint, state FROM series"
    ).fetchall()
    epoch = meta.get("stream_epoch")
    return Kept(
        stream_epoch=int(epoch, 16) if epoch is not None else None,
        alive_us=meta.get("alive_us", 0),
        cursors={partition: (position, now_us) for partition, position, now_us in cursors},
        series=[StoredSeries(tuple(row[:3]), row[3], row[4], json.loads(row[5])) for row in series],
    )


def _begin(connection: sqlite3.Connection, stream_epoch: int) -> None:
    text = f"{stream_epoch:016x}"
    with transaction(connection):
        row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
        if row is None or row[0] != text:
            connection.execute("DELETE FROM cursors")
            _set(connection, "stream_epoch", text)


def _set(connection: sqlite3.Connection, key: str, value: object) -> None:
    connection.execute(
        "INSERT INTO meta (key, value) VALUES (?, ?) "
        "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
        (key, value),
    )


def _write(connection: sqlite3.Connection, changes: Changes) -> None:
    execute_rows(
        connection,
        "INSERT INTO cursors (partition, position, now_us)",
        [(partition, *reached) for partition, reached in changes.cursors.items()],
        "ON CONFLICT (partition) DO UPDATE SET position = excluded.position, "
        "now_us = excluded.now_us",
    )
    execute_rows(
        connection,
        "INSERT INTO series (rule, device, topic, severity, fingerprint, state)",
        [
            (*item.key, item.severity, item.fingerprint, json.dumps(item.state))
            for item in changes.series.values()
            if item.state is not None
        ],
        "ON CONFLICT (rule, device, topic) DO UPDATE SET severity = excluded.severity, "
        "fingerprint = excluded.fingerprint, state = excluded.state",
    )
    execute_rows(
        connection,
        "DELETE FROM series WHERE (rule, device, topic) IN (",
        [item.key for item in changes.series.values() if item.state is None],
        ")",
    )
    execute_rows(
        connection,
        f"INSERT OR IGNORE INTO history ({_HISTORY_COLUMNS})",
        [_history_row(transition) for transition in changes.history],
    )
    execute_rows(
        connection,
        "INSERT OR IGNORE INTO outbox (target, message_id, thread, address, body, created_us, "
        "attempts, next_us)",
        [_outbox_row(message) for message in changes.outbox],
    )


def _history_row(transition: Transition) -> tuple[Any, ...]:
    return (
        transition.alert_id,
        transition.state,
        transition.rule,
        transition.severity,
        transition.device,
        transition.topic,
        transition.at_us,
        transition.decided_us,
        transition.value,
        transition.reason,
        int(transition.historical),
        int(transition.flapping),
    )


def _outbox_row(message: Message) -> tuple[Any, ...]:
    return (
        message.target,
        message.message_id,
        message.thread,
        message.address,
        message.body,
        message.created_us,
        0,
        0,
    )
