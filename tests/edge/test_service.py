"""The gateway as a whole: a device's PUBACK to the cloud's, over restarts and without a cloud."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import aiomqtt
import pytest

from bridge.envelope import LinkLane
from edge.config import CaptureConfig, EdgeConfig, EdgeHttpConfig, JournalConfig
from edge.service import EdgeService
from edge.uplink_config import UplinkConfig
from mqtt.broker.front import Front
from mqtt.packets import Connack, Connect, Will
from runtime.clock import SystemClock
from runtime.service import StartError
from tests.kit.brokers import WireClient
from tests.kit.cloud_peer import CloudPeer
from tests.kit.proxy import Proxy
from tests.kit.sites import until


def gateway(folder: Path, *endpoints: str) -> EdgeConfig:
    return EdgeConfig(
        data=folder,
        gateway="gw-1",
        host="127.0.0.1",
        port=0,
        capture=CaptureConfig(urgent=("alarms/#",), ignore=("local/#",)),
        journal=JournalConfig(disk_reserve_bytes=0),
        uplink=UplinkConfig(
            endpoints=endpoints, linger_ms=5, backoff_min_s=0.01, backoff_max_s=0.05
        ),
        http=EdgeHttpConfig(port=0),
    )


@asynccontextmanager
async def running(config: EdgeConfig) -> AsyncIterator[EdgeService]:
    service = EdgeService(config, SystemClock())
    try:
        await service.start()
        yield service
    finally:
        await service.stop()


async def publish(service: EdgeService, topic: str, payloads: list[bytes]) -> None:
    """Publish with QoS 1 as a device does; every one is acknowledged when this returns."""
    async with aiomqtt.Client("127.0.0.1", service.port) as device:
        for payload in payloads:
            await device.publish(topic, payload, qos=1)


def numbered(count: int) -> list[bytes]:
    return [b"%d" % n for n in range(count)]


async def get(service: EdgeService, path: str) -> tuple[int, bytes]:
    reader, writer = await asyncio.open_connection("127.0.0.1", service.http_port)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: edge\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).partition(b"\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def test_the_cloud_is_asked_before_anything_goes_up_however_long_the_start_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what it takes meanwhile makes this journal look like an older copy of itself."""
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", numbered(50))
    start = Front.start
    async with CloudPeer() as cloud:

        async def slow(front: Front) -> None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await cloud.until("something goes up", lambda: cloud.topics)
            await start(front)

        monkeypatch.setattr(Front, "start", slow)
        async with running(gateway(tmp_path, cloud.url)):
            await cloud.until("all taken", lambda: len(cloud.rows) >= 50)
    assert cloud.topics[0] == "tidegate/v1/ctl/gw-1"


@pytest.mark.parametrize("passes", [1, 2, 3], ids=["CONNECT", "SUBSCRIBE", "hello"])
async def test_a_line_that_dies_before_the_clouds_word_is_dialled_anew_and_nothing_goes_uncompared(
    tmp_path: Path, passes: int
) -> None:
    """The second connection goes through; the first ends with the gateway's first packets."""
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", numbered(50))
    async with CloudPeer() as cloud, Proxy("127.0.0.1", cloud.port) as proxy:
        cloud.held.add(1, 100)  # of a journal that was put back from an older copy
        left = iter([passes])

        def silent_behind() -> Callable[[bytes], bytes]:
            rest = next(left, None)

            def change(packet: bytes) -> bytes:
                nonlocal rest
                if rest is None:
                    return packet
                rest -= 1
                return packet if rest >= 0 else b""

            return change

        def connack_only() -> Callable[[bytes], bytes]:
            first = proxy.connections == 1
            return lambda packet: packet if not first or packet[0] >> 4 == 2 else b""

        proxy.up.packets, proxy.down.packets = silent_behind, connack_only
        config = gateway(tmp_path, proxy.url)
        config = replace(config, uplink=replace(config.uplink, ack_timeout_s=1))
        async with running(config) as service:
            await proxy.until_connections(2)
            assert "has not said what it holds" in service.status()["uplink"]["last_error"]
            assert not cloud.batches
            await cloud.until("all taken", lambda: len(cloud.rows) >= 50)
    assert min(seq for seq, _ in cloud.rows) > 100


