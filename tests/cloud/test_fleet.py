"""Credits of a fleet: nobody is limited without need, and nobody starves when all are."""

from __future__ import annotations

import itertools

import pytest

from cloud.fleet import Draining, FleetPacer, Pressure

ALL = (1 << 64) - 1


def fleet(count: int, readings_s: float = 1000.0) -> list[Draining]:
    return [Draining(f"gw-{n}", readings_s, ALL) for n in range(count)]


def behind(lag_s: float, **more: float) -> Pressure:
    return Pressure({1: lag_s}, capacity_readings_s=20_000, **more)


def pressed(lag_s: float, gateways: list[Draining], **more: float) -> dict[str, int | None]:
    """Return the rates that a pacer gives at such a lag."""
    pacer = FleetPacer(5.0, 30)
    return {g: c.readings_s for g, c in pacer.decide(behind(lag_s, **more), gateways).items()}


def rates_of(pacer: FleetPacer, lag_s: float, gateways: list[Draining]) -> dict[str, int | None]:
    """Return the rates of one more second."""
    return {g: c.readings_s for g, c in pacer.decide(behind(lag_s), gateways).items()}


def total(rates: dict[str, int | None]) -> int:
    return sum(rate or 0 for rate in rates.values())


def test_while_the_sinks_keep_up_nobody_is_limited() -> None:
    assert set(pressed(4.9, fleet(3)).values()) == {None}


def test_a_crowd_begins_with_a_limit_that_rises_while_there_is_no_pressure() -> None:
    pacer, gateways = FleetPacer(5.0, 30), fleet(1000, 100)
    totals = [total(rates_of(pacer, 0.0, gateways)) for _ in range(5)]
    assert totals[0] == 4000
    assert totals == sorted(totals)
    assert totals[-1] >= 4000 * 1.5**4 - 1000
    few = rates_of(pacer, 0.0, gateways[:10])
    assert set(few.values()) == {None}


def test_a_crowd_that_does_not_use_its_limit_gets_no_more() -> None:
    pacer, gateways = FleetPacer(5.0, 30), fleet(100, 10)
    for _ in range(20):
        rates_of(pacer, 0.0, gateways)
    assert pacer.total_readings_s == 4000


def test_a_crowd_that_causes_pressure_is_held_to_what_is_written() -> None:
    pacer, gateways = FleetPacer(5.0, 30), fleet(1000, 100)
    for _ in range(5):
        rates_of(pacer, 0.0, gateways)
    assert total(rates_of(pacer, 5.0, gateways)) == pytest.approx(20_000, rel=0.01)


def test_gateways_whose_small_batches_are_far_apart_count_alike() -> None:
    gateways = [Draining(f"gw-{n}", 10.0 + n % 20, ALL) for n in range(1000)]  # 20 on average
    rates = [rate or 0 for rate in rates_of(FleetPacer(5.0, 30), 5.0, gateways).values()]
    assert min(rates) >= 0.9 * sum(rates) / len(rates)


def test_at_the_target_the_fleet_gets_what_the_slowest_sink_writes() -> None:
    assert total(pressed(5.0, fleet(10, 5000))) == pytest.approx(20_000, rel=0.01)


def test_the_further_behind_the_less_and_never_nothing() -> None:
    rates = [total(pressed(lag_s, fleet(10, 5000))) for lag_s in (5, 8, 12, 100)]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] >= 2000 - 10


def test_live_readings_come_first() -> None:
    assert total(pressed(5.0, fleet(10, 5000), live_readings_s=15_000)) == pytest.approx(
        5000, rel=0.01
    )


def test_equal_gateways_get_equal_parts() -> None:
    rates = list(pressed(5.0, fleet(1000, 5000)).values())
    assert set(rates) == {20}


def test_what_one_does_not_use_goes_to_the_others_and_it_may_still_begin() -> None:
    rates = pressed(5.0, [Draining("idle", 0.0, ALL), *fleet(3, 20_000)])
    assert rates["idle"] == 2500, "half a fair part is its own"
    assert rates["gw-0"] == rates["gw-1"] == pytest.approx(5833, abs=2)


def test_who_writes_to_a_partition_that_lags_gets_less() -> None:
    lagging = Draining("lagging", 50_000, 1 << 1)
    other = Draining("other", 50_000, 1 << 2)
    rates = pressed(10.0, [lagging, other])
    assert (rates["other"] or 0) > 2 * (rates["lagging"] or 0) > 0


