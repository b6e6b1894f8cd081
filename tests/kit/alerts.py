"""Verbs for tests of alerts: rules and readings in few words, times in whole seconds.

Second 0 is a day in 2023, so that event times are real ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bridge.readings import Readings
from cloud.alerts.config import LimitsConfig, RuleConfig
from cloud.alerts.engine import Batch, EngineStats, RuleEngine, StoredSeries
from cloud.alerts.rules import Bounds, Rule
from cloud.alerts.series import Key, Transition
from cloud.alerts.sink import AlertSink

__all__ = ["START_US", "EngineLab", "batch", "hot", "said", "second", "silent", "tick", "us"]

START_US = 1_700_000_000_000_000


def us(second: float) -> int:
    """Return a second of the test as microseconds since 1970."""
    return START_US + round(second * 1_000_000)


def second(time_us: int) -> float:
    """Return microseconds since 1970 as a second of the test."""
    return (time_us - START_US) / 1_000_000


async def tick(sink: AlertSink) -> float:
    """Have a sink meet the deadlines that are due, in turn with its own task; see `_tick`."""
    async with sink._lock:
        return await sink._tick()


def hot(**keys: Any) -> RuleConfig:
    """Return a threshold rule: over 30 is wrong; `keys` change it."""
    return RuleConfig(**{"name": "hot", "kind": "threshold", "op": ">", "value": 30.0, **keys})


def silent(**keys: Any) -> RuleConfig:
    """Return an absence rule of 60 s; `keys` change it."""
    return RuleConfig(**{"name": "silent", "kind": "absence", "absent_s": 60.0, **keys})


def batch(
    rows: Iterable[tuple[float, str, object]],
    *,
    received: float,
    first_seq: int = 1,
    gateway: str = "gw",
    device: str | None = None,
) -> Batch:
    """Return readings as one entry: (second at the edge, topic, payload); JSON unless bytes.

    The device is the topic's second level unless `device` names it.
    """
    given = list(rows)
    return Batch(
        gateway,
        7,
        us(received),
        Readings(
            seqs=range(first_seq, first_seq + len(given)),
            sources=[(topic, device or topic.split("/")[1]) for _, topic, _ in given],
            source_index=list(range(len(given))),
            times_us=[us(at) for at, _, _ in given],
            flags=[1] * len(given),
            payloads=[p if isinstance(p, bytes) else json.dumps(p).encode() for _, _, p in given],
            properties=[b""] * len(given),
        ),
    )


def said(transitions: Sequence[Transition]) -> list[tuple[str, float]]:
    """Return (state, second) of transitions; historical ones as "late ..."."""
    return [(("late " if t.historical else "") + t.state, second(t.at_us)) for t in transitions]


class EngineLab:
    """An engine that can be restarted from what it dumped, as the store would keep it."""

    def __init__(self, *rules: RuleConfig, **limits: float) -> None:
        defaults: dict[str, Any] = {"grace_s": 0.0}
        self.bounds = Bounds.of(LimitsConfig(**{**defaults, **limits}))
        self.stats = EngineStats()
        self.kept: dict[Key, str] = {}
        self.stored: dict[Key, StoredSeries] = {}
        self.engine = RuleEngine([Rule(rule) for rule in rules], self.bounds, self.stats)
        self.seq = 0

    def reads(
        self, at: float, value: object, *, received: float | None = None, topic: str = "devices/d/t"
    ) -> list[tuple[str, float]]:
        """Give one reading, taken at second `at`."""
        self.seq += 1
        received = at if received is None else received
        entry = batch([(at, topic, value)], received=received, first_seq=self.seq)
        return said(self.engine.receive(entry, entry.received_us))

    def waits(self, until: float) -> list[tuple[str, float]]:
        """Let time pass without readings."""
        return said(self.engine.handle_timeout(us(until)))

    def saves(self) -> None:
        """Keep what changed, through JSON as the store does."""
        for item in self.engine.dump_changes():
            if item.state is None:
                self.stored.pop(item.key, None)
            else:
                state = json.loads(json.dumps(item.state))
                self.stored[item.key] = StoredSeries(
                    item.key, item.severity, item.fingerprint, state
                )

    def restarts(self, *rules: RuleConfig) -> list[tuple[str, float]]:
        """Save, and go on with a new engine; with `rules`, the configuration was changed too."""
        self.saves()
        compiled = [Rule(rule) for rule in rules] or list(self.engine._rules)
        now_us = self.engine.now_us
        self.stats.series = 0
        self.engine = RuleEngine(compiled, self.bounds, self.stats)
        return said(self.engine.load(list(self.stored.values()), now_us))
