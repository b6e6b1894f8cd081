"""Commands over the nodes of a cluster: taken at one, sent at another, told once.

Whole nodes in the test's own loop on one NATS server, that come and go;
`tests/e2e/test_cluster_commands.py` has real processes, three servers and SIGKILL.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from pathlib import Path

import pytest

from bridge.commands import HELD, Correction
from cloud.commands.config import CommandsConfig
from cloud.node import Node
from edge.service import EdgeService
from mqtt.aio import Client
from mqtt.properties import (
    CORRELATION_DATA,
    MESSAGE_EXPIRY_INTERVAL,
    RESPONSE_TOPIC,
    USER_PROPERTY,
)
from tests.kit.cloud import query
from tests.kit.cluster_nodes import cluster_nodes, shares
from tests.kit.nats import NatsServers, nats_single
from tests.kit.sites import Box, client_at, running_gateway, until

OUTCOMES = "tidegate/v1/outcome/#"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


def nodes(
    servers: NatsServers, folder: Path, number: int = 2, **commands: float
) -> AbstractAsyncContextManager[list[Node]]:
    """Run nodes of a cluster of the test's own, whose partitions are spread."""
    config = CommandsConfig(retry_s=0.2, **commands)  # type: ignore[arg-type]
    return cluster_nodes(servers, folder, number, "commands", keys=lambda _: {"commands": config})


def states(node: Node) -> dict[str, str]:
    """Return how the commands without a told outcome stand, as a node knows it."""
    return {row.command_id: row.state for row in node._api._commands._dispatch.open.values()}  # type: ignore[union-attr]


async def carried(device: str, gateway: EdgeService, *of: Node) -> None:
    """Let a device publish through a gateway, and the node that follows it know of that."""
    name = gateway._config.gateway_id
    async with client_at(gateway.port, device) as (client, _):
        await client.publish(f"devices/{device}/value", b"1", 1)

    def known() -> bool:
        sinks = [node._api._commands._carriers for node in of]  # type: ignore[union-attr]
        return any(one.follows(device) and one.carries(device) == name for one in sinks)

    await until(f"{device} is carried by {name}", known)


async def send(client: Client, device: str, payload: bytes, **names: object) -> None:
    properties: dict[int, object] = {}
    if "command_id" in names:
        properties[USER_PROPERTY] = [("tidegate-command-id", names["command_id"])]
    if "expiry_s" in names:
        properties[MESSAGE_EXPIRY_INTERVAL] = names["expiry_s"]
    answer = await client.publish(f"devices/{device}/cmd/x", payload, 1, properties=properties)
    assert answer is not None
    assert answer.reason_code == 0


async def told(box: Box, number: int) -> list[dict[str, str]]:
    await until(f"{number} outcomes", lambda: len(box.messages) >= number)
    return box.json()


async def test_published_at_one_node_the_gateway_at_another(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        running_gateway(tmp_path / "gw", two) as gateway,
        client_at(one.port, "operator", OUTCOMES, "answers/#") as (operator, here),
        client_at(two.port, "other", OUTCOMES) as (_, there),
    ):
        names = [f"d{number}" for number in range(6)]  # of both nodes' partitions
        async with AsyncExitStack() as stack:
            boxes = {}
            for name in names:
                await carried(name, gateway, one, two)
                _, boxes[name] = await stack.enter_async_context(
                    client_at(gateway.port, name, f"devices/{name}/cmd/#")
                )
            for name in names:
                properties = {RESPONSE_TOPIC: f"answers/{name}", CORRELATION_DATA: name.encode()}
                await operator.publish(f"devices/{name}/cmd/x", b"go", 1, properties=properties)
            await told(here, 2 * len(names))
            for name in names:
                assert boxes[name].payloads() == [b"go"]
            answers = [m for m in here.messages if m.topic_name.startswith("answers/")]
            assert {m.properties[CORRELATION_DATA] for m in answers} == {n.encode() for n in names}
            said = await told(there, len(names))
            assert {row["outcome"] for row in said} == {"delivered"}
            assert len(said) == len(names)  # each once, whoever followed it
            await until("settled", lambda: not states(one) and not states(two))
            for node in (one, two):
                rows = await node._api._commands.newest(None, None, 100)  # type: ignore[union-attr]
                assert {row.state for row in rows} == {"delivered"}
                assert len(rows) == len(names)


