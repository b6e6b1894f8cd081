"""Abuse at the door and behind it: bounded memory, the right reason codes, few lines of log."""

from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import structlog
from structlog.typing import EventDict

from mqtt.broker.access.config import AccessConfig
from mqtt.broker.config import BrokerConfig
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.rates import TokenBucket
from mqtt.packets import Disconnect, Puback, Publish, Pubrec, Subscribe, Subscription
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from runtime.clock import ManualClock
from tests.kit.brokers import ManualCapture, WireClient
from tests.kit.certificates import Certificates, make_certificates
from tests.kit.fronts import fronting, is_open, talk

MIB = 1 << 20


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def logs() -> Iterator[list[EventDict]]:
    with structlog.testing.capture_logs() as entries:
        yield entries


def warnings_of(logs: list[EventDict]) -> Counter[str]:
    return Counter(entry["event"] for entry in logs if entry["log_level"] == "warning")


def dial(stack: ExitStack, port: int) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", port)))


# -- at the door ----------------------------------------------------------------------------------


async def test_of_too_many_half_open_the_oldest_goes_and_clients_get_in(
    logs: list[EventDict],
) -> None:
    async with fronting(ListenerConfig(port=0, half_open_max=20)) as front:
        with ExitStack() as stack:
            idle = []
            for _ in range(100):
                idle.append(await asyncio.to_thread(dial, stack, front.port))
            await front.until(lambda: front.broker.stats().connections_total == 100)
            await front.until(lambda: front.broker.listeners[0].connections == 20)
            client, connack = await front.ask_at("c")
            assert connack.reason_code == 0
            assert await client.settled() == []
            assert not any(is_open(sock) for sock in idle[:80])
            assert sum(is_open(sock) for sock in idle[80:]) >= 19
    assert warnings_of(logs)["mqtt_too_many_half_open"] == 1


async def test_a_slow_handshake_ends_at_the_deadline() -> None:
    clock = ManualClock()
    async with fronting(broker=BrokerConfig(sys_interval_s=0), clock=clock) as front:
        with ExitStack() as stack:
            sock = dial(stack, front.port)
            for count, byte in enumerate(b"\x10\x0c\x00", 1):  # slowloris
                sock.sendall(bytes([byte]))
                await front.until(lambda count=count: front.broker.stats().bytes_received == count)
                assert front.broker.stats().connections == 1
                front.pass_time(clock, 4.0)
            await front.until(lambda: front.broker.stats().connections == 0)


async def test_connections_of_a_listener_are_limited() -> None:
    async with fronting(ListenerConfig(port=0, connections_max=2)) as front:
        first, _ = await front.ask_at("a")
        await front.ask_at("b")
        _, connack = await front.ask_at("c")
        assert connack.reason_code == 0x89
        await front.gone(first)
        _, connack = await front.ask_at("c")
        assert connack.reason_code == 0


async def test_connections_from_one_address_are_limited(logs: list[EventDict]) -> None:
    async with fronting(ListenerConfig(port=0, address_connections_max=3)) as front:
        for index in range(3):
            await front.ask_at(f"c{index}")
        for _ in range(20):
            assert await talk(front.port, b"") == b""
        assert front.broker.stats().refused_connections == 20
        assert front.broker.stats().connections == 3
        await front.gone(front.clients[0])
        _, connack = await front.ask_at("again")
        assert connack.reason_code == 0
    assert warnings_of(logs)["mqtt_too_many_from_one_address"] == 1


async def test_a_connect_flood_is_held_to_its_rate(logs: list[EventDict]) -> None:
    clock = ManualClock()
    async with fronting(ListenerConfig(port=0, connect_rate_s=5), clock=clock) as front:
        with ExitStack() as stack:
            socks = [dial(stack, front.port) for _ in range(50)]
            await front.until(lambda: front.broker.stats().refused_connections == 40)
            await front.until(lambda: front.broker.listeners[0].connections == 10)
            assert sum(map(is_open, socks)) == 10  # a burst of 2 s
        clock.advance(1.0)
        _, connack = await front.ask_at("c")
        assert connack.reason_code == 0
    assert warnings_of(logs)["mqtt_connect_rate_exceeded"] == 1


