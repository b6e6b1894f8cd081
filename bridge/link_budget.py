"""What a metered link may carry: bytes a day and a month, a rate, times of the day. Pure.

Bytes are counted by UTC day, as they were really sent and received; a month is the sum of its days,
so that a clock that was wrong for a while spoils neither. Urgent readings may go at any time and at
any rate, and have a share of both budgets to themselves; past the whole of it they wait too.

What has to wait waits in order: nothing is dropped here, and `Verdict` says until when.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

from bridge.envelope import LinkLane
from bridge.forecast import Allowance

__all__ = ["FREE", "MONTH_DAYS", "Budget", "BudgetLimits", "Verdict", "Window", "day_of"]

DAYS_KEPT = 62
MONTH_DAYS = 31  # at most
_DAY_S = 86_400
_RATE_BURST_S = 1.0
_WINDOW = re.compile(r"([01]\d|2[0-3]):([0-5]\d)-([01]\d|2[0-4]):([0-5]\d)")
_ORDINAL_MIN, _ORDINAL_MAX = 1, date.max.toordinal() - 400


@dataclass(slots=True, frozen=True)
class Window:
    """A time of every day, UTC; it may run over midnight.

    Attributes:
        begin_s: Seconds since midnight.
        end_s: Seconds since midnight, not included.
    """

    begin_s: int
    end_s: int

    @classmethod
    def parse(cls, text: str) -> Window:
        """Return the window of `HH:MM-HH:MM`.

        Raises:
            ValueError: `text` is something else, or no time at all.
        """
        found = _WINDOW.fullmatch(text.strip())
        if found is None:
            raise ValueError(f"window {text!r} is not HH:MM-HH:MM")
        hours, minutes, end_hours, end_minutes = map(int, found.groups())
        begin_s = hours * 3600 + minutes * 60
        end_s = end_hours * 3600 + end_minutes * 60
        if begin_s == end_s or end_s > _DAY_S:
            raise ValueError(f"window {text!r} is no time of a day")
        return cls(begin_s, end_s)

    def wait_s(self, second: float) -> float:
        """Return how long after `second` of a day it opens; 0 while it is open."""
        if self.begin_s < self.end_s:
            inside = self.begin_s <= second < self.end_s
        else:
            inside = second >= self.begin_s or second < self.end_s
        return 0.0 if inside else (self.begin_s - second) % _DAY_S


@dataclass(slots=True, frozen=True)
class BudgetLimits:
    """What is allowed; 0 and () = no limit."""

    day_bytes: int = 0
    month_bytes: int = 0
    urgent_share: float = 0.1
    rate_bytes_s: float = 0.0
    windows: Sequence[Window] = ()

    @property
    def unlimited(self) -> bool:
        """True when there is nothing to keep to."""
        return not (self.day_bytes or self.month_bytes or self.rate_bytes_s or self.windows)

    @property
    def open_share(self) -> float:
        """The part of a day in which the link may be used, 0 to 1."""
        if not self.windows:
            return 1.0
        steps = range(0, _DAY_S, 60)
        return sum(any(not w.wait_s(at) for w in self.windows) for at in steps) / len(steps)


@dataclass(slots=True, frozen=True)
class Verdict:
    """Whether a lane may send: after `wait_s`, and what it waits for ("" = it need not)."""

    wait_s: float = 0.0
    reason: str = ""


FREE = Verdict()


class Budget:
    """The account of one gateway's link.

    Args:
        limits: What is allowed.
        days: Bytes by UTC day, as "2026-11-21", of earlier runs.
    """

    __slots__ = ("_days", "_filled_s", "_limits", "_tokens")

    def __init__(self, limits: BudgetLimits, days: Mapping[str, int] | None = None) -> None:
        self._limits = limits
        self._days = dict(days or {})
        self._tokens = limits.rate_bytes_s * _RATE_BURST_S
        self._filled_s = 0.0

    @property
    def limits(self) -> BudgetLimits:
        """What is allowed."""
        return self._limits

    def days(self) -> dict[str, int]:
        """Return the account to keep: bytes by day, the latest DAYS_KEPT."""
        return dict(sorted(self._days.items())[-DAYS_KEPT:])

    def count(self, moved_bytes: int, wall_us: int) -> None:
        """Note bytes that went over the link, either way."""
        if moved_bytes:
            day = day_of(wall_us)
            self._days[day] = self._days.get(day, 0) + moved_bytes

    def recount(self, days: Mapping[str, int], wall_us: int) -> None:
        """Count for today what was counted for other days by a clock that was wrong."""
        for day, moved_bytes in days.items():
            self._days[day] -= moved_bytes
            if not self._days[day]:
                del self._days[day]
        self.count(sum(days.values()), wall_us)

    def ahead_of(self, wall_us: int) -> bool:
        """Return True when bytes are counted for a day after today: a clock is wrong, or was."""
        return max(self._days, default="") > day_of(wall_us)

    def sent(self, batch_bytes: int) -> None:
        """Note a batch, for the rate; its bytes are counted when they have gone."""
        self._tokens -= batch_bytes

    def day_bytes(self, wall_us: int) -> int:
        """Return what was moved today."""
        return self._days.get(day_of(wall_us), 0)

    def month_bytes(self, wall_us: int) -> int:
        """Return what was moved this month."""
        month = day_of(wall_us)[:8]
        return sum(moved for day, moved in self._days.items() if day.startswith(month))

    def verdict(self, lane: int, on_the_way: int, now_s: float, wall_us: int) -> Verdict:
        """Return whether `lane` may send a batch now.

        Args:
            lane: A LinkLane.
            on_the_way: Bytes sent that may not have been counted yet.
            now_s: Monotonic time, for the rate.
            wall_us: Wall clock, for days and windows.
        """
        limits = self._limits
        if limits.unlimited:
            return FREE
        urgent = lane == LinkLane.URGENT
        share = 1.0 if urgent else 1.0 - limits.urgent_share
        verdicts = [self._budgets(share, on_the_way, wall_us)]
        if not urgent:
            verdicts += [self._windows(wall_us), self._rate(now_s)]
        return max(verdicts, key=lambda verdict: verdict.wait_s)

    def allowances(self, wall_us: int) -> list[Allowance]:
        """Return what live readings and backlog may use of the month's budget and the day's."""
        limits, found = self._limits, []
        share = 1.0 - limits.urgent_share
        if limits.month_bytes:
            month = limits.month_bytes * share
            left = month - self.month_bytes(wall_us)
            found.append(Allowance(month, left, _month_left_s(wall_us), MONTH_DAYS * _DAY_S))
        if limits.day_bytes:
            day = limits.day_bytes * share
            left = day - self.day_bytes(wall_us)
            found.append(Allowance(day, left, _day_left_s(wall_us), _DAY_S))
        return found

    def _budgets(self, share: float, on_the_way: int, wall_us: int) -> Verdict:
        limits = self._limits
        spent = self.month_bytes(wall_us) + on_the_way
        if limits.month_bytes and spent >= limits.month_bytes * share:
            return Verdict(_month_left_s(wall_us), "month budget")
        spent = self.day_bytes(wall_us) + on_the_way
        if limits.day_bytes and spent >= limits.day_bytes * share:
            return Verdict(_day_left_s(wall_us), "day budget")
        return FREE

    def _windows(self, wall_us: int) -> Verdict:
        if not self._limits.windows:
            return FREE
        second = wall_us / 1e6 % _DAY_S
        wait_s = min(window.wait_s(second) for window in self._limits.windows)
        return Verdict(wait_s, "time window") if wait_s else FREE

    def _rate(self, now_s: float) -> Verdict:
        rate = self._limits.rate_bytes_s
        if not rate:
            return FREE
        gained = (now_s - self._filled_s) * rate
        self._tokens = min(rate * _RATE_BURST_S, self._tokens + gained)
        self._filled_s = now_s
        return FREE if self._tokens > 0 else Verdict((1.0 - self._tokens) / rate, "rate")


def day_of(wall_us: int) -> str:
    """Return the UTC day as an account names it: "2026-11-21"."""
    return _day(wall_us).isoformat()


def _day(wall_us: int) -> date:
    """Return the UTC day; a clock beyond the calendar counts as its end."""
    ordinal = 719_163 + wall_us // (_DAY_S * 1_000_000)
    return date.fromordinal(min(max(ordinal, _ORDINAL_MIN), _ORDINAL_MAX))


def _day_left_s(wall_us: int) -> float:
    return _until_s(_day(wall_us) + timedelta(days=1), wall_us)


def _month_left_s(wall_us: int) -> float:
    following = (_day(wall_us).replace(day=1) + timedelta(days=32)).replace(day=1)
    return _until_s(following, wall_us)


def _until_s(day: date, wall_us: int) -> float:
    begin = datetime(day.year, day.month, day.day, tzinfo=UTC)
    return max(1.0, begin.timestamp() - wall_us / 1e6)
