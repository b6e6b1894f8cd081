"""The row before a node: each gateway dials twice at most, and they come one after the other."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.endpoint_rotation import RETRY_AFTER_SPREAD
from cloud.admission import BURST_S, KEPT_S, WAIT_MAX_S, Admission


def come_back(row: Admission, gateways: int, *, seed: int = 1) -> tuple[list[float], list[int]]:
    """Let a fleet dial at once, each again when it was told; return when they got in, and dials."""
    rng = random.Random(seed)
    arrivals = [(rng.uniform(0, 0.1), n, 1) for n in range(gateways)]
    inside, dials = [], []
    while arrivals:
        arrivals.sort()
        now_s, name, dialled = arrivals.pop(0)
        wait_s = row.wait_s(f"gw-{name}", now_s)
        if wait_s:
            again_s = now_s + rng.uniform(wait_s, wait_s * RETRY_AFTER_SPREAD)
            arrivals.append((again_s, name, dialled + 1))
        else:
            inside.append(now_s)
            dials.append(dialled)
    return inside, dials


def test_of_a_fleet_each_dials_twice_at_most_and_they_come_evenly() -> None:
    inside, dials = come_back(Admission(100), 2000)
    assert max(dials) == 2
    assert max(inside) < 2000 / 100 * RETRY_AFTER_SPREAD
    for begin_s in range(1, 19):
        count = sum(begin_s <= when_s < begin_s + 1 for when_s in inside)
        assert 60 <= count <= 115


def test_few_gateways_are_let_in_at_once() -> None:
    row = Admission(100)
    assert [row.wait_s(f"gw-{n}", 5.0) for n in range(100)] == [0.0] * 100
    row.wait_s("on the edge", 5.0)
    assert row.wait_s("one more", 5.0) == pytest.approx(0.01)
    assert 1 <= row.waiting(5.0) <= 2


def test_who_comes_too_early_is_told_what_is_left_and_keeps_its_place() -> None:
    row = Admission(1)
    row.wait_s("first", 0.0)
    row.wait_s("second", 0.0)
    assert row.wait_s("early", 0.0) == 1.0
    assert row.wait_s("early", 0.4) == 0.6
    assert row.wait_s("late", 0.4) == 1.6, "the place of the one before it is still its own"
    assert row.wait_s("early", 1.0) == 0.0


def test_a_place_nobody_comes_for_is_given_up() -> None:
    row = Admission(1)
    for name in ("a", "b", "gone"):
        row.wait_s(name, 0.0)
    assert row.waiting(KEPT_S) == 1
    assert row.waiting(KEPT_S + 2) == 0


def test_without_a_rate_everybody_comes_in() -> None:
    row = Admission(0)
    assert not any(row.wait_s(f"gw-{n}", 0.0) for n in range(5000))
    assert row.waiting(0.0) == 0


@given(st.lists(st.tuples(st.integers(0, 300), st.floats(0, 0.5)), max_size=400))
def test_whoever_comes_memory_is_bounded_and_no_more_come_in_than_are_let(
    comings: list[tuple[int, float]],
) -> None:
    rate, now_s, inside = 5.0, 0.0, 0
    row = Admission(rate)
    for name, after_s in comings:
        now_s += after_s
        wait_s = row.wait_s(str(name), now_s)
        assert 0 <= wait_s <= WAIT_MAX_S + 1
        inside += not wait_s
        assert row.waiting(now_s) <= rate * (WAIT_MAX_S + KEPT_S) + 2
    # places that were kept may be taken up at once
    assert inside <= rate * (now_s + BURST_S + KEPT_S) + 1
