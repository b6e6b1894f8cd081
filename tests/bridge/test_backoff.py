"""Delays between tries."""

from __future__ import annotations

import random

from bridge.backoff import DecorrelatedJitter


def test_delays_are_jittered_within_floor_and_ceiling() -> None:
    jitter = DecorrelatedJitter(0.5, 60.0, random.Random(7))
    drawn = [jitter.next_s() for _ in range(1000)]
    assert min(drawn) >= 0.5
    assert max(drawn) <= 60.0
    assert len(set(drawn)) > 100
    jitter.reset()
    assert jitter.next_s() <= 1.5
