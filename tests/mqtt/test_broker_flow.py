"""Clients that do not read, floods, and other ways to fill a broker's memory: all bounded."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from mqtt.broker.config import BrokerConfig
from mqtt.broker.connection import Connection
from mqtt.broker.logs import BoundedLog
from mqtt.codec import encode
from mqtt.packets import (
    V5,
    V311,
    Connect,
    Disconnect,
    Pingreq,
    Puback,
    Publish,
    Pubrec,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.brokers import ManualCapture, Served, WireClient, serving

SMALL = BrokerConfig(write_buffer_bytes=4096, slow_timeout_s=10, sys_interval_s=0)


async def hang(broker: Served, client_id: str, *, qos: int, **options: object) -> WireClient:
    """Connect a subscriber to `flood` that stops reading."""
    reader = await broker.connect(client_id, **options)  # type: ignore[arg-type] # as given
    await reader.subscribe("flood", qos=qos)
    reader.pause()
    return reader


async def flood(broker: Served, qos: int, megabytes: int = 16) -> int:
    """Publish so much that no socket buffer holds it; return the number of messages."""
    writer = await broker.connect("writer")
    payload = bytes(64 << 10)
    count = megabytes * 16
    for index in range(count):
        writer.send(Publish("flood", payload, qos, packet_id=index + 1 if qos else 0))
        if qos:
            await writer.receive(Puback)
    await writer.settled()
    return count


async def test_qos_0_is_dropped_for_a_client_that_does_not_read_and_for_no_other() -> None:
    async with serving(SMALL) as broker:
        await hang(broker, "hung", qos=0)
        reader = await broker.connect("reader")
        await reader.subscribe("flood", qos=0)
        count = await flood(broker, 0, megabytes=8)
        got = [p for p in await reader.settled() if isinstance(p, Publish)]
        stats = broker.broker.stats()
        # The reader may be slow now and then on a busy machine, the hung one always is.
        assert stats.drops["slow_qos0"] >= count - len(got)
        assert stats.messages_sent[0] < 2 * count
        assert stats.queued_bytes == 0


async def test_qos_1_waits_in_the_session_of_a_client_that_does_not_read() -> None:
    config = BrokerConfig(
        write_buffer_bytes=4096, slow_timeout_s=10, inflight_max=1000, sys_interval_s=0
    )
    async with serving(config) as broker:
        reader = await hang(broker, "hung", qos=1)
        count = await flood(broker, 1, megabytes=8)
        assert broker.broker.stats().queued_bytes >= count * (64 << 10)
        reader._writer.transport.resume_reading()  # type: ignore[attr-defined] # StreamWriter's
        for expected in range(1, count + 1):
            message = await reader.receive(Publish)
            assert message.packet_id == expected
            reader.send(Puback(expected))
        await reader.settled()
        assert broker.broker.stats().queued_bytes == 0


@pytest.mark.parametrize("lasting", [False, True])
async def test_a_client_that_stays_slow_is_cut_off_and_its_session_kept(lasting: bool) -> None:
    clock = ManualClock()
    roomy = replace(SMALL, queue_bytes_max=32 << 20)
    async with serving(roomy, clock=clock) as broker:
        properties = {SESSION_EXPIRY_INTERVAL: 600} if lasting else None
        await hang(broker, "hung", qos=1, properties=properties)
        await flood(broker, 1)
        broker.pass_time(clock, 9)
        assert broker.broker.stats().connections == 2
        broker.pass_time(clock, 2)
        assert broker.broker.stats().connections == 1
        assert broker.broker.stats().sessions == 1 + lasting
        assert bool(broker.broker.stats().queued_bytes) == lasting


class FullTransport:
    """A transport whose peer never reads: what is written stays."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.size = 0
        self.high = 0
        self.reading = True
        self.aborted = False

    def set_write_buffer_limits(self, high: int) -> None:
        self.high = high

    def write(self, data: bytes) -> None:
        before, self.size = self.size, self.size + len(data)
        if before <= self.high < self.size:
            self.connection.pause_writing()

    def get_write_buffer_size(self) -> int:
        return self.size

    def get_extra_info(self, name: str) -> None:
        return None

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        """Wait for the peer to read: in vain."""

    def abort(self) -> None:
        self.aborted = True
        self.connection.connection_lost(None)

    def drain(self) -> None:
        self.size = 0
        self.connection.resume_writing()


@pytest.mark.parametrize("version", [V311, V5])
async def test_a_client_that_asks_and_never_reads_is_not_read_any_more(version: int) -> None:
    async with serving(SMALL) as broker:
        connection = broker.broker.connection()
        transport = FullTransport(connection)
        connection.connection_made(transport)
        connection.data_received(encode(Connect("asker", version), version))
        for _ in range(1000):
            if transport.reading:
                connection.data_received(encode(Pingreq(), version) * 100)
        assert not transport.reading
        assert 4 * SMALL.write_buffer_bytes < transport.size < 5 * SMALL.write_buffer_bytes
        transport.drain()
        assert transport.reading
        transport.abort()


