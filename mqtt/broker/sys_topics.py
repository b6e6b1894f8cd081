"""What a broker tells of itself under $SYS: retained messages that are replaced now and then.

The names are those that other brokers use too, so that their dashboards work.
"""

from __future__ import annotations

from mqtt.broker.core import BrokerStats
from mqtt.broker.router import Router
from mqtt.server_messages import Message

__all__ = ["publish_sys_topics"]


def publish_sys_topics(router: Router, stats: BrokerStats, uptime_s: float, now_s: float) -> None:
    """Publish the broker's counters to whoever subscribes to $SYS."""
    values = {
        "broker/version": "tidegate",
        "broker/uptime": f"{uptime_s:.0f} seconds",
        "broker/clients/connected": str(stats.connections),
        "broker/clients/total": str(stats.sessions),
        "broker/subscriptions/count": str(stats.subscriptions),
        "broker/retained messages/count": str(stats.retained_messages),
        "broker/messages/received": str(sum(stats.messages_received)),
        "broker/messages/sent": str(sum(stats.messages_sent)),
        "broker/messages/captured": str(stats.captured),
        "broker/publish/messages/dropped": str(sum(stats.drops.values())),
        "broker/queues/full": str(stats.full_queues),
        "broker/publish/messages/refused": str(stats.queue_refusals),
        "broker/bytes/received": str(stats.bytes_received),
        "broker/bytes/sent": str(stats.bytes_sent),
    }
    for name, value in values.items():
        topic = f"$SYS/{name}".encode()
        route = router.routes[topic]
        message = Message(topic, value.encode(), 0, True)
        router.retain(message, route.name)
        router.deliver(message, route, now_s)
