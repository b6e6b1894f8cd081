"""The storage sink: every reading a row of DIR/cloud/storage.db, exactly once (DESIGN section 7).

Rows, cursors and the ranges of what was stored go in one transaction, and the key
(gateway, epoch, seq) lets no reading in twice: whatever is killed when, what is stored and where
the sink stands agree.

Retention, off by default, deletes the oldest rows a few thousand at a time between writes, and
keeps their ranges in `expired`.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from bridge.commands import Correction
from bridge.intervals import IntervalSet, Range
from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN
from cloud.config import StorageConfig
from cloud.database import (
    DatabaseError,
    execute_flat,
    execute_rows,
    file_bytes,
    transaction,
)
from cloud.database_file import OwnedDatabaseFile
from cloud.ranges import RangeTable
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.corrections import Corrections
from cloud.sinks.schema import (
    READINGS_COLUMNS,
    STORAGE_KIND,
    epoch_from_sql,
    epoch_to_sql,
    payload_to_sql,
)
from cloud.stream.contract import Entry
from runtime.clock import Clock

__all__ = ["StorageSink", "StorageStats"]

log = structlog.get_logger(component="storage")

T = TypeVar("T")

_INSERT = f"INSERT INTO readings ({', '.join(READINGS_COLUMNS)})"
_ONCE = "ON CONFLICT (gateway, epoch, seq) DO NOTHING"
_EXPIRE_ROWS = 2_000  # a transaction: writes wait for it
_EXPIRE_ROWS_BY_SIZE = 200  # then the size is looked at again
_EXPIRE_INTERVAL_S = 10.0
# faults of values, not of the store: an entry is to blame
_BLAME_ENTRY = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.InterfaceError,
                sqlite3.ProgrammingError)  # fmt: skip


@dataclass(slots=True, frozen=True)
class StorageStats:
    """What storage did since it was opened."""

    rows: int = 0
    duplicates: int = 0  # readings that were there already
    transactions: int = 0
    expired: int = 0
    file_bytes: int = 0  # in use


class StorageSink:
    """Readings as rows of one SQLite file.

    Args:
        path: The file.
        config: Limits and pauses.
        clock: For retention by age.
    """

    name = "storage"

    def __init__(self, path: Path, config: StorageConfig, clock: Clock) -> None:
        self.path = path
        self.linger_s = config.linger_ms / 1000
        self.stats = StorageStats()
        self.on_went_back: Callable[[], None] = lambda: None  # a file is one process's: never
        self._config = config
        self._clock = clock
        self._file = OwnedDatabaseFile(path, STORAGE_KIND, cache_bytes=config.cache_bytes)
        self._tables = _StorageTables()
        self._expiry: asyncio.Task[None] | None = None

    async def open(self, stream_epoch: int) -> None:
        """Open the file, making it when it is new.

        Raises:
            DatabaseError: it is in use, foreign, newer, damaged or cannot be written.
        """
        await self._file.open()
        try:
            await self._file.run(partial(self._tables.adopt, stream_epoch=stream_epoch))
        except sqlite3.Error as error:
            await self.close()
            raise DatabaseError(f"{self.path}: {error}") from error
        except BaseException:
            await self.close()
            raise
        if self._config.age_max_s or self._config.file_bytes_max:
            self._expiry = asyncio.create_task(self._expire_for_ever(), name="storage-expiry")

    async def cursors(self) -> Mapping[int, int]:
        """Return the position stored by partition, of the stream told to `open`."""
        return await self._run(self._tables.cursors)

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Store `entries` and `cursors` in one transaction.

        Raises:
            SinkUnavailable: the file cannot be written now.
        """
        rows, size = await self._run(partial(self._tables.write, entries=entries, cursors=cursors))
        self.stats = replace(
            self.stats,
            rows=self.stats.rows + rows,
            duplicates=self.stats.duplicates + sum(one.entry.count for one in entries) - rows,
            transactions=self.stats.transactions + 1,
            file_bytes=size,
        )

    async def correct(self, gateway: str, correction: Correction) -> int:
        """Correct the times of a gateway's readings, those that come later as well; once.

        Returns:
            How many rows were there already; 0 when the correction was known.

        Raises:
            SinkUnavailable: the file cannot be written now.
        """
        return await self._run(
            partial(self._tables.correct, gateway=gateway, correction=correction)
        )

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry that was set aside."""
        cursors = {entry.partition: entry.position}
        await self._run(partial(self._tables.write, entries=(), cursors=cursors))

    async def close(self) -> None:
        """End retention and release the file; harmless when closed already."""
        if self._expiry is not None:
            self._expiry.cancel()
            await asyncio.gather(self._expiry, return_exceptions=True)
            self._expiry = None
        await self._file.close()

    # ---- retention -------------------------------------------------------------------------------

    async def expire(self) -> int:
        """Delete the rows that retention is done with; return how many."""
        before_us = 0
        if self._config.age_max_s:
            before_us = self._clock.wall_us() - round(self._config.age_max_s * 1_000_000)
        step = partial(
            self._tables.expire, before_us=before_us, file_bytes_max=self._config.file_bytes_max
        )
        total = 0
        more = True
        while more:
            deleted, size = await self._run(step)
            more = deleted > 0
            total += deleted
            self.stats = replace(self.stats, expired=self.stats.expired + deleted, file_bytes=size)
        return total

    async def _expire_for_ever(self) -> None:
        while True:
            try:
                await self.expire()
            except SinkUnavailable as error:
                log.warning("retention_failed", path=str(self.path), error=str(error))
            await asyncio.sleep(_EXPIRE_INTERVAL_S)

    # ---- helpers ---------------------------------------------------------------------------------

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._file.run(work)
        except _BLAME_ENTRY:
            raise
        except DatabaseError as error:
            raise SinkUnavailable(str(error)) from error
        except sqlite3.Error as error:
            raise SinkUnavailable(f"{self.path}: {error}") from error


class _StorageTables:
    """The statements; on the database's thread only."""

    def __init__(self) -> None:
        self._stored = RangeTable("stored")
        self._expired = RangeTable("expired")
        self._any_expired = False
        self._corrections = Corrections()

    def adopt(self, connection: sqlite3.Connection, stream_epoch: int) -> None:
        """Begin at the start of a stream whose positions these cursors are not of."""
        value = epoch_to_sql(stream_epoch)
        row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
        if row is None or row[0] != value:
            with transaction(connection):
                connection.execute("DELETE FROM cursors")
                connection.execute(
                    "INSERT OR REPLACE INTO meta VALUES ('stream_epoch', ?)", (value,)
                )
        (count,) = connection.execute("SELECT count(*) FROM expired").fetchone()
        self._any_expired = count > 0
        for gateway, epoch, *correction in connection.execute(
            "SELECT gateway, epoch, first_seq, last_seq, delta_us FROM corrections"
            " ORDER BY gateway, epoch, first_seq"
        ):
            self._corrections.add(gateway, epoch_from_sql(epoch), *correction)

    def correct(self, connection: sqlite3.Connection, gateway: str, correction: Correction) -> int:
        """Keep a correction and apply it to the rows that are there, as one."""
        epoch = epoch_to_sql(correction.epoch)
        first, last, delta_us = correction.first_seq, correction.last_seq, correction.delta_us
        with transaction(connection):
            known = connection.execute(
                "INSERT INTO corrections VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (gateway, epoch, first, last, delta_us, correction.uncertainty_us),
            ).rowcount
            if not known:
                return 0
            rows = connection.execute(
                "UPDATE readings SET time_us = time_us + ?"
                " WHERE gateway = ? AND epoch = ? AND seq BETWEEN ? AND ?",
                (delta_us, gateway, epoch, first, last),
            ).rowcount
        self._corrections.add(gateway, correction.epoch, first, last, delta_us)
        return rows

    def cursors(self, connection: sqlite3.Connection) -> dict[int, int]:
        """Return the cursors."""
        return dict(connection.execute("SELECT partition, position FROM cursors").fetchall())

    def write(
        self,
        connection: sqlite3.Connection,
        entries: Sequence[DecodedEntry],
        cursors: Mapping[int, int],
    ) -> tuple[int, int]:
        """Store entries and cursors; return the rows that are new and the bytes in use."""
        before = connection.total_changes
        try:
            with transaction(connection):
                values = self._values(connection, entries)
                execute_flat(connection, _INSERT, len(READINGS_COLUMNS), values, _ONCE)
                rows = connection.total_changes - before
                self._store_ranges(connection, entries)
                execute_rows(
                    connection,
                    "INSERT INTO cursors",
                    list(cursors.items()),
                    "ON CONFLICT (partition) DO UPDATE SET position = excluded.position",
                )
        except BaseException:
            self._stored.forget()
            raise
        return rows, file_bytes(connection)

    def _values(
        self, connection: sqlite3.Connection, entries: Sequence[DecodedEntry]
    ) -> list[object]:
        """Return the columns of all rows, end to end."""
        values: list[object] = []
        extend = values.extend
        for one in entries:
            entry, readings = one.entry, one.readings
            gateway, epoch, received_us = (
                entry.gateway,
                epoch_to_sql(entry.epoch),
                entry.appended_us,
            )
            properties = readings.properties or [b""] * len(readings)
            expired = self._expired_of(connection, entry.gateway, entry.epoch)
            for seq, source, time_us, flags, payload, block in zip(
                readings.seqs,
                map(readings.sources.__getitem__, readings.source_index),
                self._corrections.times_us(one),
                readings.flags,
                readings.payloads,
                properties,
                strict=True,
            ):
                if expired is not None and seq in expired:
                    continue
                extend(
                    (
                        gateway,
                        epoch,
                        seq,
                        source[1],
                        source[0],
                        time_us,
                        received_us,
                        flags & FLAG_QOS_MASK,
                        payload_to_sql(payload),
                        1 if flags & FLAG_RETAIN else None,
                        block or None,
                    )
                )
        return values

    def _expired_of(
        self, connection: sqlite3.Connection, gateway: str, epoch: int
    ) -> IntervalSet | None:
        return self._expired.get(connection, gateway, epoch) if self._any_expired else None

    def _store_ranges(
        self, connection: sqlite3.Connection, entries: Sequence[DecodedEntry]
    ) -> None:
        taken: dict[tuple[str, int], list[Range]] = {}
        for one in entries:
            entry = one.entry
            taken.setdefault((entry.gateway, entry.epoch), []).extend(entry.seq_ranges)
        for source, ranges in taken.items():
            self._stored.add(connection, *source, ranges)
        self._stored.write(connection)

    def expire(
        self, connection: sqlite3.Connection, before_us: int, file_bytes_max: int
    ) -> tuple[int, int]:
        """Delete some of the oldest rows that came in before a time, or while the file is large.

        Returns:
            How many went, 0 when nothing is left to do; the bytes in use.
        """
        size = file_bytes(connection)
        large = 0 < file_bytes_max < size
        oldest = connection.execute(
            "SELECT rowid, gateway, epoch, seq, received_us FROM readings ORDER BY rowid LIMIT ?",
            (_EXPIRE_ROWS_BY_SIZE if large else _EXPIRE_ROWS,),
        ).fetchall()
        gone: dict[tuple[str, int], list[Range]] = {}
        last = None
        count = 0
        for rowid, gateway, epoch, seq, received_us in oldest:
            if received_us >= before_us and not large:
                break
            gone.setdefault((gateway, epoch_from_sql(epoch)), []).append((seq, seq))
            last = rowid
            count += 1
        if last is None:
            return 0, size
        try:
            with transaction(connection):
                connection.execute("DELETE FROM readings WHERE rowid <= ?", (last,))
                for source, ranges in gone.items():
                    self._expired.add(connection, *source, ranges)
                self._expired.write(connection)
        except BaseException:
            self._expired.forget()
            raise
        self._any_expired = True
        return count, file_bytes(connection)
