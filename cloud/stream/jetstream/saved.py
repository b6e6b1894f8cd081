"""The state of the ledger as bytes, for checkpoints: taken apart in steps that hold nobody up.

    saved     = head, sources..., partition x 64, arrivals    a sequence of CBOR items (RFC 8742)
    head      = [2, seq, {sink: {partition: position}}, items of sources]
    sources   = [[gateway, epoch, [writer, number], assigned, ranges, [stone...], [arrival...]]...]
    partition = [last_position, floor, *what cloud/stream/jetstream/entries.py says]
    arrivals  = places of sources, 4 bytes each, little-endian

Version 1, one CBOR array, is read and no longer written.

Invariant: what the steps write is the state at the call, whatever is taken while they run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import cbor2

from bridge.intervals import IntervalSet
from cloud.stream.contract import GivenUp, Source
from cloud.stream.jetstream.packed_arrivals import pack_arrival
from cloud.stream.jetstream.records import flat, pairs
from cloud.stream.jetstream.state import LedgerState, SourceState

__all__ = ["load", "steps"]

_VERSION = 2
_STEP_SOURCES = 64
_STEP_ARRIVALS = 2000

_Frozen = tuple[Source, tuple[str, int], int, IntervalSet, list[GivenUp], list[bytes]]


def steps(state: LedgerState) -> Iterator[bytes]:
    """Return the state as it is now, in pieces that are made one at a time.

    What can change is copied here, at once; the pieces are made from the copies.
    """
    sources: list[_Frozen] = [
        (source, one.version, one.assigned, one.held.copy(), list(one.given_up.values()),
         list(one.arrivals))
        for source, one in state.sources.items()
    ]  # fmt: skip
    partitions = [[one.last_position, one.floor, *one.entries.dump()] for one in state.partitions]
    cursors = {sink: dict(positions) for sink, positions in state.cursors_of.items()}
    return _pieces(state.seq, cursors, sources, partitions, list(state.arrivals))


def _pieces(
    seq: int,
    cursors: dict[str, dict[int, int]],
    sources: list[_Frozen],
    partitions: list[list[Any]],
    arrivals: list[int],
) -> Iterator[bytes]:
    groups = _groups(sources)
    yield cbor2.dumps([_VERSION, seq, cursors, len(groups)])
    for group in groups:
        yield cbor2.dumps([_source_out(*one) for one in group])
    for partition in partitions:
        yield cbor2.dumps(partition)
    yield cbor2.dumps(struct.pack(f"<{len(arrivals)}I", *arrivals))


def _groups(sources: list[_Frozen]) -> list[list[_Frozen]]:
    """Return the sources in groups of about the same work."""
    groups: list[list[_Frozen]] = []
    arrivals = _STEP_ARRIVALS
    for one in sources:
        if arrivals >= _STEP_ARRIVALS or len(groups[-1]) >= _STEP_SOURCES:
            groups.append([])
            arrivals = 0
        groups[-1].append(one)
        arrivals += len(one[-1])
    return groups


def _source_out(
    source: Source,
    version: tuple[str, int],
    assigned: int,
    held: IntervalSet,
    given_up: list[GivenUp],
    arrivals: list[bytes],
) -> list[Any]:
    stones = [
        [one.lane, one.first_seq, one.last_seq, one.count, one.reason, one.time_us]
        for one in given_up
    ]
    return [*source, list(version), assigned, flat(held.ranges()), stones, arrivals]


# ---- reading -------------------------------------------------------------------------------------


def load(data: bytes, arrivals_max: int) -> LedgerState:
    """Return the state that was saved.

    Raises:
        ValueError: it is of another version, or damaged.
    """
    file = BytesIO(data)
    decoder = cbor2.CBORDecoder(file)
    head = decoder.decode()
    state = LedgerState(arrivals_max)
    if head[0] == 1:
        _load_1(state, head)
    elif head[0] == _VERSION:
        _, state.seq, state.cursors_of, groups = head
        for _ in range(groups):
            for row in decoder.decode():
                one = _source_in(state, row)
                one.arrivals.extend(row[-1])
        for partition in state.partitions:
            partition.last_position, partition.floor, *columns = decoder.decode()
            partition.entries.load(columns)
        places = decoder.decode()
        state.arrivals.extend(struct.unpack(f"<{len(places) // 4}I", places))
    else:
        raise ValueError(f"a checkpoint of version {head[0]}, this one knows {_VERSION}")
    state.forget_arrivals()
    state.count_again()
    return state


def _source_in(state: LedgerState, row: list[Any]) -> SourceState:
    gateway, epoch, version, assigned, held, stones, _ = row
    one = state.source((gateway, epoch))
    one.version = (version[0], version[1])
    one.assigned = assigned
    one.held = IntervalSet(pairs(held))
    for lane, first, last, count, reason, time_us in stones:
        stone = GivenUp(gateway, epoch, lane, first, last, count, reason, time_us)
        one.given_up[lane, first, reason] = stone
    return one


def _load_1(state: LedgerState, head: list[Any]) -> None:
    """Take a checkpoint as versions before this one wrote it."""
    _, state.seq, sources, partitions, state.cursors_of, arrivals = head
    for row in sources:
        one = _source_in(state, row)
        for ranges, _, arrived_us, places in row[-1]:
            one.arrivals.append(pack_arrival(arrived_us, pairs(ranges), pairs(places)))
    state.arrivals.extend(arrivals)
    for partition, (last_position, _, floor, rows) in zip(
        state.partitions, partitions, strict=True
    ):
        partition.last_position, partition.floor = last_position, floor
        for position, place, packed, count, appended_us, extents, _ in rows:
            partition.entries.append(position, place, packed, count, appended_us, tuple(extents))