@pytest.mark.parametrize(
    "garbage", [b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x3c\x00\x00", b"GET / HTTP/1.1\r\n\r\n", b""]
)
async def test_bad_tls_handshakes(
    garbage: bytes, certificates: Certificates, logs: list[EventDict]
) -> None:
    config = ListenerConfig(
        transport="tls",
        port=0,
        tls_cert_file=certificates.server,
        tls_key_file=certificates.server_key,
        handshake_timeout_s=0.2,
    )
    loop = asyncio.get_running_loop()
    told: list[dict[str, object]] = []
    loop.set_exception_handler(lambda _loop, context: told.append(context))
    async with fronting(config) as front:
        await asyncio.gather(*(talk(front.port, garbage) for _ in range(30)))
        await front.until(lambda: front.broker.stats().failed_handshakes == 30)
        assert front.broker.stats().connections == 0
    assert warnings_of(logs) == {"mqtt_handshake_failed": 1}
    assert told == []


@pytest.mark.parametrize("proxy_protocol", [False, True], ids=["plain", "behind a balancer"])
async def test_a_client_accepted_as_the_listener_closes_is_hung_up_on(
    proxy_protocol: bool,
) -> None:
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        gc.collect()
        told.clear()  # of what other tests left
        async with fronting(ListenerConfig(port=0, proxy_protocol=proxy_protocol)) as front:
            client = await asyncio.to_thread(
                socket.create_connection, ("127.0.0.1", front.port), timeout=60
            )
            front.broker.listeners[0]._acceptors[0]._accept()  # a task for PROXY has not begun
            await front.front.stop()  # ... when it is cancelled
        with client:
            client.settimeout(60)
            assert await asyncio.to_thread(client.recv, 1) == b""
        gc.collect()
    assert [str(one.message) for one in told] == []


async def test_one_client_that_cannot_be_taken_costs_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: told.append(context))
    async with fronting(ListenerConfig(port=0)) as front:
        listener = front.broker.listeners[0]
        protocol = listener.protocol
        calls: list[object] = []

        def broken_at_first(source: tuple[str, int] | None = None) -> asyncio.Protocol:
            calls.append(source)
            if len(calls) == 1:
                raise ValueError("broken")
            return protocol(source)

        monkeypatch.setattr(listener, "protocol", broken_at_first)
        # Both before the loop has its turn: they are accepted together.
        sockets = [socket.create_connection(("127.0.0.1", front.port), timeout=60) for _ in "ab"]
        with sockets[0], sockets[1]:
            assert await asyncio.to_thread(sockets[0].recv, 1) == b""
            sockets[1].sendall(b"\x10\x0d\0\4MQTT\4\2\0\0\0\1b")
            assert await asyncio.to_thread(sockets[1].recv, 4) == b"\x20\2\0\0"
    assert [context["message"] for context in told] == ["a client could not be taken"]


async def test_tls_handshakes_at_once_are_limited(
    certificates: Certificates, logs: list[EventDict]
) -> None:
    from tests.kit.fronts import client_tls

    config = ListenerConfig(
        transport="tls",
        port=0,
        tls_cert_file=certificates.server,
        tls_key_file=certificates.server_key,
        handshakes_max=5,
        handshake_timeout_s=1.0,
    )
    clock = ManualClock()
    async with fronting(config, clock=clock) as front:
        shaking = front.broker.listeners[0]._acceptors[0]._shaking
        with ExitStack() as stack:
            for _ in range(20):
                dial(stack, front.port)
            tls = client_tls(certificates.ca)
            asking = asyncio.create_task(front.ask_at("c", tls=tls))  # behind them in the queue
            for failed in range(0, 20, 5):
                await front.until(lambda: len(shaking) == 5)
                assert front.broker.stats().failed_handshakes == failed
                front.pass_time(clock, 2 * config.handshake_timeout_s)
            _, connack = await asking
            assert connack.reason_code == 0
    assert warnings_of(logs)["mqtt_handshakes_full"] == 1


# -- behind it ------------------------------------------------------------------------------------


def test_a_bucket_holds_the_average() -> None:
    bucket = TokenBucket(10, 0.0)
    assert bucket.admits(0.0)
    bucket.take(25)  # a read brings what it brings
    assert not bucket.admits(0.0)
    assert bucket.wait_s(0.0) == pytest.approx(0.6)
    assert bucket.admits(0.6)
    assert not TokenBucket(0, 0.0).wait_s(0.0)


@pytest.mark.parametrize("captured", [False, True])
@pytest.mark.parametrize("qos", [1, 2])
async def test_a_v5_client_over_its_rate_is_told_0x97(
    qos: int, captured: bool, logs: list[EventDict]
) -> None:
    clock = ManualClock()
    capture = ManualCapture(automatic=True)
    topic = "devices/t" if captured else "t"
    config = ListenerConfig(port=0, publish_rate_s=5)
    async with fronting(config, clock=clock, capture=capture) as front:
        client, _ = await front.ask_at("p")
        codes: list[int] = []
        for index in range(30):  # one a read
            client.send(Publish(topic, b"x", qos=qos, packet_id=index + 1))
            answer = await client.next()
            assert isinstance(answer, Puback | Pubrec)
            codes.append(answer.reason_code)
        assert [code >= 0x80 for code in codes] == [False] * 10 + [True] * 20
        assert set(codes[10:]) == {0x97}
        clock.advance(1.0)
        client.send(Publish(topic, b"x", qos=qos, packet_id=100))
        answer = await client.next()
        assert isinstance(answer, Puback | Pubrec)
        assert answer.reason_code < 0x80
        assert front.broker.stats().drops["rate"] == 20
    assert warnings_of(logs)["mqtt_rate_exceeded"] == 1


