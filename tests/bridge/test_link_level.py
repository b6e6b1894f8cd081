"""The level follows the link's speed and what encoding costs."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from bridge.batch import Decoder, Encoder
from bridge.envelope import LinkLane
from bridge.link_level import LEVELS, LevelGovernor
from tests.kit.readings import one_per_row

COST = {1: 1.0, 6: 2.5, 9: 3.1}  # as measured, relative
SIZE = {1: 1.0, 6: 0.92, 9: 0.875}


def run(
    governor: LevelGovernor,
    batches: int,
    rate_bytes_s: float | None,
    *,
    encode_us: Callable[[int], float] = lambda _batch: 500.0,
    full: Callable[[int], bool] = lambda _batch: False,
) -> list[int]:
    """Send batches of about 10 kB that take so long at level 1; return the levels used."""
    levels = []
    for batch in range(batches):
        level = governor.level
        levels.append(level)
        took_s = encode_us(batch) * COST[level] / 1e6
        size = int(10_000 * SIZE[level])
        governor.encoded(took_s, size, rate_bytes_s, full=full(batch))
    return levels


def test_on_a_slow_link_it_rises_step_by_step_and_stays() -> None:
    levels = run(LevelGovernor(0), 100, 8000.0)
    assert levels[:8] == [1] * 8
    assert levels == sorted(levels)
    assert levels[30:] == [9] * 70


@pytest.mark.parametrize("rate", [20e6, None])
def test_on_a_fast_link_and_on_one_not_known_it_is_the_lowest(rate: float | None) -> None:
    assert set(run(LevelGovernor(0), 100, rate)) == {1}


def test_while_the_window_is_full_fewer_bytes_may_cost_more() -> None:
    rate = 1_250_000.0
    assert set(run(LevelGovernor(0), 100, rate)) == {1}
    assert run(LevelGovernor(0), 100, rate, full=lambda _batch: True)[-1] == 6
    assert run(LevelGovernor(0), 100, rate / 2, full=lambda batch: batch % 4 != 0)[-1] == 9


def test_not_where_encoding_would_be_what_a_drain_waits_for() -> None:
    assert set(run(LevelGovernor(0), 100, 12_500_000.0, full=lambda _batch: True)) == {1}


def test_once_the_window_is_full_no_more_it_falls() -> None:
    governor = LevelGovernor(0)
    run(governor, 100, 1_250_000.0, full=lambda _batch: True)
    assert run(governor, 20, 1_250_000.0)[-1] == 1


def test_when_the_link_gets_fast_it_falls() -> None:
    governor = LevelGovernor(0)
    run(governor, 100, 8000.0)
    assert run(governor, 40, 20e6)[-1] == 1


def test_when_the_machine_gets_busy_it_falls_and_comes_back() -> None:
    governor = LevelGovernor(0)
    run(governor, 100, 50_000.0)
    busy = run(governor, 100, 50_000.0, encode_us=lambda _batch: 60_000)
    assert busy[-1] == 1
    assert run(governor, 100, 50_000.0)[-1] == 9


def test_the_loop_is_not_held_for_fewer_bytes_even_on_the_slowest_link() -> None:
    levels = run(LevelGovernor(0), 200, 1000.0, encode_us=lambda _batch: 2500)
    assert set(levels) == {1}


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("rate", [8000.0, 30_000.0, 100_000.0, 300_000.0, 1e6, 3e6])
def test_it_settles(rate: float, full: bool) -> None:
    levels = run(LevelGovernor(0), 500, rate, full=lambda _batch: full)[100:]
    changes = sum(a != b for a, b in itertools.pairwise(levels))
    assert changes == 0


def test_a_level_that_is_configured_stays() -> None:
    governor = LevelGovernor(7)
    for _ in range(50):
        governor.encoded(0.0, 10_000, 1000.0)
    assert governor.level == 7


def test_one_connection_may_change_its_level_at_any_batch() -> None:
    encoder, decoder = Encoder("gw", 1), Decoder("gw")
    sizes = []
    for place, level in enumerate([*LEVELS, *reversed(LEVELS)]):
        readings = one_per_row(200, first_seq=1 + 200 * place)
        encoder.level = level
        payload = encoder.encode(readings, lane=LinkLane.LIVE)
        sizes.append(len(payload))
        assert decoder.decode(payload).readings.payloads == readings.payloads
    assert min(sizes[1:3]) < sizes[0]
