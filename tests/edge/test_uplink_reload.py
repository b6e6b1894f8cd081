"""The uplink when its configuration or its certificates change while it runs."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from pathlib import Path

import pytest

from bridge.devices import DeviceIds
from edge.uplink import Uplink
from mqtt.broker.net.config import ListenerConfig
from runtime.clock import SystemClock
from tests.kit.brokers import ManualCapture
from tests.kit.cloud_peer import CloudPeer
from tests.kit.fronts import fronting
from tests.kit.journals import MemoryJournal
from tests.kit.uplinks import FAST, FAST_LINK, numbered, online, uplink_to
from tidegate.certificates import Authority


async def test_other_endpoints_are_dialled_and_nothing_is_lost() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as old, CloudPeer() as new, uplink_to(journal, old.url) as uplink:
        journal.capture(numbered(0, 100))
        await journal.until_trimmed()
        uplink.reconfigure(replace(FAST, endpoints=(new.url,)))
        journal.capture(numbered(100, 100))
        await journal.until_trimmed()
    assert [payload for _, payload in old.rows + new.rows] == numbered(0, 200)
    assert len(new.rows) == 100


async def test_an_endpoint_that_stays_keeps_its_connection() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url) as uplink:
        await online(uplink)
        uplink.reconfigure(replace(FAST, endpoints=("mqtt://127.0.0.1:1", cloud.url)))
        journal.capture(numbered(0, 10))
        await journal.until_trimmed()
        assert uplink.status().connections == 1


async def test_endpoints_come_and_go() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud, uplink_to(journal) as uplink:
        journal.capture(numbered(0, 10))
        assert uplink.status().link == "off"
        uplink.reconfigure(replace(FAST, endpoints=(cloud.url,)))
        await journal.until_trimmed()
        uplink.reconfigure(replace(FAST, endpoints=()))
        async with asyncio.timeout(60):
            while uplink.status().link != "off":
                await asyncio.sleep(0.005)


def certificates(folder: Path) -> Authority:
    authority = Authority(folder)
    authority.create("test authority")
    authority.server("cloud", ["localhost"], 1)
    authority.client("gw-1", 1)
    return authority


async def test_renewed_certificates_are_used_and_broken_ones_are_not(tmp_path: Path) -> None:
    authority = certificates(tmp_path)
    listener = ListenerConfig(
        transport="tls",
        port=0,
        tls_cert_file=tmp_path / "cloud.pem",
        tls_key_file=tmp_path / "cloud.key",
        tls_ca_file=tmp_path / "ca.pem",
    )
    async with fronting(listener, capture=ManualCapture(automatic=True)) as front:
        config = replace(
            FAST,
            endpoints=(f"mqtts://localhost:{front.port}",),
            tls_ca_file=tmp_path / "ca.pem",
            tls_cert_file=tmp_path / "gw-1.pem",
            tls_key_file=tmp_path / "gw-1.key",
        )
        uplink = Uplink(config, "gw-1", MemoryJournal(), DeviceIds(), SystemClock())
        await uplink.start()
        await online(uplink)
        first = _serial(front)
        # half a key: the connection after it is made with what was there before
        key = (tmp_path / "gw-1.key").read_bytes()
        (tmp_path / "gw-1.key").write_bytes(key[:50])
        await _dial_again(uplink, front)
        assert _serial(front) == first
        for name in ("gw-1.pem", "gw-1.key"):
            (tmp_path / name).unlink()
        authority.client("gw-1", 1)
        await _dial_again(uplink, front)
        assert _serial(front) != first
        await uplink.stop()


async def _dial_again(uplink: Uplink, front: object) -> None:
    connections = uplink.status().connections
    for connection in list(front.broker._core.connections):  # type: ignore[attr-defined]
        connection.transport.abort()
    async with asyncio.timeout(60):
        while uplink.status().connections == connections or uplink.status().link != "online":
            await asyncio.sleep(0.005)


def _serial(front: object) -> str:
    (connection,) = front.broker._core.connections  # type: ignore[attr-defined]
    client = connection.machine.client
    assert client.certificate_name == "gw-1"
    assert isinstance(client.tls, ssl.SSLObject)
    certificate = client.tls.getpeercert()
    assert certificate is not None
    return str(certificate["serialNumber"])


async def test_what_cannot_be_reloaded_is_left_alone() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=FAST_LINK) as uplink:
        uplink.reconfigure(
            replace(FAST_LINK, endpoints=(cloud.url,), batch_readings=7, username="new")
        )
        journal.capture(numbered(0, 50))
        await journal.until_trimmed()
    assert [len(batch.readings) for batch in cloud.accepted] == [50]


@pytest.mark.parametrize("file", ["tls_ca_file", "tls_cert_file"])
async def test_files_that_were_never_good_are_told(file: str, tmp_path: Path) -> None:
    config = replace(FAST, endpoints=("mqtts://127.0.0.1:1",), **{file: tmp_path / "none.pem"})
    uplink = Uplink(config, "gw-1", MemoryJournal(), DeviceIds(), SystemClock())
    await uplink.start()
    async with asyncio.timeout(60):
        while "none.pem" not in uplink._state.last_error:
            await asyncio.sleep(0.005)
    await uplink.stop()
