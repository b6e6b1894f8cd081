"""Captured publishes: nothing is answered before it is settled, nor lost, nor taken twice."""

from __future__ import annotations

import asyncio

import pytest

from mqtt.broker.changes import InboundSaved
from mqtt.broker.config import BrokerConfig
from mqtt.frames import parse_publishes
from mqtt.packets import (
    V5,
    V311,
    Disconnect,
    Packet,
    Puback,
    Pubcomp,
    Publish,
    Pubrec,
    Pubrel,
    Will,
)
from mqtt.properties import (
    MAXIMUM_PACKET_SIZE,
    REASON_STRING,
    RECEIVE_MAXIMUM,
    REQUEST_PROBLEM_INFORMATION,
    SESSION_EXPIRY_INTERVAL,
    TOPIC_ALIAS,
    USER_PROPERTY,
    Properties,
    encode_property_block,
)
from mqtt.reason_codes import ReasonCode
from tests.kit.brokers import ManualCapture, ManualStore, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])


def payloads(capture: ManualCapture, version: int) -> list[bytes]:
    """Return the payloads of everything taken, in order."""
    return [
        payload for run in capture.taken for *_, payload in parse_publishes(run.frames, version)
    ]


def reading(number: int, qos: int = 1, topic: str = "devices/d/t") -> Publish:
    """Return a publish that the capture wants."""
    return Publish(topic, b"%d" % number, qos, packet_id=number if qos else 0)


@VERSIONS
async def test_a_puback_leaves_only_when_the_run_is_settled(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=version)
        client.send(*[reading(i) for i in range(1, 21)])
        assert await client.settled() == []
        assert [run.count for run in capture.taken] == [20]  # one run for one read
        (run,) = capture.taken
        assert (run.lane, run.client.client_id) == (1, "d")
        assert run.time_us > 1_700_000_000_000_000
        assert payloads(capture, version) == [b"%d" % i for i in range(1, 21)]
        capture.settle()
        assert await client.settled() == [Puback(i) for i in range(1, 21)]
        assert broker.broker.stats().captured == 20


@VERSIONS
async def test_runs_are_cut_by_lane_qos_and_what_is_not_captured(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=version)
        client.send(
            reading(1),
            reading(2, topic="devices/d/u"),
            reading(3, topic="urgent/d"),
            reading(4, 0),
            reading(5, topic="elsewhere"),
            reading(6),
        )
        answers = await client.settled()
        assert [(run.lane, run.count) for run in capture.taken] == [(1, 2), (0, 1), (1, 1), (1, 1)]
        assert payloads(capture, version) == [b"1", b"2", b"3", b"4", b"6"]
        code = 0x10 if version == V5 else 0
        assert answers == [Puback(5, code)]
        capture.settle()
        assert await client.settled() == [Puback(1), Puback(2), Puback(3), Puback(6)]


async def test_qos_0_is_captured_and_not_answered() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        client.send(reading(1, 0), reading(2, 0))
        assert await client.settled() == []
        assert [run.count for run in capture.taken] == [2]
        capture.settle()
        assert await client.settled() == []


