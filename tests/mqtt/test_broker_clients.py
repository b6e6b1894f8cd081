"""Independent clients against our broker: paho-mqtt, aiomqtt, mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiomqtt
import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions

from tests.kit.brokers import TIMEOUT_S, ManualCapture, Served, serving
from tests.kit.programs import program

VERSIONS = pytest.mark.parametrize(
    "version", [MQTTProtocolVersion.MQTTv311, MQTTProtocolVersion.MQTTv5]
)


class PahoClient:
    """A paho client on its own thread, its callbacks turned into things to wait for."""

    def __init__(self, client_id: str, version: MQTTProtocolVersion, clean: bool = True) -> None:
        self.messages: asyncio.Queue[paho.MQTTMessage] = asyncio.Queue()
        self.connected: asyncio.Queue[bool] = asyncio.Queue()
        self._events: asyncio.Queue[int] = asyncio.Queue()
        five = version == MQTTProtocolVersion.MQTTv5
        self.client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=version,
            clean_session=None if five else clean,
        )
        self._clean = clean
        self._five = five
        # none of them knows self: a cycle would leave the client's sockets to the collector
        put = asyncio.get_running_loop().call_soon_threadsafe
        messages, connected, events = self.messages, self.connected, self._events
        self.client.on_message = lambda _c, _u, message: put(messages.put_nowait, message)
        self.client.on_connect = lambda _c, _u, flags, reason, _p: put(
            connected.put_nowait, flags.session_present
        )
        self.client.on_publish = lambda _c, _u, mid, _r, _p: put(events.put_nowait, mid)
        self.client.on_subscribe = lambda _c, _u, mid, _r, _p: put(events.put_nowait, mid)

    async def connect(self, port: int) -> bool:
        """Connect; return whether the session was present."""
        options = {}
        if self._five:
            properties = Properties(PacketTypes.CONNECT)
            properties.SessionExpiryInterval = 0 if self._clean else 3600
            options = {"clean_start": self._clean, "properties": properties}
        await asyncio.to_thread(self.client.connect, "127.0.0.1", port, 60, **options)
        self.client.loop_start()
        return await asyncio.wait_for(self.connected.get(), TIMEOUT_S)

    async def subscribe(self, topic_filter: str, qos: int) -> None:
        """Subscribe and wait for the SUBACK."""
        if self._five:
            _, mid = self.client.subscribe(topic_filter, options=SubscribeOptions(qos=qos))
        else:
            _, mid = self.client.subscribe(topic_filter, qos)
        await self._acknowledged({mid})

    async def publish(self, topic: str, *payloads: bytes, qos: int, retain: bool = False) -> None:
        """Publish and wait until all are acknowledged."""
        mids = {self.client.publish(topic, payload, qos, retain).mid for payload in payloads}
        await self._acknowledged(mids)

    async def _acknowledged(self, mids: set[int]) -> None:
        async with asyncio.timeout(TIMEOUT_S):
            while mids:
                mids.discard(await self._events.get())

    async def next(self) -> paho.MQTTMessage:
        """Return the next message."""
        return await asyncio.wait_for(self.messages.get(), TIMEOUT_S)

    async def close(self) -> None:
        """Disconnect and end the thread."""
        self.client.disconnect()
        await asyncio.to_thread(self.client.loop_stop)


@asynccontextmanager
async def paho_client(
    broker: Served, client_id: str, version: MQTTProtocolVersion, *, clean: bool = True
) -> AsyncIterator[PahoClient]:
    """Connect a paho client while entered."""
    client = PahoClient(client_id, version, clean)
    client.present = await client.connect(broker.port)  # type: ignore[attr-defined]
    try:
        yield client
    finally:
        await client.close()


@VERSIONS
async def test_paho_messages_of_every_qos(version: MQTTProtocolVersion) -> None:
    async with serving() as broker, paho_client(broker, "one", version) as client:
        await client.subscribe("t/#", 2)
        for qos in (0, 1, 2):
            payloads = [b"%d-%d" % (qos, i) for i in range(50)]
            await client.publish("t/x", *payloads, qos=qos)
            got = [await client.next() for _ in payloads]
            assert [m.payload for m in got] == payloads
            assert {m.qos for m in got} == {qos}


@VERSIONS
async def test_paho_retained_and_will(version: MQTTProtocolVersion) -> None:
    async with serving() as broker, paho_client(broker, "watcher", version) as watcher:
        mortal = PahoClient("mortal", version)
        mortal.client.will_set("will", b"gone", 1, retain=True)
        await mortal.connect(broker.port)
        await watcher.subscribe("will", 1)
        await mortal.publish("kept", b"old", qos=1, retain=True)
        await mortal.publish("kept", b"new", qos=1, retain=True)
        socket = mortal.client.socket()
        assert socket is not None
        mortal.client.loop_stop()
        socket.close()
        assert (await watcher.next()).payload == b"gone"
        await watcher.subscribe("kept", 1)
        message = await watcher.next()
        assert (message.payload, message.retain) == (b"new", True)


@VERSIONS
async def test_paho_session_is_kept_while_away(version: MQTTProtocolVersion) -> None:
    async with serving() as broker, paho_client(broker, "writer", version) as writer:
        async with paho_client(broker, "reader", version, clean=False) as reader:
            assert not reader.present  # type: ignore[attr-defined]
            await reader.subscribe("t", 2)
        await broker.until(lambda: broker.broker.stats().connections == 1)
        await writer.publish("t", b"1", b"2", qos=1)
        await writer.publish("t", b"3", qos=2)
        async with paho_client(broker, "reader", version, clean=False) as reader:
            assert reader.present  # type: ignore[attr-defined]
            assert [(await reader.next()).payload for _ in range(3)] == [b"1", b"2", b"3"]


@VERSIONS
async def test_paho_publishes_into_a_capture(version: MQTTProtocolVersion) -> None:
    capture = ManualCapture(automatic=True)
    async with serving(capture=capture) as broker:
        async with paho_client(broker, "device", version) as client:
            for qos in (0, 1, 2):
                await client.publish("devices/d/t", *[b"x"] * 100, qos=qos)
        assert sum(run.count for run in capture.taken) == 300


async def test_paho_v5_properties_and_shared_subscriptions() -> None:
    five = MQTTProtocolVersion.MQTTv5
    async with (
        serving() as broker,
        paho_client(broker, "a", five) as a,
        paho_client(broker, "b", five) as b,
    ):
        for client in (a, b):
            await client.subscribe("$share/g/t", 1)
        properties = Properties(PacketTypes.PUBLISH)
        properties.UserProperty = [("k", "v")]
        properties.ContentType = "text/plain"
        properties.CorrelationData = b"\x00\x01"
        for _ in range(4):
            a.client.publish("t", b"x", 1, properties=properties)
        for client in (a, b):
            for _ in range(2):
                message = await client.next()
                assert message.properties is not None
                assert message.properties.UserProperty == [("k", "v")]
                assert message.properties.CorrelationData == b"\x00\x01"


@pytest.mark.parametrize("version", [aiomqtt.ProtocolVersion.V311, aiomqtt.ProtocolVersion.V5])
async def test_aiomqtt_round_trip(version: aiomqtt.ProtocolVersion) -> None:
    async with (
        serving() as broker,
        aiomqtt.Client("127.0.0.1", broker.port, protocol=version) as client,
        asyncio.timeout(TIMEOUT_S),
    ):
        await client.subscribe("t/+", qos=2)
        for qos in (0, 1, 2):
            await client.publish(f"t/{qos}", f"payload-{qos}", qos=qos)
        got = []
        async for message in client.messages:
            got.append((str(message.topic), message.payload))
            if len(got) == 3:
                break
        assert got == [(f"t/{qos}", b"payload-%d" % qos) for qos in (0, 1, 2)]


async def run(name: str, *arguments: str) -> asyncio.subprocess.Process:
    """Start one of mosquitto's clients."""
    path = program(name, "mosquitto-clients")
    return await asyncio.create_subprocess_exec(
        path, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )


