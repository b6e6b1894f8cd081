"""Devices connected to the cloud itself: their publishes are readings with the node as gateway."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.batch import decode_entry
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN
from cloud.config import IngestConfig, StreamConfig
from cloud.ingest import DEVICES_LANE, CloudCapture
from cloud.ingest_parts import PartEncoder
from cloud.stream.contract import PARTITIONS, StreamError, StreamFull
from cloud.stream.embedded import EmbeddedStream
from mqtt.frames import encode_publish
from runtime.clock import ManualClock
from tests.kit.cloud import Uplink
from tests.kit.readings import rows


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[EmbeddedStream]:
    opened = await open_stream(tmp_path)
    yield opened
    await opened.close()


async def open_stream(folder: Path) -> EmbeddedStream:
    return await EmbeddedStream.open(
        folder / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )


async def start(stream: EmbeddedStream, node_id: str = "cloud-1") -> CloudCapture:
    capture = CloudCapture(stream, IngestConfig(), node_id, ManualClock())
    await capture.start()
    return capture


class Device(Uplink):
    """A device with a connection to the node."""

    def publish(
        self, topic: str, payload: bytes, *, first_byte: int = 0x32, properties: bytes = b""
    ) -> int:
        frame = encode_publish(
            first_byte, topic.encode(), 7, properties, payload, self.client.protocol_version
        )
        return self.offer(frame, 1, DEVICES_LANE)


async def readings_in(stream: EmbeddedStream) -> list[tuple[object, ...]]:
    found: list[tuple[object, ...]] = []
    for partition in range(PARTITIONS):
        for entry in await stream.read(partition, 0, entries_max=1000, bytes_max=1 << 30):
            assert (entry.gateway, entry.epoch) == ("cloud-1", stream.epoch)
            found += rows(decode_entry(entry.body).readings)
    return sorted(found, key=lambda row: str(row[0]).zfill(9))


async def test_a_publish_becomes_a_reading_of_the_node(stream: EmbeddedStream) -> None:
    capture = await start(stream)
    device = Device(capture, "sensor-9")
    device.publish("devices/d1/state", b"21.5")
    device.publish("devices/d1/state", b"x", first_byte=0x35, properties=b"\x01\x01")
    device.publish("devices/d2/up", b"", first_byte=0x30)
    assert await device.answered() == [0, 0, 0]
    time_us = 1_700_000_000_000_000
    assert await readings_in(stream) == [
        (1, "devices/d1/state", "d1", time_us, 1, b"21.5", b""),
        (2, "devices/d1/state", "d1", time_us, 2 | FLAG_RETAIN | FLAG_PROPERTIES, b"x", b"\1\1"),
        (3, "devices/d2/up", "d2", time_us, 0, b"", b""),
    ]
    await capture.close()


async def test_a_topic_without_a_device_counts_as_its_clients(stream: EmbeddedStream) -> None:
    capture = CloudCapture(stream, IngestConfig(topics=("#",)), "cloud-1", ManualClock())
    await capture.start()
    for name in ("a", "b"):
        device = Device(capture, name)
        device.publish("shared/topic", name.encode())
        await device.answered()
    found = [(row[2], row[5]) for row in await readings_in(stream)]
    assert found == [("a", b"a"), ("b", b"b")]
    await capture.close()


async def test_publishes_of_many_devices_share_appends(stream: EmbeddedStream) -> None:
    capture = await start(stream)
    devices = [Device(capture, f"c{n}", version=4 + n % 2) for n in range(100)]
    for n, device in enumerate(devices):
        device.publish(f"devices/d{n}/state", b"%d" % n)
    for device in devices:
        assert await device.answered() == [0]
    assert capture.devices.stats.appends < 10
    assert [row[0] for row in await readings_in(stream)] == list(range(1, 101))
    await capture.close()


async def test_seqs_go_on_after_a_restart(tmp_path: Path) -> None:
    for round_ in range(3):
        stream = await open_stream(tmp_path)
        capture = await start(stream)
        device = Device(capture)
        device.publish("devices/d1/state", b"%d" % round_)
        await device.answered()
        await capture.close()
        if round_ == 2:
            assert [row[0] for row in await readings_in(stream)] == [1, 2, 3]
            (line,) = await stream.ledger()
            assert (line.assigned, line.held) == (3, ((1, 3),))
        await stream.close()


async def test_a_failed_append_is_repeated_and_no_seq_is_used_twice(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.ingest_devices._RETRY_S", 0.001)
    capture = await start(stream)
    real = stream.append
    calls = 0

    async def unsure(*args: object, **kwargs: object) -> None:
        """Store, but say it is not known; then be full; then store."""
        nonlocal calls
        calls += 1
        if calls == 1:
            await real(*args, **kwargs)  # type: ignore[arg-type]
            raise StreamError("timeout")
        if calls == 2:
            raise StreamFull("full")
        await real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "append", unsure)
    device = Device(capture)
    device.publish("devices/d1/state", b"1")
    assert await device.answered() == [0]
    device.publish("devices/d1/state", b"2")
    assert await device.answered() == [0, 0]
    assert [(row[0], row[5]) for row in await readings_in(stream)] == [(1, b"1"), (2, b"2")]
    await capture.close()


async def test_while_the_stream_is_full_publishes_are_refused_until_it_is_not(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.ingest_devices._RETRY_S", 0.001)
    capture = await start(stream)
    full = True
    refused = asyncio.Event()
    real = stream.append

    async def append(*args: object, **kwargs: object) -> None:
        if full:
            refused.set()
            raise StreamFull("full")
        await real(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(stream, "append", append)
    device = Device(capture)
    assert device.publish("devices/d1/state", b"kept") == 0
    await refused.wait()
    await asyncio.sleep(0)
    assert device.publish("devices/d1/state", b"refused") == 0x97
    relieved = asyncio.Event()
    capture.when_relieved(relieved.set)
    full = False
    async with asyncio.timeout(60):
        await relieved.wait()
    assert device.publish("devices/d1/state", b"again") == 0
    assert await device.answered() == [0, 0]
    assert [row[5] for row in await readings_in(stream)] == [b"kept", b"again"]
    await capture.close()


async def test_closing_appends_what_was_taken(stream: EmbeddedStream) -> None:
    capture = await start(stream)
    device = Device(capture)
    for n in range(10):
        device.publish("devices/d1/state", b"%d" % n)
    await capture.close()
    assert device.answers == [0] * 10


async def test_large_publishes_go_in_entries_that_can_be_read(stream: EmbeddedStream) -> None:
    capture = await start(stream)
    device = Device(capture, "camera")
    payload = bytes(1 << 20)  # small once compressed: what counts is what it unpacks to
    for _ in range(40):
        assert device.publish("devices/camera/image", payload) == 0
    assert await device.answered() == [0] * 40
    assert len(await readings_in(stream)) == 40
    await capture.close()


async def test_a_fault_of_one_group_is_an_answer_and_the_next_one_is_taken(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    capture = await start(stream)
    device = Device(capture, "d1")
    with monkeypatch.context() as patch:
        patch.setattr(PartEncoder, "parts", lambda *_args: 1 / 0)
        device.publish("devices/d1/state", b"1")
        assert await device.answered() == [0x83]
    device.publish("devices/d1/state", b"2")
    assert await device.answered() == [0x83, 0]
    assert [row[5] for row in await readings_in(stream)] == [b"2"]
    assert capture.waiting_bytes == 0
    await capture.close()