@VERSIONS
@pytest.mark.conformance("MQTT-4.3.3-8", "MQTT-4.3.3-10")
async def test_a_qos_2_publish_is_taken_once_however_often_it_comes(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        properties = {SESSION_EXPIRY_INTERVAL: 60} if version == V5 else {}
        client = await broker.connect(
            "d", version=version, clean_start=False, properties=properties
        )
        client.send(reading(7, 2))
        assert await client.settled() == []
        again = reading(7, 2)
        again.dup = True
        client.send(again)
        assert await client.settled() == []  # not durable yet: no PUBREC
        capture.settle()
        assert await client.settled() == [Pubrec(7)]
        client.send(again)
        assert await client.settled() == [Pubrec(7)]
        client.send(Pubrel(7))
        assert await client.settled() == [Pubcomp(7)]
        client.send(reading(7, 2))
        await client.settled()
        assert [run.count for run in capture.taken] == [1, 1]


@VERSIONS
async def test_a_pubrec_for_a_connection_that_is_gone_comes_on_the_next_one(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        properties = {SESSION_EXPIRY_INTERVAL: 60} if version == V5 else {}
        first = await broker.connect("d", version=version, clean_start=False, properties=properties)
        first.send(reading(7, 2))
        await capture.wait_for(1)
        await broker.gone(first)
        second = await broker.connect(
            "d",
            version=version,
            clean_start=False,
            properties=properties,
            session_present=True,
        )
        again = reading(7, 2)
        again.dup = True
        second.send(again)
        assert await second.settled() == []
        capture.settle()
        assert await second.settled() == [Pubrec(7)]
        assert [run.count for run in capture.taken] == [1]


@VERSIONS
async def test_an_answer_for_a_client_that_is_gone_goes_nowhere(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=version)
        client.send(reading(1), reading(2, 2))
        await capture.wait_for(2)
        await broker.gone(client)
        capture.settle()
        other = await broker.connect("d", version=version)
        assert await other.settled() == []


async def test_a_refusal_is_told_to_v5_clients() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        capture.refusal = ReasonCode.QUOTA_EXCEEDED
        client.send(reading(1), reading(2, 2), reading(3, 0))
        assert await client.settled() == [Puback(1, 0x97), Pubrec(2, 0x97)]
        capture.refusal = 0
        client.send(reading(2, 2))  # the refused exchange is over: this is a new message
        await client.settled()
        capture.settle()
        assert await client.settled() == [Pubrec(2)]
        stats = broker.broker.stats()
        assert stats.capture_refusals == 2
        assert stats.drops == {"capture_refused_qos0": 1}


async def test_a_refusal_pauses_a_3_1_1_client_and_keeps_its_run() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=V311)
        capture.refusal = ReasonCode.QUOTA_EXCEEDED
        client.send(reading(1), reading(2), reading(3, topic="elsewhere"))
        await broker.until(lambda: broker.broker.stats().capture_refusals == 2)
        client.send(reading(4))
        other = await broker.connect("other", version=V311)
        assert await other.settled() == []  # others go on
        assert capture.taken == []
        capture.relieve()
        assert await client.settled() == [Puback(3)]
        assert payloads(capture, V311) == [b"1", b"2", b"4"]
        capture.settle()
        assert await client.settled() == [Puback(1), Puback(2), Puback(4)]


async def test_a_3_1_1_client_may_be_refused_again_and_again() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=V311)
        capture.refusal = ReasonCode.QUOTA_EXCEEDED
        client.send(reading(1))
        await broker.until(lambda: broker.broker.stats().capture_refusals == 1)
        callbacks, capture._relieved = capture._relieved, []
        for callback in callbacks:
            callback()  # relieved, and full again at once
        assert broker.broker.stats().capture_refusals == 2
        capture.relieve()
        await capture.wait_for(1)
        capture.settle()
        assert await client.settled() == [Puback(1)]


async def test_a_run_refused_after_it_was_taken_is_told_or_ends_the_connection() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        new = await broker.connect("new")
        old = await broker.connect("old", version=V311)
        for client in (new, old):
            client.send(reading(1))
            await client.settled()
        capture.settle(int(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR))
        assert await new.settled() == [Puback(1, 0x83)]
        assert await old.closed()  # without an answer it will send again


async def test_settling_can_refuse_single_publishes() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        client.send(reading(1), reading(2), reading(3))
        await client.settled()
        capture.settle([0, 0x97, 0])
        assert await client.settled() == [Puback(1), Puback(2, 0x97), Puback(3)]


