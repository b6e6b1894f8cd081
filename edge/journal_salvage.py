"""Reading what can be read of a damaged journal, and naming what cannot.

A damaged page hides the rows on it, a damaged interior page a whole stretch, a damaged body one
row. Rows are read in key order; where SQLite refuses, the least key from which it reads again is
searched for: by doubling steps, then by halving. Every row must match its crc32.

Invariant: each seq that the file may have held is in a copied row, in a hole, or was gone before.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from edge.contract import Lane, Tombstone
from edge.journal_schema import LANE_KEYS, Row, key_of, lane_keys, row_crc32

__all__ = ["Hole", "Salvaged", "copy_rows", "lost_tombstones"]

ROWS_A_CHECK = 64  # rows copied between two looks at the room left
_SELECT = (
    "SELECT key, count, bytes, time_us, boot, boot_us, crc32, body FROM commits"
    " WHERE key BETWEEN ? AND ? ORDER BY key"
)
_INSERT = "INSERT OR IGNORE INTO commits VALUES (?, ?, ?, ?, ?, ?, ?, ?)"


@dataclass(slots=True, frozen=True)
class Hole:
    """Seqs of a lane in which rows may have been that cannot be read."""

    lane: Lane
    first_seq: int
    last_seq: int


@dataclass(slots=True)
class Salvaged:
    """What was copied."""

    rows: int = 0
    readings: int = 0
    last_seq: int = 0
    holes: list[Hole] = field(default_factory=list)


def copy_rows(
    old: sqlite3.Connection,
    new: sqlite3.Connection,
    *,
    rows: Sequence[Row],
    gone: Mapping[Lane, int],
    reserved_seq: int,
    room: Callable[[], bool],
) -> Salvaged:
    """Copy every readable row from `old` to `new`, urgent first.

    Args:
        old: The damaged journal.
        new: The file being built; its schema is there, a transaction is open.
        rows: Rows that are in memory, and better than those of the file.
        gone: Up to which seq each lane had been given up: not missed.
        reserved_seq: No seq above this was ever given out.
        room: Whether there is room on the disk for more; when not, the rest counts as lost.
    """
    done = Salvaged(last_seq=max(gone.values()))
    for have in rows:
        new.execute(_INSERT, have)
        done.last_seq = max(done.last_seq, have[0] % LANE_KEYS + have[1] - 1)
    for lane in Lane:
        hole: int | None = None
        follows = gone[lane] + 1  # the seq after what is accounted for
        for row in _rows(old, *lane_keys(lane)):
            if row is None or not _checks(row) or not _room_for(done.rows, room):
                hole = follows if hole is None else hole
                continue
            first_seq = row[0] - key_of(lane, 0)
            if hole is not None and first_seq > hole:
                done.holes.append(Hole(lane, hole, first_seq - 1))
            hole = None
            new.execute(_INSERT, row)
            done.rows += 1
            done.readings += row[1]
            follows = max(follows, first_seq + row[1])
        if hole is not None and hole <= reserved_seq:
            done.holes.append(Hole(lane, hole, reserved_seq))
        done.last_seq = max(done.last_seq, follows - 1)
    return done


def lost_tombstones(
    new: sqlite3.Connection, done: Salvaged, reserved_seq: int, time_us: int
) -> list[Tombstone]:
    """Return what to record as lost: the holes joined, and all after the last row.

    The counts are upper bounds: a seq in a hole may have been trimmed, or never been given out.
    """
    holes = done.holes
    if done.last_seq < reserved_seq:
        holes = [*holes, Hole(Lane.LIVE, done.last_seq + 1, reserved_seq)]
    joined: list[Hole] = []
    for hole in sorted(holes, key=lambda hole: hole.first_seq):
        if joined and hole.first_seq <= joined[-1].last_seq + 1:
            before = joined[-1]
            last = max(before.last_seq, hole.last_seq)
            joined[-1] = Hole(max(before.lane, hole.lane), before.first_seq, last)
        else:
            joined.append(hole)
    lost = []
    for hole in joined:
        count = hole.last_seq - hole.first_seq + 1 - _present(new, hole)
        if count > 0:
            lost.append(
                Tombstone(hole.lane, hole.first_seq, hole.last_seq, count, "damaged", time_us)
            )
    return lost


def _present(new: sqlite3.Connection, hole: Hole) -> int:
    """Return how many readings in the range of a hole were copied, of whatever lane."""
    total = 0
    for lane in Lane:
        bounds = (key_of(lane, hole.first_seq), key_of(lane, hole.last_seq))
        sql = "SELECT coalesce(sum(count), 0) FROM commits WHERE key BETWEEN ? AND ?"
        total += new.execute(sql, bounds).fetchone()[0]
    return total


def _checks(row: Row) -> bool:
    key, count, size, time_us, _, _, crc32, body = row
    return bool(count > 0 and size == len(body) and crc32 == row_crc32(key, count, time_us, body))


def _room_for(rows: int, room: Callable[[], bool]) -> bool:
    return rows % ROWS_A_CHECK != 0 or room()


def _rows(old: sqlite3.Connection, low: int, high: int) -> Iterator[Row | None]:
    """Yield the readable rows with keys from `low` to `high`, None where some may be missing."""
    at: int | None = low
    while at is not None:
        try:
            for row in old.execute(_SELECT, (at, high)):
                at = row[0] + 1
                yield row
        except sqlite3.DatabaseError:
            yield None
            at = _next_readable(old, at, high)
        else:
            return


def _next_readable(old: sqlite3.Connection, at: int, high: int) -> int | None:
    """Return the least key past `at` from which rows can be read, None when there is none."""
    step = 1
    while not _readable(old, min(at + step, high), high):
        if at + step >= high:
            return None
        step *= 2
    bad, good = at + step // 2, min(at + step, high)
    while good - bad > 1:
        middle = (bad + good) // 2
        if _readable(old, middle, high):
            good = middle
        else:
            bad = middle
    return good


def _readable(old: sqlite3.Connection, key: int, high: int) -> bool:
    try:
        old.execute(_SELECT + " LIMIT 1", (key, high)).fetchone()
    except sqlite3.DatabaseError:
        return False
    return True
