"""Lone publishes: taken together or one by one, in C or Python, they come to the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from mqtt.broker import connection as connections
from mqtt.broker import lone
from mqtt.broker.seams import PublishRun
from mqtt.broker.settling import settle, settle_run
from mqtt.codec import encode
from mqtt.frames import PartialPacket
from mqtt.packets import V5, V311, Puback, Publish
from mqtt.properties import CONTENT_TYPE
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import State
from tests.kit.brokers import ManualCapture, Served, WireClient, serving

VERSIONS = pytest.mark.parametrize("version", [V311, V5])
# Where nothing was built, Python is held to the same by itself.
FINDS = {"python": lone._find, "in use": lone.find}
SETTLES = {"python": settle_run, "in use": settle}


@pytest.fixture(params=FINDS, autouse=True)
def calls(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    monkeypatch.setattr(lone, "find", FINDS[name])
    monkeypatch.setattr(connections, "settle", SETTLES[name])
    return name


def reading(number: int, qos: int = 1, topic: str = "devices/d/t", **fields: Any) -> Publish:
    """Return a publish that the capture wants; those below 10 have the same size."""
    return Publish(topic, b"%d" % number, qos, packet_id=number if qos else 0, **fields)


class Device:
    """A client that has published one reading and had it answered, and the server's side of it."""

    def __init__(self, served: Served, capture: ManualCapture, client: WireClient) -> None:
        self.served = served
        self.capture = capture
        self.client = client
        self.core: Any = served.broker._core
        self.transport: Any = next(iter(self.core.sockets.transports.values()))
        self.connection = cast("connections.Connection", self.transport.protocol)
        self.machine: Any = self.connection.machine

    @property
    def route(self) -> Any:
        """Where its publishes go."""
        return self.machine._routes[0]

    async def publish(self, *readings: Publish) -> None:
        """Send one reading a read, the next when the capture has the one before."""
        for each in readings:
            count = len(self.capture.taken)
            self.client.send(each)
            await self.capture.wait_for(count + 1)

    def find(self, packet: Publish) -> tuple[list[PublishRun], bool]:
        """Look at a packet as if it had been read: the runs, and whether nothing is left."""
        data = encode(packet, self.client.version)
        (descriptor,) = self.core.sockets.transports
        runs: list[PublishRun] = []
        generation = self.core.router.routes.generation
        transports = self.core.sockets.transports
        rest = lone.find([descriptor, data], transports, generation, 5.0, 7, runs)
        assert rest in ([], [descriptor, data])
        return runs, not rest


@pytest.fixture(params=[V311, V5])
async def device(request: pytest.FixtureRequest) -> AsyncIterator[Device]:
    capture = ManualCapture()
    async with serving(capture=capture) as served:
        client = await served.connect("d", version=request.param)
        device = Device(served, capture, client)
        await device.publish(reading(1))
        capture.settle()
        await client.receive(Puback)
        yield device
        capture.settle()
        device.machine.unacknowledged = 0  # a stop waits for what a test has made of no read


async def test_a_publish_like_the_last_is_a_run_as_any_other(device: Device) -> None:
    (run,), is_all = device.find(reading(2))
    assert is_all
    (first,) = device.capture.taken
    data = encode(reading(2), device.client.version)
    assert (run.client, run.lane, run.frames) == (first.client, first.lane, data)
    assert (run.count, run.time_us, run.reasons) == (1, 7, None)
    assert run.settled is first.settled
    assert run.token == (device.machine, 1, [b"\0\2"], device.machine._routes)
    assert device.machine.unacknowledged == 1
    assert device.machine.last_received_s == 5.0


# Whose attribute, which, and what makes a read another one than those that are taken together.
NOT_PLAIN = [
    ("transport", "takes_data", False),
    ("transport", "protocol", object()),
    ("connection", "closed", True),
    ("connection", "paused", 8),
    ("connection", "meter", object()),
    ("connection", "_backlog", []),
    ("machine", "state", State.CLOSED),
    ("machine", "writable", False),
    ("machine", "_partial", PartialPacket(b"", 9)),
    ("machine", "_kind", -1),
    ("machine", "_block", b"\5"),
    ("machine", "_prefix", b"\xff" * 5),
    ("machine", "unacknowledged", 1024),
    ("machine", "unacknowledged", 1 << 70),
    ("route", "generation", -1),
    ("route", "targets", (object(),)),
    ("route", "shares", (object(),)),
    ("route", "reach", object()),
]


async def test_where_anything_is_not_plain_nothing_is_taken(device: Device) -> None:
    for whose, name, value in NOT_PLAIN:
        kept = getattr(getattr(device, whose), name)
        setattr(getattr(device, whose), name, value)
        before = device.machine.unacknowledged, device.machine.last_received_s
        try:
            assert device.find(reading(2)) == ([], False), (whose, name, value)
            assert (device.machine.unacknowledged, device.machine.last_received_s) == before
        finally:
            setattr(getattr(device, whose), name, kept)
    assert device.find(reading(2))[1]


async def test_another_packet_is_left(device: Device) -> None:
    for packet in (
        reading(2, dup=True),
        reading(2, retain=True),
        reading(2, qos=0),
        reading(2, qos=2),
        reading(22),
        reading(2, topic="devices/d/u"),
    ):
        assert device.find(packet) == ([], False)


