"""What a cloud node shows of itself: metrics for Prometheus, and figures as JSON.

Nothing is counted here. The figures are those the parts keep; what needs the stream's thread
(lag, sizes) is read once in a while by the service and shown as of then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from cloud.cluster.checks import RELAXED
from cloud.cluster.replicas import Replicas
from cloud.ingest import CloudCapture
from cloud.sinks.runner import SinkStats
from cloud.storage import Storage
from cloud.stream.contract import Stream, StreamStats
from cloud.stream.jetstream.engine import JetStreamStream
from mqtt.broker.broker import Broker
from runtime.metrics import Metrics, Value
from runtime.native import absent

__all__ = ["Sample", "figures_of", "register_metrics", "register_stream_metrics"]


@dataclass(slots=True)
class Sample:
    """Figures read together, at one moment."""

    time_us: int = 0
    stream: StreamStats = field(default_factory=lambda: StreamStats(0, 0, 0, {}))
    sinks: Sequence[SinkStats] = ()
    stream_file_bytes: int = 0


def figures_of(
    node_id: str,
    sample: Sample,
    capture: CloudCapture,
    broker: Broker,
    storage: Storage | None,
    ready: Sequence[str],
) -> dict[str, Any]:
    """Return everything an operator may ask first, as JSON has it."""
    mqtt = broker.stats()
    batches, devices = capture.batches.stats, capture.devices.stats
    return {
        "node": node_id,
        "ready": not ready,
        "not_ready": list(ready),
        "readings_in": batches.readings + devices.readings,
        "readings_stored": storage.stats.rows if storage is not None else 0,
        "mqtt": mqtt.figures(),
        "ingest": {
            **asdict(batches),
            "device_readings": devices.readings,
            "waiting_bytes": capture.waiting_bytes,
        },
        "stream": {
            "readings": sample.stream.readings,
            "entries": sample.stream.entries,
            "bytes": sample.stream.bytes,
            "file_bytes": sample.stream_file_bytes,
        },
        "storage": asdict(storage.stats) if storage is not None else {},
        "sinks": {sink.name: _sink_status(sink, sample.time_us) for sink in sample.sinks},
        "c_helpers_absent": absent(),
    }


def _sink_status(sink: SinkStats, now_us: int) -> dict[str, Any]:
    return {
        "readings": sink.readings,
        "entries": sink.entries,
        "writes": sink.writes,
        "errors": sink.errors,
        "dead_letters": sink.dead_letters,
        "partitions": len(sink.tokens),
        "held_up_by": sink.cause,
        "waits_s": sink.waits_s,
        "lag_entries": sum(lag.entries for lag in sink.lag.values()),
        "lag_readings": sum(lag.readings for lag in sink.lag.values()),
        "lag_s": _oldest_s(sink, now_us),
    }


def _oldest_s(sink: SinkStats, now_us: int) -> float:
    oldest_us = min((lag.oldest_us for lag in sink.lag.values()), default=now_us)
    return max(0.0, (now_us - oldest_us) / 1_000_000)


def register_metrics(
    metrics: Metrics,
    sample: Callable[[], Sample],
    capture: CloudCapture,
    broker: Broker,
    storage: Storage | None,
    ready: Callable[[], Sequence[str]],
) -> None:
    """Add the node's own figures to `metrics`."""
    metrics.gauge(
        "tidegate_node_ready", "1 while the stream takes appends.", lambda: float(not ready())
    )
    _ingest_metrics(metrics, capture)
    _stream_metrics(metrics, sample)
    _sink_metrics(metrics, sample)
    if storage is not None:
        for name, text in {
            "rows": "Rows written since the start.",
            "duplicates": "Readings that were stored already.",
            "expired": "Rows deleted by retention.",
        }.items():
            metrics.counter(f"tidegate_storage_{name}", text, _attribute(storage, name))
        metrics.gauge(
            "tidegate_storage_file_bytes",
            "Bytes of the database in use.",
            _attribute(storage, "file_bytes"),
        )
    metrics.gauge(
        "tidegate_mqtt_connections",
        "Clients connected.",
        lambda: float(broker.stats().connections),
    )
    metrics.gauge(
        "tidegate_mqtt_full_queues",
        "Sessions whose queues a publish found full.",
        lambda: float(broker.stats().full_queues),
    )
    metrics.counter(
        "tidegate_mqtt_drops",
        "Messages dropped, by reason.",
        lambda: {(reason,): float(n) for reason, n in broker.stats().drops.items()},
        ("reason",),
    )


def register_stream_metrics(metrics: Metrics, stream: Stream) -> None:
    """Add what a stream tells of itself: its durability, and a cluster's counters."""
    metrics.gauge(
        "tidegate_stream_durable",
        "1 while acknowledged readings survive a power cut; what they have survived as a label.",
        lambda: {(stream.durability,): float(stream.durability != RELAXED)},
        ("durability",),
    )
    if not isinstance(stream, JetStreamStream):
        return
    for name, text in _CLUSTER_COUNTERS.items():
        metrics.counter(f"tidegate_cluster_{name}", text, _figure(stream, name))
    for name, text in _CLUSTER_GAUGES.items():
        metrics.gauge(f"tidegate_cluster_{name}", text, _figure(stream, name))