async def test_a_v5_client_that_does_not_heed_it_is_cut_off() -> None:
    config = ListenerConfig(port=0, publish_rate_s=1)
    async with fronting(config, clock=ManualClock()) as front:
        client, _ = await front.ask_at("p")
        for _ in range(20):
            client.send(*(Publish("t", b"x") for _ in range(100)))
            await asyncio.sleep(0)
        assert (await client.receive(Disconnect)).reason_code == 0x96


@pytest.mark.parametrize("captured", [False, True])
async def test_qos_2_publishes_that_came_with_the_cut_off_can_be_sent_again(captured: bool) -> None:
    topic = "devices/t" if captured else "t"
    capture = ManualCapture(automatic=True)
    clock = ManualClock()
    async with fronting(
        ListenerConfig(port=0, publish_rate_s=1), clock=clock, capture=capture
    ) as front:
        lasting = {"properties": {SESSION_EXPIRY_INTERVAL: 600}}
        client, _ = await front.ask_at("p", **lasting)
        client.send(*(Publish("t", b"", 1, packet_id=number) for number in (1, 2)))
        await client.receive(Puback)
        await client.receive(Puback)
        storm = [Publish("t", b"") for _ in range(1100)]
        late = Publish(topic, b"kept", qos=2, packet_id=7)
        client.send(*storm, Subscribe(1, [Subscription("a", 0)]), late)  # one read
        assert (await client.receive(Disconnect)).reason_code == 0x96
        clock.advance(60.0)
        again, connack = await front.ask_at("p", clean_start=False, **lasting)
        assert connack.session_present
        again.send(replace(late, dup=True))
        assert (await again.receive(Pubrec)).reason_code < 0x80


@pytest.mark.parametrize("publish_rate_s", [0, 1])
async def test_a_reload_changes_the_rate_of_clients_that_are_connected(
    publish_rate_s: float,
) -> None:
    config = ListenerConfig(port=0, publish_rate_s=publish_rate_s)
    clock = ManualClock()
    async with fronting(config, clock=clock) as front:
        client, _ = await front.ask_at("c")
        listener = front.broker.listeners[0]

        async def refused(first: int) -> int:
            answers = []
            for packet_id in range(first, first + 10):
                client.send(Publish("t", b"x", 1, packet_id=packet_id))
                answers.append(await client.receive(Puback))
            return sum(answer.reason_code == 0x97 for answer in answers)

        assert bool(await refused(1)) == bool(publish_rate_s)
        listener.reconfigure(replace(listener.config, publish_rate_s=1000))
        assert await refused(11) == 0
        listener.reconfigure(replace(listener.config, publish_rate_s=0.5))
        assert await refused(21) > 0
        listener.reconfigure(replace(listener.config, publish_rate_s=0))
        assert await refused(31) == 0


async def test_a_3_1_1_client_over_its_rate_is_not_read_from() -> None:
    config = ListenerConfig(port=0, publish_rate_s=200)
    async with fronting(config) as front:
        loop = asyncio.get_running_loop()
        client, _ = await front.ask_at("p", version=4)
        began_s = loop.time()
        total = 0
        for burst in range(4):
            for index in range(200):
                client.send(Publish("t", b"x", qos=1, packet_id=burst * 200 + index + 1))
            while total < (burst + 1) * 200:
                await client.receive(Puback)
                total += 1
        # nothing is lost, and 800 of them cannot have been taken sooner than this
        assert loop.time() - began_s >= 0.9
        assert "rate" not in front.broker.stats().drops


async def test_bytes_are_limited_too() -> None:
    config = ListenerConfig(port=0, publish_bytes_s=1000)
    async with fronting(config, clock=ManualClock()) as front:
        client, _ = await front.ask_at("p")
        codes = []
        for index in range(4):
            client.send(Publish("t", bytes(1500), qos=1, packet_id=index + 1))
            codes.append((await client.receive(Puback)).reason_code)
        assert codes == [0x10, 0x10, 0x97, 0x97]


