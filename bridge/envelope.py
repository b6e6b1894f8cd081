"""The envelope around a batch: keys, field checks and the header's part of the check.

Pure data in and out; the state of a connection is in bridge/batch.py. docs/link-format.md 2 and 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from operator import sub
from typing import Any, cast
from zlib import crc32

from bridge.cbor import read_head, read_map
from bridge.errors import BatchError
from bridge.intervals import Range
from bridge.kernel import cbor, packed_ranges

__all__ = [
    "BATCH_KEYS",
    "CONTENT_TYPE",
    "VERSION",
    "Key",
    "LinkLane",
    "Mark",
    "Mode",
    "Tombstone",
    "header_check",
    "lane_of",
    "open_envelope",
    "read_tombstones",
    "read_uint",
    "runs_of",
    "seal_envelope",
    "unfold_runs",
]

VERSION = 1
CONTENT_TYPE = "application/vnd.tidegate.batch"
SEQ_MAX = (1 << 63) - 1
_CORE_KEYS = 32
_TEXT_BYTES_MAX = 0xFFFF
_TIME_US_MAX = 1 << 62
_STRINGS = (2, 3)  # major types of CBOR whose bytes follow


class Key(IntEnum):
    """Keys of the envelope: the core, and the extensions known here."""

    VERSION = 0
    EPOCH = 1
    GATEWAY = 2
    LANE = 3
    SEQS = 4
    COUNT = 5
    MODE = 6
    CHECK = 7
    BODY = 8
    RESOLUTION = 9
    ASSIGNED = 10
    TOMBSTONES = 11
    MARKS = 12
    SECTIONS = 13  # of a shared entry only
    SETTLED = 34
    RUN = 36


class Mode(IntEnum):
    """How the body holds the readings."""

    COLUMNAR = 0
    STRUCTURED = 1
    STORED = 2


class LinkLane(IntEnum):
    """Lanes on the link: the journal's, and the one an outage's readings drain through."""

    URGENT = 0
    LIVE = 1
    BACKLOG = 2


class Mark(IntFlag):
    """What is true of every reading of a batch."""

    HISTORICAL = 1  # waited through an outage: store it, never page on it as if it were live


@dataclass(slots=True, frozen=True)
class Tombstone:
    """Readings given up at the edge: range, how many of it, and why."""

    lane: int
    first_seq: int
    last_seq: int
    count: int
    reason: str
    time_us: int


_SEQS_KEY = bytes((Key.SEQS,))
BATCH_KEYS = frozenset(int(key) for key in Key if key != Key.SECTIONS)


def seal_envelope(fields: dict[int, Any], seqs: bytes = b"") -> bytes:
    """Return the envelope of `fields`, keys rising, numbers in their shortest form.

    Args:
        fields: By key.
        seqs: The field SEQS as CBOR, where it is not among them and there are any.
    """
    items = sorted(fields.items())
    if not seqs:
        return cbor(dict(items))
    # the heads of these maps, of fewer than 24 fields, are a byte each
    before = cbor({key: value for key, value in items if key < Key.SEQS})[1:]
    after = cbor({key: value for key, value in items if key > Key.SEQS})[1:]
    return b"".join((bytes((0xA1 + len(items),)), before, _SEQS_KEY, seqs, after))


def open_envelope(
    data: bytes, bytes_max: int, known: frozenset[int] = BATCH_KEYS
) -> dict[int, Any]:
    """Return the fields of an envelope, those not `known` and past the core left out if even.

    Raises:
        BatchError: "too-large", "malformed", or "extension" for a key that must be understood.
    """
    if len(data) > bytes_max:
        raise BatchError("too-large", f"{len(data)} bytes where {bytes_max} are accepted")
    fields = read_map(data)
    for key in fields.keys() - known:
        if key < _CORE_KEYS or key % 2:
            raise BatchError("extension", f"key {key} must be understood and is not")
        del fields[key]
    return fields


def lane_of(data: bytes) -> int:
    """Return the lane that an envelope names, without reading the rest; LIVE when it names none.

    Of what is no envelope it may be anything: whoever opens it finds that out.
    """
    at, key = 1, -1
    try:
        while key < Key.LANE:
            _, key, at = read_head(data, at)
            major, argument, at = read_head(data, at)
            at += argument if major in _STRINGS else 0
    except BatchError:
        return LinkLane.LIVE
    return argument if key == Key.LANE else LinkLane.LIVE


def read_uint(fields: dict[int, Any], key: Key, default: int | None, most: int) -> int:
    """Return an unsigned field of at most `most`, or `default` when absent.

    Raises:
        BatchError: "malformed" when missing without default or of another type, "bounds" past
            `most`.
    """
    value = fields.get(key, default)
    if not isinstance(value, int):
        raise BatchError("malformed", f"{key.name.lower()} is missing or no number")
    if value > most:
        raise BatchError("bounds", f"{key.name.lower()} {value} is past {most}")
    return int(value)  # a default may be an IntEnum


def runs_of(ranges: Sequence[Range], cursor: int) -> list[int]:
    """Return ranges as alternating skip and length from `cursor`; the last length is left out."""
    if len(ranges) < 2:
        return [first - cursor - 1 for first, _ in ranges]
    firsts, lasts = zip(*ranges, strict=True)
    pasts = list(map((1).__add__, lasts))
    runs = [0] * (2 * len(ranges))
    runs[0::2] = map(sub, firsts, (cursor + 1, *pasts))
    runs[1::2] = map(sub, pasts, firsts)
    return runs[:-1]


def unfold_runs(runs: Any, count: int, cursor: int) -> tuple[Range, ...]:
    """Return the seq ranges of a batch, the inverse of `runs_of`.

    Raises:
        BatchError: "malformed" or "bounds" when runs and count do not describe rising ranges.
    """
    if not isinstance(runs, list) or len(runs) % 2 != 1 or len(runs) > 2 * count:
        raise BatchError("malformed", "seqs is not a list of runs")
    ranges: list[Range] = []
    left = count
    for place in range(0, len(runs), 2):
        skip = runs[place]
        length = runs[place + 1] if place + 1 < len(runs) else left
        if type(skip) is not int or type(length) is not int:
            raise BatchError("malformed", "seqs is not a list of runs")
        if length < 1 or length > left or (place and skip < 1):
            raise BatchError("bounds", "runs of seqs that do not add up to the count")
        first = cursor + skip + 1
        cursor = first + length - 1
        ranges.append((first, cursor))
        left -= length
    if left or cursor > SEQ_MAX:
        raise BatchError("bounds", "runs of seqs that do not add up to the count")
    return tuple(ranges)


def read_tombstones(fields: dict[int, Any], tombstones_max: int) -> tuple[Tombstone, ...]:
    """Return the tombstones of an envelope.

    Raises:
        BatchError: "malformed" or "bounds".
    """
    rows = fields.get(Key.TOMBSTONES, [])
    if not isinstance(rows, list):
        raise BatchError("malformed", "tombstones is not a list")
    if len(rows) > tombstones_max:
        raise BatchError("bounds", f"{len(rows)} tombstones where {tombstones_max} are accepted")
    return tuple(map(_tombstone, rows))


def _tombstone(row: Any) -> Tombstone:
    if not isinstance(row, list) or [type(item) for item in row] != [int, int, int, int, str, int]:
        raise BatchError("malformed", "a tombstone that is not [lane, first, last, count, ...]")
    stone = Tombstone(*cast("tuple[int, int, int, int, str, int]", tuple(row)))
    if (
        stone.lane not in set(LinkLane)
        or not 0 < stone.first_seq <= stone.last_seq <= SEQ_MAX
        or not 0 < stone.count <= stone.last_seq - stone.first_seq + 1
        or not 0 < len(stone.reason.encode()) <= 255
        or stone.time_us >= _TIME_US_MAX
    ):
        raise BatchError("bounds", "a tombstone whose range, count or reason cannot be")
    return stone


def header_check(
    gateway: str,
    numbers: Sequence[int],
    ranges: tuple[Range, ...],
    tombstones: Sequence[Tombstone],
) -> int:
    """Return the CRC-32 over what surrounds the columns (docs/link-format.md section 3.3).

    Args:
        gateway: The gateway's id, whether the envelope repeats it or not.
        numbers: epoch, lane, marks, resolution_us, assigned: their values in effect.
        ranges: Inclusive seq ranges of the readings.
        tombstones: As carried.
    """
    named = b"\x84" + cbor(gateway) + cbor(list(numbers))
    check = crc32(packed_ranges(ranges), crc32(named))
    return crc32(cbor(tombstone_rows(tombstones)), check)


def tombstone_rows(tombstones: Sequence[Tombstone]) -> list[list[int | str]]:
    """Return tombstones as the rows the envelope carries."""
    return [
        [stone.lane, stone.first_seq, stone.last_seq, stone.count, stone.reason, stone.time_us]
        for stone in tombstones
    ]
