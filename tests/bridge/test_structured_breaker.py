"""When structured batches make way for mode 0, and when they are tried again."""

from __future__ import annotations

from bridge.structured_breaker import PAUSE_MAX_S, PAUSE_MIN_S, StructuredBreaker


def opened(now_s: float) -> StructuredBreaker:
    breaker = StructuredBreaker()
    for _ in range(3):
        assert not breaker.is_open
        breaker.failed(now_s)
    return breaker


def test_three_failures_in_a_row_open_it_until_a_pause_is_over() -> None:
    breaker = opened(100.0)
    assert breaker.is_open
    breaker.columnar_taken(100.0 + PAUSE_MIN_S - 0.1)
    assert breaker.is_open
    breaker.columnar_taken(100.0 + PAUSE_MIN_S)
    assert not breaker.is_open


def test_one_that_was_taken_makes_the_count_begin_again() -> None:
    breaker = StructuredBreaker()
    for _ in range(10):
        breaker.failed(0.0)
        breaker.failed(0.0)
        breaker.reset()
    assert not breaker.is_open


def test_each_trial_that_fails_doubles_the_pause_up_to_a_limit() -> None:
    breaker = opened(0.0)
    now_s, pauses = 0.0, []
    for _ in range(10):
        began_s = now_s
        while breaker.is_open:
            now_s += 1.0
            breaker.columnar_taken(now_s)
        pauses.append(now_s - began_s)
        breaker.failed(now_s)
        assert breaker.is_open, "one more is enough"
    assert pauses[:4] == [PAUSE_MIN_S, 2 * PAUSE_MIN_S, 4 * PAUSE_MIN_S, 8 * PAUSE_MIN_S]
    assert pauses[-1] == PAUSE_MAX_S


def test_a_mode_the_cloud_does_not_know_is_not_tried_again_on_this_connection() -> None:
    breaker = StructuredBreaker()
    breaker.unsupported()
    breaker.columnar_taken(1e9)
    assert breaker.is_open
    breaker.reset()
    assert not breaker.is_open
