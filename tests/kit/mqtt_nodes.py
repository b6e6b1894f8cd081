"""Brokers of one cluster in a test's own loop, over an engine in memory.

async with mqtt_nodes(2) as (one, two):
    subscriber = await two.connect("s")
    await subscriber.subscribe("a/#")
    publisher = await one.connect("p")
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from cloud.cluster.mqtt_bus import MqttCluster
from mqtt.broker.broker import Broker
from mqtt.broker.config import BrokerConfig
from mqtt.packets import Puback, Pubcomp, Publish, Pubrec, Pubrel
from runtime.clock import Clock, SystemClock
from tests.kit.brokers import TIMEOUT_S, Served, WireClient
from tests.kit.fabric import MemoryEngine, MemoryFabric

__all__ = ["Node", "mqtt_nodes", "publish", "received", "start_node", "stop_node", "until"]


class Node(Served):
    """One broker of a cluster."""

    def __init__(
        self, broker: Broker, port: int, cluster: MqttCluster, fabric: MemoryFabric
    ) -> None:
        super().__init__(broker, port)
        self.cluster = cluster
        self.fabric = fabric
        self.alive = True

    @property
    def instance(self) -> str:
        """Return the name it has in the cluster."""
        return self.cluster.presence.instance

    async def die(self, engine: MemoryEngine, *, lease: bool = True) -> None:
        """Be gone without a word, like a process that is killed; its lease runs out at once."""
        self.alive = False
        self.fabric.kill()
        for client in self.clients:
            client.abort()
        for task in self.cluster._tasks:
            task.cancel()
        for connection in list(self.broker._core.connections):
            connection.transport.abort()
        if lease:
            engine.expire_lease(self.instance)
        await asyncio.sleep(0)


async def start_node(
    engine: MemoryEngine, name: str, clock: Clock | None = None, **parts: Any
) -> Node:
    """Start another node."""
    clock = clock or SystemClock()
    fabric = engine.node()
    cluster = MqttCluster(fabric, name, clock)
    config = parts.pop("config", None) or BrokerConfig(sys_interval_s=0)
    broker = Broker(config, store=cluster, bus=cluster, clock=clock, **parts)
    await broker.start()
    return Node(broker, await broker.listen("127.0.0.1", 0), cluster, fabric)


@asynccontextmanager
async def mqtt_nodes(
    count: int, engine: MemoryEngine | None = None, **parts: Any
) -> AsyncIterator[list[Node]]:
    """Run some nodes; those that are alive are stopped at the end."""
    engine = engine or MemoryEngine()
    async with AsyncExitStack() as stack:
        nodes = []
        for number in range(count):
            node = await start_node(engine, f"n{number}", **parts)
            nodes.append(node)
            stack.push_async_callback(stop_node, node)
        await until(lambda: all(node.cluster.peers.all_told for node in nodes))
        await until(lambda: all(len(n.cluster.presence.there) >= count for n in nodes))
        yield nodes


async def stop_node(node: Node) -> None:
    """Stop a node, or what a dead one has left in this process."""
    for client in node.clients:
        await client.close()
    if node.alive:
        await node.broker.stop()
        return
    cluster = node.cluster
    await asyncio.gather(*cluster._tasks, return_exceptions=True)
    await cluster.claims.stop()
    await cluster.presence.stop()
    await cluster.outbox.stop()
    await cluster.retained.stop()
    for task in list(cluster.records._tasks):
        task.cancel()
    node.broker._core.store = None
    await node.broker.stop()


async def until(check: Callable[[], bool]) -> None:
    """Return when something holds."""
    async with asyncio.timeout(TIMEOUT_S):
        while not check():
            await asyncio.sleep(0.001)


async def publish(
    client: WireClient, topic: str, payload: bytes, qos: int = 0, **fields: Any
) -> int:
    """Publish, and return the reason code of the answer, 0 with QoS 0."""
    client.send(Publish(topic, payload, qos, packet_id=7 if qos else 0, **fields))
    if qos == 1:
        return (await client.receive(Puback)).reason_code
    if qos == 2:
        code = (await client.receive(Pubrec)).reason_code
        client.send(Pubrel(7))
        await client.next()
        return code
    return 0


async def received(client: WireClient, *, ack: bool = True) -> Publish:
    """Return the next PUBLISH, acknowledged as its QoS asks."""
    packet = await client.receive(Publish)
    if ack and packet.qos == 1:
        client.send(Puback(packet.packet_id))
    elif ack and packet.qos == 2:
        client.send(Pubrec(packet.packet_id))
        await client.receive(Pubrel)
        client.send(Pubcomp(packet.packet_id))
    return packet
