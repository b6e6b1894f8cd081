"""MQTT between two cloud nodes: latency, rate and memory, on three NATS servers of this machine.

Publisher at node 0, subscriber at node 1, 100 B. Latency: one message at a time, publish to
arrival. Rate: one publisher with 500 messages of QoS 1 or 2 on their way (QoS 0: as fast as it
goes), until all have arrived. Each for a session that ends with its connection and for one that
lasts. Memory: what a node's process grows by with sessions that last, one subscription each.

    tidegate bench mqtt-nodes
    tidegate bench mqtt-nodes -- --messages 20000 --sessions 2000 --json
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import psutil

from mqtt.packets import (
    Connect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Suback,
    Subscribe,
    Subscription,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from tests.kit.brokers import WireClient
from tidegate.cluster_demo import ClusterProcesses

__all__ = ["main"]

_WINDOW = 500
_PAYLOAD = bytes(100)


async def _client(port: int, client_id: str, *, lasting: bool) -> WireClient:
    client = await WireClient.open(port)
    expiry = {SESSION_EXPIRY_INTERVAL: 3600} if lasting else {}
    client.send(Connect(client_id, properties={**expiry, 0x21: 1000}))
    await client.next()
    return client


async def _subscribe(client: WireClient, topic_filter: str) -> None:
    client.send(Subscribe(1, [Subscription(topic_filter, 2)]))
    await client.receive(Suback)


async def _arrive(client: WireClient, count: int) -> None:
    """Receive so many messages, each acknowledged as it asks."""
    while count:
        packet = await client.next()
        if isinstance(packet, Publish):
            if packet.qos == 1:
                client.send(Puback(packet.packet_id))
            elif packet.qos == 2:
                client.send(Pubrec(packet.packet_id))
            count -= packet.qos < 2
        elif isinstance(packet, Pubrel):
            client.send(Pubcomp(packet.packet_id))
            count -= 1


async def _send(client: WireClient, topic: str, qos: int, count: int) -> None:
    """Publish so many messages, a window at a time on their way."""
    if not qos:
        for start in range(0, count, 200):
            client.send(*[Publish(topic, _PAYLOAD)] * min(200, count - start))
            if start + 200 < count:
                await asyncio.sleep(0.002)
        return
    sent = done = 0
    while done < count:
        room = min(count - sent, _WINDOW - (sent - done))
        if room >= _WINDOW // 4 or (room and room == count - sent):
            numbers = range(sent, sent + room)
            client.send(*(Publish(topic, _PAYLOAD, qos, packet_id=n % 60_000 + 1) for n in numbers))
            sent += room
        packet = await client.next()
        if isinstance(packet, Pubrec):
            client.send(Pubrel(packet.packet_id))
        else:
            done += 1


async def _measure(
    ports: Sequence[int], qos: int, count: int, *, lasting: bool
) -> dict[str, float]:
    name = f"bench-{qos}-{lasting}"
    subscriber = await _client(ports[1], f"{name}-s", lasting=lasting)
    publisher = await _client(ports[0], f"{name}-p", lasting=False)
    await _subscribe(subscriber, f"{name}/#")
    latencies = []
    for _ in range(500):
        began_s = time.perf_counter()
        arrives = asyncio.create_task(_arrive(subscriber, 1))
        await _send(publisher, f"{name}/t", qos, 1)
        await arrives
        latencies.append(time.perf_counter() - began_s)
    began_s = time.perf_counter()
    await asyncio.gather(_arrive(subscriber, count), _send(publisher, f"{name}/t", qos, count))
    rate = count / (time.perf_counter() - began_s)
    await subscriber.close()
    await publisher.close()
    return {
        "p50_ms": statistics.median(latencies) * 1e3,
        "p99_ms": statistics.quantiles(latencies, n=100)[98] * 1e3,
        "messages_s": rate,
    }


async def _memory(cluster: ClusterProcesses, count: int) -> dict[str, float]:
    """Return bytes a lasting session, connected, at its own node and at another one."""
    await asyncio.sleep(1)
    processes = [psutil.Process(node.pid) for node in cluster.nodes]
    before = [process.memory_info().rss for process in processes]
    clients = []
    for number in range(count):
        client = await _client(cluster.mqtt_ports[0], f"mem-{number}", lasting=True)
        await _subscribe(client, f"devices/mem-{number}/#")
        clients.append(client)
    await asyncio.sleep(2)
    grown = [process.memory_info().rss for process in processes]
    for client in clients:
        await client.close()
    return {
        "own_node_bytes": (grown[0] - before[0]) / count,
        "other_node_bytes": (grown[2] - before[2]) / count,
    }


async def _run(messages: int, sessions: int) -> dict[str, dict[str, float]]:
    results: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        cluster = ClusterProcesses(Path(folder) / "cluster", gateways=0)
        try:
            await cluster.start()
            for qos in (0, 1, 2):
                for lasting in (False, True) if qos else (False,):
                    kind = "lasting" if lasting else "clean"
                    results[f"QoS {qos}, {kind}"] = await _measure(
                        cluster.mqtt_ports, qos, messages // (1 + qos), lasting=lasting
                    )
            results["memory"] = await _memory(cluster, sessions)
        finally:
            for process in cluster.processes:
                process.kill()
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", maxsplit=1)[0])
    parser.add_argument("--messages", type=int, default=20_000, help="of a rate (default 20000)")
    parser.add_argument("--sessions", type=int, default=2_000, help="for memory (default 2000)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args(arguments)
    results = asyncio.run(_run(options.messages, options.sessions))
    if options.json:
        print(json.dumps(results))
        return 0
    for name, figures in results.items():
        told = ", ".join(f"{key} {value:,.2f}" for key, value in figures.items())
        print(f"{name:18} {told}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
