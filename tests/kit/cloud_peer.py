"""A scripted cloud for tests of the uplink: takes batches as ingest does, answers as told.

It speaks just enough MQTT 5 by itself, so that a test decides every answer: refuse the n-th batch,
withhold a PUBACK, say nothing, end the connection. What it accepted is kept as readings.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable
from typing import Self

from bridge.batch import Batch, Decoder
from bridge.columnar import Limits
from bridge.commands import CTL_PREFIX, Hello, Welcome, open_message, seal_message
from bridge.envelope import Mode
from bridge.errors import BatchError
from bridge.intervals import IntervalSet
from bridge.link_pacing import DOWN_PREFIX
from bridge.structured import StructuredDecoder
from bridge.structured_bodies import LINK_LIMITS
from mqtt.codec import encode
from mqtt.frames import parse_publishes, split
from mqtt.packets import Publish
from mqtt.primitives import encode_variable_integer
from tests.kit.processes import free_ports
from tests.kit.turns import all_accepted

__all__ = ["Answer", "CloudPeer"]

# what to answer to a batch: a reason code with its reason, or None for no answer at all
Answer = tuple[int, str] | None
Script = Callable[[Batch, int], Answer]  # (batch, how many came before on all connections)


class CloudPeer:
    """One endpoint.

    Attributes:
        accepted: Batches answered with 0x00, in order.
        rows: (seq, payload) of every accepted reading seen for the first time, in order.
        doubled: How many accepted readings had been accepted before.
        topics: The topic of each PUBLISH as sent, "" where an alias stood for it.
        publish_heads: Bytes of each PUBLISH packet that were not its payload.
        held: Seqs it has; a hello is answered with the highest.
        errors: Batches that could not be decoded.
        connack: What a CONNECT is answered.
        structured: Whether it knows the structured mode; older clouds do not.
    """

    def __init__(
        self,
        script: Script | None = None,
        *,
        receive_maximum: int = 0,
        topic_alias_maximum: int = 10,
        maximum_packet_size: int = 0,
        connack: int = 0,
        retry_after: str = "",
        tls: ssl.SSLContext | None = None,
        structured: bool = True,
    ) -> None:
        self.structured = structured
        self.script: Script = script or (lambda _batch, _n: (0, ""))
        self.accepted: list[Batch] = []
        self.rows: list[tuple[int, bytes]] = []
        self.doubled = 0
        self.tombstones: list[object] = []
        self.topics: list[str] = []
        self.publish_heads: list[int] = []
        self.errors: list[BatchError] = []
        self.batches = 0
        self.connections = 0
        self.keep = True  # rows and batches; else only how many readings there were
        self.readings = 0
        self.held = IntervalSet()
        self._properties = _connack_properties(
            receive_maximum, topic_alias_maximum, maximum_packet_size
        )
        self.connack = connack
        self._retry_after = retry_after
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._changes = asyncio.Event()
        (self.port,) = free_ports(1)  # nobody else's, also while this does not listen

    async def __aenter__(self) -> Self:
        await self.listen()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def listen(self) -> None:
        """Accept connections, on the port that is its own as long as it lives."""
        self._server = await asyncio.start_server(
            self._serve, "127.0.0.1", self.port, ssl=self._tls
        )

    async def close(self) -> None:
        """Stop listening and cut all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
            await all_accepted()
        self.cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """End every connection without a word."""
        for writer in self._writers:
            writer.transport.abort()

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    async def until(self, what: str, done: Callable[[], object]) -> None:
        """Wait until `done()` is true; looked at after every packet and connection."""
        try:
            async with asyncio.timeout(60):
                while not done():
                    self._changes.clear()
                    await self._changes.wait()
        except TimeoutError:
            raise AssertionError(f"{what}: not in time") from None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        self.connections += 1
        self._changes.set()
        try:
            with contextlib.suppress(OSError):
                await self._converse(reader, writer)
        finally:
            self._writers.discard(writer)
            self._tasks.discard(task)
            writer.close()
            self._changes.set()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        decoder: Decoder | None = None
        aliases: dict[int, str] = {}
        data = b""
        while chunk := await reader.read(65536):
            data += chunk
            answers = bytearray()
            while (found := split(data)) is not None and found[2] <= len(data):
                first, _, end = found
                packet, data = data[:end], data[end:]
                if first >> 4 == 1:  # CONNECT
                    properties = self._properties
                    if self.connack and self._retry_after:
                        properties = _user_property("retry-after", self._retry_after)
                    answers += _packet(0x20, bytes((0, self.connack)) + properties)
                elif first >> 4 == 12:
                    answers += b"\xd0\x00"
                elif first >> 4 == 3:
                    topic = self._topic(packet, aliases)
                    gateway = topic.rsplit("/", 1)[1]
                    if topic.startswith(CTL_PREFIX):
                        answers += self._told(packet, gateway)
                        continue
                    decoder = decoder or self._decoder(gateway)
                    answers += self._publish(packet, decoder)
            self._changes.set()
            if answers:
                writer.write(answers)

    def _decoder(self, gateway: str) -> Decoder:
        if not self.structured:
            return Decoder(gateway, limits=Limits())
        return Decoder(gateway, bodies={Mode.STRUCTURED: StructuredDecoder(LINK_LIMITS)})

    def _topic(self, packet: bytes, aliases: dict[int, str]) -> str:
        ((_, topic_bytes, _, properties, payload),) = parse_publishes(packet, 5)
        topic = topic_bytes.decode()
        self.topics.append(topic)
        self.publish_heads.append(len(packet) - len(payload))
        place = properties.find(b"\x23")
        if place >= 0:
            alias = int.from_bytes(properties[place + 1 : place + 3], "big")
            topic = aliases.setdefault(alias, topic)
        return topic

    def _told(self, packet: bytes, gateway: str) -> bytes:
        """Take what is no batch; a hello is answered with what is held of its journal."""
        ((_, _, packet_id, _, payload),) = parse_publishes(packet, 5)
        answer = _puback(packet_id, 0, "")
        message = open_message(payload)
        if isinstance(message, Hello):
            highest = max((last for _, last in self.held.ranges()), default=0)
            welcome = Publish(DOWN_PREFIX + gateway, seal_message(Welcome(message.epoch, highest)))
            answer += encode(welcome, 5)
        return answer

    def _publish(self, packet: bytes, decoder: Decoder) -> bytes:
        ((_, _, packet_id, _, payload),) = parse_publishes(packet, 5)
        try:
            batch = decoder.decode(payload)
        except BatchError as error:
            self.errors.append(error)
            return _puback(packet_id, 0x99, str(error))
        answer = self.script(batch, self.batches)
        self.batches += 1
        if answer is None:
            return b""
        if answer[0]:
            decoder.drop_context()
        else:
            self._accept(batch)
        return _puback(packet_id, *answer)

    def _accept(self, batch: Batch) -> None:
        self.readings += len(batch.readings)
        if not self.keep:
            return
        self.accepted.append(batch)
        self.tombstones += batch.tombstones
        for seq, payload in zip(batch.readings.seqs, batch.readings.payloads, strict=True):
            if seq in self.held:
                self.doubled += 1
            else:
                self.held.add(seq, seq)
                self.rows.append((seq, payload))


def _packet(first: int, body: bytes) -> bytes:
    return bytes((first,)) + encode_variable_integer(len(body)) + body


def _puback(packet_id: int, code: int, reason: str) -> bytes:
    head = packet_id.to_bytes(2, "big")
    if not code:
        return _packet(0x40, head)
    text = reason.encode()
    properties = b"\x1f" + len(text).to_bytes(2, "big") + text if text else b""
    return _packet(
        0x40, head + bytes((code,)) + encode_variable_integer(len(properties)) + properties
    )


def _connack_properties(receive_maximum: int, alias_maximum: int, packet_maximum: int) -> bytes:
    body = b""
    if receive_maximum:
        body += b"\x21" + receive_maximum.to_bytes(2, "big")
    if alias_maximum:
        body += b"\x22" + alias_maximum.to_bytes(2, "big")
    if packet_maximum:
        body += b"\x27" + packet_maximum.to_bytes(4, "big")
    return encode_variable_integer(len(body)) + body


def _user_property(name: str, value: str) -> bytes:
    pair = b"".join(len(each).to_bytes(2, "big") + each.encode() for each in (name, value))
    return encode_variable_integer(1 + len(pair)) + b"\x26" + pair
