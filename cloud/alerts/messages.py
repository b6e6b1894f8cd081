"""What is sent out of an alert: MQTT topics and JSON bodies.

    alerts/{severity}/{rule}/{device}           retained; the alert's last state
    alerts/{severity}/{rule}/{device}/{topic}   when the rule is by topic

A webhook may be Alertmanager's: then the body is a list of one alert of its API v2. It holds an
alert that nobody repeats for resolved after a while, unless it is told until when it stands: so one
that fires is said to stand for a year, and the message that resolves it ends it.

`+`, `#`, `%` and NUL of a device id are written as `%2B`, `%23`, `%25` and `%00`. The body is the
same for MQTT and webhooks. An empty retained message takes back what nobody will resolve any more.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime

from cloud.alerts.series import Transition

__all__ = ["alert_body", "alert_topic", "alertmanager_body", "iso", "message_id"]

_STANDS_US = 365 * 86_400_000_000

_ESCAPES = str.maketrans({"%": "%25", "+": "%2B", "#": "%23", "\0": "%00"})


def alert_topic(transition: Transition) -> str:
    """Return the MQTT topic an alert's state is retained under."""
    levels = ["alerts", transition.severity, transition.rule, transition.device]
    if transition.topic:
        levels.append(transition.topic)
    return "/".join(levels).translate(_ESCAPES)


def message_id(transition: Transition) -> str:
    """Return the id of the message about a transition: the same however often it is made."""
    return f"{transition.alert_id}.{transition.state}.{transition.at_us:x}"


def alert_body(transition: Transition, summary: str) -> bytes:
    """Return the JSON body of the message about a transition."""
    body = {
        "id": message_id(transition),
        "alert_id": transition.alert_id,
        "state": transition.state,
        "rule": transition.rule,
        "severity": transition.severity,
        "device": transition.device,
        "topic": transition.topic,
        "value": transition.value,
        "at": iso(transition.at_us),
        "at_us": transition.at_us,
        "decided_us": transition.decided_us,
        "flapping": transition.flapping,
        "reason": transition.reason,
        "summary": summary,
    }
    return json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")


def alertmanager_body(transition: Transition, summary: str) -> bytes:
    """Return the body for Alertmanager's `POST /api/v2/alerts` about a transition."""
    labels = {
        "alertname": transition.rule,
        "severity": transition.severity,
        "device": transition.device,
    }
    if transition.topic:
        labels["topic"] = transition.topic
    annotations = {
        "summary": summary,
        "value": "" if transition.value is None else str(transition.value),
        "reason": transition.reason,
        "state": transition.state,
    }
    resolved = transition.state == "resolved"
    alert = {
        "labels": labels,
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": iso(transition.at_us),
        "endsAt": iso(transition.at_us + (0 if resolved else _STANDS_US)),
    }
    return json.dumps([alert], ensure_ascii=False).encode("utf-8", "replace")


def iso(time_us: int) -> str:
    """Return microseconds since 1970 as ISO 8601 in UTC, or as the number when no date has it."""
    try:
        return datetime.fromtimestamp(time_us / 1_000_000, UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError, OSError):
        return str(time_us)
