"""What is sent in one turn leaves in one write, in order, and never more than fits waits."""

from __future__ import annotations

import pytest

from mqtt.codec import Decoder
from mqtt.packets import Disconnect, Puback, Publish
from mqtt.server_messages import Message
from mqtt.server_sender import TOGETHER_BYTES, ServerSender
from tests.kit.brokers import serving


class Sender:
    """A sender, its writes, and how often it asked to be flushed."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.asked: list[ServerSender] = []
        self.sender = ServerSender(self.writes.append, self.asked.append)


def test_what_is_sent_before_a_flush_is_one_write_in_order() -> None:
    this = Sender()
    for data in (b"a", b"b", b"c"):
        this.sender.send(data)
    assert this.writes == []
    assert this.sender.waiting_bytes == 3
    assert this.asked == [this.sender]  # once, however much waits
    this.sender.flush()
    assert this.writes == [b"abc"]
    assert this.sender.waiting_bytes == 0
    this.sender.send(b"d")
    assert this.asked == [this.sender] * 2
    this.sender.flush()
    this.sender.flush()
    assert this.writes == [b"abc", b"d"]


def test_an_answer_leaves_at_once_but_never_before_what_was_sent_earlier() -> None:
    this = Sender()
    this.sender.send_now(b"1")
    this.sender.send(b"2")
    this.sender.send_now(b"3")
    this.sender.acknowledge(1, [b"\0\7"])
    assert this.writes == [b"1"]
    this.sender.flush()
    assert this.writes == [b"1", b"23\x40\x02\0\7"]
    this.sender.acknowledge(1, [b"\0\x08"])
    assert this.writes[2:] == [b"\x40\x02\0\x08"]


def test_what_waits_is_bounded() -> None:
    this = Sender()
    piece = bytes(1000)
    for _ in range(200):
        this.sender.send(piece)
        assert this.sender.waiting_bytes < TOGETHER_BYTES
    assert sum(map(len, this.writes)) + this.sender.waiting_bytes == 200_000
    assert len(this.writes) == 200_000 // (66 * 1000)


def test_a_large_message_does_not_wait() -> None:
    this = Sender()
    large = bytes(TOGETHER_BYTES)
    this.sender.send(large)
    assert this.writes == [large]
    this.sender.send(b"small")
    this.sender.send(large)
    assert this.writes == [large, b"small" + large]
    assert this.sender.waiting_bytes == 0


def test_what_waits_for_a_client_that_is_gone_is_not_sent() -> None:
    this = Sender()
    this.sender.send(b"x")
    this.sender.forget_waiting()
    this.sender.flush()
    assert this.writes == []
    assert this.sender.waiting_bytes == 0


def test_a_driver_that_does_not_flush_gets_everything_at_once() -> None:
    writes: list[bytes] = []
    sender = ServerSender(writes.append)
    sender.send(b"a")
    sender.send(b"b")
    assert writes == [b"a", b"b"]


async def test_a_message_is_sent_before_a_disconnect_that_follows_it_in_the_same_turn() -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t", qos=1)
        (connection,) = broker.broker._core.connections
        router = broker.broker._core.router
        router.deliver(Message(b"t", b"last words"), router.routes[b"t"], 0.0)
        connection.disconnect(0x8B)
        assert (await reader.receive(Publish)).payload == b"last words"
        assert (await reader.receive(Disconnect)).reason_code == 0x8B


async def test_messages_of_one_read_reach_a_subscriber_in_one_write(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with serving() as broker:
        reader = await broker.connect("reader")
        await reader.subscribe("t", qos=1)
        (connection,) = broker.broker._core.connections
        writes: list[bytes] = []
        monkeypatch.setattr(connection.machine, "_write", writes.append)
        writer = await broker.connect("writer")
        writer.send(*(Publish("t", b"%d" % n, 1, packet_id=n) for n in range(1, 8)))
        for _ in range(7):
            await writer.receive(Puback)
        await broker.until(lambda: bool(writes))
        (write,) = writes
        decoder = Decoder(5, 1 << 20, "client")
        got = [packet.payload for packet in decoder.receive_data(write)]
        assert got == [b"%d" % n for n in range(1, 8)]


async def test_a_transport_that_fails_does_not_keep_others_from_their_messages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(_data: bytes) -> None:
        raise RuntimeError("the handle is closed")

    async with serving() as broker:
        first = await broker.connect("first")
        await first.subscribe("t", qos=0)
        (connection,) = broker.broker._core.connections
        second = await broker.connect("second")
        await second.subscribe("t", qos=0)
        monkeypatch.setattr(connection.machine, "_write", broken)
        router = broker.broker._core.router
        router.deliver(Message(b"t", b"1"), router.routes[b"t"], 0.0)
        assert (await second.receive(Publish)).payload == b"1"
        router.deliver(Message(b"t", b"2"), router.routes[b"t"], 0.0)
        assert (await second.receive(Publish)).payload == b"2"
        monkeypatch.undo()
