"""The journal's file in use: every statement that is run on it, and none of the decisions.

Two connections: one writes, one only reads, so that reading a backlog never holds up a commit.
A commit is one INSERT in autocommit, one hop to the writer's thread.

Invariants:
- Every error leaves as JournalError and has changed nothing.
- A tombstone is inserted in the transaction that deletes what it stands for.
- `lanes` is written in every transaction that deletes rows, so that totals and rows agree.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Awaitable, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from bridge.runs import Origin, Run
from edge.contract import Lane, Tombstone
from edge.database import Database, Statement, connect_file
from edge.journal_open import read_head
from edge.journal_runs import history_statements, met_statements
from edge.journal_schema import (
    INSERT_TOMBSTONE,
    KEEP_DAMAGED_ROW,
    PAGE_BYTES,
    JournalError,
    Row,
    error_of,
    key_of,
    lane_keys,
    tombstone_row,
)
from edge.journal_state import Head, LaneState
from edge.limits import WAL_BYTES_MAX, Space

__all__ = ["JournalFile", "Outline"]

T = TypeVar("T")

CHECKPOINT_PAGES = 1000
WRITER_CACHE_KIB = 4096
READER_CACHE_KIB = 1024
_READ_FROM = (
    "SELECT key, count, time_us, crc32, body FROM commits WHERE key BETWEEN"
    " coalesce((SELECT max(key) FROM commits WHERE key BETWEEN ? AND ?), ?) AND ? ORDER BY key"
)
_OUTLINE = (
    "SELECT key, count, bytes, time_us, boot, boot_us FROM commits WHERE key BETWEEN ? AND ?"
    " ORDER BY key LIMIT ?"
)
_OUTLINE_WITHIN = (
    "SELECT key, count, bytes, time_us, boot, boot_us FROM commits WHERE key BETWEEN ? AND ?"
    " AND key + count - 1 <= ? ORDER BY key LIMIT ?"
)
_WHOLE = (
    "SELECT key, count, bytes, time_us, boot, boot_us, crc32, body FROM commits"
    " WHERE key BETWEEN ? AND ? ORDER BY key"
)
# made when it is first needed: a journal of before has none, and reads the same without
_MAKE_THINNED = (
    "CREATE TABLE IF NOT EXISTS thinned"
    " (lane INTEGER PRIMARY KEY, through_seq INTEGER NOT NULL) STRICT"
)
_RAISE_LAST_SEQ = "UPDATE meta SET last_seq = max(last_seq, ?)"
_SET_LANE = "UPDATE lanes SET gone_seq = ?, counted_seq = ?, readings = ?, bytes = ? WHERE lane = ?"


@dataclass(slots=True)
class Outline:
    """A row without its body."""

    head: Head
    bytes: int  # of the body


class JournalFile:
    """One open journal file."""

    def __init__(self, path: Path, writer: Database, reader: Database) -> None:
        self._path = path
        self._wal_path = Path(f"{path}-wal")
        self._writer = writer
        self._reader = reader

    @classmethod
    async def connect(cls, path: Path, *, durable: bool) -> JournalFile:
        """Open a journal that `open_journal` made ready.

        Args:
            path: `journal.db`.
            durable: Whether every commit is synced to the disk.
        """
        writer = Database(lambda: _open_writer(path, durable=durable), durable=durable)
        reader = Database(lambda: _open_reader(path), durable=durable)
        try:
            await writer
            try:
                await reader
            except BaseException:
                await writer.close()
                raise
        except sqlite3.Error as error:
            raise error_of(path, 0, error) from error
        return cls(path, writer, reader)

    async def close(self) -> None:
        """Close both connections; the last one to close empties the log into the database."""
        try:
            await self._reader.close()
        except sqlite3.Error as error:
            raise error_of(self._path, 0, error) from error
        finally:
            with suppress(sqlite3.Error):
                await self._writer.close()

    async def insert(self, rows: Sequence[Row]) -> None:
        """Add rows: durable when this returns, none of them when it raises."""
        sql = _INSERTS[len(rows)]
        values = [value for row in rows for value in row]
        await self._say(rows[0][0], self._writer.query(sql, values))

    async def reserve(self, seq: int) -> None:
        """Record that seqs up to `seq` may be given out; durable whatever the durability."""
        statement: Statement = ("UPDATE meta SET reserved_seq = ?", (seq,))
        await self._say(0, self._writer.transact([statement], durable=True))

    async def outlines(self, lane: Lane, limit: int) -> list[Outline]:
        """Return the oldest rows of a lane without their bodies."""
        low, high = lane_keys(lane)
        rows = await self._say(0, self._writer.query(_OUTLINE, (low, high, limit)))
        return [Outline(Head(key - low, count, *when), size) for key, count, size, *when in rows]

    async def outlines_within(self, lane: Lane, first: int, last: int, limit: int) -> list[Outline]:
        """Return the oldest rows of a lane that lie wholly within a range of seqs."""
        low, _ = lane_keys(lane)
        bounds = (low + first, low + last, low + last, limit)
        rows = await self._say(0, self._writer.query(_OUTLINE_WITHIN, bounds))
        return [Outline(Head(key - low, count, *when), size) for key, count, size, *when in rows]

    async def read(
        self, lane: Lane, after_seq: int, through_seq: int, bytes_max: int
    ) -> list[tuple[Any, ...]]:
        """Return rows (key, count, time_us, crc32, body) with readings past `after_seq`.

        As many as make up `bytes_max`, at least one if there is any; none that begins after
        `through_seq`. The first may have readings before `after_seq`.
        """
        low, _ = lane_keys(lane)
        start = low + after_seq + 1
        bounds = (low, start, start, low + through_seq)

        def fetch(connection: sqlite3.Connection) -> list[tuple[Any, ...]]:
            rows: list[tuple[Any, ...]] = []
            size = 0
            # closed at once: an open cursor would keep the log from starting anew
            with closing(connection.execute(_READ_FROM, bounds)) as cursor:
                for row in cursor:
                    if row[0] + row[1] <= start:
                        continue
                    rows.append(row)
                    size += len(row[4])
                    if size >= bytes_max:
                        break
            return rows

        return await self._say(after_seq, self._reader.run(fetch))

    async def delete(
        self, lane: Lane, through_key_seq: int, state: LaneState, tombstones: Sequence[Tombstone]
    ) -> Head | None:
        """Delete the rows of a lane that begin at `through_key_seq` or before.

        Args:
            lane: Which lane.
            through_key_seq: `first_seq` of the last row to go; -1 deletes none.
            state: The lane as it is afterwards; written in the same transaction.
            tombstones: Recorded in the same transaction.

        Returns:
            The oldest row that is left.
        """
        low, high = lane_keys(lane)
        statements: list[Statement] = [
            (INSERT_TOMBSTONE, tombstone_row(tombstone)) for tombstone in tombstones
        ]
        if through_key_seq >= 0:
            sql = "DELETE FROM commits WHERE key BETWEEN ? AND ?"
            statements.append((sql, (low, low + through_key_seq)))
        statements += [self._set_lane(lane, state), (_OUTLINE, (low, high, 1))]
        *_, rows = await self._say(0, self._writer.transact(statements))
        return _head(low, rows)

    async def delete_ahead(
        self, lane: Lane, rows: Sequence[Outline], state: LaneState, last_seq: int
    ) -> Head | None:
        """Delete rows of a lane although older ones stay.

        Args:
            lane: Which lane.
            rows: Which rows; what lies between the first and the last of them goes too.
            state: The lane as it is afterwards; written in the same transaction.
            last_seq: The highest seq given out; written in the same transaction, for no row may
                be left that tells of it.

        Returns:
            The oldest row that is left.
        """
        low, high = lane_keys(lane)
        bounds = (low + rows[0].head.first_seq, low + rows[-1].head.first_seq)
        statements: list[Statement] = [
            (_RAISE_LAST_SEQ, (last_seq,)),
            ("DELETE FROM commits WHERE key BETWEEN ? AND ?", bounds),
            self._set_lane(lane, state),
            (_OUTLINE, (low, high, 1)),
        ]
        *_, rest = await self._say(0, self._writer.transact(statements))
        return _head(low, rest)

    async def rows_from(self, lane: Lane, seq: int, bytes_max: int) -> list[Row]:
        """Return whole rows of a lane that begin at `seq` or later, at least one if any."""
        low, high = lane_keys(lane)

        def fetch(connection: sqlite3.Connection) -> list[Row]:
            rows: list[Row] = []
            size = 0
            with closing(connection.execute(_WHOLE, (low + seq, high))) as cursor:
                for row in cursor:
                    rows.append(row)
                    size += row[2]
                    if size >= bytes_max:
                        break
            return rows

        return await self._say(seq, self._writer.run(fetch))

    async def thinned_through(self, lane: Lane) -> int:
        """Return up to which seq a lane was thinned, 0 when never."""

        def fetch(connection: sqlite3.Connection) -> int:
            sql = "SELECT count(*) FROM sqlite_master WHERE name = 'thinned'"
            if not connection.execute(sql).fetchone()[0]:
                return 0
            sql = "SELECT through_seq FROM thinned WHERE lane = ?"
            row = connection.execute(sql, (int(lane),)).fetchone()
            return int(row[0]) if row else 0

        return await self._say(0, self._writer.run(fetch))

    async def replace_rows(
        self,
        lane: Lane,
        gone: Sequence[int],
        rows: Sequence[Row],
        state: LaneState,
        tombstone: Tombstone,
        through_seq: int,
    ) -> Head | None:
        """Put rows in the place of others, with the tombstone of what that drops; as one.

        Args:
            lane: Which lane.
            gone: Keys of the rows to delete.
            rows: What takes their place.
            state: The lane as it is afterwards.
            tombstone: What is dropped.
            through_seq: Up to where the lane is thinned now.

        Returns:
            The oldest row that is left.
        """
        thinned: list[Statement] = [
            (_MAKE_THINNED, ()),
            (INSERT_TOMBSTONE, tombstone_row(tombstone)),
            ("INSERT OR REPLACE INTO thinned VALUES (?, ?)", (int(lane), through_seq)),
        ]
        return await self._replace(lane, gone, rows, state, thinned)

    async def move_rows(
        self, lane: Lane, gone: Sequence[int], rows: Sequence[Row], state: LaneState
    ) -> Head | None:
        """Put the readings of rows under new seqs, all of them or none.

        Args:
            lane: Which lane.
            gone: Keys of the rows as they were.
            rows: As they are to be.
            state: The lane as it is afterwards.

        Returns:
            The oldest row that is left.
        """
        return await self._replace(lane, gone, rows, state, ())

    async def _replace(
        self,
        lane: Lane,
        gone: Sequence[int],
        rows: Sequence[Row],
        state: LaneState,
        also: Sequence[Statement],
    ) -> Head | None:
        low, high = lane_keys(lane)
        statements: list[Statement] = [*also]
        statements += [("DELETE FROM commits WHERE key = ?", (key,)) for key in gone]
        statements += [(_INSERTS[1], row) for row in rows]
        statements += [
            (_RAISE_LAST_SEQ, (state.last_seq,)),
            self._set_lane(lane, state),
            (_OUTLINE, (low, high, 1)),
        ]
        *_, left = await self._say(0, self._writer.transact(statements))
        return _head(low, left)

    async def go_past(self, tombstone: Tombstone, reserved_seq: int) -> None:
        """Give out nothing any more up to the end of a tombstone; durable when this returns."""
        statements: list[Statement] = [
            (INSERT_TOMBSTONE, tombstone_row(tombstone)),
            (_RAISE_LAST_SEQ, (tombstone.last_seq,)),
            ("UPDATE meta SET reserved_seq = max(reserved_seq, ?)", (reserved_seq,)),
        ]
        await self._say(tombstone.last_seq, self._writer.transact(statements, durable=True))

    async def met(self) -> None:
        """Record that what is in the file was compared with the cloud; durable."""
        await self._say(0, self._writer.transact(met_statements(), durable=True))

    async def newest_row(self, lane: Lane, seq: int) -> tuple[int, int]:
        """Return first and last seq of the newest row of a lane that begins at `seq` or before.

        (0, 0) when there is none.
        """
        low, _ = lane_keys(lane)
        sql = "SELECT key, count FROM commits WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1"
        rows = await self._say(0, self._writer.query(sql, (low, low + seq)))
        return (rows[0][0] - low, rows[0][0] - low + rows[0][1] - 1) if rows else (0, 0)

    async def begin_epoch(
        self, epoch: int, runs: Sequence[Run], origin: Origin, lanes: dict[Lane, LaneState]
    ) -> None:
        """Have what is in the file, and what comes, belong to another epoch; durable."""
        statements: list[Statement] = [("UPDATE meta SET epoch = ?", (epoch,))]
        statements += history_statements(runs, origin)
        statements += [self._set_lane(lane, state) for lane, state in lanes.items()]
        await self._say(0, self._writer.transact(statements, durable=True))

    async def give_up_row(self, lane: Lane, state: LaneState, tombstone: Tombstone) -> Head | None:
        """Move one row that does not check to the dead letters, with its tombstone."""
        key = key_of(lane, tombstone.first_seq)
        values = tombstone_row(tombstone)
        statements: list[Statement] = [
            (INSERT_TOMBSTONE, values),
            (KEEP_DAMAGED_ROW, (*values[:3], tombstone.time_us, key)),
            ("DELETE FROM commits WHERE key = ?", (key,)),
            self._set_lane(lane, state),
        ]
        await self._say(tombstone.first_seq, self._writer.transact(statements, durable=True))
        return await self._say(0, self._writer.run(lambda connection: read_head(connection, lane)))

    async def newest_seq(self, lane: Lane) -> int:
        """Return the last seq of the newest row of a lane, 0 when it has none."""
        low, high = lane_keys(lane)
        sql = (
            "SELECT key + count - 1 FROM commits WHERE key BETWEEN ? AND ?"
            " ORDER BY key DESC LIMIT 1"
        )
        rows = await self._say(0, self._writer.query(sql, (low, high)))
        return rows[0][0] - low if rows else 0

    async def add_dead_letter(self, tombstone: Tombstone, cause: str, body: bytes) -> None:
        """Keep what was refused; durable when this returns. A repeat replaces the first."""
        sql = (
            "INSERT OR REPLACE INTO dead_letters"
            " (lane, first_seq, last_seq, cause, time_us, body) VALUES (?, ?, ?, ?, ?, ?)"
        )
        values = tombstone_row(tombstone)
        statements: list[Statement] = [
            (sql, (*values[:3], cause, tombstone.time_us, body)),
            (INSERT_TOMBSTONE, values),
        ]
        await self._say(tombstone.first_seq, self._writer.transact(statements, durable=True))

    async def trim_dead_letters(self, bytes_max: int) -> None:
        """Delete the oldest dead letters past `bytes_max`; their tombstones stay."""
        sql = (
            "DELETE FROM dead_letters WHERE id IN (SELECT id FROM (SELECT id, sum(length(body))"
            " OVER (ORDER BY id DESC) AS newer FROM dead_letters) WHERE newer > ?)"
        )
        await self._say(0, self._writer.query(sql, (bytes_max,)))

    async def replace_tombstones(
        self, gone: Sequence[Tombstone], added: Sequence[Tombstone] = ()
    ) -> None:
        """Delete tombstones and insert others, as one."""
        sql = "DELETE FROM tombstones WHERE lane = ? AND first_seq = ? AND reason = ?"
        statements: list[Statement] = [
            (sql, (int(each.lane), each.first_seq, each.reason)) for each in gone
        ]
        statements += [(INSERT_TOMBSTONE, tombstone_row(each)) for each in added]
        await self._say(0, self._writer.transact(statements))

    async def keep_totals(self, lanes: dict[Lane, LaneState]) -> None:
        """Write the totals of the lanes, so that the next start need not count."""
        await self._say(
            0, self._writer.transact([self._set_lane(lane, state) for lane, state in lanes.items()])
        )

    async def mark_clean(self, last_seq: int, lanes: dict[Lane, LaneState]) -> None:
        """Record that the session ends in order."""
        statements = [self._set_lane(lane, state) for lane, state in lanes.items()]
        statements.append(("UPDATE meta SET clean = 1, last_seq = ?", (last_seq,)))
        await self._say(0, self._writer.transact(statements, durable=True))

    async def space(self) -> Space:
        """Return what the files take and what the disk has left."""

        def pages(connection: sqlite3.Connection) -> Space:
            (count,) = connection.execute("PRAGMA page_count").fetchone()
            (free,) = connection.execute("PRAGMA freelist_count").fetchone()
            wal = self._wal_path.stat().st_size if self._wal_path.exists() else 0
            disk = os.statvfs(self._path.parent)
            # pages that so far are in the log only: the database has yet to grow by them
            growth = max(0, count * PAGE_BYTES - self._path.stat().st_size)
            return Space(
                used_bytes=(count - free) * PAGE_BYTES,
                free_page_bytes=free * PAGE_BYTES,
                wal_bytes=wal,
                disk_free_bytes=disk.f_bavail * disk.f_frsize - growth,
            )

        return await self._say(0, self._writer.run(pages))

    async def checkpoint(self) -> None:
        """Write the log back into the database as far as nobody reads from it."""
        await self._say(0, self._writer.query("PRAGMA wal_checkpoint(PASSIVE)"))

    async def restart_log(self) -> None:
        """Empty the log into the database and cut it off; the caller lets nobody read meanwhile."""
        await self._say(0, self._writer.query("PRAGMA wal_checkpoint(TRUNCATE)"))

    async def compact(self) -> None:
        """Give free pages back to the file system: copies what is in use, so for little of it."""
        await self._say(0, self._writer.query("VACUUM"))
        await self.restart_log()

    @staticmethod
    def _set_lane(lane: Lane, state: LaneState) -> Statement:
        values = (state.gone_seq, state.last_seq, state.readings, state.bytes, int(lane))
        return (_SET_LANE, values)

    async def _say(self, seq: int, hop: Awaitable[T]) -> T:
        """Await a hop and say what its error means."""
        try:
            return await hop
        except sqlite3.Error as error:
            raise error_of(self._path, seq, error) from error
        except ValueError:  # aiosqlite's word for a connection that was closed
            raise JournalError(self._path, seq, "is closed", "closed") from None


def _head(low: int, rows: Sequence[Sequence[Any]]) -> Head | None:
    """Return the row that `_OUTLINE` found, if it did."""
    if not rows:
        return None
    key, count, _, *when = rows[0]
    return Head(key - low, count, *when)


_INSERTS = {
    1: "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
    2: "INSERT INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?), (?, ?, ?, ?, ?, ?, ?, ?)",
}


def _open_writer(path: Path, *, durable: bool) -> sqlite3.Connection:
    connection = connect_file(path, "rw")
    try:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
        # some builds overwrite what is deleted: that would write every reading a second time
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        connection.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        connection.execute(f"PRAGMA cache_size = -{WRITER_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection


def _open_reader(path: Path) -> sqlite3.Connection:
    connection = connect_file(path, "ro")
    try:
        connection.execute("PRAGMA query_only = ON")
        connection.execute(f"PRAGMA cache_size = -{READER_CACHE_KIB}")
    except BaseException:
        connection.close()
        raise
    return connection
