"""How much backlog each gateway may send: decided from what sinks and ingest can take. Pure.

Theory of operation. While the sinks keep up few are not limited. Once the slowest has
`lag_target_s` of work before it, or ingest a second of its own, the fleet gets a total: what the
slowest sink writes a second, less when the pressure is above 1, more when below, without what comes
in live. A crowd has a total from the start, since all together they could send more in a moment
than is worked off in many seconds: it rises step by step while there is no pressure.
The total is divided among the gateways that drain: in equal parts, but those whose partitions lag
more get less, and what a gateway does not use goes to the others. A gateway that has just come has
a limit by how many there are, and under great pressure is told to come back later.

Live readings are not limited: they are what the pressure must never delay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.link_pacing import Credit

__all__ = ["Draining", "FleetPacer", "Pressure"]

_WAITING_TARGET_S = 1.0
_PRESSURE_EASY = 0.25  # below it the limit ends
_FACTOR_MIN, _FACTOR_MAX = 0.1, 1.25
_TOTAL_MIN_READINGS_S = 500.0
_SHARE_MIN_READINGS_S = 1
_CROWD = 16  # gateways that drain at once
_GROWTH = 1.5  # of a crowd's total a second, while it is used and there is no pressure
_HEADROOM = 2.0  # over what a gateway used, before the others get the rest of its part
_HOLD_PRESSURE = 5.0
_HOLD_MAX_S = 60
_CAPACITY_FIRST_READINGS_S = 4000.0  # until pressure has shown what it is: of a slow machine
_NEWCOMER_VALID_S = 10
_FIRST_READINGS = 500  # of a gateway's first batch, which begins anywhere in that time
_FIRST_MAX_S = 240


@dataclass(slots=True, frozen=True)
class Pressure:
    """What the node has before it.

    Attributes:
        lag_s: By partition, seconds of work of the slowest sink; absent = none.
        waiting_s: Seconds of work before ingest: so long live readings wait for their PUBACK.
        capacity_readings_s: What the slowest sink writes; 0 = not known.
        live_readings_s: What comes in that is not backlog.
    """

    lag_s: Mapping[int, float]
    waiting_s: float = 0.0
    capacity_readings_s: float = 0.0
    live_readings_s: float = 0.0


@dataclass(slots=True, frozen=True)
class Draining:
    """A gateway that has sent backlog lately."""

    gateway: str
    readings_s: float
    partitions: int  # a bit each


class FleetPacer:
    """The credits of one node.

    Args:
        lag_target_s: Seconds of work a sink may have before it without anybody being limited.
        valid_s: How long a credit holds.

    Attributes:
        total_readings_s: What all gateways together may send of backlog; None = no limit.
        pressure: 1 = as much before the sinks as is wanted.
    """

    def __init__(self, lag_target_s: float, valid_s: int) -> None:
        self._lag_target_s = lag_target_s
        self._valid_s = valid_s
        self._capacity = _CAPACITY_FIRST_READINGS_S
        self.total_readings_s: float | None = None
        self.pressure = 0.0

    def decide(self, pressure: Pressure, draining: Sequence[Draining]) -> dict[str, Credit]:
        """Return the credit of every gateway that drains."""
        lag_s = max(pressure.lag_s.values(), default=0.0)
        self.pressure = max(lag_s / self._lag_target_s, pressure.waiting_s / _WAITING_TARGET_S)
        arriving = sum(each.readings_s for each in draining)
        self._set_total(pressure, arriving, crowd=len(draining) >= _CROWD)
        if self.total_readings_s is None:
            return {each.gateway: Credit(valid_s=self._valid_s) for each in draining}
        shares = self._divide(self.total_readings_s, pressure, draining)
        return {
            gateway: Credit(max(_SHARE_MIN_READINGS_S, int(share)), 0, self._valid_s)
            for gateway, share in shares.items()
        }

    def newcomer(self, connections: int) -> Credit:
        """Return the credit of a gateway that connects, until it is told one of its own.

        It always has a limit, which holds for a moment: when a fleet comes back at once, all of it
        is here before any pressure shows.

        Args:
            connections: How many are connected already.
        """
        hold_s = 0
        if self.pressure >= _HOLD_PRESSURE:
            hold_s = min(_HOLD_MAX_S, max(1, round(self.pressure * self._lag_target_s)))
        total = self.total_readings_s or self._capacity
        share = max(_SHARE_MIN_READINGS_S, int(total / (connections + 1)))
        first_s = min(_FIRST_MAX_S, 2 * _FIRST_READINGS // share)  # it must outlast its first batch
        return Credit(share, hold_s, max(_NEWCOMER_VALID_S, 2 * hold_s, first_s))

    def _set_total(self, pressure: Pressure, arriving: float, *, crowd: bool) -> None:
        if self.pressure < (1.0 if self.total_readings_s is None else _PRESSURE_EASY):
            self.total_readings_s = self._more(arriving) if crowd else None
            return
        capacity = pressure.capacity_readings_s or arriving
        self._capacity = max(_TOTAL_MIN_READINGS_S, capacity)
        factor = min(_FACTOR_MAX, max(_FACTOR_MIN, 1.5 - 0.5 * self.pressure))
        total = capacity * factor - pressure.live_readings_s
        self.total_readings_s = max(_TOTAL_MIN_READINGS_S, total)

    def _more(self, arriving: float) -> float:
        """Return the total of a crowd that causes no pressure."""
        before = self.total_readings_s
        if before is None:
            return self._capacity
        self._capacity = max(before, min(before, arriving) * _GROWTH)
        return self._capacity

    def _divide(
        self, total: float, pressure: Pressure, draining: Sequence[Draining]
    ) -> dict[str, float]:
        """Divide by water-filling; half a fair part is a gateway's own even if it used none."""
        weights = {each.gateway: self._weight(pressure, each) for each in draining}
        wants = {each.gateway: each.readings_s * _HEADROOM for each in draining}
        shares: dict[str, float] = {}
        weight = sum(weights.values())
        for gateway in sorted(weights, key=lambda name: wants[name] / weights[name]):
            fair = total * weights[gateway] / weight
            shares[gateway] = max(min(fair, wants[gateway]), fair / 2)
            total -= shares[gateway]
            weight -= weights[gateway]
        return shares

    def _weight(self, pressure: Pressure, each: Draining) -> float:
        lag_s = max(
            (lag for p, lag in pressure.lag_s.items() if each.partitions >> p & 1), default=0.0
        )
        return 1.0 / (1.0 + lag_s / self._lag_target_s)
