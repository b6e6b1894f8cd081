"""What `/metrics` shows of MQTT across nodes, `cloud.cluster.mqtt_bus.MqttClusterStats`."""

from __future__ import annotations

from collections.abc import Callable

from cloud.cluster.mqtt_bus import MqttCluster
from runtime.metrics import Metrics

__all__ = ["register_mqtt_cluster"]

_GAUGES = {
    "nodes": "Nodes of the cluster whose leases run, this one too.",
    "lasting_sessions": "Sessions in the cluster that outlive their connections.",
    "held_sessions": "Those that this node has.",
    "sessions_behind": "Those of this node that have more in the log than in memory.",
    "waiting_bytes": "Messages that are on their way into the log.",
    "log_fill": "How full the cluster's log is, 0 to 1; at the node that keeps house.",
    "not_durable": "Writes to the cluster that answers wait for.",
}
_COUNTERS = {
    "logged_messages": "Messages that this node put into the cluster's log.",
    "log_entries": "Entries of the log that carried them.",
    "read_entries": "Entries of the log that this node has read.",
    "dropped_messages": "QoS 0 messages that other nodes did not get.",
    "lost_messages": "Messages that went from the full or old log before their sessions came.",
    "unguarded_messages": "Messages of shared subscriptions that went from it unacknowledged.",
    "taken_over": "Sessions that this node took from another one.",
    "shares_moved": "Messages of shared subscriptions that found another member.",
}


def register_mqtt_cluster(metrics: Metrics, cluster: MqttCluster) -> None:
    """Add the figures of a node's share of the cluster's MQTT."""
    for name, text in _GAUGES.items():
        metrics.gauge(f"tidegate_mqtt_cluster_{name}", text, _reader(cluster, name))
    for name, text in _COUNTERS.items():
        metrics.counter(f"tidegate_mqtt_cluster_{name}", text, _reader(cluster, name))


def _reader(cluster: MqttCluster, name: str) -> Callable[[], float]:
    return lambda: float(getattr(cluster.stats(), name))
