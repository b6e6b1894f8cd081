"""Forecasts, held to a link that is simulated second by second."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bridge.forecast import Allowance, Drain, Traffic, drain, full_s, what_if

SHARE = 0.3
CASES = [
    # readings/s, bytes a reading, link bytes/s
    (10.0, 10.0, 8000.0),
    (300.0, 10.0, 8000.0),
    (500.0, 10.0, 8000.0),
    (790.0, 10.0, 8000.0),
]


def simulated_s(readings: float, rate: float, size: float, link: float) -> float:
    """Drain second by second: live first up to its share, what it does not use is lent."""
    backlog, waiting, seconds = readings * size, 0.0, 0
    while backlog > 0:
        waiting += rate * size
        live = min(waiting, link * (1 - SHARE))
        waiting -= live
        backlog -= link - live
        seconds += 1
    return float(seconds)


@pytest.mark.parametrize(("rate", "size", "link"), CASES)
def test_a_drain_takes_as_long_as_it_does_on_a_simulated_link(
    rate: float, size: float, link: float
) -> None:
    found = drain(1_000_000, Traffic(rate, 200, size), link, backlog_share=SHARE)
    assert found.bytes == 10_000_000
    assert found.seconds == pytest.approx(simulated_s(1_000_000, rate, size, link), rel=0.01)
    assert found.live_waits == (rate * size > link * 0.7)


def test_where_live_alone_is_more_than_the_link_it_never_drains() -> None:
    found = drain(1000, Traffic(1000, 200, 10), 8000, backlog_share=SHARE)
    assert found == Drain(10_000, None, live_waits=True)


DAY_S = 86_400.0
BUDGETS = [
    # bytes that wait, live bytes/s, bytes a day, of which left, seconds until midnight
    (100_000, 5.0, 1_000_000, 900_000, 3600.0),  # goes at once
    (1_000_000, 5.0, 1_000_000, 300_000, 3600.0),
    (4_000_000, 5.0, 1_000_000, 300_000, 40_000.0),
    (1_200_000, 11.0, 1_000_000, -5.0, 40_000.0),  # hardly more than live takes
    (100_000, 11.5, 1_000_000, 1_000_000, 100.0),
    (2_000_000, 100.0, 1_000_000_000, 1_000_000_000, 60.0),  # midnight comes while it drains
]


def simulated_budget_s(size: float, live: float, day: float, left: float, until: float) -> float:
    """Spend each day's budget as fast as the link carries; then wait for the next."""
    now, step = 0.0, 1.0
    while size > 0:
        sent = min(8000.0 * step, max(0.0, left))
        size += live * step - sent
        left, now = left - sent, now + step
        if now >= until:
            left, until = day, until + DAY_S
    return now


@pytest.mark.parametrize(("size", "live", "day", "left", "until"), BUDGETS)
def test_a_budget_is_spent_at_the_links_speed_and_then_all_waits_for_midnight(
    size: float, live: float, day: float, left: float, until: float
) -> None:
    allowance = Allowance(day, left, until, DAY_S)
    found = drain(size / 10, Traffic(live / 10, 200, 10), 8000, backlog_share=SHARE,
                  allowances=[allowance])  # fmt: skip
    assert found.seconds == pytest.approx(simulated_budget_s(size, live, day, left, until), abs=5)
    assert found.live_waits == (size + live * until > left)


def test_a_budget_that_live_readings_use_up_never_drains() -> None:
    allowance = Allowance(1_000_000, 50_000, 3600, DAY_S)
    found = drain(200_000, Traffic(1.2, 200, 10), 8000, backlog_share=SHARE, allowances=[allowance])
    assert found == Drain(2_000_000, None, live_waits=True)
    enough = replace(allowance, left_bytes=2_100_000)
    found = drain(200_000, Traffic(1.2, 200, 10), 8000, backlog_share=SHARE, allowances=[enough])
    assert found.seconds == pytest.approx(2_000_000 / 7988), "though live waits for it later"


def test_a_backlog_takes_fewer_bytes_a_reading_than_live_ones() -> None:
    found = drain(10_000, Traffic(5, 200, 200, 5), 8000, backlog_share=SHARE)
    assert found.bytes == 50_000
    assert found.seconds == pytest.approx(50_000 / 7000)
    crowded = drain(10_000, Traffic(100, 200, 200, 5), 8000, backlog_share=SHARE)
    assert crowded.seconds == pytest.approx(50_000 / 2400), "live ones share batches then"
    assert not crowded.live_waits


def test_nothing_to_drain_takes_no_time_even_without_a_link() -> None:
    assert drain(0, Traffic(5, 200, 10), 0.0, backlog_share=SHARE) == Drain(0, 0.0)
    assert drain(5, Traffic(0, 200, 10), 0.0, backlog_share=SHARE).seconds is None


def test_the_journal_is_full_when_its_room_is_taken() -> None:
    assert full_s(Traffic(10, 200, 5), 1_000_000) == 500
    assert full_s(Traffic(0, 200, 5), 1_000_000) is None


def test_an_outage_that_fits_and_one_that_does_not() -> None:
    traffic = Traffic(100, 200, 10)
    short = what_if(3600, traffic, 8000, room_bytes=1e9, backlog_share=SHARE, waiting=500)
    assert (short.readings, short.journal_bytes) == (360_500, 72_000_000)
    assert (short.full_s, short.lost_or_refused) == (None, 0)
    long = what_if(100_000, traffic, 8000, room_bytes=1e9, backlog_share=SHARE)
    assert long.full_s == 50_000
    assert long.lost_or_refused == 5_000_000
    assert long.readings == 5_000_000, "what is refused need not drain"
