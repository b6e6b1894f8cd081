"""The node as a whole over real sockets: batches in, rows and messages out, and what goes wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from bridge.batch import Encoder
from bridge.devices import DeviceIds
from bridge.readings import FLAG_RETAIN, Readings
from cloud.config import CloudConfig, IngestConfig, LiveConfig, StorageConfig, StreamConfig
from cloud.parts import CloudNode
from cloud.service import CloudService
from cloud.sinks.contract import Sink
from cloud.stream.contract import StreamError
from mqtt.aio import Client
from mqtt.packets import Connack, Connect, Puback, Publish, Subscription
from mqtt.properties import REASON_STRING, USER_PROPERTY
from runtime.clock import ManualClock, SystemClock
from runtime.config import ConfigError
from runtime.service import StartError
from tests.kit.brokers import WireClient
from tests.kit.cloud import EPOCH, RecordingSink, query
from tests.kit.readings import one_per_row


def config_of(data: Path, **changes: object) -> CloudConfig:
    settings = {
        "data": data,
        "port": 0,
        "stream": StreamConfig(disk_reserve_bytes=0),
        "storage": StorageConfig(linger_ms=0),
        "live": LiveConfig(historical_s=1 << 40),
    }
    return CloudConfig(**{**settings, **changes})  # type: ignore[arg-type]


@asynccontextmanager
async def node(
    data: Path, parts: Sequence[object] = (), **changes: object
) -> AsyncIterator[CloudService]:
    service = CloudService(config_of(data, **changes), SystemClock(), parts)  # type: ignore[arg-type]
    try:
        async with asyncio.timeout(60):
            await service.start()
            yield service
    finally:
        await service.stop()


async def connect(service: CloudService, client_id: str, *, version: int = 5) -> Client:
    return await Client.connect(
        "127.0.0.1", service.port, Connect(client_id, protocol_version=version)
    )


async def publish(client: Client, topic: str, payload: bytes, qos: int = 1) -> int:
    published = await client.publish(topic, payload, qos)
    assert published is not None
    return published.reason_code


async def receive(client: Client, count: int) -> list[Publish]:
    found: list[Publish] = []
    async for message in client.messages():
        found.append(message)
        if len(found) == count:
            break
    return found


async def test_from_batch_to_rows_subscribers_and_a_balanced_ledger(tmp_path: Path) -> None:
    readings = one_per_row(100, devices=20)
    async with node(tmp_path) as service:
        subscriber = await connect(service, "viewer")
        await subscriber.subscribe(Subscription("devices/+/#", 1))
        gateway = await connect(service, "gw-1")
        encoder = Encoder("gw-1", EPOCH)
        assert await publish(gateway, "tidegate/v1/up/gw-1", encoder.encode(readings)) == 0
        messages = await receive(subscriber, 100)
        await service.sinks.drained()
        assert (await service.balance(thorough=True)).balanced
        (seen,) = await service.gateways()
        assert (seen.gateway, seen.connected, seen.readings) == ("gw-1", True, 100)
        assert seen.last_event_us == readings.times_us[-1]
        (account,) = await service.ledger()
        assert (account.assigned, account.stored, account.balanced) == (100, 100, True)
        assert service.ready() == []
        assert service.health() == []
        assert sum(view.last_position for view in await service.partitions()) > 0
        assert service.status().readings_stored == 100
        assert service.figures()["sinks"].keys() == {"storage", "live"}
        body, _ = service.metrics.render()
        assert b"tidegate_ingest_readings_total 100.0" in body
        assert b"tidegate_metrics_read_errors_total 0.0" in body
        await gateway.disconnect()
        while (await service.gateways())[0].connected:
            await asyncio.sleep(0.001)
        await subscriber.disconnect()
    sent = dict(zip(readings.seqs, readings.payloads, strict=True))
    sql = "SELECT seq, CAST(payload AS BLOB) FROM readings"
    assert dict(query(tmp_path / "cloud" / "storage.db", sql)) == sent  # type: ignore[arg-type]
    assert sorted(m.payload for m in messages) == sorted(sent.values())
    by_topic: dict[str, list[bytes]] = {}
    for message in messages:
        by_topic.setdefault(message.topic_name, []).append(message.payload)
    for n in range(20):
        assert by_topic[f"devices/d{n}/state"] == readings.payloads[n::20]


async def test_late_readings_carry_the_mark(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        subscriber = await connect(service, "viewer")
        await subscriber.subscribe(Subscription("devices/+/#", 0))
        gateway = await connect(service, "gw-1")
        batch = Encoder("gw-1", EPOCH).encode(one_per_row(1), historical=True)
        await publish(gateway, "tidegate/v1/up/gw-1", batch)
        (message,) = await receive(subscriber, 1)
        assert message.properties[USER_PROPERTY] == [("tidegate-historical", "1")]
        assert message.qos == 0  # capped by the subscription


async def test_a_device_of_the_node_reaches_storage_and_subscribers(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        subscriber = await connect(service, "viewer", version=4)
        await subscriber.subscribe(Subscription("#", 1))
        for version, qos in ((4, 1), (5, 2), (5, 0)):
            device = await connect(service, f"d{version}{qos}", version=version)
            await device.publish("devices/d7/state", b"%d%d" % (version, qos), qos)
            await device.disconnect()
        messages = await receive(subscriber, 3)
        assert [(m.topic_name, m.payload) for m in messages] == [
            ("devices/d7/state", payload) for payload in (b"41", b"52", b"50")
        ]
        await service.sinks.drained()
        assert (await service.balance(thorough=True)).balanced
    sql = "SELECT gateway, device, qos, payload FROM readings ORDER BY seq"
    assert query(tmp_path / "cloud" / "storage.db", sql) == [
        ("cloud", "d7", 1, "41"), ("cloud", "d7", 2, "52"), ("cloud", "d7", 0, "50"),
    ]  # fmt: skip


async def test_what_is_not_captured_is_ordinary_mqtt(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        one, two = await connect(service, "one"), await connect(service, "two")
        await two.subscribe(Subscription("chat/#", 1))
        assert await publish(one, "chat/room", b"hello") == 0
        (message,) = await receive(two, 1)
        assert message.payload == b"hello"
    assert query(tmp_path / "cloud" / "storage.db", "SELECT count(*) FROM readings") == [(0,)]


async def test_a_retained_reading_is_retained(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        gateway = await connect(service, "gw")
        readings = Readings([1], [("devices/d/state", "d")], [0], [5], [1 | FLAG_RETAIN], [b"on"])
        batch = Encoder("gw", EPOCH).encode(readings)
        await publish(gateway, "tidegate/v1/up/gw", batch)
        await service.sinks.drained()
        late = await connect(service, "late")
        await late.subscribe(Subscription("devices/#", 1))
        (message,) = await receive(late, 1)
        assert (message.payload, message.retain) == (b"on", True)


async def test_a_bad_batch_gets_its_code_and_the_next_one_passes(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        gateway = await connect(service, "gw")
        assert await publish(gateway, "tidegate/v1/up/gw", b"\xffgarbage") == 0x99
        good = Encoder("gw", EPOCH).encode(one_per_row(5))
        assert await publish(gateway, "tidegate/v1/up/gw", good) == 0
        assert await publish(gateway, "tidegate/v1/up/gw/x", good) == 0x90


async def test_sinks_and_beginnings_of_parts_have_their_place(tmp_path: Path) -> None:
    order: list[str] = []

    class Part:
        sink = RecordingSink("extra")

        def sinks(self, node: CloudNode) -> Sequence[Sink]:
            assert node.stream.epoch
            order.append("sinks")
            return [self.sink]

        async def start(self, node: CloudNode) -> None:
            order.append(f"start, {sorted(node.sinks.runners)}, listening: {node.ready() == []}")

        async def stop(self) -> None:
            order.append(f"stop, sink closed: {self.sink.closed}")

    part = Part()
    async with node(tmp_path, [part]) as service:
        gateway = await connect(service, "gw")
        await publish(gateway, "tidegate/v1/up/gw", Encoder("gw", EPOCH).encode(one_per_row(5)))
        await service.sinks.drained()
    assert sorted(seq for seq, _ in part.sink.readings) == [1, 2, 3, 4, 5]
    assert part.sink.closed
    assert order == [
        "sinks",
        "start, ['extra', 'live', 'storage'], listening: True",
        "stop, sink closed: False",
    ]


async def test_how_far_storage_is_may_be_unknown_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away() -> dict[str, dict[int, int]]:
        raise StreamError("no quorum")

    async with node(tmp_path) as service:
        device = await connect(service, "d1")
        assert await publish(device, "devices/d1/t", b"1") == 0
        await service.sinks.drained()
        assert sum((await service.stored_positions()).values()) == 1
        monkeypatch.setattr(service.sinks, "positions", away)
        assert await service.stored_positions() == {}, "nothing is shown as stored"
        await device.disconnect()


async def test_a_restart_goes_on_and_repeats_nothing_in_storage(tmp_path: Path) -> None:
    for first in (1, 51, 101):
        async with node(tmp_path) as service:
            gateway = await connect(service, "gw")
            batch = Encoder("gw", EPOCH).encode(one_per_row(50, first_seq=first))
            assert await publish(gateway, "tidegate/v1/up/gw", batch) == 0
    sql = "SELECT count(*), min(seq), max(seq) FROM readings"
    assert query(tmp_path / "cloud" / "storage.db", sql) == [(150, 1, 150)]


async def test_without_storage_and_live(tmp_path: Path) -> None:
    off = {"storage": StorageConfig(enabled=False), "live": LiveConfig(enabled=False)}
    async with node(tmp_path, **off) as service:
        gateway = await connect(service, "gw")
        batch = Encoder("gw", EPOCH).encode(one_per_row(50))
        assert await publish(gateway, "tidegate/v1/up/gw", batch) == 0
        assert "not enabled" in (await service.balance()).notes[0]
    assert not (tmp_path / "cloud" / "storage.db").exists()


# ---- what cannot start ---------------------------------------------------------------------------


async def refusal(data: Path, **changes: object) -> str:
    service = CloudService(config_of(data, **changes), ManualClock())
    try:
        with pytest.raises(StartError) as error:
            await service.start()
    finally:
        await service.stop()
    text = str(error.value)
    assert "\n" not in text
    return text


async def test_a_port_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        text = await refusal(tmp_path, port=other.getsockname()[1])
    assert text.startswith("mqtt: cannot listen on 127.0.0.1:")


@pytest.mark.parametrize("name", ["stream.db", "storage.db", "sessions.db"])
async def test_a_foreign_file_in_the_place_of_any(tmp_path: Path, name: str) -> None:
    (tmp_path / "cloud").mkdir()
    (tmp_path / "cloud" / name).write_bytes(b"holiday pictures" * 1000)
    assert name in await refusal(tmp_path)
    assert (tmp_path / "cloud" / name).read_bytes().startswith(b"holiday")


async def test_a_second_node_on_the_same_folder(tmp_path: Path) -> None:
    async with node(tmp_path):
        assert "in use by process" in await refusal(tmp_path)


async def test_after_a_failed_start_everything_is_released(tmp_path: Path) -> None:
    (tmp_path / "cloud").mkdir()
    bad = tmp_path / "cloud" / "storage.db"
    bad.write_bytes(b"holiday pictures" * 1000)
    await refusal(tmp_path)
    bad.unlink()
    async with node(tmp_path) as service:
        assert service.ready() == []


async def test_a_stream_that_takes_nothing_is_not_ready(tmp_path: Path) -> None:
    config = StreamConfig(disk_reserve_bytes=1 << 60)
    async with node(tmp_path, stream=config) as service:
        gateway = await connect(service, "gw")
        batch = Encoder("gw", EPOCH).encode(one_per_row(5))
        assert await publish(gateway, "tidegate/v1/up/gw", batch) == 0x97
        assert "disk_reserve_bytes" in service.ready()[0]


def test_configuration_is_checked() -> None:
    with pytest.raises(ValueError, match="node_id"):
        CloudConfig(node_id="a/b")
    with pytest.raises(ValueError, match="topics"):
        IngestConfig(topics=("devices/#/x",))
    with pytest.raises(ValueError, match="pattern"):
        IngestConfig(devices=("devices/x",))
    assert DeviceIds(IngestConfig().devices)
    assert issubclass(ConfigError, Exception)


async def test_a_gateway_is_told_why_its_batch_is_refused(tmp_path: Path) -> None:
    async with node(tmp_path) as service:
        client = await WireClient.open(service.port)
        client.send(Connect("gw-1"), Publish("tidegate/v1/up/gw-1", b"no batch", 1, packet_id=1))
        await client.receive(Connack)
        puback = await client.receive(Puback)
        await client.close()
    assert puback.reason_code == 0x99
    assert puback.properties[REASON_STRING].startswith("malformed: ")
