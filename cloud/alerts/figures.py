"""What a node's metrics say of its alerts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping

from cloud.alerts.sink import AlertSink
from runtime.metrics import Metrics

__all__ = ["register_figures"]

_MESSAGES = {
    "delivered": "Messages delivered.",
    "failed": "Attempts to deliver that failed.",
    "dropped": "Messages that their target refused for good.",
}


def register_figures(sink: AlertSink, metrics: Metrics) -> None:
    """Show what a sink does, which need not be open yet."""
    metrics.wrap(
        "tidegate_alerts",
        sink.stats,
        counters={
            "evaluated": "Readings measured by a rule.",
            "late": "Readings for a rule that came late: history only.",
            "unreadable": "Readings without a value where the rule looks for one.",
            "clock_refused": "Readings too far in the future to count.",
            "refused_series": "Readings of devices beyond alerts.limits.series_max.",
        },
        gauges={"series": "Pairs of rule and device that are watched."},
    )

    def count_active() -> Mapping[tuple[str, ...], float]:
        counts = Counter(series.state for series in sink.standing())
        return {(state,): counts[state] for state in ("pending", "firing")}

    metrics.gauge("tidegate_alerts_active_alerts", "Alerts by state.", count_active, ("state",))

    def messages(what: str) -> Callable[[], Mapping[tuple[str, ...], float]]:
        def read() -> Mapping[tuple[str, ...], float]:
            counts = getattr(sink.delivery, what)
            return {(target,): counts.get(target, 0) for target in sink.targets}

        return read

    for what, text in _MESSAGES.items():
        metrics.counter(f"tidegate_alerts_messages_{what}", text, messages(what), ("target",))
    metrics.counter(
        "tidegate_alerts_messages_overflowed",
        "Messages dropped because the outbox was full.",
        lambda: sink.overflowed,
    )
