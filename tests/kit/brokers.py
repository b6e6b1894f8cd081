"""Our broker in a test's own loop, a client that speaks raw packets, and captures that obey.

async with serving(capture=capture) as broker:
    client = await broker.connect("device-1", version=5)
    client.send(Publish("t", b"x", qos=1, packet_id=1))
    assert await client.receive(Puback) == Puback(1)
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from mqtt.broker.broker import Broker
from mqtt.broker.changes import Change, StoredState
from mqtt.broker.config import BrokerConfig
from mqtt.broker.seams import PublishRun
from mqtt.codec import Decoder, encode
from mqtt.errors import MqttError
from mqtt.packets import (
    Connack,
    Connect,
    Packet,
    Pingreq,
    Pingresp,
    Suback,
    Subscribe,
    Subscription,
    Will,
)
from mqtt.properties import Properties
from runtime.clock import ManualClock

__all__ = ["ManualCapture", "ManualStore", "Served", "WireClient", "serving"]

P = TypeVar("P", bound=Packet)

TIMEOUT_S = 60.0  # a hang: all that is waited for comes as soon as the machine has time


class WireClient:
    """A connection on which a test says every packet itself."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int
    ) -> None:
        self.version = version
        self._reader = reader
        self._writer = writer
        self._decoder = Decoder(version, maximum_packet_size=1 << 28, role="client")
        self._received: list[Packet] = []

    @classmethod
    async def open(cls, port: int, version: int = 5) -> WireClient:
        """Open a connection and say nothing yet."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        return cls(reader, writer, version)

    def send(self, *packets: Packet) -> None:
        """Send packets in one write."""
        self.send_bytes(b"".join(encode(packet, self.version) for packet in packets))

    def send_bytes(self, data: bytes) -> None:
        """Send bytes, whatever they are."""
        self._writer.write(data)

    async def next(self) -> Packet | None:
        """Return the next packet; None when the server has closed."""
        while not self._received:
            async with asyncio.timeout(TIMEOUT_S):
                try:
                    data = await self._reader.read(1 << 20)
                except ConnectionError:
                    return None
            if not data:
                return None
            for packet in self._decoder.receive_data(data):
                assert not isinstance(packet, MqttError), packet
                self._received.append(packet)
        return self._received.pop(0)

    async def receive(self, kind: type[P]) -> P:
        """Return the next packet, which must be of one kind."""
        packet = await self.next()
        assert isinstance(packet, kind), packet
        return packet

    async def closed(self) -> bool:
        """Return True when the server has closed and sent nothing more before."""
        packet = await self.next()
        assert packet is None, packet
        return True

    async def settled(self) -> list[Packet]:
        """Return what the server has sent until it answers a PINGREQ sent now."""
        self.send(Pingreq())
        packets: list[Packet] = []
        while True:
            packet = await self.next()
            assert packet is not None, packets
            if isinstance(packet, Pingresp):
                return packets
            packets.append(packet)

    async def subscribe(
        self, *subscriptions: Subscription | str, properties: Properties | None = None, qos: int = 2
    ) -> list[int]:
        """Subscribe and return the reason codes."""
        wanted = [Subscription(s, qos) if isinstance(s, str) else s for s in subscriptions]
        self.send(Subscribe(77, wanted, properties or {}))
        suback = await self.receive(Suback)
        assert suback.packet_id == 77
        return suback.reason_codes

    def pause(self) -> None:
        """Read nothing more from the socket: a client that hangs."""
        self._writer.transport.pause_reading()  # type: ignore[attr-defined] # StreamWriter's own

    def abort(self) -> None:
        """Vanish without a word."""
        self._writer.transport.abort()

    async def close(self) -> None:
        """Close the connection."""
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except OSError:  # reset; or, over TLS, more came behind our goodbye
            return


class Served:
    """A broker that is listening, and what a test does with it."""

    def __init__(self, broker: Broker, port: int) -> None:
        self.broker = broker
        self.port = port
        self.clients: list[Any] = []  # closed at the end: whatever has `close()`

    async def until(self, check: Callable[[], bool]) -> None:
        """Return when the broker has got so far that `check` holds."""
        async with asyncio.timeout(TIMEOUT_S):
            while not check():
                await asyncio.sleep(0.001)

    async def gone(self, client: WireClient) -> None:
        """Make a client vanish, and return when the broker knows."""
        count = self.broker.stats().connections
        client.abort()
        await self.until(lambda: self.broker.stats().connections < count)

    def pass_time(self, clock: ManualClock, seconds: float) -> None:
        """Let time pass for the broker."""
        clock.advance(seconds)
        self.broker._core.tick()

    async def open(self, version: int = 5) -> WireClient:
        """Open a connection and say nothing yet."""
        client = await WireClient.open(self.port, version)
        self.clients.append(client)
        return client

    async def connect(
        self,
        client_id: str = "",
        *,
        version: int = 5,
        clean_start: bool = True,
        keep_alive: int = 0,
        will: Will | None = None,
        properties: Properties | None = None,
        session_present: bool = False,
    ) -> WireClient:
        """Connect, expecting to be let in."""
        client, connack = await self.ask(
            client_id,
            version=version,
            clean_start=clean_start,
            keep_alive=keep_alive,
            will=will,
            properties=properties,
        )
        assert (connack.reason_code, connack.session_present) == (0, session_present), connack
        return client

    async def ask(self, client_id: str = "", **fields: Any) -> tuple[WireClient, Connack]:
        """Send a CONNECT and return the answer."""
        version = fields.pop("version", 5)
        client = await self.open(version)
        properties = fields.pop("properties", None) or {}
        client.send(Connect(client_id, protocol_version=version, properties=properties, **fields))
        return client, await client.receive(Connack)


@asynccontextmanager
async def serving(
    config: BrokerConfig | None = None, *, stop: bool = True, **parts: Any
) -> AsyncIterator[Served]:
    """Run a broker on a free port.

    Its $SYS topics are off and CONNECT has all the time, unless the config says otherwise: a
    connection that it closes is not closed by that timer.
    """
    broker = Broker(config or BrokerConfig(sys_interval_s=0, connect_timeout_s=3600), **parts)
    await broker.start()
    served = Served(broker, await broker.listen("127.0.0.1", 0))
    try:
        yield served
    finally:
        for client in served.clients:
            await client.close()
        if stop:
            await broker.stop()


class ManualCapture:
    """Captures topics that begin with `devices/` in lane 1, `urgent/` in lane 0.

    `settle` makes what was taken durable; `refusal` refuses what comes; `full` saturates.
    """

    def __init__(self, *, exclusive: bool = False, automatic: bool = False) -> None:
        self.runs: list[PublishRun] = []  # taken and not settled
        self.taken: list[PublishRun] = []  # ever
        self.asked: list[str] = []  # topics that routes were made for
        self.refusal = 0
        self.full = False
        self._exclusive = exclusive
        self._automatic = automatic
        self._relieved: list[Callable[[], None]] = []
        self._news = asyncio.Event()

    @property
    def durability(self) -> str:
        """Return a word of the test's."""
        return "by-hand"

    def lane(self, topic_name: str) -> int | None:
        """Return the lane of a topic."""
        self.asked.append(topic_name)
        if topic_name.startswith("urgent/"):
            return 0
        return 1 if topic_name.startswith("devices/") else None

    def exclusive(self, lane: int) -> bool:
        """Return what the test wants."""
        return self._exclusive

    def take(self, run: PublishRun) -> int:
        """Take a run, unless told to refuse."""
        if self.refusal:
            return self.refusal
        self.runs.append(run)
        self.taken.append(run)
        self._news.set()
        if self._automatic:
            asyncio.get_running_loop().call_soon(self.settle)
        return 0

    def saturated(self) -> bool:
        """Return what the test wants."""
        return self.full

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Keep the callback for `relieve`."""
        self._relieved.append(callback)

    def settle(self, codes: Any = 0) -> None:
        """Settle everything that was taken."""
        runs, self.runs = self.runs, []
        for run in runs:
            run.settled(run, codes)

    def relieve(self) -> None:
        """Take again, and tell who waits."""
        self.refusal, self.full = 0, False
        callbacks, self._relieved = self._relieved, []
        for callback in callbacks:
            callback()

    async def wait_for(self, count: int) -> None:
        """Return when `count` publishes have been taken in all."""
        async with asyncio.timeout(TIMEOUT_S):
            while sum(run.count for run in self.taken) < count:
                self._news.clear()
                await self._news.wait()


class ManualStore:
    """A session store that is durable when the test says so."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.salvages = 0
        self._waiting: list[Callable[[], None]] = []
        self.full = False
        self._relieved: list[Callable[[], None]] = []
        self._at_once = False

    @asynccontextmanager
    async def committing(self) -> AsyncIterator[None]:
        """Be durable at once while entered."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    async def open(self) -> StoredState:
        """Return nothing."""
        return StoredState()

    def put(self, change: Change) -> None:
        """Remember a change."""
        self.changes.append(change)

    def when_durable(self, callback: Callable[[], None]) -> None:
        """Keep the callback for `commit`."""
        self._waiting.append(callback)
        if self._at_once:
            asyncio.get_running_loop().call_soon(self.commit)

    def commit(self) -> None:
        """Make everything durable."""
        waiting, self._waiting = self._waiting, []
        for callback in waiting:
            callback()

    def saturated(self) -> bool:
        """Return what the test wants."""
        return self.full

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Keep the callback for `relieve`."""
        self._relieved.append(callback)

    def relieve(self) -> None:
        """Be saturated no more."""
        self.full = False
        relieved, self._relieved = self._relieved, []
        for callback in relieved:
            callback()

    async def close(self) -> None:
        """Make everything durable."""
        self.commit()
