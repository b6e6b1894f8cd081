"""An asyncio driver for the client machine: sockets, timers and futures, no protocol.

`Client` is the `asyncio.Protocol` of one connection; `mqtt.client` decides everything. It runs on
any event loop, also on uvloop. TCP, TLS (`ssl_context`) and Unix sockets (`path`).
Invariants: every future handed out is settled when the connection is over; received messages not
yet taken stay under `messages_max` plus one read of the socket, because reading pauses there.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, Final, Self, TypeAlias, cast

from mqtt.client import ClientConnection, State
from mqtt.client_session import (
    ClientSession,
    Connected,
    Disconnected,
    Published,
    Subscribed,
    Unsubscribed,
)
from mqtt.errors import LocalProtocolError, MqttError
from mqtt.packets import Auth, Connack, Connect, Publish, Subscription
from mqtt.properties import Properties
from mqtt.reason_codes import ReasonCode

__all__ = ["Client", "ClientOptions"]

_CLOSE_LINGER_S: Final = 5.0  # for the last bytes to leave, before the transport is aborted

OnMessage: TypeAlias = Callable[["Client", Publish], None]
OnAuth: TypeAlias = Callable[["Client", Auth], None]
OnPublished: TypeAlias = Callable[[Published], None]


@dataclass(slots=True, frozen=True)
class ClientOptions:
    """What a client does its own way; see `ClientConnection` for the first six."""

    auto_ack: bool = True
    inflight_max: int = 0xFFFF
    outbound_max: int = 1024
    topic_aliases_max: int = 256
    connect_timeout_s: float = 30.0  # for the transport, and again for CONNACK
    ping_timeout_s: float = 20.0
    messages_max: int = 1000  # received and not taken; reading pauses there


_DEFAULT_OPTIONS: Final = ClientOptions()


class Client(asyncio.Protocol):
    """One MQTT client connection; made by `Client.connect`.

    Messages go to `on_message` as they come, or wait to be taken by `messages()`.
    """

    __slots__ = (
        "_connected",
        "_flush_is_due",
        "_loop",
        "_lost",
        "_machine",
        "_messages",
        "_messages_max",
        "_on_auth",
        "_on_message",
        "_progress",
        "_reading",
        "_timer",
        "_transport",
        "_waiters",
        "_writable",
        "closed",
    )

    def __init__(
        self,
        session: ClientSession | None,
        options: ClientOptions,
        on_message: OnMessage | None,
        on_auth: OnAuth | None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._machine = ClientConnection(
            session,
            auto_ack=options.auto_ack,
            inflight_max=options.inflight_max,
            outbound_max=options.outbound_max,
            topic_aliases_max=options.topic_aliases_max,
            connect_timeout_s=options.connect_timeout_s,
            ping_timeout_s=options.ping_timeout_s,
        )
        self._on_message = on_message
        self._on_auth = on_auth
        self._messages: deque[Publish] | None = None  # only while there are any
        self._messages_max = options.messages_max
        self._transport: asyncio.Transport | None = None  # None until the socket is connected
        self._connected: asyncio.Future[Connack] = self._loop.create_future()
        self.closed: asyncio.Future[Disconnected] = self._loop.create_future()
        """Done when the connection is over; its result says why. Never an exception."""
        # By packet id: the future or callback to tell the outcome.
        self._waiters: dict[int, asyncio.Future[Any] | OnPublished] = {}
        self._lost: asyncio.Future[None] | None = None  # only while `disconnect` waits for it
        self._progress: asyncio.Future[None] | None = None  # done at the next change that matters
        self._timer: asyncio.TimerHandle | None = None
        self._flush_is_due = False  # a call of _flush is scheduled
        self._reading = True
        self._writable = True

    @classmethod
    async def connect(
        cls,
        host: str,
        port: int,
        packet: Connect,
        *,
        session: ClientSession | None = None,
        options: ClientOptions = _DEFAULT_OPTIONS,
        on_message: OnMessage | None = None,
        on_auth: OnAuth | None = None,
        ssl_context: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
    ) -> Client:
        """Connect over TCP or TLS, and return once the server has accepted.

        Args:
            host: Name or address of the server.
            port: Its port.
            packet: The CONNECT to send.
            session: What an earlier connection left; unsettled messages in it are sent again.
            options: Limits and time-outs.
            on_message: Called with each message, in order; without it `messages()` gives them.
            on_auth: Called with each AUTH of the server; answers with `authenticate`.
            ssl_context: TLS with this context.
            server_hostname: The name to check in the certificate, when it is not `host`.

        Raises:
            OSError: no transport (also `ssl.SSLError`, `TimeoutError`).
            MqttError: the server refused or did not answer; the reason code says why.
            LocalProtocolError: `packet` is not allowed.
        """
        client = cls(session, options, on_message, on_auth)
        async with asyncio.timeout(options.connect_timeout_s):
            await client._loop.create_connection(
                lambda: client, host, port, ssl=ssl_context, server_hostname=server_hostname
            )
        await client._start(packet)
        return client

    @classmethod
    async def connect_unix(
        cls,
        path: str,
        packet: Connect,
        *,
        session: ClientSession | None = None,
        options: ClientOptions = _DEFAULT_OPTIONS,
        on_message: OnMessage | None = None,
        on_auth: OnAuth | None = None,
    ) -> Client:
        """Connect over the Unix socket at `path`; otherwise as `connect`."""
        client = cls(session, options, on_message, on_auth)
        async with asyncio.timeout(options.connect_timeout_s):
            await client._loop.create_unix_connection(lambda: client, path)
        await client._start(packet)
        return client

    @property
    def connack(self) -> Connack:
        """The server's answer to CONNECT: session present, assigned client id, limits."""
        connack = self._machine.connack
        assert connack is not None
        return connack

    @property
    def session(self) -> ClientSession:
        """What to give to the next connection so that nothing unsettled is lost."""
        return self._machine.session

    @property
    def free_slots(self) -> int:
        """How many more messages of QoS 1 or 2 would be sent at once; 0 while writing is paused."""
        return self._machine.free_slots if self._writable else 0

    @property
    def writable(self) -> bool:
        """Whether the socket's buffer has room: QoS 0 messages are refused while it has none."""
        return self._writable

    async def publish(
        self,
        topic_name: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
    ) -> Published | None:
        """Publish and wait: for QoS 0 until it is written, otherwise until the server has settled.

        Returns:
            The server's answer, whose reason code may be a refusal (>= 0x80); None for QoS 0.

        Raises:
            LocalProtocolError: as `ClientConnection.publish`.
            MqttError: the connection ended first. A message of QoS 1 or 2 is then still in
                `session`, and goes out again if the session is connected again.
        """
        await self.ready(qos)
        waiter: asyncio.Future[Published] = self._loop.create_future()
        packet_id = self.publish_nowait(
            topic_name, payload, qos, retain=retain, properties=properties
        )
        if not packet_id:
            return None
        self._waiters[packet_id] = waiter
        return await waiter

    async def ready(self, qos: int = 1) -> None:
        """Return when a message of this QoS can be sent at once.

        Raises:
            LocalProtocolError: the connection is over.
        """
        while True:
            self._check_open()
            if self._writable and (not qos or self._machine.free_slots):
                return
            await self._next_change()

    def publish_nowait(
        self,
        topic_name: str,
        payload: bytes,
        qos: int = 0,
        *,
        retain: bool = False,
        properties: Properties | None = None,
        on_published: OnPublished | None = None,
    ) -> int:
        """Publish without waiting; return the packet id, 0 for QoS 0.

        What is published before the loop runs again leaves in one write. `on_published` is called
        with the server's answer, and not at all when the connection ends first.

        Raises:
            LocalProtocolError: as `ClientConnection.publish`; QoS 0 while not `writable` (0x97).
        """
        if not qos and not self._writable:
            raise LocalProtocolError(
                "the socket's buffer is full", reason_code=ReasonCode.QUOTA_EXCEEDED
            )
        packet_id = self._machine.publish(
            topic_name,
            payload,
            qos,
            retain=retain,
            properties=properties,
            now_s=self._loop.time(),
        )
        if packet_id and on_published is not None:
            self._waiters[packet_id] = on_published
        self._flush_soon()
        return packet_id

    async def subscribe(
        self, *subscriptions: Subscription, properties: Properties | None = None
    ) -> list[int]:
        """Subscribe; return one reason code a subscription: the QoS granted, or >= 0x80."""
        self._check_open()
        packet_id = self._machine.subscribe(subscriptions, properties, self._loop.time())
        answer: Subscribed = await self._answer(packet_id)
        return answer.reason_codes

    async def unsubscribe(
        self, *topic_filters: str, properties: Properties | None = None
    ) -> list[int]:
        """Unsubscribe; return one reason code a topic filter, none in MQTT 3.1.1."""
        self._check_open()
        packet_id = self._machine.unsubscribe(topic_filters, properties, self._loop.time())
        answer: Unsubscribed = await self._answer(packet_id)
        return answer.reason_codes

    def ack(self, publish: Publish, reason_code: int = 0) -> bool:
        """Answer a message when `auto_ack` is off; see `ClientConnection.ack`."""
        wanted = self._machine.ack(publish, reason_code)
        self._flush_soon()
        return wanted

    def authenticate(self, auth: Auth) -> None:
        """Send a step of the enhanced authentication."""
        self._machine.authenticate(auth)
        self._flush()

    async def messages(self) -> AsyncIterator[Publish]:
        """Yield received messages in order; end after the last one once `disconnect` was called.

        Raises:
            MqttError: the connection ended otherwise, and every message before that was yielded.
        """
        while True:
            messages = self._messages
            if messages:
                message = messages.popleft()
                if not self._reading and len(messages) <= self._messages_max // 2:
                    self.resume_reading()
                yield message
            elif self.closed.done():
                end = self.closed.result()
                if end.by_peer or end.error is not None:
                    raise _failure(end)
                return
            else:
                await self._next_change()

    def pause_reading(self) -> None:
        """Read no more from the socket for now; for the use of `on_message`.

        What is read already still comes. The keep alive goes on.
        """
        if self._reading and self._transport is not None:
            self._reading = False
            self._machine.pause_receiving()
            self._transport.pause_reading()
            self._arm()

    def resume_reading(self) -> None:
        """Read again."""
        if not self._reading:
            self._reading = True
            self._machine.resume_receiving(self._loop.time())
            if self._transport is not None and not self._transport.is_closing():
                self._transport.resume_reading()

    async def disconnect(
        self, reason_code: int = 0, properties: Properties | None = None
    ) -> Disconnected:
        """Say good-bye, write what is left, and return once the transport is closed."""
        self._machine.disconnect(reason_code, properties)
        self._flush()
        if self._transport is not None:
            if self._lost is None:
                self._lost = self._loop.create_future()
            await asyncio.shield(self._lost)
        return await asyncio.shield(self.closed)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        await self.disconnect()

    def abort(self) -> None:
        """Drop the connection at once, without DISCONNECT: the server will publish the will."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport; CONNECT follows from `connect`."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are no subclasses

    def data_received(self, data: bytes) -> None:
        """Give the machine what came, and do what it says."""
        self._machine.receive_data(data, self._loop.time())
        self._flush()

    def eof_received(self) -> bool:
        """Let the transport close: MQTT has no half-open connections."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """Settle everything that still waits."""
        self._machine.receive_eof(self._loop.time())
        self._transport = None
        self._dispatch()
        self._disarm()
        if self._lost is not None:
            self._lost.set_result(None)

    def pause_writing(self) -> None:
        """The socket's buffer is full."""
        self._writable = False

    def resume_writing(self) -> None:
        """The socket's buffer has room again."""
        self._writable = True
        self._changed()

    # Between machine and loop

    async def _start(self, packet: Connect) -> None:
        """Send CONNECT and return once the server has accepted."""
        try:
            self._machine.connect(packet, self._loop.time())
            self._flush()
            await self._connected
        except BaseException:
            self._connected.cancel()
            self.abort()
            raise

    def _flush_soon(self) -> None:
        """Write once for everything that happens until the loop runs again."""
        if not self._flush_is_due:
            self._flush_is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what the machine has to send, then hand out its events."""
        self._flush_is_due = False
        transport = self._transport
        machine = self._machine
        data = machine.data_to_send()
        if data and transport is not None:
            transport.write(data)
        self._dispatch()
        if machine.closed:
            self._finish()
        elif self._timer is None:
            self._arm()

    def _dispatch(self) -> None:
        """Hand out the machine's events."""
        events = self._machine.events()
        if not events:
            return
        waiters = self._waiters
        for event in events:
            if isinstance(event, Publish):
                if self._on_message is not None:
                    self._on_message(self, event)
                else:
                    self._keep(event)
            elif isinstance(event, (Published, Subscribed, Unsubscribed)):
                waiter = waiters.pop(event.packet_id, None)
                if isinstance(waiter, asyncio.Future):
                    if not waiter.done():
                        waiter.set_result(event)
                elif waiter is not None and isinstance(event, Published):
                    waiter(event)
            elif isinstance(event, Connected):
                self._arm()
                if not self._connected.done():
                    self._connected.set_result(event.connack)
            elif isinstance(event, Disconnected):
                self._end(event)
            elif self._on_auth is not None:
                self._on_auth(self, event)
        self._changed()

    def _keep(self, message: Publish) -> None:
        """Let a message wait for `messages()`; pause reading when enough wait."""
        if self._messages is None:
            self._messages = deque()
        self._messages.append(message)
        if len(self._messages) >= self._messages_max:
            self.pause_reading()

    def _end(self, event: Disconnected) -> None:
        """Settle every future: the connection is over."""
        failure = _failure(event)
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters.values():
            if isinstance(waiter, asyncio.Future) and not waiter.done():
                waiter.set_exception(failure)
        if not self._connected.done():
            self._connected.set_exception(failure)
        if not self.closed.done():
            self.closed.set_result(event)

    def _finish(self) -> None:
        """Close the transport once the last bytes have left, or a few seconds later anyway."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        transport.close()
        self._disarm()
        self._timer = self._loop.call_later(_CLOSE_LINGER_S, transport.abort)

    def _arm(self) -> None:
        """Set the timer to the machine's deadline, which a call may have moved later meanwhile."""
        self._disarm()
        deadline_s = self._machine.next_deadline_s()
        if deadline_s is not None:
            self._timer = self._loop.call_at(deadline_s, self._on_timer)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _on_timer(self) -> None:
        self._timer = None
        self._machine.handle_timeout(self._loop.time())
        self._flush()

    def _changed(self) -> None:
        progress = self._progress
        if progress is not None:
            self._progress = None
            if not progress.done():
                progress.set_result(None)

    async def _next_change(self) -> None:
        """Return after the next event, or when writing can go on."""
        if self._progress is None:
            self._progress = self._loop.create_future()
        await asyncio.shield(self._progress)

    async def _answer(self, packet_id: int) -> Any:
        waiter: asyncio.Future[Any] = self._loop.create_future()
        self._waiters[packet_id] = waiter
        self._flush()
        return await waiter

    def _check_open(self) -> None:
        if self._machine.state is not State.CONNECTED:
            raise LocalProtocolError(f"not possible while {self._machine.state.value}")


def _failure(end: Disconnected) -> MqttError:
    """Return what to raise where something still waits."""
    return end.error or MqttError(end.reason_code, end.detail)
