"""When each batch came into the embedded stream: what `tidegate trace` knows of trimmed entries.

One row an append of one source, in the transaction of its entries: which seqs were new with it and
at which positions they lie. That is about 80 bytes a batch, not a reading; the newest
`stream.trace_batches` rows are kept. docs/ledger.md, Trace.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import cbor2

from bridge.envelope import runs_of, unfold_runs
from bridge.kernel import merged
from cloud.database import execute_rows
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql
from cloud.stream.contract import Arrival, Entry, Source

__all__ = ["ARRIVALS_SCHEMA", "came_at", "find", "first_since", "heard", "prune", "write"]

ARRIVALS_SCHEMA = """
CREATE TABLE IF NOT EXISTS arrivals (
    id         INTEGER PRIMARY KEY,  -- order of arrival
    gateway    TEXT    NOT NULL,
    epoch      INTEGER NOT NULL,     -- unsigned 64 bits written as signed
    first_seq  INTEGER NOT NULL,
    last_seq   INTEGER NOT NULL,
    count      INTEGER NOT NULL,
    arrived_us INTEGER NOT NULL,
    seqs       BLOB    NOT NULL,     -- CBOR array of runs past first_seq - 1
    places     BLOB    NOT NULL      -- CBOR array: partition, position, partition, position, ...
);
CREATE INDEX IF NOT EXISTS arrivals_seq ON arrivals (gateway, epoch, first_seq)
"""

_LOOK_BACK = 4096  # batches that may begin before a seq and still hold it: lanes interleave


def write(connection: sqlite3.Connection, appended: Sequence[Sequence[Entry]]) -> None:
    """Note appends, each as its new entries, within the caller's transaction."""
    rows = []
    for entries in appended:
        by_source: dict[Source, list[Entry]] = {}
        for entry in entries:
            by_source.setdefault((entry.gateway, entry.epoch), []).append(entry)
        rows += [_row(source, some) for source, some in by_source.items()]
    execute_rows(
        connection,
        "INSERT INTO arrivals"
        " (gateway, epoch, first_seq, last_seq, count, arrived_us, seqs, places)",
        rows,
    )


def _row(source: Source, entries: Sequence[Entry]) -> tuple[object, ...]:
    ranges = merged([entry.seq_ranges for entry in entries])
    first_seq = ranges[0][0]
    places = [number for entry in entries for number in (entry.partition, entry.position)]
    return (
        source[0],
        epoch_to_sql(source[1]),
        first_seq,
        ranges[-1][1],
        sum(last - first + 1 for first, last in ranges),
        entries[0].appended_us,
        cbor2.dumps(runs_of(ranges, first_seq - 1)),
        cbor2.dumps(places),
    )


def prune(connection: sqlite3.Connection, batches_max: int) -> None:
    """Forget all but the newest arrivals; within a transaction of its own."""
    connection.execute(
        "DELETE FROM arrivals WHERE id <= (SELECT max(id) FROM arrivals) - ?", (batches_max,)
    )


def find(connection: sqlite3.Connection, gateway: str, epoch: int, seq: int) -> Arrival | None:
    """Return the batch that brought a seq; None when it is not known any more, or never came."""
    if not _there(connection):
        return None
    rows = connection.execute(
        "SELECT first_seq, last_seq, count, arrived_us, seqs, places FROM arrivals"
        " WHERE gateway = ? AND epoch = ? AND first_seq <= ? ORDER BY first_seq DESC LIMIT ?",
        (gateway, epoch_to_sql(epoch), seq, _LOOK_BACK),
    )
    for first_seq, last_seq, count, arrived_us, seqs, places in rows:
        if last_seq < seq:
            continue
        ranges = unfold_runs(cbor2.loads(seqs), count, first_seq - 1)
        if any(first <= seq <= last for first, last in ranges):
            rows.close()
            numbers = cbor2.loads(places)
            pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
            return Arrival(gateway, epoch, ranges, count, arrived_us, pairs)
    return None


def heard(connection: sqlite3.Connection) -> dict[Source, tuple[int, int]]:
    """Return when the first and the last known batch of each source came."""
    if not _there(connection):
        return {}
    return {
        (gateway, epoch_from_sql(epoch)): (first_us, last_us)
        for gateway, epoch, first_us, last_us in connection.execute(
            "SELECT gateway, epoch, min(arrived_us), max(arrived_us) FROM arrivals"
            " GROUP BY gateway, epoch"
        )
    }


def first_since(connection: sqlite3.Connection, since_us: int) -> dict[Source, int]:
    """Return the lowest seq of each source among the batches that came since a time."""
    if not _there(connection):
        return {}
    return {
        (gateway, epoch_from_sql(epoch)): first_seq
        for gateway, epoch, first_seq in connection.execute(
            "SELECT gateway, epoch, min(first_seq) FROM arrivals WHERE arrived_us >= ?"
            " GROUP BY gateway, epoch",
            (since_us,),
        )
    }


def came_at(connection: sqlite3.Connection, source: Source, seqs: Sequence[int]) -> dict[int, int]:
    """Return when the batches came in which, or just before which, these seqs lie."""
    if not _there(connection):
        return {}
    sql = (
        "SELECT arrived_us FROM arrivals WHERE gateway = ? AND epoch = ? AND first_seq <= ?"
        " ORDER BY first_seq DESC LIMIT 1"
    )
    key = (source[0], epoch_to_sql(source[1]))
    found = {seq: connection.execute(sql, (*key, seq)).fetchone() for seq in seqs}
    return {seq: row[0] for seq, row in found.items() if row is not None}


def _there(connection: sqlite3.Connection) -> bool:
    """Return False for a file that was last written before arrivals were kept."""
    sql = "SELECT count(*) FROM sqlite_schema WHERE name = 'arrivals'"
    return bool(connection.execute(sql).fetchone()[0])
