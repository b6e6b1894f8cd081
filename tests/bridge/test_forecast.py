"""Forecasts, held to a link that is simulated second by second."""

from __future__ import annotations

import pytest

from bridge.forecast import Drain, Traffic, drain, full_s, what_if

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


def test_a_budget_is_a_slower_link() -> None:
    traffic = Traffic(0, 200, 10)
    found = drain(86_400, traffic, 1e9, backlog_share=SHARE, day_bytes=86_400 * 5)
    assert found.seconds == pytest.approx(2 * 86_400)


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
