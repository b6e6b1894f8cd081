"""A whole node over sockets: from a device's publish to API, alerts, MQTT and back after a stop."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from cloud.alerts.config import AlertsConfig, LimitsConfig, WebhookConfig
from cloud.api_config import HttpConfig
from cloud.config import CloudConfig, StorageConfig, StreamConfig
from cloud.latest import Latest
from cloud.latest_sink import LatestSink
from cloud.node import Node
from mqtt.aio import Client
from mqtt.packets import Connect, Publish, Subscription
from runtime.clock import SystemClock
from runtime.service import StartError
from tests.kit.alerts import hot, silent
from tests.kit.webhooks import WebhookServer, until


def config_of(data: Path, **changes: Any) -> CloudConfig:
    given: dict[str, Any] = {
        "data": data,
        "port": 0,
        "http": HttpConfig(port=0),
        "stream": StreamConfig(disk_reserve_bytes=0),
        "storage": StorageConfig(linger_ms=0),
    }
    return CloudConfig(**{**given, **changes})


@asynccontextmanager
async def running(data: Path, **changes: Any) -> AsyncIterator[tuple[Node, httpx.AsyncClient]]:
    node = Node(config_of(data, **changes), SystemClock())
    try:
        async with asyncio.timeout(60):
            await node.start()
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{node.http_port}") as client:
                yield node, client
    finally:
        await node.stop()


async def device(node: Node) -> Client:
    return await Client.connect("127.0.0.1", node.port, Connect("d1", protocol_version=5))


async def eventually(
    client: httpx.AsyncClient, path: str, condition: Callable[[Any], object]
) -> Any:
    """Ask until the answer is as it should be."""
    async with asyncio.timeout(60):
        while True:
            answer = await client.get(path)
            if answer.status_code == 200 and condition(answer.json()):
                return answer.json()
            await asyncio.sleep(0.01)


async def next_message(client: Client) -> Publish:
    async with asyncio.timeout(60):
        async for message in client.messages():
            return message
    raise AssertionError("the connection ended")


async def test_reading_is_seen_by_the_api_and_sets_off_an_alert(tmp_path: Path) -> None:
    server = WebhookServer()
    await server.start()
    alerts = AlertsConfig(
        rule=(hot(field="t", severity="critical"),),
        webhook=(WebhookConfig(name="pager", url=server.url),),
    )
    async with running(tmp_path, alerts=alerts) as (node, client):
        sender = await device(node)
        watcher = await Client.connect("127.0.0.1", node.port, Connect("w", protocol_version=5))
        await watcher.subscribe(Subscription("alerts/#", 1))
        published = await sender.publish("devices/d1/state", b'{"t": 31}', 1)
        assert published is not None
        assert published.reason_code in {0, 0x10}

        message = await next_message(watcher)
        assert message.topic_name == "alerts/critical/hot/d1"
        assert json.loads(message.payload)["state"] == "firing"
        await until(lambda: server.received)
        assert server.received[0].body["value"] == 31

        latest = await eventually(client, "/api/v1/devices/d1/latest", lambda body: body["values"])
        assert latest["values"][0]["payload"] == {"t": 31}
        stored = await eventually(
            client, "/api/v1/devices/d1/readings?field=t&since=-1h", lambda body: body["readings"]
        )
        assert stored["readings"][0]["value"] == 31
        (active,) = (await client.get("/api/v1/alerts")).json()["alerts"]
        acknowledged = await client.post(
            f"/api/v1/alerts/{active['alert_id']}/ack", json={"by": "ann"}
        )
        assert acknowledged.status_code == 200
        assert json.loads((await next_message(watcher)).payload)["state"] == "acknowledged"

        ledger = await eventually(client, "/api/v1/ledger", lambda body: body["ledger"])
        assert ledger["balanced"]
        status = await eventually(client, "/status", lambda body: body["readings_stored"] == 1)
        assert status["alerts"] == {"firing": 1, "pending": 0}
        assert status["sinks"].keys() == {"storage", "live", "alerts", "commands", "latest"}
        assert (await client.get("/readyz")).json() == {"ok": True, "reasons": []}
        metrics = (await client.get("/metrics")).text
        assert 'tidegate_alerts_active_alerts{state="firing"} 1.0' in metrics
        assert "tidegate_metrics_read_errors_total 0.0" in metrics
        await sender.disconnect()
        await watcher.disconnect()

    async with running(tmp_path, alerts=alerts) as (node, client):
        (active,) = (await client.get("/api/v1/alerts")).json()["alerts"]
        assert active["acked_by"] == "ann"
        latest = await eventually(client, "/api/v1/devices/d1/latest", lambda body: body["values"])
        assert latest["values"][0]["payload"] == {"t": 31}
        # the retained message is still there for who comes late
        watcher = await Client.connect("127.0.0.1", node.port, Connect("w2", protocol_version=5))
        await watcher.subscribe(Subscription("alerts/#", 1))
        message = await next_message(watcher)
        assert (message.retain, json.loads(message.payload)["state"]) == (True, "acknowledged")
        sender = await device(node)
        await sender.publish("devices/d1/state", b'{"t": 20}', 1)
        assert json.loads((await next_message(watcher)).payload)["state"] == "resolved"
        await sender.disconnect()
        await watcher.disconnect()
    await server.stop()


async def test_silence_is_noticed_on_a_running_node(tmp_path: Path) -> None:
    alerts = AlertsConfig(rule=(silent(absent_s=1.0),), limits=LimitsConfig(grace_s=0.2))
    async with running(tmp_path, alerts=alerts) as (node, client):
        watcher = await Client.connect("127.0.0.1", node.port, Connect("w", protocol_version=5))
        await watcher.subscribe(Subscription("alerts/#", 1))
        sender = await device(node)
        await sender.publish("devices/d1/state", b"1", 1)
        answer = await eventually(client, "/api/v1/alerts", lambda body: body["alerts"])
        assert answer["alerts"][0]["state"] == "firing"
        assert json.loads((await next_message(watcher)).payload)["state"] == "firing"
        await sender.publish("devices/d1/state", b"1", 1)
        assert json.loads((await next_message(watcher)).payload)["state"] == "resolved"
        await sender.disconnect()
        await watcher.disconnect()


async def test_values_are_pushed_as_they_change_and_become_stored(tmp_path: Path) -> None:
    async with running(tmp_path) as (node, client):
        sender = await device(node)
        async with client.stream("GET", "/api/v1/latest/changes?match=d*") as pushed:
            lines = pushed.aiter_lines()
            assert (await anext(lines)).startswith(":")
            await sender.publish("devices/d1/state", b"31", 1)
            async with asyncio.timeout(60):
                while not (line := await anext(lines)).startswith("data: "):
                    pass
            value = json.loads(line.removeprefix("data: "))
            assert (value["device"], value["payload"]) == ("d1", 31)
            latest = await eventually(
                client, "/api/v1/devices/d1/latest", lambda body: body["values"][0]["stored"]
            )
            assert latest["values"][0] == {**latest["values"][0], "seq": value["seq"]}
        await sender.disconnect()


async def test_http_port_in_use_is_one_line_and_leaves_nothing_behind(tmp_path: Path) -> None:
    async with running(tmp_path / "a") as (node, _):
        taken = HttpConfig(port=node.http_port)
        with pytest.raises(StartError, match=r"http: cannot listen on 127\.0\.0\.1:\d+"):
            async with running(tmp_path / "b", http=taken):
                pass
    async with running(tmp_path / "b"):
        pass


async def test_latest_without_storage_takes_all_that_the_stream_has() -> None:
    sink = LatestSink(Latest(), None, SystemClock())
    await sink.open(1)
    assert await sink.cursors() == {}
    await sink.rebuilt()
    await sink.close()
