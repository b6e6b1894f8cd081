"""What a gateway expects: how long the journal lasts, how long its backlog takes to drain.

Rates are smoothed over some minutes, since it is hours that are forecast.
"""

from __future__ import annotations

import asyncio
import math
from dataclasses import asdict, dataclass
from typing import Any

from bridge.forecast import Traffic, drain, full_s
from bridge.link_budget import MONTH_DAYS
from edge.contract import Lane
from edge.journal import Journal
from edge.uplink import Uplink
from edge.uplink_config import UplinkConfig
from runtime.background import Background
from runtime.clock import Clock

__all__ = ["Forecast", "Forecaster"]

_LOOK_S = 5.0
_SMOOTH_S = 120.0
_ROW_BYTES = 64  # a commit's own, shared by its readings
_LINK_OVERHEAD = 1.15  # TCP/IP, TLS and acknowledgements on top of a batch, where not measured
_MEASURED_READINGS = 1000


@dataclass(slots=True)
class Forecast:
    """Figures of this moment; a time is None when it is not known or never comes."""

    readings_s: float  # captured
    journal_reading_bytes: float
    link_reading_bytes: float  # of a live one
    backlog_reading_bytes: float
    link_bytes_s: float | None  # what the link carries; None until it was seen
    room_bytes: int  # what the journal still takes
    backlog_share: float
    open_share: float  # the part of a day in which time windows let the link be used
    rate_limit_bytes_s: float  # `rate_bytes_s` of the budget; 0 = none
    urgent_share: float  # of the budgets, which backlog and live readings may not use
    day_bytes: int  # what a budget allows a day, the month's included; 0 = as the link carries
    full_s: float | None  # until the journal is full if the link stays away
    drain_readings: int
    drain_bytes: int
    drain_s: float | None
    waits_for: str  # what readings wait for besides the link: a budget, a time window
    waits_until_us: int  # wall clock; 0 = they do not

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, as JSON has them."""
        return asdict(self)


class Forecaster:
    """Watches a gateway's rates.

    Args:
        journal: What comes in and what it takes.
        uplink: What goes out.
        config: Shares and budgets.
        clock: Time.
    """

    def __init__(
        self, journal: Journal, uplink: Uplink, config: UplinkConfig, clock: Clock
    ) -> None:
        self._journal = journal
        self._uplink = uplink
        self._config = config
        self._clock = clock
        self._open_share = config.budget.limits.open_share
        stats = journal.stats()
        self._seen = (clock.monotonic_s(), stats.readings)
        self._readings_s = 0.0
        self._known_s = 0.0  # over how long the rate was seen
        self._background = Background(self._run, "forecast")

    async def start(self) -> None:
        """Begin to look every few seconds."""
        self._background.start()

    async def stop(self) -> None:
        """End."""
        await self._background.stop()

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            self.look()

    def look(self) -> None:
        """Take what came in since the last look into the rates."""
        now_s, readings = self._clock.monotonic_s(), self._journal.stats().readings
        before_s, before = self._seen
        passed_s = now_s - before_s
        if passed_s <= 0:
            return
        self._seen = (now_s, readings)
        self._known_s += passed_s
        weight = 1 - math.exp(-passed_s / min(_SMOOTH_S, self._known_s))
        rate = (readings - before) / passed_s
        first = self._known_s == passed_s
        self._readings_s = rate if first else self._readings_s + (rate - self._readings_s) * weight

    def forecast(self) -> Forecast:
        """Return what is to be expected now."""
        stats, status = self._journal.stats(), self._uplink.status()
        waiting = sum(lane.readings for lane in stats.lanes.values())
        kept_bytes = sum(lane.bytes for lane in stats.lanes.values())
        if waiting >= _MEASURED_READINGS or not stats.readings:
            journal_bytes = kept_bytes / max(1, waiting)
        else:  # of a few that wait a row may be kept that has held many
            journal_bytes = (stats.body_bytes + _ROW_BYTES * stats.commits) / stats.readings
        link_bytes = self._uplink.reading_bytes * _LINK_OVERHEAD
        if status.readings_sent >= _MEASURED_READINGS:
            link_bytes = (status.bytes_out + status.bytes_in) / status.readings_sent
        backlog_bytes = self._uplink.backlog_reading_bytes * _LINK_OVERHEAD
        traffic = Traffic(self._readings_s, journal_bytes, link_bytes, backlog_bytes)
        room = max(0, self._journal.room_bytes(Lane.LIVE))
        rate, day_bytes = self._rate_bytes_s(), self._day_bytes()
        gone = drain(
            waiting,
            traffic,
            rate or 0.0,
            backlog_share=self._config.backlog_share,
            allowances=self._uplink.allowances,
        )
        wall_us = self._clock.wall_us()
        until_us = wall_us + round(status.waits_s * 1e6) if status.waits_for else 0
        drain_s = gone.seconds
        if drain_s is not None and waiting:  # a long drain has its share of waiting in its rate
            drain_s = max(drain_s, status.waits_s + gone.bytes / (rate or math.inf))
        return Forecast(
            self._readings_s,
            journal_bytes,
            link_bytes,
            backlog_bytes,
            rate,
            room,
            self._config.backlog_share,
            self._open_share,
            self._config.budget.rate_bytes_s,
            self._config.budget.urgent_share,
            day_bytes,
            full_s(traffic, room),
            waiting,
            gone.bytes,
            drain_s if rate or not waiting else None,
            status.waits_for,
            until_us,
        )

    def _rate_bytes_s(self) -> float | None:
        """Return what the link carries on average over a day, its windows taken into account."""
        rate = self._uplink.rate_bytes_s
        return rate and rate * self._open_share

    def _day_bytes(self) -> int:
        """Return what the budgets allow a day; 0 without any."""
        budget = self._config.budget
        allowed = [budget.day_bytes, budget.month_bytes // MONTH_DAYS]
        return min((each for each in allowed if each), default=0)
