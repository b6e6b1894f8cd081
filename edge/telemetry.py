"""What a gateway shows of itself: metrics for Prometheus and a status for people and scripts.

Nothing is counted here. Each figure is read, when asked for, from what the parts keep anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from bridge.runs import Origin
from edge.capture import Capture
from edge.clock_repair import ClockRepair
from edge.commands import Commands
from edge.forecast import Forecaster
from edge.journal import Journal
from edge.uplink import Uplink
from edge.wear import Wear
from mqtt.broker.broker import Broker
from runtime.metrics import Metrics, Value
from runtime.native import absent

__all__ = ["Parts", "add_gateway_metrics", "edge_metrics", "edge_status"]


@dataclass(slots=True)
class Parts:
    """The running parts of a gateway."""

    gateway: str
    journal: Journal
    capture: Capture
    broker: Broker
    uplink: Uplink
    forecaster: Forecaster
    wear: Wear
    commands: Commands | None = None
    repair: ClockRepair | None = None


def edge_status(parts: Parts) -> dict[str, Any]:
    """Return everything an operator may ask first, as JSON has it."""
    journal = parts.journal.stats()
    mqtt = parts.broker.stats()
    lanes = {lane.name.lower(): asdict(stats) for lane, stats in journal.lanes.items()}
    return {
        "gateway": parts.gateway,
        "mqtt": mqtt.figures(),
        "capture": asdict(parts.capture.stats),
        "journal": {
            "epoch": f"{journal.epoch:016x}",
            **_parted(parts.journal),
            "last_seq": journal.last_seq,
            "lanes": lanes,
            "file_bytes": journal.file_bytes,
            "disk_free_bytes": journal.disk_free_bytes,
            "tombstones": journal.tombstones,
            "evicted": {str(reason): count for reason, count in journal.evicted.items()},
            "dead_letters": journal.dead_letters,
            "damaged_rows": journal.damaged_rows,
            "written_bytes": parts.wear.written,
            "written_bytes_a_reading": parts.wear.bytes_a_reading,
            "written_bytes_s": parts.wear.rate_bytes_s,
            "over_write_budget": parts.wear.over_budget,
            "commit_window_ms": parts.wear.window_s * 1000,
        },
        "uplink": parts.uplink.status().as_dict(),
        "forecast": parts.forecaster.forecast().as_dict(),
        "commands": _commands(parts.commands),
        "clock": _clock(parts.repair),
        "c_helpers_absent": absent(),
    }


def _parted(journal: Journal) -> dict[str, Any]:
    """Return where the journal's epoch parted from another's, or is about to."""
    origin, parting = journal.origin, journal.parting
    if parting is not None:
        origin = Origin(parting.after_seq, journal.epoch)
    return {
        "parted_from": None if origin is None else f"{origin.epoch:016x}",
        "parted_after_seq": None if origin is None else origin.after_seq,
    }


def _clock(repair: ClockRepair | None) -> dict[str, Any]:
    return {} if repair is None else {"steps": repair.steps, "corrected": repair.corrected}


def _commands(commands: Commands | None) -> dict[str, Any]:
    return {} if commands is None else {"held": commands.held, "outcomes": dict(commands.counts)}


def edge_metrics(parts: Parts) -> Metrics:
    """Return the gateway's metrics."""
    metrics = Metrics()
    add_gateway_metrics(metrics, parts)
    _broker_metrics(metrics, parts.broker)
    return metrics


def add_gateway_metrics(metrics: Metrics, parts: Parts) -> None:
    """Add those of the parts that only a gateway has; its broker's are named as a node's are."""
    _uplink_metrics(metrics, parts.uplink)
    _forecast_metrics(metrics, parts.forecaster)
    _wear_metrics(metrics, parts.wear)
    _journal_metrics(metrics, parts.journal)
    metrics.wrap(
        "tidegate_capture",
        parts.capture.stats,
        counters={
            "runs": "Runs of publishes offered to the journal and taken.",
            "readings": "Publishes taken as readings.",
            "refused_full": "Runs refused because a limit is reached.",
            "refused_broken": "Runs refused because the journal could not be written.",
        },
        gauges={"waiting_bytes": "Bytes of publishes that wait for a commit."},
    )


def _uplink_metrics(metrics: Metrics, uplink: Uplink) -> None:
    def read(name: str) -> Callable[[], Value]:
        return lambda: float(getattr(uplink.status(), name) or 0)

    counters = {
        "bytes_out": "Bytes sent to the cloud, TLS and TCP/IP headers included.",
        "bytes_in": "Bytes received from the cloud, TLS and TCP/IP headers included.",
        "packet_bytes": "What the acknowledged readings take as MQTT packets of their own.",
        "readings_sent": "Readings the cloud has acknowledged.",
        "batches_sent": "Batches the cloud has acknowledged.",
        "structured_batches": "Of those, the ones in the structured mode.",
        "encoder_restarts": "Times the structured encoder's process had to be started again.",
        "refusals": "Batches the cloud has refused.",
        "dead_letters": "Readings set aside because the cloud refused them.",
        "dials": "Attempts to connect to the cloud.",
        "connections": "Connections the cloud has accepted.",
    }
    gauges = {
        "backlog_readings": "Readings the cloud does not have yet.",
        "oldest_age_s": "Age of the oldest of them, seconds.",
        "rate_readings_s": "Readings acknowledged a second, over about ten seconds.",
        "drain_s": "Seconds until the backlog is gone at that rate; 0 when unknown.",
        "bytes_in_flight": "Bytes of batches without an answer yet.",
        "day_bytes": "Bytes of the link this UTC day, both ways; 0 without a budget.",
        "month_bytes": "Bytes of the link this month.",
        "waits_s": "Seconds that live readings wait for a budget, a time window or the rate.",
        "rtt_ms": "Round trip of the connection as TCP sees it, milliseconds.",
    }
    for name, text in counters.items():
        metrics.counter(f"tidegate_uplink_{name}", text, read(name))
    for name, text in gauges.items():
        metrics.gauge(f"tidegate_uplink_{name}", text, read(name))
    metrics.gauge(
        "tidegate_uplink_online",
        "1 while connected to the cloud.",
        lambda: float(uplink.status().link in ("online", "waiting")),
    )


