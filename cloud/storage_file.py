"""storage.db as what reads storage sees it (cloud/storage.py), beside whoever writes it."""

from __future__ import annotations

import sqlite3
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial

from bridge.intervals import IntervalSet
from cloud.database_file import DatabaseFile
from cloud.latest import REBUILD_DEVICES_AT_ONCE, REBUILD_ROWS_PER_DEVICE, LatestReading
from cloud.ledger import StorageState
from cloud.query import QueryResult, ReadingsQuery, ask
from cloud.sinks.schema import STORAGE_KIND, epoch_from_sql, epoch_to_sql, payload_from_sql
from cloud.stream.contract import Source
from cloud.trace import Row

__all__ = ["StorageFile"]


class StorageFile(DatabaseFile):
    """Storage's file (cloud/storage.py)."""

    kind = STORAGE_KIND

    def exists(self) -> bool:
        """Return True when there is a file to open."""
        return self.path.exists()

    async def ask(self, query: ReadingsQuery, *, timeout_s: float = 60.0) -> QueryResult:
        """Answer a question on a connection of its own."""
        return await ask(self.path, query, timeout_s=timeout_s)

    async def state(self, *, count_rows: bool) -> StorageState:
        """Return what is stored."""
        return await self.ask_file(partial(_state, count_rows=count_rows))

    async def positions(self, stream_epoch: int) -> dict[int, int]:
        """Return the cursors, none when they are of another stream."""
        return await self.ask_file(partial(_positions, stream_epoch=stream_epoch))

    def rebuild_turn(self) -> AbstractAsyncContextManager[None]:
        """Give a turn at once: the file is one node's."""
        return nullcontext()

    async def newest_rows(
        self, after: str, now_us: int, payload_bytes: int
    ) -> tuple[list[str], list[LatestReading]]:
        """Return the next devices past `after`, and the newest row of each of their topics."""
        return await self.ask_file(
            partial(_newest_rows, after=after, now_us=now_us, payload_bytes=payload_bytes)
        )

    async def row(self, gateway: str, epoch: int, seq: int) -> Row | None:
        """Return a row."""
        sql = (
            "SELECT device, topic, time_us, received_us, qos, length(CAST(payload AS BLOB))"
            " FROM readings WHERE gateway = ? AND epoch = ? AND seq = ?"
        )
        values = (gateway, epoch_to_sql(epoch), seq)
        found = await self.ask_file(lambda connection: connection.execute(sql, values).fetchone())
        return None if found is None else Row(*found)

    async def expired(self, gateway: str, epoch: int, seq: int) -> bool:
        """Return True when retention has deleted the row."""
        sql = (
            "SELECT count(*) FROM expired"
            " WHERE gateway = ? AND epoch = ? AND first_seq <= ? AND last_seq >= ?"
        )
        values = (gateway, epoch_to_sql(epoch), seq, seq)
        (count,) = await self.ask_file(
            lambda connection: connection.execute(sql, values).fetchone()
        )
        return bool(count)

    async def newest(self, device: str, time_us: int) -> tuple[str, int, int] | None:
        """Return the identity of a device's newest reading at a time or before."""
        sql = (
            "SELECT gateway, epoch, seq FROM readings WHERE device = ? AND time_us <= ?"
            " ORDER BY time_us DESC, received_us DESC, seq DESC LIMIT 1"
        )
        values = (device, time_us)
        found = await self.ask_file(lambda connection: connection.execute(sql, values).fetchone())
        return None if found is None else (found[0], epoch_from_sql(found[1]), found[2])


# ---- questions -----------------------------------------------------------------------------------


def _state(connection: sqlite3.Connection, *, count_rows: bool) -> StorageState:
    """Return what storage holds and where it stands, as of one moment."""
    # islands: within a run of consecutive seqs, seq minus its rank is constant
    rows_sql = (
        "SELECT gateway, epoch, min(seq), max(seq) FROM (SELECT gateway, epoch, seq,"
        " seq - row_number() OVER (PARTITION BY gateway, epoch ORDER BY seq) AS island"
        " FROM readings) GROUP BY gateway, epoch, island"
        " UNION ALL SELECT gateway, epoch, first_seq, last_seq FROM expired"
    )
    ranges_sql = "SELECT gateway, epoch, first_seq, last_seq FROM stored"
    stored: dict[Source, IntervalSet] = {}
    connection.execute("BEGIN")
    try:
        sql = rows_sql if count_rows else ranges_sql
        for gateway, epoch, first, last in connection.execute(sql):
            stored.setdefault((gateway, epoch_from_sql(epoch)), IntervalSet()).add(first, last)
        positions = dict(connection.execute("SELECT partition, position FROM cursors").fetchall())
        row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
    finally:
        connection.execute("COMMIT")
    return StorageState(
        {source: tuple(ranges) for source, ranges in stored.items()},
        positions,
        None if row is None else epoch_from_sql(row[0]),
    )


def _positions(connection: sqlite3.Connection, stream_epoch: int) -> dict[int, int]:
    row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
    if row is None or row[0] != epoch_to_sql(stream_epoch):
        return {}
    return dict(connection.execute("SELECT partition, position FROM cursors").fetchall())


def _newest_rows(
    connection: sqlite3.Connection, after: str, now_us: int, payload_bytes: int
) -> tuple[list[str], list[LatestReading]]:
    """Return the next devices past `after`, and the newest row of each of their topics."""
    names: list[str] = []
    rows: list[LatestReading] = []
    while len(names) < REBUILD_DEVICES_AT_ONCE:
        # one step of the index a device, however many rows it has
        row = connection.execute(
            "SELECT device FROM readings WHERE device > ? ORDER BY device LIMIT 1", (after,)
        ).fetchone()
        if row is None:
            break
        after = row[0]
        names.append(after)
        newest: dict[str, LatestReading] = {}
        for topic, gateway, epoch, seq, time_us, received_us, qos, payload in connection.execute(
            "SELECT topic, gateway, epoch, seq, time_us, received_us, qos, payload FROM readings "
            "WHERE device = ? AND time_us <= ? ORDER BY time_us DESC LIMIT ?",
            (after, now_us, REBUILD_ROWS_PER_DEVICE),
        ):
            whole = payload_from_sql(payload)
            reading = LatestReading(
                after, topic, gateway, epoch_from_sql(epoch), seq, time_us, received_us, qos,
                whole[:payload_bytes], len(whole),
            )  # fmt: skip
            best = newest.get(topic)
            if best is None or reading.order > best.order:
                newest[topic] = reading
        rows += newest.values()
    return names, rows
