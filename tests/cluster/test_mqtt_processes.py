"""Three nodes on three NATS servers, stock clients, SIGKILL: what MQTT promises holds."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
from collections.abc import Iterator
from urllib.request import urlopen

import aiomqtt
import pytest

from tests.kit.mqtt_js import INTEROP, node_with_mqtt_js
from tests.kit.mqtt_load import LoadPublisher, LoadSubscriber, client, running
from tidegate.cluster_demo import ClusterProcesses

TIMEOUT_S = 120.0
NUMBERS = itertools.count()  # every test has topics and client ids of its own


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    """Run servers and nodes for all tests of the module."""
    cluster = ClusterProcesses(tmp_path_factory.mktemp("cluster"), gateways=0)
    try:
        asyncio.run(cluster.start())
        yield cluster
    finally:
        for process in cluster.processes:
            process.kill()


@pytest.fixture
async def cluster(processes: ClusterProcesses) -> ClusterProcesses:
    """Give the cluster with every process running."""
    for server in processes.servers.servers:
        if not server.running:
            await asyncio.to_thread(server.start)
    for number, node in enumerate(processes.nodes):
        if not node.running:
            node.start()
        await processes.ready(number)
    return processes


async def until(check: object) -> None:
    """Return when something holds."""
    assert callable(check)
    async with asyncio.timeout(TIMEOUT_S):
        while not check():
            await asyncio.sleep(0.02)


def metrics_of(url: str) -> str:
    """Return a node's `/metrics`."""
    with urlopen(f"{url}/metrics", timeout=TIMEOUT_S) as answer:
        text: bytes = answer.read()
    return text.decode()


async def payloads(one: aiomqtt.Client, count: int) -> list[bytes]:
    """Return the payloads of the next messages."""
    found: list[bytes] = []
    async with asyncio.timeout(TIMEOUT_S):
        async for message in one.messages:
            assert isinstance(message.payload, bytes)
            found.append(message.payload)
            if len(found) == count:
                return found
    raise AssertionError(found)


async def test_stock_clients_talk_over_nodes(cluster: ClusterProcesses) -> None:
    topic = f"stock/{next(NUMBERS)}"
    first, second, third = cluster.mqtt_ports
    async with client(second) as subscriber, client(first) as publisher:
        await subscriber.subscribe(f"{topic}/#", qos=2)
        await mosquitto_sub(third, f"mosq-{topic}", topic, "-E")
        for qos in (0, 1, 2):
            await publisher.publish(f"{topic}/{qos}", b"%d" % qos, qos)
        assert sorted(await payloads(subscriber, 3)) == [b"0", b"1", b"2"]
        assert await mosquitto_sub(first, f"mosq-{topic}", topic, "-C", "2") == ["1", "2"]


async def mosquitto_sub(port: int, client_id: str, topic: str, *arguments: str) -> list[str]:
    """Run mosquitto_sub with a session that lasts; return the payloads it prints."""
    process = await asyncio.create_subprocess_exec(
        "mosquitto_sub", "-p", str(port), "-c", "-i", client_id, "-q", "2", "-t", f"{topic}/#",
        *arguments, stdout=asyncio.subprocess.PIPE,
    )  # fmt: skip
    said = (await asyncio.wait_for(process.communicate(), TIMEOUT_S))[0]
    assert process.returncode == 0
    return said.decode().split()


async def test_mqtt_js_keeps_its_session_over_nodes(cluster: ClusterProcesses) -> None:
    node = node_with_mqtt_js()
    name = f"js-{next(NUMBERS)}"
    first, second, third = cluster.mqtt_ports

    async def run(*arguments: object) -> dict[str, object]:
        process = await asyncio.create_subprocess_exec(
            node, "session.mjs", *map(str, arguments), cwd=INTEROP, stdout=asyncio.subprocess.PIPE
        )
        said = (await asyncio.wait_for(process.communicate(), TIMEOUT_S))[0]
        assert process.returncode == 0
        found: dict[str, object] = json.loads(said)
        return found

    assert await run(first, name, f"{name}/#", 0) == {"present": False, "got": []}
    async with client(second) as publisher:
        for qos in (1, 2):
            await publisher.publish(f"{name}/x", b"%d" % qos, qos)
    assert await run(third, name, "", 2) == {"present": True, "got": ["1", "2"]}


