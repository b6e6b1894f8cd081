"""Alerts and what happened to them as the API shows them."""

from __future__ import annotations

from cloud.alerts.config import SEVERITIES
from cloud.alerts.series import FIRING, Series
from cloud.alerts.store import HistoryRow
from cloud.views import AlertEventView, AlertView

__all__ = ["alert_view", "event_view", "urgency"]


def urgency(view: AlertView) -> tuple[int, int, str]:
    """Return what alerts are sorted by: the most severe and newest first."""
    return -SEVERITIES.index(view.severity), -view.since_us, view.rule


def alert_view(series: Series) -> AlertView:
    """Return an alert that is pending or firing."""
    firing = series.state == FIRING
    return AlertView(
        alert_id=series.alert_id,
        state=series.state,
        rule=series.rule.name,
        severity=series.rule.config.severity,
        device=series.device,
        topic=series.topic,
        value=series.value,
        since_us=series.since_us,
        fired_us=series.fired_us if firing else None,
        clear_us=series.clear_us,
        flapping=series.flapping,
        acked_by=series.acked_by,
        acked_us=series.acked_us or None,
        note=series.note,
        summary=series.rule.config.summary,
    )


def event_view(row: HistoryRow) -> AlertEventView:
    """Return a transition that is kept."""
    names = (name for name in AlertEventView.__slots__ if name != "event_id")
    return AlertEventView(
        event_id=str(row.id), **{name: getattr(row.transition, name) for name in names}
    )
