"""The rule engine of one partition: readings and time in, transitions out, no I/O.

    transitions = engine.receive(batch, now_us)
    deadline = engine.next_deadline_us()
    transitions = engine.handle_timeout(now_us)

The verbs are those of the protocol machines (STYLE 8) on wall-clock microseconds, the unit of
event time: `now_us` is the time up to which the partition's readings are known. A device lies in
one partition and a partition has one engine, so a timer has one owner.

Invariants:
- The engine's time never goes back; neither does any series' newest reading.
- The driver gives each entry once, in stream order; readings may lie in any order of time.
- `dump_changes` and `load` carry all state: an engine restarted between two calls gives the same
  transitions as one that was not.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bridge.readings import Readings
from cloud.alerts.rules import Bounds, Rule
from cloud.alerts.series import FIRING, PENDING, Key, Series, Transition
from cloud.fields import json_document

__all__ = ["Batch", "EngineStats", "RuleEngine", "StoredSeries"]

_SOURCES_MAX = 65_536  # of the cache from source to rules


@dataclass(slots=True, frozen=True)
class Batch:
    """Readings as one stream entry holds them."""

    gateway: str
    epoch: int
    received_us: int  # when the stream took them
    readings: Readings
    historical: bool = False  # their gateway says that they waited through an outage


@dataclass(slots=True, frozen=True)
class StoredSeries:
    """One series as the store keeps it; `state` is None once it is to be deleted."""

    key: Key
    severity: str
    fingerprint: str  # of the rule it belongs to
    state: dict[str, Any] | None


@dataclass(slots=True)
class EngineStats:
    """What went by and what is kept; shared by the engines of a node."""

    series: int = 0  # kept now
    evaluated: int = 0  # readings measured by a rule
    late: int = 0  # of those: historical, or older than late_after_s at arrival: only history
    unreadable: int = 0  # had no value where the rule looks for one
    clock_refused: int = 0  # lay too far in the future
    refused_series: int = 0  # readings of devices beyond series_max


class RuleEngine:
    """Rules over the devices of one partition.

    Attributes:
        now_us: The engine's time.
        series: State by key.
    """

    def __init__(self, rules: Sequence[Rule], bounds: Bounds, stats: EngineStats) -> None:
        """Begin without any state; `load` brings what was kept."""
        self.now_us = 0
        self.series: dict[Key, Series] = {}
        self._rules = rules
        self._bounds = bounds
        self._stats = stats
        self._by_source: dict[tuple[str, str], tuple[Rule, ...]] = {}
        # a heap; of a key's entries only the one in `_queued` counts, and none is later than what
        # the series wants: an entry that comes up too early is put back
        self._deadlines: list[tuple[int, Key]] = []
        self._queued: dict[Key, int] = {}
        self._changed: set[Key] = set()
        self._removed: dict[Key, StoredSeries] = {}
        self._deaf = (0, 0)

    # ---- verbs -----------------------------------------------------------------------------------

    def receive(self, batch: Batch, now_us: int) -> list[Transition]:
        """Take readings in stream order.

        Args:
            batch: The readings of one entry.
            now_us: Everything of this partition before this is known; usually `received_us`.
        """
        now_us = max(now_us, batch.received_us)
        transitions: list[Transition] = []
        if now_us > self.now_us:
            transitions = self.handle_timeout(now_us - 1)  # more may come of that very time
            self.now_us = now_us
        readings = batch.readings
        rules_by_source = [self._rules_for(source) for source in readings.sources]
        if not any(rules_by_source):
            return transitions
        ahead_us = batch.received_us + self._bounds.ahead_max_us
        behind_us = batch.received_us - self._bounds.late_after_us
        rows = zip(
            readings.seqs, readings.source_index, readings.times_us, readings.payloads, strict=True
        )
        for seq, index, time_us, payload in rows:
            rules = rules_by_source[index]
            if not rules:
                continue
            if time_us > ahead_us:
                self._stats.clock_refused += 1
                continue
            self._stats.late += batch.historical or time_us < behind_us
            topic, device = readings.sources[index]
            order = (time_us, batch.gateway, batch.epoch, seq)
            needed = any(rule.needs_value for rule in rules)
            document = json_document(payload) if needed else None
            for rule in rules:
                value = rule.measure(payload, document) if rule.needs_value else ""
                if value is None:
                    self._stats.unreadable += 1
                    continue
                series = self._series_for(rule, device, topic)
                if series is None:
                    self._stats.refused_series += 1
                    continue
                self._stats.evaluated += 1
                before = series.state, series.wrong, series.clear_us
                transitions += series.receive(
                    order, value, batch.received_us, self.now_us, historical=batch.historical
                )
                self._changed.add(series.key)
                # only these make a deadline earlier
                if (
                    before != (series.state, series.wrong, series.clear_us)
                    or series.key not in self._queued
                ):
                    self._queue(series)
        return transitions

    def next_deadline_us(self) -> int | None:
        """Return when `handle_timeout` has something to do; None when there is no series."""
        if not self._deadlines:
            return None
        deadline_us = self._deadlines[0][0]
        from_us, until_us = self._deaf
        return until_us if from_us <= deadline_us < until_us else deadline_us

    def handle_timeout(self, now_us: int) -> list[Transition]:
        """Do what time alone does; everything of this partition up to `now_us` is known."""
        now_us = self.now_us = max(now_us, self.now_us)
        transitions: list[Transition] = []
        if self._deaf[0] <= now_us < self._deaf[1]:
            return transitions
        while self._deadlines and self._deadlines[0][0] <= now_us:
            deadline_us, key = heapq.heappop(self._deadlines)
            if self._queued.get(key) != deadline_us:
                continue  # an earlier entry took its place
            del self._queued[key]
            series = self.series[key]
            if series.deadline_us() <= now_us:
                transitions += series.handle_timeout(now_us)
                if series.forgotten(now_us):
                    transitions += self._forget(series)
                    continue
                self._changed.add(key)
            self._queue(series)
        return transitions

    def acknowledge(self, alert_id: str, by: str, note: str, now_us: int) -> Transition | None:
        """Note that somebody has taken a firing alert on; None when it does not fire here.

        `now_us` is when they did; the engine's own time may be behind it, and stays there.
        """
        for series in self.series.values():
            if series.state == FIRING and series.alert_id == alert_id:
                transition = series.acknowledge(by, note, max(now_us, self.now_us))
                self.touch(series)
                return transition
        return None

    def deaf(self, from_us: int, until_us: int) -> None:
        """Let no deadline be met while time is in this span: readings of it may still be coming.

        For a node that was down from `from_us`: a device is not silent because nobody listened.
        """
        self._deaf = (from_us, until_us)

    def active(self) -> Iterator[Series]:
        """Yield what is pending or firing."""
        return (series for series in self.series.values() if series.state in {PENDING, FIRING})

    def touch(self, series: Series) -> None:
        """Have a series stored with the next `dump_changes`, and its deadline met."""
        self._changed.add(series.key)
        self._queue(series)

    # ---- state over restarts ---------------------------------------------------------------------

    @property
    def has_changes(self) -> bool:
        """True when `dump_changes` would return something."""
        return bool(self._changed or self._removed)

    def dump_changes(self) -> list[StoredSeries]:
        """Return what changed since the last call; to be stored with the cursor."""
        stored = list(self._removed.values())
        for key in self._changed:
            series = self.series[key]
            rule = series.rule
            stored.append(StoredSeries(key, rule.config.severity, rule.fingerprint, series.dump()))
        self._removed.clear()
        self._changed.clear()
        return stored

    def dump(self) -> Iterator[StoredSeries]:
        """Yield all state, for whoever goes on with it elsewhere."""
        for key, series in self.series.items():
            rule = series.rule
            yield StoredSeries(key, rule.config.severity, rule.fingerprint, series.dump())

    def close(self) -> None:
        """Count no more: another node goes on with it."""
        self._stats.series -= len(self.series)
        self.series.clear()

    def load(self, kept: Iterable[StoredSeries], now_us: int) -> list[Transition]:
        """Bring back kept state; series of rules that are gone or changed end here.

        Args:
            kept: What `dump_changes` gave, the newest of each key.
            now_us: Where the engine's time stood.

        Returns:
            "resolved" for each of those that was firing, "forgotten" for each that was told of.
        """
        rules: Mapping[str, Rule] = {rule.name: rule for rule in self._rules}
        self.now_us = max(now_us, self.now_us)
        transitions: list[Transition] = []
        for item in kept:
            name, device, topic = item.key
            rule = rules.get(name)
            state = item.state
            assert state is not None
            if rule is not None and rule.fingerprint == item.fingerprint:
                series = Series.load(rule, self._bounds, device, topic, state)
                self.series[item.key] = series
                self._stats.series += 1
                self._queue(series)
                continue
            self._removed[item.key] = StoredSeries(item.key, item.severity, "", None)
            reason = "the rule was " + ("removed" if rule is None else "changed")
            if state["state"] == FIRING:
                transitions.append(_ended(item, state, self.now_us, "resolved", reason))
            if state["told"][0]:
                transitions.append(_ended(item, state, self.now_us, "forgotten", reason))
        return transitions

    # ---- inside ----------------------------------------------------------------------------------

    def _rules_for(self, source: tuple[str, str]) -> tuple[Rule, ...]:
        rules = self._by_source.get(source)
        if rules is None:
            if len(self._by_source) >= _SOURCES_MAX:
                self._by_source.clear()
            rules = tuple(rule for rule in self._rules if rule.concerns(*source))
            self._by_source[source] = rules
        return rules

    def _series_for(self, rule: Rule, device: str, topic: str) -> Series | None:
        key = (rule.name, device, topic if rule.config.by == "topic" else "")
        series = self.series.get(key)
        if series is None and self._stats.series < self._bounds.series_max:
            series = self.series[key] = Series(rule, self._bounds, *key[1:])
            self._stats.series += 1
            self._removed.pop(key, None)
        return series

    def _queue(self, series: Series) -> None:
        """Have the series' deadline met; an earlier one already queued finds the later one."""
        key, deadline_us = series.key, series.deadline_us()
        queued_us = self._queued.get(key)
        if queued_us is not None and queued_us <= deadline_us:
            return
        self._queued[key] = deadline_us
        heapq.heappush(self._deadlines, (deadline_us, key))
        if len(self._deadlines) > 2 * len(self._queued) + 64:
            self._deadlines = [(moment_us, key) for key, moment_us in self._queued.items()]
            heapq.heapify(self._deadlines)

    def _forget(self, series: Series) -> Iterator[Transition]:
        key = series.key
        del self.series[key]
        self._stats.series -= 1
        self._changed.discard(key)
        item = StoredSeries(key, series.rule.config.severity, "", None)
        self._removed[key] = item
        if series.told[0]:
            yield _ended(item, series.dump(), self.now_us, "forgotten", "no reading for long")


def _ended(
    item: StoredSeries, state: Mapping[str, Any], now_us: int, what: str, reason: str
) -> Transition:
    """Return the end of a series that is no longer there to tell it."""
    return Transition(
        state=what,
        alert_id=state.get("alert_id") or state["told"][0],
        rule=item.key[0],
        severity=item.severity,
        device=item.key[1],
        topic=item.key[2],
        at_us=now_us,
        decided_us=now_us,
        value=state.get("value"),
        reason=reason,
    )
