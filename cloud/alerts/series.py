"""The state of one rule for one device: a machine driven by readings and deadlines.

Theory of operation. A series is `inactive`, `pending` (wrong, but not yet for `for_s`) or
`firing`. Whether the newest value is wrong is kept apart (`wrong`), because a pending series turns
firing, and a firing one inactive, by time alone:

    inactive ──wrong──▶ pending ──wrong for for_s──▶ firing ──well for the hold──▶ inactive
                           └──well──▶ inactive          └──wrong again──▶ firing (nothing said)

The hold is `clear_for_s`, or `flap_quiet_s` while flapping: an alert that fired `flap_fires` times
within `flap_window_s` stays firing until it has been quiet. An absence series is wrong by time
(`alive_us` + `absent_s`) and well by any reading.

Time. A reading counts at its event time, at most its arrival. Readings come in order of
(time, gateway, epoch, seq); one that is behind the newest, or older than `late_after_s` at its
arrival, is history: it drives a second, smaller machine (`Late`) whose transitions are marked
historical and which has no deadlines. A deadline is met `grace_s` after it, so that a reading
from before it can still arrive; the transition bears the deadline itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, dataclass, field, fields, replace
from typing import Any

from cloud.alerts.rules import Bounds, Rule, Value

__all__ = ["FIRING", "INACTIVE", "PENDING", "Key", "Late", "Order", "Series", "Transition"]

INACTIVE, PENDING, FIRING = "inactive", "pending", "firing"
POINTS_PER_WINDOW = 128  # of a rate rule; closer readings are measured but not kept

Key = tuple[str, str, str]  # (rule, device, topic; "" when the rule is by device)
Order = tuple[int, str, int, int]  # (time_us, gateway, epoch, seq): a reading's place in time


@dataclass(slots=True, frozen=True)
class Transition:
    """Something that happened to an alert.

    `state` is "pending", "cancelled" (a pending one was well again), "firing", "resolved",
    "acknowledged", "repeated" (still firing, nobody acknowledged) or "forgotten" (there is no
    such series any more; what was last said of it can go).
    """

    state: str
    alert_id: str  # the same from firing to resolved; "" before firing
    rule: str
    severity: str
    device: str
    topic: str
    at_us: int  # event time
    decided_us: int  # the engine's time when it found out
    value: Value
    reason: str = ""  # why it was resolved, when not by a reading
    historical: bool = False  # from late readings: says what was, not what is
    flapping: bool = False


@dataclass(slots=True)
class Late:
    """The machine for readings that come late; it only ever writes history."""

    newest: Order | None = None
    wrong: bool = False
    since_us: int = 0
    alert_id: str = ""  # of the historical alert that is open; "" = none
    points: list[tuple[int, float]] = field(default_factory=list)


@dataclass(slots=True)
class Series:
    """State of one (rule, device) or (rule, device, topic)."""

    rule: Rule
    bounds: Bounds
    device: str
    topic: str  # "" when the rule is by device
    newest: Order | None = None  # of the readings that counted; never goes back
    seen_us: int = 0  # arrival of the last reading of any kind
    alive_us: int = 0  # absence: the last sign of life
    state: str = INACTIVE
    wrong: bool = False  # as of the newest reading, hysteresis included
    since_us: int = 0  # when `wrong` last began while inactive
    clear_us: int | None = None  # firing: when it became well; None = it is not
    value: Value = None  # newest
    alert_id: str = ""  # of the alert that fires; "" = none
    fired_us: int = 0
    fired_count: int = 0  # so far
    ended_us: int = 0  # when the last alert was resolved
    flapping: bool = False
    fires: list[int] = field(default_factory=list)  # the last few fired_us
    repeat_us: int = 0  # when to tell again; 0 = never
    acked_by: str = ""
    acked_us: int = 0
    note: str = ""
    # (alert_id, "firing" or "resolved") last sent out, kept by the driver; ("", "") = nothing yet
    told: tuple[str, str] = ("", "")
    points: list[tuple[int, float]] = field(default_factory=list)  # rate: (time_us, value)
    late: Late | None = None
    key: Key = field(init=False)  # what identifies the series

    def __post_init__(self) -> None:
        self.key = (self.rule.name, self.device, self.topic)

    # ---- readings --------------------------------------------------------------------------------

    def receive(
        self,
        order: Order,
        value: Value,
        received_us: int,
        now_us: int,
        *,
        historical: bool = False,
    ) -> Iterator[Transition]:
        """Take a reading whose clock can be trusted.

        Args:
            order: Its place in time.
            value: What the rule measured; any text for an absence rule.
            received_us: When the cloud's stream took it.
            now_us: The engine's time, at least `received_us`.
            historical: Its gateway says it is late, whatever its age.
        """
        first = self.seen_us == 0
        self.seen_us = now_us
        event_us = min(order[0], now_us)
        late = historical or received_us - order[0] > self.bounds.late_after_us
        in_order = self.newest is None or order > self.newest
        if self.rule.config.kind == "absence":
            if in_order:
                self.newest = order
                # one that is new and late was not missed by anybody yet: it gets its full time
                self.alive_us = now_us if first and late else max(self.alive_us, event_us)
                if self.alive_us + self.rule.absent_us + self.bounds.grace_us > now_us:
                    yield from self._judge(event_us, value, now_us, wrong=False)
        elif late or not in_order:
            yield from self._receive_late(order, value, now_us)
        else:
            self.newest = order
            measured = self._measured(value, order[0], self.points)
            if measured is not None:
                wrong = self.rule.wrong(measured, latched=self.wrong)
                yield from self._judge(event_us, measured, now_us, wrong=wrong)

    def _measured(self, value: Value, time_us: int, points: list[tuple[int, float]]) -> Value:
        """Return what is compared: the value, or for a rate rule its change; None = unknown yet."""
        window_us = self.rule.window_us
        if not window_us or not isinstance(value, float):
            return value
        keep_from_us = time_us - window_us
        while points and points[0][0] < keep_from_us:
            del points[0]
        rate = None
        if points and (span_us := time_us - points[0][0]) * 2 >= window_us:
            rate = self.rule.rate(value - points[0][1], span_us)
        if not points or (time_us - points[-1][0]) * POINTS_PER_WINDOW >= window_us:
            points.append((time_us, value))
        return rate

    def _judge(
        self, event_us: int, value: Value, now_us: int, *, wrong: bool
    ) -> Iterator[Transition]:
        """Take a verdict that holds from `event_us` on."""
        self.value = value
        began, ended = wrong and not self.wrong, self.wrong and not wrong
        self.wrong = wrong
        if began:
            if self.state == FIRING:
                self.clear_us = None
            else:
                self.since_us = event_us
                self.state = PENDING
                if self.rule.for_us:
                    yield self._transition(PENDING, event_us, now_us)
        elif ended:
            if self.state == PENDING:
                self.state = INACTIVE
                yield self._transition("cancelled", event_us, now_us)
            else:
                self.clear_us = event_us
        if self.state == PENDING and event_us - self.since_us >= self.rule.for_us:
            yield self._fire(self.since_us + self.rule.for_us, now_us)
        elif self.clear_us is not None and event_us - self.clear_us >= self._hold_us():
            yield self._resolve(self.clear_us + self._hold_us(), now_us)

    # ---- deadlines -------------------------------------------------------------------------------

    def deadline_us(self) -> int:
        """Return when `handle_timeout` wants to be called next; there is always such a time."""
        return min(moment for moment, _ in self._deadlines())

    def handle_timeout(self, now_us: int) -> Iterator[Transition]:
        """Do what time alone does, up to `now_us`; the caller drops it once it is `forgotten`."""
        while True:
            moment_us, what = min(self._deadlines())
            if moment_us > now_us:
                return
            if what == "forget":
                if self.state == FIRING:
                    yield self._resolve(now_us, now_us, "no reading for long: forgotten")
                return
            if what == "fire":
                yield self._fire(self.since_us + self.rule.for_us, now_us)
            elif what == "resolve":
                assert self.clear_us is not None
                yield self._resolve(self.clear_us + self._hold_us(), now_us)
            elif what == "absent":
                absent_us = self.alive_us + self.rule.absent_us
                yield from self._judge(absent_us, None, now_us, wrong=True)
            else:
                self.repeat_us = max(self.repeat_us, now_us) + self.rule.repeat_us
                yield self._transition("repeated", now_us, now_us)

    def forgotten(self, now_us: int) -> bool:
        """Return True when there was no reading for so long that the series can go."""
        return self.seen_us + self.bounds.forget_after_us <= now_us

    def _deadlines(self) -> Iterator[tuple[int, str]]:
        grace_us = self.bounds.grace_us
        yield self.seen_us + self.bounds.forget_after_us, "forget"
        if self.state == PENDING:
            yield self.since_us + self.rule.for_us + grace_us, "fire"
        elif self.clear_us is not None:
            yield self.clear_us + self._hold_us() + grace_us, "resolve"
        if self.repeat_us and self.state == FIRING:
            yield self.repeat_us, "repeat"
        if self.rule.absent_us and not self.wrong:
            yield self.alive_us + self.rule.absent_us + grace_us, "absent"

    # ---- transitions -----------------------------------------------------------------------------

    def acknowledge(self, by: str, note: str, now_us: int) -> Transition:
        """Note that somebody has taken the alert on: it is not repeated any more."""
        assert self.state == FIRING
        self.acked_by, self.acked_us, self.note, self.repeat_us = by, now_us, note, 0
        return self._transition("acknowledged", now_us, now_us)

    def untold(self, now_us: int) -> Iterator[Transition]:
        """Return what has to be sent out for `told` to become true again."""
        told_id, told_state = self.told
        if told_state == FIRING and told_id != self.alert_id:
            resolved = self._transition("resolved", self.ended_us, now_us)
            yield replace(resolved, alert_id=told_id)
        if self.state == FIRING and self.told != (self.alert_id, FIRING):
            yield self._transition(FIRING, self.fired_us, now_us)

    def _fire(self, at_us: int, now_us: int) -> Transition:
        self.state = FIRING
        self.fired_us = at_us
        self.clear_us = None
        self.fired_count += 1
        self.alert_id = self._new_id(at_us, str(self.fired_count))
        self.repeat_us = now_us + self.rule.repeat_us if self.rule.repeat_us else 0
        self.fires = [*self.fires, at_us][-self.bounds.flap_fires :]
        self.flapping = (
            len(self.fires) == self.bounds.flap_fires
            and at_us - self.fires[0] <= self.bounds.flap_window_us
        )
        return self._transition(FIRING, at_us, now_us)

    def _resolve(self, at_us: int, now_us: int, reason: str = "") -> Transition:
        resolved = self._transition("resolved", at_us, now_us, reason)
        self.state = INACTIVE
        self.ended_us = at_us
        self.clear_us = None
        self.alert_id = ""
        self.flapping = False
        self.repeat_us = 0
        self.acked_by, self.acked_us, self.note = "", 0, ""
        return resolved

    def _hold_us(self) -> int:
        quiet_us = self.bounds.flap_quiet_us if self.flapping else 0
        return max(self.rule.clear_for_us, quiet_us)

    def _transition(self, state: str, at_us: int, now_us: int, reason: str = "") -> Transition:
        return Transition(
            state=state,
            alert_id=self.alert_id,
            rule=self.rule.name,
            severity=self.rule.config.severity,
            device=self.device,
            topic=self.topic,
            at_us=at_us,
            decided_us=now_us,
            value=self.value,
            reason=reason,
            flapping=self.flapping,
        )

    def _new_id(self, at_us: int, which: str) -> str:
        text = "\0".join((*self.key, str(at_us), which))
        return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()

    # ---- late readings ---------------------------------------------------------------------------

    def _receive_late(self, order: Order, value: Value, now_us: int) -> Iterator[Transition]:
        late = self.late
        if late is None:
            late = self.late = Late()
        if late.newest is not None and order <= late.newest:
            return
        late.newest = order
        at_us = order[0]
        measured = self._measured(value, at_us, late.points)
        if measured is None:
            return
        was = late.wrong
        late.wrong = self.rule.wrong(measured, latched=was)
        if late.wrong:
            if not was:
                late.since_us = at_us
            if not late.alert_id and at_us - late.since_us >= self.rule.for_us:
                fired_us = late.since_us + self.rule.for_us
                late.alert_id = self._new_id(fired_us, "historical")
                yield self._history(FIRING, fired_us, measured, now_us)
        elif late.alert_id:
            yield self._history("resolved", at_us, measured, now_us)
            late.alert_id = ""

    def _history(self, state: str, at_us: int, value: Value, now_us: int) -> Transition:
        assert self.late is not None
        return Transition(
            state=state,
            alert_id=self.late.alert_id,
            rule=self.rule.name,
            severity=self.rule.config.severity,
            device=self.device,
            topic=self.topic,
            at_us=at_us,
            decided_us=now_us,
            value=value,
            historical=True,
        )

    # ---- state over restarts ---------------------------------------------------------------------

    def dump(self) -> dict[str, Any]:
        """Return what `load` needs, as JSON values."""
        late = self.late
        state: dict[str, Any] = {"state": self.state, "told": self.told}
        for name, usual in _KEPT:  # what is as usual takes no room
            value = getattr(self, name)
            if value != usual:
                state[name] = value
        if late is not None:
            state["late"] = {name: getattr(late, name) for name in Late.__slots__}
        return state

    @classmethod
    def load(
        cls, rule: Rule, bounds: Bounds, device: str, topic: str, state: dict[str, Any]
    ) -> Series:
        """Return the series that `dump` saw."""
        series = cls(rule, bounds, device, topic)
        for name, usual in _KEPT:
            value = state.get(name, usual)
            setattr(series, name, list(value) if isinstance(value, list) else value)
        series.newest, series.told = _order(series.newest), tuple(state["told"])
        series.points = [(time_us, value) for time_us, value in series.points]
        if (kept := state.get("late")) is not None:
            late = series.late = Late(**kept)
            late.newest = _order(kept["newest"])
            late.points = [(time_us, value) for time_us, value in kept["points"]]
        return series


_KEPT = tuple(
    (one.name, [] if one.default is MISSING else one.default)
    for one in fields(Series)
    if one.name not in {"rule", "bounds", "device", "topic", "late", "key"}
)


def _order(value: Sequence[Any] | None) -> Order | None:
    return None if value is None else (value[0], value[1], value[2], value[3])
