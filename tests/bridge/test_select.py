"""Parts of readings keep every column in step."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from bridge.intervals import IntervalSet
from bridge.partition import partition_of
from bridge.readings import Readings
from bridge.select import growing, joined, rows_of, split_by_partition, without
from tests.kit.readings import many_readings, one_per_row, rows, same_readings


@given(many_readings())
def test_a_split_holds_each_reading_once_in_order_in_its_devices_partition(
    readings: Readings,
) -> None:
    parts = split_by_partition(readings)
    for partition, part in parts.items():
        assert {partition_of(part.sources[i][1]) for i in part.source_index} == {partition}
        assert list(part.seqs) == sorted(part.seqs)
    assert sorted(row for part in parts.values() for row in rows(part)) == sorted(rows(readings))


@given(many_readings(), st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50))))
def test_without_leaves_what_is_not_held(readings: Readings, pairs: list[tuple[int, int]]) -> None:
    held = IntervalSet((min(pair), max(pair)) for pair in pairs)
    left = without(readings, held)
    expected = [row for row in rows(readings) if row[0] not in held]
    assert (rows(left) if left is not None else []) == expected


def test_without_nothing_held_is_the_same_object() -> None:
    readings = one_per_row(10, first_seq=100)
    assert without(readings, IntervalSet([(1, 99), (110, 200)])) is readings


def test_rows_of_one_and_of_many() -> None:
    readings = one_per_row(10)
    assert rows(rows_of(readings, [3])) == [rows(readings)[3]]
    assert rows(rows_of(readings, [0, 3, 9])) == [rows(readings)[i] for i in (0, 3, 9)]


def test_rows_of_readings_without_property_column() -> None:
    readings = one_per_row(4)
    readings.properties = []
    same_readings(rows_of(readings, [1, 2]), rows_of(one_per_row(4), [1, 2]))
    same_readings(rows_of(readings, [1]), rows_of(one_per_row(4), [1]))


@given(many_readings(), st.lists(st.integers(1, 50), max_size=4))
def test_what_was_cut_apart_is_joined_to_the_same(readings: Readings, cuts: list[int]) -> None:
    ends = sorted({cut for cut in cuts if cut < len(readings)} | {len(readings)})
    pieces = [rows_of(readings, range(start, end))
              for start, end in pairwise([0, *ends]) if start < end]  # fmt: skip
    if not pieces:
        return
    whole = joined(pieces)
    same_readings(whole, readings)
    assert len(set(whole.sources)) == len(whole.sources)


@given(st.lists(many_readings(), min_size=1, max_size=6), st.integers(1, 30))
def test_readings_grow_by_a_step_and_not_much_more(several: list[Readings], step: int) -> None:
    sizes = []
    for whole in growing(several, step):
        sizes.append(len(whole))
    grown = [b - a for a, b in pairwise([0, *sizes])]
    assert sum(grown) == len(whole) == sum(map(len, several))
    if len(several) > 1:
        assert all(step <= one < step + max(map(len, several)) for one in grown[:-1])
    found = [rows(one) for one in several]
    assert rows(whole) == [row for one in found for row in one]


def test_joined_seqs_without_gaps_are_a_range() -> None:
    assert joined([one_per_row(3), one_per_row(4, first_seq=4)]).seqs == range(1, 8)
    assert joined([one_per_row(3), one_per_row(1, first_seq=5)]).seqs == [1, 2, 3, 5]
