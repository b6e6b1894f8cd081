"""What follows from a link's speed: the window, and the size of a batch."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable

import pytest

from bridge.link_speed import LinkSpeed, Mark

MOST = 1 << 20


def measured(
    rate_bytes_s: float, *, round_trip_s: float = 0.05, seconds: float = 30, size: int = 2000
) -> LinkSpeed:
    """Return the speed of a link that was kept full with batches of one size."""
    speed = LinkSpeed(MOST)
    speed.reset()
    carry(speed, rate_bytes_s, round_trip_s, 0.0, seconds, size)
    return speed


def carry(
    speed: LinkSpeed, rate: float, round_trip_s: float, now_s: float, until_s: float, size: int
) -> None:
    """Keep the window full."""
    in_flight: deque[tuple[float, Mark]] = deque()
    free_s = now_s
    while now_s < until_s:
        while not in_flight or len(in_flight) * size < speed.window_bytes:
            free_s = max(now_s, free_s) + size / rate
            in_flight.append((free_s + round_trip_s, speed.sent(now_s, alone=not in_flight)))
        now_s, mark = in_flight.popleft()
        speed.acknowledged(size, mark, now_s, short=False)


def test_before_anything_is_known_batches_are_as_configured_and_the_window_is_small() -> None:
    speed = LinkSpeed(MOST)
    assert speed.batch_readings(500) == 500
    assert speed.window_bytes == 16 * 1024


def test_before_anything_is_known_a_batch_that_does_not_compress_is_small_too() -> None:
    speed = LinkSpeed(MOST)
    assert speed.batch_bytes(256 * 1024) == 256, "its answer is to tell the round trip"
    speed.acknowledged(200, speed.sent(0.0, alone=True), 0.1, short=False)
    assert speed.batch_bytes(256 * 1024) == 16 * 1024
    assert speed.batch_bytes(1000) == 1000
    assert measured(20_000).batch_bytes(256 * 1024) == 256 * 1024, "readings are fewer then"
    speed = measured(20_000)
    speed.reset()
    assert speed.batch_bytes(256 * 1024) == 256, "another connection may be another link"


def test_a_slow_link_does_not_wait_long_for_a_batch_that_does_not_compress_any_more() -> None:
    assert measured(1000, seconds=300).batch_bytes(256 * 1024) == pytest.approx(16_000, rel=0.1)
    assert measured(100, seconds=600, size=50).batch_bytes(256 * 1024) == 4096


@pytest.mark.parametrize(("shown", "window"), [(10.0, 1024), (3000.0, 6000), (1e6, 16 * 1024)])
def test_a_slow_dial_makes_the_first_window_small(shown: float, window: int) -> None:
    speed = LinkSpeed(MOST)
    speed.reset(shown)
    assert speed.window_bytes == window
    assert speed.window_batches == 1 + window // 256
    speed.acknowledged(200, speed.sent(0.0, alone=True), 0.1, short=True)
    assert speed.window_batches > 1000, "it has answered"


@pytest.mark.parametrize("rate", [20_000, 100_000, 900_000])
def test_the_window_is_a_quarter_of_a_second_of_the_link(rate: int) -> None:
    speed = measured(rate, size=500)
    assert speed.rate_bytes_s == pytest.approx(rate, rel=0.1)
    assert speed.window_bytes == pytest.approx(rate / 4, rel=0.1)


def test_the_window_covers_two_round_trips_and_of_a_very_long_way_little_more_than_one() -> None:
    assert measured(50_000, round_trip_s=0.5).window_bytes == pytest.approx(50_000, rel=0.1)
    speed = measured(50_000, round_trip_s=2.0)
    speed.acknowledged(2000, speed.sent(40.0, alone=False), 44.0, short=True)  # it had to wait
    assert speed.window_bytes == pytest.approx(50_000 * 3.1, rel=0.1)


def test_a_long_way_is_filled_by_four_round_trips_until_an_answer_is_late() -> None:
    speed = LinkSpeed(MOST)
    speed.acknowledged(1000, speed.sent(0.0, alone=True), 2.0, short=True)
    assert speed.window_bytes == 4 * 1000
    speed.acknowledged(4000, speed.sent(2.0, alone=True), 4.0, short=True)
    assert speed.window_bytes == 4 * 4000
    speed.acknowledged(16_000, speed.sent(4.0, alone=True), 8.0, short=True)
    assert speed.window_bytes == int(4000 * 3.1)


def test_answers_that_come_together_do_not_make_the_link_faster() -> None:
    speed = measured(10_000, size=500)
    marks = [speed.sent(40.0 + n * 0.05, alone=not n) for n in range(20)]
    speed.acknowledged(500, marks[0], 41.5, short=False)
    behind = speed.sent(41.5, alone=False)
    for mark in marks[1:]:  # sent in a second, answered in a moment
        speed.acknowledged(500, mark, 41.5, short=False)
    speed.acknowledged(500, behind, 41.6, short=False)
    assert speed.rate_bytes_s is not None
    assert speed.rate_bytes_s <= 10_000 * 1.1


def test_a_batch_is_a_fifth_of_a_second_of_a_slow_link() -> None:
    speed = measured(16_000)
    for _ in range(50):
        speed.encoded(4000, 400)
    assert speed.batch_readings(500) == pytest.approx(320, rel=0.1)


def test_a_batch_is_never_larger_than_configured_and_on_the_slowest_link_one_reading() -> None:
    slow, fast = measured(100, seconds=600, size=50), measured(10_000_000)
    assert slow.batch_readings(500) == 7, "what it moves in a second and a half"
    slow.encoded(20_000, 1)
    assert slow.batch_readings(500) == 1
    assert slow.window_bytes == pytest.approx(200, rel=0.1)
    assert fast.batch_readings(500) == 500
    assert fast.batch_readings(5) == 5


def test_a_link_that_was_short_of_readings_is_not_taken_for_a_slow_one() -> None:
    speed = measured(100_000)
    for n in range(20):
        speed.acknowledged(200, speed.sent(100.0 + n, alone=True), 100.1 + n, short=True)
    assert speed.rate_bytes_s == pytest.approx(100_000, rel=0.1)


def test_a_link_that_gets_slower_is_found_out() -> None:
    speed = measured(100_000)
    carry(speed, 2000, 0.05, 100.0, 160.0, 2000)
    assert speed.rate_bytes_s == pytest.approx(2000, rel=0.2)


def test_what_the_link_may_be_used_for_is_its_speed_however_fast_it_is() -> None:
    speed = LinkSpeed(MOST, 10_000)
    assert speed.batch_readings(500) == 100, "before anything was seen"
    for _ in range(3):
        speed.acknowledged(200_000, speed.sent(0.0, alone=False), 0.1, short=False)
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
    in_flight: deque[tuple[float, Mark, int]] = deque()
    while now_s < seconds:
        waiting = sum(size for *_, size in in_flight)
        alone = not in_flight or speed.wants_alone(now_s)
        if not in_flight or (not alone and waiting < speed.window_bytes and len(in_flight) < 64):
            size = 13 * speed.batch_readings(500)
            free_s = max(now_s, free_s) + size / link_bytes_s
            last_s = max(last_s, free_s + 0.06 + (0.01 if first else answer_s()))
            in_flight.append((last_s, speed.sent(now_s, alone=not in_flight), size))
            first = False
            speed.encoded(size, size // 13)
            continue
        now_s, mark, size = in_flight.popleft()
        full = waiting >= speed.window_bytes
        if full:
            speed.full(idle=free_s <= now_s)
        sent += size
        speed.acknowledged(size, mark, now_s, short=not in_flight and not full)
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
    speed.acknowledged(20, speed.sent(0.0, alone=True), 0.1, short=True)
    assert speed.rate_bytes_s == 200
    assert not speed.filled
    speed.full(idle=False)
    assert speed.filled
    speed.reset()
    assert not speed.filled
