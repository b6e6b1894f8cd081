"""The loops over a batch in C and in Python do the same, to the byte."""

from __future__ import annotations

import gc
import random
from typing import Any

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge import kernel
from bridge.columnar import Columns, Limits, pack, unpack
from bridge.envelope import runs_of
from bridge.intervals import Range, ranges_of

# Where nothing was built, Python is compared with itself: the tests still say what is right.
NATIVE: Any = kernel.native

_SEQS = st.one_of(
    st.sets(st.integers(1, 60), min_size=1),
    st.sets(st.integers(1, (1 << 63) - 1), min_size=1, max_size=20),
    st.sets(st.integers((1 << 63) - 40, (1 << 63) - 1), min_size=1),
).map(sorted)
_RANGES = st.lists(
    st.tuples(st.integers(1, 400), st.integers(0, 70)).map(lambda pair: (pair[0], sum(pair)))
)
_TIMES = st.one_of(
    st.integers(1 - (1 << 62), (1 << 62) - 1), st.integers(0, 300), st.integers(-40_000, 40_000)
)


def twins(name: str) -> list[Any]:
    python = getattr(kernel, f"_{name}")
    return [python, getattr(NATIVE, name) if NATIVE else python]


@given(_SEQS, st.data())
def test_seqs_become_their_ranges_and_these_packed(seqs: list[int], data: st.DataObject) -> None:
    first = data.draw(st.integers(0, len(seqs) - 1))
    end = data.draw(st.integers(first + 1, len(seqs)))
    ranges = ranges_of(seqs[first:end])
    expected = (ranges, cbor2.dumps(runs_of(ranges, 0)))
    for seq_runs in (*twins("seq_runs"), kernel.seq_runs):
        assert seq_runs(seqs, first, end) == expected


@given(_SEQS)
def test_ranges_are_packed_as_cbor_has_their_ends(seqs: list[int]) -> None:
    ranges = ranges_of(seqs)
    expected = cbor2.dumps([end for pair in ranges for end in pair])
    for packed_ranges in twins("packed_ranges"):
        assert packed_ranges(ranges) == expected
        assert packed_ranges(()) == b"\x80"
        with pytest.raises(ValueError, match="below 0"):
            packed_ranges(((-1, 4),))


def test_a_range_of_seqs_needs_no_list() -> None:
    assert kernel.seq_runs(range(300, 400), 0, 100) == (((300, 399),), b"\x81\x19\x01\x2b")
    assert kernel.seq_runs(range(1, 9, 2), 1, 3) == (((3, 3), (5, 5)), b"\x83\x02\x01\x01")


@pytest.mark.parametrize("seqs", [[], [0], [0, 1], [2, 1], [1, 1], [-5, 7], [1, 2, 2]])
def test_seqs_that_are_none_are_the_callers_fault(seqs: list[int]) -> None:
    for seq_runs in twins("seq_runs"):
        with pytest.raises(ValueError, match="seq"):
            seq_runs(seqs, 0, len(seqs))


@given(_SEQS)
def test_ranges_that_rise_apart_are_counted(seqs: list[int]) -> None:
    ranges = ranges_of(seqs)
    for count_apart in twins("count_apart"):
        assert count_apart(ranges) == len(seqs)
        assert count_apart(()) == 0


@pytest.mark.parametrize(
    "ranges",
    [
        ((0, 1),),
        ((-3, 1),),
        ((5, 4),),
        ((1, 2), (3, 4)),
        ((1, 2), (2, 4)),
        ((5, 6), (1, 2)),
        ((1, 1 << 63),),
        ((1, 2), (1 << 70, 1 << 71)),
    ],
)
def test_ranges_that_do_not_rise_apart_are_found(ranges: tuple[Range, ...]) -> None:
    for count_apart in twins("count_apart"):
        assert count_apart(ranges) == -1


@given(st.lists(_RANGES.map(tuple)))
def test_ranges_are_merged_to_what_they_hold_together(several: list[tuple[Range, ...]]) -> None:
    held = {n for ranges in several for first, last in ranges for n in range(first, last + 1)}
    for merged in (*twins("merged"), kernel.merged):
        assert merged(several) == list(ranges_of(sorted(held)))


@pytest.mark.parametrize("length", [1, 62, 63, 64, 65, 127, 128, 129, 200])
@pytest.mark.parametrize("first", [1, 64, 65])
def test_merged_ranges_end_where_they_end_however_they_lie_in_words(
    first: int, length: int
) -> None:
    ranges = [(1, 1), (first + 2, first + length + 1), (first + length + 3, first + 400)]
    assert kernel.merged([tuple(ranges)]) == kernel._merged([tuple(ranges)])


def test_ranges_far_apart_are_merged_as_well() -> None:
    far = [((1, 2), (1 << 62, 1 << 62)), ((3, 3), ((1 << 63) - 2, (1 << 63) - 1))]
    assert kernel.merged(far) == [(1, 3), (1 << 62, 1 << 62), ((1 << 63) - 2, (1 << 63) - 1)]


