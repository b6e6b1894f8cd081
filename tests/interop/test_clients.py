"""Clients that share no code with ours, by every transport they have: MQTT.js, gmqtt, aiomqtt, on
paho, and mosquitto's; plain TCP of the last two is in tests/mqtt/test_broker_clients.py."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import aiomqtt
import gmqtt
import pytest

from tests.kit.certificates import Certificates, make_certificates
from tests.kit.fronts import client_tls, fronting, listener
from tests.kit.mqtt_js import INTEROP, node_with_mqtt_js
from tests.kit.programs import program


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize(
    ("transport", "url"),
    [
        ("tcp", "mqtt://127.0.0.1:{}"),
        ("tls", "mqtts://localhost:{}"),
        ("ws", "ws://127.0.0.1:{}/mqtt"),
        ("wss", "wss://localhost:{}/mqtt"),
    ],
)
async def test_mqtt_js(
    transport: str, url: str, version: int, certificates: Certificates, tmp_path: Path
) -> None:
    node = node_with_mqtt_js()
    async with fronting(listener(transport, certificates, tmp_path)) as front:
        ca = str(certificates.ca) if transport in ("tls", "wss") else ""
        process = await asyncio.create_subprocess_exec(
            node, "client.mjs", url.format(front.port), str(version), ca,
            cwd=INTEROP, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        assert json.loads(out) == [["js/0", 4], ["js/1", 3], ["js/2", 70000]] * 2


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("transport", ["tcp", "tls"])
async def test_gmqtt(
    transport: str, version: int, certificates: Certificates, tmp_path: Path
) -> None:
    async with fronting(listener(transport, certificates, tmp_path)) as front:
        got: asyncio.Queue[bytes] = asyncio.Queue()
        client = gmqtt.Client("gmqtt")
        client.on_message = lambda _c, _topic, payload, _qos, _p: got.put_nowait(payload) or 0
        tls = client_tls(certificates.ca) if transport == "tls" else False
        await client.connect("localhost", front.port, ssl=tls, version=version)
        client.subscribe("g/#", qos=1)
        await front.until(lambda: front.broker.stats().subscriptions == 1)
        client.publish("g/1", b"payload", qos=1)
        async with asyncio.timeout(60):
            assert await got.get() == b"payload"
        await client.disconnect()


@pytest.mark.parametrize("version", ["V311", "V5"])
@pytest.mark.parametrize("transport", ["tcp", "tls", "ws", "wss"])
async def test_aiomqtt(
    transport: str, version: str, certificates: Certificates, tmp_path: Path
) -> None:
    async with fronting(listener(transport, certificates, tmp_path)) as front:
        tls = client_tls(certificates.ca) if transport in ("tls", "wss") else None
        async with aiomqtt.Client(
            "localhost",
            front.port,
            protocol=aiomqtt.ProtocolVersion[version],
            transport="websockets" if transport in ("ws", "wss") else "tcp",
            websocket_path="/mqtt" if transport in ("ws", "wss") else None,
            tls_context=tls,
        ) as client:
            await client.subscribe("a/#", qos=2)
            await client.publish("a/b", b"payload", qos=2)
            async with asyncio.timeout(60):
                message = await anext(aiter(client.messages))
            assert message.payload == b"payload"


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
async def test_mosquitto_over_tls(version: str, certificates: Certificates, tmp_path: Path) -> None:
    sub, pub = (program(f"mosquitto_{n}", "mosquitto-clients") for n in ("sub", "pub"))
    async with fronting(listener("tls", certificates, tmp_path)) as front:
        common = ["-h", "localhost", "-p", str(front.port), "-V", version, "-t", "m/1", "-q", "2"]
        common += ["--cafile", str(certificates.ca)]
        reader = await asyncio.create_subprocess_exec(
            sub, *common, "-C", "1", stdout=asyncio.subprocess.PIPE
        )
        await front.until(lambda: front.broker.stats().subscriptions == 1)
        writer = await asyncio.create_subprocess_exec(pub, *common, "-m", "payload")
        async with asyncio.timeout(60):
            assert await writer.wait() == 0
            out, _ = await reader.communicate()
        assert out == b"payload\n"
