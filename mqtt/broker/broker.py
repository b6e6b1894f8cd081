"""The broker as its host sees it: start, listen, publish, stop, count.

    broker = Broker(BrokerConfig(), capture=journal, store=SqliteSessionStore(path))
    await broker.start()
    port = await broker.listen("127.0.0.1", 1883)
    ...
    await broker.stop()

Listeners are objects of their own with one `Connection` a client, so that another transport is
another `create_server`. MQTT 5.0 section 4.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from mqtt.broker.access.enhanced import AuthMethod
from mqtt.broker.bus import Bus
from mqtt.broker.config import BrokerConfig
from mqtt.broker.connection import Connection
from mqtt.broker.core import BrokerStats, Core
from mqtt.broker.lone import LonePublishes
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.net.listener import Listener
from mqtt.broker.permissions import decide_anew, drop_forbidden, drop_wills, routes_of
from mqtt.broker.requests import HANDLERS
from mqtt.broker.router import Router
from mqtt.broker.seams import Access, Capture, ClientInfo, Exchanges, Hooks, SessionStore
from mqtt.broker.sys_topics import publish_sys_topics
from mqtt.reason_codes import ReasonCode
from mqtt.server_messages import Message
from runtime.clock import Clock, SystemClock

__all__ = ["Broker", "Outgoing", "Subscriber"]

_PUBLISH_SLICE = 256  # messages of `publish_many` before the loop gets a turn
_RETAINED_SWEEP_TICKS = 120
_FILES_TICKS = 10  # from one look at certificate files to the next
_LINGER_S = 0.2
_DRAIN_S = 1.0  # how long stopping waits for publishes that are not durable yet


@dataclass(slots=True, frozen=True)
class Outgoing:
    """A message that the host publishes itself.

    `properties` is an MQTT 5 property block without length, expiry and topic alias, as
    `mqtt.properties.encode_property_block` returns it; 3.1.1 subscribers do not see it.
    """

    topic_name: str
    payload: bytes
    qos: int = 0
    retain: bool = False
    properties: bytes = b""
    expiry_s: int | None = None


@dataclass(slots=True, frozen=True)
class Subscriber:
    """One session that a topic's messages go to."""

    client_id: str
    connected: bool
    qos: int  # the highest of its matching subscriptions


