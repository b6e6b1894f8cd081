"""Records of the ledger: what a cluster's stream commits, one CBOR array a message.

    record   = [1, writer, number, time_us, [append...], {sink: {partition: position}},
                {partition: up_to}]
    append   = [number, [[gateway, epoch, claim, assigned, count, runs]...], [part...], [stone...]]
    part     = [source, partition, count, packed, [raw_seq, offset, length, ...]]
    stone    = [source, lane, first_seq, last_seq, count, reason, time_us]

A claim names the append that the writer believes to be the last one that brought readings of that
source: its number if the writer is the same, else [writer, number]; 0 for none, null when the
append does not depend on it. Everyone who reads the ledger decides in the same way whether an
append counts (cloud/stream/jetstream/state.py). `runs` are seqs as on the link
(bridge/envelope.py), of a source all that the append brings of it. Those of a part are packed into
bytes of their own: every node reads every record, and few ever ask for them. A part stays the row
that it is in the record: there are ten of an append, and objects would cost more than all else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import cbor2

from bridge.envelope import runs_of, unfold_runs
from bridge.intervals import Range
from bridge.kernel import cbor
from cloud.stream.contract import GivenUp, Source

__all__ = [
    "NEVER",
    "AppendRecord",
    "Extent",
    "PartRow",
    "Record",
    "RecordError",
    "SourceRecord",
    "Version",
    "count_of",
    "decode",
    "encode",
    "extents_of",
    "flat",
    "pack_ranges",
    "pairs",
    "unpack_ranges",
]

_VERSION = 1

Version = tuple[str, int]  # writer and number of an append: no other has the same
NEVER: Version = ("", 0)
Extent = tuple[int, int, int]  # (sequence in the partition's RAW stream, offset, length)
# place among the append's sources, partition, count, seqs (`pack_ranges`), extents (`flat`)
PartRow = tuple[int, int, int, bytes, tuple[int, ...]]


class RecordError(Exception):
    """Bytes that are no record of this version."""


@dataclass(slots=True)
class SourceRecord:
    """What an append says of one source."""

    source: Source
    claim: Version | None
    assigned: int
    seq_ranges: tuple[Range, ...] = ()  # of all its parts together


@dataclass(slots=True)
class AppendRecord:
    """One append: all of it counts, or nothing."""

    number: int  # of the writer's appends, from 1
    sources: tuple[SourceRecord, ...]
    parts: tuple[PartRow, ...] = ()  # where a part's body lies and what it holds
    given_up: tuple[GivenUp, ...] = ()


@dataclass(slots=True)
class Record:
    """One message of the ledger."""

    writer: str  # the run of a node
    number: int  # rises with each record of that run
    time_us: int  # the writer's wall clock
    appends: tuple[AppendRecord, ...] = ()
    cursors: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    trims: Mapping[int, int] = field(default_factory=dict)


def encode(record: Record) -> bytes:
    """Return a record as bytes."""
    return cbor(
        [
            _VERSION,
            record.writer,
            record.number,
            record.time_us,
            [_append_out(append, record.writer) for append in record.appends],
            {sink: dict(positions) for sink, positions in record.cursors.items()},
            dict(record.trims),
        ]
    )


def decode(data: bytes) -> Record:
    """Return the record that `encode` made.

    Raises:
        RecordError: damaged, or of another version.
    """
    try:
        row = cbor2.loads(data)
        version = row[0]
        if version == _VERSION:
            _, writer, number, time_us, appends, cursors, trims = row
            taken = tuple(_append_in(one, writer) for one in appends)
            return Record(writer, number, time_us, taken, cursors, trims)
    except Exception as error:  # noqa: BLE001 - bytes of any kind break in any way
        raise RecordError(f"not a record: {type(error).__name__}: {error}") from None
    raise RecordError(f"a record of version {version}, this one knows {_VERSION}")


def pack_ranges(ranges: Sequence[Range]) -> bytes:
    """Return ranges as bytes."""
    return cbor(runs_of(ranges, 0))


def unpack_ranges(packed: bytes, count: int) -> tuple[Range, ...]:
    """Return the ranges of `pack_ranges`, which hold `count` seqs."""
    return unfold_runs(cbor2.loads(packed), count, 0)


def count_of(ranges: Sequence[Range]) -> int:
    """Return how many seqs ranges hold."""
    return sum(last - first + 1 for first, last in ranges)


def flat(tuples: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """Return the numbers of `tuples` one after the other."""
    return tuple(chain.from_iterable(tuples))


def pairs(numbers: Sequence[int]) -> tuple[Range, ...]:
    """Return what `flat` made of ranges."""
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _append_out(append: AppendRecord, writer: str) -> list[object]:
    places = {one.source: place for place, one in enumerate(append.sources)}
    return [
        append.number,
        [
            [*one.source, _claim_out(one.claim, writer), one.assigned,
             count_of(one.seq_ranges), runs_of(one.seq_ranges, 0)]
            for one in append.sources
        ],
        append.parts,
        [
            [places[stone.gateway, stone.epoch], stone.lane, stone.first_seq, stone.last_seq,
             stone.count, stone.reason, stone.time_us]
            for stone in append.given_up
        ],
    ]  # fmt: skip


def _append_in(row: list[Any], writer: str) -> AppendRecord:
    number, sources, parts, stones = row
    names: list[Source] = [(row[0], row[1]) for row in sources]
    for at, _, _, _, extents in parts:
        if not 0 <= at < len(names) or not extents or len(extents) % 3:
            raise ValueError("a part of no source, or without a whole extent")
    return AppendRecord(
        number,
        tuple(
            SourceRecord(
                name,
                _claim_in(claim, writer),
                assigned,
                unfold_runs(runs, count, 0) if count else (),
            )
            for name, (_, _, claim, assigned, count, runs) in zip(names, sources, strict=True)
        ),
        tuple(
            (at, partition, count, packed, tuple(extents))
            for at, partition, count, packed, extents in parts
        ),
        tuple(GivenUp(*names[at], *rest) for at, *rest in stones),
    )


def _claim_out(claim: Version | None, writer: str) -> int | list[object] | None:
    if claim is None:
        return None
    return claim[1] if claim[0] in ("", writer) else list(claim)


def _claim_in(claim: Any, writer: str) -> Version | None:
    if claim is None:
        return None
    if isinstance(claim, list):
        return claim[0], claim[1]
    return (writer, claim) if claim else NEVER


def extents_of(numbers: Sequence[int]) -> tuple[Extent, ...]:
    """Return what `flat` made of extents."""
    return tuple(zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True))
