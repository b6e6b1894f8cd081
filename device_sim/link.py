"""One connection of the fleet: an asyncio protocol around the project's MQTT client machine.

A link sends the readings of its device (or devices, when connections are shared) in the order they
are due, at most `window` of them unacknowledged. When the connection is lost, or the broker refuses
a reading for now, what is not acknowledged is kept and goes out first, in its old order, as a new
attempt. With `clean_start` off the session lives on and MQTT itself sends again.

Invariants: every reading taken from the feed is in `_inflight` or `_again` until it is settled;
the truth learns of a publish when it is handed to the transport, and of an acknowledgement when it
is received. Times are monotonic, in seconds.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Protocol, cast

from device_sim.feeds import Feed
from device_sim.latency import Latencies
from device_sim.sources import Message
from device_sim.stamps import stamp, stampable
from device_sim.truth import Truth, key_of
from mqtt.client import ClientConnection
from mqtt.client_session import (
    AWAIT_PUBCOMP,
    ClientSession,
    Connected,
    Disconnected,
    Published,
)
from mqtt.errors import LocalProtocolError
from mqtt.packets import Connect
from mqtt.properties import SESSION_EXPIRY_INTERVAL
from mqtt.reason_codes import ReasonCode

__all__ = ["Figures", "Link", "LinkHost", "LinkSettings"]

SESSION_EXPIRY_S = 86_400
RETRY_REFUSED_S = 0.5
BACKOFF_MIN_S = 0.1
BACKOFF_MAX_S = 10.0
_BATCH = 256  # publishes in one turn of the loop, so that no link holds up the others
# The broker cannot take it now, but may later; every other refusal is final.
_FOR_NOW = frozenset(
    (
        ReasonCode.UNSPECIFIED_ERROR,
        ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR,
        ReasonCode.QUOTA_EXCEEDED,
    )
)


@dataclass(slots=True)
class Figures:
    """Counts of a whole fleet."""

    connected: int = 0
    connects: int = 0
    connect_failures: int = 0
    connections_lost: int = 0
    readings: int = 0
    unsent: int = 0  # due when the run ended, never sent
    sent: int = 0
    sent_qos_0: int = 0
    acked: int = 0
    refused: int = 0
    given_up: int = 0  # refused for good, or never fit to be sent
    open: int = 0  # taken from the feed, QoS 1 and 2, not settled yet
    payload_bytes: int = 0


@dataclass(slots=True, frozen=True)
class LinkSettings:
    """What all links of a fleet have in common."""

    protocol_version: int
    clean_start: bool
    keep_alive_s: int
    window: int
    connect_timeout_s: float
    username: str | None
    password: bytes | None


class LinkHost(Protocol):
    """What a link asks of its fleet."""

    settings: LinkSettings
    figures: Figures
    feed: Feed
    truth: Truth
    due_latencies: Latencies
    wire_latencies: Latencies
    rng: Random
    now_s: Callable[[], float]
    wall_us: Callable[[], int]

    def arm(self, link: Link, when_s: float) -> None:
        """Call `link.on_timer` at a time."""
        ...

    def on_lost(self, link: Link, reason: str, *, was_connected: bool) -> None:
        """A link's connection is over, or could not be made."""
        ...


class _Sent:
    """A reading on its way: taken from the feed, not settled."""

    __slots__ = ("counter", "device", "due_s", "key", "message", "sent_s", "serial")

    def __init__(self, device: int, counter: int, serial: int, due_s: float, message: Message):
        self.device = device
        self.counter = counter
        self.serial = serial  # rises over the link's readings: the order to send again in
        self.due_s = due_s
        self.message = message
        self.key = 0
        self.sent_s = 0.0


