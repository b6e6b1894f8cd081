"""Questions to the embedded stream's file, on any connection to it, one that reads only included.

The tables are in cloud/stream/tables.py.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cbor2

from bridge.envelope import unfold_runs
from bridge.intervals import Range
from bridge.runs import Run
from cloud.ranges import apart
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql
from cloud.stream.contract import (
    RUN,
    Backlog,
    DeadLetter,
    Entry,
    GivenUp,
    Source,
    SourceLedger,
    known_runs,
)

__all__ = [
    "all_cursors",
    "backlog",
    "copy_to",
    "cursors",
    "dead_letters",
    "first_unread",
    "held",
    "ledger",
    "ranges_after",
    "read",
    "runs",
]


def read(
    connection: sqlite3.Connection, partition: int, after: int, entries_max: int, bytes_max: int
) -> list[Entry]:
    """Return entries past a position within the bounds, at least one if there is any."""
    found: list[Sequence[Any]] = []
    rows = connection.execute(
        "SELECT partition, position, gateway, epoch, seqs, count, appended_us, body FROM entries"
        " WHERE partition = ? AND position > ? ORDER BY position LIMIT ?",
        (partition, after, max(1, entries_max)),
    )
    size = 0
    for row in rows:
        body = row[-1]
        size += len(body) if isinstance(body, bytes) else 0
        if found and size > bytes_max:
            break
        found.append(row)
    rows.close()
    return _entries(connection, found)


def _entries(connection: sqlite3.Connection, rows: Sequence[Sequence[Any]]) -> list[Entry]:
    """Return consecutive rows of a partition as entries; those that share a body, one object."""
    bodies: dict[int, bytes] = {}
    entries = []
    for row in reversed(rows):
        partition, position, *_, body = row
        if isinstance(body, int):
            holder = position + body
            if holder not in bodies:  # past the bounds
                found = connection.execute(
                    "SELECT body FROM entries WHERE partition = ? AND position = ?",
                    (partition, holder),
                ).fetchone()
                if found is None:
                    continue  # trimmed meanwhile
                (bodies[holder],) = found
            body = bodies[holder]
        else:
            bodies[position] = body
        entries.append(_entry((*row[:-1], body)))
    entries.reverse()
    return entries


def held(connection: sqlite3.Connection, gateway: str, epoch: int) -> list[Range]:
    """Return the seq ranges held of a source, rising."""
    return connection.execute(
        "SELECT first_seq, last_seq FROM held WHERE gateway = ? AND epoch = ? ORDER BY first_seq",
        (gateway, epoch_to_sql(epoch)),
    ).fetchall()


def runs(connection: sqlite3.Connection, gateway: str, epoch: int) -> tuple[int, tuple[Run, ...]]:
    """Return how many runs were made known of a source, and the newest."""
    return known_runs(
        GivenUp(gateway, epoch, *row)
        for row in connection.execute(
            "SELECT lane, first_seq, last_seq, count, reason, time_us FROM given_up"
            " WHERE gateway = ? AND epoch = ? AND reason = ?",
            (gateway, epoch_to_sql(epoch), RUN),
        )
    )


def highest_seq(connection: sqlite3.Connection, gateway: str, epoch: int) -> int:
    """Return the highest seq held of a source, 0 for none."""
    ((highest,),) = connection.execute(
        "SELECT coalesce(max(last_seq), 0) FROM held WHERE gateway = ? AND epoch = ?",
        (gateway, epoch_to_sql(epoch)),
    )
    return int(highest)


def first_unread(
    connection: sqlite3.Connection, positions: Mapping[int, int]
) -> dict[int, tuple[int, int, int]]:
    """Return (position, readings before it, appended_us) of each partition's next entry."""
    found = {}
    for partition, after in positions.items():
        row = connection.execute(
            "SELECT position, through - count, appended_us FROM entries"
            " WHERE partition = ? AND position > ? ORDER BY position LIMIT 1",
            (partition, after),
        ).fetchone()
        if row is not None:
            found[partition] = row
    return found