async def test_kept_while_the_gateway_is_offline_and_found_wherever_it_comes_back(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        client_at(one.port, "operator", OUTCOMES) as (operator, box),
    ):
        async with running_gateway(tmp_path / "gw", one) as gateway:
            await carried("d1", gateway, one, two)
        for number in range(20):
            await send(operator, "d1", b"%d" % number)
        await send(operator, "d1", b"never", command_id="short", expiry_s=1)
        (said,) = await told(box, 1)
        assert (said["id"], said["outcome"]) == ("short", "expired")
        await until("20 wait", lambda: len(states(one)) == len(states(two)) == 20)
        async with (
            running_gateway(tmp_path / "gw", two) as gateway,
            client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device),
        ):
            await told(box, 21)
            assert device.payloads() == [b"%d" % number for number in range(20)]
            assert {row["outcome"] for row in box.json()[1:]} == {"delivered"}


async def test_a_gateway_that_holds_a_command_moves_to_another_node(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        client_at(two.port, "operator", OUTCOMES) as (operator, box),
    ):
        async with running_gateway(tmp_path / "gw", one) as gateway:
            await carried("d1", gateway, one, two)
            async with client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600):
                pass  # its session stays
            await send(operator, "d1", b"patience", command_id="a")
            await until("held", lambda: states(two) == {"a": HELD})
        async with (
            running_gateway(tmp_path / "gw", two) as gateway,
            client_at(gateway.port, "d1", expiry_s=600) as (_, device),
        ):
            (said,) = await told(box, 1)
            assert (said["outcome"], device.payloads()) == ("delivered", [b"patience"])


async def test_a_device_moves_between_gateways_at_different_nodes(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        running_gateway(tmp_path / "gw-1", one) as first,
        running_gateway(tmp_path / "gw-2", two, gateway="gw-2") as second,
        client_at(two.port, "operator", OUTCOMES) as (operator, box),
    ):
        await carried("d1", first, one, two)
        async with client_at(first.port, "d1", "devices/d1/cmd/#", expiry_s=600):
            pass
        await send(operator, "d1", b"follow me", command_id="a")
        await until("held", lambda: states(one) == {"a": HELD})
        async with client_at(second.port, "d1", "devices/d1/cmd/#") as (client, device):
            await client.publish("devices/d1/value", b"here now", 1)
            (said,) = await told(box, 1)
            assert (said["outcome"], said["gateway"]) == ("delivered", "gw-2")
            assert device.payloads() == [b"follow me"]
        await until("recalled", lambda: first.status()["commands"]["held"] == 0)


async def test_the_same_id_at_two_nodes_is_one_command(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        running_gateway(tmp_path / "gw", two) as gateway,
        client_at(one.port, "at-one", OUTCOMES) as (at_one, box),
        client_at(two.port, "at-two") as (at_two, _),
    ):
        await carried("d1", gateway, one, two)
        async with client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device):
            await asyncio.gather(
                *(send(one, "d1", b"once", command_id="same") for one in (at_one, at_two) * 5)
            )
            await told(box, 1)
            await send(at_two, "d1", b"once", command_id="same")  # known, though it is over
            await send(at_one, "d1", b"next", command_id="next")
            said = await told(box, 2)
            assert [row["id"] for row in said] == ["same", "next"]
            assert device.payloads() == [b"once", b"next"]


