"""Readings as packed columns: the body of modes 0 and 2 (docs/link-format.md section 4).

Everything is stateless but the reference time, which the envelope's context hands in. All work on
a reading is done by C loops (array, bytes.join, struct), no object is made per reading but the
payload itself. Decoding checks every count, index and length before it allocates by it.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate, compress, pairwise
from typing import Any
from zlib import crc32

from bridge import kernel
from bridge.errors import BatchError
from bridge.readings import FLAG_PROPERTIES, FLAG_QOS_MASK, FLAG_RETAIN, Source

__all__ = [
    "Columns",
    "Limits",
    "SourceTable",
    "check_columns",
    "pack",
    "picked_sources",
    "topic_bytes",
    "unpack",
    "used_sources",
    "widest",
]

_TIME_UNITS_MAX = 1 << 62  # so that any difference of two times fits 64 bits
_FLAGS_KNOWN = FLAG_QOS_MASK | FLAG_RETAIN | FLAG_PROPERTIES
_SIGNED = 0x10
_TYPECODES = {1: "B", 2: "H", 4: "I", 8: "Q", 0x11: "b", 0x12: "h", 0x14: "i", 0x18: "q"}
_KEPT_SOURCES = 256  # of a table that is kept, and ...
_KEPT_BYTES = 16 << 10  # ... what its texts may be: all together 16 MB, and their objects
_BIG_ENDIAN = sys.byteorder == "big"


@dataclass(slots=True, frozen=True)
class Limits:
    """What a decoder accepts; each is checked before memory is taken for it."""

    batch_bytes: int = 16 << 20  # the whole envelope
    content_bytes: int = 32 << 20  # the body unpacked
    readings: int = 131_072
    sources: int = 65_536
    tombstones: int = 4_096


@dataclass(slots=True)
class Columns:
    """The readings of one batch without their seqs, in seq order; times in the link's units.

    Invariant: every source is that of some reading.
    """

    sources: Sequence[Source]
    source_index: Sequence[int]
    times: Sequence[int]  # units of `resolution_us` since 1970 UTC
    flags: Sequence[int]
    payloads: Sequence[bytes]
    properties: Sequence[bytes] = field(default_factory=tuple)

    def __len__(self) -> int:
        return len(self.source_index)


# ---- the check -----------------------------------------------------------------------------------


def check_columns(columns: Columns, seed: int, bytes_max: int | None = None) -> int:
    """Return the CRC-32 over all columns, continuing from `seed` (docs/link-format.md 2.3).

    Args:
        columns: One or more readings.
        seed: The check over what surrounds them.
        bytes_max: What all readings may be with their topics, devices and property blocks written
            out, as here and by every consumer; None for no limit.

    Raises:
        BatchError: "bounds" when they are more: a few bytes can name gigabytes.
    """
    middle = _written_properties(columns.properties, bytes_max)
    own = sum(map(len, columns.properties)) if middle else 0
    try:
        written = kernel.written(
            _table_bytes(columns.sources),
            _as_list(columns.source_index),
            _as_list(columns.times),
            _as_list(columns.flags),
            middle,
            _as_list(columns.payloads),
            -1 if bytes_max is None else bytes_max - own,
        )
    except OverflowError as error:
        raise _too_many(error.args[0] + own, bytes_max) from None
    return crc32(written, seed)


def _written_properties(column: Sequence[bytes], bytes_max: int | None) -> bytes:
    """Return property blocks as the check has them."""
    present = [block for block in column if block]
    if not present:
        return b""
    size = sum(map(len, present))
    if bytes_max is not None and size > bytes_max:
        raise _too_many(size, bytes_max)
    return b"".join((_little(array("I", map(len, present))), *present))


def _too_many(size: int, bytes_max: int | None) -> BatchError:
    return BatchError("bounds", f"{size} bytes of readings where {bytes_max} are accepted")


class SourceTable(list[Source]):
    """A source table with what is asked of it again and again; it only grows, by `extend_by`.

    Attributes:
        levels: Which level of its topic each device is, as a body has it.
        topic_bytes: The length of each topic in bytes.
        written: Each source as the check has it.
    """

    __slots__ = ("levels", "topic_bytes", "written")

    def __init__(self, sources: Iterable[Source] = ()) -> None:
        super().__init__(sources)
        self.levels = _levels(self)
        self.topic_bytes = _topic_bytes(self)
        self.written = _written(self)

    def extend_by(self, sources: Sequence[Source]) -> None:
        """Have another table follow."""
        table = sources if isinstance(sources, SourceTable) else SourceTable(sources)
        self += table
        self.levels += table.levels
        self.topic_bytes += table.topic_bytes
        self.written += table.written


def picked_sources(sources: Sequence[Source], rows: Sequence[int]) -> list[Source]:
    """Return the sources at `rows`, of a table with what is asked of it a table like it."""
    picked = list(map(sources.__getitem__, rows))
    if not isinstance(sources, SourceTable):
        return picked
    found = SourceTable()
    found += picked
    found.levels = list(map(sources.levels.__getitem__, rows))
    found.topic_bytes = list(map(sources.topic_bytes.__getitem__, rows))
    found.written = list(map(sources.written.__getitem__, rows))
    return found


def widest(sources: Sequence[Source]) -> int:
    """Return the most bytes that one reading's topic and device are, written out."""
    return max(map(len, _table_bytes(sources)), default=0)


