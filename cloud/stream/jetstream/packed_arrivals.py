"""Arrivals as bytes: when an append of a source came, its seqs, and where its readings lie.

    arrival = time_us, ranges, places, (first, last)..., position..., partition...

About 120 bytes where an object of Python takes ten times as many; millions may be remembered.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from bridge.intervals import Range
from cloud.stream.contract import Arrival, Source

__all__ = ["pack_arrival", "unpack_arrival"]

_HEAD = struct.Struct("<qII")


def pack_arrival(
    arrived_us: int, ranges: Sequence[Range], places: Sequence[tuple[int, int]]
) -> bytes:
    """Return an arrival of some readings; `places` are (partition, position)."""
    numbers = [seq for pair in ranges for seq in pair]
    numbers += [position for _, position in places]
    return b"".join(
        (
            _HEAD.pack(arrived_us, len(ranges), len(places)),
            struct.pack(f"<{len(numbers)}Q", *numbers),
            bytes([partition for partition, _ in places]),
        )
    )


def unpack_arrival(source: Source, packed: bytes, seq: int) -> Arrival | None:
    """Return the arrival if it brought `seq`."""
    arrived_us, n_ranges, n_places = _HEAD.unpack_from(packed)
    numbers = struct.unpack_from(f"<{2 * n_ranges + n_places}Q", packed, _HEAD.size)
    ranges = tuple(zip(numbers[: 2 * n_ranges : 2], numbers[1 : 2 * n_ranges : 2], strict=True))
    if not any(first <= seq <= last for first, last in ranges):
        return None
    places = zip(packed[len(packed) - n_places :], numbers[2 * n_ranges :], strict=True)
    count = sum(last - first + 1 for first, last in ranges)
    return Arrival(*source, ranges, count, arrived_us, tuple(places))
