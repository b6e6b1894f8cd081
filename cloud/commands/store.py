"""commands.db: the commands of a node that is alone, and which gateway last carried each device.

A `CommandStore` (cloud/commands/contract.py) with one writer: nothing in it ever changes behind
the part's back.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from bridge.partition import PARTITIONS, partition_of
from cloud.commands.contract import CommandBody, CommandRow, CommandWatcher
from cloud.database import (
    DatabaseError,
    DatabaseKind,
    execute_rows,
    transaction,
)
from cloud.database_file import OwnedDatabaseFile
from cloud.sinks.schema import epoch_to_sql

__all__ = ["SqliteCommandStore"]

T = TypeVar("T")

_SELECT = (
    "SELECT id, device, topic, qos, length(payload), created_us, expires_us, state, gateway,"
    " detail, changed_us, response_topic, told FROM commands "
)
_INSERT = "INSERT INTO commands VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING"
_RECALL = "INSERT OR IGNORE INTO recalls VALUES (?, ?)"
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


class SqliteCommandStore:
    """The file, open. Memory holds nothing of it: the part keeps what it needs.

    Args:
        path: Of the file.
        node_id: The gateway of devices that are connected to this node.
    """

    def __init__(self, path: Path, node_id: str) -> None:
        self.path = path
        self._node_id = node_id
        self._file = OwnedDatabaseFile(path, KIND)

    async def open(self, stream_epoch: int) -> None:
        """Open the file, making it when it is new.

        Raises:
            DatabaseError: it is in use, foreign, newer, damaged or cannot be written.
        """
        await self._file.open()
        try:
            await self.run(lambda connection: _adopt(connection, stream_epoch))
        except BaseException:
            await self.close()
            raise

    async def watch(self, watcher: CommandWatcher) -> None:
        """Do nothing: nobody else writes."""

    async def close(self) -> None:
        """Release the file; harmless when closed already."""
        await self._file.close()

    async def run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return `work(connection)`; raises DatabaseError for what SQLite raises."""
        try:
            return await self._file.run(work)
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    async def unfinished(self) -> list[CommandRow]:
        """Return commands without an outcome, and with one not told yet, oldest first."""
        where = "WHERE state IN ('waiting', 'sent', 'held') OR told = 0 ORDER BY created_us, rowid"
        return await self._rows(_SELECT + where)

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command."""
        rows = await self._rows(_SELECT + "WHERE id = ?", command_id)
        return rows[0] if rows else None

    async def newest(self, device: str | None, state: str | None, limit: int) -> list[CommandRow]:
        """Return commands, the newest first."""
        where = (
            "WHERE (? IS NULL OR device = ?) AND (? IS NULL OR state = ?)"
            " ORDER BY created_us DESC, rowid DESC LIMIT ?"
        )
        return await self._rows(_SELECT + where, device, device, state, state, limit)

    async def _rows(self, sql: str, *values: object) -> list[CommandRow]:
        rows = await self.run(lambda connection: connection.execute(sql, values).fetchall())
        return [replace(CommandRow(*row), told=bool(row[-1])) for row in rows]

    async def add(
        self, rows: Sequence[tuple[CommandRow, CommandBody]]
    ) -> list[tuple[CommandRow, bool]]:
        """Keep commands; durable on return. False for one whose id is there already."""

        def insert(connection: sqlite3.Connection) -> list[bool]:
            with transaction(connection):
                return [
                    connection.execute(_INSERT, _values(row, body)).rowcount > 0
                    for row, body in rows
                ]

        fresh = await self.run(insert)
        return [
            (row if is_new else await self.find(row.command_id) or row, is_new)
            for (row, _), is_new in zip(rows, fresh, strict=True)
        ]

    async def body(self, row: CommandRow) -> CommandBody | None:
        """Return what the device gets."""
        sql = "SELECT payload, properties FROM commands WHERE id = ?"
        found = await self.run(lambda c: c.execute(sql, (row.command_id,)).fetchone())
        return CommandBody(*found) if found is not None else None

    async def save(self, row: CommandRow, recall: tuple[str, str] | None = None) -> CommandRow:
        """Keep the present state of a command, and a recall (gateway, id) to be sent."""

        def update(connection: sqlite3.Connection) -> None:
            sql = (
                "UPDATE commands SET state = ?, gateway = ?, detail = ?, changed_us = ?, told = ?"
                " WHERE id = ?"
            )
            values = (row.state, row.gateway, row.detail, row.changed_us, row.told)
            with transaction(connection):
                connection.execute(sql, (*values, row.command_id))
                if recall is not None:
                    connection.execute(_RECALL, recall)

        await self.run(update)
        return row

    async def recall(self, gateway: str, command_id: str) -> None:
        """Keep a recall until it is answered."""

        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                connection.execute(_RECALL, (gateway, command_id))

        await self.run(write)

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
            " AND state NOT IN ('waiting', 'sent', 'held')"
        )
        await self.run(lambda connection: connection.execute(sql, (before_us,)))

    def is_node(self, gateway: str) -> bool:
        """Return True for this node."""
        return gateway == self._node_id

    async def carriers(self, partitions: Collection[int]) -> dict[str, str]:
        """Return the gateway that last carried each device of some partitions."""
        sql = "SELECT device, gateway FROM devices"
        found = dict(await self.run(lambda connection: connection.execute(sql).fetchall()))
        if len(partitions) == PARTITIONS:
            return found
        return {device: one for device, one in found.items() if partition_of(device) in partitions}

    async def carrier(self, device: str) -> str | None:
        """Return the gateway that last carried a device."""
        sql = "SELECT gateway FROM devices WHERE device = ?"
        row = await self.run(lambda connection: connection.execute(sql, (device,)).fetchone())
        return None if row is None else str(row[0])

    async def cursors(self) -> dict[int, int]:
        """Return how far the devices were followed."""
        sql = "SELECT partition, position FROM cursors"
        return dict(await self.run(lambda connection: connection.execute(sql).fetchall()))

    async def follow(self, carriers: Mapping[str, str], cursors: Mapping[int, int]) -> None:
        """Keep who carries which device, with the cursors, as one."""

        def write(connection: sqlite3.Connection) -> None:
            with transaction(connection):
                execute_rows(
                    connection,
                    "INSERT INTO devices",
                    list(carriers.items()),
                    "ON CONFLICT (device) DO UPDATE SET gateway = excluded.gateway",
                )
                execute_rows(
                    connection,
                    "INSERT INTO cursors",
                    list(cursors.items()),
                    "ON CONFLICT (partition) DO UPDATE SET position = excluded.position",
                )

        await self.run(write)


def _values(row: CommandRow, body: CommandBody) -> tuple[object, ...]:
    return (
        row.command_id, row.device, row.topic, body.payload, row.qos, body.properties,
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