async def test_a_welcome_that_was_lost_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge.commands._HELLO_AGAIN_S", 0.01)
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", numbered(50))
    async with CloudPeer() as cloud, Proxy("127.0.0.1", cloud.port) as proxy:
        cloud.held.add(1, 100)
        lost = iter([True])

        def lossy() -> Callable[[bytes], bytes]:
            return lambda packet: b"" if packet[0] >> 4 == 3 and next(lost, False) else packet

        proxy.down.packets = lossy
        async with running(gateway(tmp_path, proxy.url)):
            await cloud.until("all taken", lambda: len(cloud.rows) >= 50)
        assert proxy.connections == 1
        assert cloud.topics[:2] == ["tidegate/v1/ctl/gw-1"] * 2
    assert min(seq for seq, _ in cloud.rows) > 100


async def test_what_lies_behind_what_the_cloud_has_is_backlog_to_a_process_that_begins(
    tmp_path: Path,
) -> None:
    """A process that was killed had let live readings pass an outage's: they stay behind them."""
    async with CloudPeer(lambda _batch, _n: (0x97, "")) as cloud:
        async with running(gateway(tmp_path, cloud.url)) as service:
            await publish(service, "devices/d1/t", numbered(40))
            await cloud.until("refused, so it was asked", lambda: cloud.batches)
        cloud.held.add(21, 30)
        cloud.script = lambda _batch, _n: (0, "")
        async with running(gateway(tmp_path, cloud.url)):
            await cloud.until("all answered", lambda: cloud.readings >= 40)
    lanes = {seq: batch.lane for batch in cloud.accepted for seq in batch.readings.seqs}
    assert lanes == {seq: LinkLane.BACKLOG if seq <= 30 else LinkLane.LIVE for seq in range(1, 41)}


async def test_what_devices_publish_reaches_the_cloud(tmp_path: Path) -> None:
    async with CloudPeer() as cloud, running(gateway(tmp_path, cloud.url)) as service:
        await publish(service, "devices/d1/t", numbered(50))
        await publish(service, "alarms/fire", [b"!"])
        await publish(service, "local/only", [b"stays"])
        await cloud.until("all taken", lambda: len(cloud.rows) >= 51)
    assert [payload for _, payload in cloud.rows if payload != b"!"] == numbered(50)
    assert {batch.lane for batch in cloud.accepted} == {0, 1}
    sources = {source for batch in cloud.accepted for source in batch.readings.sources}
    assert ("devices/d1/t", "d1") in sources
    assert not any(topic.startswith("local") for topic, _ in sources)


async def test_readings_of_a_gateway_that_never_had_a_cloud_go_up_after_a_restart(
    tmp_path: Path,
) -> None:
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", numbered(40))
        assert service.status()["uplink"]["link"] == "off"
        assert service.status()["uplink"]["backlog_readings"] == 40
    async with CloudPeer() as cloud, running(gateway(tmp_path, cloud.url)) as service:
        await publish(service, "devices/d1/t", [b"after"])
        await cloud.until("all taken", lambda: len(cloud.rows) == 41)
    assert [payload for _, payload in cloud.rows] == [*numbered(40), b"after"]
    assert cloud.rows[0][0] == 1
    assert len({batch.epoch for batch in cloud.accepted}) == 1


async def test_the_wills_of_clients_that_a_stop_disconnects_are_captured(tmp_path: Path) -> None:
    async with running(gateway(tmp_path)) as service:
        client = await WireClient.open(service.port)
        client.send(Connect("d1", will=Will("devices/d1/will", b"gone", 1)))
        assert (await client.receive(Connack)).reason_code == 0
        await service.stop()
        await client.close()
    async with running(gateway(tmp_path)) as service:
        assert service.status()["uplink"]["backlog_readings"] == 1


async def test_a_link_that_is_cut_again_and_again_never_holds_a_device_up(tmp_path: Path) -> None:
    rng = random.Random(5)
    async with CloudPeer() as cloud, running(gateway(tmp_path, cloud.url)) as service:
        cut = 0
        for n in range(20):
            await publish(service, f"devices/d{n % 3}/t", [b"%d" % (n * 10 + k) for k in range(10)])
            if rng.random() < 0.5:
                await cloud.until("there is a link", lambda cut=cut: cloud.connections > cut)
                cloud.cut()
                cut = cloud.connections
        await cloud.until("all taken", lambda: len(cloud.rows) == 200)
    assert [payload for _, payload in cloud.rows] == numbered(200)
    assert cloud.connections > 3


