"""Parts of readings: by rows, by partition, without those already held; and several as one."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, compress
from operator import itemgetter

from bridge.intervals import IntervalSet, ranges_of
from bridge.partition import partitions_of
from bridge.readings import Readings, Source

__all__ = ["joined", "rows_of", "split_by_partition", "without"]


def joined(several: Sequence[Readings]) -> Readings:
    """Return one or more readings as one; the seqs of each are past those of the one before."""
    if len(several) == 1:
        return several[0]
    first, last = several[0].seqs[0], several[-1].seqs[-1]
    count = sum(map(len, several))
    whole = last - first + 1 == count
    table: dict[Source, int] = {}
    index: list[int] = []
    for one in several:
        places = [table.setdefault(source, len(table)) for source in one.sources]
        index += map(places.__getitem__, one.source_index)
    propertied = any(one.properties for one in several)
    return Readings(
        range(first, last + 1) if whole else list(chain.from_iterable(one.seqs for one in several)),
        list(table),
        index,
        list(chain.from_iterable(one.times_us for one in several)),
        list(chain.from_iterable(one.flags for one in several)),
        list(chain.from_iterable(one.payloads for one in several)),
        list(chain.from_iterable(one.properties or [b""] * len(one) for one in several))
        if propertied
        else [],
    )


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