def _wear_metrics(metrics: Metrics, wear: Wear) -> None:
    metrics.counter(
        "tidegate_disk_written_bytes",
        "Bytes this process had written to storage, everything included.",
        lambda: float(wear.written),
    )
    gauges: dict[str, tuple[str, Callable[[], Value]]] = {
        "written_bytes_a_reading": (
            "Bytes written to storage a reading since the start.",
            lambda: wear.bytes_a_reading,
        ),
        "written_bytes_s": (
            "Bytes written to storage a second, over about twenty.",
            lambda: wear.rate_bytes_s,
        ),
        "commit_window_s": (
            "Least time from one commit to the next, seconds.",
            lambda: wear.window_s,
        ),
        "over_write_budget": (
            "1 while more is written than 'day_write_bytes' though the window is at its widest.",
            lambda: float(wear.over_budget),
        ),
    }
    for name, (text, value) in gauges.items():
        metrics.gauge(f"tidegate_disk_{name}", text, value)


def _forecast_metrics(metrics: Metrics, forecaster: Forecaster) -> None:
    def read(name: str) -> Callable[[], Value]:
        return lambda: float(getattr(forecaster.forecast(), name) or 0)

    gauges = {
        "readings_s": "Readings captured a second, over some minutes.",
        "room_bytes": "Bytes of readings the journal still takes.",
        "full_s": "Seconds until the journal is full if the link stays away; 0 = never.",
        "drain_bytes": "Bytes on the link until the backlog is gone.",
        "drain_s": "Seconds until the backlog is gone; 0 = there is none, or it is not known.",
        "link_bytes_s": "Bytes a second that the link was seen to carry; 0 = not seen yet.",
    }
    for name, text in gauges.items():
        metrics.gauge(f"tidegate_forecast_{name}", text, read(name))


def _journal_metrics(metrics: Metrics, journal: Journal) -> None:
    def by_lane(name: str) -> Callable[[], Value]:
        return lambda: {
            (lane.name.lower(),): float(getattr(stats, name))
            for lane, stats in journal.stats().lanes.items()
        }

    lane_gauges = {
        "readings": "Readings kept.",
        "bytes": "Bytes of readings kept.",
        "oldest_age_s": "Age of the oldest reading kept, seconds.",
    }
    for name, text in lane_gauges.items():
        metrics.gauge(f"tidegate_journal_lane_{name}", text, by_lane(name), ("lane",))

    def read(name: str) -> Callable[[], Value]:
        return lambda: float(getattr(journal.stats(), name))

    counters = {
        "commits": "Group commits.",
        "body_bytes": "Bytes of publishes committed.",
        "failed_commits": "Group commits that failed.",
        "damaged_rows": "Rows given up because they could not be read.",
    }
    gauges = {
        "file_bytes": "Bytes of the journal's files.",
        "disk_free_bytes": "Bytes free on its file system.",
        "tombstones": "Losses the cloud does not know of yet.",
        "commit_s": "How long the last commit took, seconds.",
        "last_seq": "The highest seq made durable.",
    }
    for name, text in counters.items():
        metrics.counter(f"tidegate_journal_{name}", text, read(name))
    for name, text in gauges.items():
        metrics.gauge(f"tidegate_journal_{name}", text, read(name))
    metrics.gauge(
        "tidegate_journal_parted",
        "1 when another gateway of this name went on from a copy of this journal.",
        lambda: float(journal.origin is not None or journal.parting is not None),
    )
    metrics.counter(
        "tidegate_journal_evicted_readings",
        "Readings dropped at a limit, by reason; each has a tombstone.",
        lambda: {(reason,): float(n) for reason, n in journal.stats().evicted.items()},
        ("reason",),
    )


def _broker_metrics(metrics: Metrics, broker: Broker) -> None:
    def read(name: str) -> Callable[[], Value]:
        return lambda: float(getattr(broker.stats(), name))

    counters = {
        "connections_total": "connections_accepted",
        "bytes_received": "bytes_received",
        "bytes_sent": "bytes_sent",
        "captured": "captured_messages",
        "capture_refusals": "capture_refusals",
        "protocol_faults": "protocol_faults",
        "queue_refusals": "queue_refusals",
        "sessions_ended_full": "sessions_ended_full",
        "store_salvages": "session_store_salvages",
    }
    for attribute, name in counters.items():
        text = f"MQTT: {name.replace('_', ' ')} since the start."
        metrics.counter(f"tidegate_mqtt_{name}", text, read(attribute))
    gauges = ("connections", "sessions", "subscriptions", "retained_messages", "queued_bytes")
    for name in (*gauges, "full_queues", "publishers_waiting"):
        text = f"MQTT: {name.replace('_', ' ')} now."
        metrics.gauge(f"tidegate_mqtt_{name}", text, read(name))
    metrics.counter(
        "tidegate_mqtt_dropped_messages",
        "MQTT: messages dropped for a subscriber, by reason.",
        lambda: {(reason,): float(n) for reason, n in broker.stats().drops.items()},
        ("reason",),
    )
