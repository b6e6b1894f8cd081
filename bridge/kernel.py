"""Loops over the readings of a batch: in C where they were built (`_kernel.c`), else in Python.

Each Python function here has a twin of its name in C; both do the same to the byte
(tests/bridge/test_kernel.py). `python -X no-batch-kernel` runs the Python ones. docs/link-format.md
sections 4.1 and 5.

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Sequence
from itertools import chain, compress, repeat
from operator import gt, itemgetter, ne, sub
from typing import TYPE_CHECKING, Any

import cbor2

from bridge.intervals import Range
from runtime.native import library

if TYPE_CHECKING:
    from bridge._kernel import Kernel
else:
    Kernel = object

__all__ = [
    "VERSION",
    "cbor",
    "count_apart",
    "merged",
    "native",
    "pack",
    "pack_column",
    "packed_ranges",
    "sections",
    "seq_runs",
    "split",
    "untrack",
    "varint",
    "written",
]

VERSION = 4  # rises with every change of a function's arguments or meaning
_TIME_UNITS_MAX = 1 << 62  # so that any difference of two times fits 64 bits
_SIGNED = 0x10
_TYPECODES = {1: "B", 2: "H", 4: "I", 8: "Q", 0x11: "b", 0x12: "h", 0x14: "i", 0x18: "q"}
_BIG_ENDIAN = sys.byteorder == "big"
_SEQ_PAST = 1 << 63


native: Kernel | None = library("bridge._kernel", VERSION, "no-batch-kernel")


# ---- seqs ----------------------------------------------------------------------------------------


def _seq_runs(seqs: list[int], first: int, end: int) -> tuple[tuple[Range, ...], bytes]:
    some = seqs[first:end]
    if not some or some[0] < 1:
        raise ValueError("no seqs, or one below 1")
    steps = list(map(sub, some[1:], some))
    if steps and min(steps) < 1:
        raise ValueError("seqs that do not rise")
    breaks = list(map(ne, steps, repeat(1)))
    firsts = list(compress(some, chain((True,), breaks)))
    lasts = list(compress(some, chain(breaks, (True,))))
    pasts = list(map((1).__add__, lasts))
    runs = [0] * (2 * len(firsts))
    runs[0::2] = map(sub, firsts, (1, *pasts))
    runs[1::2] = map(sub, pasts, firsts)
    runs.pop()
    packed = b"".join((_head(0x80, len(runs)), *map(_uint, runs)))
    return tuple(zip(firsts, lasts, strict=True)), packed


def _head(major: int, value: int) -> bytes:
    """Return the head of a CBOR item in its shortest form."""
    if value < 24:
        return bytes((major | value,))
    for info, width in ((24, 1), (25, 2), (26, 4)):
        if value < 1 << 8 * width:
            return bytes((major | info,)) + value.to_bytes(width, "big")
    return bytes((major | 27,)) + value.to_bytes(8, "big")


_UINTS = [_head(0, value) for value in range(256)]


def _uint(value: int) -> bytes:
    return _UINTS[value] if value < 256 else _head(0, value)


def _packed_ranges(ranges: tuple[Range, ...]) -> bytes:
    flat = list(chain.from_iterable(ranges))
    if flat and min(flat) < 0:
        raise ValueError("a seq below 0")
    return b"".join((_head(0x80, len(flat)), *map(_uint, flat)))


def _count_apart(ranges: tuple[Range, ...]) -> int:
    past = total = 0
    for first, last in ranges:
        if first <= past or last < first or last >= _SEQ_PAST:
            return -1
        past = last + 1
        total += last - first + 1
    return total


def _merged(several: list[tuple[Range, ...]]) -> list[Range]:
    # as many ranges have begun as have ended exactly where the union has a gap
    firsts = sorted(map(itemgetter(0), chain.from_iterable(several)))
    lasts = sorted(map(itemgetter(1), chain.from_iterable(several)))
    if not firsts:
        return []
    gaps = list(map(gt, firsts[1:], map((1).__add__, lasts)))
    ends = compress(lasts, chain(gaps, (True,)))
    return list(zip(compress(firsts, chain((True,), gaps)), ends, strict=True))


# ---- rows by partition ---------------------------------------------------------------------------


def _split(index: list[int], partitions: list[int]) -> dict[int, list[int]]:
    rows: dict[int, list[int]] = {partition: [] for partition in partitions}
    rows_by_source = list(map(rows.__getitem__, partitions))
    of_row = map(rows_by_source.__getitem__, index)
    deque(map(list.append, of_row, range(len(index))), maxlen=0)
    return {partition: found for partition, found in rows.items() if found}


def _sections(
    rows: list[int], used: list[int], first_rows: list[int], first_sources: list[int]
) -> list[tuple[int, int, int, int, int]]:
    found: list[tuple[int, int, int, int, int]] = []
    row = source = 0
    while row < len(rows):
        origin = bisect_right(first_rows, rows[row]) - 1
        end_row = bisect_left(rows, first_rows[origin + 1], row)
        end_source = bisect_left(used, first_sources[origin + 1], source)
        found.append((origin, row, end_row, source, end_source))
        row, source = end_row, end_source
    return found


def _untrack(*_lists: list[Any]) -> None:
    """Do nothing: Python cannot."""


# ---- columns -------------------------------------------------------------------------------------


def _pack(
    head: bytes,
    index: list[int],
    times: list[int],
    flags: list[int],
    middle: bytes,
    payloads: list[bytes],
    reference: int,
) -> bytes:
    if min(times) <= -_TIME_UNITS_MAX or max(times) >= _TIME_UNITS_MAX:
        raise ValueError("a reading's time is outside what the link carries")
    return b"".join(
        (
            head,
            pack_column(index),
            varint(_zigzag(times[0] - reference)),
            pack_column(list(map(sub, times[1:], times)), signed=True),
            pack_column(flags),
            middle,
            pack_column(list(map(len, payloads))),
            *payloads,
        )
    )


def _written(
    table: list[bytes],
    index: list[int],
    times: list[int],
    flags: list[int],
    middle: bytes,
    payloads: list[bytes],
    bytes_max: int,
) -> bytes:
    if not len(index) == len(times) == len(flags) == len(payloads):
        raise IndexError("columns of different lengths")
    total = sum(map(list(map(len, table)).__getitem__, index)) + sum(map(len, payloads))
    if 0 <= bytes_max < total:
        raise OverflowError(total)
    try:
        numbers = array("q", times), array("I", map(len, payloads))
    except OverflowError:
        raise ValueError("a reading's time is outside what the link carries") from None
    if _BIG_ENDIAN:
        for column in numbers:
            column.byteswap()
    return b"".join(
        (
            numbers[0].tobytes(),
            bytes(flags),
            numbers[1].tobytes(),
            *map(table.__getitem__, index),
            middle,
            *payloads,
        )
    )


def pack_column(values: Sequence[int], *, signed: bool = False) -> bytes:
    """Return a column of integers: nothing for none, one value for a constant, else planes."""
    if not values:
        return b""
    low, high = min(values), max(values)
    if low == high:
        return b"\0" + varint(_zigzag(low) if signed else low)
    bits = max(high, ~low).bit_length() + 1 if signed else high.bit_length()
    width = 1 if bits <= 8 else 2 if bits <= 16 else 4 if bits <= 32 else 8
    kind = width | (_SIGNED if signed else 0)
    column = array(_TYPECODES[kind], values)
    if _BIG_ENDIAN:
        column.byteswap()
    raw = column.tobytes()
    if width == 1:
        return bytes((kind,)) + raw
    return b"".join((bytes((kind,)), *(raw[plane::width] for plane in range(width))))


def _zigzag(value: int) -> int:
    return value << 1 if value >= 0 else (~value << 1) | 1


def varint(value: int) -> bytes:
    """Return an unsigned LEB128 number."""
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_runs = native.seq_runs if native else _seq_runs


def seq_runs(seqs: Sequence[int], first: int, end: int) -> tuple[tuple[Range, ...], bytes]:
    """Return the ranges of seqs[first:end], one or more that rise, and these ranges packed.

    Packed they are a CBOR array of runs from 0, as `cbor2.dumps(runs_of(ranges, 0))` would give it.

    Raises:
        ValueError: they do not rise, or one is below 1.
    """
    least, most = seqs[first], seqs[end - 1]
    if most - least == end - first - 1 and least > 0:
        return ((least, most),), b"\x81" + _uint(least - 1)
    return _runs(seqs if isinstance(seqs, list) else list(seqs), first, end)


def cbor(value: Any) -> bytes:
    """Return a value as `cbor2.dumps` does, in a twentieth of its time where C knows all of it.

    That is numbers of 64 bits, bytes, texts, lists, tuples, dicts, booleans and None.
    """
    if native is None:
        return cbor2.dumps(value)
    try:
        return native.cbor(value)
    except (OverflowError, TypeError):
        return cbor2.dumps(value)


packed_ranges = native.packed_ranges if native else _packed_ranges
"""`packed_ranges(ranges)` returns firsts and lasts, one after the other, as a CBOR array."""

count_apart = native.count_apart if native else _count_apart
"""`count_apart(ranges)` returns how many seqs ranges hold; -1 unless they rise and do not touch."""


def merged(several: list[tuple[Range, ...]]) -> list[Range]:
    """Return the ranges of several tuples sorted, those that touch or overlap made one."""
    found = native.merged(several) if native else None
    return _merged(several) if found is None else found


split = native.split if native else _split
"""`split(index, partitions)` returns the rows by partition, given that of each source."""

pack = native.pack if native else _pack
"""`pack(head, index, times, flags, middle, payloads, reference)` returns a body's content.

`head` is the source table, `middle` the properties. ValueError: a time outside +-2^62 units.
"""

sections = native.sections if native else _sections
"""`sections(rows, used, first_rows, first_sources)` returns what of a partition is of which origin.

Rows of a partition and sources of these, both rising, of origins that begin at `first_rows` and
`first_sources`, which end with the end. Each is (origin, first row, row past its last, first
source, source past its last), counted among `rows` and `used`.
"""

untrack = native.untrack if native else _untrack
"""`untrack(*lists)` has the garbage collector never look into lists of numbers and bytes.

Such lists are in no cycle, and each look at a batch that waits costs a memory access a reading.
Nothing else may be put into them afterwards.
"""

written = native.written if native else _written
"""`written(table, index, times, flags, middle, payloads, bytes_max)` returns what the check is of.

That is, of readings whose sources are written out as in `table`, docs/link-format.md section 2.3;
`middle` is what it has of properties. OverflowError with their number: topics, devices and payloads
are more than `bytes_max` bytes together; below 0 it is no limit. ValueError: a time past 64 bits,
or a flag that is no byte.
"""
