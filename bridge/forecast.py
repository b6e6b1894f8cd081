"""Until when the journal lasts and how long a drain takes: arithmetic of rates. Pure.

All rates are taken to go on as they are. While a backlog drains, live readings take what they need
of the link first, up to the part that is not the backlog's own share; the rest drains. A reading of
a backlog takes fewer bytes than a live one, whose batches are small: the more comes in, or the
slower the link, the larger they get. A budget is spent as fast as the link carries; then all waits
for the next day or month.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Allowance", "Drain", "Traffic", "WhatIf", "drain", "full_s", "what_if"]


@dataclass(slots=True, frozen=True)
class Traffic:
    """What a gateway takes in and what that comes to.

    Attributes:
        readings_s: Captured a second.
        journal_bytes: Of one reading in the journal.
        link_bytes: Of one live reading on the link, headers and acknowledgements included.
        backlog_bytes: Of one reading of a backlog, in full batches; 0: the same.
    """

    readings_s: float
    journal_bytes: float
    link_bytes: float
    backlog_bytes: float = 0.0

    @property
    def drained_bytes(self) -> float:
        """Bytes on the link of one reading of a backlog."""
        return self.backlog_bytes or self.link_bytes


@dataclass(slots=True, frozen=True)
class Allowance:
    """What a budget allows.

    Attributes:
        bytes: A period.
        left_bytes: Of it, in the period under way.
        left_s: Until the next period begins.
        period_s: How long each is.
    """

    bytes: float
    left_bytes: float
    left_s: float
    period_s: float

    def drained_s(self, size: float, live: float, link: float) -> float | None:
        """Return when all is sent; None: never.

        Args:
            size: Bytes that wait.
            live: Bytes a second that come in, and wait as well once the budget is spent.
            link: Bytes a second the link carries, more than `live`.
        """
        spare = link - live
        open_s = min(max(0.0, self.left_bytes) / link, self.left_s)
        if size <= spare * open_s:
            return size / spare
        size += live * self.left_s - link * open_s
        fits = spare * min(self.bytes / link, self.period_s)  # what a period takes to its end
        periods = 0
        gain = min(self.bytes, link * self.period_s) - live * self.period_s
        if size > fits:
            if gain <= 0:
                return None
            periods = math.ceil((size - fits) / gain)
        return self.left_s + periods * self.period_s + (size - periods * gain) / spare


@dataclass(slots=True, frozen=True)
class Drain:
    """How a backlog gets through.

    Attributes:
        bytes: It takes on the link.
        seconds: Until it is gone; None: never at these rates.
        live_waits: Live readings are more than their share of the link carries, or than the budget
            leaves them.
    """

    bytes: int
    seconds: float | None
    live_waits: bool = False


@dataclass(slots=True, frozen=True)
class WhatIf:
    """What an outage would do."""

    readings: int
    journal_bytes: int
    full_s: float | None  # after so long the journal is full; None: not in this outage
    lost_or_refused: int  # readings of the outage that come after that
    drain: Drain


def full_s(traffic: Traffic, room_bytes: float) -> float | None:
    """Return in how many seconds without a link the room is filled; None: never."""
    inflow = traffic.readings_s * traffic.journal_bytes
    return room_bytes / inflow if inflow > 0 else None


def drain(
    readings: float,
    traffic: Traffic,
    link_bytes_s: float,
    *,
    backlog_share: float,
    allowances: Sequence[Allowance] = (),
) -> Drain:
    """Return how long so many readings take to get through beside live ones.

    Args:
        readings: Of backlog.
        traffic: What comes in meanwhile.
        link_bytes_s: What the link carries.
        backlog_share: The backlog's own share of it.
        allowances: What budgets allow.
    """
    size = round(readings * traffic.drained_bytes)
    if not size:
        return Drain(0, 0.0)
    live_share = link_bytes_s * (1 - backlog_share)
    live = traffic.readings_s * traffic.link_bytes
    if live > live_share:  # then more of them share a batch
        live = max(live_share, min(live, traffic.readings_s * traffic.drained_bytes))
    live_waits = live > live_share
    spare = max(link_bytes_s - live, link_bytes_s * backlog_share)
    if spare <= 0 or (live_waits and live >= link_bytes_s):
        return Drain(size, None, live_waits)  # as much becomes backlog as drains
    seconds = size / spare
    for allowance in allowances:
        live_waits = live_waits or size + live * allowance.left_s > allowance.left_bytes
        allowed_s = allowance.drained_s(size, live, link_bytes_s)
        if allowed_s is None:
            return Drain(size, None, live_waits)
        seconds = max(seconds, allowed_s)
    return Drain(size, seconds, live_waits)


def what_if(
    outage_s: float,
    traffic: Traffic,
    link_bytes_s: float,
    *,
    room_bytes: float,
    backlog_share: float,
    waiting: float = 0.0,
    allowances: Sequence[Allowance] = (),
) -> WhatIf:
    """Return what an outage of so long would do from now on.

    Args:
        outage_s: How long there is no link.
        traffic: What comes in.
        link_bytes_s: What the link carries afterwards.
        room_bytes: What the journal still takes.
        backlog_share: As for `drain`.
        waiting: Readings that wait already.
        allowances: As for `drain`.
    """
    filled_s = full_s(traffic, room_bytes)
    if filled_s is None or filled_s > outage_s:
        kept_s, filled_s = outage_s, None
    else:
        kept_s = filled_s
    kept = traffic.readings_s * kept_s
    return WhatIf(
        round(waiting + kept),
        round(kept * traffic.journal_bytes),
        filled_s,
        round(traffic.readings_s * (outage_s - kept_s)),
        drain(
            waiting + kept,
            traffic,
            link_bytes_s,
            backlog_share=backlog_share,
            allowances=allowances,
        ),
    )
