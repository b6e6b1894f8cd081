"""A node's share of the cluster's MQTT, as its configuration says."""

from __future__ import annotations

import re

from bridge.link_pacing import DOWN_ALL
from cloud.cluster.connection import PATIENCE_MIN_S, ClusterError, Connection
from cloud.cluster.mqtt_bus import MqttCluster
from cloud.cluster.mqtt_fabric import FabricError
from cloud.cluster.mqtt_nats import NatsFabric
from cloud.cluster.reading import insist
from cloud.config import StreamConfig
from cloud.stream.opening import access_of, layout_of
from runtime.clock import Clock

__all__ = ["open_mqtt_cluster"]

_NO_TOKEN = re.compile(r"[^A-Za-z0-9_-]")


async def open_mqtt_cluster(config: StreamConfig, clock: Clock, *, node_id: str) -> MqttCluster:
    """Connect; the broker that gets the result as store and bus joins the cluster by `open`.

    Every node paces the gateways that are connected to it: `tidegate/v1/down` is its own.

    Raises:
        FabricError: no server can be had; one line.
    """
    try:
        connection = await insist(
            lambda: Connection.open(
                config.url, name=f"{node_id}-mqtt", access=access_of(config),
                patience_s=config.start_wait_s,
            ),
            timeout_s=max(config.start_wait_s, PATIENCE_MIN_S),
        )  # fmt: skip
    except ClusterError as error:
        raise FabricError(str(error)) from None
    fabric = NatsFabric(connection, layout_of(config))
    return MqttCluster(
        fabric, _NO_TOKEN.sub("_", node_id), clock, frozenset({DOWN_ALL}),
        patience_s=config.start_wait_s,
    )  # fmt: skip