async def test_a_closed_connection_whose_peer_does_not_read_is_aborted() -> None:
    clock = ManualClock()
    async with serving(SMALL, clock=clock) as broker:
        connection = broker.broker.connection()
        transport = FullTransport(connection)
        connection.connection_made(transport)
        connection.data_received(encode(Connect("c"), V5) + b"\x00\x00")
        assert connection.closed
        broker.pass_time(clock, 1)
        assert not transport.aborted
        assert transport.reading
        connection.data_received(b"whatever it still says")
        broker.pass_time(clock, 2)
        assert transport.aborted


async def test_retained_messages_wait_for_a_slow_subscriber_instead_of_being_dropped() -> None:
    async with serving(SMALL) as broker:
        writer = await broker.connect("writer")
        for index in range(300):
            writer.send(Publish(f"kept/{index}", bytes(64 << 10), retain=True))
        await writer.settled()
        reader = await broker.connect("reader")
        await reader.subscribe("kept/#", qos=0)
        reader.pause()
        await broker.until(lambda: bool(broker.broker._core.slow))
        reader._writer.transport.resume_reading()  # type: ignore[attr-defined] # StreamWriter's
        names = set()
        while len(names) < 300:
            names.add((await reader.receive(Publish)).topic_name)
        assert broker.broker.stats().drops == {}


@pytest.mark.conformance("MQTT-3.3.1-9", "MQTT-4.3.3-4")
async def test_retained_messages_go_on_when_each_one_is_refused() -> None:
    async with serving(BrokerConfig(sys_interval_s=0, inflight_max=3)) as broker:
        writer = await broker.connect("writer")
        writer.send(*[Publish(f"kept/{n}", b"x", 2, retain=True, packet_id=n) for n in range(1, 9)])
        assert [type(answer) for answer in await writer.settled()] == [Pubrec] * 8
        reader = await broker.connect("reader")
        await reader.subscribe("kept/#")
        got = set()
        while len(got) < 8:
            message = await reader.receive(Publish)
            got.add(message.topic_name)
            reader.send(Pubrec(message.packet_id, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR))


async def test_a_reconnect_storm_of_one_client_id_leaves_nothing_behind() -> None:
    async with serving() as broker:
        for _ in range(200):
            client = await broker.connect("same")
            client.abort()
        await broker.until(lambda: broker.broker.stats().connections == 0)
        core = broker.broker._core
        assert core.registry.sessions == {}
        assert not core.closing
        assert sum(len(bucket) for bucket in core.wheel._buckets.values()) == 0


async def test_garbage_ends_its_connection_and_disturbs_no_other() -> None:
    rng = random.Random(20261121)
    capture = ManualCapture(automatic=True)
    async with serving(capture=capture) as broker:
        good = await broker.connect("good", version=V311)
        for index in range(150):
            bad = await broker.connect(f"bad-{index % 7}", version=rng.choice([V311, V5]))
            bad.send_bytes(rng.randbytes(rng.randrange(1, 600)))
            good.send(Publish("devices/good", b"x", 1, packet_id=index + 1))
            assert await good.receive(Puback) == Puback(index + 1)
            await bad.close()
        await broker.until(lambda: broker.broker.stats().connections == 1)
        assert broker.broker.stats().protocol_faults > 50


async def test_faults_are_logged_once_a_minute_a_cause() -> None:
    clock = ManualClock()
    with capture_logs() as logs:
        async with serving(clock=clock) as broker:
            for _ in range(20):
                client = await broker.connect("bad")
                client.send(Pingreq())
                client.send_bytes(b"\x00\x00")
                assert await client.next()
                assert await client.receive(Disconnect)
            broker.pass_time(clock, 61)
            client = await broker.connect("bad", keep_alive=0)
            client.send_bytes(b"\x00\x00")
            assert await client.receive(Disconnect)
    faults = [line for line in logs if line["event"] == "mqtt_fault"]
    assert [line["suppressed"] for line in faults] == [0, 19]
    assert {line["client_id"] for line in faults} == {"bad"}
    assert all("0x81" in line["reason"] for line in faults)


def test_a_bounded_log_tells_causes_apart() -> None:
    now = [0.0]
    log = BoundedLog(lambda: now[0], every_s=10)
    with capture_logs() as logs:
        for second in range(25):
            now[0] = float(second)
            log.warning("a", cause=1)
            log.warning("a", cause=2)
    assert [(line["reason_code"], line["suppressed"]) for line in logs] == [
        (1, 0),
        (2, 0),
        (1, 9),
        (2, 9),
        (1, 9),
        (2, 9),
    ]