async def test_a_device_at_a_node_itself_gets_it_from_any_node_and_by_http(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with (
        nodes(servers, tmp_path) as (one, two),
        client_at(two.port, "d1", "devices/d1/cmd/#") as (client, device),
        client_at(one.port, "operator", OUTCOMES) as (operator, box),
    ):
        await client.publish("devices/d1/value", b"1", 1)

        def known() -> bool:
            sinks = [node._api._commands._carriers for node in (one, two)]  # type: ignore[union-attr]
            return any(sink.follows("d1") and sink.carries("d1") == "node-1" for sink in sinks)

        await until("the device is known", known)
        await send(operator, "d1", b"by mqtt")
        await one._api._commands.submit(  # type: ignore[union-attr]
            "devices/d1/cmd/x", b"by http", qos=1, expiry_s=None, command_id="h"
        )
        said = await told(box, 2)
        assert {row["outcome"] for row in said} == {"delivered"}
        await until("both came", lambda: device.payloads() == [b"by mqtt", b"by http"])


async def test_work_goes_on_when_a_node_leaves(servers: NatsServers, tmp_path: Path) -> None:
    """What one node took, followed and sent, the other finishes; no outcome comes twice."""
    async with nodes(servers, tmp_path) as (one, two):
        async with running_gateway(tmp_path / "gw", two) as gateway:
            names = [f"d{number}" for number in range(8)]
            for name in names:
                await carried(name, gateway, one, two)
        async with client_at(two.port, "operator") as (operator, _):
            for name in names:
                await send(operator, name, b"go", command_id=name)
        await two.stop()
        await until("one has all", lambda: shares(one, "commands") == 64)
        async with (
            client_at(one.port, "watcher", OUTCOMES) as (_, box),
            running_gateway(tmp_path / "gw", one) as gateway,
            AsyncExitStack() as stack,
        ):
            boxes = [
                (await stack.enter_async_context(
                    client_at(gateway.port, name, f"devices/{name}/cmd/#")
                ))[1]
                for name in names
            ]  # fmt: skip
            said = await told(box, len(names))
            assert {row["outcome"] for row in said} == {"delivered"}
            assert [one.payloads() for one in boxes] == [[b"go"]] * len(names)
            await until("settled", lambda: not states(one))
            assert len(box.messages) == len(names)


async def test_no_more_than_so_many_wait_in_the_whole_cluster(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with nodes(servers, tmp_path, waiting_max=3) as (one, two):
        async with running_gateway(tmp_path / "gw", one) as gateway:
            await carried("d1", gateway, one, two)
        async with client_at(one.port, "operator") as (operator, _):
            for number in range(3):
                await send(operator, "d1", b"x", command_id=f"{number}")
        await until("the other knows", lambda: len(states(two)) == 3)
        async with client_at(two.port, "operator") as (operator, _):
            answer = await operator.publish("devices/d1/cmd/x", b"x", 1)
            assert answer is not None
            assert answer.reason_code == 0x97


async def test_a_correction_reaches_the_storage_of_every_node(
    servers: NatsServers, tmp_path: Path
) -> None:
    async with nodes(servers, tmp_path) as (one, two):
        async with running_gateway(tmp_path / "gw", one) as gateway:
            await carried("d1", gateway, one, two)

        def times(node: Node) -> list[int]:
            path = node.config.data / "cloud" / "storage.db"
            return [int(str(row[0])) for row in query(path, "SELECT time_us FROM readings")]

        await until("both have stored it", lambda: len(times(one)) == len(times(two)) == 1)
        (before_us,) = times(one)
        (line,) = [one for one in await one.stream.ledger() if one.gateway == "gw-1"]
        correction = Correction(line.epoch, 1, 1, 1_000_000, 0)
        clocks = two._api._commands._clocks  # type: ignore[union-attr]
        await clocks.take("gw-1", correction)
        await clocks.take("gw-1", correction)  # said twice is one
        await until("both have it", lambda: times(one) == times(two) == [before_us + 1_000_000])

        def shown(node: Node) -> list[int]:
            return [value.time_us for value in node._api.latest.device("d1")]

        # a node shows it once its storage has said that it is written
        await until("both show it", lambda: shown(one) == shown(two) == [before_us + 1_000_000])