@pytest.mark.conformance("MQTT-3.1.2-29", "MQTT-3.4.2-2", "MQTT-3.5.2-2")
@pytest.mark.parametrize("qos", [1, 2])
@pytest.mark.parametrize(
    ("properties", "told"),
    [
        ({}, True),
        ({REQUEST_PROBLEM_INFORMATION: 0}, False),
        ({MAXIMUM_PACKET_SIZE: 20}, False),
        ({RECEIVE_MAXIMUM: 10}, True),
    ],
)
async def test_a_refusal_carries_its_reason_to_whom_it_concerns(
    qos: int, properties: Properties, told: bool
) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("c", properties=properties)
        client.send(reading(1, qos), reading(2, qos), reading(3, qos))
        await capture.wait_for(3)
        capture.runs[0].reasons = {1: "mode: 1 is not known"}
        capture.settle([0, 0x99, 0x99])
        kind = Puback if qos == 1 else Pubrec
        explained = {REASON_STRING: "mode: 1 is not known"} if told else {}
        assert [await client.receive(kind) for _ in range(3)] == [
            kind(1),
            kind(2, 0x99, explained),
            kind(3, 0x99),
        ]
        client.send(reading(2, qos))  # its place in the window and its identifier are free
        await capture.wait_for(4)


async def test_a_3_1_1_client_is_told_no_reason() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("c", version=V311)
        client.send(reading(1, 1))
        await capture.wait_for(1)
        capture.runs[0].reasons = {0: "mode: 1 is not known"}
        capture.settle([0x99])
        assert await client.closed()


async def test_nothing_is_read_while_the_capture_is_saturated() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        capture.full = True
        client.send(reading(1))
        await capture.wait_for(1)
        client.send(reading(2))
        other = await broker.connect("other")
        assert await other.settled() == []
        assert len(capture.taken) == 1
        capture.relieve()
        await capture.wait_for(2)
        capture.settle()
        assert await client.settled() == [Puback(1), Puback(2)]


async def test_local_subscribers_share_captured_messages_unless_a_lane_is_exclusive() -> None:
    for exclusive in (False, True):
        capture = ManualCapture(exclusive=exclusive, automatic=True)
        async with serving(capture=capture) as broker:
            reader = await broker.connect("reader")
            await reader.subscribe("devices/#", "urgent/#", qos=1)
            client = await broker.connect("d")
            kept = reading(3)
            kept.retain = True
            client.send(reading(1), reading(2, 0), kept)
            got: list[Packet] = []
            while len(got) < 2:
                got += await client.settled()
            assert got == [Puback(1), Puback(3)]
            messages = [p for p in await reader.settled() if isinstance(p, Publish)]
            expected = [] if exclusive else [(b"1", 1), (b"2", 0), (b"3", 1)]
            assert [(m.payload, m.qos) for m in messages] == expected
            assert broker.broker.stats().retained_messages == (0 if exclusive else 1)


async def test_a_subscriber_that_comes_later_gets_what_comes_later() -> None:
    capture = ManualCapture(automatic=True)
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        reader = await broker.connect("reader")
        for number, filters in enumerate(["devices/+/t", "devices/d/t"], 1):
            client.send(reading(1))
            await client.receive(Puback)
            assert await reader.settled() == []
            await reader.subscribe(filters, qos=0)
            client.send(reading(2))
            await client.receive(Puback)
            assert (await reader.receive(Publish)).payload == b"2"
            reader = await broker.connect(f"reader-{number}")
            await broker.until(lambda: True)
        assert capture.asked.count("devices/d/t") == 1  # once a route, not once a message


async def test_aliases_are_replaced_in_what_is_captured() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d")
        user = [("k", "v")]
        client.send(
            Publish("devices/d/t", b"1", 1, packet_id=1, properties={TOPIC_ALIAS: 2}),
            Publish(
                "", b"2", 1, packet_id=2, properties={TOPIC_ALIAS: 2, USER_PROPERTY: list(user)}
            ),
            reading(3),
            Publish("", b"4", 1, packet_id=4, properties={TOPIC_ALIAS: 2}),
        )
        assert await client.settled() == []
        (run,) = capture.taken
        block = encode_property_block({USER_PROPERTY: user}, 3)
        assert [part[1:] for part in parse_publishes(run.frames, 5)] == [
            (b"devices/d/t", 1, b"", b"1"),
            (b"devices/d/t", 2, block, b"2"),
            (b"devices/d/t", 3, b"", b"3"),
            (b"devices/d/t", 4, b"", b"4"),
        ]
        capture.settle()
        assert await client.settled() == [Puback(i) for i in (1, 2, 3, 4)]