class Link(asyncio.Protocol):
    """One connection, made again whenever it is lost."""

    __slots__ = (
        "_again",
        "_backoff_s",
        "_counters",
        "_held_until_s",
        "_host",
        "_inflight",
        "_machine",
        "_ready",
        "_serial",
        "_session",
        "_transport",
        "_why",
        "_writable",
        "attempt",
        "client_id",
        "index",
        "timer_s",
        "up",
    )

    def __init__(self, host: LinkHost, index: int, client_id: str) -> None:
        self._host = host
        self.index = index
        self.client_id = client_id
        self.attempt = 0
        self.up = False  # CONNECT was accepted
        self.timer_s: float | None = None  # when `on_timer` is due; the fleet's own note
        self._machine: ClientConnection | None = None  # None while there is no transport
        self._session: ClientSession | None = None  # kept only without clean start
        self._transport: asyncio.Transport | None = None
        self._writable = True
        self._ready: list[int] = []  # devices with readings to send, each at most once
        self._inflight: dict[int, _Sent] = {}  # by packet id
        self._again: list[_Sent] = []  # to be sent again, latest first
        self._held_until_s = 0.0  # nothing is sent before: the broker asked for a pause
        self._counters: dict[int, int] = {}  # next counter by device
        self._serial = 0
        self._backoff_s = 0.0
        self._why = ""

    # The fleet's side

    def offer(self, device: int) -> None:
        """Note that a device has a reading to send; `pump` sends it."""
        if device not in self._ready:
            self._ready.append(device)

    def pump(self) -> None:
        """Send what there is to send, as far as connection and window let."""
        machine = self._machine
        if machine is None or not self.up or not self._writable:
            return
        now_s = self._host.now_s()
        if self._held_until_s > now_s:
            return
        self._send_waiting(machine, now_s)
        self._flush()

    @property
    def idle(self) -> bool:
        """True when it has nothing to send and waits for nothing."""
        return not (self._ready or self._again or self._inflight)

    @property
    def open(self) -> bool:
        """True while it has a transport."""
        return self._transport is not None

    def cut(self) -> None:
        """Drop the connection without a good-bye, as a power cut at the device does."""
        if self._transport is not None:
            self._why = "cut by the simulation"
            self._backoff_s = 0.0
            self._transport.abort()

    def close(self) -> None:
        """Say good-bye and close."""
        if self._machine is not None and self._transport is not None:
            self._machine.disconnect()
            self._flush()
            self._transport.close()

    def abort(self) -> None:
        """Close whatever happens."""
        if self._transport is not None:
            self._transport.abort()

    def forget_waiting(self) -> None:
        """Send nothing that is only due; the feed has been stopped."""
        self._ready.clear()

    def next_backoff_s(self) -> float:
        """Return how long to wait before dialling again: decorrelated jitter."""
        rng = self._host.rng
        if not self._backoff_s:
            self._backoff_s = BACKOFF_MIN_S
            return rng.uniform(0.0, BACKOFF_MIN_S)
        self._backoff_s = min(BACKOFF_MAX_S, rng.uniform(BACKOFF_MIN_S, self._backoff_s * 3))
        return self._backoff_s

    def on_timer(self, now_s: float) -> None:
        """Do what is due: keep-alive, or the end of a pause."""
        machine = self._machine
        if machine is None:
            return
        machine.handle_timeout(now_s)
        self._take_events(machine, now_s)
        self._flush()
        self.pump()
        self._arm()

    # The transport's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        settings = self._host.settings
        self._transport = cast("asyncio.Transport", transport)
        self._writable = True
        self._why = ""
        if settings.clean_start:
            session = ClientSession(self.client_id)
        else:
            session = self._session = self._session or ClientSession(self.client_id)
        machine = self._machine = ClientConnection(
            session,
            inflight_max=settings.window,
            outbound_max=0xFFFF,
            topic_aliases_max=0,  # as devices do
            connect_timeout_s=settings.connect_timeout_s,
        )
        properties = {}
        if settings.protocol_version == 5 and not settings.clean_start:
            properties[SESSION_EXPIRY_INTERVAL] = SESSION_EXPIRY_S
        connect = Connect(
            client_id=self.client_id,
            protocol_version=settings.protocol_version,
            clean_start=settings.clean_start,
            keep_alive=settings.keep_alive_s,
            username=settings.username,
            password=settings.password,
            properties=properties,
        )
        machine.connect(connect, self._host.now_s())
        self._flush()
        self._arm()

    def data_received(self, data: bytes) -> None:
        machine = self._machine
        if machine is None:
            return
        now_s = self._host.now_s()
        machine.receive_data(data, now_s)
        self._take_events(machine, now_s)
        if self.up and self._writable and self._held_until_s <= now_s:
            self._send_waiting(machine, now_s)
        self._flush()

    def pause_writing(self) -> None:
        self._writable = False

    def resume_writing(self) -> None:
        self._writable = True
        self.pump()

    def connection_lost(self, error: Exception | None) -> None:
        machine, self._machine, self._transport = self._machine, None, None
        if machine is None:
            return
        machine.receive_eof(self._host.now_s())
        self._take_events(machine, self._host.now_s())
        was_up, self.up = self.up, False
        if self._host.settings.clean_start:
            self._keep_unacknowledged()
        if was_up:
            self._host.figures.connected -= 1
        reason = self._why or (str(error) if error else "closed by the broker")
        self._host.on_lost(self, reason, was_connected=was_up)

    # Sending

    def _send_waiting(self, machine: ClientConnection, now_s: float) -> None:
        again, ready, feed = self._again, self._ready, self._host.feed
        left = _BATCH
        while left and (again or ready) and machine.free_slots:
            left -= 1
            if again:
                self._publish(machine, again.pop(), now_s)
                continue
            device = ready[0]
            taken = feed.take(device)
            if taken is None:
                del ready[0]
                continue
            if len(ready) > 1:  # the other devices of a shared connection have their turn
                ready.append(ready.pop(0))
            self._publish(machine, self._sent(device, *taken), now_s)
        if not left:
            self._host.arm(self, now_s)

    def _sent(self, device: int, due_s: float, message: Message) -> _Sent:
        figures = self._host.figures
        counter = self._counters.get(device, 0)
        self._counters[device] = counter + 1
        self._serial += 1
        figures.readings += 1
        figures.open += 1
        return _Sent(device, counter, self._serial, due_s, message)

    def _publish(self, machine: ClientConnection, sent: _Sent, now_s: float) -> None:
        host, message = self._host, sent.message
        figures, truth = host.figures, host.truth
        payload = message.payload
        if truth.stamped and stampable(payload):
            payload = stamp(
                payload, truth.run, sent.device, sent.counter, self.attempt, host.wall_us()
            )
        properties = message.properties if host.settings.protocol_version == 5 else None
        try:
            packet_id = machine.publish(
                message.topic,
                payload,
                message.qos,
                retain=message.retain,
                properties=properties,
                now_s=now_s,
            )
        except LocalProtocolError as error:  # too large for this broker, or no valid topic
            figures.given_up += 1
            figures.open -= 1
            self._why = str(error)
            return
        sent.key = key_of(self.attempt, sent.counter)
        sent.sent_s = now_s
        truth.devices[sent.device].on_sent(sent.key)
        figures.sent += 1
        figures.payload_bytes += len(payload)
        if packet_id:
            self._inflight[packet_id] = sent
        else:
            figures.sent_qos_0 += 1
            figures.open -= 1

    def _flush(self) -> None:
        machine, transport = self._machine, self._transport
        if machine is None or transport is None or transport.is_closing():
            return
        data = machine.data_to_send()
        if data:
            transport.write(data)
        if machine.closed:
            transport.close()

    # Receiving

    def _take_events(self, machine: ClientConnection, now_s: float) -> None:
        for event in machine.events():
            if isinstance(event, Published):
                self._on_published(event, now_s)
            elif isinstance(event, Connected):
                self._on_connected(event)
            elif isinstance(event, Disconnected) and not self._why:
                self._why = event.detail

    def _on_published(self, event: Published, now_s: float) -> None:
        sent = self._inflight.pop(event.packet_id, None)
        if sent is None:
            return
        host = self._host
        figures = host.figures
        if event.reason_code < 0x80:
            host.truth.devices[sent.device].on_acked(sent.key)
            figures.acked += 1
            figures.open -= 1
            host.due_latencies.record(int((now_s - sent.due_s) * 1e6))
            host.wire_latencies.record(int((now_s - sent.sent_s) * 1e6))
            return
        figures.refused += 1
        if event.reason_code not in _FOR_NOW:
            figures.given_up += 1
            figures.open -= 1
            return
        if self._held_until_s <= now_s:  # the first of a series: one attempt for all of them
            self.attempt += 1
            self._held_until_s = now_s + RETRY_REFUSED_S
            self._arm()
        self._again.append(sent)
        self._again.sort(key=_latest_first)

    def _on_connected(self, event: Connected) -> None:
        figures = self._host.figures
        figures.connected += 1
        figures.connects += 1
        self.up = True
        self._backoff_s = 0.0
        self._held_until_s = 0.0
        if not self._host.settings.clean_start:
            self._note_redelivered(session_present=event.connack.session_present)
        self._arm()  # keep-alive begins

    def _note_redelivered(self, *, session_present: bool) -> None:
        """Tell the truth what MQTT sends again by itself, under the old stamps.

        QoS 2 within a kept session is the same delivery and may not be stored twice.
        """
        assert self._session is not None
        figures = self._host.figures
        for packet_id, entry in self._session.outbound.items():
            sent = self._inflight.get(packet_id)
            if sent is None or entry.state == AWAIT_PUBCOMP:
                continue
            figures.sent += 1
            if entry.qos == 1 or not session_present:
                self._host.truth.devices[sent.device].on_sent(sent.key)

    def _keep_unacknowledged(self) -> None:
        """Queue what was under way, to be sent first and in order as a new attempt."""
        self.attempt += 1
        if self._inflight:
            self._again += self._inflight.values()
            self._again.sort(key=_latest_first)
            self._inflight = {}

    def _arm(self) -> None:
        """Ask for a call at the next keep-alive, or at the end of a pause if that is sooner."""
        deadline_s = self._machine.next_deadline_s() if self._machine is not None else None
        held_s = self._held_until_s
        if held_s > self._host.now_s() and (deadline_s is None or held_s < deadline_s):
            deadline_s = held_s
        if deadline_s is not None:
            self._host.arm(self, deadline_s)


def _latest_first(sent: _Sent) -> int:
    return -sent.serial