async def test_a_subscribe_flood_is_refused_and_bounded(logs: list[EventDict]) -> None:
    broker = BrokerConfig(sys_interval_s=0, subscriptions_max=100)
    async with fronting(broker=broker) as front:
        client, _ = await front.ask_at("s")
        codes = []
        for start in range(0, 5000, 500):
            wanted = [f"t/{index}" for index in range(start, start + 500)]
            codes += await client.subscribe(*wanted)
        assert codes.count(2) == 100
        assert codes.count(0x97) == 4900
        assert front.broker.stats().subscriptions == 100


async def test_deep_and_long_topics_are_refused() -> None:
    broker = BrokerConfig(sys_interval_s=0, topic_levels_max=10, topic_bytes_max=100)
    async with fronting(broker=broker) as front:
        client, _ = await front.ask_at("s")
        deep, long = "/".join("x" * 11), "x" * 101
        assert await client.subscribe(deep, long, "x" * 100) == [0x8F, 0x8F, 2]
        for topic in (deep, long):
            client, _ = await front.ask_at("p")
            client.send(Publish(topic, b"", qos=1, packet_id=1))
            assert (await client.receive(Disconnect)).reason_code == 0x90


async def test_long_topics_used_once_do_not_fill_the_memory() -> None:
    async with fronting() as front:
        client, _ = await front.ask_at("p")
        for index in range(600):
            client.send(Publish(f"{index:06d}" + "x" * 60_000, b""))
            await asyncio.sleep(0)
        await client.settled()
        held = sum(map(len, front.broker._core.router.routes))
        assert held <= 17 * MIB


@pytest.mark.parametrize("qos", [0, 1])
async def test_a_storm_at_a_reader_that_never_reads(qos: int) -> None:
    broker = BrokerConfig(
        sys_interval_s=0,
        write_buffer_bytes=64 << 10,
        queue_bytes_max=1 * MIB,
        queue_full="drop_newest",
        slow_timeout_s=5,
    )
    clock = ManualClock()
    async with fronting(broker=broker, clock=clock) as front:
        reader, _ = await front.ask_at("reader")
        await reader.subscribe("t", qos=qos)
        reader.pause()
        writer, _ = await front.ask_at("writer")
        before = psutil.Process().memory_info().rss
        for index in range(60):
            await publish_burst(writer, index)
        assert psutil.Process().memory_info().rss - before < 40 * MIB
        stats = front.broker.stats()
        assert stats.queued_bytes <= 2 * MIB
        assert sum(stats.drops.values()) > 900
        if not qos:  # what cannot be queued fills the write buffer, and that is not for ever
            front.pass_time(clock, 6)
            front.pass_time(clock, 6)
            await front.until(lambda: front.broker.stats().connections == 1)
        assert await writer.settled() == []


async def publish_burst(writer: WireClient, index: int) -> None:
    """Publish 1 MB in 20 messages with QoS 1 and read their answers."""
    first = index * 20 + 1
    writer.send(*(Publish("t", bytes(50_000), qos=1, packet_id=first + i) for i in range(20)))
    for _ in range(20):
        await writer.receive(Puback)


async def test_thousands_of_half_open_connections_cost_little(tmp_path: Path) -> None:
    async with fronting(ListenerConfig(port=0, half_open_max=400)) as front:
        before = psutil.Process().memory_info().rss
        with ExitStack() as stack:
            for _ in range(20):
                # in threads: the listener may let them wait for a while
                dials = (asyncio.to_thread(dial, stack, front.port) for _ in range(250))
                for sock in await asyncio.gather(*dials):
                    sock.setblocking(False)
                assert front.broker.stats().connections <= 400
            _, connack = await front.ask_at("c")
            assert connack.reason_code == 0
        assert psutil.Process().memory_info().rss - before < 30 * MIB


async def test_bytes_that_are_no_mqtt_end_only_their_connection(logs: list[EventDict]) -> None:
    async with fronting(access=AccessConfig(anonymous="always")) as front:
        client, _ = await front.ask_at("good")
        await asyncio.gather(
            *(talk(front.port, bytes([index]) * 50) for index in range(256) if index >> 4 != 1)
        )
        assert await client.settled() == []
        assert front.broker.stats().connections == 1
    assert sum(warnings_of(logs).values()) <= 4  # one line a cause


async def test_many_packets_of_one_read_within_its_rate() -> None:
    config = ListenerConfig(port=0, publish_rate_s=1000)
    async with fronting(config) as front:
        subscribe = Subscribe(1, [Subscription("t", 0)])
        client, _ = await front.ask_at("p")
        client.send(subscribe, *(Publish("t", b"x") for _ in range(50)))
        await client.next()
        assert [getattr(await client.next(), "payload", None) for _ in range(50)] == [b"x"] * 50