@pytest.mark.parametrize("version", ["mqttv311", "mqttv5"])
@pytest.mark.parametrize("qos", ["0", "1", "2"])
async def test_mosquitto_clients(version: str, qos: str) -> None:
    async with serving() as broker, asyncio.timeout(TIMEOUT_S):
        where = ("-h", "127.0.0.1", "-p", str(broker.port), "-V", version, "-q", qos)
        reader = await run("mosquitto_sub", *where, "-t", "t/#", "-C", "3", "-F", "%t %q %p")
        await broker.until(lambda: broker.broker.stats().subscriptions == 1)
        writer = await run("mosquitto_pub", *where, "-t", "t/x", "-m", "hello", "--repeat", "3")
        said, _ = await writer.communicate()
        assert (writer.returncode, said) == (0, b"")
        heard, _ = await reader.communicate()
        assert heard.decode().splitlines() == [f"t/x {qos} hello"] * 3


async def test_mosquitto_sub_gets_a_retained_message_and_leaves() -> None:
    async with serving() as broker, asyncio.timeout(TIMEOUT_S):
        where = ("-h", "127.0.0.1", "-p", str(broker.port))
        writer = await run("mosquitto_pub", *where, "-t", "t", "-m", "kept", "-r", "-q", "1")
        await writer.communicate()
        reader = await run("mosquitto_sub", *where, "-t", "t", "-C", "1", "-W", "60")
        heard, _ = await reader.communicate()
        assert heard == b"kept\n"