@given(st.lists(st.integers(0, 63), min_size=1, max_size=40), st.data())
def test_rows_are_split_by_partition_in_the_tables_order(
    partitions: list[int], data: st.DataObject
) -> None:
    index = data.draw(st.lists(st.integers(0, len(partitions) - 1), max_size=60))
    for split in twins("split"):
        found = split(index, partitions)
        assert sorted(row for rows in found.values() for row in rows) == list(range(len(index)))
        for partition, rows in found.items():
            assert rows == [n for n, row in enumerate(index) if partitions[row] == partition]
        assert list(found) == [p for p in dict.fromkeys(partitions) if p in found]


def test_an_index_past_the_table_is_an_error() -> None:
    for split in twins("split"):
        with pytest.raises(IndexError):
            split([0, 2], [5, 6])


@given(
    st.lists(
        st.tuples(st.integers(0, 70_000), _TIMES, st.sampled_from([0, 1, 2, 5]), st.binary()),
        min_size=1,
        max_size=30,
    ),
    _TIMES,
)
def test_columns_are_packed_alike(rows: list[tuple[int, int, int, bytes]], reference: int) -> None:
    index, times, flags, payloads = (list(column) for column in zip(*rows, strict=True))
    first, second = (
        one(b"head", index, times, flags, b"middle", payloads, reference) for one in twins("pack")
    )
    assert first == second


@pytest.mark.parametrize("time", [1 << 62, -(1 << 62), 1 << 63, -(1 << 70), 1 << 80])
def test_a_time_past_what_the_link_carries_is_an_error(time: int) -> None:
    for one in twins("pack"):
        with pytest.raises(ValueError, match="outside what the link carries"):
            one(b"", [0, 0], [0, time], [1, 1], b"", [b"a", b"b"], 0)


def test_wrong_types_and_lengths_are_errors() -> None:
    if not NATIVE:
        return
    for columns in (
        ([0], [1, 2], [1], b"", [b"a"]),
        ([0], [1], [1], b"", []),
        ([-1], [1], [1], b"", [b"a"]),
        (["0"], [1], [1], b"", [b"a"]),
        ([0], [1], [1], b"", ["a"]),
        ([], [], [], b"", []),
    ):
        with pytest.raises((IndexError, TypeError, ValueError)):
            NATIVE.pack(b"", *columns, 0)
    for ranges in ([(1, 2)], ((1,),), (5,), (("1", 2),)):
        with pytest.raises(TypeError):
            NATIVE.count_apart(ranges)
    for several in (((1, 2),), [[(1, 2)]], [(1,)]):
        with pytest.raises(TypeError):
            NATIVE.merged(several)
    with pytest.raises(ValueError, match="ends before"):
        NATIVE.merged([((5, 4),)])


@given(st.data())
def test_what_of_a_partition_is_of_which_origin(data: st.DataObject) -> None:
    origins = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=20))
    sources_of = data.draw(st.lists(st.integers(1, 3), min_size=20, max_size=20))
    first_rows = [sum(origins[:n]) for n in range(len(origins) + 1)]
    first_sources = [sum(sources_of[:n]) for n in range(len(origins) + 1)]
    rows = sorted(data.draw(st.sets(st.integers(0, first_rows[-1] - 1), min_size=1)))
    origin_of = [n for n, count in enumerate(origins) for _ in range(count)]
    with_rows = sorted({origin_of[row] for row in rows})
    used = [first_sources[n] for n in with_rows]  # the first source of each
    expected = [
        (
            n,
            sum(row < first_rows[n] for row in rows),
            sum(row < first_rows[n + 1] for row in rows),
            at,
            at + 1,
        )
        for at, n in enumerate(with_rows)
    ]
    for sections in twins("sections"):
        assert sections(rows, used, first_rows, first_sources) == expected
        assert sections([], [], first_rows, first_sources) == []
        with pytest.raises(IndexError):
            sections([first_rows[-1]], [0], first_rows, first_sources)


_CBOR: st.SearchStrategy[Any] = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(1 << 63), (1 << 64) - 1),
        st.sampled_from([(1 << bits) + n for bits in (5, 8, 16, 32, 63) for n in (-1, 0)]),
        st.binary(max_size=300),
        st.text(max_size=30),
    ),
    lambda some: st.one_of(
        st.lists(some, max_size=30),
        st.lists(some, max_size=4).map(tuple),
        st.dictionaries(st.one_of(st.integers(0, 1 << 40), st.text(max_size=9)), some, max_size=30),
    ),
)


@given(_CBOR)
def test_values_are_written_as_cbor_has_them(value: Any) -> None:
    expected = cbor2.dumps(value)
    assert kernel.cbor(value) == expected
    if NATIVE:
        assert NATIVE.cbor(value) == expected


