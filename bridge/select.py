"""Parts of readings: by rows, by partition, and without those already held."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import compress
from operator import itemgetter

from bridge.intervals import IntervalSet, ranges_of
from bridge.partition import partitions_of
from bridge.readings import Readings

__all__ = ["rows_of", "split_by_partition", "without"]


def rows_of(readings: Readings, rows: Sequence[int]) -> Readings:
    """Return the readings at `rows` (rising positions, one or more); the table is shared."""
    if len(rows) == 1:
        row = rows[0]
        return Readings(
            [readings.seqs[row]],
            readings.sources,
            [readings.source_index[row]],
            [readings.times_us[row]],
            [readings.flags[row]],
            [readings.payloads[row]],
            [readings.properties[row]] if readings.properties else [],
        )
    pick = itemgetter(*rows)
    return Readings(
        pick(readings.seqs),
        readings.sources,
        list(pick(readings.source_index)),
        list(pick(readings.times_us)),
        list(pick(readings.flags)),
        list(pick(readings.payloads)),
        list(pick(readings.properties)) if readings.properties else [],
    )


def split_by_partition(readings: Readings) -> dict[int, Readings]:
    """Return the readings by partition of their device, each part in seq order."""
    partition_by_source = partitions_of(readings.sources)
    rows_by_partition: dict[int, list[int]] = {}
    for row, source in enumerate(readings.source_index):
        partition = partition_by_source[source]
        rows = rows_by_partition.get(partition)
        if rows is None:
            rows_by_partition[partition] = [row]
        else:
            rows.append(row)
    if len(rows_by_partition) == 1:
        return dict.fromkeys(rows_by_partition, readings)
    return {partition: rows_of(readings, rows) for partition, rows in rows_by_partition.items()}


def without(readings: Readings, held: IntervalSet) -> Readings | None:
    """Return the readings whose seqs are not in `held`; None when none is left."""
    ranges = ranges_of(readings.seqs)
    if not any(held.overlaps(first, last) for first, last in ranges):
        return readings
    wanted = [seq not in held for seq in readings.seqs]
    if not any(wanted):
        return None
    return rows_of(readings, list(compress(range(len(wanted)), wanted)))
