"""What follows from a link's speed: the window, and the size of a batch."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from bridge.link_speed import LinkSpeed

MOST = 1 << 20


def measured(rate_bytes_s: float, *, round_trip_s: float = 0.05, seconds: float = 30) -> LinkSpeed:
    """Return the speed of a link that was kept full."""
    speed = LinkSpeed(MOST)
    speed.began(0.0)
    now_s = round_trip_s
    while now_s < seconds:
        speed.acknowledged(2000, now_s - round_trip_s, now_s, idle=False)
        now_s += 2000 / rate_bytes_s
    return speed


def test_before_anything_is_known_batches_are_as_configured_and_the_window_is_small() -> None:
    speed = LinkSpeed(MOST)
    assert speed.batch_readings(500) == 500
    assert speed.window_bytes == 16 * 1024


def test_before_anything_is_known_a_batch_that_does_not_compress_is_small_too() -> None:
    speed = LinkSpeed(MOST)
    assert speed.batch_bytes(256 * 1024) == 16 * 1024
    assert speed.batch_bytes(1000) == 1000
    assert measured(8_000).batch_bytes(256 * 1024) == 256 * 1024, "readings are fewer then"
    speed = measured(8_000)
    speed.reset()
    assert speed.batch_bytes(256 * 1024) == 16 * 1024, "another connection may be another link"


@pytest.mark.parametrize("rate", [20_000, 100_000, 900_000])
def test_the_window_is_a_quarter_of_a_second_of_the_link(rate: int) -> None:
    speed = measured(rate)
    assert speed.rate_bytes_s == pytest.approx(rate, rel=0.1)
    assert speed.window_bytes == pytest.approx(rate / 4, rel=0.1)


def test_the_window_covers_two_round_trips_of_a_long_way() -> None:
    assert measured(50_000, round_trip_s=2.0).window_bytes == pytest.approx(200_000, rel=0.1)


def test_a_batch_is_a_fifth_of_a_second_of_a_slow_link() -> None:
    speed = measured(16_000)
    for _ in range(50):
        speed.encoded(4000, 400)
    assert speed.batch_readings(500) == pytest.approx(320, rel=0.1)


def test_a_batch_never_gets_too_small_to_compress_nor_larger_than_configured() -> None:
    slow, fast = measured(100, seconds=600), measured(10_000_000)
    assert slow.batch_readings(500) >= 16
    assert fast.batch_readings(500) == 500
    assert slow.batch_readings(5) == 5


def test_a_link_that_was_short_of_readings_is_not_taken_for_a_slow_one() -> None:
    speed = measured(100_000)
    for n in range(20):
        speed.began(100.0 + n)
        speed.acknowledged(200, 100.0 + n, 100.1 + n, idle=True)
    assert speed.rate_bytes_s == pytest.approx(100_000, rel=0.1)


def test_a_link_that_gets_slower_is_found_out() -> None:
    speed = measured(100_000)
    for n in range(20):
        speed.acknowledged(2000, 100.0 + n, 101.0 + n, idle=False)
    assert speed.rate_bytes_s == pytest.approx(2000, rel=0.2)


def test_what_the_link_may_be_used_for_is_its_speed_however_fast_it_is() -> None:
    speed = LinkSpeed(MOST, 10_000)
    assert speed.batch_readings(500) == 100, "before anything was seen"
    speed.began(0.0)
    speed.acknowledged(200_000, 0.0, 0.1, idle=False)
    assert speed.rate_bytes_s == 10_000
    assert speed.window_bytes == 4096
    speed.reset()
    assert speed.rate_bytes_s == 10_000


def test_another_connection_is_another_link() -> None:
    speed = measured(100_000)
    speed.reset()
    assert speed.rate_bytes_s is None


def drained(link_bytes_s: float, answer_s: Callable[[], float], seconds: float = 30.0) -> float:
    """Return the share of a link that is used while the cloud takes its time to answer."""
    speed, now_s, free_s, last_s, sent, first = LinkSpeed(MOST), 0.0, 0.0, 0.0, 0, True
    in_flight: deque[tuple[float, float, int]] = deque()
    while now_s < seconds:
        waiting = sum(size for *_, size in in_flight)
        if not in_flight or (waiting < speed.window_bytes and len(in_flight) < 64):
            size = 13 * speed.batch_readings(500)
            if not in_flight:
                speed.began(now_s)
            free_s = max(now_s, free_s) + size / link_bytes_s
            last_s = max(last_s, free_s + 0.06 + (0.01 if first else answer_s()))
            in_flight.append((last_s, now_s, size))
            first = False
            speed.encoded(size, size // 13)
            continue
        now_s, sent_s, size = in_flight.popleft()
        if waiting >= speed.window_bytes:
            speed.full(idle=free_s <= now_s)
        sent += size
        speed.acknowledged(size, sent_s, now_s, idle=not in_flight)
    return sent / seconds / link_bytes_s


def test_a_cloud_that_becomes_slow_to_answer_does_not_close_the_window() -> None:
    assert drained(1_250_000, lambda: 0.3) > 0.5
    assert drained(125_000, lambda: 0.3) > 0.5


def test_nor_does_one_that_answers_now_soon_now_late() -> None:
    rng = random.Random(1)
    assert drained(125_000, lambda: rng.uniform(0, 0.6)) > 0.3


def test_a_link_that_binds_has_no_larger_window_for_that() -> None:
    speed = measured(100_000)
    for _ in range(20):
        speed.full(idle=True)
    assert speed.window_bytes == pytest.approx(60_000, rel=0.1)
    for _ in range(20):
        speed.full(idle=False)
    assert speed.window_bytes == pytest.approx(25_000, rel=0.1)


def test_what_a_backlogs_readings_take_is_known_from_full_batches_and_estimated_before() -> None:
    speed = LinkSpeed(1 << 20)
    for _ in range(50):
        speed.encoded(18, 1)
    assert speed.reading_bytes == pytest.approx(18, rel=0.01)
    assert speed.backlog_reading_bytes == pytest.approx(6, rel=0.01), "but for the batch's own"
    speed.encoded(2000, 500)
    assert speed.backlog_reading_bytes == 4
    for _ in range(50):
        speed.encoded(18, 1)
    assert speed.backlog_reading_bytes == 4


def test_a_link_is_not_filled_before_an_answer_finds_the_window_full() -> None:
    speed = LinkSpeed(1 << 20)
    speed.began(0.0)
    speed.acknowledged(20, 0.0, 0.1, idle=True)
    assert speed.rate_bytes_s == 200
    assert not speed.filled
    speed.full(idle=False)
    assert speed.filled
    speed.reset()
    assert not speed.filled
