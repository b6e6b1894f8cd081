"""What the ledger of a cluster adds up to: the same at every node that read as far.

Records are taken in the order of the ledger stream. Whether an append counts follows from the
state alone, so all nodes agree and no lock, lease or clock is needed:

- it is void when a source is not at the version its writer claimed, which is the append that last
  brought readings of it, or made a run known (cloud/ingest_runs.py): another one, from whatever
  node, came first, or the one before was void;
- it is void when one of its bodies lies at or before the floor of its partition, which is what a
  trim gave free to be purged.

Invariants: an entry's position is (sequence of its record << 12) + its number in the record, hence
rises in each partition; the bodies of all entries lie past their partition's floor; `held` is the
union of what every append that counted brought.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice

from bridge.intervals import IntervalSet
from bridge.runs import Run
from cloud.stream.contract import (
    PARTITIONS,
    RUN,
    Arrival,
    Backlog,
    GivenUp,
    Source,
    SourceLedger,
    StreamStats,
    known_runs,
)
from cloud.stream.jetstream.entries import EntryColumns, Indexed
from cloud.stream.jetstream.packed_arrivals import pack_arrival, unpack_arrival
from cloud.stream.jetstream.records import (
    NEVER,
    AppendRecord,
    Record,
    SourceRecord,
    Version,
    flat,
)

__all__ = ["PARTS_MAX", "LedgerState", "Partition", "SourceState", "Taken"]

_PART_BITS = 12
PARTS_MAX = 1 << _PART_BITS  # of one record
_ENTRIES_AHEAD = 256  # objects made at a time by who reads them all


@dataclass(slots=True)
class Partition:
    """One partition."""

    entries: EntryColumns
    last_position: int = 0
    floor: int = 0  # highest sequence of RAW that may be purged


@dataclass(slots=True)
class SourceState:
    """One source."""

    place: int  # among all
    version: Version = NEVER
    assigned: int = 0
    held: IntervalSet = field(default_factory=IntervalSet)
    given_up: dict[tuple[str, int, str], GivenUp] = field(default_factory=dict)
    arrivals: deque[bytes] = field(default_factory=deque)  # see packed_arrivals.py


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
        arrivals_max, arrivals, names, partitions, sources, cursors_of: What
            cloud/stream/jetstream/saved.py saves and restores; nobody else looks at them.
    """

    def __init__(self, arrivals_max: int) -> None:
        self.seq = 0
        self.appends = 0
        self.void = 0
        self.arrivals_max = arrivals_max
        self.arrivals: deque[int] = deque()  # places of sources whose oldest arrival goes first
        self.names: list[Source] = []  # the sources by place
        self.partitions = [
            Partition(EntryColumns(number, self.names)) for number in range(PARTITIONS)
        ]
        self.sources: dict[Source, SourceState] = {}
        self.cursors_of: dict[str, dict[int, int]] = {}
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
            known = self.cursors_of.setdefault(sink, {})
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
        partitions = self.partitions
        for _, partition, _, _, extents in append.parts:
            lowest = extents[0] if len(extents) == 3 else min(extents[::3])
            if lowest <= partitions[partition].floor:
                return False
        return True

    def _append(self, record: Record, append: AppendRecord, position: int) -> None:
        time_us, partitions = record.time_us, self.partitions
        states: list[SourceState] = []
        for one in append.sources:
            state = self.source(one.source)
            state.assigned = max(state.assigned, one.assigned)
            states.append(state)
        places: list[list[tuple[int, int]]] = [[] for _ in states]
        for at, number, count, packed, extents in append.parts:
            partition = partitions[number]
            partition.last_position = position
            self._bytes += partition.entries.append(
                position, states[at].place, packed, count, time_us, extents
            )
            self._readings += count
            places[at].append((number, position))
            position += 1
        self._entries += len(append.parts)
        for stone in append.given_up:
            self._give_up(stone)
            if stone.reason == RUN:  # who has not heard of it brings nothing any more
                state = self.source((stone.gateway, stone.epoch))
                state.version = (record.writer, append.number)
        for one, state, brought in zip(append.sources, states, places, strict=True):
            if brought:
                self._brought(record, append.number, one, state, brought)

    def _brought(
        self,
        record: Record,
        number: int,
        one: SourceRecord,
        state: SourceState,
        places: Sequence[tuple[int, int]],
    ) -> None:
        state.held.update(one.seq_ranges)
        state.version = (record.writer, number)
        if not self.arrivals_max:
            return
        state.arrivals.append(pack_arrival(record.time_us, one.seq_ranges, places))
        self.arrivals.append(state.place)
        self.forget_arrivals()

    def forget_arrivals(self) -> None:
        """Forget the oldest arrivals that are too many."""
        while len(self.arrivals) > self.arrivals_max:
            self.sources[self.names[self.arrivals.popleft()]].arrivals.popleft()

    def _give_up(self, stone: GivenUp) -> None:
        state = self.source((stone.gateway, stone.epoch))
        key = (stone.lane, stone.first_seq, stone.reason)
        known = state.given_up.get(key)
        if known is None or stone.last_seq > known.last_seq:
            state.given_up[key] = stone

    def _trim(self, number: int, up_to: int) -> None:
        partition = self.partitions[number]
        gone = partition.entries.trim(up_to)
        if gone is None:
            return
        self._entries -= gone.entries
        self._readings -= gone.readings
        self._bytes -= gone.bytes
        kept = partition.entries.first_raw_seq()
        floor = gone.raw_seq if kept is None else min(gone.raw_seq, kept - 1)
        partition.floor = max(partition.floor, floor)

    def without_bodies_past(self, number: int, raw_seq: int) -> list[Indexed]:
        """Take back the entries of a partition with a body past a place in RAW; return them.

        Their readings are held no longer, so that whoever has them still brings them again.
        """
        partition = self.partitions[number]
        partition.floor = min(partition.floor, raw_seq)
        kept = EntryColumns(number, self.names)
        gone = []
        for one in partition.entries.after(0):
            if any(seq > raw_seq for seq, _, _ in one.extents):
                gone.append(one)
            else:
                kept.append(one.position, self.sources[one.source].place, one.packed, one.count,
                            one.appended_us, flat(one.extents))  # fmt: skip
        if gone:
            partition.entries = kept
            for one in gone:
                for first, last in one.seq_ranges:
                    self.sources[one.source].held.discard(first, last)
            self.count_again()
        return gone

    def source(self, source: Source) -> SourceState:
        """Return a source, which is known from then on."""
        state = self.sources.get(source)
        if state is None:
            state = self.sources[source] = SourceState(len(self.names))
            self.names.append(source)
        return state

    def count_again(self) -> None:
        """Have the sums right after partitions were loaded."""
        self._entries = sum(len(partition.entries) for partition in self.partitions)
        totals = [partition.entries.totals() for partition in self.partitions]
        self._readings = sum(readings for readings, _ in totals)
        self._bytes = sum(size for _, size in totals)

    # ---- asking ----------------------------------------------------------------------------------

    def version(self, source: Source) -> Version:
        """Return the last append that counted and brought readings of a source, or a run."""
        state = self.sources.get(source)
        return state.version if state is not None else NEVER

    def held(self, source: Source) -> IntervalSet:
        """Return the seqs ever taken of a source; not to be changed."""
        state = self.sources.get(source)
        return state.held if state is not None else IntervalSet()

    def runs(self, source: Source) -> tuple[int, tuple[Run, ...]]:
        """Return how many runs were made known of a source, and the newest."""
        state = self.sources.get(source)
        return known_runs(state.given_up.values() if state is not None else ())

    def entries(self, partition: int, after: int) -> Iterator[Indexed]:
        """Yield the entries past a position, oldest first; nothing may be taken meanwhile."""
        return self.partitions[partition].entries.after(after)

    def has_after(self, partition: int, after: int) -> bool:
        """Return whether there is an entry past a position."""
        found = self.partitions[partition].entries
        return found.past(after) < len(found)

    def floor(self, partition: int) -> int:
        """Return the highest sequence of RAW that may be purged of a partition."""
        return self.partitions[partition].floor

    def trimmable(self, partition: int, up_to: int, before_us: int | None) -> int:
        """Return the position up to which a trim would forget; 0 when it would forget nothing."""
        return self.partitions[partition].entries.reached(up_to, before_us)

    def cursors(self, sink: str) -> dict[int, int]:
        """Return the positions a sink committed."""
        return dict(self.cursors_of.get(sink, {}))

    def stats(self) -> StreamStats:
        """Return sizes and last positions."""
        return StreamStats(
            self._readings,
            self._entries,
            self._bytes,
            {
                number: partition.last_position
                for number, partition in enumerate(self.partitions)
                if partition.last_position
            },
        )

    def ledger(self) -> Iterator[SourceLedger]:
        """Yield every source known now, sorted, each as it is when its turn comes."""
        for source in sorted(self.sources):
            one = self.sources[source]
            yield SourceLedger.of(source, one.assigned, one.held.ranges(), one.given_up.values())

    def arrival(self, source: Source, seq: int) -> Arrival | None:
        """Return the append that brought a seq, if it is remembered."""
        state = self.sources.get(source)
        for packed in reversed(state.arrivals if state is not None else ()):
            found = unpack_arrival(source, packed, seq)
            if found is not None:
                return found
        return None

    def entries_after(self, positions: Mapping[int, int]) -> Iterator[Indexed]:
        """Yield the entries past `positions`, also such as are taken while it is under way."""
        for number in range(PARTITIONS):
            position = positions.get(number, 0)
            while some := list(islice(self.entries(number, position), _ENTRIES_AHEAD)):
                yield from some
                position = some[-1].position

    def backlog(self, positions: Mapping[int, int]) -> dict[int, Backlog]:
        """Return how much lies past each position."""
        found: dict[int, Backlog] = {}
        for number, position in positions.items():
            entries = self.partitions[number].entries
            count = len(entries) - entries.past(position)
            found[number] = (
                Backlog(count, entries.readings_past(position), entries.time_past(position))
                if count
                else Backlog(0, 0, 0)
            )
        return found