def topic_bytes(sources: Sequence[Source]) -> list[int]:
    """Return the length of each source's topic in bytes."""
    return sources.topic_bytes if isinstance(sources, SourceTable) else _topic_bytes(sources)


def _topic_bytes(sources: Sequence[Source]) -> list[int]:
    return [len(topic.encode()) for topic, _ in sources]


def _levels(sources: Sequence[Source]) -> list[int]:
    return [_device_level(topic, device) for topic, device in sources]


def _table_bytes(sources: Sequence[Source]) -> list[bytes]:
    return sources.written if isinstance(sources, SourceTable) else _written(sources)


def _written(sources: Sequence[Source]) -> list[bytes]:
    return [f"{topic}\0{device}\0".encode() for topic, device in sources]


# ---- packing -------------------------------------------------------------------------------------


def pack(columns: Columns, reference: int) -> bytes:
    """Return the content of a body; `reference` is the context's last time, 0 at its start.

    Raises:
        ValueError: a time outside +-2^62 units.
    """
    parts: list[bytes] = []
    _pack_sources(columns.sources, parts)
    head = b"".join(parts)
    index, times, flags, payloads = map(
        _as_list, (columns.source_index, columns.times, columns.flags, columns.payloads)
    )
    return kernel.pack(
        head, index, times, flags, _properties(columns.properties), payloads, reference
    )


def _as_list(column: Sequence[Any]) -> list[Any]:
    return column if isinstance(column, list) else list(column)


def used_sources(
    sources: Sequence[Source], index: Sequence[int]
) -> tuple[Sequence[Source], Sequence[int]]:
    """Return the table without the sources no reading has, and the index into it."""
    used = set(index)
    if len(used) == len(sources):
        return sources, index
    rows = sorted(used)
    place = dict(zip(rows, range(len(rows)), strict=True))
    return picked_sources(sources, rows), list(map(place.__getitem__, index))


@lru_cache(maxsize=65536)
def _device_level(topic: str, device: str) -> int:
    """Return 1 + the topic level that is the device id, 0 when none is or it lies past 255."""
    levels = topic.split("/", 255)[:255]
    return levels.index(device) + 1 if device in levels else 0


