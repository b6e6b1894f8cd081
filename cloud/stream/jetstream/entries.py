"""Entries of one partition as columns: 44 bytes each, and its packed seqs; objects take 350.

Every node knows every entry that is not trimmed, which are millions at an hour's replay. What is
asked of them is a place past a position, and a few entries from there on: those become objects.

Entries that follow one another may share a body: they lie in the same place, and it is counted
once, with the last of them.

Invariants: all columns have the same length; positions rise; an entry is made of one extent, or is
in `_more` with all of its own. Two columns are sums modulo 2^32 up to and with the entry, which
suffices for differences: a partition holds less than that of either.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, compress
from operator import ne, or_
from typing import Any

from bridge.intervals import Range
from cloud.stream.contract import Source
from cloud.stream.jetstream.records import Extent, extents_of, flat, unpack_ranges

__all__ = ["EntryColumns", "Gone", "Indexed"]

_MASK = (1 << 32) - 1
_BIG_ENDIAN = sys.byteorder == "big"


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

    @property
    def seq_ranges(self) -> tuple[Range, ...]:
        """Its seqs, unpacked when asked for."""
        return unpack_ranges(self.packed, self.count)

    @property
    def bytes(self) -> int:
        """Length of the body."""
        return sum(length for _, _, length in self.extents)


@dataclass(slots=True, frozen=True)
class Gone:
    """What was trimmed."""

    entries: int
    readings: int
    bytes: int
    raw_seq: int  # the highest of theirs in RAW


class EntryColumns:
    """The entries of one partition, oldest first.

    Args:
        partition: Its number.
        names: The sources by place, shared with whoever appends.
    """

    __slots__ = ("_appended_us", "_lengths", "_more", "_names", "_offsets", "_packed",
                 "_packed_before", "_packed_ends", "_partition", "_positions", "_raw_seqs",
                 "_sources", "_through", "_through_before")  # fmt: skip

    def __init__(self, partition: int, names: Sequence[Source]) -> None:
        self._partition = partition
        self._names = names
        self._positions = array("Q")
        self._sources = array("I")  # place in `names`
        self._appended_us = array("q")
        self._raw_seqs = array("Q")  # of the last extent
        self._offsets = array("I")  # of the first
        self._lengths = array("I")  # of all
        self._through = array("I")  # readings
        self._through_before = 0  # where it begins
        self._packed = bytearray()  # of all entries, one after the other
        self._packed_ends = array("I")
        self._packed_before = 0
        self._more: dict[int, tuple[Extent, ...]] = {}  # by position

    def __len__(self) -> int:
        return len(self._positions)

    def append(
        self,
        position: int,
        source: int,
        packed: bytes,
        count: int,
        appended_us: int,
        extents: tuple[int, ...],
    ) -> int:
        """Take the next entry, whose source is at that place; return the bytes it adds.

        Its extents are given one after the other (`flat`).
        """
        if len(extents) == 3:
            raw_seq, offset, length = extents
        else:
            self._more[position] = extents_of(extents)
            raw_seq, offset, length = max(extents[::3]), extents[1], sum(extents[2::3])
        raw_seqs, offsets = self._raw_seqs, self._offsets
        shared = bool(raw_seqs) and raw_seqs[-1] == raw_seq and offsets[-1] == offset
        added = length - self._lengths[-1] if shared else length
        self._positions.append(position)
        self._sources.append(source)
        self._appended_us.append(appended_us)
        raw_seqs.append(raw_seq)
        offsets.append(offset)
        self._lengths.append(length)
        before = self._through[-1] if self._through else self._through_before
        self._through.append((before + count) & _MASK)
        self._packed += packed
        self._packed_ends.append((self._packed_before + len(self._packed)) & _MASK)
        return added

    def past(self, position: int) -> int:
        """Return how many entries lie at or before a position."""
        return bisect_right(self._positions, position)

    def after(self, position: int) -> Iterator[Indexed]:
        """Yield the entries past a position, oldest first; none may be trimmed meanwhile."""
        first = self.past(position)
        at = self._packed_at(first)
        through = self._through_at(first)
        for row in range(first, len(self._positions)):
            end = (self._packed_ends[row] - self._packed_before) & _MASK
            here = self._positions[row]
            extents = self._more.get(here) or (
                (self._raw_seqs[row], self._offsets[row], self._lengths[row]),
            )
            yield Indexed(
                self._partition,
                here,
                self._names[self._sources[row]],
                bytes(self._packed[at:end]),
                (self._through[row] - through) & _MASK,
                self._appended_us[row],
                extents,
            )
            at, through = end, self._through[row]

    def _packed_at(self, row: int) -> int:
        """Return where the packed seqs of a row begin."""
        return (self._packed_ends[row - 1] - self._packed_before) & _MASK if row else 0

    def _through_at(self, row: int) -> int:
        """Return the readings before a row, modulo 2^32."""
        return self._through[row - 1] if row else self._through_before

    def readings_past(self, position: int) -> int:
        """Return how many readings the entries past a position hold."""
        end = len(self._positions)
        return (self._through_at(end) - self._through_at(self.past(position))) & _MASK

    def time_past(self, position: int) -> int:
        """Return when the first entry past a position was appended; there is one."""
        return self._appended_us[self.past(position)]

    def reached(self, up_to: int, before_us: int | None) -> int:
        """Return the position of the last entry up to one, all older than a time; 0: none."""
        end = self.past(up_to)
        if before_us is not None:
            end = next((n for n in range(end) if self._appended_us[n] >= before_us), end)
        return self._positions[end - 1] if end else 0

    def trim(self, up_to: int) -> Gone | None:
        """Forget the entries up to a position; return what they were, None if there are none."""
        end = self.past(up_to)
        if not end:
            return None
        through, packed = self._through[end - 1], self._packed_at(end)
        readings = (through - self._through_before) & _MASK
        gone = Gone(end, readings, self._bytes_of(end), max(self._raw_seqs[:end]))
        del self._packed[:packed]
        self._packed_before = self._packed_ends[end - 1]
        self._through_before = through
        if self._more:
            for position in self._positions[:end]:
                self._more.pop(position, None)
        for column in self._columns():
            del column[:end]
        return gone

    def first_raw_seq(self) -> int | None:
        """Return the lowest sequence in RAW of any body; None without entries."""
        least = min(self._raw_seqs, default=None)
        if least is not None and self._more:
            least = min(least, *(seq for found in self._more.values() for seq, _, _ in found))
        return least

    def totals(self) -> tuple[int, int]:
        """Return readings, and bytes of bodies."""
        return self.readings_past(0), self._bytes_of(len(self))

    def _bytes_of(self, end: int) -> int:
        """Return the bytes counted with the rows before `end`: a shared body is with its last."""
        raw_seqs, offsets = self._raw_seqs[: end + 1], self._offsets[: end + 1]
        other = map(or_, map(ne, raw_seqs[1:], raw_seqs), map(ne, offsets[1:], offsets))
        return sum(compress(self._lengths[:end], chain(other, (True,))))

    # ---- as bytes --------------------------------------------------------------------------------

    def _columns(self) -> tuple[array[int], ...]:
        return (self._positions, self._sources, self._appended_us, self._raw_seqs,
                self._offsets, self._lengths, self._through, self._packed_ends)  # fmt: skip

    def dump(self) -> list[Any]:
        """Return everything as CBOR values."""
        return [
            [_little(column) for column in self._columns()],
            [self._through_before, self._packed_before, bytes(self._packed)],
            [[position, flat(extents)] for position, extents in self._more.items()],
        ]

    def load(self, row: list[Any]) -> None:
        """Take what `dump` returned."""
        columns, (self._through_before, self._packed_before, packed), more = row
        for column, data in zip(self._columns(), columns, strict=True):
            column.frombytes(data)
            if _BIG_ENDIAN:
                column.byteswap()
        self._packed += packed
        self._more.update((position, extents_of(extents)) for position, extents in more)


def _little(column: array[int]) -> bytes:
    if _BIG_ENDIAN:
        column = column[:]
        column.byteswap()
    return column.tobytes()