class Broker:
    """An MQTT 3.1.1 and 5.0 broker in the running event loop.

    Args:
        config: Limits.
        capture: Takes publishes that must be durable before they are acknowledged.
        store: Keeps sessions and retained messages over restarts; None: they live as long as
            the broker.
        access: Who may do what; None: everybody everything.
        hooks: Told of clients that come and go.
        clock: Time.
        auth_methods: Enhanced authentication by method; may change while the broker runs.
        bus: The other nodes of a cluster, whose store `store` then is; None: there are none.
        exchanges: The QoS 2 publishes that `capture` holds, for a store in another file.
    """

    def __init__(
        self,
        config: BrokerConfig | None = None,
        *,
        capture: Capture | None = None,
        store: SessionStore | None = None,
        access: Access | None = None,
        hooks: Hooks | None = None,
        clock: Clock | None = None,
        auth_methods: Mapping[str, AuthMethod] | None = None,
        bus: Bus | None = None,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.config = config or BrokerConfig()
        self._core = Core(
            self.config, clock or SystemClock(), capture, store, access, hooks, bus, exchanges
        )
        self._core.handlers = HANDLERS
        if capture is not None:
            self._core.sift = LonePublishes(self._core, capture)
        if auth_methods is not None:
            self._core.auth_methods = auth_methods
        self.listeners: list[Listener] = []
        self._servers: list[asyncio.Server] = []
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        """Read what the store holds and let time run. Raises what the store raises."""
        core = self._core
        if core.store is not None and core.recorder is not None:
            state = await core.store.open()
            await core.recorder.recover(state)
            core.registry.restore(state, core.now_s)
            for row in state.retained:
                message = Message(
                    row.topic,
                    row.payload,
                    row.qos,
                    True,
                    row.properties,
                    core.recorder.monotonic_expiry_s(row.expires_us),
                    row.publisher,
                )
                core.router.restore_retained(message)
        loop = asyncio.get_running_loop()
        self._tasks.append(loop.create_task(self._run_timers(), name="mqtt-timers"))
        if self.config.sys_interval_s:
            self._tasks.append(loop.create_task(self._run_sys_topics(), name="mqtt-sys-topics"))

    async def listen(
        self, host: str, port: int, *, tls: ssl.SSLContext | None = None, backlog: int = 1024
    ) -> int:
        """Accept MQTT over TCP, or TLS, at an address; return the port, which may be given as 0.

        Raises:
            OSError: the address cannot be had.
        """
        if tls is None:
            return await self.open_listener(ListenerConfig(host=host, port=port))
        loop = asyncio.get_running_loop()
        server = await loop.create_server(
            self.connection, host, port, ssl=tls, backlog=backlog, reuse_address=True
        )
        self._servers.append(server)
        bound: int = server.sockets[0].getsockname()[1]
        self._core.log.info("mqtt_listening", host=host, port=bound, tls=tls is not None)
        return bound

    async def open_listener(self, config: ListenerConfig) -> int:
        """Accept clients as a listener's settings say; return its port, 0 for a Unix socket.

        Raises:
            OSError: the address cannot be had.
            TlsError: certificate files cannot be used.
        """
        listener = Listener(self._core, config)
        port = await listener.open()
        self.listeners.append(listener)
        return port

    def connection(self) -> Connection:
        """Return the protocol of a new connection: what a listener of any kind asks for."""
        return Connection(self._core)

    async def stop(self, timeout_s: float = 2.0) -> None:
        """Stop in order; sessions that last and retained messages are on disk when it returns."""
        core = self._core
        # 1. No new connections.
        core.stopping = True
        for server in self._servers:
            server.close()
        for listener in self.listeners:
            listener.close()
        # 2. Nothing more is read; what was taken is answered, if it gets durable in time.
        await core.drain(min(timeout_s, _DRAIN_S))
        # 3. Clients are told and closed [MQTT-4.13.1-1]; their sessions stay or end as they must.
        for connection in list(core.connections):
            connection.disconnect(ReasonCode.SERVER_SHUTTING_DOWN)
        # 4. They close in their turn, slow ones in the time given; the rest is cut off.
        await core.all_closed(_LINGER_S)
        if any(connection.has_unsent() for connection in core.closing):
            await core.all_closed(timeout_s)
        for connection in list(core.closing):
            connection.transport.abort()
        # 5. Timers and checks end.
        for task in [*self._tasks, *core.tasks]:
            task.cancel()
        await asyncio.gather(*self._tasks, *core.tasks, return_exceptions=True)
        self._tasks.clear()
        # 6. Listeners are gone.
        for server in self._servers:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    await server.wait_closed()
        self._servers.clear()
        self.listeners.clear()
        core.close_sockets()
        # 7. The store writes what it was given and closes.
        if core.store is not None:
            await core.store.close()

    async def publish_many(self, messages: Iterable[Outgoing], *, patience_s: float = 1.0) -> int:
        """Publish messages of the host's own; return how many had a subscriber.

        Returns once all are with their subscribers' connections or in their queues, and on disk
        where the session is a stored one. Backpressure: it waits, at most `patience_s` a slow
        client, while clients that the messages go to do not keep up.

        Raises:
            MqttError: a topic name is not valid; what came before it was published.
        """
        core = self._core
        router = core.router
        recorder = core.recorder
        before = recorder.position if recorder is not None else 0
        delivered = 0
        for index, outgoing in enumerate(messages, 1):
            topic = outgoing.topic_name.encode()
            route = router.routes[topic]
            expires_s = 0.0
            if outgoing.expiry_s is not None:
                expires_s = core.refresh() + outgoing.expiry_s
            message = Message(
                topic,
                outgoing.payload,
                outgoing.qos,
                outgoing.retain,
                outgoing.properties,
                expires_s,
            )
            if outgoing.retain:
                router.retain(message, route.name)
            delivered += router.deliver(message, route, core.now_s)
            if index % _PUBLISH_SLICE == 0 or core.slow:
                await asyncio.sleep(0)
                if core.slow:
                    await core.wait_until_writable(patience_s)
        if recorder is not None and recorder.position != before:
            durable = asyncio.Event()
            recorder.when_durable(durable.set)
            await durable.wait()
        return delivered

    def mark_captured(self) -> None:
        """Note in the store how far it knows the capture: a start after a crash looks from there.

        For the host to call now and then, when much was captured without any QoS 2 publish.
        """
        if self._core.recorder is not None:
            self._core.recorder.mark()

    def subscribers(self, topic_name: str) -> list[Subscriber]:
        """Return the sessions, shared subscriptions left out, that a topic's messages go to.

        Raises:
            MqttError: the topic name is not valid.
        """
        router = self._core.router
        route = router.routes[topic_name.encode()]
        router.receivers(route)
        return [
            Subscriber(target.session.client_id, target.session.link is not None, target.qos)
            for target in route.targets
        ]

    def offer(
        self, client_id: str, outgoing: Outgoing, done: Callable[[bool], None], token: str
    ) -> bool:
        """Send a QoS 1 or 2 message to one connected client, and be told what became of it.

        Its sender keeps it as well, and offers it again when the session ends first. The store
        keeps it with a session that lasts, so that after a restart the session goes on with the
        same packet; `resume_offers` tells which those are.

        Args:
            client_id: Whose session; subscribed to the topic or not.
            outgoing: What to send.
            done: Called once, on the loop: True when the client has acknowledged it, False when
                it was dropped.
            token: Names the offer over restarts, until `forget_offer`.

        Returns:
            False when the client is not connected or its queue is full; `done` is not called.
        """
        core = self._core
        session = core.registry.sessions.get(client_id)
        if session is None or session.link is None or not outgoing.qos:
            return False
        now_s = core.refresh()
        message = Message(outgoing.topic_name.encode(), outgoing.payload, outgoing.qos, False,
                          outgoing.properties)  # fmt: skip
        if outgoing.expiry_s is not None:
            message.expires_s = now_s + outgoing.expiry_s
        message.tracker = done
        message.token = token
        return session.offer(message, outgoing.qos, False, b"", now_s)

    def resume_offers(self, follow: Callable[[str], Callable[[bool], None]]) -> dict[str, bool]:
        """Take up the offers of earlier runs; called once, before clients connect.

        Args:
            follow: Returns the `done` for an offer that is still on its way, by its token.

        Returns:
            Offers by token: True was acknowledged, False is with its session still.
        """
        registry = self._core.registry
        found = dict.fromkeys(registry.offers_taken, True)
        registry.offers_taken = set()
        for session in registry.sessions.values():
            for delivery in (session.outbound or {}).values():
                token = delivery.message.token
                if token:
                    delivery.message.tracker = follow(token)
                    found[token] = False
        return found

    def forget_offer(self, token: str) -> None:
        """Forget an offer: its sender has noted, durably, what became of it."""
        if self._core.recorder is not None:
            self._core.recorder.offer_forgotten(token)

    def has_subscribers(self, topic_name: str, *, here: bool = False) -> bool:
        """Return True when a message to `topic_name` would go to somebody.

        Args:
            topic_name: Any.
            here: Only look at this broker, not at other nodes.
        """
        router = self._core.router
        route = router.routes[topic_name.encode()]
        return Router.receivers(router, route) if here else router.receivers(route)

    def access_changed(self, client_ids: Sequence[str] | None = None) -> None:
        """Forget the verdicts on publishing: all, or those of some clients."""
        if self._core.access is None:
            return
        for connection in self._core.connections:
            client = connection.machine.client
            if client is not None and (client_ids is None or client.client_id in client_ids):
                connection.machine.forget_routes(routes_of(self._core, client))

    async def recheck(self, still_known: Callable[[ClientInfo], bool]) -> tuple[int, int]:
        """After permissions have changed: forget verdicts, and take away what is not allowed now.

        Wills that may not be sent are forgotten. Clients that are not known any more are
        disconnected with 0x87; of the others, those subscriptions end that they may not have,
        and what they brought is dropped. All others notice nothing, but for those whose CONNECT
        was being answered: they are refused with 0x89 and ask again.

        Args:
            still_known: Whether a connected client would still get in.

        Returns:
            How many were disconnected, and how many subscriptions ended.
        """
        self.access_changed()
        self._core.access_changes += 1  # who is being let in at this moment is to come again
        await drop_wills(self._core)
        gone = ended = 0
        for connection in list(self._core.connections):
            client, session = connection.machine.client, connection.session
            if client is None or session is None or connection.closed:
                continue
            if not still_known(client):
                connection.disconnect(ReasonCode.NOT_AUTHORIZED, "access has changed")
                gone += 1
                continue
            await decide_anew(connection, session, client)
            if not connection.closed:
                ended += drop_forbidden(connection, session, client)
        return gone, ended

    def reconfigure(self, config: BrokerConfig) -> None:
        """Take other limits: for connections to come, and for what sessions may queue at once."""
        self.config = config
        self._core.reconfigure(config)
        for listener in self.listeners:
            listener.reconfigure(listener.config)

    def stats(self) -> BrokerStats:
        """Return the counters and gauges of this moment."""
        core = self._core
        sent = core.closed_bytes_sent + sum(c.machine.bytes_sent for c in core.connections)
        return replace(
            core.stats,
            connections=len(core.connections),
            sessions=len(core.registry.sessions),
            subscriptions=len(core.router.filters),
            retained_messages=len(core.router.retained),
            queued_bytes=core.policy.queued_bytes,
            full_queues=core.queues.count,
            full_sessions=core.queues.names(),
            publishers_waiting=core.queues.waiting,
            queue_refusals=core.queues.refusals,
            sessions_ended_full=core.queues.ended,
            store_salvages=core.store.salvages if core.store is not None else 0,
            messages_received=list(core.stats.messages_received),
            messages_sent=list(core.policy.sent),
            bytes_sent=sent,
            drops=dict(core.policy.drops),
        )

    async def _run_timers(self) -> None:
        """Let time pass on the wheel until cancelled."""
        core = self._core
        ticks = 0
        while True:
            await asyncio.sleep(core.wheel.tick_s)
            ticks += 1
            try:
                core.tick()
                if ticks % _FILES_TICKS == 0:
                    for listener in self.listeners:
                        listener.look_at_files()
                if ticks % _RETAINED_SWEEP_TICKS == 0:
                    core.router.expire_retained(core.now_s)
            except Exception as error:  # noqa: BLE001 - the task's root: time goes on
                core.log.warning("mqtt_timer_broke", error=repr(error))

    async def _run_sys_topics(self) -> None:
        """Publish $SYS topics now and then until cancelled."""
        started_s = self._core.clock.monotonic_s()
        while True:
            uptime_s = self._core.clock.monotonic_s() - started_s
            publish_sys_topics(self._core.router, self.stats(), uptime_s, self._core.now_s)
            await asyncio.sleep(self.config.sys_interval_s)
