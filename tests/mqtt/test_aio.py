"""The asyncio driver over real sockets: futures, callbacks, bounded buffers, every way to end."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import uvloop

from mqtt import properties as p
from mqtt.aio import Client, ClientOptions
from mqtt.client_session import ClientSession, Published
from mqtt.errors import LocalProtocolError, MqttError
from mqtt.packets import (
    Auth,
    Connack,
    Connect,
    Disconnect,
    Packet,
    Pingreq,
    Puback,
    Publish,
    Pubrel,
    Subscribe,
    Subscription,
    Unsubscribe,
)
from tests.kit.certificates import make_certificates
from tests.kit.mqtt_server import MiniServer, mini_server
from tests.kit.processes import free_ports

HOST = "127.0.0.1"


async def take(client: Client, count: int) -> list[Publish]:
    """Return the next `count` messages."""
    taken: list[Publish] = []
    async with asyncio.timeout(60):
        async for message in client.messages():
            taken.append(message)
            if len(taken) == count:
                break
    return taken


@pytest.mark.parametrize("version", [4, 5])
async def test_a_whole_conversation(version: int) -> None:
    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c", version))
        assert client.connack == Connack()
        assert await client.subscribe(Subscription("a/#", 1), Subscription("b", 2)) == [1, 2]
        assert await client.publish("a", b"0") is None
        assert await client.publish("a", b"1", 1) == Published(2, 0, {})
        assert await client.publish("a", b"2", 2, retain=True) == Published(3, 0, {})
        assert [message.payload for message in await take(client, 3)] == [b"0", b"1", b"2"]
        assert await client.unsubscribe("b") == ([0] if version == 5 else [])
        end = await client.disconnect()
        assert (end.reason_code, end.by_peer, end.error) == (0, False, None)
        assert client.closed.result() is end
        assert client._transport is None
        assert await client.disconnect() is end  # nothing to do any more
        await server.until(lambda: server.sides[0].lost)
        kinds = [type(packet) for packet in server.received]
        expected: list[type[Packet]] = [Connect, Subscribe, Publish, Publish, Publish, Pubrel]
        assert kinds == [*expected, Unsubscribe, Disconnect]


def test_it_runs_on_uvloop() -> None:
    async def talk() -> list[bytes]:
        async with mini_server() as server:
            client = await Client.connect(HOST, server.port, Connect("c"))
            await client.publish("a", b"x", 2)
            messages = await take(client, 1)
            await client.disconnect()
            return [message.payload for message in messages]

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        assert runner.run(talk()) == [b"x"]


async def test_a_unix_socket(tmp_path: Path) -> None:
    async with (
        mini_server(path=tmp_path / "s") as server,
        await Client.connect_unix(str(tmp_path / "s"), Connect("c")) as client,
    ):
        assert await client.publish("a", b"x", 1) == Published(1, 0, {})
        await client.disconnect()
        await server.until(lambda: server.count(Disconnect) == 1)


async def test_tls_with_a_server_that_proves_its_name(tmp_path: Path) -> None:
    files = make_certificates(tmp_path)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(files.server, files.server_key)
    trusting = ssl.create_default_context(cafile=str(files.ca))
    async with mini_server(ssl_context=serving) as server:
        client = await Client.connect("127.0.0.1", server.port, Connect("c"), ssl_context=trusting)
        assert await client.publish("a", bytes(100_000), 1) == Published(1, 0, {})
        await client.disconnect()
        with pytest.raises(ssl.SSLCertVerificationError):
            await Client.connect(
                "127.0.0.1",
                server.port,
                Connect("c"),
                ssl_context=trusting,
                server_hostname="elsewhere.example",
            )


# Connecting


@pytest.mark.parametrize("version", [4, 5])
async def test_a_refusal_raises_with_the_servers_reason(version: int) -> None:
    async with mini_server(connack=lambda _: Connack(False, 0x86)) as server:
        with pytest.raises(MqttError) as fault:
            await Client.connect(HOST, server.port, Connect("c", version))
        assert fault.value.reason_code == 0x86
        await server.until(lambda: server.sides[0].lost)


async def test_a_server_that_says_nothing() -> None:
    async with mini_server(connack=lambda _: None) as server:
        with pytest.raises(MqttError) as fault:
            await Client.connect(
                HOST, server.port, Connect("c"), options=ClientOptions(connect_timeout_s=0.05)
            )
        assert "CONNACK" in str(fault.value)
        await server.until(lambda: bool(server.sides) and server.sides[0].lost)


async def test_a_server_that_hangs_up() -> None:
    server: MiniServer

    def hang_up(_: Connect) -> None:
        server.sides[-1].transport.abort()

    async with mini_server(connack=hang_up) as server:
        with pytest.raises(MqttError):
            await Client.connect(HOST, server.port, Connect("c"))


async def test_nobody_there() -> None:
    (port,) = free_ports(1)
    with pytest.raises(OSError, match="Connect"):
        await Client.connect(HOST, port, Connect("c"))


async def test_a_connect_that_is_not_allowed_leaves_no_connection_behind() -> None:
    async with mini_server() as server:
        with pytest.raises(LocalProtocolError):
            await Client.connect(HOST, server.port, Connect("c\0"))
        await server.until(lambda: bool(server.sides) and server.sides[0].lost)
        assert server.received == []


async def test_giving_up_while_connecting_leaves_no_connection_behind() -> None:
    async with mini_server(connack=lambda _: None) as server:
        attempt = asyncio.create_task(Client.connect(HOST, server.port, Connect("c")))
        await server.until(lambda: server.count(Connect) == 1)
        attempt.cancel()
        with pytest.raises(asyncio.CancelledError):
            await attempt
        await server.until(lambda: server.sides[0].lost)


# Publishing


async def test_publishes_of_one_turn_leave_in_one_write_and_call_back() -> None:
    async with mini_server(echo=False) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        transport = client._transport
        assert transport is not None
        writes: list[bytes] = []
        client._transport = Spy(transport, writes)  # type: ignore[assignment]
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        settled: list[int] = []

        def on_published(event: Published) -> None:
            settled.append(event.packet_id)
            if len(settled) == 100:
                done.set_result(None)

        ids = [client.publish_nowait("a", b"x", 1, on_published=on_published) for _ in range(100)]
        await done
        assert settled == ids
        assert len(writes) == 1
        await client.disconnect()


class Spy:
    """A transport that notes what is written."""

    def __init__(self, transport: asyncio.Transport, writes: list[bytes]) -> None:
        self._transport = transport
        self._writes = writes

    def write(self, data: bytes) -> None:
        self._writes.append(data)
        self._transport.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def test_publish_waits_for_its_turn() -> None:
    limits = Connack(properties={p.RECEIVE_MAXIMUM: 2})
    async with mini_server(connack=lambda _: limits, echo=False, answer=set()) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        tasks = [asyncio.create_task(client.publish("a", b"%d" % n, 1)) for n in range(5)]
        await server.until(lambda: server.count(Publish) == 2)
        assert client.free_slots == 0
        for packet_id in range(1, 6):
            await server.until(lambda: server.count(Publish) >= packet_id)  # noqa: B023
            assert server.count(Publish) <= packet_id + 1
            server.sides[0].send(Puback(packet_id))
        assert [event.packet_id for event in await asyncio.gather(*tasks) if event] == [
            *range(1, 6)
        ]
        assert [pub.payload for pub in server.received if isinstance(pub, Publish)] == [
            b"%d" % n for n in range(5)
        ]
        await client.disconnect()


async def test_a_full_socket_holds_publishers_back() -> None:
    async with mini_server(echo=False) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        client.pause_writing()
        assert not client.writable
        assert client.free_slots == 0
        with pytest.raises(LocalProtocolError) as fault:
            client.publish_nowait("a", b"")
        assert fault.value.reason_code == 0x97
        waiting = asyncio.create_task(client.publish("a", b"", 1))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert server.count(Publish) == 0
        client.resume_writing()
        assert await waiting == Published(1, 0, {})
        await client.disconnect()


async def test_a_refused_message_is_an_answer_not_an_exception() -> None:
    async with mini_server(echo=False, answer=set()) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        publishing = asyncio.create_task(client.publish("a", b"", 1))
        await server.until(lambda: server.count(Publish) == 1)
        server.sides[0].send(Puback(1, 0x97))
        assert await publishing == Published(1, 0x97, {})
        await client.disconnect()


async def test_publish_raises_the_callers_faults() -> None:
    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        for qos in (0, 1):
            with pytest.raises(LocalProtocolError):
                await client.publish("a/+", b"", qos)
        assert await client.publish("a", b"", 1) == Published(1, 0, {})
        await client.disconnect()
        with pytest.raises(LocalProtocolError):
            await client.publish("a", b"", 1)
        with pytest.raises(LocalProtocolError):
            await client.subscribe(Subscription("a"))


async def test_a_cancelled_publish_does_no_harm() -> None:
    async with mini_server(echo=False, answer=set()) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        publishing = asyncio.create_task(client.publish("a", b"", 1))
        await server.until(lambda: server.count(Publish) == 1)
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        server.answer.add(Publish)
        server.sides[0].send(Puback(1))
        assert await client.publish("a", b"", 1) == Published(2, 0, {})
        await client.disconnect()


# Receiving


async def test_a_callback_gets_messages_and_answers_them_in_one_write() -> None:
    seen: list[bytes] = []

    def on_message(client: Client, message: Publish) -> None:
        seen.append(message.payload)
        client.ack(message)

    async with mini_server() as server:
        client = await Client.connect(
            HOST,
            server.port,
            Connect("c"),
            on_message=on_message,
            options=ClientOptions(auto_ack=False),
        )
        messages = [Publish("t", b"%d" % n, 1, packet_id=n) for n in range(1, 51)]
        server.sides[0].send(*messages)
        await server.until(lambda: server.count(Puback) == 50)
        assert [packet for packet in server.received if isinstance(packet, Puback)] == [
            Puback(n) for n in range(1, 51)
        ]
        assert seen == [b"%d" % n for n in range(1, 51)]
        await client.disconnect()


async def test_a_slow_reader_pauses_the_socket_and_loses_nothing() -> None:
    count = 3000
    async with mini_server() as server:
        client = await Client.connect(
            HOST, server.port, Connect("c", keep_alive=60), options=ClientOptions(messages_max=10)
        )
        server.sides[0].send(*(Publish("t", b"%06d" % n + bytes(1000)) for n in range(count)))
        held: list[int] = []
        taken: list[int] = []
        async with asyncio.timeout(60):
            async for message in client.messages():
                taken.append(int(message.payload[:6]))
                held.append(len(client._messages or ()))
                if len(taken) % 100 == 0:
                    await asyncio.sleep(0)
                if len(taken) == count:
                    break
        assert taken == list(range(count))
        # One read of the socket is 256 KiB, about 256 of these messages.
        assert max(held) <= 10 + 300
        await client.disconnect()


async def test_a_callback_may_pause_reading() -> None:
    seen: list[bytes] = []

    def on_message(client: Client, message: Publish) -> None:
        seen.append(message.payload)
        client.pause_reading()

    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c"), on_message=on_message)
        for n in range(3):
            client.publish_nowait("a", b"%d" % n)  # comes back, unread from the second on
            await server.until(lambda: server.count(Publish) > n)  # noqa: B023
            async with asyncio.timeout(60):
                while not seen:
                    await asyncio.sleep(0)
        client.publish_nowait("a", b"", 1)
        await server.until(lambda: server.count(Publish) == 4)
        assert client.session.outbound  # its PUBACK is unread too
        assert seen == [b"0"]
        client.resume_reading()
        async with asyncio.timeout(60):
            while len(seen) < 4:
                await asyncio.sleep(0)
                client.resume_reading()
        assert seen == [b"0", b"1", b"2", b""]
        client.resume_reading()
        await client.disconnect()


async def test_every_message_before_the_end_is_yielded() -> None:
    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        server.sides[0].send(Publish("t", b"1"), Publish("t", b"2"), Disconnect(0x8B))
        assert (await client.closed).reason_code == 0x8B
        assert [message.payload for message in await take(client, 2)] == [b"1", b"2"]
        with pytest.raises(MqttError) as fault:
            await take(client, 1)
        assert fault.value.reason_code == 0x8B


async def test_messages_end_quietly_after_our_own_disconnect() -> None:
    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        server.sides[0].send(Publish("t", b"1"))
        assert [message.payload for message in await take(client, 1)] == [b"1"]
        taking = asyncio.create_task(take(client, 2))
        await asyncio.sleep(0)
        await client.disconnect()
        assert await taking == []


# The end


@pytest.mark.parametrize(
    ("end", "reason_code"),
    [
        (lambda side: side.send(Disconnect(0x8E)), 0x8E),
        (lambda side: side.transport.write(b"\x00\x00"), 0x81),
        (lambda side: side.transport.abort(), 0x80),
        (lambda side: side.transport.close(), 0x80),
    ],
    ids=["disconnect", "malformed", "reset", "closed"],
)
async def test_the_end_settles_everything_that_waits(
    end: Callable[[Any], None], reason_code: int
) -> None:
    async with mini_server(answer=set()) as server:
        client = await Client.connect(HOST, server.port, Connect("c"))
        tasks = [
            asyncio.create_task(client.publish("a", b"x", 1)),
            asyncio.create_task(client.subscribe(Subscription("a"))),
            asyncio.create_task(take(client, 1)),
        ]
        await server.until(lambda: server.count(Publish) + server.count(Subscribe) == 2)
        end(server.sides[0])
        publish, subscribe, messages = await asyncio.gather(*tasks, return_exceptions=True)
        for failure in (publish, subscribe, messages):
            assert isinstance(failure, MqttError)
            assert failure.reason_code == reason_code
        assert (await client.closed).reason_code == reason_code
        assert set(client.session.outbound) == {1}
        await server.until(lambda: server.sides[0].lost)


async def test_a_session_goes_on_over_a_new_connection() -> None:
    session = ClientSession()
    resume = Connect("c", clean_start=False, properties={p.SESSION_EXPIRY_INTERVAL: 60})
    async with mini_server(
        connack=lambda _: Connack(bool(server.count(Connect) > 1)), echo=False, answer=set()
    ) as server:
        client = await Client.connect(HOST, server.port, resume, session=session)
        client.publish_nowait("a", b"x", 1)
        await server.until(lambda: server.count(Publish) == 1)
        client.abort()
        assert (await client.closed).by_peer
        server.answer.add(Publish)
        again = await Client.connect(HOST, server.port, resume, session=session)
        await server.until(lambda: server.count(Publish) == 2)
        assert server.received[-1] == Publish("a", b"x", 1, dup=True, packet_id=1)
        assert await again.publish("a", b"y", 1) == Published(2, 0, {})
        assert session.outbound == {}
        await again.disconnect()


async def test_pings_go_out_and_a_silent_server_is_given_up() -> None:
    async with mini_server() as server:
        client = await Client.connect(HOST, server.port, Connect("c", keep_alive=1))
        client._machine._keep_alive_s = 0.01  # MQTT counts in seconds, a test need not
        client._arm()
        await server.until(lambda: server.count(Pingreq) >= 3)
        server.answer.clear()
        client._machine.ping_timeout_s = 0.05
        end = await client.closed
        assert end.reason_code == 0x8D
        assert "PINGRESP" in end.detail
        await server.until(lambda: server.sides[0].lost)


async def test_the_transport_is_aborted_when_the_last_bytes_do_not_leave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("mqtt.aio._CLOSE_LINGER_S", 0.01)
    async with mini_server() as server:
        client = await Client.connect(
            HOST, server.port, Connect("c"), options=ClientOptions(outbound_max=50)
        )
        server.sides[0].transport.pause_reading()
        while client.writable:
            client.publish_nowait("a", bytes(200_000))
            await asyncio.sleep(0)
        client._machine.disconnect()
        client._flush()
        async with asyncio.timeout(60):
            while client._transport is not None:
                await asyncio.sleep(0.005)
        server.sides[0].transport.abort()


async def test_enhanced_authentication_by_callback() -> None:
    method = {p.AUTHENTICATION_METHOD: "m"}
    server: MiniServer

    def challenge(_: Connect) -> None:
        server.sides[-1].send(Auth(0x18, method | {p.AUTHENTICATION_DATA: b"?"}))

    def on_auth(client: Client, auth: Auth) -> None:
        assert auth.properties[p.AUTHENTICATION_DATA] == b"?"
        client.authenticate(Auth(0x18, method | {p.AUTHENTICATION_DATA: b"!"}))

    async with mini_server(connack=challenge) as server:
        connecting = asyncio.create_task(
            Client.connect(
                HOST, server.port, Connect("c", properties=dict(method)), on_auth=on_auth
            )
        )
        await server.until(lambda: server.count(Auth) == 1)
        server.sides[0].send(Connack(properties=dict(method)))
        client = await connecting
        await client.disconnect()
