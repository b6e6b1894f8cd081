"""Interval sets of seq by (gateway, epoch) in a table of ranges, changed along with the rows.

The table is `(gateway, epoch, first_seq, last_seq)`, key (gateway, epoch, first_seq). Sets lately
used are in memory; what changed is written within the caller's transaction by a few statements,
however many ranges there are.

Invariants: between transactions memory and table agree; after one that failed, `forget` is called.
One thread only.
"""

from __future__ import annotations

import sqlite3
from collections import OrderedDict

from bridge.intervals import IntervalSet, Range
from bridge.kernel import merged
from cloud.database import execute_rows
from cloud.sinks.schema import epoch_to_sql

__all__ = ["RangeTable", "apart"]


class RangeTable:
    """The sets of one table.

    Args:
        table: Its name; a constant of the program, never input.
        sets_max: Most sets in memory.
    """

    __slots__ = ("_changes", "_sets", "_sets_max", "_table")

    def __init__(self, table: str, *, sets_max: int = 4096) -> None:
        self._table = table
        self._sets_max = sets_max
        self._sets: OrderedDict[tuple[str, int], IntervalSet] = OrderedDict()
        self._changes: dict[tuple[str, int, int], int | None] = {}

    def get(self, connection: sqlite3.Connection, gateway: str, epoch: int) -> IntervalSet:
        """Return the set of a source; not to be changed, and not to be kept."""
        source = (gateway, epoch)
        found = self._sets.get(source)
        if found is not None:
            self._sets.move_to_end(source)
            return found
        # while there are changes nothing is dropped: the table does not know them yet
        while len(self._sets) >= self._sets_max and not self._changes:
            self._sets.popitem(last=False)
        found = self._sets[source] = IntervalSet(
            connection.execute(
                f"SELECT first_seq, last_seq FROM {self._table}"  # noqa: S608 - a constant
                " WHERE gateway = ? AND epoch = ? ORDER BY first_seq",
                (gateway, epoch_to_sql(epoch)),
            ).fetchall()
        )
        return found

    def add(
        self, connection: sqlite3.Connection, gateway: str, epoch: int, ranges: list[Range]
    ) -> None:
        """Add one or more ranges to the set of a source; `write` makes it durable."""
        found = self.get(connection, gateway, epoch)
        for first, last in merged([tuple(ranges)]):
            swallowed = found.touching(first, last)
            found.add(first, last)
            for old_first, _ in swallowed:
                self._changes[gateway, epoch, old_first] = None
            firsts = [first, *(old_first for old_first, _ in swallowed)]
            lasts = [last, *(old_last for _, old_last in swallowed)]
            self._changes[gateway, epoch, min(firsts)] = max(lasts)

    def write(self, connection: sqlite3.Connection) -> None:
        """Write what changed, within the caller's transaction."""
        gone = []
        kept = []
        for (gateway, epoch, first), last in self._changes.items():
            if last is None:
                gone.append((gateway, epoch_to_sql(epoch), first))
            else:
                kept.append((gateway, epoch_to_sql(epoch), first, last))
        execute_rows(
            connection,
            f"DELETE FROM {self._table} WHERE (gateway, epoch, first_seq) IN (",  # noqa: S608
            gone,
            ")",
        )
        execute_rows(
            connection,
            f"INSERT INTO {self._table}",
            kept,
            "ON CONFLICT (gateway, epoch, first_seq) DO UPDATE SET last_seq = excluded.last_seq",
        )
        self._changes.clear()

    def forget(self) -> None:
        """Drop what is in memory: the transaction failed, only the table knows."""
        self._sets.clear()
        self._changes.clear()


def apart(ranges: list[Range]) -> list[Range]:
    """Return one or more ranges sorted, those that touch made one, those that overlap left so."""
    ranges.sort()
    result: list[Range] = []
    start, end = ranges[0][0], ranges[0][0] - 1
    for first, last in ranges:
        if first != end + 1:
            result.append((start, end))
            start = first
        end = last
    result.append((start, end))
    return result
