"""Commands from the cloud to a device behind a gateway, and their outcome back."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from structlog.testing import capture_logs

from bridge.commands import CTL_PREFIX, Hello, Outcome, seal_message
from cloud.commands.config import CommandsConfig
from cloud.node import Node
from edge.service import EdgeService
from mqtt.aio import Client
from mqtt.packets import Subscription
from mqtt.properties import (
    CORRELATION_DATA,
    MESSAGE_EXPIRY_INTERVAL,
    RESPONSE_TOPIC,
    USER_PROPERTY,
)
from mqtt.reason_codes import ReasonCode
from tests.kit.cloud import EPOCH, append_readings
from tests.kit.nodes import node_config, running_node
from tests.kit.readings import one_per_row
from tests.kit.sites import Box, client_at, running_gateway, until
from tidegate.node_api import ask_node

TOPIC = "devices/d1/cmd/valve"
OUTCOMES = "tidegate/v1/outcome/#"


@asynccontextmanager
async def site(folder: Path, **keys: object) -> AsyncIterator[tuple[Node, EdgeService]]:
    """A cloud node and a gateway on which device d1 has been seen."""
    config = node_config(folder / "cloud-node", commands=CommandsConfig(retry_s=0.2), **keys)
    async with (
        running_node(folder, config=config) as node,
        running_gateway(folder / "gw-1", node) as gateway,
    ):
        await seen(node, gateway)
        yield node, gateway


async def seen(node: Node, gateway: EdgeService, device: str = "d1", value: bytes = b"1") -> None:
    """Let a device publish through a gateway, and the cloud know of it."""
    name = gateway._config.gateway_id
    async with client_at(gateway.port, device) as (client, _):
        await client.publish(f"devices/{device}/value", value, 1)
    carriers = node._api._commands._carriers  # type: ignore[union-attr]
    await until("the cloud knows who carries it", lambda: carriers.carries(device) == name)


async def send(client: Client, payload: bytes, *, topic: str = TOPIC, **names: object) -> None:
    properties: dict[int, object] = {}
    if "command_id" in names:
        properties[USER_PROPERTY] = [("tidegate-command-id", names["command_id"])]
    if "expiry_s" in names:
        properties[MESSAGE_EXPIRY_INTERVAL] = names["expiry_s"]
    await client.publish(topic, payload, 1, properties=properties)


async def outcome(box: Box, count: int = 1) -> list[dict[str, str]]:
    await until("an outcome", lambda: len(box.messages) >= count)
    return box.json()


async def test_a_command_reaches_the_device_and_its_outcome_comes_back(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, gateway),
        client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device),
        client_at(node.port, "operator", OUTCOMES, "answers/#") as (operator, told),
    ):
        properties = {
            RESPONSE_TOPIC: "answers/7",
            CORRELATION_DATA: b"c7",
            USER_PROPERTY: [("tidegate-command-id", "open-7")],
        }
        await operator.publish(TOPIC, b"open", 2, properties=properties)
        said = await outcome(told, 2)
        assert device.payloads() == [b"open"]
        (command,) = device.messages
        assert (command.topic_name, command.qos) == (TOPIC, 1)  # the device subscribed with 1
        assert ("tidegate-command-id", "open-7") in command.properties[USER_PROPERTY]
        for one in said:
            assert (one["id"], one["outcome"], one["gateway"]) == ("open-7", "delivered", "gw-1")
        topics = {message.topic_name: message for message in told.messages}
        assert set(topics) == {"tidegate/v1/outcome/d1", "answers/7"}
        assert topics["answers/7"].properties[CORRELATION_DATA] == b"c7"
        # the same id again is the same command
        await operator.publish(TOPIC, b"open", 2, properties=properties)
        await send(operator, b"other")
        await outcome(told, 3)
        assert device.payloads() == [b"open", b"other"]


async def test_the_api_takes_commands_and_shows_them(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, gateway),
        client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device),
    ):
        url = f"http://127.0.0.1:{node.http_port}"

        def ask(path: str, **body: object) -> dict[str, object]:
            return dict(ask_node(url, path, body=body or None))

        made = await asyncio.to_thread(ask, "commands", topic=TOPIC, payload="on", id="api-1")
        assert (made["id"], made["device"]) == ("api-1", "d1")
        await until("delivered", lambda: device.payloads() == [b"on"])
        found: dict[str, object] = {}
        while found.get("state") != "delivered":
            found = await asyncio.to_thread(ask, "commands/api-1")
        listed = await asyncio.to_thread(ask, "commands")
        assert [one["id"] for one in listed["commands"]] == ["api-1"]  # type: ignore[attr-defined]


async def test_a_device_that_is_away_gets_it_when_it_comes_back(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, gateway),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        async with client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600):
            pass  # its session stays
        await send(operator, b"late")
        await until("held", lambda: gateway.status()["commands"]["held"] == 1)
        assert told.messages == []
        async with client_at(gateway.port, "d1", expiry_s=600) as (_, device):
            said = await outcome(told)
            assert device.payloads() == [b"late"]
            assert said[0]["outcome"] == "delivered"


async def test_an_offline_gateway_gets_it_when_it_comes_back(tmp_path: Path) -> None:
    config = node_config(tmp_path / "cloud-node", commands=CommandsConfig(retry_s=0.2))
    async with running_node(tmp_path, config=config) as node:
        async with running_gateway(tmp_path / "gw-1", node) as gateway:
            await seen(node, gateway)
        async with client_at(node.port, "operator", OUTCOMES) as (operator, told):
            await send(operator, b"one")
            await send(operator, b"two")
            async with (
                running_gateway(tmp_path / "gw-1", node) as gateway,
                client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device),
            ):
                said = await outcome(told, 2)
                assert device.payloads() == [b"one", b"two"]
                assert {one["outcome"] for one in said} == {"delivered"}


async def test_what_cannot_be_delivered_says_why(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, _),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        await send(operator, b"x", topic="devices/nobody/cmd/x", command_id="a")
        (said,) = await outcome(told)
        assert (said["id"], said["outcome"]) == ("a", "no such device")
        assert said["detail"] == "no gateway has ever carried it"
        await send(operator, b"x", command_id="b")  # carried, but without a session
        said = (await outcome(told, 2))[1]
        assert (said["outcome"], said["gateway"]) == ("no such device", "gw-1")
        assert said["detail"] == "no session here subscribes to its topic"
        big = b"x" * 100_000
        refused = await operator.publish(TOPIC, big, 1)
        assert refused.reason_code == 0x97


async def test_an_answer_that_can_go_nowhere_holds_up_nothing(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, _),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        deep = {RESPONSE_TOPIC: "/".join("x" * 500)}
        await operator.publish("devices/nobody/cmd/x", b"1", 1, properties=deep)
        await outcome(told)
        async with client_at(node.port, "tidegate-gw-9") as (gateway, _):
            refused = await gateway.publish("tidegate/v1/ctl/gw-9", b"nonsense", 1)
            assert refused.reason_code == 0x99
            refused = await gateway.publish("tidegate/v1/ctl/a/b", b"nonsense", 1)
            assert refused.reason_code == 0x87
        await send(operator, b"x", topic="devices/nobody/cmd/x", command_id="after")
        assert (await outcome(told, 2))[1]["id"] == "after"


async def test_a_command_expires_where_it_waits(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, gateway),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        async with client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600):
            pass
        await send(operator, b"now or never", expiry_s=1)
        (said,) = await outcome(told)
        assert (said["outcome"], said["gateway"]) == ("expired", "gw-1")
        async with client_at(gateway.port, "d1", expiry_s=600) as (client, device):
            await client.publish("devices/d1/value", b"2", 1)
            assert device.messages == []


async def test_a_device_that_moves_gets_it_at_its_new_gateway(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, first),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        async with client_at(first.port, "d1", "devices/d1/cmd/#", expiry_s=600):
            pass
        await send(operator, b"follow me")
        await until("held", lambda: first.status()["commands"]["held"] == 1)
        async with (
            running_gateway(tmp_path / "gw-2", node, gateway="gw-2") as second,
            client_at(second.port, "d1", "devices/d1/cmd/#") as (client, device),
        ):
            await client.publish("devices/d1/value", b"here now", 1)
            said = await outcome(told)
            assert device.payloads() == [b"follow me"]
            assert (said[0]["outcome"], said[0]["gateway"]) == ("delivered", "gw-2")
            await until("recalled", lambda: first.status()["commands"]["held"] == 0)
            async with client_at(first.port, "d1", expiry_s=600) as (_, before):
                await client.publish("devices/d1/value", b"x", 1)
                assert before.messages == []


async def test_commands_survive_restarts_of_both_ends(tmp_path: Path) -> None:
    async with site(tmp_path) as (node, gateway):
        async with client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600):
            pass
        async with client_at(node.port, "operator") as (operator, _):
            await send(operator, b"patience")
        await until("held", lambda: gateway.status()["commands"]["held"] == 1)
    async with (
        running_node(tmp_path, config=node_config(tmp_path / "cloud-node")) as node,
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
        running_gateway(tmp_path / "gw-1", node) as gateway,
        client_at(gateway.port, "d1", expiry_s=600) as (_, device),
    ):
        (said,) = await outcome(told)
        assert said["outcome"] == "delivered"
        assert device.payloads() == [b"patience"]


async def test_a_gateway_with_a_new_card_gets_what_the_old_one_held(tmp_path: Path) -> None:
    """Its commands are gone with the card: the cloud asks, and sends them again."""
    config = node_config(tmp_path / "cloud-node", commands=CommandsConfig(retry_s=0.2))
    async with (
        running_node(tmp_path, config=config) as node,
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        async with running_gateway(tmp_path / "gw-1", node) as gateway:
            await seen(node, gateway)
            async with client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600):
                pass
            await send(operator, b"patience")
            await until("held", lambda: gateway.status()["commands"]["held"] == 1)
        shutil.rmtree(tmp_path / "gw-1" / "edge")
        async with (
            running_gateway(tmp_path / "gw-1", node) as gateway,
            client_at(gateway.port, "d1", "devices/d1/cmd/#", expiry_s=600) as (_, device),
        ):
            (said,) = await outcome(told)
            assert said["outcome"] == "delivered"
            assert device.payloads() == [b"patience"]


async def test_by_http_a_payload_may_be_as_large_as_any(tmp_path: Path) -> None:
    async with site(tmp_path) as (node, _):
        url = f"http://127.0.0.1:{node.http_port}/api/v1/commands"
        async with httpx.AsyncClient(trust_env=False) as http:
            most = CommandsConfig().payload_bytes_max
            taken = await http.post(url, json={"topic": TOPIC, "payload": "x" * most})
            assert (taken.status_code, taken.json()["payload_bytes"]) == (200, most)
            refused = await http.post(url, json={"topic": TOPIC, "payload": "x" * (most + 1)})
            assert refused.status_code == 422
            assert f"commands.payload_bytes_max is {most}" in refused.json()["detail"]


async def test_a_device_cannot_speak_or_listen_for_a_gateway(tmp_path: Path) -> None:
    async with (
        site(tmp_path) as (node, gateway),
        client_at(gateway.port, "d1", "devices/d1/cmd/#") as (_, device),
        client_at(node.port, "eve", "#", "tidegate/v1/down/+") as (eve, heard),
        client_at(node.port, "operator", OUTCOMES) as (operator, told),
    ):
        (code,) = await eve.subscribe(Subscription("tidegate/v1/down/gw-1", 1))
        assert code == ReasonCode.NOT_AUTHORIZED
        forged = seal_message(Outcome("open-1", "delivered", "", 1))
        for topic in ("ctl/gw-1", "up/gw-1", "down/gw-1", "outcome/d1"):
            answer = await eve.publish(f"tidegate/v1/{topic}", forged, 1)
            assert answer is not None
            assert answer.reason_code == ReasonCode.NOT_AUTHORIZED, topic
        await send(operator, b"open", command_id="open-1")
        assert [one["outcome"] for one in await outcome(told)] == ["delivered"]
        assert device.payloads() == [b"open"]
        topics = {message.topic_name for message in heard.messages}
        assert not any(topic.startswith("tidegate/v1/down/") for topic in topics)


async def test_batches_that_overtake_a_hello_do_not_make_its_journal_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits behind an election; what its gateway sends meanwhile lies past its last seq."""
    async with running_node(tmp_path) as node, client_at(node.port, "gw-9") as (gateway, _):
        asked, answer = asyncio.Event(), asyncio.Event()
        real = node.stream.highest_seq

        async def highest_seq(name: str, epoch: int) -> int:
            asked.set()
            await answer.wait()
            return await real(name, epoch)

        monkeypatch.setattr(node.stream, "highest_seq", highest_seq)
        await append_readings(node.stream, one_per_row(10), gateway="gw-9")
        hello = seal_message(Hello(EPOCH, 10))
        with capture_logs() as logs:
            said = asyncio.create_task(gateway.publish(CTL_PREFIX + "gw-9", hello, 1))
            async with asyncio.timeout(60):
                await asked.wait()
                await append_readings(node.stream, one_per_row(10, first_seq=11), gateway="gw-9")
                answer.set()
                await said
            assert [line for line in logs if line["event"] == "journal_is_older"] == []
            await gateway.publish(CTL_PREFIX + "gw-9", hello, 1)
        (line,) = (line for line in logs if line["event"] == "journal_is_older")
        assert (line["gateway"], line["last_seq"], line["held_seq"]) == ("gw-9", 10, 20)
