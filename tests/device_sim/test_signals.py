"""Signals: seeded, bounded, and of the shape their names say."""

from __future__ import annotations

from statistics import fmean, pstdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_sim.signals import (
    DAY_S,
    Channel,
    Fault,
    Load,
    child,
    day,
    fault,
    gauss,
    number,
    unit,
    wander,
)

seeds = st.integers(0, 2**64 - 1)


@given(seeds, st.integers(-(2**40), 2**40))
def test_unit_stays_in_its_interval(seed: int, index: int) -> None:
    assert 0.0 <= unit(seed, index) < 1.0
    assert -3.5 < gauss(seed, index) < 3.5


def test_unit_is_evenly_spread_and_gauss_normal_enough() -> None:
    units = [unit(7, index) for index in range(20_000)]
    assert fmean(units) == pytest.approx(0.5, abs=0.01)
    assert pstdev(units) == pytest.approx(12**-0.5, abs=0.005)
    normals = [gauss(7, index) for index in range(20_000)]
    assert fmean(normals) == pytest.approx(0, abs=0.03)
    assert pstdev(normals) == pytest.approx(1, abs=0.03)


def test_children_of_a_seed_are_independent() -> None:
    first = [unit(child(1, 1), index) for index in range(5000)]
    second = [unit(child(1, 2), index) for index in range(5000)]
    products = [(a - 0.5) * (b - 0.5) for a, b in zip(first, second, strict=True)]
    assert fmean(products) == pytest.approx(0, abs=0.005)


@given(seeds, st.floats(0, 2e9), st.floats(1, 1e6))
def test_wander_is_bounded_and_smooth(seed: int, time_s: float, step_s: float) -> None:
    here = wander(seed, time_s, step_s)
    assert -1.0 <= here <= 1.0
    assert abs(wander(seed, time_s + step_s / 1000, step_s) - here) < 0.02


def test_day_peaks_at_its_hour() -> None:
    assert day(15 * 3600.0, 15.0) == pytest.approx(1)
    assert day(3 * 3600.0, 15.0) == pytest.approx(-1)
    assert day(15 * 3600.0 + 100 * DAY_S, 15.0) == pytest.approx(1)


def test_faults_are_rare_and_of_every_kind() -> None:
    kinds = [fault(3, window * 600.0)[0] for window in range(20_000)]
    assert 0.01 < sum(kind is not Fault.NONE for kind in kinds) / len(kinds) < 0.03
    assert set(kinds) == set(Fault)


def _window_of(seed: int, kind: Fault) -> float:
    """Return when a window with this fault begins."""
    return next(w * 600.0 for w in range(100_000) if fault(seed, w * 600.0)[0] is kind)


def test_a_stuck_sensor_repeats_itself() -> None:
    channel = Channel(11, 20, daily=5, swing=3, noise=0.5)
    since_s = _window_of(11, Fault.STUCK)
    values = {channel.read(since_s + second, second) for second in range(0, 600, 7)}
    assert len(values) == 1


def test_a_silent_sensor_reads_nothing() -> None:
    since_s = _window_of(11, Fault.SILENT_SENSOR)
    assert Channel(11, 20).read(since_s + 5, 1) is None


def test_spikes_leave_most_values_alone() -> None:
    channel = Channel(11, 20, noise=0.1)
    since_s = _window_of(11, Fault.SPIKES)
    values = [channel.read(since_s + second, second) for second in range(600)]
    far = sum(value is not None and value > 50 for value in values)
    assert 0.1 < far / len(values) < 0.3


@given(seeds, st.floats(0, 1e9), st.floats(0, 1e7))
def test_energy_never_falls(seed: int, time_s: float, step_s: float) -> None:
    load = Load(seed, 100, 1000)
    since_s = time_s - 1e6
    before = load.energy_kwh(time_s, since_s)
    assert load.energy_kwh(time_s + step_s, since_s) >= before - 1e-6
    assert load.power_w(time_s, 3) >= 0


@pytest.mark.parametrize(
    ("value", "digits", "text"),
    [(21.0, 2, "21"), (21.50, 2, "21.5"), (-0.001, 1, "0"), (100.0, 0, "100"), (0.126, 2, "0.13")],
)
def test_numbers_look_like_javascripts(value: float, digits: int, text: str) -> None:
    assert number(value, digits) == text
