"""What the host does with a broker: publish, listen, count, be told of clients; and the timers."""

from __future__ import annotations

import asyncio

import pytest

from mqtt.broker.broker import Broker, Outgoing
from mqtt.broker.config import BrokerConfig
from mqtt.broker.seams import ClientInfo
from mqtt.broker.timers import TimerWheel
from mqtt.errors import MqttError
from mqtt.packets import V311, Disconnect, Puback, Publish
from mqtt.properties import (
    CONTENT_TYPE,
    MESSAGE_EXPIRY_INTERVAL,
    SESSION_EXPIRY_INTERVAL,
    USER_PROPERTY,
    encode_property_block,
)
from tests.kit.brokers import ManualStore, serving


async def test_the_host_publishes_to_subscribers_of_every_kind() -> None:
    async with serving() as broker:
        new = await broker.connect("new")
        old = await broker.connect("old", version=V311)
        for client in (new, old):
            await client.subscribe("t/#", qos=1)
        block = encode_property_block({CONTENT_TYPE: "text/plain"}, 3)
        delivered = await broker.broker.publish_many(
            [
                Outgoing("t/a", b"1"),
                Outgoing("t/b", b"2", 1, properties=block, expiry_s=60),
                Outgoing("elsewhere", b"3"),
                Outgoing("t/kept", b"4", retain=True),
            ]
        )
        assert delivered == 3
        for client, properties in (
            (new, {CONTENT_TYPE: "text/plain", MESSAGE_EXPIRY_INTERVAL: 60}),
            (old, {}),
        ):
            got = [p for p in await client.settled() if isinstance(p, Publish)]
            assert [(m.topic_name, m.payload, m.qos) for m in got] == [
                ("t/a", b"1", 0),
                ("t/b", b"2", 1),
                ("t/kept", b"4", 0),
            ]
            assert got[1].properties == properties
        assert broker.broker.stats().retained_messages == 1
        assert broker.broker.has_subscribers("t/x")
        assert not broker.broker.has_subscribers("x")


async def test_the_host_waits_until_stored_sessions_are_on_disk() -> None:
    store = ManualStore()
    async with serving(store=store) as broker:
        async with store.committing():
            reader = await broker.connect("reader", properties={SESSION_EXPIRY_INTERVAL: 60})
            await reader.subscribe("t", qos=1)
        publishing = asyncio.ensure_future(broker.broker.publish_many([Outgoing("t", b"1", 1)]))
        assert (await reader.receive(Publish)).payload == b"1"
        assert not publishing.done()
        store.commit()
        assert await publishing == 1


async def test_the_host_waits_for_slow_clients_but_not_for_ever() -> None:
    config = BrokerConfig(write_buffer_bytes=4096, sys_interval_s=0)
    async with serving(config) as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t", qos=0)
        payload = bytes(64 << 10)
        messages = [Outgoing("t", payload)] * 200
        publishing = asyncio.ensure_future(broker.broker.publish_many(messages, patience_s=30.0))
        got = 0
        while got < len(messages):
            assert len((await reader.receive(Publish)).payload) == len(payload)
            got += 1
        assert await publishing == len(messages)
        assert broker.broker.stats().drops == {}
        reader.pause()
        await broker.broker.publish_many(messages, patience_s=0.01)
        assert broker.broker.stats().drops["slow_qos0"] > 0


async def test_a_topic_that_is_not_valid_is_the_hosts_fault() -> None:
    broker = Broker(BrokerConfig(sys_interval_s=0))
    await broker.start()
    with pytest.raises(MqttError, match="wildcard"):
        await broker.publish_many([Outgoing("a/#", b"")])
    await broker.stop()


async def test_hooks_hear_of_clients_and_why_they_left() -> None:
    heard: list[tuple[str, str, int]] = []

    class Hooks:
        def connect_wait_s(self, client: ClientInfo) -> float:
            heard.append(("asked", client.client_id, client.protocol_version))
            return 0.0

        def client_connected(self, client: ClientInfo) -> None:
            heard.append(("connected", client.client_id, client.protocol_version))

        def client_disconnected(self, client: ClientInfo, reason_code: int) -> None:
            heard.append(("disconnected", client.client_id, reason_code))

    async with serving(hooks=Hooks()) as broker:
        one = await broker.connect("one")
        two = await broker.connect("two", version=V311)
        one.send(Disconnect())
        assert await one.closed()
        await broker.gone(two)
        three = await broker.connect("three")
        await broker.connect("three")
        assert await three.next()
        await broker.ask("")
    asked = [who for what, who, _ in heard if what == "asked"]
    assert asked[:4] == ["one", "two", "three", "three"]
    assert [one for one in heard if one[0] != "asked"][:6] == [
        ("connected", "one", 5),
        ("connected", "two", 4),
        ("disconnected", "one", 0),
        ("disconnected", "two", 0x80),
        ("connected", "three", 5),
        ("disconnected", "three", 0x8E),
    ]


