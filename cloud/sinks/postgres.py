"""The PostgreSQL sink: every reading a row, exactly once (cloud/sinks/postgres_write.py says how).

It has one connection to write with, opened when it is needed, dropped at the first fault and
opened again; and another, every 10 s, for retention and sizes. The database need not be there
when the node starts.

Invariant: a server that is down, full, read-only or slow blames no entry: the lag grows, nothing
else. DESIGN sections 3, 6, 7.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import asyncpg
import structlog

from bridge.commands import Correction
from cloud.config import StorageConfig
from cloud.sinks.contract import DecodedEntry, SinkFenced, SinkUnavailable
from cloud.sinks.postgres_link import (
    LINK_ERRORS,
    NotReachable,
    PostgresPlace,
    blames_entry,
    connect,
    translated,
)
from cloud.sinks.postgres_schema import Slices, check_columns, compact, make_schema
from cloud.sinks.postgres_write import ROWS_LOCK, PostgresWriter
from cloud.sinks.schema import epoch_to_sql
from cloud.sinks.storage import StorageStats
from cloud.stream.contract import Entry
from runtime.clock import Clock

__all__ = ["PostgresSink"]

log = structlog.get_logger(component="storage")

_UPKEEP_LOCK = 0x54475055  # advisory: one node at a time does the upkeep
_UPKEEP_INTERVAL_S = 10.0

_KNOWN = "SELECT true FROM corrections WHERE gateway = $1 AND epoch = $2 AND first_seq = $3"
# never one that was there before, not even where a database that went back counts on
_NEXT_VERSION = (
    "UPDATE meta SET value = value + 1 + (random() * 1000000000)::bigint WHERE key = 'corrections'"
)


class PostgresSink:
    """Readings as rows of a PostgreSQL table.

    Args:
        place: Where the tables are.
        config: Limits and pauses.
        clock: For retention by age.
    """

    name = "storage"

    def __init__(self, place: PostgresPlace, config: StorageConfig, clock: Clock) -> None:
        self.place = place
        self.linger_s = config.linger_ms / 1000
        self.stats = StorageStats()
        self._config = config
        self._clock = clock
        self._stream_epoch = 0
        self._connection: Any = None
        self._busy = asyncio.Lock()
        self._slices: Slices | None = None
        self.on_went_back: Callable[[], None] = lambda: None
        self._writer = PostgresWriter(0, self._tell_went_back)
        self._upkeep: asyncio.Task[None] | None = None

    async def open(self, stream_epoch: int) -> None:
        """Begin; the database need not be there yet."""
        self._stream_epoch = epoch_to_sql(stream_epoch)
        self._writer = PostgresWriter(self._stream_epoch, self._tell_went_back)
        self._upkeep = asyncio.create_task(self._keep_up(), name="storage-upkeep")

    async def cursors(self) -> Mapping[int, int]:
        """Return the position stored by partition, of the stream told to `open`."""
        async with self._session() as connection:
            rows = await connection.fetch(
                "SELECT partition, position FROM cursors WHERE stream_epoch = $1",
                self._stream_epoch,
            )
        return {row["partition"]: row["position"] for row in rows if row["position"]}

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        """Take partitions over: writers with lower tokens are refused from here on.

        A writer that still has a transaction open for one of them, because it hangs, loses its
        connection.

        Returns:
            The position of each partition.

        Raises:
            SinkFenced: somebody has a higher token already.
            SinkUnavailable: try again later.
        """
        async with self._session() as connection:
            try:
                positions = await self._writer.claim(connection, tokens)
            except asyncpg.LockNotAvailableError:
                await self._end_blockers(connection)
                raise SinkUnavailable(f"{self.place}: a cursor was locked by another") from None
            lost = frozenset(tokens) - positions.keys()
            if lost:
                raise SinkFenced(lost)
            return positions

    async def _end_blockers(self, connection: Any) -> None:
        """End the connections of other nodes that stand still in the middle of a write."""
        ended = await connection.fetch(
            "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
            " AND application_name = 'tidegate storage' AND wait_event = 'ClientRead'"
            " AND xact_start < clock_timestamp() - interval '2 seconds'"
            " AND state_change < clock_timestamp() - interval '2 seconds'"
        )
        if ended:
            log.warning("stalled_writers_ended", storage=str(self.place), connections=len(ended))

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Store `entries` and `cursors` in one transaction.

        Raises:
            SinkFenced: another holds a partition by now; nothing was written.
            SinkUnavailable: the database cannot be written now.
        """
        async with self._session() as connection:
            if entries:
                received = [one.entry.appended_us for one in entries]
                assert self._slices is not None
                await self._slices.ensure(connection, min(received), max(received))
            rows, offered = await self._writer.write(connection, entries, cursors)
        self.stats = replace(
            self.stats,
            rows=self.stats.rows + rows,
            duplicates=self.stats.duplicates + offered - rows,
            transactions=self.stats.transactions + 1,
        )

    async def correct(self, gateway: str, correction: Correction) -> int:
        """Correct the times of a gateway's readings, those that come later as well; once.

        Returns:
            How many rows were there already; 0 when the correction was known.

        Raises:
            SinkUnavailable: the database cannot be written now.
        """
        source = (gateway, epoch_to_sql(correction.epoch))
        async with self._session() as connection:
            if await connection.fetchval(_KNOWN, *source, correction.first_seq):
                return 0
            rows = await self._correct(connection, source, correction)
            self._writer.corrected(gateway, correction)
        return rows

    async def _correct(
        self, connection: Any, source: tuple[str, int], correction: Correction
    ) -> int:
        span = (correction.first_seq, correction.last_seq)
        async with connection.transaction():
            # writers wait, and see by the version that there is one more
            await connection.execute(f"SELECT pg_advisory_xact_lock({ROWS_LOCK})")
            known = await connection.execute(
                "INSERT INTO corrections VALUES ($1, $2, $3, $4, $5, $6) ON CONFLICT DO NOTHING",
                *source, *span, correction.delta_us, correction.uncertainty_us,
            )  # fmt: skip
            if known == "INSERT 0 0":
                return 0
            await connection.execute(_NEXT_VERSION)
            updated: str = await connection.execute(
                "UPDATE readings SET time_us = time_us + $5"
                " WHERE gateway = $1 AND epoch = $2 AND seq BETWEEN $3 AND $4",
                *source, *span, correction.delta_us,
            )  # fmt: skip
        return int(updated.rpartition(" ")[2])

    def _tell_went_back(self) -> None:
        self.on_went_back()

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry that was set aside."""
        await self.write((), {entry.partition: entry.position})

    async def close(self) -> None:
        """End upkeep and the connection; harmless when closed already."""
        if self._upkeep is not None:
            self._upkeep.cancel()
            await asyncio.gather(self._upkeep, return_exceptions=True)
            self._upkeep = None
        if self._connection is not None:
            connection, self._connection = self._connection, None
            try:
                async with asyncio.timeout(2):
                    await connection.close()
            except LINK_ERRORS:
                connection.terminate()

    # ---- the connection --------------------------------------------------------------------------

    @asynccontextmanager
    async def _session(self) -> AsyncIterator[Any]:
        """Give the connection to one at a time, opened when there is none; errors translated."""
        async with self._busy:
            try:
                connection = await self._connected()
                yield connection
            except NotReachable as error:
                self._drop_connection()
                raise SinkUnavailable(str(error)) from None
            except asyncpg.CheckViolationError as error:  # the slice was dropped by another node
                assert self._slices is not None
                self._slices.forget()
                raise SinkUnavailable(str(translated(self.place, error))) from None
            except LINK_ERRORS as error:
                cause = await self._altered(error)
                if not cause and blames_entry(error):
                    raise
                self._drop_connection()
                raise SinkUnavailable(cause or str(translated(self.place, error))) from None
            except asyncio.CancelledError:
                self._drop_connection()  # of whatever was under way nothing is known
                raise

    async def _connected(self) -> Any:
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self.place, "storage")
            try:
                slice_us = round(self._config.slice_s * 1_000_000)
                again = self._slices is not None
                hypertable = await make_schema(self.place, connection, slice_us, again=again)
            except BaseException:
                connection.terminate()
                raise
            self._slices = Slices(slice_us, hypertable=hypertable)
            self._writer.forget()
            self._connection = connection
        return self._connection

    async def _altered(self, error: Exception) -> str:
        """Return what is wrong with the table that a server refuses to write to, else nothing."""
        if isinstance(error, asyncpg.PostgresError) and self._connection is not None:
            try:
                await check_columns(self.place, self._connection)
            except NotReachable as altered:
                return str(altered)
            except LINK_ERRORS:
                return ""
        return ""

    def _drop_connection(self) -> None:
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    # ---- upkeep ----------------------------------------------------------------------------------

    async def keep_up(self) -> int:
        """Drop slices that retention is done with, compact ranges; return rows dropped.

        Raises:
            SinkUnavailable: the database cannot be written now.
        """
        if self._slices is None:
            return 0  # nothing was written yet
        try:
            # a connection of its own: writes go on meanwhile
            connection = await connect(self.place, "upkeep")
            try:
                rows, size = await self._keep_up_on(connection)
            finally:
                connection.terminate()
        except NotReachable as error:
            raise SinkUnavailable(str(error)) from None
        except LINK_ERRORS as error:
            raise SinkUnavailable(str(translated(self.place, error))) from None
        self.stats = replace(self.stats, expired=self.stats.expired + rows, file_bytes=size)
        return rows

    async def _keep_up_on(self, connection: Any) -> tuple[int, int]:
        rows = 0
        # of the nodes of a cluster one at a time; the lock ends with the connection
        if await connection.fetchval("SELECT pg_try_advisory_lock($1)", _UPKEEP_LOCK):
            for table in ("stored", "expired"):
                await compact(connection, table)
            rows = await self._expire(connection)
            await connection.execute("SELECT pg_advisory_unlock($1)", _UPKEEP_LOCK)
        return rows, await _table_bytes(connection)

    async def _expire(self, connection: Any) -> int:
        assert self._slices is not None
        rows = 0
        before_us = 0
        if self._config.age_max_s:
            before_us = self._clock.wall_us() - round(self._config.age_max_s * 1_000_000)
        while True:
            oldest = await self._slices.oldest(connection)
            if oldest is None:
                return rows
            name, to_us = oldest
            large = 0 < self._config.file_bytes_max < await _table_bytes(connection)
            if not (to_us <= before_us or (large and to_us <= self._clock.wall_us())):
                return rows
            rows += await self._slices.drop(connection, name)

    async def _keep_up(self) -> None:
        while True:
            await asyncio.sleep(_UPKEEP_INTERVAL_S)
            try:
                await self.keep_up()
            except SinkUnavailable:
                continue  # the runner says so
            except Exception:
                log.exception("storage_upkeep_failed", storage=str(self.place))


async def _table_bytes(connection: Any) -> int:
    size: int = await connection.fetchval(
        "SELECT coalesce(sum(pg_total_relation_size(oid)), 0)::bigint FROM pg_class"
        " WHERE relkind = 'r' AND (relnamespace = current_schema()::regnamespace"
        # chunks of a hypertable are in a schema of their own
        "  OR oid IN (SELECT inhrelid FROM pg_inherits WHERE inhparent = 'readings'::regclass))"
    )
    return size
