"""How much backlog each gateway may send: decided from what sinks and ingest can take. Pure.

Theory of operation. While the sinks keep up few are not limited. Once the slowest has
`lag_target_s` of work before it, or ingest a second of its own, the fleet gets a total: what the
slowest sink writes a second, less when the pressure is above 1, more when below, without what comes
in live. A crowd has a total from the start, since all together they could send more in a moment
than is worked off in many seconds: it rises step by step while there is no pressure. And a crowd is
pressure when batches are slow to be answered, live ones among them: few govern themselves, by their
windows; of a crowd each has only a batch or two under way, and a smaller window would be none. And
when half of what sinks keep decoded for one another lies before the slowest: a crowd's entries are
small and dear to decode again, while few would drain at its speed and not at their links'.
The total is divided among the gateways that drain: in equal parts, but those whose partitions lag
more get less, who of a crowd has drained less than the others gets more until it has come up with
them, and what a gateway does not use goes to the others. A gateway that has just come where there
may be a crowd has a limit by how many there are, and under great pressure is told to come back
later.

Live readings are not limited: they are what the pressure must never delay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bridge.link_pacing import Credit

__all__ = ["Draining", "FleetPacer", "Pressure"]

_WAITING_TARGET_S = 1.0
_ANSWER_TARGET_S = 0.2  # of a crowd's slowest batch, over what the stream itself takes
_DECODED_TARGET = 0.5  # of what sinks keep decoded for one another
_PRESSURE_EASY = 0.25  # below it the limit ends
_FACTOR_MIN, _FACTOR_MAX = 0.1, 1.25
_TOTAL_MIN_READINGS_S = 500.0
_SHARE_MIN_READINGS_S = 1
_CROWD = 16  # gateways that drain at once
_GROWTH = 1.5  # of a crowd's total a second, while it is used and there is no pressure
_GROWTH_KNOWN = 1.05  # and once there was some: what is right is near
_FALL_MIN, _FALL_MAX = 0.5, 0.9  # of it when a crowd makes ingest slow
_SETTLING_MAX_S = 15.0  # until it shows
_LEVEL = 4.0  # how much more or less one gets who has drained less or more than the others
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
        waiting_s: Seconds of work before ingest.
        capacity_readings_s: What the slowest sink writes; 0 = not known.
        live_readings_s: What comes in that is not backlog.
        backlog_readings_s: What comes in that is; 0: as those who drain say themselves.
        answer_s: How long the slowest batch waited for its answer, beyond what cannot be helped.
        decoded: What lies before the slowest sink, as a part of what sinks keep decoded for one
            another: past 1 each has to decode it again, and the further they are behind the slower
            they get.
    """

    lag_s: Mapping[int, float]
    waiting_s: float = 0.0
    capacity_readings_s: float = 0.0
    live_readings_s: float = 0.0
    backlog_readings_s: float = 0.0
    answer_s: float = 0.0
    decoded: float = 0.0