@pytest.mark.parametrize("version", [5, V311])
async def test_a_client_the_host_has_no_room_for_is_told_when_to_come_again(version: int) -> None:
    waits = [2.5, 0.0]

    class Hooks:
        def connect_wait_s(self, client: ClientInfo) -> float:
            assert client.client_id == "gw"
            return waits.pop(0)

        def client_connected(self, client: ClientInfo) -> None:
            assert not waits

        def client_disconnected(self, client: ClientInfo, reason_code: int) -> None:
            assert not waits

    async with serving(hooks=Hooks()) as broker:
        client, told = await broker.ask("gw", version=version)
        assert await client.closed()
        if version == 5:
            assert told.reason_code == 0x89
            assert told.properties[USER_PROPERTY] == [("retry-after", "2.50")]
        else:
            assert (told.reason_code, told.properties) == (0x88, {}), "3 in 3.1.1: unavailable"
        assert broker.broker.stats().sessions == 0
        await broker.connect("gw", version=version)


async def test_counters_count() -> None:
    async with serving() as broker:
        client = await broker.connect("one")
        await client.subscribe("t", qos=1)
        client.send(Publish("t", b"x" * 10), Publish("t", b"y", 1, packet_id=1))
        packets = await client.settled()
        assert {type(p) for p in packets} == {Publish, Puback}
        stats = broker.broker.stats()
        assert stats.messages_received == [1, 1, 0]
        assert stats.messages_sent == [1, 1, 0]
        assert (stats.connections, stats.connections_total, stats.sessions) == (1, 1, 1)
        assert stats.subscriptions == 1
        assert stats.bytes_received > 30
        assert stats.bytes_sent > 30
        await broker.gone(client)
        assert broker.broker.stats().bytes_sent >= stats.bytes_sent


async def test_a_port_in_use_is_an_os_error() -> None:
    async with serving() as broker:
        with pytest.raises(OSError, match="in use"):
            await broker.broker.listen("127.0.0.1", broker.port)


async def test_several_listeners_serve_the_same_sessions() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t")
        broker.port = await broker.broker.listen("127.0.0.1", 0)
        writer = await broker.connect("writer")
        writer.send(Publish("t", b"x"))
        assert (await reader.receive(Publish)).payload == b"x"


# -- the timer wheel --------------------------------------------------------------------------


class Alarm:
    """Remembers when it rang."""

    def __init__(self) -> None:
        self.timer_tick = 0
        self.rang: list[float] = []

    def on_timer(self, now_s: float) -> None:
        self.rang.append(now_s)


def test_a_deadline_is_never_early_and_at_most_a_tick_late() -> None:
    for due_s in (100.01, 100.5, 101.0, 107.3):
        wheel = TimerWheel(100.0, tick_s=0.5)
        alarm = Alarm()
        wheel.set(alarm, due_s)
        now_s = 100.0
        while not alarm.rang:
            now_s += 0.1
            wheel.advance(now_s)
        assert due_s <= alarm.rang[0] < due_s + 0.61
        assert alarm.timer_tick == 0


def test_a_deadline_can_be_moved_and_cancelled() -> None:
    wheel = TimerWheel(0.0, tick_s=1)
    moved, cancelled, kept = Alarm(), Alarm(), Alarm()
    for alarm in (moved, cancelled, kept):
        wheel.set(alarm, 5)
    wheel.set(moved, 10)
    wheel.set(kept, 5)
    wheel.cancel(cancelled)
    wheel.cancel(cancelled)
    wheel.advance(7)
    assert (moved.rang, cancelled.rang, kept.rang) == ([], [], [7])
    wheel.advance(1_000_000)  # the machine slept
    assert moved.rang == [1_000_000]
    assert wheel._buckets == {}


def test_a_deadline_in_the_past_comes_with_the_next_tick() -> None:
    wheel = TimerWheel(100.0, tick_s=1)
    alarm = Alarm()
    wheel.set(alarm, 3.0)
    wheel.advance(100.5)
    assert alarm.rang == []
    wheel.advance(101.5)
    assert alarm.rang == [101.5]


def test_a_deadline_that_is_hastened_only_comes_sooner() -> None:
    wheel = TimerWheel(0.0, tick_s=1)
    fresh, sooner, later = Alarm(), Alarm(), Alarm()
    wheel.set(sooner, 5)
    wheel.set(later, 5)
    wheel.hasten(fresh, 3)
    wheel.hasten(sooner, 2)
    wheel.hasten(later, 9)
    for now_s in range(1, 7):
        wheel.advance(now_s)
    assert (fresh.rang, sooner.rang, later.rang) == ([3], [2], [5])
