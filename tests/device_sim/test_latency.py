"""Latencies: quantiles within the histogram's precision."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.latency import Latencies


@given(st.lists(st.integers(1, 3_600_000_000), min_size=1, max_size=300))
def test_quantiles_are_those_of_the_values(values: list[int]) -> None:
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    ordered = sorted(values)
    assert latencies.count() == len(values)
    assert latencies.quantile_ms(100) == pytest.approx(ordered[-1] / 1000, rel=0.003, abs=0.002)
    middle = ordered[max(0, -(-len(values) // 2) - 1)]
    assert latencies.quantile_ms(50) == pytest.approx(middle / 1000, rel=0.003, abs=0.002)


def test_nothing_recorded_is_zero() -> None:
    assert Latencies().quantile_ms(99) == 0.0


def test_times_outside_the_range_count_as_its_ends() -> None:
    latencies = Latencies()
    latencies.record(-5)
    latencies.record(10**15)
    assert latencies.count() == 2
    assert latencies.quantile_ms(100) == pytest.approx(86_400_000, rel=0.01)


def test_memory_stays_bounded_whatever_comes() -> None:
    latencies = Latencies()
    for value in range(0, 60_000_000, 1000):
        latencies.record(value)
    assert len(latencies._recent) <= 20_001