@pytest.mark.parametrize("value", [1.5, [1 << 64], -(1 << 63) - 1, {1: 2.5}, [bytearray(b"x")]])
def test_what_c_does_not_know_is_left_to_the_library(value: Any) -> None:
    assert kernel.cbor(value) == cbor2.dumps(value)
    if NATIVE:
        with pytest.raises((OverflowError, TypeError)):
            NATIVE.cbor(value)


def test_no_value_makes_cbor_crash() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises((RecursionError, cbor2.CBOREncodeError)):
        kernel.cbor(endless)
    for wrong in ("\ud800", {"\ud800": 1}):
        with pytest.raises((UnicodeEncodeError, cbor2.CBOREncodeError)):
            kernel.cbor(wrong)


def test_columns_that_nobody_looks_into_are_lists_as_ever() -> None:
    for untrack in twins("untrack"):
        numbers, texts = list(range(3000)), [b"a", b"b"]
        untrack(numbers, texts, ())
        untrack(numbers)  # again
        numbers += [7] * 3000
        del texts[:]
        assert gc.is_tracked(numbers) is (untrack is kernel._untrack)
        gc.collect()
        assert (sum(numbers), texts) == (sum(range(3000)) + 21_000, [])
        assert gc.is_tracked(numbers[:2])


@pytest.mark.parametrize("seed", range(10))
def test_what_is_packed_is_unpacked_to_the_same(seed: int) -> None:
    rng = random.Random(seed)
    n = rng.randrange(1, 300)
    sources = [(f"a/d{k}/x", f"d{k}") for k in range(rng.randrange(1, min(n, 70) + 1))]
    columns = Columns(
        sources,
        [k % len(sources) for k in range(n)],
        [rng.randrange(1 << rng.choice([3, 20, 40, 61])) for _ in range(n)],
        [rng.choice([0, 1, 5]) for _ in range(n)],
        [rng.randbytes(rng.randrange(300)) for _ in range(n)],
        [b""] * n,
    )
    found = unpack(pack(columns, 77), n, 77, Limits())
    assert (list(found.sources), found.source_index, found.times, found.flags, found.payloads) == (
        sources, columns.source_index, columns.times, columns.flags, columns.payloads,
    )  # fmt: skip


_WRITTEN = st.lists(
    st.tuples(st.integers(0, 2), st.integers(-(1 << 63), (1 << 63) - 1), st.integers(0, 255),
              st.binary(max_size=300)),
    max_size=30,
)  # fmt: skip


@given(_WRITTEN, st.binary(max_size=20))
def test_what_the_check_is_of_is_written_column_after_column(
    rows: list[tuple[int, int, int, bytes]], middle: bytes
) -> None:
    table = [b"t\0d\0", b"", b"a/longer/topic\0device\0"]
    index, times, flags, payloads = map(list, zip(*rows, strict=True)) if rows else ([],) * 4
    expected = b"".join((
        *(time.to_bytes(8, "little", signed=True) for time in times),
        *(bytes((flag,)) for flag in flags),
        *(len(payload).to_bytes(4, "little") for payload in payloads),
        *(table[row] for row in index),
        middle,
        *payloads,
    ))  # fmt: skip
    size = sum(len(table[row]) for row in index) + sum(map(len, payloads))
    for written in twins("written"):
        for bytes_max in (-1, size, size + 1):
            assert written(table, index, times, flags, middle, payloads, bytes_max) == expected
        if size:
            with pytest.raises(OverflowError) as caught:
                written(table, index, times, flags, middle, payloads, size - 1)
            assert caught.value.args == (size,)


def test_what_is_more_than_32_bits_count_is_not_taken_for_less() -> None:
    rows = 70_000
    columns = [0] * rows, [0] * rows, [0] * rows, b"", [b""] * rows
    for written in twins("written"):
        with pytest.raises(OverflowError) as caught:
            written([bytes(0xFFFF)], *columns, 1 << 25)
        assert caught.value.args == (rows * 0xFFFF,)


@pytest.mark.parametrize(
    ("index", "times", "flags", "payloads", "error"),
    [
        ([1], [0], [0], [b""], IndexError),
        ([0], [0, 0], [0], [b""], IndexError),
        ([0], [0], [], [b""], IndexError),
        ([0], [0], [0], [b"", b""], IndexError),
        ([0], [1 << 63], [0], [b""], ValueError),
        ([0], [0], [256], [b""], ValueError),
        ([0], [0], [-1], [b""], ValueError),
        ([0], [0], [0], ["text"], TypeError),
        (["0"], [0], [0], [b""], TypeError),
    ],
)
def test_what_cannot_be_written_is_the_callers_fault(
    index: list[Any], times: list[int], flags: list[int], payloads: list[Any], error: type
) -> None:
    for written in twins("written"):
        with pytest.raises(error):
            written([b"t\0d\0"], index, times, flags, b"", payloads, -1)