async def test_identifier_0_and_a_part_of_a_packet_are_left(device: Device) -> None:
    (descriptor,) = device.core.sockets.transports
    whole = encode(reading(2), device.client.version)
    for data in (whole.replace(b"\0\2", b"\0\0"), whole[:-1], whole + whole, b"", -104):
        runs: list[PublishRun] = []
        generation = device.core.router.routes.generation
        transports = device.core.sockets.transports
        rest = lone.find([descriptor, data], transports, generation, 5.0, 7, runs)
        assert (rest, runs) == ([descriptor, data], [])


async def test_when_leave_is_asked_for_anew_nothing_is_like_the_last(device: Device) -> None:
    device.machine.forget_routes(device.machine.routes)
    assert device.find(reading(2)) == ([], False)
    (descriptor,) = device.core.sockets.transports
    data = b"\xff" * 5 + encode(reading(2), device.client.version)[5:]
    runs: list[PublishRun] = []
    generation = device.core.router.routes.generation
    transports = device.core.sockets.transports
    rest = lone.find([descriptor, data], transports, generation, 5.0, 7, runs)
    assert (rest, runs) == ([descriptor, data], [])


async def test_properties_other_than_the_last_are_left() -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as served:
        device = Device(served, capture, await served.connect("d", version=V5))
        await device.publish(reading(1, properties={CONTENT_TYPE: "a"}))
        assert device.find(reading(2, properties={CONTENT_TYPE: "b"})) == ([], False)
        assert device.find(reading(2, properties={CONTENT_TYPE: "a"}))[1]
        device.machine.unacknowledged = 0


async def test_answers_follow_the_commit_one_by_one(device: Device) -> None:
    await device.publish(*[reading(i) for i in range(2, 9)])
    assert await device.client.settled() == []
    assert device.machine.unacknowledged == 7
    sent = device.machine.bytes_sent
    device.capture.settle()
    assert await device.client.settled() == [Puback(i) for i in range(2, 9)]
    assert device.machine.unacknowledged == 0
    assert device.machine.bytes_sent == sent + 7 * 4
    stats = device.served.broker.stats()
    assert (stats.captured, stats.messages_received[1]) == (8, 8)


async def test_bytes_are_counted_once(device: Device) -> None:
    before = device.served.broker.stats().bytes_received
    await device.publish(reading(2), reading(3))
    after = device.served.broker.stats().bytes_received
    assert after - before == 2 * len(encode(reading(2), device.client.version))


async def test_of_many_devices_each_is_answered_for_itself(calls: str) -> None:
    """Several in one turn: the first answer of a turn goes another way than those after it."""
    capture = ManualCapture()
    async with serving(capture=capture) as served:
        clients = [await served.connect(f"d{i}", version=V311) for i in range(5)]
        for number in (1, 2, 3):
            for client in clients:
                client.send(reading(number))
            await capture.wait_for(5 * number)
            capture.settle()
            for client in clients:
                assert await client.receive(Puback) == Puback(number), calls


@VERSIONS
async def test_what_is_refused_is_answered_or_offered_again(version: int) -> None:
    capture = ManualCapture()
    async with serving(capture=capture) as served:
        client = await served.connect("d", version=version)
        device = Device(served, capture, client)
        await device.publish(reading(1))
        capture.refusal = int(ReasonCode.QUOTA_EXCEEDED)
        client.send(reading(2))
        if version == V5:
            assert await client.receive(Puback) == Puback(2, ReasonCode.QUOTA_EXCEEDED)
            assert device.machine.unacknowledged == 1
            capture.settle()
            return
        await served.until(lambda: device.connection.paused != 0)
        assert len(capture.taken) == 1
        capture.relieve()
        await capture.wait_for(2)
        capture.settle()
        assert await client.settled() == [Puback(1), Puback(2)]


async def test_a_saturated_capture_stops_the_reading(device: Device) -> None:
    device.capture.full = True
    await device.publish(reading(2))
    assert device.connection.paused
    device.client.send(reading(3))
    device.capture.relieve()
    await device.capture.wait_for(3)
    assert not device.connection.paused


async def test_a_capture_that_breaks_costs_its_client_only(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = await device.served.connect("e", version=device.client.version)
    take = device.capture.take

    def broken(run: PublishRun) -> int:
        if run.client.client_id == "d":
            raise ValueError("broken")
        return take(run)

    monkeypatch.setattr(device.capture, "take", broken)
    device.core.sockets.loop.set_exception_handler(lambda _loop, _context: None)
    device.client.send(reading(2))
    other.send(reading(2))
    await device.capture.wait_for(2)
    assert await device.client.closed()
    device.capture.settle()
    assert await other.settled() == [Puback(2)]


async def test_without_memory_nothing_is_half_taken(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_args: object) -> list[int | bytes]:
        raise MemoryError

    monkeypatch.setattr(lone, "find", broken)
    device.core.sockets.loop.set_exception_handler(lambda _loop, _context: None)
    device.client.send(reading(2))
    assert await device.client.closed()
    assert len(device.capture.taken) == 1


async def test_a_subscriber_gets_what_comes_after_it_has_subscribed(device: Device) -> None:
    await device.publish(reading(2))
    subscriber = await device.served.connect("s", version=device.client.version)
    await subscriber.subscribe("devices/#", qos=0)
    await device.publish(reading(3))
    assert (await subscriber.receive(Publish)).payload == b"3"