def test_the_limit_ends_once_the_sinks_have_caught_up_and_not_before() -> None:
    pacer = FleetPacer(5.0, 30)
    pacer.decide(behind(6.0), fleet(2))
    assert pacer.decide(behind(2.0), fleet(2))["gw-0"].readings_s is not None
    assert pacer.decide(behind(1.0), fleet(2))["gw-0"].readings_s is None
    assert pacer.total_readings_s is None


def test_what_waits_before_ingest_is_pressure_too() -> None:
    pacer = FleetPacer(5.0, 30)
    credits_of = pacer.decide(Pressure({}, 1.2), fleet(2, 30_000))
    assert all(credit.readings_s is not None for credit in credits_of.values())


def test_a_newcomer_has_a_limit_by_how_many_there_are_already() -> None:
    pacer = FleetPacer(5.0, 30)
    assert [pacer.newcomer(n).readings_s for n in (15, 99, 999)] == [250, 40, 4]
    assert pacer.newcomer(10**6).readings_s == 1
    assert [pacer.newcomer(n).valid_s for n in (15, 99, 999, 10**6)] == [10, 25, 240, 240], (
        "until its first batch has come it knows no other limit"
    )


def test_a_newcomer_among_few_begins_at_its_links_speed_unless_there_is_pressure() -> None:
    pacer = FleetPacer(5.0, 30)
    assert [pacer.newcomer(n).readings_s for n in (0, 14)] == [None, None]
    pacer.decide(behind(6.0), fleet(2, 5000))
    assert pacer.newcomer(2).readings_s is not None


def test_only_a_crowd_is_slowed_down_for_what_would_have_to_be_decoded_again() -> None:
    again = Pressure({}, decoded=1.0)
    assert all(
        one.readings_s is None for one in FleetPacer(5.0, 30).decide(again, fleet(15, 100)).values()
    )
    pacer = FleetPacer(5.0, 30)
    pacer.decide(Pressure({}, decoded=0.0, capacity_readings_s=4000), fleet(16, 100))
    before = pacer.total_readings_s
    pacer.decide(again, fleet(16, 100))
    assert (pacer.total_readings_s or 0) < (before or 0)


def test_under_great_pressure_a_newcomer_is_told_to_come_back_later() -> None:
    pacer = FleetPacer(5.0, 30)
    pacer.decide(behind(5.0), fleet(9, 5000))
    assert (pacer.newcomer(9).readings_s, pacer.newcomer(9).hold_s) == (2000, 0)
    pacer.decide(behind(30.0), fleet(9, 5000))
    later = pacer.newcomer(9)
    assert later.hold_s == 30
    assert later.valid_s >= 45, "the limit outlasts the longest hold"


def test_who_has_drained_less_gets_more_until_it_has_come_up() -> None:
    gateways = [Draining(f"gw-{n}", 5000, ALL, drained=10_000) for n in range(19)]
    late = Draining("late", 5000, ALL, drained=100)
    rates = pressed(5.0, [*gateways, late])
    assert 3.5 < (rates["late"] or 0) / (rates["gw-0"] or 1) <= 4.5
    assert len(set(rates.values())) == 2


def slow(answer_s: float, **more: float) -> Pressure:
    return Pressure({}, answer_s=answer_s, **more)


def test_a_crowd_that_delays_live_readings_gets_less_and_not_again_before_that_shows() -> None:
    crowd = [Draining(f"gw-{n}", 100, ALL, period_s=5.0) for n in range(100)]
    pacer = FleetPacer(5.0, 30)
    totals = []
    for answer_s in (0.0, *[1.0] * 6):
        pacer.decide(slow(answer_s, backlog_readings_s=4000), crowd)
        totals.append(pacer.total_readings_s)
    assert totals == [4000, *[2000] * 5, 1000]


def test_after_a_delay_a_crowd_grows_slowly_though_its_batches_are_far_apart() -> None:
    crowd = [Draining(f"gw-{n}", 0, ALL, period_s=5.0) for n in range(100)]
    pacer = FleetPacer(5.0, 30)
    pacer.decide(slow(0.0), crowd)
    pacer.decide(slow(1.0, backlog_readings_s=1000), crowd)
    totals = []
    for _ in range(60):
        pacer.decide(slow(0.0), crowd)
        totals.append(pacer.total_readings_s or 0.0)
    assert totals[0] == 525
    assert max(b / a for a, b in itertools.pairwise(totals)) < 1.06
    assert totals[-1] == 4000, "and not past what a slow machine takes, unless it is used"


def test_nobody_drains_and_nothing_is_divided() -> None:
    assert FleetPacer(5.0, 30).decide(behind(9.0), []) == {}
