"""commands.db: every command with its state, and the gateway that last carried each device.

States: `waiting` (not yet at a gateway), `held` (durable at one), then for good `delivered`,
`expired` or `no such device`. A command is in the file before its publisher is acknowledged, and an
outcome before its gateway is. `told` is 0 until the outcome was published. docs/commands.md.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from cloud.database import (
    Database,
    DatabaseError,
    DatabaseKind,
    FileLock,
    execute_rows,
    open_database,
    transaction,
)
from cloud.sinks.schema import epoch_to_sql

__all__ = ["WAITING", "CommandRefused", "CommandRow", "CommandStore"]

T = TypeVar("T")

WAITING = "waiting"
_SELECT = (
    "SELECT id, device, topic, payload, qos, properties, created_us, expires_us, state, gateway,"
    " detail, changed_us, response_topic, told FROM commands "
)
_INSERT = "INSERT INTO commands VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
_SCHEMA = """
CREATE TABLE commands (
    id             TEXT    PRIMARY KEY,
    device         TEXT    NOT NULL,
    topic          TEXT    NOT NULL,
    payload        BLOB    NOT NULL,
    qos            INTEGER NOT NULL,
    properties     BLOB    NOT NULL,  -- MQTT 5 block as published, without expiry
    created_us     INTEGER NOT NULL,
    expires_us     INTEGER NOT NULL,
    state          TEXT    NOT NULL,
    gateway        TEXT    NOT NULL,  -- where it is or was meant to go; '' = nobody knows
    detail         TEXT    NOT NULL,
    changed_us     INTEGER NOT NULL,
    response_topic TEXT    NOT NULL,  -- where the publisher wants the outcome; '' = nowhere else
    told           INTEGER NOT NULL   -- 1: the outcome was published
);
CREATE INDEX commands_state ON commands (state, gateway);
CREATE TABLE devices (
    device  TEXT PRIMARY KEY,
    gateway TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE cursors (
    partition INTEGER PRIMARY KEY,
    position  INTEGER NOT NULL
);
CREATE TABLE recalls (
    gateway TEXT NOT NULL,
    id      TEXT NOT NULL,
    PRIMARY KEY (gateway, id)
) WITHOUT ROWID;
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID
"""
KIND = DatabaseKind("a Tidegate commands database", 0x5447434D, 1, _SCHEMA)  # "TGCM"


class CommandRefused(Exception):  # noqa: N818 - an answer, not a fault
    """A command that is not taken; one line. `code` is the reason code that says so."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(detail)
        self.code = code


@dataclass(slots=True)
class CommandRow:
    """One command."""

    command_id: str
    device: str
    topic: str
    payload: bytes
    qos: int
    properties: bytes
    created_us: int
    expires_us: int
    state: str
    gateway: str
    detail: str
    changed_us: int
    response_topic: str
    told: int = 0


class CommandStore:
    """The file, open. Memory holds nothing of it: the part keeps what it needs."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: FileLock | None = None
        self._database: Database | None = None

    async def open(self, stream_epoch: int) -> None:
        """Open the file, making it when it is new.

        Raises:
            DatabaseError: it is in use, foreign, newer, damaged or cannot be written.
        """
        self._lock = await asyncio.to_thread(FileLock, self.path)
        try:
            self._database = await open_database(self.path, KIND)
            await self.run(lambda connection: _adopt(connection, stream_epoch))
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Release the file; harmless when closed already."""
        if self._database is not None:
            await self._database.close()
            self._database = None
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`; raises DatabaseError for what SQLite raises."""
        if self._database is None:
            raise DatabaseError(f"{self.path}: not open")
        try:
            return await self._database.run(work)
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    async def unfinished(self) -> list[CommandRow]:
        """Return commands without an outcome, and with one not told yet, oldest first."""
        where = "WHERE state IN ('waiting', 'held') OR told = 0 ORDER BY created_us, rowid"
        return await self._rows(_SELECT + where)

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command."""
        rows = await self._rows(_SELECT + "WHERE id = ?", command_id)
        return rows[0] if rows else None

    async def newest(self, device: str | None, state: str | None, limit: int) -> list[CommandRow]:
        """Return commands, the newest first."""
        where = (
            "WHERE (?1 IS NULL OR device = ?1) AND (?2 IS NULL OR state = ?2)"
            " ORDER BY created_us DESC, rowid DESC LIMIT ?3"
        )
        return await self._rows(_SELECT + where, device, state, limit)

    async def _rows(self, sql: str, *values: object) -> list[CommandRow]:
        rows = await self.run(lambda connection: connection.execute(sql, values).fetchall())
        return [CommandRow(*row) for row in rows]

    async def add(self, rows: Sequence[CommandRow]) -> list[bool]:
        """Keep commands; durable on return. False for one whose id is there already."""

        def insert(connection: sqlite3.Connection) -> list[bool]:
            with transaction(connection):
                return [connection.execute(_INSERT, _values(row)).rowcount > 0 for row in rows]

        return await self.run(insert)

    async def save(
        self, rows: Sequence[CommandRow], recalls: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Keep the present state of commands, and recalls (gateway, id) to be sent."""

        def update(connection: sqlite3.Connection) -> None:
            sql = (
                "UPDATE commands SET state = ?, gateway = ?, detail = ?, changed_us = ?, told = ?"
                " WHERE id = ?"
            )
            with transaction(connection):
                for row in rows:
                    values = (row.state, row.gateway, row.detail, row.changed_us, row.told)
                    connection.execute(sql, (*values, row.command_id))
                for recall in recalls:
                    connection.execute("INSERT OR IGNORE INTO recalls VALUES (?, ?)", recall)

        await self.run(update)

    async def recalls(self) -> list[tuple[str, str]]:
        """Return (gateway, id) of recalls not confirmed."""
        sql = "SELECT gateway, id FROM recalls"
        return await self.run(lambda connection: connection.execute(sql).fetchall())

    async def recalled(self, gateway: str, command_id: str) -> None:
        """Forget a recall: the gateway has answered it."""
        sql = "DELETE FROM recalls WHERE gateway = ? AND id = ?"
        await self.run(lambda connection: connection.execute(sql, (gateway, command_id)))

    async def forget(self, before_us: int) -> None:
        """Forget outcomes from before a time that were told."""
        sql = (
            "DELETE FROM commands WHERE told = 1 AND changed_us < ?"
            " AND state NOT IN ('waiting', 'held')"
        )
        await self.run(lambda connection: connection.execute(sql, (before_us,)))

    async def devices(self) -> dict[str, str]:
        """Return the gateway that last carried each device."""
        sql = "SELECT device, gateway FROM devices"
        return dict(await self.run(lambda connection: connection.execute(sql).fetchall()))

    async def cursors(self) -> dict[int, int]:
        """Return how far the devices were followed."""
        sql = "SELECT partition, position FROM cursors"
        return dict(await self.run(lambda connection: connection.execute(sql).fetchall()))

    async def follow(self, devices: Mapping[str, str], cursors: Mapping[int, int]) -> None:
        """Keep who carries which device, with the cursors, as one."""

        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                execute_rows(
                    connection,
                    "INSERT INTO devices",
                    list(devices.items()),
                    "ON CONFLICT (device) DO UPDATE SET gateway = excluded.gateway",
                )
                execute_rows(
                    connection,
                    "INSERT INTO cursors",
                    list(cursors.items()),
                    "ON CONFLICT (partition) DO UPDATE SET position = excluded.position",
                )

        await self.run(write)


def _values(row: CommandRow) -> tuple[object, ...]:
    return (
        row.command_id, row.device, row.topic, row.payload, row.qos, row.properties,
        row.created_us, row.expires_us, row.state, row.gateway, row.detail, row.changed_us,
        row.response_topic, row.told,
    )  # fmt: skip


def _adopt(connection: sqlite3.Connection, stream_epoch: int) -> None:
    """Begin at the start of a stream whose positions these cursors are not of."""
    value = epoch_to_sql(stream_epoch)
    row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
    if row is None or row[0] != value:
        with transaction(connection):
            connection.execute("DELETE FROM cursors")
            connection.execute("INSERT OR REPLACE INTO meta VALUES ('stream_epoch', ?)", (value,))
