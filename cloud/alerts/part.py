"""Plugs alerts into a cloud node: the sink, its MQTT messages, its figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cloud.alerts.config import AlertsConfig
from cloud.alerts.figures import register_figures
from cloud.alerts.sink import AlertSink
from cloud.cluster.alert_history import ClusterAlertHistory
from cloud.cluster.alert_peers import AlertPeers
from cloud.cluster.alerts import ClusterAlertStates
from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import ClusterError
from cloud.cluster.control import Control
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.stream.jetstream.engine import JetStreamStream
from mqtt.broker.broker import Outgoing
from runtime.service import StartError

__all__ = ["AlertsPart"]


class AlertsPart:
    """The alerts of a node (cloud/parts.py).

    Args:
        control: Gives the bucket of what a cluster's nodes have to know.

    Attributes:
        sink: What watches the stream; None before the node asked for it.
        peers: The alerts of a cluster's other nodes; None where there are none, and before the
            start.
    """

    def __init__(self, control: Callable[[JetStreamStream], Control]) -> None:
        self._control = control
        self.sink: AlertSink | None = None
        self.peers: AlertPeers | None = None

    def sinks(self, node: CloudNode) -> Sequence[Sink]:
        """Return the alerts sink; it opens DIR/cloud/alerts.db when it is started."""

        async def publish(topic: str, payload: bytes) -> None:
            await node.broker.publish_many([Outgoing(topic, payload, qos=1, retain=True)])

        path = node.config.data / "cloud" / "alerts.db"
        states = history = None
        if isinstance(node.stream, JetStreamStream):
            bucket = Bucket(node.stream.connection, node.stream.layout.bucket("alerts"))
            states = ClusterAlertStates(bucket)
            history = ClusterAlertHistory(self._control(node.stream))
        self.sink = AlertSink(
            node.config.alerts, path, node.clock, node.stream_ends, publish,
            states=states, history=history,
        )  # fmt: skip
        return [self.sink]

    async def start(self, node: CloudNode) -> None:
        """Show the figures; the sink runs already. Raises StartError."""
        assert self.sink is not None
        register_figures(self.sink, node.metrics)
        if isinstance(node.stream, JetStreamStream) and node.sinks.leases is not None:
            connection, layout = node.stream.connection, node.stream.layout
            peers = AlertPeers(self.sink, connection, layout, node.sinks.leases, self.sink.name)
            try:
                await peers.start()
            except ClusterError as error:
                await peers.stop()
                raise StartError(f"alerts: {error}") from None
            self.peers = peers

    async def take_config(self, config: AlertsConfig) -> None:
        """Go on with other rules, limits and webhooks; raises SinkUnavailable."""
        assert self.sink is not None
        await self.sink.take_config(config)

    async def stop(self) -> None:
        """Answer no other nodes; the sink is closed with the others."""
        if self.peers is not None:
            await self.peers.stop()
            self.peers = None