def _pack_sources(sources: Sequence[Source], parts: list[bytes]) -> None:
    levels = sources.levels if isinstance(sources, SourceTable) else _levels(sources)
    topics = "\0".join([topic for topic, _ in sources]).encode()
    named = [device for (_, device), level in zip(sources, levels, strict=True) if not level]
    devices = "\0".join(named).encode()
    parts += (kernel.varint(len(sources)), kernel.pack_column(levels))
    parts += (kernel.varint(len(topics)), topics)
    if named:
        parts += (kernel.varint(len(devices)), devices)


def _properties(column: Sequence[bytes]) -> bytes:
    """Return the table of property blocks and which reading has which; nothing without any."""
    if not any(column):
        return b""
    blocks = [block for block in column if block]
    table = {block: place for place, block in enumerate(dict.fromkeys(blocks))}
    return b"".join(
        (
            kernel.varint(len(table)),
            kernel.pack_column(list(map(len, table))),
            *table,
            kernel.pack_column(list(map(table.__getitem__, blocks))),
        )
    )


def _little(column: array[int]) -> bytes:
    if _BIG_ENDIAN:
        column.byteswap()
    return column.tobytes()


# ---- unpacking -----------------------------------------------------------------------------------


def unpack(content: bytes, count: int, reference: int, limits: Limits) -> Columns:
    """Return the columns of a body's content.

    Args:
        content: The unpacked body, at most `limits.content_bytes`.
        count: How many readings the envelope says there are, 1 or more, within limits.
        reference: The context's last time, 0 at its start.
        limits: What is accepted.

    Raises:
        BatchError: "bounds" when a count, index or length does not add up; "malformed" when a
            topic, device or flag is not allowed.
    """
    cursor = _Cursor(content)
    sources = _unpack_sources(cursor, count, limits)
    index = cursor.column(count)
    if max(index) >= len(sources):
        raise BatchError("bounds", "a source index past the source table")
    first = _unzigzag(cursor.varint()) + reference
    times = list(accumulate(cursor.column(count - 1, signed=True), initial=first))
    if min(times) <= -_TIME_UNITS_MAX or max(times) >= _TIME_UNITS_MAX:
        raise BatchError("bounds", "a time outside 62 bits")
    flags = cursor.column(count)
    if max(flags) > 0xFF or any(flag & ~_FLAGS_KNOWN or flag & 3 == 3 for flag in set(flags)):
        raise BatchError("malformed", "a flag that version 1 does not have")
    properties = _unpack_properties(cursor, flags)
    payloads = cursor.slices(cursor.column(count))
    if cursor.at != len(content):
        raise BatchError("bounds", "lengths that do not add up to the content")
    return Columns(sources, index, times, flags, payloads, properties)


def _unpack_sources(cursor: _Cursor, count: int, limits: Limits) -> Sequence[Source]:
    n = cursor.varint()
    if not 0 < n <= min(count, limits.sources):
        raise BatchError("bounds", f"{n} sources for {count} readings")
    levels = cursor.column(n)
    topics = cursor.take(cursor.varint())
    named = levels.count(0)
    devices = cursor.take(cursor.varint()) if named else b""
    if n > _KEPT_SOURCES or len(topics) + len(devices) > _KEPT_BYTES:
        return _read_sources(n, tuple(levels), topics, devices)
    return _kept_table(n, tuple(levels), topics, devices)


@lru_cache(maxsize=1024)
def _kept_table(n: int, levels: tuple[int, ...], topics: bytes, devices: bytes) -> SourceTable:
    """Return a table; a gateway's next batch is likely to have the same one."""
    return SourceTable(_read_sources(n, levels, topics, devices))


def _read_sources(n: int, levels: Sequence[int], topics: bytes, devices: bytes) -> list[Source]:
    named = levels.count(0)
    ids = iter(_texts(devices, named) if named else ())
    sources: list[Source] = []
    for topic, level in zip(_texts(topics, n), levels, strict=True):
        if "+" in topic or "#" in topic:
            raise BatchError("malformed", "a topic name with a wildcard")
        if not level:
            sources.append((topic, next(ids)))
            continue
        parts = topic.split("/", 255)
        if level > 255 or level > len(parts):
            raise BatchError("bounds", "a device level past the topic's last")
        sources.append((topic, parts[level - 1]))
    return sources


