"""Parts of readings: by rows, by partition, without those already held; and several as one.

Work on a reading is done by C loops here (map, compress, itemgetter): every reading that the cloud
takes in passes through.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain, compress
from operator import itemgetter

from bridge.columnar import SourceTable, picked_sources
from bridge.intervals import IntervalSet, ranges_of
from bridge.kernel import sections, split, untrack
from bridge.partition import partitions_of
from bridge.readings import Readings, Source

__all__ = [
    "Block",
    "Section",
    "blocks",
    "growing",
    "joined",
    "rows_of",
    "split_by_partition",
    "without",
]


@dataclass(slots=True)
class Section:
    """What a block holds of one of the readings it was made from."""

    origin: int  # which of them
    first_row: int
    end_row: int  # past its last
    first_source: int  # of the block's table
    end_source: int


@dataclass(slots=True)
class Block:
    """The readings of one partition, from one or more origins that follow one another.

    Invariants: seqs rise within a section, sections cover all rows and all sources in order, and
    no reading has a source of another section; every source is that of some reading.
    """

    partition: int
    readings: Readings
    sections: Sequence[Section]

    def part(self, section: Section) -> Readings:
        """Return the readings of a section, with its own table."""
        found = self.readings
        if len(self.sections) == 1:
            return found
        rows = slice(section.first_row, section.end_row)
        index = found.source_index[rows]
        if section.first_source:
            index = list(map((-section.first_source).__add__, index))
        return Readings(
            found.seqs[rows],
            found.sources[section.first_source : section.end_source],
            index,
            found.times_us[rows],
            found.flags[rows],
            found.payloads[rows],
            found.properties[rows],
        )


def blocks(several: Sequence[Readings], whole: Readings | None = None) -> Iterator[Block]:
    """Yield one or more readings by partition of their devices, each in the order given.

    Args:
        several: They.
        whole: What `growing` makes of them, where it was made before.
    """
    if whole is None:
        *_, whole = growing(several)
    first_rows = list(accumulate(map(len, several), initial=0))
    first_sources = list(accumulate((len(one.sources) for one in several), initial=0))
    rows_by_partition = split(whole.source_index, partitions_of(whole.sources))
    for partition, rows in rows_by_partition.items():
        yield _block(partition, whole, rows, first_rows, first_sources)


def growing(several: Sequence[Readings], step: int = sys.maxsize) -> Iterator[Readings]:
    """Yield one or more readings as one whose tables follow one another as well.

    It is yielded whenever it has grown by `step` readings or some more, and at last when it is
    whole, always the same object: others may work meanwhile.
    """
    if len(several) == 1:
        yield several[0]
        return
    seqs: list[int] = []
    table = SourceTable()
    whole = Readings(seqs, table, [], [], [], [], [])
    index, times, flags = whole.source_index, whole.times_us, whole.flags
    untrack(seqs, index, times, flags, whole.payloads, whole.properties)
    propertied = any(one.properties for one in several)
    grown = 0
    for one in several:
        if grown >= step:
            yield whole
            grown = 0
        seqs += one.seqs
        whole.source_index += map(len(table).__add__, one.source_index)
        table.extend_by(one.sources)
        whole.times_us += one.times_us
        whole.flags += one.flags
        whole.payloads += one.payloads
        if propertied:
            whole.properties += one.properties or [b""] * len(one)
        grown += len(one)
    yield whole


def _block(
    partition: int,
    whole: Readings,
    rows: list[int],
    first_rows: list[int],
    first_sources: list[int],
) -> Block:
    """Return the rows of a partition."""
    picked = whole if len(rows) == len(whole) else rows_of(whole, rows)
    used = sorted(set(picked.source_index))
    sources = picked.sources
    index = picked.source_index
    if len(used) != len(sources):
        place = dict(zip(used, range(len(used)), strict=True))
        sources = picked_sources(sources, used)
        index = list(map(place.__getitem__, index))
    readings = Readings(
        picked.seqs,
        sources,
        index,
        picked.times_us,
        picked.flags,
        picked.payloads,
        picked.properties,
    )
    found = sections(rows, used, first_rows, first_sources)
    return Block(partition, readings, [Section(*one) for one in found])


def joined(several: Sequence[Readings]) -> Readings:
    """Return one or more readings as one; the seqs of each are past those of the one before."""
    if len(several) == 1:
        return several[0]
    first, last = several[0].seqs[0], several[-1].seqs[-1]
    count = sum(map(len, several))
    whole = last - first + 1 == count
    seqs: Sequence[int] = range(first, last + 1)
    if not whole:
        seqs = list(chain.from_iterable(one.seqs for one in several))
    propertied = any(one.properties for one in several)
    sources, index = _one_table(several)
    found = Readings(
        seqs,
        sources,
        index,
        list(chain.from_iterable(one.times_us for one in several)),
        list(chain.from_iterable(one.flags for one in several)),
        list(chain.from_iterable(one.payloads for one in several)),
        list(chain.from_iterable(one.properties or [b""] * len(one) for one in several))
        if propertied
        else [],
    )
    untrack(index, found.times_us, found.flags, found.payloads, found.properties)
    return found


def _one_table(several: Sequence[Readings]) -> tuple[list[Source], list[int]]:
    """Return one table for all of them, and the index into it."""
    sources = several[0].sources
    if all(one.sources is sources for one in several):  # as of a gateway often
        return sources, list(chain.from_iterable(one.source_index for one in several))
    table: dict[Source, int] = {}
    index: list[int] = []
    places: list[int] = []
    last: list[Source] | None = None
    for one in several:
        if one.sources is not last:
            last = one.sources
            places = [table.setdefault(source, len(table)) for source in last]
        index += map(places.__getitem__, one.source_index)
    return list(table), index


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
        list(pick(readings.seqs)),
        readings.sources,
        list(pick(readings.source_index)),
        list(pick(readings.times_us)),
        list(pick(readings.flags)),
        list(pick(readings.payloads)),
        list(pick(readings.properties)) if readings.properties else [],
    )


def split_by_partition(readings: Readings) -> dict[int, Readings]:
    """Return the readings by partition of their device, each part in seq order."""
    return {block.partition: block.readings for block in blocks([readings])}


def without(readings: Readings, held: IntervalSet) -> Readings | None:
    """Return the readings whose seqs are not in `held`; None when none is left."""
    ranges = ranges_of(readings.seqs)
    if not any(held.overlaps(first, last) for first, last in ranges):
        return readings
    wanted = [seq not in held for seq in readings.seqs]
    if not any(wanted):
        return None
    return rows_of(readings, list(compress(range(len(wanted)), wanted)))
