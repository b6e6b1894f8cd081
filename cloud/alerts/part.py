"""Plugs alerts into a cloud node: the sink, its MQTT messages, its figures."""

from __future__ import annotations

from collections.abc import Sequence

from cloud.alerts.config import AlertsConfig
from cloud.alerts.sink import AlertSink
from cloud.cluster.alerts import ClusterAlertStates
from cloud.cluster.bucket import Bucket
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.stream.jetstream.engine import JetStreamStream
from mqtt.broker.broker import Outgoing

__all__ = ["AlertsPart"]


class AlertsPart:
    """The alerts of a node (cloud/parts.py).

    Attributes:
        sink: What watches the stream; None before the node asked for it.
    """

    def __init__(self) -> None:
        self.sink: AlertSink | None = None

    def sinks(self, node: CloudNode) -> Sequence[Sink]:
        """Return the alerts sink; it opens DIR/cloud/alerts.db when it is started."""

        async def publish(topic: str, payload: bytes) -> None:
            await node.broker.publish_many([Outgoing(topic, payload, qos=1, retain=True)])

        path = node.config.data / "cloud" / "alerts.db"
        states = None
        if isinstance(node.stream, JetStreamStream):
            bucket = Bucket(node.stream.connection, node.stream.layout.bucket("alerts"))
            states = ClusterAlertStates(bucket)
        self.sink = AlertSink(
            node.config.alerts, path, node.clock, node.stream_ends, publish, states=states
        )
        return [self.sink]

    async def start(self, node: CloudNode) -> None:
        """Show the figures; the sink runs already."""
        assert self.sink is not None
        self.sink.register(node.metrics)

    async def take_config(self, config: AlertsConfig) -> None:
        """Go on with other rules, limits and webhooks; raises SinkUnavailable."""
        assert self.sink is not None
        await self.sink.take_config(config)

    async def stop(self) -> None:
        """Do nothing: the sink is closed with the others."""
