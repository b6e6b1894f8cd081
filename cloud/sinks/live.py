"""The live sink: readings reappear on the cloud's broker as the messages they were.

Topic, payload, QoS, RETAIN and MQTT 5 properties are those of the device's publish; a reading
that is older than `live.historical_s`, or waited through an outage, carries the user property
`tidegate-historical` = 1 and is never retained, so a late backlog neither looks like news nor
replaces it. The stream keeps the cursors: after a crash the last moment may be published again.

Who does not want late readings subscribes below `$live/`: each reading that is not historical is
published there as well, as `$live/{topic}`, to whoever listens. A topic filter says it, so any
client of either version can, with shared subscriptions and sessions too; and `#` does not match a
topic that begins with `$`, so nobody gets a reading twice unasked. Nothing is retained there.

Invariant: nothing is published below `tidegate/` or `$`: what a device at an edge may publish
there must not be taken for the cloud's own word.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN, Readings
from cloud.config import LiveConfig
from cloud.sinks.contract import DecodedEntry
from cloud.stream.contract import Entry
from mqtt.broker.broker import Outgoing
from mqtt.properties import USER_PROPERTY, encode_property_block
from mqtt.server_messages import PropertyBlocks
from runtime.clock import Clock

__all__ = ["FRESH_PREFIX", "HISTORICAL_NAME", "LivePublisher", "LiveSink", "LiveStats"]

HISTORICAL_NAME = "tidegate-historical"
FRESH_PREFIX = "$live/"
_PUBLISH = 3
_HISTORICAL = encode_property_block({USER_PROPERTY: [(HISTORICAL_NAME, "1")]}, _PUBLISH)
_RESERVED = ("tidegate/", "$")


class LivePublisher(Protocol):
    """What the sink needs of `mqtt.broker.broker.Broker`."""

    async def publish_many(self, messages: Iterable[Outgoing]) -> int:
        """Publish messages; return how many had a subscriber."""
        ...

    def has_subscribers(self, topic_name: str) -> bool:
        """Return True when a message to `topic_name` would go to somebody."""
        ...


@dataclass(slots=True)
class LiveStats:
    """Counters since start, in readings."""

    published: int = 0  # with a subscriber
    historical: int = 0
    skipped: int = 0  # too old at start
    expired: int = 0  # their message expiry had passed
    reserved: int = 0  # under a topic only the cloud may use


class LiveSink:
    """Readings as messages.

    Args:
        broker: Where they are published.
        config: Ages.
        clock: Wall clock.
    """

    name = "live"
    linger_s = 0.0

    def __init__(self, broker: LivePublisher, config: LiveConfig, clock: Clock) -> None:
        self.stats = LiveStats()
        self._broker = broker
        self._config = config
        self._clock = clock
        self._blocks = PropertyBlocks()
        self._skip_before_us = 0

    async def open(self, stream_epoch: int) -> None:  # noqa: ARG002 - its cursors are the stream's
        """Set the age up to which entries are passed over."""
        self._skip_before_us = self._clock.wall_us() - _us(self._config.skip_older_s)

    async def cursors(self) -> Mapping[int, int] | None:
        """Return None: the stream keeps them."""
        return None

    async def write(
        self,
        entries: Sequence[DecodedEntry],
        cursors: Mapping[int, int],  # noqa: ARG002 - the stream keeps them
    ) -> None:
        """Publish every reading of `entries`, in order.

        Raises:
            MqttError: a topic or property block that no client may be sent.
        """
        self.stats.published += await self._broker.publish_many(self._messages(entries))

    async def pass_over(self, entry: Entry) -> None:
        """Do nothing: the stream keeps the cursors."""

    async def close(self) -> None:
        """Do nothing: the broker belongs to others."""

    def _messages(self, entries: Sequence[DecodedEntry]) -> Iterator[Outgoing]:
        """Make the messages one by one, as the broker takes them."""
        now_us = self._clock.wall_us()
        historical_before_us = now_us - _us(self._config.historical_s)
        for one in entries:
            readings = one.readings
            if one.entry.appended_us < self._skip_before_us:
                self.stats.skipped += len(readings)
                continue
            wanted = [self._wanted(topic) for topic, _ in readings.sources]
            fresh = [
                want is not None and self._broker.has_subscribers(FRESH_PREFIX + topic)
                for want, (topic, _) in zip(wanted, readings.sources, strict=True)
            ]
            if not any(wanted) and not any(fresh) and not _retained(readings):
                if None in wanted:
                    self.stats.reserved += sum(
                        wanted[source] is None for source in readings.source_index
                    )
                continue
            properties = readings.properties or [b""] * len(readings)
            for source, time_us, flags, payload, block in zip(
                readings.source_index,
                readings.times_us,
                readings.flags,
                readings.payloads,
                properties,
                strict=True,
            ):
                somebody = wanted[source]
                if somebody is None:
                    self.stats.reserved += 1
                elif somebody or fresh[source] or flags & FLAG_RETAIN:
                    historical = one.historical or time_us < historical_before_us
                    message = self._message(
                        readings.sources[source][0], payload, flags, block, historical,
                        now_us - time_us,
                    )  # fmt: skip
                    if message is None:
                        continue
                    if somebody or flags & FLAG_RETAIN:
                        yield message
                    if fresh[source] and not historical:
                        yield replace(
                            message, topic_name=FRESH_PREFIX + message.topic_name, retain=False
                        )

    def _wanted(self, topic: str) -> bool | None:
        """Return None for a reserved topic, else whether somebody listens to it."""
        if topic.startswith(_RESERVED):
            return None
        return self._broker.has_subscribers(topic)

    def _message(
        self, topic: str, payload: bytes, flags: int, block: bytes, historical: bool, age_us: int
    ) -> Outgoing | None:
        properties = b""
        expiry_s = None
        if block:
            known = self._blocks[block]
            properties = known.forward
            if known.expiry_s is not None:
                expiry_s = known.expiry_s - max(0, age_us // 1_000_000)
                if expiry_s <= 0:  # [MQTT-3.3.2-5]
                    self.stats.expired += 1
                    return None
        if historical:
            self.stats.historical += 1
            properties += _HISTORICAL
        retain = bool(flags & FLAG_RETAIN) and not historical
        return Outgoing(topic, payload, flags & FLAG_QOS_MASK, retain, properties, expiry_s)


def _retained(readings: Readings) -> bool:
    """Return whether one of them was published with RETAIN."""
    return any(flags & FLAG_RETAIN for flags in set(readings.flags))


def _us(seconds: float) -> int:
    return round(seconds * 1_000_000)
