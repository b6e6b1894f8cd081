"""Interval sets behave as sets of integers do."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.intervals import IntervalSet, ranges_of

SMALL = st.integers(-5, 60)
PAIRS = st.tuples(SMALL, st.integers(0, 12)).map(lambda p: (p[0], p[0] + p[1]))
STEPS = st.lists(st.tuples(st.booleans(), PAIRS), max_size=30)


def members(intervals: IntervalSet) -> set[int]:
    return {n for first, last in intervals for n in range(first, last + 1)}


def built(steps: list[tuple[bool, tuple[int, int]]]) -> tuple[IntervalSet, set[int]]:
    intervals, model = IntervalSet(), set[int]()
    for adding, (first, last) in steps:
        numbers = range(first, last + 1)
        if adding:
            intervals.add(first, last)
            model.update(numbers)
        else:
            intervals.discard(first, last)
            model.difference_update(numbers)
    return intervals, model


@given(STEPS, PAIRS)
def test_as_a_set(steps: list[tuple[bool, tuple[int, int]]], pair: tuple[int, int]) -> None:
    intervals, model = built(steps)
    first, last = pair
    asked = set(range(first, last + 1))
    assert members(intervals) == model
    assert intervals.count() == len(model)
    assert intervals.last == max(model, default=None)
    assert bool(intervals) == bool(model)
    assert all((n in intervals) == (n in model) for n in range(-8, 80))
    assert intervals.covers(first, last) == (asked <= model)
    assert intervals.overlaps(first, last) == bool(asked & model)
    gaps = intervals.missing(first, last)
    assert {n for a, b in gaps for n in range(a, b + 1)} == asked - model
    assert IntervalSet(gaps).ranges() == gaps


@given(STEPS)
def test_ranges_rise_and_never_touch(steps: list[tuple[bool, tuple[int, int]]]) -> None:
    intervals, model = built(steps)
    ranges = intervals.ranges()
    assert all(first <= last for first, last in ranges)
    assert all(b[0] > a[1] + 1 for a, b in pairwise(ranges))
    assert tuple(ranges) == ranges_of(sorted(model))
    assert IntervalSet(ranges) == intervals


@given(STEPS, PAIRS)
def test_a_copy_stands_alone(
    steps: list[tuple[bool, tuple[int, int]]], pair: tuple[int, int]
) -> None:
    intervals, model = built(steps)
    twin = intervals.copy()
    twin.update([pair])
    assert members(intervals) == model
    assert members(twin) == model | set(range(pair[0], pair[1] + 1))


def test_a_range_that_ends_before_it_begins_is_the_callers_fault() -> None:
    with pytest.raises(ValueError, match="ends before"):
        IntervalSet().add(3, 2)


def test_ranges_of_a_range_object() -> None:
    assert ranges_of(range(7, 10_000_007)) == ((7, 10_000_006),)
    assert ranges_of([]) == ()
    assert ranges_of([1, 2, 4, 5, 6, 9]) == ((1, 2), (4, 6), (9, 9))


def test_appending_at_the_end_stays_one_range() -> None:
    intervals = IntervalSet()
    for first in range(1, 100_001, 500):
        intervals.add(first, first + 499)
    assert intervals.ranges() == [(1, 100_000)]
