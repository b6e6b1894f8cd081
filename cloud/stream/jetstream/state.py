"""What the ledger of a cluster adds up to: the same at every node that read as far.

Records are taken in the order of the ledger stream. Whether an append counts follows from the
state alone, so all nodes agree and no lock, lease or clock is needed:

- it is void when a source is not at the version its writer claimed, which is the append that last
  brought readings of it: another one, from whatever node, came first, or the one before was void;
- it is void when one of its bodies lies at or before the floor of its partition, which is what a
  trim gave free to be purged.

Invariants: an entry's position is (sequence of its record << 12) + its number in the record, hence
rises in each partition; the bodies of all entries lie past their partition's floor; `held` is the
union of what every append that counted brought.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import cbor2

from bridge.intervals import IntervalSet, Range
from cloud.ranges import apart
from cloud.stream.contract import (
    PARTITIONS,
    Arrival,
    Backlog,
    GivenUp,
    Source,
    SourceLedger,
    StreamStats,
)
from cloud.stream.jetstream.records import (
    NEVER,
    AppendRecord,
    Extent,
    Record,
    SourceRecord,
    Version,
    count_of,
    extents_of,
    flat,
    pairs,
    unpack_ranges,
)

__all__ = ["PARTS_MAX", "Indexed", "LedgerState", "Taken"]

_PART_BITS = 12
PARTS_MAX = 1 << _PART_BITS  # of one record
_VERSION = 1


@dataclass(slots=True, frozen=True)
class Indexed:
    """An entry without its body."""

    partition: int
    position: int
    source: Source
    packed: bytes  # its seqs
    count: int
    appended_us: int
    extents: tuple[Extent, ...]
    through: int  # readings of the partition up to and with this entry, since the beginning

    @property
    def seq_ranges(self) -> tuple[Range, ...]:
        """Its seqs, unpacked when asked for."""
        return unpack_ranges(self.packed, self.count)

    @property
    def bytes(self) -> int:
        """Length of the body."""
        return sum(length for _, _, length in self.extents)


@dataclass(slots=True)
class _Partition:
    entries: list[Indexed] = field(default_factory=list)
    last_position: int = 0
    through: int = 0
    floor: int = 0  # highest sequence of RAW that may be purged


@dataclass(slots=True)
class _SourceState:
    version: Version = NEVER
    assigned: int = 0
    held: IntervalSet = field(default_factory=IntervalSet)
    given_up: dict[tuple[str, int, str], GivenUp] = field(default_factory=dict)
    arrivals: deque[Arrival] = field(default_factory=deque)


@dataclass(slots=True, frozen=True)
class Taken:
    """What became of a record."""

    counted: tuple[bool, ...]  # by append
    added: bool  # there are new entries


class LedgerState:
    """The state after some record of the ledger.

    Args:
        arrivals_max: Appends whose arrival is remembered.

    Attributes:
        seq: Sequence of the last record taken.
        appends: Appends that counted, since this object was made.
        void: Those that did not.
    """

    def __init__(self, arrivals_max: int) -> None:
        self.seq = 0
        self.appends = 0
        self.void = 0
        self._arrivals_max = arrivals_max
        self._arrivals: deque[Source] = deque()  # whose oldest arrival goes first
        self._partitions = [_Partition() for _ in range(PARTITIONS)]
        self._sources: dict[Source, _SourceState] = {}
        self._cursors: dict[str, dict[int, int]] = {}
        self._readings = self._entries = self._bytes = 0

    # ---- taking ----------------------------------------------------------------------------------

    def take(self, seq: int, record: Record) -> Taken:
        """Take the record at a sequence of the ledger."""
        number = 0
        counted: list[bool] = []
        added = False
        for append in record.appends:
            good = self._counts(append)
            counted.append(good)
            if good:
                self._append(record, append, (seq << _PART_BITS) + number)
                added = added or bool(append.parts)
                self.appends += 1
            else:
                self.void += 1
            number += len(append.parts)
        for sink, positions in record.cursors.items():
            known = self._cursors.setdefault(sink, {})
            for partition, position in positions.items():
                known[partition] = max(position, known.get(partition, 0))
        for partition, up_to in record.trims.items():
            self._trim(partition, up_to)
        self.seq = seq
        return Taken(tuple(counted), added)

    def _counts(self, append: AppendRecord) -> bool:
        for one in append.sources:
            if one.claim is not None and one.claim != self.version(one.source):
                return False
        return all(
            raw_seq > self._partitions[part.partition].floor
            for part in append.parts
            for raw_seq, _, _ in part.extents
        )

    def _append(self, record: Record, append: AppendRecord, position: int) -> None:
        time_us = record.time_us
        for one in append.sources:
            state = self._sources.setdefault(one.source, _SourceState())
            state.assigned = max(state.assigned, one.assigned)
        places: dict[Source, list[tuple[int, int]]] = {}
        for part in append.parts:
            partition = self._partitions[part.partition]
            partition.through += part.count
            partition.last_position = position
            entry = Indexed(
                part.partition, position, part.source, part.packed, part.count, time_us,
                part.extents, partition.through,
            )  # fmt: skip
            partition.entries.append(entry)
            self._entries += 1
            self._readings += part.count
            self._bytes += entry.bytes
            places.setdefault(part.source, []).append((part.partition, position))
            position += 1
        for stone in append.given_up:
            self._give_up(stone)
        for one in append.sources:
            if one.source in places:
                self._brought(record, append.number, one, places[one.source])

    def _brought(
        self, record: Record, number: int, one: SourceRecord, places: Sequence[tuple[int, int]]
    ) -> None:
        state = self._sources[one.source]
        state.held.update(one.seq_ranges)
        state.version = (record.writer, number)
        if not self._arrivals_max:
            return
        count = count_of(one.seq_ranges)
        arrival = Arrival(*one.source, one.seq_ranges, count, record.time_us, tuple(places))
        state.arrivals.append(arrival)
        self._arrivals.append(one.source)
        while len(self._arrivals) > self._arrivals_max:
            self._sources[self._arrivals.popleft()].arrivals.popleft()

    def _give_up(self, stone: GivenUp) -> None:
        state = self._sources.setdefault((stone.gateway, stone.epoch), _SourceState())
        key = (stone.lane, stone.first_seq, stone.reason)
        known = state.given_up.get(key)
        if known is None or stone.last_seq > known.last_seq:
            state.given_up[key] = stone

    def _trim(self, number: int, up_to: int) -> None:
        partition = self._partitions[number]
        end = _past(partition.entries, up_to)
        if not end:
            return
        gone = partition.entries[:end]
        del partition.entries[:end]
        for entry in gone:
            self._entries -= 1
            self._readings -= entry.count
            self._bytes -= entry.bytes
        floor = max(raw_seq for entry in gone for raw_seq, _, _ in entry.extents)
        kept = (raw_seq for entry in partition.entries for raw_seq, _, _ in entry.extents)
        partition.floor = max(partition.floor, min(floor, min(kept, default=floor + 1) - 1))

    # ---- asking ----------------------------------------------------------------------------------

    def version(self, source: Source) -> Version:
        """Return the last append that counted and brought readings of a source."""
        state = self._sources.get(source)
        return state.version if state is not None else NEVER

    def held(self, source: Source) -> IntervalSet:
        """Return the seqs ever taken of a source; not to be changed."""
        state = self._sources.get(source)
        return state.held if state is not None else IntervalSet()

    def entries(self, partition: int, after: int) -> Sequence[Indexed]:
        """Return the entries past a position, oldest first."""
        found = self._partitions[partition].entries
        return found[_past(found, after) :]

    def first_after(self, partition: int, after: int) -> Indexed | None:
        """Return the first entry past a position."""
        found = self._partitions[partition].entries
        at = _past(found, after)
        return found[at] if at < len(found) else None

    def floor(self, partition: int) -> int:
        """Return the highest sequence of RAW that may be purged of a partition."""
        return self._partitions[partition].floor

    def trimmable(self, partition: int, up_to: int, before_us: int | None) -> int:
        """Return the position up to which a trim would forget; 0 when it would forget nothing."""
        reached = 0
        for entry in self._partitions[partition].entries:
            if entry.position > up_to or (before_us is not None and entry.appended_us >= before_us):
                break
            reached = entry.position
        return reached

    def cursors(self, sink: str) -> dict[int, int]:
        """Return the positions a sink committed."""
        return dict(self._cursors.get(sink, {}))

    def stats(self) -> StreamStats:
        """Return sizes and last positions."""
        return StreamStats(
            self._readings,
            self._entries,
            self._bytes,
            {
                number: partition.last_position
                for number, partition in enumerate(self._partitions)
                if partition.last_position
            },
        )

    def ledger(self) -> list[SourceLedger]:
        """Return every source, sorted."""
        return [
            SourceLedger(
                *source, state.assigned, tuple(state.held.ranges()), tuple(state.given_up.values())
            )
            for source, state in sorted(self._sources.items())
        ]

    def arrival(self, source: Source, seq: int) -> Arrival | None:
        """Return the append that brought a seq, if it is remembered."""
        state = self._sources.get(source)
        for arrival in reversed(state.arrivals if state is not None else ()):
            if any(first <= seq <= last for first, last in arrival.seq_ranges):
                return arrival
        return None

    def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        """Return the seqs of entries past `positions`, joined where they do not overlap."""
        found: dict[Source, list[Range]] = {}
        for number in range(PARTITIONS):
            for entry in self.entries(number, positions.get(number, 0)):
                found.setdefault(entry.source, []).extend(entry.seq_ranges)
        return {source: apart(ranges) for source, ranges in found.items()}

    def backlog(self, positions: Mapping[int, int]) -> dict[int, Backlog]:
        """Return how much lies past each position."""
        found: dict[int, Backlog] = {}
        for number, position in positions.items():
            entries = self._partitions[number].entries
            at = _past(entries, position)
            if at == len(entries):
                found[number] = Backlog(0, 0, 0)
                continue
            first, last = entries[at], entries[-1]
            readings = last.through - first.through + first.count
            found[number] = Backlog(len(entries) - at, readings, first.appended_us)
        return found

    # ---- as bytes --------------------------------------------------------------------------------

    def dump(self) -> bytes:
        """Return everything as bytes, for a checkpoint."""
        sources = list(self._sources)
        places = {source: place for place, source in enumerate(sources)}
        return cbor2.dumps(
            [
                _VERSION,
                self.seq,
                [_source_out(source, self._sources[source]) for source in sources],
                [
                    [
                        partition.last_position,
                        partition.through,
                        partition.floor,
                        [
                            [entry.position, places[entry.source], entry.packed,
                             entry.count, entry.appended_us, flat(entry.extents), entry.through]
                            for entry in partition.entries
                        ],
                    ]
                    for partition in self._partitions
                ],
                self._cursors,
                [places[source] for source in self._arrivals],
            ]
        )  # fmt: skip

    @classmethod
    def load(cls, data: bytes, arrivals_max: int) -> LedgerState:
        """Return the state that `dump` wrote.

        Raises:
            ValueError: it is of another version.
        """
        version, seq, sources, partitions, cursors, arrivals = cbor2.loads(data)
        if version != _VERSION:
            raise ValueError(f"a checkpoint of version {version}, this one knows {_VERSION}")
        state = cls(arrivals_max)
        state.seq = seq
        names: list[Source] = []
        for row in sources:
            source, known = _source_in(row)
            names.append(source)
            state._sources[source] = known
        state._cursors = cursors
        state._arrivals.extend(names[place] for place in arrivals)
        while len(state._arrivals) > arrivals_max:
            state._sources[state._arrivals.popleft()].arrivals.popleft()
        for number, (last_position, through, floor, rows) in enumerate(partitions):
            entries = [
                Indexed(number, position, names[place], packed, count,
                        appended_us, extents_of(extents), upto)
                for position, place, packed, count, appended_us, extents, upto in rows
            ]  # fmt: skip
            state._partitions[number] = _Partition(entries, last_position, through, floor)
            state._entries += len(entries)
            state._readings += sum(entry.count for entry in entries)
            state._bytes += sum(entry.bytes for entry in entries)
        return state


# ---- helpers -------------------------------------------------------------------------------------


def _past(entries: Sequence[Indexed], position: int) -> int:
    return bisect_right(entries, position, key=lambda entry: entry.position)


def _source_out(source: Source, state: _SourceState) -> list[Any]:
    return [
        *source,
        list(state.version),
        state.assigned,
        flat(state.held.ranges()),
        [
            [one.lane, one.first_seq, one.last_seq, one.count, one.reason, one.time_us]
            for one in state.given_up.values()
        ],
        [
            [flat(one.seq_ranges), one.count, one.arrived_us, flat(one.places)]
            for one in state.arrivals
        ],
    ]


def _source_in(row: list[Any]) -> tuple[Source, _SourceState]:
    gateway, epoch, version, assigned, held, stones, arrivals = row
    state = _SourceState((version[0], version[1]), assigned, IntervalSet(pairs(held)))
    for lane, first, last, count, reason, time_us in stones:
        stone = GivenUp(gateway, epoch, lane, first, last, count, reason, time_us)
        state.given_up[lane, first, reason] = stone
    for ranges, count, arrived_us, places in arrivals:
        state.arrivals.append(
            Arrival(gateway, epoch, pairs(ranges), count, arrived_us, pairs(places))
        )
    return (gateway, epoch), state
