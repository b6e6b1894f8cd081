"""The account of a metered link: days, months, windows, rate, and what is kept for urgent."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.envelope import LinkLane
from bridge.forecast import Allowance
from bridge.link_budget import Budget, BudgetLimits, Window

URGENT, LIVE, BACKLOG = LinkLane.URGENT, LinkLane.LIVE, LinkLane.BACKLOG


def at(text: str) -> int:
    """Return a UTC time such as "2026-11-21 08:00" in microseconds."""
    moment = datetime.strptime(text, "%Y-%m-%d %H:%M").replace(tzinfo=UTC)
    return round(moment.timestamp() * 1e6)


NOON = at("2026-11-21 12:00")


def wait_s(budget: Budget, lane: int = LIVE, *, on_the_way: int = 0, wall_us: int = NOON) -> float:
    return budget.verdict(lane, on_the_way, 0.0, wall_us).wait_s


# ---- budgets -------------------------------------------------------------------------------------


def test_without_limits_everything_goes() -> None:
    budget = Budget(BudgetLimits())
    budget.count(1 << 40, NOON)
    assert wait_s(budget) == 0


def test_at_the_end_of_a_days_budget_live_waits_for_midnight_and_urgent_does_not() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000, urgent_share=0.2))
    budget.count(799, NOON)
    assert wait_s(budget) == 0
    budget.count(1, NOON)
    verdict = budget.verdict(LIVE, 0, 0.0, NOON)
    assert (verdict.wait_s, verdict.reason) == (12 * 3600, "day budget")
    assert wait_s(budget, BACKLOG) == 12 * 3600
    assert wait_s(budget, URGENT) == 0
    budget.count(200, NOON)
    assert wait_s(budget, URGENT) == 12 * 3600, "the whole of it is spent"


def test_the_next_day_begins_at_nothing() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000))
    budget.count(5000, NOON)
    assert wait_s(budget, wall_us=at("2026-11-22 00:00")) == 0


def test_what_is_on_its_way_counts_as_spent() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000, urgent_share=0))
    budget.count(600, NOON)
    assert wait_s(budget, on_the_way=399) == 0
    assert wait_s(budget, on_the_way=400) > 0


def test_a_months_budget_holds_over_its_days_until_the_first_of_the_next() -> None:
    budget = Budget(BudgetLimits(month_bytes=1000, urgent_share=0))
    budget.count(600, at("2026-11-03 08:00"))
    budget.count(400, NOON)
    verdict = budget.verdict(LIVE, 0, 0.0, NOON)
    assert verdict.reason == "month budget"
    assert verdict.wait_s == (at("2026-12-01 00:00") - NOON) / 1e6
    assert wait_s(budget, wall_us=at("2026-12-01 00:00")) == 0


def test_what_the_budgets_leave_is_told_without_what_is_kept_for_urgent() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000, month_bytes=20_000, urgent_share=0.1))
    budget.count(300, at("2026-11-20 12:00"))
    budget.count(200, NOON)
    day_s = 86_400
    assert budget.allowances(NOON) == [
        Allowance(18_000, 17_500, 9.5 * day_s, 31 * day_s),
        Allowance(900, 700, 0.5 * day_s, day_s),
    ]
    assert Budget(BudgetLimits(rate_bytes_s=5)).allowances(NOON) == []


def test_a_clock_that_was_wrong_for_a_while_does_not_give_a_day_twice() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000, urgent_share=0))
    budget.count(1000, NOON)
    budget.count(10, 0)  # 1970
    budget.count(10, at("2099-01-01 00:00"))
    assert wait_s(budget) > 0


@pytest.mark.parametrize("wall_us", [-(1 << 61), 0, 1 << 61])
def test_any_clock_has_a_day(wall_us: int) -> None:
    budget = Budget(BudgetLimits(day_bytes=10))
    budget.count(100, wall_us)
    assert wait_s(budget, wall_us=wall_us) >= 1


def test_what_is_kept_goes_on_in_the_next_run_and_stays_small() -> None:
    budget = Budget(BudgetLimits(day_bytes=1000), {f"2020-01-{n:02}": n for n in range(1, 32)})
    for day in range(1, 29):
        budget.count(5, at(f"2026-02-{day:02} 10:00"))
        budget.count(5, at(f"2026-03-{day:02} 10:00"))
    kept = budget.days()
    assert len(kept) == 62
    again = Budget(BudgetLimits(day_bytes=1000), kept)
    assert again.month_bytes(at("2026-03-20 00:00")) == 28 * 5


# ---- windows -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("window", "time", "hours"),
    [
        ("22:00-06:00", "23:00", 0),
        ("22:00-06:00", "05:59", 0),
        ("22:00-06:00", "06:00", 16),
        ("22:00-06:00", "12:00", 10),
        ("08:00-09:00", "08:30", 0),
        ("08:00-09:00", "09:00", 23),
        ("08:00-09:00", "07:00", 1),
        ("00:00-24:00", "13:00", 0),
    ],
)
def test_outside_its_windows_the_link_waits_but_not_for_urgent(
    window: str, time: str, hours: float
) -> None:
    budget = Budget(BudgetLimits(windows=(Window.parse(window),)))
    now = at(f"2026-11-21 {time}")
    assert wait_s(budget, wall_us=now) == pytest.approx(hours * 3600)
    assert wait_s(budget, URGENT, wall_us=now) == 0


@pytest.mark.parametrize(
    ("windows", "share"),
    [((), 1), (("22:00-04:00",), 0.25), (("22:00-04:00", "02:00-08:00", "12:00-14:00"), 0.5)],
)
def test_windows_are_a_share_of_the_day(windows: tuple[str, ...], share: float) -> None:
    limits = BudgetLimits(windows=tuple(map(Window.parse, windows)))
    assert limits.open_share == pytest.approx(share)


def test_of_several_windows_the_next_counts() -> None:
    windows = tuple(map(Window.parse, ("02:00-03:00", "14:00-15:00")))
    assert wait_s(Budget(BudgetLimits(windows=windows))) == 2 * 3600


@pytest.mark.parametrize(
    "text", ["", "8-9", "08:00-08:00", "24:00-01:00", "08:00-24:30", "8:00-9:00"]
)
def test_a_window_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="window"):
        Window.parse(text)


@given(st.integers(0, 1439), st.integers(1, 1440), st.integers(0, 86_399))
def test_a_window_opens_when_it_says(begin: int, end: int, second: int) -> None:
    if begin == end:
        return
    window = Window(begin * 60, end * 60)
    wait = window.wait_s(second)
    assert window.wait_s((second + wait) % 86_400) == 0


# ---- rate ----------------------------------------------------------------------------------------


def test_the_rate_is_kept_over_time_and_urgent_overtakes() -> None:
    budget = Budget(BudgetLimits(rate_bytes_s=1000))
    now_s, sent = 0.0, 0
    while now_s < 100:
        verdict = budget.verdict(LIVE, 0, now_s, NOON)
        if verdict.wait_s:
            assert verdict.reason == "rate"
            assert budget.verdict(URGENT, 0, now_s, NOON).wait_s == 0
            now_s += verdict.wait_s
            continue
        budget.sent(700)
        sent += 700
    assert sent == pytest.approx(100_000, rel=0.03)
