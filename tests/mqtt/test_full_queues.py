"""A subscriber's queue is full: nobody is told that it took a message which it has no room for."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from mqtt.broker.config import BrokerConfig
from mqtt.broker.full_queues import HOLD_S
from mqtt.broker.session_store import SqliteSessionStore
from mqtt.packets import (
    V5,
    V311,
    Disconnect,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
)
from mqtt.properties import SESSION_EXPIRY_INTERVAL, Properties
from mqtt.reason_codes import ReasonCode
from runtime.clock import ManualClock
from tests.kit.brokers import ManualCapture, ManualStore, Served, WireClient, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
TOPICS = pytest.mark.parametrize("topic", ["t", "devices/1"], ids=["routed", "captured"])
THREE = BrokerConfig(queue_messages_max=3, sys_interval_s=0)
QUOTA = int(ReasonCode.QUOTA_EXCEEDED)


async def subscriber(
    broker: Served,
    *filters: str,
    name: str = "reader",
    present: bool = False,
    version: int = V5,
    qos: int = 2,
) -> WireClient:
    """Connect to a session that lasts, and subscribe."""
    properties: Properties = {SESSION_EXPIRY_INTERVAL: 3600} if version == V5 else {}
    client = await broker.connect(
        name,
        version=version,
        clean_start=False,
        properties=properties,
        session_present=present,
    )
    if filters:
        await client.subscribe(*filters, qos=qos)
    return client


async def away(broker: Served, *filters: str, name: str = "reader") -> None:
    """Leave a session behind whose client is gone."""
    await broker.gone(await subscriber(broker, *filters, name=name))


def send(client: WireClient, topic: str, *numbers: int, qos: int = 1) -> None:
    """Publish numbers, each under a packet identifier of the same number."""
    client.send(*(Publish(topic, b"%d" % n, qos, packet_id=n) for n in numbers))


async def codes(client: WireClient, count: int) -> list[int]:
    """Return the reason codes of the next answers, in the order of the publishes."""
    answers: dict[int, int] = {}
    while len(answers) < count:
        packet = await client.next()
        if not isinstance(packet, Publish):
            assert isinstance(packet, Puback | Pubrec), packet
            assert packet.packet_id not in answers
            answers[packet.packet_id] = packet.reason_code
    return [answers[packet_id] for packet_id in sorted(answers)]


async def take(client: WireClient, count: int) -> list[int]:
    """Take and acknowledge QoS 1 and 2 messages; return the numbers in them."""
    numbers: list[int] = []
    unfinished = 0
    while len(numbers) < count or unfinished:
        packet = await client.next()
        if isinstance(packet, Pubrel):
            client.send(Pubcomp(packet.packet_id))
            unfinished -= 1
            continue
        assert isinstance(packet, Publish), packet
        numbers.append(int(packet.payload))
        if packet.qos == 1:
            client.send(Puback(packet.packet_id))
        else:
            client.send(Pubrec(packet.packet_id))
            unfinished += 1
    return numbers


@pytest.mark.conformance("MQTT-4.5.0-1")
@pytest.mark.parametrize("qos", [1, 2])
@TOPICS
async def test_a_v5_publisher_is_refused_while_the_subscriber_is_away(topic: str, qos: int) -> None:
    capture = ManualCapture(automatic=True)
    async with serving(THREE, capture=capture) as broker:
        await away(broker, topic)
        writer = await broker.connect("writer")
        send(writer, topic, 1, 2, 3, 4, 5, qos=qos)
        assert await codes(writer, 5) == [0, 0, 0, QUOTA, QUOTA]
        stats = broker.broker.stats()
        assert (stats.queue_refusals, stats.full_sessions, stats.drops) == (2, ["reader"], {})
        assert sum(run.count for run in capture.taken) == (3 if topic != "t" else 0)
        for number in (1, 2, 3) if qos == 2 else ():
            writer.send(Pubrel(number))
            await writer.receive(Pubcomp)
        reader = await subscriber(broker, present=True)
        assert await take(reader, 3) == [1, 2, 3]
        await reader.settled()
        assert broker.broker.stats().full_queues == 0
        send(writer, topic, 4, qos=qos)  # the same identifier: the exchange had ended
        assert await codes(writer, 1) == [0]
        assert await take(reader, 1) == [4]


@TOPICS
async def test_a_3_1_1_publisher_stands_still_and_goes_on(topic: str) -> None:
    async with serving(THREE, capture=ManualCapture(automatic=True)) as broker:
        await away(broker, topic)
        writer = await broker.connect("writer", version=V311)
        send(writer, topic, 1, 2, 3, 4, 5, 6, 7)
        assert await codes(writer, 3) == [0, 0, 0]
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        send(writer, topic, 8)  # not read meanwhile
        reader = await subscriber(broker, present=True)
        assert await take(reader, 8) == [1, 2, 3, 4, 5, 6, 7, 8]
        assert await codes(writer, 5) == [0] * 5
        stats = broker.broker.stats()
        assert (stats.publishers_waiting, stats.drops, stats.queue_refusals) == (0, {}, 0)
        assert await reader.settled() == []


@VERSIONS
@TOPICS
async def test_publishers_keep_the_pace_of_a_subscriber_that_is_connected(
    version: int, topic: str
) -> None:
    async with serving(THREE, capture=ManualCapture(automatic=True)) as broker:
        reader = await subscriber(broker, topic)
        writer = await broker.connect("writer", version=version)
        send(writer, topic, *range(1, 101))
        assert await take(reader, 100) == list(range(1, 101))
        assert await codes(writer, 100) == [0] * 100
        assert broker.broker.stats().drops == {}


async def test_a_v5_publisher_does_not_wait_long_for_a_connected_subscriber() -> None:
    clock = ManualClock()
    async with serving(THREE, clock=clock) as broker:
        await subscriber(broker, "t")
        writer = await broker.connect("writer")
        send(writer, "t", 1, 2, 3, 4)
        assert await codes(writer, 3) == [0, 0, 0]
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        broker.pass_time(clock, HOLD_S)
        assert await codes(writer, 1) == [QUOTA]


@TOPICS
async def test_whoever_would_wait_for_itself_is_refused_or_cut_off(topic: str) -> None:
    async with serving(THREE, capture=ManualCapture(automatic=True)) as broker:
        both = await subscriber(broker, topic, name="v5")
        send(both, topic, 1, 2, 3, 4)
        assert await codes(both, 4) == [0, 0, 0, QUOTA]
        await broker.gone(both)
    async with serving(THREE, capture=ManualCapture(automatic=True)) as broker:
        both = await subscriber(broker, topic, name="v3", version=V311)
        send(both, topic, 1, 2, 3, 4)
        acknowledged = set()
        while (packet := await both.next()) is not None:
            if isinstance(packet, Puback):
                acknowledged.add(packet.packet_id)
        assert 4 not in acknowledged
        again = await subscriber(broker, name="v3", version=V311, present=True)
        assert await take(again, 3) == [1, 2, 3]
        send(again, topic, 4)
        packets_again = [await again.next(), await again.next()]
        assert {type(packet) for packet in packets_again} == {Publish, Puback}


async def test_a_qos_2_publish_that_stood_still_when_its_client_went_comes_again() -> None:
    async with serving(THREE) as broker:
        await away(broker, "t")
        writer = await subscriber(broker, name="writer", version=V311)
        send(writer, "t", 1, 2, 3, 4, 5, qos=2)
        assert await codes(writer, 3) == [0, 0, 0]
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        writer.abort()
        writer = await subscriber(broker, name="writer", version=V311, present=True)
        assert broker.broker.stats().publishers_waiting == 0
        reader = await subscriber(broker, present=True)
        assert await take(reader, 3) == [1, 2, 3]
        send(writer, "t", 4, 5, qos=2)
        assert await codes(writer, 2) == [0, 0]
        assert await take(reader, 2) == [4, 5]


async def test_what_is_refused_reaches_nobody() -> None:
    async with serving(THREE) as broker:
        await away(broker, "t")
        other = await broker.connect("other")
        await other.subscribe("#", qos=1)
        writer = await broker.connect("writer")
        send(writer, "t", 1, 2, 3, 4)
        assert await codes(writer, 4) == [0, 0, 0, QUOTA]
        assert await take(other, 3) == [1, 2, 3]
        assert await other.settled() == []


async def test_qos_0_and_other_topics_are_not_held_up() -> None:
    async with serving(THREE) as broker:
        await away(broker, "t")
        other = await broker.connect("other")
        await other.subscribe("+", qos=1)
        writer = await broker.connect("writer")
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 4)
        await take(other, 3)
        writer.send(Publish("t", b"5"))
        send(writer, "u", 6)
        assert await codes(writer, 1) == [0]
        messages = [await other.receive(Publish), await other.receive(Publish)]
        assert [message.payload for message in messages] == [b"5", b"6"]


async def test_a_shared_subscription_is_full_when_all_its_members_are() -> None:
    async with serving(THREE) as broker:
        for name in ("one", "two"):
            await away(broker, "$share/g/t", name=name)
        writer = await broker.connect("writer")
        send(writer, "t", *range(1, 9))
        assert await codes(writer, 8) == [0] * 6 + [QUOTA] * 2
        assert broker.broker.stats().drops == {}


async def test_all_queues_together_have_a_limit_and_the_longest_is_to_blame() -> None:
    config = BrokerConfig(queues_bytes_max=4096, sys_interval_s=0)
    async with serving(config) as broker:
        await away(broker, "big", name="big")
        await away(broker, "small", name="small")
        writer = await broker.connect("writer")
        writer.send(*(Publish("big", bytes(997), 1, packet_id=n) for n in (1, 2, 3, 4)))
        assert await codes(writer, 4) == [0] * 4
        send(writer, "small", *range(1, 40))
        answered = await codes(writer, 39)
        assert answered == sorted(answered)
        assert QUOTA in answered
        stats = broker.broker.stats()
        assert (stats.full_sessions, stats.drops) == (["big"], {})
        assert stats.queued_bytes <= 4096


@pytest.mark.parametrize("connected", [False, True])
@VERSIONS
async def test_a_queue_that_stays_full_ends_its_session_and_nobody_waits_for_ever(
    version: int, connected: bool
) -> None:
    clock = ManualClock()
    config = replace(THREE, queue_full_patience_s=100)
    with capture_logs() as logs:
        async with serving(config, clock=clock) as broker:
            reader = await subscriber(broker, "t")
            if not connected:
                await broker.gone(reader)
            writer = await broker.connect("writer", version=version)
            send(writer, "t", 1, 2, 3, 4)
            assert await codes(writer, 3) == [0, 0, 0]
            if version == V311:
                await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
                broker.pass_time(clock, 99)
                assert broker.broker.stats().sessions == 2
            broker.pass_time(clock, 101)
            broker.pass_time(clock, 101)
            if version == V5:
                await codes(writer, 1)
                send(writer, "t", 5)
            await codes(writer, 1)
            stats = broker.broker.stats()
            assert (stats.sessions_ended_full, stats.full_queues, stats.sessions) == (1, 0, 1)
            assert stats.drops["queue_full_session_ended"] == 3
            if connected:
                while not isinstance(packet := await reader.next(), Disconnect):
                    assert isinstance(packet, Publish)
                assert packet.reason_code == QUOTA
            await subscriber(broker, present=False)  # which tells it
    events = [line["event"] for line in logs]
    assert "mqtt_queue_full" in events
    assert "mqtt_session_ended_queue_full" in events


async def test_a_session_without_expiry_has_the_patience_of_a_slow_client() -> None:
    clock = ManualClock()
    config = replace(THREE, slow_timeout_s=10)
    async with serving(config, clock=clock) as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t")
        writer = await broker.connect("writer", version=V311)
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 3)
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        broker.pass_time(clock, 11)
        assert await codes(writer, 1) == [0]
        assert broker.broker.stats().sessions == 1


async def test_no_patience_limit_means_as_long_as_the_session_lives() -> None:
    clock = ManualClock()
    async with serving(replace(THREE, queue_full_patience_s=0), clock=clock) as broker:
        await away(broker, "t")
        writer = await broker.connect("writer", version=V311)
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 3)
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        for _ in range(3):
            broker.pass_time(clock, 1000)
        assert broker.broker.stats().sessions == 2
        broker.pass_time(clock, 700)  # its own expiry
        assert await codes(writer, 1) == [0]


async def test_a_publisher_that_stands_still_is_not_timed_out() -> None:
    clock = ManualClock()
    async with serving(THREE, clock=clock) as broker:
        await away(broker, "t")
        writer = await broker.connect("writer", version=V311, keep_alive=10)
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 3)
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        for _ in range(10):
            broker.pass_time(clock, 12)
        assert broker.broker.stats().connections == 1
        reader = await subscriber(broker, present=True)
        await take(reader, 4)
        assert await codes(writer, 1) == [0]


@pytest.mark.parametrize(
    ("policy", "kept", "drops"),
    [
        ("drop_newest", [1, 2, 3], {"queue_full": 2}),
        ("drop_oldest", [3, 4, 5], {"queue_full_oldest": 2}),
    ],
)
@TOPICS
async def test_other_policies_drop_and_count(
    policy: str, kept: list[int], drops: dict[str, int], topic: str
) -> None:
    config = replace(THREE, queue_full=policy)
    async with serving(config, capture=ManualCapture(automatic=True)) as broker:
        await away(broker, topic)
        writer = await broker.connect("writer")
        send(writer, topic, 1, 2, 3, 4, 5)
        assert await codes(writer, 5) == [0] * 5
        assert broker.broker.stats().drops == drops
        reader = await subscriber(broker, present=True)
        assert await take(reader, 3) == kept
        assert await reader.settled() == []


async def test_what_was_sent_is_never_dropped_for_newer_messages() -> None:
    config = replace(THREE, queue_full="drop_oldest", inflight_max=2)
    async with serving(config) as broker:
        reader = await subscriber(broker, "t")
        writer = await broker.connect("writer")
        send(writer, "t", *range(1, 9))
        assert await codes(writer, 8) == [0] * 8
        assert await take(reader, 3) == [1, 2, 8]


async def test_a_larger_limit_lets_those_who_wait_go_on() -> None:
    async with serving(THREE) as broker:
        await away(broker, "t")
        writer = await broker.connect("writer", version=V311)
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 3)
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        broker.broker.reconfigure(replace(THREE, queue_messages_max=10))
        assert await codes(writer, 1) == [0]


async def test_a_reload_to_another_policy_ends_the_wait_and_no_session() -> None:
    clock = ManualClock()
    async with serving(THREE, clock=clock) as broker:
        await away(broker, "t")
        writer = await broker.connect("writer", version=V311)
        send(writer, "t", 1, 2, 3, 4)
        await codes(writer, 3)
        await broker.until(lambda: broker.broker.stats().publishers_waiting == 1)
        broker.broker.reconfigure(replace(THREE, queue_full="drop_oldest"))
        assert await codes(writer, 1) == [0]
        broker.pass_time(clock, 1000)
        reader = await subscriber(broker, present=True)
        assert await take(reader, 3) == [2, 3, 4]


async def test_many_qos_2_publishes_on_their_way_to_the_disk_do_not_overfill_a_queue() -> None:
    capture, store = ManualCapture(), ManualStore()
    async with serving(THREE, capture=capture, store=store) as broker:
        async with store.committing():
            await away(broker, "devices/1")
            writer = await subscriber(broker, name="writer")
        send(writer, "devices/1", 1, 2, 3, 4, 5, qos=2)
        await capture.wait_for(3)
        async with store.committing():
            capture.settle()
            assert await codes(writer, 5) == [0, 0, 0, QUOTA, QUOTA]
        assert broker.broker.stats().drops == {}
        policy = broker.broker._core.policy
        assert (policy.reserved_messages, policy.reserved_bytes) == (0, 0)


async def test_a_queue_that_was_full_before_a_restart_is_full_after_it(tmp_path: Path) -> None:
    async with serving(THREE, store=SqliteSessionStore(tmp_path / "s.db")) as broker:
        await away(broker, "t")
        writer = await broker.connect("writer")
        send(writer, "t", 1, 2, 3)
        assert await codes(writer, 3) == [0, 0, 0]
    async with serving(THREE, store=SqliteSessionStore(tmp_path / "s.db")) as broker:
        writer = await broker.connect("writer")
        send(writer, "t", 4)
        assert await codes(writer, 1) == [QUOTA]
        reader = await subscriber(broker, present=True)
        assert await take(reader, 3) == [1, 2, 3]


class SlowReader:
    """A subscriber that takes as many messages as it is told to, now or later."""

    def __init__(self, broker: Served) -> None:
        self.got: set[int] = set()
        self._broker = broker
        self._client: WireClient | None = None
        self._unanswered: list[Publish] = []

    async def come_back(self, *filters: str) -> None:
        """Connect, leaving an older connection behind."""
        present = self._client is not None
        if self._client is not None:
            await self._broker.gone(self._client)
        self._unanswered.clear()
        self._client = await subscriber(self._broker, *filters, present=present)

    async def take(self, count: int) -> None:
        """Acknowledge up to `count` messages."""
        assert self._client is not None
        for packet in await self._client.settled():
            assert isinstance(packet, Publish)
            self._unanswered.append(packet)
        for packet in self._unanswered[:count]:
            self.got.add(int(packet.payload.split(b" ")[0]))
            self._client.send(Puback(packet.packet_id))
        del self._unanswered[:count]

    async def take_all(self) -> None:
        """Take whatever comes, until cancelled."""
        while True:
            await self.take(50)
            await asyncio.sleep(0.001)


@pytest.mark.parametrize("seed", range(6))
@TOPICS
async def test_whatever_happens_what_was_acknowledged_is_delivered(topic: str, seed: int) -> None:
    """Random publishers of both versions; a subscriber that comes and goes, and takes its time."""
    rng = random.Random(seed)
    config = BrokerConfig(
        queue_messages_max=rng.choice([1, 4, 20]), queue_bytes_max=1024, sys_interval_s=0
    )
    async with serving(config, capture=ManualCapture(automatic=True)) as broker:
        reader = SlowReader(broker)
        await reader.come_back(topic)
        writers = [await broker.connect(f"w{n}", version=rng.choice([V311, V5])) for n in range(3)]
        sent: list[list[int]] = [[] for _ in writers]
        number = 0
        for _ in range(15):
            for numbers, writer in zip(sent, writers, strict=True):
                for _ in range(rng.randrange(8)):
                    number += 1
                    numbers.append(number)
                    payload = b"%d " % number + bytes(rng.choice([0, 0, 300]))
                    writer.send(Publish(topic, payload, 1, packet_id=number))
            if rng.random() < 0.5:
                await reader.come_back()
            await reader.take(rng.randrange(12))
        taking = asyncio.get_running_loop().create_task(reader.take_all())
        expected = set()
        for numbers, writer in zip(sent, writers, strict=True):
            answered = await codes(writer, len(numbers))
            expected |= {n for n, code in zip(numbers, answered, strict=True) if not code}
        await broker.until(lambda: reader.got >= expected)
        taking.cancel()
        assert reader.got == expected
        assert broker.broker.stats().drops == {}
