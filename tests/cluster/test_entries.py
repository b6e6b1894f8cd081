"""Entries as columns: the same as a list of objects, through trims, sums that wrap and bytes."""

from __future__ import annotations

import random

import cbor2
import pytest

from bridge.intervals import ranges_of
from cloud.stream.jetstream.entries import EntryColumns, Indexed
from cloud.stream.jetstream.packed_arrivals import pack_arrival, unpack_arrival
from cloud.stream.jetstream.records import Extent, flat, pack_ranges

NAMES = [("a", 1), ("b", 2), ("c", (1 << 64) - 1)]


def an_entry(rng: random.Random, position: int, raw_seq: int) -> Indexed:
    seqs = sorted(rng.sample(range(1, 1000), rng.randrange(1, 9)))
    extents: tuple[Extent, ...] = ((raw_seq, rng.randrange(1 << 20), rng.randrange(1, 1 << 20)),)
    if rng.random() < 0.2:
        extents = ((raw_seq, 0, 1 << 20), (raw_seq + 1, 0, 7))
    return Indexed(
        3, position, rng.choice(NAMES), pack_ranges(ranges_of(seqs)), len(seqs),
        rng.randrange(1 << 50), extents,
    )  # fmt: skip


def test_a_body_that_entries_share_is_counted_with_the_last_of_them() -> None:
    columns = EntryColumns(3, NAMES)
    packed = pack_ranges([(1, 1)])
    places = [(5, 0, 10), (5, 10, 7), (5, 10, 7), (5, 10, 7), (6, 10, 9), (7, 10, 9), (7, 10, 9)]
    added = [columns.append(n + 1, n % 3, packed, 1, n, place) for n, place in enumerate(places)]
    assert added == [10, 7, 0, 0, 9, 9, 0]
    assert columns.totals() == (7, 35)
    for at, expected in enumerate([35 - 10, 25, 25, 18, 9, 9, 0]):
        gone = columns.trim(at + 1)
        assert gone is not None
        assert columns.totals() == (6 - at, expected)
        assert gone.bytes == [10, 0, 0, 7, 9, 0, 9][at]


def test_a_shared_body_in_pieces_is_counted_once_too() -> None:
    columns = EntryColumns(3, NAMES)
    pieces = ((5, 0, 100), (6, 0, 40))
    added = [columns.append(n, 0, pack_ranges([(n, n)]), 1, 0, flat(pieces)) for n in (1, 2)]
    assert added == [140, 0]
    assert [entry.extents for entry in columns.after(0)] == [pieces] * 2
    gone = columns.trim(1)
    assert gone is not None
    assert (gone.bytes, columns.totals()) == (0, (1, 140))


def put(columns: EntryColumns, entry: Indexed) -> int:
    return columns.append(
        entry.position, NAMES.index(entry.source), entry.packed, entry.count, entry.appended_us,
        flat(entry.extents),
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(20))
def test_columns_are_the_same_as_a_list(seed: int) -> None:
    rng = random.Random(seed)
    columns, model = EntryColumns(3, NAMES), list[Indexed]()
    near_wrap = [(1 << 32) - 20, (1 << 32) - 9, b""]
    columns.load([columns.dump()[0], near_wrap, []])
    position = 1 << 33
    for _ in range(60):
        position += rng.randrange(1, 9)
        entry = an_entry(rng, position, rng.randrange(1 << 40))
        model.append(entry)
        assert put(columns, entry) == entry.bytes
        at = rng.choice([0, position, rng.choice(model).position + rng.randrange(-2, 3)])
        later = [one for one in model if one.position > at]
        assert list(columns.after(at)) == later
        assert len(columns) - columns.past(at) == len(later)
        assert columns.readings_past(at) == sum(one.count for one in later)
        if later:
            assert columns.time_past(at) == later[0].appended_us
        if rng.random() < 0.2:
            trimmed = [one for one in model if one.position <= at]
            gone = columns.trim(at)
            model = later
            assert (gone is None) == (not trimmed)
            if gone is not None:
                assert gone.entries == len(trimmed)
                assert gone.readings == sum(one.count for one in trimmed)
                assert gone.bytes == sum(one.bytes for one in trimmed)
                assert gone.raw_seq == max(seq for one in trimmed for seq, _, _ in one.extents)
        assert columns.first_raw_seq() == min(
            (seq for one in model for seq, _, _ in one.extents), default=None
        )
        if rng.random() < 0.1:
            twin = EntryColumns(3, NAMES)
            twin.load(cbor2.loads(cbor2.dumps(columns.dump())))
            columns = twin
            assert columns.totals() == (
                sum(one.count for one in model),
                sum(one.bytes for one in model),
            )


def test_a_trim_reaches_as_far_as_all_are_old_enough() -> None:
    columns = EntryColumns(3, NAMES)
    for position, time_us in ((10, 100), (20, 300), (30, 200), (40, 400)):
        columns.append(position, 0, b"\x80", 1, time_us, (position, 0, 1))
    assert [columns.reached(up_to, None) for up_to in (9, 10, 35, 99)] == [0, 10, 30, 40]
    assert [columns.reached(99, before_us) for before_us in (100, 101, 300, 301, 500)] == [
        0, 10, 10, 30, 40,
    ]  # fmt: skip


def test_an_arrival_is_the_same_as_it_was() -> None:
    ranges = ((5, 9), (11, 11), ((1 << 63) - 1, (1 << 63) - 1))
    places = ((0, 1), (63, (1 << 64) - 1))
    packed = pack_arrival(-7, ranges, places)
    for seq in (5, 9, 11, (1 << 63) - 1):
        found = unpack_arrival(("gw", 3), packed, seq)
        assert found is not None
        assert (found.gateway, found.epoch, found.arrived_us, found.count) == ("gw", 3, -7, 7)
        assert (found.seq_ranges, found.places) == (ranges, places)
    assert unpack_arrival(("gw", 3), packed, 10) is None