@dataclass(slots=True, frozen=True)
class Draining:
    """A gateway that has sent backlog lately."""

    gateway: str
    readings_s: float
    partitions: int  # a bit each
    drained: int = 0  # readings since it began
    period_s: float = 0.0  # from one batch to the next, by its credit


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
        self._lag_pressure = 0.0
        self._growth = _GROWTH
        self._sink_pressure = 0.0  # without that of ingest
        self._settling_s = 0.0  # until a smaller total shows
        self.total_readings_s: float | None = None
        self.pressure = 0.0

    def decide(self, pressure: Pressure, draining: Sequence[Draining]) -> dict[str, Credit]:
        """Return the credit of every gateway that drains."""
        crowd = len(draining) >= _CROWD
        self._lag_pressure = max(pressure.lag_s.values(), default=0.0) / self._lag_target_s
        decoded = pressure.decoded / _DECODED_TARGET if crowd else 0.0
        self._sink_pressure = max(self._lag_pressure, decoded)
        waiting = pressure.waiting_s / _WAITING_TARGET_S
        answer = pressure.answer_s / _ANSWER_TARGET_S if crowd else 0.0
        self.pressure = max(self._sink_pressure, waiting, answer)
        arriving = pressure.backlog_readings_s or sum(each.readings_s for each in draining)
        self._set_total(pressure, arriving, draining, crowd=crowd)
        if self.total_readings_s is None:
            return {each.gateway: Credit(valid_s=self._valid_s) for each in draining}
        shares = self._divide(self.total_readings_s, pressure, draining)
        return {
            gateway: Credit(max(_SHARE_MIN_READINGS_S, int(share)), 0, self._valid_s)
            for gateway, share in shares.items()
        }

    def newcomer(self, connections: int) -> Credit:
        """Return the credit of a gateway that connects, until it is told one of its own.

        Among many it always has a limit, which holds for a moment: when a fleet comes back at once,
        all of it is here before any pressure shows.

        Args:
            connections: How many are connected already.
        """
        if self.total_readings_s is None and connections + 1 < _CROWD:
            return Credit(valid_s=_NEWCOMER_VALID_S)
        hold_s = 0
        if self._lag_pressure >= _HOLD_PRESSURE:
            hold_s = min(_HOLD_MAX_S, max(1, round(self._lag_pressure * self._lag_target_s)))
        total = self.total_readings_s or self._capacity
        share = max(_SHARE_MIN_READINGS_S, int(total / (connections + 1)))
        first_s = min(_FIRST_MAX_S, 2 * _FIRST_READINGS // share)  # it must outlast its first batch
        return Credit(share, hold_s, max(_NEWCOMER_VALID_S, 2 * hold_s, first_s))

    def _set_total(
        self, pressure: Pressure, arriving: float, draining: Sequence[Draining], *, crowd: bool
    ) -> None:
        self._settling_s = max(0.0, self._settling_s - 1.0)
        if self.pressure < (1.0 if self.total_readings_s is None else _PRESSURE_EASY):
            self.total_readings_s = self._more(arriving) if crowd else None
            if not crowd:
                self._growth = _GROWTH
            return
        capacity = pressure.capacity_readings_s
        self._capacity = max(_TOTAL_MIN_READINGS_S, capacity or arriving)
        before = self.total_readings_s
        if before is not None and crowd and self.pressure > self._sink_pressure:
            self._heed_ingest(before, arriving, draining)
            return
        factor = min(_FACTOR_MAX, max(_FACTOR_MIN, 1.5 - 0.5 * self.pressure))
        total = capacity * factor - pressure.live_readings_s if capacity else arriving * factor
        self.total_readings_s = max(_TOTAL_MIN_READINGS_S, total)

    def _heed_ingest(self, before: float, arriving: float, draining: Sequence[Draining]) -> None:
        """Give a crowd less when it makes ingest slow; not again before that shows.

        A gateway follows with its next batch, so what a credit does is seen that much later.
        """
        if self.pressure < 1.0 or self._settling_s:
            return
        self._growth = _GROWTH_KNOWN
        factor = min(_FALL_MAX, max(_FALL_MIN, 1.5 - 0.5 * self.pressure))
        self.total_readings_s = max(_TOTAL_MIN_READINGS_S, min(before, arriving) * factor)
        periods = sorted(each.period_s for each in draining)
        self._settling_s = min(_SETTLING_MAX_S, periods[len(periods) // 2])

    def _more(self, arriving: float) -> float:
        """Return the total of a crowd that causes no pressure: more, as far as it is used.

        Small credits are used in batches far apart: up to a slow machine's, that says nothing.
        """
        before = self.total_readings_s
        if before is None:
            return self._capacity
        used = max(arriving * self._growth, _CAPACITY_FIRST_READINGS_S)
        self._capacity = max(before, min(before * self._growth, used))
        return self._capacity

    def _divide(
        self, total: float, pressure: Pressure, draining: Sequence[Draining]
    ) -> dict[str, float]:
        """Divide by water-filling; half a fair part is a gateway's own even if it used none."""
        weights = {each.gateway: self._weight(pressure, each) for each in draining}
        if len(draining) >= _CROWD:
            level = sum(each.drained for each in draining) / len(draining)
            for each in draining:
                ratio = (level + 1) / (each.drained + 1)
                weights[each.gateway] *= min(_LEVEL, max(1 / _LEVEL, ratio))
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
