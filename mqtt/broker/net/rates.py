"""Token buckets, and what holds a connection to a rate of publishes.

A bucket may go into debt by what one read brings and takes nothing more until the debt is paid, so
that the average holds whatever the reads are. A client over its rate is told so in MQTT 5 (0x97 for
QoS 1 and 2, section 4.9; QoS 0 is dropped and counted) and cut off with 0x96 when it does not heed
it; 3.1.1 has no such answer, so it is not read from until the debt is paid.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

from mqtt.broker.seams import PublishRun
from mqtt.broker.settling import answer
from mqtt.reason_codes import ReasonCode
from mqtt.server_events import Arrivals, Event

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection
    from mqtt.broker.net.config import ListenerConfig

__all__ = ["BURST_S", "Meter", "TokenBucket"]

BURST_S: Final = 2.0
_RATE: Final = 128  # a reason for not reading, beside those of `mqtt.broker.connection`
_HEEDLESS_S: Final = 30.0  # worth of refused publishes after which an MQTT 5 client is cut off


class TokenBucket:
    """So many tokens a second, `BURST_S` seconds' worth at most.

    Args:
        rate_s: Tokens a second; 0 for no limit.
        now_s: Monotonic time.
    """

    __slots__ = ("_level", "_rate_s", "_size", "_when_s")

    def __init__(self, rate_s: float, now_s: float) -> None:
        self._rate_s = rate_s
        self._size = max(1.0, rate_s * BURST_S)
        self._level = self._size
        self._when_s = now_s

    def admits(self, now_s: float) -> bool:
        """Return True when something may be taken now."""
        if not self._rate_s:
            return True
        self._fill(now_s)
        return self._level > 0

    def take(self, tokens: float) -> None:
        """Take tokens; the bucket may go into debt."""
        if self._rate_s:
            self._level -= tokens

    def wait_s(self, now_s: float) -> float:
        """Return how long it takes until something may be taken."""
        if self.admits(now_s):
            return 0.0
        return max(0.001, (1.0 - self._level) / self._rate_s)

    def _fill(self, now_s: float) -> None:
        self._level = min(self._size, self._level + (now_s - self._when_s) * self._rate_s)
        self._when_s = now_s


class Meter:
    """Counts the publishes of one connection, by number and by bytes, and holds them to a rate.

    Args:
        config: Names the rates.
        now_s: Monotonic time; the buckets are full then.
    """

    __slots__ = ("_bytes", "_heedless", "_patience", "_publishes")

    def __init__(self, config: ListenerConfig, now_s: float) -> None:
        self._publishes = TokenBucket(config.publish_rate_s, now_s)
        self._bytes = TokenBucket(config.publish_bytes_s, now_s)
        self._patience = max(1000.0, _HEEDLESS_S * config.publish_rate_s)
        self._heedless = 0  # refused publishes since the last one that was taken

    def sift(self, connection: Connection, events: list[Event], size: int) -> list[Event]:
        """Charge the publishes of a read of `size` bytes; return what is not refused."""
        now_s = connection.core.clock.monotonic_s()
        allowed: list[Event] = []
        version = connection.machine.version
        for index, event in enumerate(events):
            count = _publishes_of(event)
            if count and version >= 5 and not self._admits(now_s):
                if not self._refuse(connection, event, count):
                    connection.forget([*allowed, *events[index + 1 :]])
                    return []
                continue
            if count:
                self._heedless = 0
                self._publishes.take(count)
                self._bytes.take(size)  # all of the read: what is beside publishes is little
                size = 0
            allowed.append(event)
        if version < 5 and not self._admits(now_s):
            self._wait(connection, now_s)
        return allowed

    def _admits(self, now_s: float) -> bool:
        return self._publishes.admits(now_s) and self._bytes.admits(now_s)

    def _refuse(self, connection: Connection, event: Event, count: int) -> bool:
        """Refuse publishes of an MQTT 5 client; when it goes on and on, cut it off: False."""
        core = connection.core
        machine = connection.machine
        session = connection.session
        core.policy.dropped("rate", count)
        self._heedless += count
        core.log.warning(
            "mqtt_rate_exceeded",
            client_id=session.client_id if session is not None else None,
            peer=connection.peer(),
        )
        if isinstance(event, PublishRun):
            _, flags, ids, _ = event.token
            if flags & 3:
                answer(machine, flags & 3, ids, ReasonCode.QUOTA_EXCEEDED)
        elif isinstance(event, Arrivals):
            for message, packet_id in zip(event.messages, event.packet_ids, strict=True):
                if packet_id:
                    ids = [packet_id.to_bytes(2, "big")]
                    answer(machine, message.qos, ids, ReasonCode.QUOTA_EXCEEDED)
        if self._heedless > self._patience:
            connection.disconnect(ReasonCode.MESSAGE_RATE_TOO_HIGH, "publishes too fast")
        return not connection.closed

    def _wait(self, connection: Connection, now_s: float) -> None:
        """Read nothing until the debt is paid."""
        if connection.closed or connection.paused & _RATE:
            return
        connection.pause(_RATE)
        wait_s = max(self._publishes.wait_s(now_s), self._bytes.wait_s(now_s))
        asyncio.get_running_loop().call_later(wait_s, connection.resume, _RATE)


def _publishes_of(event: Event) -> int:
    """Return how many publishes an event stands for."""
    if isinstance(event, PublishRun):
        return event.count
    return len(event.messages) if isinstance(event, Arrivals) else 0
