"""Entries that several gateways share, and the reader of entries of either kind.

What waits of a partition at the same moment is encoded as one, however many gateways it is of: an
entry costs nearly as much however few readings it holds. Version 2 of the envelope names the
sources in key 13, whose readings follow one another in the body; each remains an entry of its own
in the stream, with its own place in the ledger, and its readings are taken out of the body that
they share. docs/link-format.md section 5.2.

Invariant: what is read for a source is exactly what was encoded of it, or a `BatchError`.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import chain
from typing import Any
from zlib import crc32

from bridge.batch import (
    DEFAULT_RESOLUTION_US,
    EPOCH_MAX,
    RESOLUTION_US_MAX,
    Batch,
    Decoder,
    columns_of,
    compressor,
    decompressed,
    decompressor,
    seal_entry,
    times_us_of,
)
from bridge.cbor import read_array
from bridge.columnar import Columns, Limits, check_columns, pack, unpack
from bridge.envelope import (
    Key,
    LinkLane,
    Mark,
    Mode,
    open_envelope,
    read_uint,
    unfold_runs,
)
from bridge.errors import BatchError
from bridge.intervals import Range
from bridge.kernel import cbor
from bridge.readings import Readings
from bridge.select import Block, Section

__all__ = ["EntryReader", "SharedEncoder"]

_VERSION = 2
_BEGINS = bytes((Key.VERSION, _VERSION))  # past the head of the map, which is one byte
_KEYS = frozenset(
    {Key.VERSION, Key.LANE, Key.COUNT, Key.MODE, Key.CHECK, Key.BODY, Key.RESOLUTION, Key.MARKS,
     Key.SECTIONS}
)  # fmt: skip
_GATEWAY_CHARS_MAX = 0xFFFF

_Owner = tuple[str, int]  # (gateway, epoch)


class SharedEncoder:
    """Encodes blocks of several sources.

    Args:
        level: zstd level.
    """

    __slots__ = ("_zstd",)

    def __init__(self, *, level: int = 1) -> None:
        self._zstd = compressor(level)

    def encode(
        self,
        block: Block,
        owners: Sequence[_Owner],
        packed: Sequence[bytes],
        *,
        lane: int = LinkLane.LIVE,
        historical: bool = False,
        resolution_us: int = 1,
    ) -> bytes:
        """Return a block as one body.

        Args:
            block: Its readings.
            owners: (gateway, epoch) by section, no two alike.
            packed: The seqs by section, see `seqs_of`.
            lane: The lane they came by.
            historical: They waited through an outage.
            resolution_us: Times are cut down to multiples of it; the link has done so before.

        Raises:
            ValueError: a time the format cannot carry.
        """
        columns = columns_of(block.readings, resolution_us)
        content = pack(columns, 0)
        body = self._zstd.compress(content)
        marks = int(Mark.HISTORICAL) if historical else 0
        sections = [
            [
                *owner,
                section.end_row - section.first_row,
                section.end_source - section.first_source,
                seqs,
            ]
            for owner, section, seqs in zip(owners, block.sections, packed, strict=True)
        ]
        named = cbor(sections)
        check = _header_check(named, lane, marks, resolution_us)
        fields: dict[int, Any] = {
            Key.VERSION: _VERSION,
            Key.COUNT: len(columns),
            Key.CHECK: check_columns(columns, check),
            Key.BODY: body,
            Key.SECTIONS: named,
        }
        return seal_entry(fields, content, lane, marks, resolution_us)


class EntryReader:
    """Reads entries: those of one source, and those that share their body with others.

    Args:
        limits: What is accepted.
    """

    __slots__ = ("_body", "_decoder", "_limits", "_shared", "_zstd")

    def __init__(self, limits: Limits | None = None) -> None:
        self._limits = limits or Limits()
        self._decoder = Decoder(None, limits=self._limits)
        self._zstd = decompressor()
        self._body = b""  # the last one that was shared: who reads on finds its next source here
        self._shared: dict[_Owner, Batch] = {}

    def read(self, body: bytes, gateway: str, epoch: int) -> Batch:
        """Return what a body holds of a source.

        Raises:
            BatchError: it is damaged or foreign, or holds nothing of that source.
        """
        if body[1:3] != _BEGINS:
            batch = self._decoder.decode(body)
            if (batch.gateway, batch.epoch) != (gateway, epoch):
                raise BatchError("identity", "the body is of another source than its entry")
            return batch
        if body != self._body:
            try:
                self._shared = _read_shared(body, self._limits, self._zstd)
            except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
                raise BatchError("malformed", f"{type(error).__name__} in decoding") from error
            self._body = body
        found = self._shared.get((gateway, epoch))
        if found is None:
            raise BatchError("identity", "the body is of other sources than its entry")
        return found


def _header_check(named: bytes, lane: int, marks: int, resolution_us: int) -> int:
    """Return the CRC-32 over what surrounds the columns."""
    return crc32(cbor([lane, marks, resolution_us]), crc32(named))


def _read_shared(body: bytes, limits: Limits, zstd: Any) -> dict[_Owner, Batch]:
    """Return what each source has in a shared body."""
    fields = open_envelope(body, limits.batch_bytes, _KEYS)
    read_uint(fields, Key.VERSION, None, _VERSION)
    lane = read_uint(fields, Key.LANE, LinkLane.LIVE, len(LinkLane) - 1)
    marks = read_uint(fields, Key.MARKS, 0, int(Mark.HISTORICAL))
    count = read_uint(fields, Key.COUNT, None, limits.readings)
    mode = read_uint(fields, Key.MODE, Mode.COLUMNAR, 0xFF)
    resolution_us = read_uint(fields, Key.RESOLUTION, DEFAULT_RESOLUTION_US, RESOLUTION_US_MAX)
    content = fields.get(Key.BODY)
    if not isinstance(content, bytes):
        raise BatchError("malformed", "the body is missing or no byte string")
    if not count or not resolution_us:
        raise BatchError("bounds", "no readings, or resolution 0")
    if mode == Mode.COLUMNAR:
        content = decompressed(zstd, content, limits.content_bytes)
    elif mode != Mode.STORED:
        raise BatchError("mode", f"mode {mode} is not known here")
    named = fields.get(Key.SECTIONS)
    if not isinstance(named, bytes):
        raise BatchError("malformed", "the sections are missing or no byte string")
    owners, ranges, sections = _read_sections(read_array(named), count)
    columns = unpack(content, count, 0, limits)
    check = _header_check(named, lane, marks, resolution_us)
    if check_columns(columns, check, limits.content_bytes) != read_uint(
        fields, Key.CHECK, None, 0xFFFFFFFF
    ):
        raise BatchError("check", "the content is not what was written")
    block = _block(columns, ranges, sections, resolution_us)
    return {
        owner: Batch(
            *owner, lane, bool(marks), block.part(section), seqs, (), seqs[-1][1], mode,
            resolution_us,
        )
        for owner, seqs, section in zip(owners, ranges, sections, strict=True)
    }  # fmt: skip


def _read_sections(
    rows: list[Any], count: int
) -> tuple[list[_Owner], list[tuple[Range, ...]], list[Section]]:
    """Return the sources of a shared body, their seqs, and where their readings lie."""
    if not rows:
        raise BatchError("malformed", "no sections")
    owners: list[_Owner] = []
    ranges: list[tuple[Range, ...]] = []
    sections: list[Section] = []
    row = source = 0
    for one in rows:
        if not isinstance(one, list) or [type(item) for item in one] != [str, int, int, int, bytes]:
            raise BatchError("malformed", "a section that is not [gateway, epoch, count, ...]")
        gateway, epoch, n_rows, n_sources, packed = one
        if not 0 < len(gateway) <= _GATEWAY_CHARS_MAX or epoch > EPOCH_MAX:
            raise BatchError("malformed", "a section whose gateway or epoch cannot be")
        if not 0 < n_rows <= count - row or not 0 < n_sources <= n_rows:
            raise BatchError("bounds", "sections that do not add up to the count")
        owners.append((gateway, epoch))
        ranges.append(unfold_runs(read_array(packed), n_rows, 0))
        sections.append(Section(len(sections), row, row + n_rows, source, source + n_sources))
        row, source = row + n_rows, source + n_sources
    if row != count or len(set(owners)) != len(owners):
        raise BatchError("bounds", "sections that do not add up to the count, or two of a source")
    return owners, ranges, sections


def _block(
    columns: Columns,
    ranges: Sequence[tuple[Range, ...]],
    sections: Sequence[Section],
    resolution_us: int,
) -> Block:
    """Return the readings of a shared body, no section with a source of another."""
    if sections[-1].end_source != len(columns.sources):
        raise BatchError("bounds", "sections that do not add up to the sources")
    for one in sections:
        index = columns.source_index[one.first_row : one.end_row]
        if min(index) < one.first_source or max(index) >= one.end_source:
            raise BatchError("bounds", "a reading with a source of another section")
    pairs = chain.from_iterable(ranges)
    readings = Readings(
        list(chain.from_iterable(range(first, last + 1) for first, last in pairs)),
        list(columns.sources),
        list(columns.source_index),
        times_us_of(columns, resolution_us),
        list(columns.flags),
        list(columns.payloads),
        list(columns.properties),
    )
    return Block(0, readings, sections)
