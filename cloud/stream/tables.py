"""The embedded stream's file: its tables and every statement, run on the database's thread.

`entries` is appended to in order of arrival and found again by (partition, position): with the
rows clustered by partition instead, a commit that touches all 64 wrote two to three times the
pages. Positions are dense within a partition, from 1. `partitions` carries what must outlive
trimmed entries: last position, readings ever taken (`through`), and sizes held now. A body that
several entries share is with the last of them, which is trimmed last.

Invariants: an entry and its seqs in `held` are of one transaction; so `held` is never ahead of
what was appended nor behind it. What `StreamTables` keeps in memory is what the file says: after
a failed transaction it is read again.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import cbor2

from bridge.envelope import runs_of
from bridge.intervals import Range
from cloud.database import DatabaseKind, execute_rows, file_bytes, transaction
from cloud.ranges import RangeTable
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql
from cloud.stream import arrivals
from cloud.stream.arrivals import ARRIVALS_SCHEMA
from cloud.stream.contract import Entry, GivenUp, Part, Source

__all__ = ["STREAM_KIND", "Partition", "Request", "Stored", "StreamTables"]

_SCHEMA = """
CREATE TABLE entries (
    id          INTEGER PRIMARY KEY,  -- order of arrival
    partition   INTEGER NOT NULL,
    position    INTEGER NOT NULL,
    gateway     TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,     -- unsigned 64 bits written as signed
    count       INTEGER NOT NULL,
    appended_us INTEGER NOT NULL,
    through     INTEGER NOT NULL,     -- readings of the partition, this entry's included
    seqs        BLOB    NOT NULL,     -- CBOR array of runs, docs/link-format.md
    body        BLOB    NOT NULL      -- or a number: the body of the entry so many positions on
);
CREATE UNIQUE INDEX entries_position ON entries (partition, position);
CREATE TABLE partitions (
    partition     INTEGER PRIMARY KEY,
    last_position INTEGER NOT NULL,
    through       INTEGER NOT NULL,   -- readings ever taken
    entries       INTEGER NOT NULL,   -- held now, as the next two
    readings      INTEGER NOT NULL,
    bytes         INTEGER NOT NULL
);
CREATE TABLE held (
    gateway   TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch, first_seq)
) WITHOUT ROWID;
CREATE TABLE given_up (
    gateway   TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    lane      TEXT    NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    count     INTEGER NOT NULL,
    reason    TEXT    NOT NULL,
    time_us   INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch, lane, first_seq, reason)
) WITHOUT ROWID;
CREATE TABLE assigned (
    gateway TEXT    NOT NULL,
    epoch   INTEGER NOT NULL,
    seq     INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch)
) WITHOUT ROWID;
CREATE TABLE cursors (
    sink      TEXT    NOT NULL,
    partition INTEGER NOT NULL,
    position  INTEGER NOT NULL,
    PRIMARY KEY (sink, partition)
) WITHOUT ROWID;
CREATE TABLE dead_letters (
    sink        TEXT    NOT NULL,
    partition   INTEGER NOT NULL,
    position    INTEGER NOT NULL,
    gateway     TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,
    count       INTEGER NOT NULL,
    appended_us INTEGER NOT NULL,
    seqs        BLOB    NOT NULL,
    body        BLOB    NOT NULL,
    cause       TEXT    NOT NULL,
    tries       INTEGER NOT NULL,
    time_us     INTEGER NOT NULL,
    PRIMARY KEY (sink, partition, position)
);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID
"""

# version 2: a body may be another entry's, which programs that know 1 would take for damage
STREAM_KIND = DatabaseKind("a Tidegate stream", 0x54475354, 2, _SCHEMA, ARRIVALS_SCHEMA)  # "TGST"

_TRIM_ENTRIES = 1000  # a transaction: appends wait for it
_VACUUM_PAGES = 2048
_VACUUM_FREE_PAGES_MIN = 16384  # 64 MB of 4 kB pages; less is left for the next appends


@dataclass(slots=True)
class Partition:
    """One row of `partitions`."""

    last_position: int = 0
    through: int = 0
    entries: int = 0
    readings: int = 0
    bytes: int = 0


@dataclass(slots=True)
class Request:
    """What one call wants in the next transaction."""

    parts: Sequence[Part] = ()
    given_up: Sequence[GivenUp] = ()
    assigned: Mapping[Source, int] = field(default_factory=dict)
    cursors: Mapping[tuple[str, int], int] = field(default_factory=dict)
    probe: bool = False
    bytes: int = 0


@dataclass(slots=True, frozen=True)
class Stored:
    """What a transaction left behind."""

    entries: list[Entry]
    partitions: dict[int, Partition]
    file_bytes: int  # in use, free pages not counted


class StreamTables:
    """The statements, with the few things they need in memory. One thread only."""

    def __init__(self) -> None:
        self.epoch = 0
        self.partitions: dict[int, Partition] = {}
        self.held = RangeTable("held")

    def load(self, connection: sqlite3.Connection, new_epoch: int) -> Stored:
        """Read what memory keeps; a new file gets `new_epoch` as its epoch."""
        row = connection.execute("SELECT value FROM meta WHERE key = 'epoch'").fetchone()
        if row is None:
            with transaction(connection):
                connection.execute(
                    "INSERT INTO meta VALUES ('epoch', ?)", (epoch_to_sql(new_epoch),)
                )
            row = (epoch_to_sql(new_epoch),)
        self.epoch = epoch_from_sql(row[0])
        self.held.forget()
        self.partitions = {
            partition: Partition(*rest)
            for partition, *rest in connection.execute(
                "SELECT partition, last_position, through, entries, readings, bytes FROM partitions"
            )
        }
        return Stored([], self.rows(), file_bytes(connection))

    def store(
        self, connection: sqlite3.Connection, requests: Sequence[Request], now_us: int
    ) -> Stored:
        """Put all of `requests` in one transaction, or nothing of them."""
        before = self.rows()
        try:
            with transaction(connection):
                appended, seqs = self._new_entries(connection, requests, now_us)
                entries = list(chain.from_iterable(appended))
                self._write_entries(connection, entries, seqs)
                arrivals.write(connection, appended)
                self.held.write(connection)
                _write_ledger(connection, requests)
                _write_cursors(connection, requests)
                if any(request.probe for request in requests):
                    connection.execute("INSERT OR REPLACE INTO meta VALUES ('probe', ?)", (now_us,))
        except BaseException:
            self.partitions = before
            self.held.forget()
            raise
        return Stored(entries, self.rows(), file_bytes(connection))

    def rows(self, _connection: sqlite3.Connection | None = None) -> dict[int, Partition]:
        """Return a copy of the partitions as they are now."""
        return {partition: _copy(row) for partition, row in self.partitions.items()}

    # ---- what an append writes -------------------------------------------------------------------

    def _new_entries(
        self, connection: sqlite3.Connection, requests: Sequence[Request], now_us: int
    ) -> tuple[list[list[Entry]], list[bytes]]:
        """Return by request the entries of all parts not held yet, and the seqs of each packed."""
        appended: list[list[Entry]] = []
        seqs: list[bytes] = []
        for request in requests:
            entries: list[Entry] = []
            taken: dict[Source, list[Range]] = {}
            for part in request.parts:
                held = self.held.get(connection, part.gateway, part.epoch)
                if all(held.covers(first, last) for first, last in part.seq_ranges):
                    continue
                row = self.partitions.setdefault(part.partition, Partition())
                row.last_position += 1
                row.through += part.count
                row.entries += 1
                row.readings += part.count
                entry = Entry(
                    part.partition,
                    row.last_position,
                    part.gateway,
                    part.epoch,
                    part.seq_ranges,
                    part.count,
                    now_us,
                    part.body,
                )
                entries.append(entry)
                seqs.append(part.packed or cbor2.dumps(runs_of(part.seq_ranges, 0)))
                taken.setdefault((part.gateway, part.epoch), []).extend(part.seq_ranges)
            for source, ranges in taken.items():
                self.held.add(connection, *source, ranges)
            appended.append(entries)
        return appended, seqs

    def _write_entries(
        self, connection: sqlite3.Connection, entries: list[Entry], seqs: list[bytes]
    ) -> None:
        if not entries:
            return
        through = {
            partition: self.partitions[partition].through
            for partition in {entry.partition for entry in entries}
        }
        touched = list(through)
        rows = []
        holders: dict[int, Entry] = {}  # by partition, of the body last seen
        # backwards, so that `through` can be counted down from the last
        for entry, packed in zip(reversed(entries), reversed(seqs), strict=True):
            holder = holders.get(entry.partition)
            if holder is None or holder.body is not entry.body:
                holder = holders[entry.partition] = entry
                self.partitions[entry.partition].bytes += len(entry.body)
            rows.append(
                (
                    entry.partition,
                    entry.position,
                    entry.gateway,
                    epoch_to_sql(entry.epoch),
                    entry.count,
                    entry.appended_us,
                    through[entry.partition],
                    packed,
                    entry.body if holder is entry else holder.position - entry.position,
                )
            )
            through[entry.partition] -= entry.count
        rows.reverse()
        execute_rows(
            connection,
            "INSERT INTO entries (partition, position, gateway, epoch, count, appended_us,"
            " through, seqs, body)",
            rows,
        )
        _write_partitions(connection, self.partitions, touched)

    # ---- dead letters ----------------------------------------------------------------------------

    def set_aside(
        self,
        connection: sqlite3.Connection,
        sink: str,
        entry: Entry,
        cause: str,
        tries: int,
        now_us: int,
    ) -> None:
        """Keep a dead letter; the first cause stays."""
        with transaction(connection):
            connection.execute(
                "INSERT INTO dead_letters (sink, partition, position, gateway, epoch, seqs, count,"
                " appended_us, body, cause, tries, time_us)"
                " VALUES (?,?,?,?,?,?,?,?,?,?,?,?) ON CONFLICT DO NOTHING",
                (
                    sink,
                    entry.partition,
                    entry.position,
                    entry.gateway,
                    epoch_to_sql(entry.epoch),
                    cbor2.dumps(runs_of(entry.seq_ranges, 0)),
                    entry.count,
                    entry.appended_us,
                    entry.body,
                    cause,
                    tries,
                    now_us,
                ),
            )

    def forget_dead_letter(
        self, connection: sqlite3.Connection, sink: str, partition: int, position: int
    ) -> None:
        """Drop a dead letter."""
        with transaction(connection):
            connection.execute(
                "DELETE FROM dead_letters WHERE sink = ? AND partition = ? AND position = ?",
                (sink, partition, position),
            )

    # ---- trimming --------------------------------------------------------------------------------

    def trim(
        self, connection: sqlite3.Connection, partition: int, up_to: int, before_us: int | None
    ) -> tuple[int, bool]:
        """Delete up to `_TRIM_ENTRIES` entries of a partition.

        Returns:
            How many went, and True when there may be more.
        """
        row = self.partitions.get(partition)
        if row is None or not row.entries:
            return 0, False
        first = row.last_position - row.entries + 1
        last = min(up_to, first + _TRIM_ENTRIES - 1)
        if before_us is not None:
            (young,) = connection.execute(
                "SELECT min(position) FROM entries"
                " WHERE partition = ? AND position <= ? AND appended_us >= ?",
                (partition, last, before_us),
            ).fetchone()
            last = last if young is None else young - 1
        if last < first:
            return 0, False
        readings, size = connection.execute(
            "SELECT sum(count), total(CASE WHEN typeof(body) = 'blob' THEN length(body) END)"
            " FROM entries WHERE partition = ? AND position <= ?",
            (partition, last),
        ).fetchone()
        after = _copy(row)
        after.entries -= last - first + 1
        after.readings -= readings
        after.bytes -= int(size)
        with transaction(connection):
            connection.execute(
                "DELETE FROM entries WHERE partition = ? AND position <= ?", (partition, last)
            )
            _write_partitions(connection, {partition: after}, [partition])
        self.partitions[partition] = after
        return last - first + 1, last == first + _TRIM_ENTRIES - 1

    def forget_arrivals(self, connection: sqlite3.Connection, batches_max: int) -> None:
        """Keep only the newest arrivals."""
        with transaction(connection):
            arrivals.prune(connection, batches_max)

    def shrink(self, connection: sqlite3.Connection) -> int:
        """Give free pages back once they are many; return the bytes in use."""
        (pages,) = connection.execute("PRAGMA page_count").fetchone()
        (free,) = connection.execute("PRAGMA freelist_count").fetchone()
        if free > max(pages // 4, _VACUUM_FREE_PAGES_MIN):
            connection.execute(f"PRAGMA incremental_vacuum({_VACUUM_PAGES})").fetchall()
        return file_bytes(connection)


def _write_ledger(connection: sqlite3.Connection, requests: Sequence[Request]) -> None:
    stones = [
        (s.gateway, epoch_to_sql(s.epoch), s.lane, s.first_seq, s.last_seq, s.count, s.reason,
         s.time_us)
        for request in requests
        for s in request.given_up
    ]  # fmt: skip
    execute_rows(
        connection,
        "INSERT INTO given_up",
        stones,
        "ON CONFLICT (gateway, epoch, lane, first_seq, reason) DO UPDATE SET"
        " last_seq = excluded.last_seq, count = excluded.count, time_us = excluded.time_us"
        " WHERE excluded.last_seq > last_seq",
    )
    assigned: dict[Source, int] = {}
    for request in requests:
        for source, seq in request.assigned.items():
            assigned[source] = max(seq, assigned.get(source, 0))
    execute_rows(
        connection,
        "INSERT INTO assigned",
        [(gateway, epoch_to_sql(epoch), seq) for (gateway, epoch), seq in assigned.items()],
        "ON CONFLICT (gateway, epoch) DO UPDATE SET seq = max(seq, excluded.seq)",
    )


def _write_cursors(connection: sqlite3.Connection, requests: Sequence[Request]) -> None:
    cursors: dict[tuple[str, int], int] = {}
    for key, position in chain.from_iterable(request.cursors.items() for request in requests):
        cursors[key] = max(position, cursors.get(key, 0))
    execute_rows(
        connection,
        "INSERT INTO cursors",
        [(sink, partition, position) for (sink, partition), position in cursors.items()],
        "ON CONFLICT (sink, partition) DO UPDATE SET position = max(position, excluded.position)",
    )


def _write_partitions(
    connection: sqlite3.Connection, partitions: Mapping[int, Partition], touched: Iterable[int]
) -> None:
    rows = [
        (p, row.last_position, row.through, row.entries, row.readings, row.bytes)
        for p in touched
        for row in (partitions[p],)
    ]
    execute_rows(
        connection,
        "INSERT INTO partitions",
        rows,
        "ON CONFLICT (partition) DO UPDATE SET last_position = excluded.last_position,"
        " through = excluded.through, entries = excluded.entries, readings = excluded.readings,"
        " bytes = excluded.bytes",
    )


def _copy(row: Partition) -> Partition:
    return Partition(row.last_position, row.through, row.entries, row.readings, row.bytes)
