"""What a trace asks of files, opened read-only beside the processes that write them or alone.

The journal belongs to another package; what is read of it is in docs/journal-format.md section 2.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from bridge.envelope import LinkLane
from cloud.config import StorageConfig
from cloud.ledger_files import AlertsFile, JournalFile, StreamFile
from cloud.query_time import iso
from cloud.storage import storage_reader
from cloud.trace import AlertSeen, JournalPlace, StreamTrace, Traced, TraceError

__all__ = ["find_reading", "traced_files"]

_EVER_US = (1 << 63) - 1  # no row bears a later time

FileT = TypeVar("FileT", StreamFile, "_JournalRows", "_AlertRows")


class _JournalRows(JournalFile):
    """A journal, asked for single seqs."""

    async def place(self, seq: int) -> tuple[int, JournalPlace]:
        """Return the journal's epoch, and what it says of a seq."""
        return await self.ask_file(lambda connection: _place(connection, seq))


class _AlertRows(AlertsFile):
    """The alerts' history."""

    async def at(self, device: str, time_us: int) -> list[AlertSeen]:
        """Return the transitions of a device's alerts at an event time."""
        sql = (
            "SELECT rule, state, decided_us FROM history WHERE device = ? AND at_us = ? ORDER BY id"
        )
        values = (device, time_us)
        rows = await self.ask_file(lambda connection: connection.execute(sql, values).fetchall())
        return [AlertSeen(*row) for row in rows]


@asynccontextmanager
async def traced_files(
    data: Path,
    stream: StreamTrace | None = None,
    sinks: Mapping[str, Mapping[int, int]] | None = None,
    config: StorageConfig | None = None,
) -> AsyncIterator[Traced]:
    """Open what there is below a data folder.

    Args:
        data: What `--data` names.
        stream: A stream that is open already; its file otherwise.
        sinks: Positions of the sinks, with an open stream.
        config: Where storage is.

    Raises:
        DatabaseError: there is no stream, or a file cannot be read.
    """
    async with contextlib.AsyncExitStack() as stack:

        async def opened(file: FileT) -> FileT:
            await file.open()
            stack.push_async_callback(file.close)
            return file

        positions = dict(sinks or {})
        if stream is None:
            of_stream = await opened(StreamFile(data / "cloud" / "stream.db"))
            positions = dict(await of_stream.sinks())
            stream = of_stream
        places = Traced(stream)
        storage = storage_reader(data, config or StorageConfig())
        if storage.exists():
            await storage.open()
            stack.push_async_callback(storage.close)
            places.storage = storage
            positions["storage"] = (await storage.state(count_rows=False)).positions
        journal = _JournalRows(data / "edge" / "journal.db")
        if journal.path.exists():
            places.journal = await opened(journal)
        alerts = _AlertRows(data / "cloud" / "alerts.db")
        if alerts.path.exists():
            places.alerts = await opened(alerts)
        places.sinks = positions
        yield places


async def find_reading(
    data: Path, device: str, time_us: int, config: StorageConfig | None = None
) -> tuple[str, int, int]:
    """Return gateway, epoch and seq of a device's newest reading at a time or before it.

    Raises:
        DatabaseError: there is no storage, or it cannot be read.
        TraceError: the device has no reading that old.
    """
    storage = storage_reader(data, config or StorageConfig())
    await storage.open()
    try:
        found = await storage.newest(device, time_us)
        ever = found or await storage.newest(device, _EVER_US)
    finally:
        await storage.close()
    if ever is None:
        raise TraceError(f"device '{device}' has no reading stored")
    if found is None:
        raise TraceError(f"device '{device}' has no reading stored at {iso(time_us)} or before it")
    return found


def _place(connection: sqlite3.Connection, seq: int) -> tuple[int, JournalPlace]:
    connection.execute("BEGIN")
    try:
        epoch, last_seq = connection.execute("SELECT epoch, last_seq FROM meta").fetchone()
        gone = dict(connection.execute("SELECT lane, gone_seq FROM lanes").fetchall())
        row = connection.execute(
            "SELECT lane, first_seq, count, time_us FROM journal"
            " WHERE first_seq <= ? AND first_seq + count > ?",
            (seq, seq),
        ).fetchone()
        dead = connection.execute(
            "SELECT lane, time_us, cause FROM dead_letters"
            " WHERE first_seq <= ? AND last_seq >= ? ORDER BY id DESC",
            (seq, seq),
        ).fetchone()
        stone = connection.execute(
            "SELECT lane, first_seq, last_seq, count, reason, time_us FROM tombstones"
            " WHERE first_seq <= ? AND last_seq >= ?",
            (seq, seq),
        ).fetchone()
        newest = connection.execute("SELECT max(first_seq + count - 1) FROM journal").fetchone()[0]
    finally:
        connection.execute("COMMIT")
    last_seq = max(last_seq, newest or 0, *gone.values())
    if dead is not None:
        lane = LinkLane(dead[0]).name.lower()
        return epoch, JournalPlace(lane, "dead-letter", dead[1], f"set aside: {dead[2]}")
    if row is not None:
        lane = LinkLane(row[0]).name.lower()
        text = f"journal, lane {lane}, commit of seq {row[1]}-{row[1] + row[2] - 1}"
        if seq > gone.get(row[0], 0):
            return epoch, JournalPlace(lane, "waiting", row[3], f"{text}, not acknowledged")
        return epoch, JournalPlace(lane, "gone", row[3], f"{text}, acknowledged by the cloud")
    if stone is not None:
        lane = LinkLane(stone[0]).name.lower()
        text = f"{stone[4]}: {stone[3]} of lane {lane} in seq {stone[1]}-{stone[2]} given up"
        return epoch, JournalPlace(lane, "given-up", stone[5], text)
    if seq <= last_seq:
        return epoch, JournalPlace("", "gone", None, "no longer in the journal")
    return epoch, JournalPlace("", "not assigned", None, "never assigned")