async def test_http_tells_health_status_and_metrics(tmp_path: Path) -> None:
    async with CloudPeer() as cloud, running(gateway(tmp_path, cloud.url)) as service:
        await publish(service, "devices/d1/t", numbered(10))
        await cloud.until("all taken", lambda: len(cloud.rows) == 10)

        def is_settled() -> bool:
            status = service.status()
            left = status["journal"]["lanes"]["live"]["readings"]
            return (status["uplink"]["readings_sent"], left) == (10, 0)

        await until("acknowledged and trimmed", is_settled)
        assert (await get(service, "/healthz"))[0] == 200
        assert (await get(service, "/readyz"))[0] == 200
        code, body = await get(service, "/status")
        status = json.loads(body)
        assert code == 200
        assert status["gateway"] == "gw-1"
        assert status["capture"]["readings"] == 10
        assert status["uplink"]["readings_sent"] == 10
        assert status["journal"]["lanes"]["live"]["readings"] == 0
        _, metrics = await get(service, "/metrics")
    assert b"tidegate_uplink_readings_sent_total 10.0" in metrics
    assert b"tidegate_uplink_online 1.0" in metrics
    assert b'tidegate_journal_lane_readings{lane="live"} 0.0' in metrics
    assert b"tidegate_metrics_read_errors_total 0.0" in metrics


@pytest.mark.parametrize("which", ["mqtt", "http"])
async def test_a_port_in_use_is_told_in_one_line_and_everything_is_released(
    tmp_path: Path, which: str
) -> None:
    blocker = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    port = blocker.sockets[0].getsockname()[1]
    config = gateway(tmp_path)
    taken = (
        replace(config, port=port)
        if which == "mqtt"
        else replace(config, http=EdgeHttpConfig(port=port))
    )
    with pytest.raises(StartError) as caught:
        async with running(taken):
            raise AssertionError("started on a port that is in use")
    assert f"{which}: cannot listen on 127.0.0.1:{port}" in str(caught.value)
    blocker.close()
    await blocker.wait_closed()
    async with running(config) as service:
        assert service.port


async def test_a_data_folder_that_cannot_be_used_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StartError, match=r"data folder .*file"):
        async with running(gateway(tmp_path / "file")):
            raise AssertionError("started in a file")


async def test_retained_messages_and_sessions_outlive_a_restart(tmp_path: Path) -> None:
    async with running(gateway(tmp_path)) as service:
        async with aiomqtt.Client(
            "127.0.0.1", service.port, identifier="screen", clean_session=False
        ) as screen:
            await screen.subscribe("devices/+/state", qos=1)
        async with aiomqtt.Client("127.0.0.1", service.port) as device:
            await device.publish("devices/d1/state", b"on", qos=1, retain=True)
            await device.publish("devices/d1/state", b"off", qos=1)
    async with running(gateway(tmp_path)) as service:
        client = aiomqtt.Client("127.0.0.1", service.port, identifier="screen", clean_session=False)
        async with client as screen, asyncio.timeout(60):
            waiting = [await anext(screen.messages) for _ in range(2)]
        async with aiomqtt.Client("127.0.0.1", service.port) as other, asyncio.timeout(60):
            await other.subscribe("#")
            retained = await anext(other.messages)
    assert [message.payload for message in waiting] == [b"on", b"off"]
    assert (retained.payload, retained.retain) == (b"on", True)


async def test_a_session_file_that_is_none_is_told(tmp_path: Path) -> None:
    (tmp_path / "edge").mkdir()
    (tmp_path / "edge" / "sessions.db").write_bytes(b"not a database at all" * 100)
    with pytest.raises(StartError, match="sessions:"):
        async with running(gateway(tmp_path)):
            raise AssertionError("started on a file that is no database")


async def test_a_damaged_session_file_keeps_nobody_from_publishing(tmp_path: Path) -> None:
    path = tmp_path / "edge" / "sessions.db"
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", [b"1"])
    path.write_bytes(b"\xa5" * 5000 + path.read_bytes()[5000:])
    async with running(gateway(tmp_path)) as service:
        await publish(service, "devices/d1/t", [b"2"])
        _, status = await get(service, "/status")
        _, metrics = await get(service, "/metrics")
    assert json.loads(status)["mqtt"]["store_salvages"] == 1
    assert b"tidegate_mqtt_session_store_salvages_total 1.0" in metrics
    assert len(list(path.parent.glob("sessions.db.damaged-*"))) >= 1


async def test_two_gateways_cannot_share_a_journal(tmp_path: Path) -> None:
    async with running(gateway(tmp_path)):
        with pytest.raises(StartError, match="journal"):
            async with running(gateway(tmp_path)):
                raise AssertionError("started twice on one journal")


async def test_stop_before_start_and_twice_is_harmless(tmp_path: Path) -> None:
    service = EdgeService(gateway(tmp_path), SystemClock())
    await service.stop()
    assert service.status() == {}
    await service.start()
    await service.stop()
    await service.stop()
