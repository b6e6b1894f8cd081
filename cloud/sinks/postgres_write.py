"""One write of the PostgreSQL sink: rows, cursors, tokens and ranges in one transaction.

1. The cursors of the partitions written are locked, and a token other than the writer's refuses
   it (`SinkFenced`): a holder of a lease that has stalled writes nothing more. So does a cursor
   that lies before what was committed (`SinkWentBack`): a replica that lagged was promoted.
2. Entries at or before a cursor are left out: a commit whose outcome was lost is found so.
3. Readings in `stored` are left out: identity decides, however an entry came twice. Only sources
   whose seqs do not all rise above what is stored already are looked up.
4. The rows go by binary COPY straight into the table, and the ranges and cursors with them.

What an operator rewrites (`write` without cursors) goes through a temporary table and is compared
with the rows themselves, so that rows lost there by hand come back.

Invariant: rows are written in the order of the stream, by either way: whoever numbers or follows
them in the database sees each device's readings in order.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import asyncpg

from bridge.commands import Correction
from bridge.intervals import IntervalSet, Range
from cloud.sinks.contract import DecodedEntry, SinkFenced, SinkWentBack
from cloud.sinks.corrections import Corrections
from cloud.sinks.postgres_link import LINK_ERRORS, copy_rows
from cloud.sinks.postgres_rows import Row, rows_of_entry
from cloud.sinks.postgres_schema import COLUMNS
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql

__all__ = ["ROWS_LOCK", "PostgresWriter"]

Source = tuple[str, int]

ROWS_LOCK = 0x54475052  # advisory: writers share it, a correction has it alone
_CLAIM_LOCK_TIMEOUT_S = 2
_ROLL_BACK_S = 5.0  # a server that hangs is left to find out by itself
_MARKS_MAX = 100_000
_SLICE_ROWS = 1_000  # between two turns of the event loop: about 3 ms

_BEGIN = f"BEGIN; SELECT pg_advisory_xact_lock_shared({ROWS_LOCK})"
_FENCE = """
SELECT partition, position, token FROM cursors
WHERE stream_epoch = $1 AND partition = ANY($2::smallint[])
ORDER BY partition FOR UPDATE
"""
_CORRECTIONS_VERSION = "SELECT value FROM meta WHERE key = 'corrections'"
# only our own columns: those that somebody has added have defaults for what we write
_MAKE_STAGING = f"""
CREATE TEMPORARY TABLE staging ON COMMIT DROP AS
SELECT 0::bigint AS place, {", ".join(COLUMNS)} FROM readings WITH NO DATA
"""  # noqa: S608 - names of our own columns
_ADOPT = """
INSERT INTO meta VALUES ('stream_epoch', $1)
ON CONFLICT (key) DO UPDATE SET value = excluded.value WHERE meta.value <> excluded.value
"""
_CLAIM = """
INSERT INTO cursors
SELECT $1, partition, 0, token FROM unnest($2::smallint[], $3::bigint[]) q(partition, token)
ORDER BY partition
ON CONFLICT (stream_epoch, partition) DO UPDATE SET token = excluded.token
WHERE cursors.token <= excluded.token
RETURNING partition, position
"""
_PRESENT = """
SELECT q.n, max(upper(s.seqs)) AS beyond, range_agg(s.seqs * q.seqs::int8multirange) AS present
FROM unnest($1::text[], $2::bigint[], $3::text[]) WITH ORDINALITY q(gateway, epoch, seqs, n)
JOIN stored s ON s.gateway = q.gateway AND s.epoch = q.epoch GROUP BY q.n
"""
_FINISH = """
WITH moved AS (
    UPDATE cursors c SET position = q.position
    FROM unnest($2::smallint[], $3::bigint[]) q(partition, position)
    WHERE c.stream_epoch = $1 AND c.partition = q.partition
)
INSERT INTO stored SELECT gateway, epoch, seqs::int8multirange
FROM unnest($4::text[], $5::bigint[], $6::text[]) q(gateway, epoch, seqs)
"""
# rows first received count; what is there in any slice stays as it is
_FROM_STAGING = f"""
WITH added AS (
    INSERT INTO readings ({", ".join(COLUMNS)})
    SELECT {", ".join(COLUMNS)} FROM staging s
    WHERE NOT EXISTS (SELECT FROM readings r
        WHERE r.gateway = s.gateway AND r.epoch = s.epoch AND r.seq = s.seq)
    AND NOT EXISTS (SELECT FROM expired e
        WHERE e.gateway = s.gateway AND e.epoch = s.epoch AND e.seqs @> s.seq)
    ORDER BY s.place
    ON CONFLICT (gateway, epoch, seq, received_us) DO NOTHING RETURNING 1
)
SELECT count(*) FROM added
"""  # noqa: S608 - names of our own columns


class PostgresWriter:
    """What the statements of one sink know between writes.

    Args:
        stream_epoch: Which stream the cursors are of, as PostgreSQL has it.
        went_back: Called when the database turns out to have lost what was committed: cursors are
            not as far as they were, or corrections are gone.
    """

    def __init__(self, stream_epoch: int, went_back: Callable[[], None]) -> None:
        self._stream_epoch = stream_epoch
        self._went_back = went_back
        self._tokens: dict[int, int] = {}
        self._committed: dict[int, int] = {}  # positions that this writer knows to be stored
        self._corrections = Corrections()
        self._corrections_version = -1
        # by source: no seq of a partition of ours at or above it is stored
        self._marks: dict[Source, int] = {}

    def forget(self) -> None:
        """Look up anew what is stored; for a new connection: perhaps to a server that went back."""
        self._marks.clear()
        self._corrections_version = -1

    def corrected(self, gateway: str, correction: Correction) -> None:
        """Know of a correction that was committed: the next write asks whether it is there."""
        one = correction
        self._corrections.add(gateway, one.epoch, one.first_seq, one.last_seq, one.delta_us)

    async def claim(self, connection: Any, tokens: Mapping[int, int]) -> dict[int, int]:
        """Set the tokens of partitions unless theirs are higher; return the positions of those.

        Raises:
            asyncpg.LockNotAvailableError: a write to one of them stands still.
        """
        async with connection.transaction():
            await connection.execute(f"SET LOCAL lock_timeout = '{_CLAIM_LOCK_TIMEOUT_S}s'")
            await connection.execute(_ADOPT, self._stream_epoch)
            rows = await connection.fetch(
                _CLAIM, self._stream_epoch, list(tokens), list(tokens.values())
            )
        positions = {row["partition"]: row["position"] for row in rows}
        self._tokens.update({p: tokens[p] for p in positions})
        if self._behind(positions):
            self._went_back()
        self._committed.update(positions)
        self._marks.clear()
        return positions

    async def write(
        self, connection: Any, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]
    ) -> tuple[int, int]:
        """Do all of a write; return how many rows are new, and how many readings were offered.

        Raises:
            SinkFenced: another holds a partition by now; nothing was written.
            SinkWentBack: the database has lost what was committed; nothing was written.
        """
        try:
            return await self._transact(connection, entries, cursors, careful=not cursors)
        except asyncpg.UniqueViolationError:  # somebody has put rows back by hand
            return await self._transact(connection, entries, cursors, careful=True)

    async def _transact(
        self,
        connection: Any,
        entries: Sequence[DecodedEntry],
        cursors: Mapping[int, int],
        *,
        careful: bool,
    ) -> tuple[int, int]:
        """Write in one transaction; `careful`: compare with the rows, not with their ranges."""
        await connection.execute(_BEGIN)
        try:
            positions = await self._fence(connection, cursors)
            if cursors:
                entries = [e for e in entries if e.entry.position > positions[e.entry.partition]]
            taken = _taken(entries)
            if careful:
                known = {source: IntervalSet() for source in taken if not _apart(taken[source])}
                await connection.execute(_MAKE_STAGING)
            else:
                known = await self._stored_already(connection, taken)
            rows = await self._copy(connection, entries, known, careful=careful)
            await self._finish(connection, taken, cursors, positions)
            await connection.execute("COMMIT")
            self._committed.update(cursors)
        except BaseException:
            self._marks.clear()
            if not connection.is_closed():
                await _roll_back(connection)
            raise
        if careful:
            self._marks.clear()
        else:
            for source, ranges in taken.items():
                highest = max(last for _, last in ranges) + 1
                self._marks[source] = max(self._marks.get(source, 0), highest)
        return rows, sum(one.entry.count for one in entries)

    async def _copy(
        self,
        connection: Any,
        entries: Sequence[DecodedEntry],
        known: Mapping[Source, IntervalSet],
        *,
        careful: bool,
    ) -> int:
        """Copy the rows, leaving out what is known, in their order; return how many are new."""
        records = self._records(entries, known)
        if careful:
            await copy_rows(connection, "staging", _placed(records), ("place", *COLUMNS))
            return int(await connection.fetchval(_FROM_STAGING))
        return await copy_rows(connection, "readings", records, COLUMNS)

    async def _records(
        self, entries: Sequence[DecodedEntry], known: Mapping[Source, IntervalSet]
    ) -> AsyncIterator[Row]:
        """Yield the rows while those before them are on their way: the server works meanwhile."""
        slice_rows = 0
        for one in entries:
            present = known.get((one.entry.gateway, one.entry.epoch))
            rows = rows_of_entry(one, self._corrections.times_us(one), present)
            if present is not None:  # this very write may hold a reading twice
                present.update(one.entry.seq_ranges)
            for row in rows:
                yield row
            slice_rows += len(rows)
            if slice_rows >= _SLICE_ROWS:
                slice_rows = 0
                await asyncio.sleep(0)

    async def _finish(
        self,
        connection: Any,
        taken: Mapping[Source, list[Range]],
        cursors: Mapping[int, int],
        positions: Mapping[int, int],
    ) -> None:
        """Write the ranges stored and move the cursors, never back."""
        ends = {p: max(end, positions[p]) for p, end in cursors.items()}
        await connection.execute(
            _FINISH,
            self._stream_epoch,
            list(ends),
            list(ends.values()),
            [gateway for gateway, _ in taken],
            [epoch_to_sql(epoch) for _, epoch in taken],
            [_multirange(IntervalSet(ranges)) for ranges in taken.values()],
        )

    async def _fence(self, connection: Any, cursors: Mapping[int, int]) -> dict[int, int]:
        """Lock the cursors; return the positions they had.

        Raises:
            SinkFenced: of those that another has taken over.
            SinkWentBack: of those that are not as far as they were.
        """
        rows = await connection.fetch(_FENCE, self._stream_epoch, list(cursors))
        version = await connection.fetchval(_CORRECTIONS_VERSION)
        if version != self._corrections_version:
            await self._read_corrections(connection, version)
        valid = {
            row["partition"]: row["position"]
            for row in rows
            if row["token"] == self._tokens.get(row["partition"])
        }
        lost = frozenset(cursors) - valid.keys()
        if lost:
            raise SinkFenced(lost)
        if back := self._behind(valid):
            self._went_back()
            raise SinkWentBack(back)
        return valid

    def _behind(self, positions: Mapping[int, int]) -> frozenset[int]:
        """Return the partitions of which the database lacks what was committed."""
        return frozenset(p for p, at in positions.items() if at < self._committed.get(p, 0))

    async def _read_corrections(self, connection: Any, version: int) -> None:
        found = Corrections()
        for row in await connection.fetch(
            "SELECT gateway, epoch, first_seq, last_seq, delta_us FROM corrections"
        ):
            found.add(row[0], epoch_from_sql(row[1]), row[2], row[3], row[4])
        known, self._corrections = self._corrections, found
        self._corrections_version = version
        if not found.has_all_of(known):
            self._went_back()

    async def _stored_already(
        self, connection: Any, taken: Mapping[Source, list[Range]]
    ) -> dict[Source, IntervalSet]:
        """Return, of the sources whose seqs may be stored already or lie in `taken` twice, which.

        Sources that are not in the result are new altogether.
        """
        known: dict[Source, IntervalSet] = {}
        if len(self._marks) > _MARKS_MAX:
            self._marks.clear()
        for source, ranges in taken.items():
            mark = self._marks.get(source)
            low = min(first for first, _ in ranges)
            if mark is None or low < mark or not _apart(ranges):
                known[source] = IntervalSet()
        if not known:
            return known
        sources = list(known)
        rows = await connection.fetch(
            _PRESENT,
            [gateway for gateway, _ in sources],
            [epoch_to_sql(epoch) for _, epoch in sources],
            [_multirange(IntervalSet(taken[source])) for source in sources],
        )
        for row in rows:
            source = sources[row["n"] - 1]
            self._marks[source] = max(self._marks.get(source, 0), row["beyond"])
            known[source].update((one.lower, one.upper - 1) for one in row["present"])
        return known


async def _roll_back(connection: Any) -> None:
    try:
        async with asyncio.timeout(_ROLL_BACK_S):
            await connection.execute("ROLLBACK")
    except LINK_ERRORS:
        connection.terminate()


async def _placed(rows: AsyncIterator[Row]) -> AsyncIterator[Row]:
    """Yield rows with their places before them."""
    place = 0
    async for row in rows:
        place += 1
        yield (place, *row)


def _taken(entries: Sequence[DecodedEntry]) -> dict[Source, list[Range]]:
    taken: dict[Source, list[Range]] = {}
    for one in entries:
        source = (one.entry.gateway, one.entry.epoch)
        taken.setdefault(source, []).extend(one.entry.seq_ranges)
    return taken


def _multirange(ranges: IntervalSet) -> str:
    """Return a set of seqs as PostgreSQL writes an int8multirange."""
    return "{" + ",".join(f"[{first},{last}]" for first, last in ranges) + "}"


def _apart(ranges: list[Range]) -> bool:
    """Return True when no seq is in two of the ranges."""
    ordered = sorted(ranges)
    return all(before[1] < after[0] for before, after in pairwise(ordered))
