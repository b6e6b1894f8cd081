"""The uplink against servers that are not ours: mosquitto over TCP and over TLS."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from bridge.batch import Decoder
from bridge.devices import DeviceIds
from bridge.envelope import CONTENT_TYPE, Mode
from bridge.structured import StructuredDecoder
from bridge.structured_bodies import LINK_LIMITS
from edge.contract import Lane
from edge.uplink import Uplink
from edge.uplink_config import Endpoint, UplinkConfig
from edge.uplink_connection import ConnectionOptions, UplinkConnection
from runtime.clock import SystemClock
from tests.kit.certificates import make_certificates
from tests.kit.cloud_peer import CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.mosquitto import mosquitto
from tests.kit.proxy import Proxy
from tests.kit.sites import until

FAST = UplinkConfig(linger_ms=5, backoff_min_s=0.01, backoff_max_s=0.05)


@asynccontextmanager
async def running(journal: MemoryJournal, config: UplinkConfig) -> AsyncIterator[Uplink]:
    uplink = Uplink(config, "gw-1", journal, DeviceIds(), SystemClock(), rng=random.Random(1))
    await uplink.start()
    try:
        yield uplink
    finally:
        await uplink.stop()


def payloads(count: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(count)]


def link_decoder() -> Decoder:
    """Return one for both modes: which the gateway takes is found by trying, and by time."""
    return Decoder("gw-1", bodies={Mode.STRUCTURED: StructuredDecoder(LINK_LIMITS)})


async def collect(client: aiomqtt.Client, count: int) -> list[bytes]:
    """Decode batches as they come from a subscription until `count` readings are there."""
    decoder = link_decoder()
    rows: dict[int, bytes] = {}
    async with asyncio.timeout(60):
        async for message in client.messages:
            if getattr(message.properties, "ContentType", None) == CONTENT_TYPE:
                decoder = link_decoder()  # a new connection of the uplink
            assert isinstance(message.payload, bytes)
            readings = decoder.decode(message.payload).readings
            rows |= dict(zip(readings.seqs, readings.payloads, strict=True))
            if len(rows) == count:
                break
    return [rows[seq] for seq in sorted(rows)]


async def test_mosquitto_takes_the_batches_and_a_subscriber_reads_them(tmp_path: Path) -> None:
    journal = MemoryJournal()
    with mosquitto(tmp_path) as port:
        async with (
            aiomqtt.Client("127.0.0.1", port, protocol=aiomqtt.ProtocolVersion.V5) as client,
            Proxy("127.0.0.1", port) as proxy,
        ):
            await client.subscribe("tidegate/v1/up/+", qos=1)
            config = replace(FAST, endpoints=(proxy.url,), batch_readings=50)
            async with running(journal, config) as uplink:
                collecting = asyncio.create_task(collect(client, 2000))
                journal.capture(payloads(2000)[:1000])
                await journal.until_trimmed()
                proxy.cut()
                journal.capture(payloads(2000)[1000:])
                await journal.until_trimmed()
                assert uplink.status().connections >= 2
                assert await collecting == payloads(2000)


async def test_mosquitto_without_a_subscriber_is_no_cloud(tmp_path: Path) -> None:
    journal = MemoryJournal()
    with mosquitto(tmp_path) as port:
        config = replace(FAST, endpoints=(f"mqtt://127.0.0.1:{port}",))
        async with running(journal, config) as uplink:
            journal.capture(payloads(10))
            async with asyncio.timeout(60):
                while uplink.status().refusals < 3:
                    await asyncio.sleep(0.01)
            assert "0x10" in uplink.status().last_error
    assert journal.pending(Lane.LIVE, 0), "nobody has it: it stays"


async def test_over_tls_with_a_certificate_of_the_gateways_own(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    server.load_cert_chain(certificates.server, certificates.server_key)
    server.verify_mode = ssl.CERT_REQUIRED
    journal = MemoryJournal()
    async with CloudPeer(tls=server) as cloud:
        config = replace(
            FAST,
            endpoints=(f"mqtts://localhost:{cloud.port}",),
            tls_ca_file=certificates.ca,
            tls_cert_file=certificates.client,
            tls_key_file=certificates.client_key,
        )
        async with running(journal, config) as uplink:
            journal.capture([*payloads(500), random.Random(1).randbytes(300_000)])
            await journal.until_trimmed()
            assert uplink.status().link == "online"
    assert len(cloud.rows) == 501


async def test_a_server_whose_certificate_is_not_trusted_is_refused(tmp_path: Path) -> None:
    certificates = make_certificates(tmp_path)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(certificates.server, certificates.server_key)
    journal = MemoryJournal()
    journal.capture(payloads(5))
    async with CloudPeer(tls=server) as cloud:
        config = replace(FAST, endpoints=(f"mqtts://localhost:{cloud.port}",))
        async with running(journal, config) as uplink, asyncio.timeout(60):
            while "certificate" not in uplink.status().last_error.lower():
                await asyncio.sleep(0.01)
    assert cloud.topics == []


async def test_a_missing_certificate_file_is_told_and_nothing_breaks(tmp_path: Path) -> None:
    journal = MemoryJournal()
    config = replace(FAST, endpoints=("mqtts://localhost:1",), tls_ca_file=tmp_path / "absent.pem")
    async with running(journal, config) as uplink, asyncio.timeout(60):
        while uplink.status().dials < 3:
            await asyncio.sleep(0.01)
        assert "absent.pem" in uplink.status().last_error


@pytest.mark.parametrize("tls", [False, True])
async def test_a_dial_that_is_given_up_leaves_no_socket_open(tmp_path: Path, tls: bool) -> None:
    """A peer that accepts and says nothing: the dial ends at its timeout, the socket with it."""
    came, ended = 0, 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal came, ended
        came += 1
        while await reader.read(4096):
            pass
        writer.close()
        ended += 1

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    while not came:  # on a busy machine a dial may be given up before it gets there
        connection = UplinkConnection(
            Endpoint("localhost" if tls else "127.0.0.1", port, tls),
            ConnectionOptions(gateway="gw", connect_timeout_s=0.2),
            lambda *_: None,
            lambda: None,
        )
        with pytest.raises(Exception, match="no answer within"):
            await connection.dial()
    await until("the sockets are closed", lambda: ended == came)
    server.close()
    await server.wait_closed()


async def test_a_port_of_another_protocol_is_asked_about() -> None:
    """TLS, HTTP, ...: they end the connection, and do not say CONNACK."""

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    url = f"mqtt://127.0.0.1:{port}"
    async with server, running(MemoryJournal(), replace(FAST, endpoints=(url,))) as uplink:
        async with asyncio.timeout(60):
            while not uplink.status().last_error:
                await asyncio.sleep(0.01)
        assert uplink.status().last_error == (
            f"{url}: closed without an answer to CONNECT; is that a port for MQTT without TLS?"
        )