def _unpack_properties(cursor: _Cursor, flags: Sequence[int]) -> list[bytes]:
    flagged = [flag & FLAG_PROPERTIES for flag in flags]
    n_flagged = len(flagged) - flagged.count(0)
    if not n_flagged:
        return [b""] * len(flags)
    n = cursor.varint()
    if not 0 < n <= n_flagged:
        raise BatchError("bounds", f"{n} property blocks for {n_flagged} readings")
    table = cursor.slices(cursor.column(n))
    if b"" in table:
        raise BatchError("malformed", "an empty property block")
    index = cursor.column(n_flagged)
    if max(index) >= n:
        raise BatchError("bounds", "a property index past its table")
    properties = [b""] * len(flags)
    for row, place in zip(compress(range(len(flags)), flagged), index, strict=True):
        properties[row] = table[place]
    return properties


class _Cursor:
    """Reads a content from its start to its end, never past it."""

    __slots__ = ("at", "data")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.at = 0

    def varint(self) -> int:
        """Return an unsigned LEB128 number of at most 64 bits."""
        data, at = self.data, self.at
        value = shift = 0
        while True:
            if at >= len(data) or shift > 63:
                raise BatchError("bounds", "a number cut short or past 64 bits")
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
        self.at = at
        return value

    def take(self, length: int) -> bytes:
        end = self.at + length
        if end > len(self.data):
            raise BatchError("bounds", "a length past the end of the content")
        piece = self.data[self.at : end]
        self.at = end
        return piece

    def column(self, n: int, *, signed: bool = False) -> list[int]:
        """Return a column of `n` integers; the caller has bounded `n`."""
        if not n:
            return []
        (kind,) = self.take(1)
        if kind == 0:
            value = self.varint()
            return [_unzigzag(value) if signed else value] * n
        typecode = _TYPECODES.get(kind)
        if typecode is None or bool(kind & _SIGNED) is not signed:
            raise BatchError("malformed", f"column kind 0x{kind:02x} is not allowed here")
        width = kind & 0x0F
        raw = self.take(width * n)
        if width > 1:
            woven = bytearray(width * n)
            for plane in range(width):
                woven[plane::width] = raw[plane * n : (plane + 1) * n]
            raw = bytes(woven)
        values = array(typecode)
        values.frombytes(raw)
        if _BIG_ENDIAN:
            values.byteswap()
        return values.tolist()

    def slices(self, lengths: Sequence[int]) -> list[bytes]:
        """Return consecutive pieces of the given lengths."""
        data = self.data
        ends = list(accumulate(lengths, initial=self.at))
        if ends[-1] > len(data):
            raise BatchError("bounds", "lengths past the end of the content")
        self.at = ends[-1]
        return [data[start:end] for start, end in pairwise(ends)]


def _texts(raw: bytes, n: int) -> list[str]:
    """Return `n` texts, each 1 to 65,535 bytes, that lie in one piece joined by NUL."""
    if raw.count(0) != n - 1:
        raise BatchError("bounds", f"{raw.count(0) + 1} texts where {n} belong")
    try:
        texts = raw.decode().split("\0")
    except UnicodeDecodeError:
        raise BatchError("malformed", "a topic or device that is not UTF-8") from None
    if not all(texts) or (max(map(len, texts)) > 16383 and _too_long(texts)):
        raise BatchError("malformed", "a topic or device that is empty or too long")
    return texts


def _too_long(texts: Sequence[str]) -> bool:
    return any(len(text.encode()) > 0xFFFF for text in texts)


def _unzigzag(value: int) -> int:
    return value >> 1 if not value & 1 else ~(value >> 1)
