"""Decides what is sent out of what the engines say, and to whom.

Invariants: a transition from late readings is history and never sent. One that was decided long
ago, because the sink was behind its stream, is not sent either: once the partition's readings are
all known, `settle` sends what stands then, if it was not told before. What a series was last told
as is part of its state (`Series.told`).
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.partition import partition_of
from cloud.alerts.config import AlertsConfig
from cloud.alerts.engine import RuleEngine
from cloud.alerts.messages import alert_body, alert_topic, alertmanager_body, message_id
from cloud.alerts.outbox import MQTT
from cloud.alerts.series import FIRING, Key, Transition
from cloud.alerts.store import Changes, Message

__all__ = ["Teller", "webhook_target"]

BEHIND_US = 10_000_000  # a decision this long ago is told only if it still stands
_KEPT_STATES = frozenset({"firing", "resolved", "acknowledged"})
_BODIES = {"tidegate": alert_body, "alertmanager": alertmanager_body}  # WebhookConfig.format
_QUIET_STATES = frozenset({"pending", "cancelled"})


class Teller:
    """Turns transitions into history rows and messages."""

    def __init__(self, config: AlertsConfig, *, mqtt: bool) -> None:
        """Prepare; `mqtt` tells whether alerts are published on MQTT."""
        self._mqtt = mqtt
        self._webhooks = [
            (webhook_target(hook.name), hook.severities, _BODIES[hook.format])
            for hook in config.webhook
        ]
        self._summaries = {rule.name: rule.summary for rule in config.rule}
        self._untold: set[Key] = set()

    def note(
        self,
        engine: RuleEngine,
        transitions: Iterable[Transition],
        changes: Changes,
        now_us: int,
    ) -> None:
        """Keep transitions as history in `changes`, and queue messages about those of now.

        Args:
            engine: Where they come from.
            transitions: In the order they happened.
            changes: Gets the history rows and messages.
            now_us: Wall clock.
        """
        for transition in transitions:
            if transition.state in _KEPT_STATES:
                changes.history.append(transition)
            if transition.historical or transition.state in _QUIET_STATES:
                continue
            key = (transition.rule, transition.device, transition.topic)
            if now_us - transition.decided_us > BEHIND_US and key in engine.series:
                self._untold.add(key)
            else:
                self._send(engine, transition, changes, now_us)

    def check(self, keys: Iterable[Key]) -> None:
        """Have `settle` look at these series: they were loaded."""
        self._untold.update(keys)

    def settle(self, partition: int, engine: RuleEngine, changes: Changes, now_us: int) -> None:
        """Queue messages about what stands and was not told; the partition is caught up with."""
        if not self._untold:
            return
        for key in [key for key in self._untold if partition_of(key[1]) == partition]:
            self._untold.discard(key)
            series = engine.series.get(key)
            if series is not None:
                for transition in list(series.untold(now_us)):
                    self._send(engine, transition, changes, now_us)

    def _send(
        self, engine: RuleEngine, transition: Transition, changes: Changes, now_us: int
    ) -> None:
        key = (transition.rule, transition.device, transition.topic)
        identity, thread = message_id(transition), "\0".join(key)
        forgotten = transition.state == "forgotten"
        summary = self._summaries.get(transition.rule, "")
        body = b"" if forgotten else alert_body(transition, summary)
        if self._mqtt and transition.state != "repeated":  # it is retained there anyway
            address = alert_topic(transition)
            changes.outbox.append(Message(MQTT, identity, thread, address, body, now_us))
        for target, severities, make in self._webhooks:
            if not forgotten and (not severities or transition.severity in severities):
                said = make(transition, summary)
                changes.outbox.append(Message(target, identity, thread, "", said, now_us))
        series = engine.series.get(key)
        if series is not None:
            standing = "resolved" if transition.state == "resolved" else FIRING
            series.told = (transition.alert_id, standing)
            engine.touch(series)


def webhook_target(name: str) -> str:
    """Return the name of a webhook as a target of the outbox."""
    return f"webhook:{name}"