async def test_retained_messages_wills_and_groups_over_nodes(cluster: ClusterProcesses) -> None:
    topic = f"more/{next(NUMBERS)}"
    first, second, third = cluster.mqtt_ports
    async with client(first) as one, client(second) as two, client(third) as three:
        await one.publish(f"{topic}/retained/a", b"kept", 1, retain=True)
        await two.subscribe(f"{topic}/+/a")
        assert await payloads(two, 1) == [b"kept"]
        await two.subscribe(f"$share/g/{topic}/work", qos=1)
        await three.subscribe(f"$share/g/{topic}/work", qos=1)
        for number in range(20):
            await one.publish(f"{topic}/work", b"%d" % number, 1)
        mine, theirs = await asyncio.gather(payloads(two, 10), payloads(three, 10))
        assert sorted(mine + theirs) == sorted(b"%d" % number for number in range(20))
    # one that was killed before counts until the others know
    line, url = "tidegate_mqtt_cluster_nodes 3.0", cluster.urls[0]
    async with asyncio.timeout(TIMEOUT_S):
        while line not in await asyncio.to_thread(metrics_of, url):
            await asyncio.sleep(0.1)


async def test_nothing_acknowledged_is_lost_when_a_node_is_killed_under_load(
    cluster: ClusterProcesses,
) -> None:
    name = f"kill-{next(NUMBERS)}"
    ports = cluster.mqtt_ports
    one = LoadSubscriber(ports, f"{name}-1", f"{name}/1", 1)
    two = LoadSubscriber(ports, f"{name}-2", f"{name}/2", 2)
    watcher = LoadSubscriber(ports[1:], f"{name}-w", f"{name}/will", 1)
    will = aiomqtt.Will(f"{name}/will", b"gone", 1)
    publishers = [
        LoadPublisher(ports[1:], "p1", f"{name}/1", 1, 0.005),
        LoadPublisher(ports[1:], "p2", f"{name}/2", 2, 0.005),
        LoadPublisher(ports, "p3", f"{name}/1", 1, 0.005),  # its node is the one that dies
    ]
    async with running(one, two, watcher):
        await until(lambda: one.is_ready and two.is_ready and watcher.is_ready)
        async with running(*publishers):
            with contextlib.suppress(aiomqtt.MqttError):
                async with client(ports[0], will=will):
                    await until(lambda: min(len(p.acknowledged) for p in publishers) > 100)
                    cluster.nodes[0].kill()
            await until(lambda: one.connects > 1 and two.connects > 1)
            before = [len(p.acknowledged) for p in publishers]
            await until(
                lambda: all(
                    len(p.acknowledged) > n + 100 for p, n in zip(publishers, before, strict=True)
                )
            )
        await until(lambda: all(one.got[p] for i in (0, 2) for p in publishers[i].acknowledged))
        await until(lambda: all(two.got[p] for p in publishers[1].acknowledged))
        assert max(two.got.values()) == 1  # QoS 2: exactly once
        await until(lambda: watcher.got[b"gone"])
    assert watcher.got[b"gone"] == 1


async def test_without_quorum_no_puback_and_all_goes_on_afterwards(
    cluster: ClusterProcesses,
) -> None:
    name = f"quorum-{next(NUMBERS)}"
    first, second, _ = cluster.mqtt_ports
    subscriber = LoadSubscriber([second], name, f"{name}/#", 1)
    async with running(subscriber), client(first) as publisher, client(first) as local:
        await until(lambda: subscriber.is_ready)
        await local.subscribe(f"{name}/here")
        servers = cluster.servers.servers
        for server in servers[1:]:
            server.kill()
        waiting = asyncio.create_task(publisher.publish(f"{name}/x", b"x", 1, timeout=TIMEOUT_S))
        await publisher.publish(f"{name}/here", b"local", 0)
        assert await payloads(local, 1) == [b"local"]
        done, _ = await asyncio.wait([waiting], timeout=1.0)
        assert not done
        for server in servers[1:]:
            await asyncio.to_thread(server.start)
        await waiting
        await until(lambda: subscriber.got[b"x"])
    assert subscriber.got[b"x"] == 1
