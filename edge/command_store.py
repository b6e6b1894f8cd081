"""DIR/edge/commands.db: the commands a gateway holds for its devices, and what became of them.

A command is here before the cloud is told that the gateway has it, and its outcome before the cloud
is told of that; a row stays, without its payload, until the cloud has acknowledged the outcome and
for a while after, so that a command that comes twice is known. docs/commands.md.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bridge.commands import HELD, Command
from edge.database import Database, make_file

__all__ = ["CommandStore", "CommandStoreError", "HeldCommand", "held_of"]

APPLICATION_ID = 0x54444345  # "TDCE"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS commands (
    id         TEXT PRIMARY KEY,
    device     TEXT NOT NULL,
    topic      TEXT NOT NULL,
    payload    BLOB NOT NULL,
    qos        INTEGER NOT NULL,
    properties BLOB NOT NULL,
    taken_us   INTEGER NOT NULL,
    expires_us INTEGER NOT NULL,  -- by this machine's wall clock
    boot_id    TEXT NOT NULL,     -- and within this boot,
    expires_s  REAL NOT NULL,     -- by the clock that cannot be set
    state      TEXT NOT NULL,     -- held, delivered, expired, no such device, recalled
    detail     TEXT NOT NULL,
    changed_us INTEGER NOT NULL,
    reported   INTEGER NOT NULL   -- 1: the cloud has acknowledged this state
) STRICT
"""
_SELECT = (
    "SELECT id, device, topic, payload, qos, properties, taken_us, expires_us, boot_id, expires_s,"
    " state, detail, changed_us, reported FROM commands "
)
_KEPT = 10_000  # outcomes remembered, so that a command that comes again is known


class CommandStoreError(Exception):
    """The file cannot be used; `str()` is one line for an operator."""


@dataclass(slots=True)
class HeldCommand:
    """One command at this gateway."""

    command_id: str
    device: str
    topic: str
    payload: bytes
    qos: int
    properties: bytes
    taken_us: int
    expires_us: int
    boot_id: str
    expires_s: float
    state: str = HELD
    detail: str = ""
    changed_us: int = 0
    reported: int = 0

    def expired(self, now_us: int, boot_id: str, monotonic_s: float) -> bool:
        """Return True once its time is over; within one boot a wrong wall clock does not matter."""
        return self.left_s(now_us, boot_id, monotonic_s) <= 0

    def left_s(self, now_us: int, boot_id: str, monotonic_s: float) -> float:
        """Return the seconds until then."""
        if boot_id == self.boot_id:
            return self.expires_s - monotonic_s
        return (self.expires_us - now_us) / 1e6


class CommandStore:
    """The file, open."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: Database | None = None

    async def open(self) -> list[HeldCommand]:
        """Open the file, making it when it is new; return what is held or to be reported.

        Raises:
            CommandStoreError: it is something else, damaged, or cannot be written.
        """
        database = Database(partial(make_file, self.path, APPLICATION_ID, _SCHEMA), durable=True)
        try:
            await database
        except (sqlite3.Error, OSError) as error:
            raise CommandStoreError(f"{self.path}: {error}; move it away") from error
        self._database = database
        where = "WHERE state = 'held' OR reported = 0 ORDER BY taken_us, rowid"
        rows = await database.query(_SELECT + where)
        return [HeldCommand(*row) for row in rows]

    async def close(self) -> None:
        """Release the file; harmless when closed already."""
        if self._database is not None:
            await self._database.close()
            self._database = None

    async def find(self, command_id: str) -> HeldCommand | None:
        """Return a command that is known, whatever became of it."""
        rows = await self._opened().query(_SELECT + "WHERE id = ?", (command_id,))
        return HeldCommand(*rows[0]) if rows else None

    async def add(self, held: HeldCommand) -> None:
        """Keep a command; durable on return."""
        sql = "INSERT OR REPLACE INTO commands VALUES (?,?,?,?,?,?,?,?,?,?,?,?,?,?)"
        await self._opened().query(sql, _values(held))

    async def save(self, held: HeldCommand) -> None:
        """Keep a command's state; a final one lets its payload go. Durable on return."""
        sql = (
            "UPDATE commands SET state = ?, detail = ?, changed_us = ?, reported = ?,"
            " payload = CASE ? WHEN 'held' THEN payload ELSE x'' END WHERE id = ?"
        )
        state = held.state
        values = (state, held.detail, held.changed_us, held.reported, state, held.command_id)
        await self._opened().query(sql, values)

    async def forget_old(self) -> None:
        """Forget reported outcomes past the newest few thousand."""
        sql = (
            "DELETE FROM commands WHERE state <> 'held' AND reported = 1 AND id NOT IN"
            " (SELECT id FROM commands ORDER BY changed_us DESC LIMIT ?)"
        )
        await self._opened().query(sql, (_KEPT,))

    def _opened(self) -> Database:
        if self._database is None:
            raise CommandStoreError(f"{self.path}: not open")
        return self._database


def held_of(
    command: Command, *, now_us: int, boot_id: str, monotonic_s: float, expires_never_s: float
) -> HeldCommand:
    """Return a command that has just come as it is kept."""
    left_s = min(float(command.left_s), expires_never_s)
    return HeldCommand(
        command.command_id, command.device, command.topic, command.payload, command.qos,
        command.properties, now_us, now_us + round(left_s * 1e6), boot_id, monotonic_s + left_s,
        changed_us=now_us,
    )  # fmt: skip


def _values(held: HeldCommand) -> tuple[object, ...]:
    return (
        held.command_id, held.device, held.topic, held.payload, held.qos, held.properties,
        held.taken_us, held.expires_us, held.boot_id, held.expires_s, held.state, held.detail,
        held.changed_us, held.reported,
    )  # fmt: skip
