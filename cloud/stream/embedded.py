"""The embedded stream engine: one SQLite file, one process (DESIGN sections 3 and 6).

Appends that wait while the disk is busy are committed together (group commit): one transaction
and one fsync carry them all. One thread writes, another reads what is no longer in memory, so a
sink that catches up never delays an acknowledgement.

Invariants:
- An append's future is resolved only after COMMIT returned under `synchronous = FULL`.
- Requests are written in the order of the calls. When a transaction fails, everything waiting
  fails with it, and so does what is called before those who waited have heard of it: nothing
  overtakes what has to come again.
- A cancelled call is still written: what it would leave behind, a hole in a gateway's order, is
  worse than a part that is taken as done when it comes again.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from bridge.intervals import Range
from bridge.runs import Run
from cloud.config import StreamConfig
from cloud.database import Database, DatabaseError, FileLock, open_database
from cloud.stream import arrivals, queries
from cloud.stream.checked import checked_bytes
from cloud.stream.contract import (
    Arrival,
    Backlog,
    DeadLetter,
    Entry,
    GivenUp,
    Part,
    Source,
    SourceLedger,
    StreamError,
    StreamFull,
    StreamStats,
)
from cloud.stream.tables import STREAM_KIND, Request, Stored, StreamTables
from cloud.stream.tail import Tail
from runtime.bell import Bell
from runtime.clock import Clock

__all__ = ["EmbeddedStream"]

log = structlog.get_logger(component="stream")

T = TypeVar("T")
_Waiting = tuple[Request, "asyncio.Future[None]"]

_GROUP_BYTES_MAX = 8 << 20
_GROUP_REQUESTS_MAX = 512


class EmbeddedStream:
    """A stream in one file; made by `open`.

    Attributes:
        path: The file.
        commits: Transactions of appends since it was opened.
    """

    def __init__(
        self,
        path: Path,
        config: StreamConfig,
        clock: Clock,
        lock: FileLock,
        writer: Database,
        reader: Database,
        tables: StreamTables,
        loaded: Stored,
    ) -> None:
        self.path = path
        self.commits = 0
        self._config = config
        self._clock = clock
        self._lock = lock
        self._writer = writer
        self._reader = reader
        self._tables = tables
        self._partitions = loaded.partitions
        self._file_bytes = loaded.file_bytes
        self._tail = Tail(config.tail_bytes_max)
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._wake = asyncio.Event()
        self._appended = Bell()
        self._closing = False
        self._failing: StreamError | None = None  # until those who waited have heard of it
        self._task = asyncio.create_task(self._write(), name="stream-writer")

    @classmethod
    async def open(cls, path: Path, config: StreamConfig, clock: Clock) -> EmbeddedStream:
        """Open the file, making it when it is new.

        Raises:
            StreamError: it is in use, foreign, newer, damaged or cannot be written.
        """
        try:
            lock = await asyncio.to_thread(FileLock, path)
        except DatabaseError as error:
            raise StreamError(str(error)) from error
        opened: list[Database] = []
        try:
            opened.append(await open_database(path, STREAM_KIND))
            opened.append(await open_database(path, STREAM_KIND, create=False))
            tables = StreamTables()
            loaded = await opened[0].run(partial(tables.load, new_epoch=secrets.randbits(64)))
        except BaseException as error:
            for database in opened:
                await database.close()
            lock.release()
            if isinstance(error, (DatabaseError, sqlite3.Error)):
                raise StreamError(_with_path(path, error)) from error
            raise
        return cls(path, config, clock, lock, opened[0], opened[1], tables, loaded)

    @property
    def epoch(self) -> int:
        return self._tables.epoch

    @property
    def own_epoch(self) -> int:
        return self._tables.epoch

    @property
    def durability(self) -> str:
        return "embedded-fsync"

    @property
    def shares_bodies(self) -> bool:
        return True  # the file is this process's alone; an older program refuses it

    @property
    def keeps_runs(self) -> bool:
        return True

    @property
    def file_bytes(self) -> int:
        """Bytes the file uses, free pages not counted."""
        return self._file_bytes

    # ---- appending -------------------------------------------------------------------------------

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[Source, int] | None = None,
    ) -> None:
        size = checked_bytes(parts)
        probe = not parts and not given_up and not assigned
        limit = self._config.file_bytes_max
        if (size or probe) and self._file_bytes + self._waiting_bytes + size > limit:
            raise StreamFull(
                f"{self.path}: {self._file_bytes} of {limit} bytes used; a sink lags, or "
                "stream.file_bytes_max is too small"
            )
        await self._request(Request(parts, given_up, assigned or {}, {}, probe, size))

    async def commit_cursors(self, sink: str, positions: Mapping[int, int]) -> None:
        await self._request(Request(cursors={(sink, p): at for p, at in positions.items()}))

    async def _request(self, request: Request) -> None:
        self._check_open()
        if self._failing is not None:
            raise type(self._failing)(str(self._failing))
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        self._waiting_bytes += request.bytes
        self._wake.set()
        await future

    async def _write(self) -> None:
        """Write groups of requests for as long as the stream is open."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._waiting:
                await self._write_group(self._next_group())
            if self._closing:
                return

    def _next_group(self) -> list[_Waiting]:
        group: list[_Waiting] = []
        size = 0
        while self._waiting and len(group) < _GROUP_REQUESTS_MAX:
            request, future = self._waiting[0]
            size += request.bytes
            if group and size > _GROUP_BYTES_MAX:
                break
            group.append((request, future))
            self._waiting.popleft()
        return group

    async def _write_group(self, group: list[_Waiting]) -> None:
        requests = [request for request, _ in group]
        size = sum(request.bytes for request in requests)
        try:
            stored = await self._writer.run(partial(self._store, requests))
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody may wait for ever
            self._fail(group, error)
            return
        finally:
            self._waiting_bytes -= size
        self.commits += 1
        self._take(stored)
        for _, future in group:
            if not future.done():
                future.set_result(None)

    def _store(self, requests: Sequence[Request], connection: sqlite3.Connection) -> Stored:
        """Check the disk and write one transaction; on the writer's thread."""
        if any(request.bytes or request.probe for request in requests):
            free = shutil.disk_usage(self.path.parent).free
            if free < self._config.disk_reserve_bytes:
                raise StreamFull(
                    f"{self.path}: {free} bytes free on the disk, stream.disk_reserve_bytes is "
                    f"{self._config.disk_reserve_bytes}; make room"
                )
        return self._tables.store(connection, requests, self._clock.wall_us())

    def _take(self, stored: Stored) -> None:
        self._partitions = stored.partitions
        self._file_bytes = stored.file_bytes
        self._tail.add(stored.entries)
        if stored.entries:
            self._appended.ring()

    def _fail(self, group: list[_Waiting], error: Exception) -> None:
        """Fail a group and all that wait behind it: see the invariants."""
        failure = self._failure(error)
        log.error("append_failed", error=str(failure), requests=len(group) + len(self._waiting))
        group += self._waiting
        self._waiting.clear()
        self._waiting_bytes = sum(request.bytes for request, _ in group)
        for request, future in group:
            self._waiting_bytes -= request.bytes
            if not future.done():
                future.set_exception(failure)
        self._failing = failure
        asyncio.get_running_loop().call_soon(self._heard)  # after those it has just woken

    def _heard(self) -> None:
        self._failing = None

    def _failure(self, error: Exception) -> StreamError:
        if isinstance(error, StreamError):
            return error
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_FULL:
            return StreamFull(f"{self.path}: the disk is full; make room")
        return StreamError(_with_path(self.path, error))

    # ---- reading ---------------------------------------------------------------------------------

    async def read(
        self, partition: int, after: int, *, entries_max: int, bytes_max: int
    ) -> list[Entry]:
        self._check_open()
        row = self._partitions.get(partition)
        if row is None or row.last_position <= after or not row.entries:
            return []
        after = max(after, row.last_position - row.entries)  # memory may still hold trimmed ones
        found = self._tail.read(partition, after, entries_max, bytes_max)
        if found is not None:
            return found
        return await self._ask(
            lambda connection: queries.read(connection, partition, after, entries_max, bytes_max)
        )

    async def wait(self, positions: Mapping[int, int]) -> None:
        while True:
            self._check_open()
            rows = self._partitions
            for partition, position in positions.items():
                row = rows.get(partition)
                if row is not None and row.entries and row.last_position > position:
                    return
            await self._appended.wait()

    async def cursors(self, sink: str) -> dict[int, int]:
        return await self._ask(lambda connection: queries.cursors(connection, sink))

    async def stats(self) -> StreamStats:
        self._check_open()
        rows = self._partitions
        return StreamStats(
            readings=sum(row.readings for row in rows.values()),
            entries=sum(row.entries for row in rows.values()),
            bytes=sum(row.bytes for row in rows.values()),
            last_positions={partition: row.last_position for partition, row in rows.items()},
        )

    # ---- ledger ----------------------------------------------------------------------------------

    async def held(self, gateway: str, epoch: int) -> Sequence[Range]:
        return await self._ask(lambda connection: queries.held(connection, gateway, epoch))

    async def runs(self, gateway: str, epoch: int) -> tuple[int, tuple[Run, ...]]:
        return await self._ask(lambda connection: queries.runs(connection, gateway, epoch))

    async def highest_seq(self, gateway: str, epoch: int) -> int:
        return await self._ask(lambda connection: queries.highest_seq(connection, gateway, epoch))

    async def catch_up(self) -> None:
        """Do nothing: what was acknowledged is in the file."""

    async def ledger(self) -> list[SourceLedger]:
        return await self._ask(queries.ledger)

    async def arrival(self, gateway: str, epoch: int, seq: int) -> Arrival | None:
        return await self._ask(lambda connection: arrivals.find(connection, gateway, epoch, seq))

    async def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        return await self._ask(lambda connection: queries.ranges_after(connection, positions))

    async def backlog(self, positions: Mapping[int, int]) -> dict[int, Backlog]:
        self._check_open()
        rows = self._partitions
        behind = {
            partition: position
            for partition, position in positions.items()
            if partition in rows and rows[partition].last_position > position
        }
        unread = {}
        if behind:
            unread = await self._ask(lambda connection: queries.first_unread(connection, behind))
        rows = self._partitions
        ends = {partition: (rows[partition].last_position, rows[partition].through)
                for partition in unread}  # fmt: skip
        return queries.backlog(positions, unread, ends)

    # ---- dead letters ----------------------------------------------------------------------------

    async def set_aside(self, sink: str, entry: Entry, cause: str, tries: int) -> None:
        now_us = self._clock.wall_us()
        await self._change(
            lambda connection: self._tables.set_aside(connection, sink, entry, cause, tries, now_us)
        )

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        return await self._ask(lambda connection: queries.dead_letters(connection, sink))

    async def forget_dead_letter(self, sink: str, partition: int, position: int) -> None:
        await self._change(
            lambda connection: self._tables.forget_dead_letter(
                connection, sink, partition, position
            )
        )

    # ---- upkeep ----------------------------------------------------------------------------------

    async def trim(self, up_to: Mapping[int, int], before_us: int | None = None) -> None:
        trimmed = False
        for partition, position in up_to.items():
            work = partial(
                self._tables.trim, partition=partition, up_to=position, before_us=before_us
            )
            more = True
            while more:  # a transaction at a time, so that appends pass between
                deleted, more = await self._change(work)
                trimmed = trimmed or deleted > 0
        keep = self._config.trace_batches
        await self._change(lambda connection: self._tables.forget_arrivals(connection, keep))
        if trimmed:
            self._file_bytes = await self._change(self._tables.shrink)
            self._partitions = await self._change(self._tables.rows)

    async def snapshot(self, path: Path) -> None:
        self._check_open()
        try:
            copier = await open_database(self.path, STREAM_KIND, create=False)
            try:
                await copier.run(lambda connection: queries.copy_to(connection, path))
            finally:
                await copier.close()
        except (sqlite3.Error, OSError, DatabaseError) as error:
            raise StreamError(f"snapshot {path}: {error}") from error

    async def close(self) -> None:
        if self._closing:
            await asyncio.shield(self._task)
            return
        self._closing = True
        self._wake.set()
        await self._task
        self._appended.fail(StreamError(f"{self.path}: closed"))
        await self._reader.close()
        await self._writer.close()
        self._lock.release()

    # ---- helpers ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closing:
            raise StreamError(f"{self.path}: closed")

    async def _ask(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return the answer of the reader's thread."""
        self._check_open()
        try:
            return await self._reader.run(question)
        except sqlite3.Error as error:
            raise StreamError(_with_path(self.path, error)) from error

    async def _change(self, work: Callable[[sqlite3.Connection], T]) -> T:
        """Return the result of a transaction of its own on the writer's thread."""
        self._check_open()
        try:
            return await self._writer.run(work)
        except sqlite3.Error as error:
            raise self._failure(error) from error


def _with_path(path: Path, error: Exception) -> str:
    text = str(error)
    return text if text.startswith(os.fspath(path)) else f"{path}: {text}"