def register_replicas(metrics: Metrics, replicas: Replicas) -> None:
    """Add how the servers keep the cluster's streams."""
    metrics.gauge(
        "tidegate_cluster_streams_led",
        "Streams and buckets that a NATS server leads.",
        lambda: {(server,): float(count) for server, count in replicas.leaders().items()},
        ("server",),
    )
    metrics.gauge(
        "tidegate_cluster_stream_quorum",
        "1 while more than half of a stream's replicas have everything.",
        lambda: {(name,): float(kept.quorum) for name, kept in replicas.streams.items()},
        ("stream",),
    )
    metrics.gauge(
        "tidegate_cluster_stream_replicas_current",
        "Replicas of a stream that have everything.",
        lambda: {(name,): float(kept.current) for name, kept in replicas.streams.items()},
        ("stream",),
    )
    metrics.gauge(
        "tidegate_cluster_stream_append_s",
        "Seconds an append of this node took, acknowledged or given up; 0: there was none.",
        lambda: {(name, kept.leader): kept.append_s for name, kept in replicas.streams.items()},
        ("stream", "server"),
    )


_CLUSTER_COUNTERS = {
    "published": "Messages with bodies that NATS has stored.",
    "repeated": "Messages with bodies sent more than once.",
    "records": "Records of the ledger written by this node.",
    "appends": "Appends of all nodes that count, as read from the ledger.",
    "void": "Appends of all nodes that came too late to count.",
    "conflicts": "Appends given up because another node had served the gateway.",
    "reconnects": "Connections to NATS after the first.",
}
_CLUSTER_GAUGES = {
    "connected": "1 while there is a connection to NATS.",
    "ledger_seq": "Sequence of the last record read from the ledger.",
    "checkpoint_seq": "Sequence of the newest checkpoint of the ledger.",
}


def _figure(stream: JetStreamStream, name: str) -> Callable[[], Value]:
    return lambda: stream.figures()[name]


def _attribute(storage: Storage, name: str) -> Callable[[], Value]:
    return lambda: float(getattr(storage.stats, name))


def _ingest_metrics(metrics: Metrics, capture: CloudCapture) -> None:
    metrics.wrap(
        "tidegate_ingest",
        capture.batches.stats,
        counters={
            "batches": "Batches decoded.",
            "readings": "Readings of batches new to the stream.",
            "duplicates": "Readings that were held already.",
            "batch_bytes": "Bytes of batches.",
            "payload_bytes": "Bytes of topics and payloads of the readings in them.",
            "entry_bytes": "Bytes of the entries made of them.",
            "tombstones": "Tombstones taken.",
        },
    )
    metrics.counter(
        "tidegate_ingest_parted_runs",
        "Hellos of gateways that go on from a journal which another of their name has taken on.",
        lambda: float(capture.batches.runs.forks),
    )
    metrics.counter(
        "tidegate_ingest_refused",
        "Batches refused, by reason.",
        lambda: {(word,): float(n) for word, n in capture.batches.stats.refused.items()},
        ("reason",),
    )
    metrics.counter(
        "tidegate_ingest_device_readings",
        "Readings of devices connected to this node.",
        lambda: float(capture.devices.stats.readings),
    )
    metrics.gauge(
        "tidegate_ingest_waiting_bytes",
        "Bytes of publishes that wait for the stream.",
        lambda: float(capture.waiting_bytes),
    )


def _stream_metrics(metrics: Metrics, sample: Callable[[], Sample]) -> None:
    for name, text in {
        "readings": "Readings held.",
        "entries": "Entries held.",
        "bytes": "Bytes of the entries held.",
    }.items():
        metrics.gauge(f"tidegate_stream_{name}", text, _of_stream(sample, name))
    metrics.gauge(
        "tidegate_stream_file_bytes",
        "Bytes of the stream's file in use.",
        lambda: float(sample().stream_file_bytes),
    )


def _of_stream(sample: Callable[[], Sample], name: str) -> Callable[[], Value]:
    return lambda: float(getattr(sample().stream, name))


def _sink_metrics(metrics: Metrics, sample: Callable[[], Sample]) -> None:
    def by_sink(value: Callable[[SinkStats], float]) -> Callable[[], Value]:
        return lambda: {(sink.name,): value(sink) for sink in sample().sinks}

    def by_partition(value: str) -> Mapping[tuple[str, ...], float]:
        return {
            (sink.name, str(partition)): float(getattr(lag, value))
            for sink in sample().sinks
            for partition, lag in sink.lag.items()
        }

    counters: dict[str, tuple[str, Callable[[SinkStats], float]]] = {
        "readings": ("Readings written.", lambda sink: sink.readings),
        "errors": ("Writes that failed.", lambda sink: sink.errors),
        "dead_letters": ("Entries set aside.", lambda sink: sink.dead_letters),
        "taken_over": ("Partitions taken over by this node.", lambda sink: sink.taken_over),
        "fenced": (
            "Partitions of this node that another turned out to hold.",
            lambda sink: sink.fenced,
        ),
    }
    for name, (text, value) in counters.items():
        metrics.counter(f"tidegate_sink_{name}", text, by_sink(value), ("sink",))
    metrics.gauge(
        "tidegate_sink_partitions",
        "Partitions this node works on.",
        by_sink(lambda sink: len(sink.tokens)),
        ("sink",),
    )
    metrics.gauge(
        "tidegate_sink_waits_s",
        "How long the sink has not got on with what there is to do, seconds.",
        by_sink(lambda sink: sink.waits_s),
        ("sink",),
    )
    metrics.gauge(
        "tidegate_sink_lag_s",
        "Age of the oldest entry the sink has not taken, seconds.",
        by_sink(lambda sink: _oldest_s(sink, sample().time_us)),
        ("sink",),
    )
    metrics.gauge(
        "tidegate_sink_lag_readings",
        "Readings the sink has not taken.",
        lambda: by_partition("readings"),
        ("sink", "partition"),
    )
    metrics.gauge(
        "tidegate_sink_lag_entries",
        "Entries the sink has not taken.",
        lambda: by_partition("entries"),
        ("sink", "partition"),
    )