def ranges_after(
    connection: sqlite3.Connection, positions: Mapping[int, int]
) -> dict[Source, list[Range]]:
    """Return the seqs of entries past the positions, by source; doubled ones overlap."""
    found: dict[Source, list[Range]] = {}
    partitions = [p for (p,) in connection.execute("SELECT partition FROM partitions")]
    for partition in partitions:
        rows = connection.execute(
            "SELECT gateway, epoch, seqs, count FROM entries WHERE partition = ? AND position > ?",
            (partition, positions.get(partition, 0)),
        )
        for gateway, epoch, seqs, count in rows:
            ranges = found.setdefault((gateway, epoch_from_sql(epoch)), [])
            ranges.extend(unfold_runs(cbor2.loads(seqs), count, 0))
    return {source: apart(ranges) for source, ranges in found.items()}


def ledger(connection: sqlite3.Connection) -> list[SourceLedger]:
    """Return what is known of every source, as of one moment."""
    held: dict[tuple[str, int], list[Range]] = {}
    given_up: dict[tuple[str, int], list[GivenUp]] = {}
    connection.execute("BEGIN")
    try:
        for gateway, epoch, first, last in connection.execute(
            "SELECT gateway, epoch, first_seq, last_seq FROM held ORDER BY first_seq"
        ):
            held.setdefault((gateway, epoch), []).append((first, last))
        for gateway, epoch, *rest in connection.execute(
            "SELECT gateway, epoch, lane, first_seq, last_seq, count, reason, time_us"
            " FROM given_up ORDER BY first_seq, lane"
        ):
            stone = GivenUp(gateway, epoch_from_sql(epoch), *rest)
            given_up.setdefault((gateway, epoch), []).append(stone)
        assigned = {
            (gateway, epoch): seq
            for gateway, epoch, seq in connection.execute("SELECT * FROM assigned")
        }
    finally:
        connection.execute("COMMIT")
    return [
        SourceLedger.of(
            (source[0], epoch_from_sql(source[1])),
            assigned.get(source, 0),
            held.get(source, ()),
            given_up.get(source, ()),
        )
        for source in sorted(held.keys() | given_up.keys() | assigned.keys())
    ]


def cursors(connection: sqlite3.Connection, sink: str) -> dict[int, int]:
    """Return a sink's cursors."""
    return dict(
        connection.execute(
            "SELECT partition, position FROM cursors WHERE sink = ?", (sink,)
        ).fetchall()
    )


def all_cursors(connection: sqlite3.Connection) -> dict[str, dict[int, int]]:
    """Return the cursors of every sink that keeps them here."""
    found: dict[str, dict[int, int]] = {}
    for sink, partition, position in connection.execute("SELECT * FROM cursors"):
        found.setdefault(sink, {})[partition] = position
    return found


def dead_letters(connection: sqlite3.Connection, sink: str | None) -> list[DeadLetter]:
    """Return dead letters, oldest first."""
    rows = connection.execute(
        "SELECT sink, cause, tries, time_us,"
        " partition, position, gateway, epoch, seqs, count, appended_us, body"
        " FROM dead_letters WHERE ? IS NULL OR sink = ? ORDER BY time_us, rowid",
        (sink, sink),
    )
    return [
        DeadLetter(name, _entry(rest), cause, tries, time_us)
        for name, cause, tries, time_us, *rest in rows
    ]


def backlog(
    positions: Mapping[int, int],
    unread: Mapping[int, tuple[int, int, int]],
    ends: Mapping[int, tuple[int, int]],
) -> dict[int, Backlog]:
    """Return how much lies past the positions.

    Args:
        positions: By partition.
        unread: What `first_unread` found.
        ends: Last position and readings ever taken, by partition.
    """
    found = dict.fromkeys(positions, Backlog(0, 0, 0))
    for partition, (position, through, appended_us) in unread.items():
        last_position, last_through = ends[partition]
        found[partition] = Backlog(
            last_position - position + 1, last_through - through, appended_us
        )
    return found


def copy_to(connection: sqlite3.Connection, path: Path) -> None:
    """Write a consistent copy to `path`, which must not exist, and sync it."""
    temporary = path.with_name(path.name + ".partial")
    temporary.unlink(missing_ok=True)
    try:
        connection.execute("VACUUM INTO ?", (str(temporary),))
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        os.link(temporary, path)  # unlike a rename, refuses to replace
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _entry(row: Sequence[Any]) -> Entry:
    partition, position, gateway, epoch, seqs, count, appended_us, body = row
    ranges = unfold_runs(cbor2.loads(seqs), count, 0)
    return Entry(
        partition, position, gateway, epoch_from_sql(epoch), ranges, count, appended_us, body
    )
