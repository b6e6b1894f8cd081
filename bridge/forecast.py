"""Until when the journal lasts and how long a drain takes: arithmetic of rates. Pure.

All rates are taken to go on as they are. While a backlog drains, live readings take what they need
of the link first, up to the part that is not the backlog's own share; the rest drains.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

__all__ = ["Drain", "Traffic", "WhatIf", "drain", "full_s", "what_if"]

_DAY_S = 86_400.0


@dataclass(slots=True, frozen=True)
class Traffic:
    """What a gateway takes in and what that comes to.

    Attributes:
        readings_s: Captured a second.
        journal_bytes: Of one reading in the journal.
        link_bytes: Of one reading on the link, headers and acknowledgements included.
    """

    readings_s: float
    journal_bytes: float
    link_bytes: float


@dataclass(slots=True, frozen=True)
class Drain:
    """How a backlog gets through.

    Attributes:
        bytes: It takes on the link.
        seconds: Until it is gone; None: never at these rates.
        live_waits: Live readings alone are more than their share of the link carries.
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
    day_bytes: float = math.inf,
) -> Drain:
    """Return how long so many readings take to get through beside live ones.

    Args:
        readings: Of backlog.
        traffic: What comes in meanwhile.
        link_bytes_s: What the link carries.
        backlog_share: The backlog's own share of it.
        day_bytes: What a budget allows a day.
    """
    size = round(readings * traffic.link_bytes)
    live = traffic.readings_s * traffic.link_bytes
    rate = min(link_bytes_s, day_bytes / _DAY_S)
    spare = max(rate - live, rate * backlog_share)
    if not size:
        return Drain(0, 0.0)
    live_waits = live > rate * (1 - backlog_share)
    if live_waits and live >= rate:
        return Drain(size, None, live_waits=True)  # as much becomes backlog as drains
    return Drain(size, size / spare if spare > 0 else None, live_waits)


def what_if(
    outage_s: float,
    traffic: Traffic,
    link_bytes_s: float,
    *,
    room_bytes: float,
    backlog_share: float,
    waiting: float = 0.0,
    day_bytes: float = math.inf,
) -> WhatIf:
    """Return what an outage of so long would do from now on.

    Args:
        outage_s: How long there is no link.
        traffic: What comes in.
        link_bytes_s: What the link carries afterwards.
        room_bytes: What the journal still takes.
        backlog_share: As for `drain`.
        waiting: Readings that wait already.
        day_bytes: As for `drain`.
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
            waiting + kept, traffic, link_bytes_s, backlog_share=backlog_share, day_bytes=day_bytes
        ),
    )
