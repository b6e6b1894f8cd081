"""A strict reader for the subset of CBOR the envelope is written in (docs/link-format.md 2).

Accepted: unsigned integers, byte strings, text strings, arrays and maps, all of definite length
and in their shortest form, at most four deep; keys are unsigned integers in rising order, and
nothing may follow the item. Everything else (tags, floats, negative integers, indefinite lengths)
is refused at its first byte, so no hostile item makes the reader do work: the general decoders
build dates, regular expressions and bignums out of tags before a caller sees the type. All
arrays and maps together hold at most ITEMS_MAX items.
"""

from __future__ import annotations

from typing import Any

from bridge.errors import BatchError

__all__ = ["DEPTH_MAX", "ITEMS_MAX", "read_array", "read_head", "read_map"]

DEPTH_MAX = 4
ITEMS_MAX = 1 << 18  # twice the readings of a batch: no list of seqs is longer
_UINT, _BYTES, _TEXT, _ARRAY, _MAP = 0, 2, 3, 4, 5
_WIDTHS = {24: 1, 25: 2, 26: 4, 27: 8}
_LEAST = {24: 24, 25: 1 << 8, 26: 1 << 16, 27: 1 << 32}


def read_map(data: bytes) -> dict[int, Any]:
    """Return the one map that `data` is.

    Raises:
        BatchError: "malformed" when `data` is anything but one map of the subset.
    """
    if not data or data[0] >> 5 != _MAP:
        raise BatchError("malformed", "the envelope is not a CBOR map")
    value, at = _item(data, 0, 1, [ITEMS_MAX])
    if at != len(data):
        raise BatchError("malformed", f"{len(data) - at} bytes after the envelope")
    result: dict[int, Any] = value
    return result


def read_array(data: bytes) -> list[Any]:
    """Return the array that `data` is, whole.

    Raises:
        BatchError: "malformed" when it is anything else.
    """
    items, end = _item(data, 0, 1, [ITEMS_MAX])
    if not isinstance(items, list) or end != len(data):
        raise BatchError("malformed", "no array, or something behind it")
    return items


def read_head(data: bytes, at: int) -> tuple[int, int, int]:
    """Return (major type, argument, position after the head) of the item at `at`.

    Raises:
        BatchError: "malformed".
    """
    if at >= len(data):
        raise BatchError("malformed", "the envelope is cut short")
    initial = data[at]
    info = initial & 0x1F
    at += 1
    if info < 24:
        return initial >> 5, info, at
    width = _WIDTHS.get(info)
    if width is None:
        raise BatchError("malformed", f"CBOR initial byte 0x{initial:02x} is not allowed")
    end = at + width
    if end > len(data):
        raise BatchError("malformed", "the envelope is cut short")
    argument = int.from_bytes(data[at:end], "big")
    if argument < _LEAST[info]:
        raise BatchError("malformed", "a CBOR number not in its shortest form")
    return initial >> 5, argument, end


def _item(data: bytes, at: int, depth: int, left: list[int]) -> tuple[Any, int]:
    """Return (value, position after it) for the item at `at`; `left[0]` items may follow."""
    major, argument, at = read_head(data, at)
    if major == _UINT:
        return argument, at
    # every item takes a byte at least, so this bounds strings, arrays and maps alike
    if argument > len(data) - at:
        raise BatchError("malformed", "a CBOR length past the end of the envelope")
    if major == _BYTES:
        return data[at : at + argument], at + argument
    if major == _TEXT:
        try:
            return data[at : at + argument].decode(), at + argument
        except UnicodeDecodeError:
            raise BatchError("malformed", "a CBOR text that is not UTF-8") from None
    if depth > DEPTH_MAX:
        raise BatchError("malformed", f"CBOR nested more than {DEPTH_MAX} deep")
    left[0] -= argument
    if left[0] < 0:
        raise BatchError("malformed", f"more than {ITEMS_MAX} CBOR items")
    if major == _ARRAY:
        items: list[Any] = []
        for _ in range(argument):
            if at < len(data) and data[at] < 24:  # seqs of an entry: many small numbers
                items.append(data[at])
                at += 1
            else:
                value, at = _item(data, at, depth + 1, left)
                items.append(value)
        return items, at
    if major == _MAP:
        return _map(data, at, argument, depth, left)
    raise BatchError("malformed", f"CBOR major type {major} is not allowed")


def _map(
    data: bytes, at: int, count: int, depth: int, left: list[int]
) -> tuple[dict[int, Any], int]:
    entries: dict[int, Any] = {}
    previous = -1
    for _ in range(count):
        major, key, at = read_head(data, at)
        if major != _UINT or key <= previous:
            raise BatchError("malformed", "CBOR map keys must be unsigned and rise")
        previous = key
        entries[key], at = _item(data, at, depth + 1, left)
    return entries, at
