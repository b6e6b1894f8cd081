"""The governor: columnar while encoding cannot keep up, structured again once little waits."""

from __future__ import annotations

from bridge.mode_governor import BEHIND_S, HOLD_MIN_S, ModeGovernor

COST_S = 100e-6
BATCH = 500
FLOOD = 1_000_000


def encode_for(governor: ModeGovernor, now_s: float, seconds: float, *, idle: bool = True) -> float:
    """Encode batches of a flood for so long, or until the governor has enough."""
    until_s = now_s + seconds
    while now_s < until_s and governor.structured(now_s, FLOOD):
        now_s += BATCH * COST_S
        governor.encoded(now_s, BATCH * COST_S, BATCH, waiting=FLOOD, idle=idle)
    return now_s


def test_structured_at_first_whatever_waits() -> None:
    assert ModeGovernor().structured(0.0, FLOOD)


def test_columnar_when_the_link_is_idle_and_much_waits() -> None:
    governor = ModeGovernor()
    now_s = encode_for(governor, 0.0, 60.0)
    assert now_s < 5.0
    assert not governor.structured(now_s, FLOOD)
    assert governor.holds == 1


def test_structured_for_as_long_as_the_link_is_the_slower() -> None:
    governor = ModeGovernor()
    assert encode_for(governor, 0.0, 60.0, idle=False) >= 60.0
    assert governor.structured(60.0, FLOOD)


def test_structured_when_little_waits_however_idle_the_link_is() -> None:
    governor = ModeGovernor()
    few = int(BEHIND_S / COST_S / 2)
    for n in range(10_000):
        governor.encoded(n * 0.05, 0.05, BATCH, waiting=few, idle=True)
    assert governor.structured(500.0, few)


def test_it_stays_columnar_for_a_while_even_when_nothing_waits_any_more() -> None:
    governor = ModeGovernor()
    now_s = encode_for(governor, 0.0, 60.0)
    assert not governor.structured(now_s + HOLD_MIN_S * 0.9, 0)
    assert governor.structured(now_s + HOLD_MIN_S, 0)


def test_it_stays_columnar_for_as_long_as_much_waits() -> None:
    governor = ModeGovernor()
    now_s = encode_for(governor, 0.0, 60.0)
    assert not governor.structured(now_s + 100 * HOLD_MIN_S, FLOOD)


def test_it_holds_for_longer_when_that_comes_again_soon() -> None:
    governor = ModeGovernor()
    now_s = encode_for(governor, 0.0, 60.0) + HOLD_MIN_S
    assert governor.structured(now_s, 0)
    now_s = encode_for(governor, now_s, 60.0)
    assert governor.holds == 2
    assert not governor.structured(now_s + HOLD_MIN_S, 0)
    assert governor.structured(now_s + 2 * HOLD_MIN_S, 0)