@VERSIONS
async def test_a_will_on_a_captured_topic_is_captured(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect(
            "d", version=version, will=Will("devices/d/status", b"offline", 1)
        )
        await broker.gone(client)
        (run,) = capture.taken
        ((first, topic, _, _, payload),) = parse_publishes(run.frames, version)
        assert (first >> 1 & 3, topic, payload) == (1, b"devices/d/status", b"offline")
        assert run.client.client_id == "d"
        capture.settle()  # nobody is answered


@VERSIONS
async def test_stopping_waits_for_what_is_on_its_way_to_the_disk(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture, stop=False) as broker:
        client = await broker.connect("d", version=version)
        client.send(reading(1))
        await capture.wait_for(1)
        stopping = asyncio.ensure_future(broker.broker.stop())
        await asyncio.sleep(0)
        client.send(reading(2))
        await asyncio.sleep(0)
        capture.settle()
        await stopping
        assert await client.receive(Puback) == Puback(1)
        if version == V5:
            goodbye = await client.receive(Disconnect)
            assert goodbye.reason_code == ReasonCode.SERVER_SHUTTING_DOWN
        assert await client.closed()
        assert payloads(capture, version) == [b"1"]


@pytest.mark.conformance("MQTT-3.3.4-7", "MQTT-3.3.4-8")
async def test_a_v5_client_that_passes_the_receive_maximum_is_cut_off() -> None:
    capture = ManualCapture()
    config = BrokerConfig(receive_maximum=3, sys_interval_s=0)
    async with serving(config, capture=capture) as broker:
        client = await broker.connect("d")
        client.send(*[reading(i) for i in (1, 2, 3)])
        assert await client.settled() == []
        capture.settle()
        await client.settled()
        client.send(*[reading(i) for i in (1, 2, 3, 4)])
        goodbye = await client.receive(Disconnect)
        assert goodbye.reason_code == ReasonCode.RECEIVE_MAXIMUM_EXCEEDED


async def test_a_3_1_1_client_that_sends_too_much_is_not_read_until_it_is_answered() -> None:
    capture = ManualCapture()
    config = BrokerConfig(receive_maximum=3, sys_interval_s=0)
    async with serving(config, capture=capture) as broker:
        client = await broker.connect("d", version=V311)
        client.send(*[reading(i) for i in (1, 2, 3, 4)])
        await capture.wait_for(4)
        client.send(reading(5))
        other = await broker.connect("other")
        assert await other.settled() == []
        assert sum(run.count for run in capture.taken) == 4
        capture.settle()
        await capture.wait_for(5)
        capture.settle()
        assert await client.settled() == [Puback(i) for i in (1, 2, 3, 4, 5)]


async def test_a_captured_publish_for_a_stored_session_waits_for_both() -> None:
    for capture_first in (True, False):
        capture, store = ManualCapture(), ManualStore()
        async with serving(capture=capture, store=store) as broker:
            async with store.committing():
                reader = await broker.connect("reader", properties={SESSION_EXPIRY_INTERVAL: 60})
                await reader.subscribe("devices/#", qos=1)
            client = await broker.connect("d")
            client.send(reading(1))
            await capture.wait_for(1)
            steps = [capture.settle, store.commit]
            first, second = steps if capture_first else reversed(steps)
            first()
            assert await client.settled() == []
            second()
            assert await client.settled() == [Puback(1)]


@VERSIONS
async def test_a_qos_2_identifier_is_kept_only_once_its_publish_is_durable(version: int) -> None:
    """Else a crash between the two commits has PUBREC sent for what no journal holds."""
    capture, store = ManualCapture(), ManualStore()
    async with serving(capture=capture, store=store) as broker:
        async with store.committing():
            client = await broker.connect(
                "d",
                version=version,
                clean_start=False,
                properties={SESSION_EXPIRY_INTERVAL: 60} if version == V5 else {},
            )
        client.send(reading(7, 2), reading(8, 2))
        await capture.wait_for(2)
        assert not [c for c in store.changes if isinstance(c, InboundSaved)]
        capture.settle()
        assert [c for c in store.changes if isinstance(c, InboundSaved)] == [
            InboundSaved("d", 7),
            InboundSaved("d", 8),
        ]
        assert await client.settled() == []
        store.commit()
        assert await client.settled() == [Pubrec(7), Pubrec(8)]


async def test_a_refused_qos_2_identifier_is_never_kept() -> None:
    capture, store = ManualCapture(), ManualStore()
    async with serving(capture=capture, store=store) as broker:
        async with store.committing():
            client = await broker.connect(
                "d", clean_start=False, properties={SESSION_EXPIRY_INTERVAL: 60}
            )
        client.send(reading(7, 2), reading(8, 2))
        await capture.wait_for(2)
        capture.settle([0x97, 0])
        store.commit()
        assert await client.settled() == [Pubrec(7, 0x97), Pubrec(8)]
        assert [c for c in store.changes if isinstance(c, InboundSaved)] == [InboundSaved("d", 8)]


@pytest.mark.parametrize("other", ["devices/d/t", "elsewhere"])
async def test_a_qos_2_publish_that_waited_as_its_client_left_is_taken_when_it_comes_again(
    other: str,
) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        first = await broker.connect("d", version=V311, clean_start=False)
        capture.refusal = 0x97
        first.send(reading(7, 2), reading(8, 2, topic=other))
        await broker.until(lambda: broker.broker.stats().capture_refusals > 0)
        first.abort()  # not noticed while nothing is read: the next connection takes over
        second = await broker.connect("d", version=V311, clean_start=False, session_present=True)
        capture.relieve()
        for number, topic in ((7, "devices/d/t"), (8, other)):
            again = reading(number, 2, topic=topic)
            again.dup = True
            second.send(again)
        await capture.wait_for(1 if other == "elsewhere" else 2)
        capture.settle()
        answers = await second.settled()
        assert sorted(a.packet_id for a in answers if isinstance(a, Pubrec)) == [7, 8]


# -- how durable -----------------------------------------------------------------------------------

ASKS = {USER_PROPERTY: [("tidegate-durability", "1")]}


def said(word: str) -> dict[int, object]:
    """Return the properties of an acknowledgement that says how durable a publish is."""
    return {USER_PROPERTY: [("tidegate-durability", word)]}


async def test_a_client_that_asks_is_told_how_durable_its_publishes_are() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=V5, properties=ASKS)
        client.send(reading(1), reading(2), reading(3, 2), reading(4, topic="elsewhere"))
        assert await client.settled() == [Puback(4, 0x10, said("memory"))]
        capture.settle()
        assert await client.settled() == [
            Puback(1, 0, said("by-hand")),
            Puback(2, 0, said("by-hand")),
            Pubrec(3, 0, said("by-hand")),
        ]
        client.send(Pubrel(3))
        assert await client.settled() == [Pubcomp(3)]


async def test_a_refusal_says_nothing_of_durability() -> None:
    capture = ManualCapture()
    capture.refusal = 0x97
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=V5, properties=ASKS)
        client.send(reading(1))
        assert await client.settled() == [Puback(1, 0x97)]


@pytest.mark.parametrize(
    "properties",
    [
        {USER_PROPERTY: [("tidegate-durability", "0")]},
        {**ASKS, REQUEST_PROBLEM_INFORMATION: 0},
        {**ASKS, MAXIMUM_PACKET_SIZE: 30},
        {},
    ],
)
async def test_who_does_not_ask_or_cannot_take_it_gets_the_short_answer(
    properties: dict[int, object],
) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as broker:
        client = await broker.connect("d", version=V5, properties=properties)
        client.send(reading(1))
        assert await client.settled() == []
        capture.settle()
        assert await client.settled() == [Puback(1)]
