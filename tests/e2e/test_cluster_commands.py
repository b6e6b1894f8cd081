"""Commands in flight while the nodes of a cluster are killed: each has its outcome, at any node.

Three NATS servers that sync every write, three cloud nodes, a gateway, a device with a session that
stays; SIGKILL at seeded moments. Every command that was acknowledged to its sender reaches the
device at least once, ends as delivered, and its outcome is told.
"""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

from mqtt.errors import MqttError
from mqtt.properties import USER_PROPERTY
from tests.kit.processes import get_json, wait_for
from tests.kit.sites import Box, client_at, until
from tidegate.cluster_demo import ClusterProcesses

COMMANDS = 60


async def killing(cluster: ClusterProcesses, *, kills: int, rng: random.Random) -> None:
    """Kill a node, now and then two at once, and start it again."""
    for _ in range(kills):
        await asyncio.sleep(rng.uniform(0.2, 1.5))
        victims = rng.sample(range(3), rng.choice((1, 1, 2)))
        for number in victims:
            await asyncio.to_thread(cluster.nodes[number].kill)
        await asyncio.sleep(rng.uniform(0, 2))
        for number in victims:
            cluster.nodes[number].start()
        for number in victims:
            await cluster.ready(number)


def ids_of(box: Box) -> set[str]:
    """Return the ids of the commands a client got."""
    return {
        text
        for message in box.messages
        for name, text in message.properties.get(USER_PROPERTY, ())
        if name == "tidegate-command-id"
    }


async def watching(
    cluster: ClusterProcesses, told: list[str], listens: asyncio.Event, stop: asyncio.Event
) -> None:
    """A subscriber to outcomes that goes to another node whenever its own is gone."""
    turn = 0
    while not stop.is_set():
        turn += 1
        box = Box()
        try:
            async with client_at(
                cluster.mqtt_ports[turn % 3], "watcher", "tidegate/v1/outcome/#", expiry_s=3600
            ) as (client, box):
                listens.set()
                while not client.closed.done() and not stop.is_set():
                    await asyncio.sleep(0.01)
                    told += taken_from(box)
        except (MqttError, OSError, TimeoutError):
            await asyncio.sleep(0.05)
        finally:
            told += taken_from(box)  # acknowledged just before its node was gone


def taken_from(box: Box) -> list[str]:
    """Return the ids of the outcomes that came since the last call."""
    found = [str(one["id"]) for one in box.json()]
    box.messages.clear()
    return found


async def sending(cluster: ClusterProcesses, rng: random.Random) -> list[str]:
    """Send commands by any node until each was acknowledged; the same id again after a failure."""
    acked: list[str] = []
    for number in range(COMMANDS):
        command_id = f"c-{number}"
        properties = {USER_PROPERTY: [("tidegate-command-id", command_id)]}
        while command_id not in acked:
            try:
                async with asyncio.timeout(5):
                    port = rng.choice(cluster.mqtt_ports)
                    async with client_at(port, f"operator-{rng.random()}") as (client, _):
                        topic = f"devices/valve/cmd/{number}"
                        qos = rng.choice((1, 2))
                        answer = await client.publish(topic, b"x", qos, properties=properties)
                        if answer is not None and answer.reason_code < 0x80:
                            acked.append(command_id)
            except (MqttError, OSError, TimeoutError):
                await asyncio.sleep(0.05)
        await asyncio.sleep(rng.uniform(0, 0.3))
    return acked


def outcomes(url: str) -> dict[str, str]:
    """Return the state of each command, as a node has it."""
    answer = get_json(f"{url}/api/v1/commands?limit=1000")
    return {one["id"]: one["state"] for one in answer["commands"]} if answer else {}


async def known(cluster: ClusterProcesses) -> None:
    """Wait until commands find the device."""
    async with client_at(cluster.mqtt_ports[1], "prober") as (client, _):
        for number in range(600):
            command_id = f"probe-{number}"
            properties = {USER_PROPERTY: [("tidegate-command-id", command_id)]}
            await client.publish("devices/valve/cmd/probe", b"x", 1, properties=properties)
            while (state := outcomes(cluster.urls[1]).get(command_id)) in (None, "waiting", "held"):
                await asyncio.sleep(0.05)
            if state == "delivered":
                return
    raise AssertionError("no command finds the device")


async def test_every_command_arrives_though_nodes_are_killed(tmp_path: Path) -> None:
    cluster = ClusterProcesses(
        tmp_path, gateways=1, node_flags=["--commands-retry-s", "0.5"],
        gateway_flags=["--uplink-backoff-max-s", "0.5"],
    )  # fmt: skip
    try:
        await cluster.start()
        await under_attack(cluster)
    finally:
        await asyncio.to_thread(cluster.kill)


async def under_attack(cluster: ClusterProcesses) -> None:
    told: list[str] = []
    stop = asyncio.Event()
    listens = asyncio.Event()
    watcher = asyncio.create_task(watching(cluster, told, listens, stop))
    await until("it listens", listens.is_set)
    async with client_at(cluster.edge_ports[0], "valve", "devices/valve/cmd/#", expiry_s=3600) as (
        device,
        box,
    ):
        await device.publish("devices/valve/value", b"1", 1)
        await known(cluster)
        loading = asyncio.create_task(sending(cluster, random.Random("send")))
        await killing(cluster, kills=5, rng=random.Random("kill"))
        sent = await loading
        expected = dict.fromkeys(sent, "delivered")
        for node in cluster.urls:

            def right(node: str = node) -> bool:
                found = outcomes(node)
                return {one: found.get(one) for one in sent} == expected

            await asyncio.to_thread(
                wait_for, "delivered", right, progress=lambda node=node: outcomes(node)
            )
        await until("the device has them all", lambda: ids_of(box) >= set(sent))
    await until("all are told", lambda: set(told) >= set(sent))
    stop.set()
    await watcher
    again = len([one for one in told if one in expected]) - len(sent)
    print(f"{len(sent)} commands, {again} outcomes told more than once")
