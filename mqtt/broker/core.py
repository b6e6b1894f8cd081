"""What all connections of one broker share, and the little that goes on between them.

Invariant: `now_s` is at most one tick of the wheel old; it is what sessions and machines take for
the time, so that a read costs no clock. `Core` starts nothing: `mqtt.broker.broker` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mqtt.broker.access.enhanced import AuthMethod
from mqtt.broker.bus import Bus, BusRouter
from mqtt.broker.config import BrokerConfig
from mqtt.broker.full_queues import FullQueues
from mqtt.broker.logs import BoundedLog
from mqtt.broker.net.readiness import Readiness
from mqtt.broker.net.sockets import Sift, Sockets
from mqtt.broker.recorder import StoreRecorder
from mqtt.broker.registry import SessionRegistry
from mqtt.broker.router import Router
from mqtt.broker.seams import (
    Access,
    Capture,
    ClientInfo,
    Exchanges,
    Hooks,
    PublishRun,
    SessionStore,
)
from mqtt.broker.timers import TimerWheel
from mqtt.server_events import Event
from mqtt.server_messages import Message, PropertyBlocks, publish_parts
from mqtt.server_sender import ServerSender
from mqtt.session import Session
from mqtt.session_policy import SessionPolicy
from runtime.clock import Clock

if TYPE_CHECKING:
    from mqtt.broker.connection import Connection

__all__ = ["BrokerStats", "Core"]


@dataclass(slots=True)
class BrokerStats:
    """Counters since the start, and gauges at the moment they were asked for."""

    connections: int = 0
    connections_total: int = 0
    sessions: int = 0
    subscriptions: int = 0
    retained_messages: int = 0
    queued_bytes: int = 0  # messages waiting for their subscribers, all sessions
    full_queues: int = 0  # sessions that a publish did not find room in
    full_sessions: list[str] = field(default_factory=list)  # their client ids, a few at most
    publishers_waiting: int = 0  # connections that stand still for them
    queue_refusals: int = 0  # publishes refused because a subscriber's queue was full
    sessions_ended_full: int = 0  # sessions ended because their queues stayed full
    store_salvages: int = 0  # times the session store was found damaged and replaced
    messages_received: list[int] = field(default_factory=lambda: [0, 0, 0])  # by QoS
    messages_sent: list[int] = field(default_factory=lambda: [0, 0, 0])
    bytes_received: int = 0
    bytes_sent: int = 0
    captured: int = 0  # publishes taken by the capture
    capture_refusals: int = 0  # publishes it refused
    protocol_faults: int = 0
    refused_connections: int = 0  # by a listener's limits, before CONNECT
    failed_handshakes: int = 0  # TLS and PROXY protocol
    drops: dict[str, int] = field(default_factory=dict)  # messages, by reason

    def figures(self) -> dict[str, Any]:
        """Return what an operator may ask first, as JSON has it."""
        return {
            "connections": self.connections,
            "sessions": self.sessions,
            "subscriptions": self.subscriptions,
            "retained_messages": self.retained_messages,
            "messages_received": sum(self.messages_received),
            "messages_sent": sum(self.messages_sent),
            "drops": self.drops,
            "full_queues": self.full_queues,
            "full_sessions": self.full_sessions,
            "publishers_waiting": self.publishers_waiting,
            "queue_refusals": self.queue_refusals,
            "sessions_ended_full": self.sessions_ended_full,
            "store_salvages": self.store_salvages,
        }


class Core:
    """The state of one broker."""

    def __init__(
        self,
        config: BrokerConfig,
        clock: Clock,
        capture: Capture | None,
        store: SessionStore | None,
        access: Access | None,
        hooks: Hooks | None,
        bus: Bus | None = None,
        exchanges: Exchanges | None = None,
    ) -> None:
        self.config = config
        self.limits = config.limits()
        self.clock = clock
        self.wall_us = clock.wall_us
        self.now_s = clock.monotonic_s()
        self.capture = capture
        self.store = store
        self.access = access
        self.hooks = hooks
        self.bus = bus
        self.stats = BrokerStats()
        self.log = BoundedLog(clock.monotonic_s)
        self.wheel = TimerWheel(self.now_s)
        self.blocks = PropertyBlocks()
        self.policy = SessionPolicy(
            config.queue_messages_max,
            config.queue_bytes_max,
            config.inflight_max,
            config.queues_bytes_max,
            config.queue_full,
        )
        self.recorder = StoreRecorder(store, clock, exchanges) if store is not None else None
        self.router = (Router if bus is None else BusRouter)(
            self.policy,
            self.recorder,
            capture,
            config.topic_levels_max,
            config.retained_messages_max,
            config.retained_bytes_max,
        )
        self.router.routes.topic_bytes_max = config.topic_bytes_max
        self.registry = SessionRegistry(
            self.policy,
            self.router,
            self.recorder,
            self.wheel,
            self.publish_will,
            config.session_expiry_max_s,
        )
        self.queues = FullQueues(self)
        self.connections: set[Connection] = set()
        self.closing: set[Connection] = set()  # closed by us, their last bytes still going out
        self.slow: set[Connection] = set()  # whose write buffers are full
        self.tasks: set[asyncio.Task[None]] = set()
        self.stopping = False
        self.access_changes = 0  # rises whenever who may connect has to be asked anew
        self.closed_bytes_sent = 0  # on connections that are gone
        # Event type -> what is done about it; set by the broker.
        self.auth_methods: Mapping[str, AuthMethod] = {}  # enhanced authentication, by name
        self.handlers: dict[type, Callable[[Connection, Any], Sequence[Event] | None]] = {}
        self._writable: asyncio.Event | None = None  # somebody waits for slow clients
        self._closed: asyncio.Event | None = None  # somebody waits for closing connections
        # One object for all machines, which each keep it.
        self.flush_soon: Callable[[ServerSender], None] = self._flush_soon
        self._unflushed: list[ServerSender] = []
        self.sift: Sift | None = None  # sees what plain sockets have read first; set by the broker
        self._sockets: Sockets | None = None  # None before the first plain connection
        self._readiness: Readiness | None = None  # None before the first TLS connection
        self._waiting_for_capture: list[Callable[[], None]] = []
        self._waiting_for_store: list[Callable[[], None]] = []
        if bus is not None:
            assert self.recorder is not None, "a bus needs the cluster's session store"
            assert isinstance(self.router, BusRouter)
            bus.attach(self)
            self.router.use(bus, self.recorder)
            self.registry.bus = bus

    def reconfigure(self, config: BrokerConfig) -> None:
        """Take other limits; machines that run keep those they have told their clients."""
        self.config = config
        self.limits = config.limits()
        self.policy.limit(
            config.queue_messages_max,
            config.queue_bytes_max,
            config.inflight_max,
            config.queues_bytes_max,
            config.queue_full,
        )
        self.queues.reconsider()
        self.router.retained_messages_max = config.retained_messages_max
        self.router.retained_bytes_max = config.retained_bytes_max
        self.router.routes.levels_max = config.topic_levels_max
        self.router.routes.topic_bytes_max = config.topic_bytes_max
        self.registry.expiry_max_s = config.session_expiry_max_s

    def refresh(self) -> float:
        """Return the time to the moment: a message that expires is counted from it."""
        self.now_s = self.clock.monotonic_s()
        return self.now_s

    def tick(self) -> None:
        """Let time pass: deadlines, slow clients."""
        self.wheel.advance(self.refresh())
        limit_s = self.config.slow_timeout_s
        for connection in [c for c in self.slow if self.now_s - c.slow_since_s > limit_s]:
            connection.cut_off_slow()
        self.queues.tick(self.now_s)

    def spawn(self, task: asyncio.Task[None]) -> None:
        """Keep a task alive until it is done or the broker stops."""
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    @property
    def sockets(self) -> Sockets:
        """The plain sockets of the running loop."""
        if self._sockets is None:
            self._sockets = Sockets(asyncio.get_running_loop(), self.sift)
        return self._sockets

    @property
    def readiness(self) -> Readiness:
        """What watches the TLS sockets of the running loop."""
        if self._readiness is None:
            self._readiness = Readiness(asyncio.get_running_loop())
        return self._readiness

    def close_sockets(self) -> None:
        """Cut off who is left."""
        for each in (self._sockets, self._readiness):
            if each is not None:
                each.close()
        self._sockets = self._readiness = None

    # -- writing ------------------------------------------------------------------------------

    def _flush_soon(self, machine: ServerSender) -> None:
        """Flush a machine once what is ready to be read has been read."""
        if not self._unflushed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._unflushed.append(machine)

    def _flush(self) -> None:
        unflushed, self._unflushed = self._unflushed, []
        for machine in unflushed:
            try:
                machine.flush()
            except Exception as error:  # noqa: BLE001 - a callback's root: the others must go on
                self.log.warning("mqtt_write_failed", reason=repr(error))

    # -- pressure -----------------------------------------------------------------------------

    def when_capture_relieved(self, callback: Callable[[], None]) -> None:
        """Call back when the capture takes runs again; it is asked once for all who wait."""
        assert self.capture is not None
        if not self._waiting_for_capture:
            self.capture.when_relieved(self._capture_relieved)
        self._waiting_for_capture.append(callback)

    def when_store_relieved(self, callback: Callable[[], None]) -> None:
        """Call back when the store is not saturated any more."""
        assert self.store is not None
        if not self._waiting_for_store:
            self.store.when_relieved(self._store_relieved)
        self._waiting_for_store.append(callback)

    def writable_again(self) -> None:
        """A slow client has caught up or is gone."""
        if self._writable is not None:
            self._writable.set()

    async def wait_until_writable(self, timeout_s: float) -> None:
        """Wait until no connected client is slow; those that stay so are not waited for again."""
        patience = [c for c in self.slow if c.slow_since_s + timeout_s > self.now_s]
        if not patience:
            return
        if self._writable is None:
            self._writable = asyncio.Event()
        try:
            async with asyncio.timeout(timeout_s):
                while any(c in self.slow for c in patience):
                    self._writable.clear()
                    await self._writable.wait()
        except TimeoutError:
            return

    async def drain(self, timeout_s: float) -> None:
        """Stop reading, and return when no publish waits for its answer, or time is up."""
        for connection in self.connections:
            connection.pause_stopping()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                # The machines count what is unanswered; an event there would cost every read.
                while any(c.owes_answers() for c in self.connections):  # noqa: ASYNC110
                    await asyncio.sleep(0.002)

    async def all_closed(self, timeout_s: float) -> None:
        """Return when every connection that was closed is gone, or time is up."""
        self._closed = asyncio.Event()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self.closing:
                    self._closed.clear()
                    await self._closed.wait()

    def closed_for_good(self, connection: Connection) -> None:
        """The transport of a connection is gone."""
        self.closing.discard(connection)
        if self._closed is not None:
            self._closed.set()

    def forget_inbound(self, session: Session, packet_id: int) -> None:
        """A QoS 2 publish of a stored session was refused: its identifier is free."""
        if self.recorder is not None:
            self.recorder.inbound_ended(session, packet_id)

    def _capture_relieved(self) -> None:
        waiting, self._waiting_for_capture = self._waiting_for_capture, []
        for callback in waiting:
            callback()

    def _store_relieved(self) -> None:
        waiting, self._waiting_for_store = self._waiting_for_store, []
        for callback in waiting:
            callback()

    # -- wills --------------------------------------------------------------------------------

    def publish_will(self, session: Session, will: Message, client: ClientInfo | None) -> None:
        """Publish a will like any other message of its client: captured, retained, routed."""
        if will.expires_s:
            will.expires_s += self.refresh()
        route = self.router.routes[will.topic]
        if route.verdict:
            self.policy.dropped("not_authorized")
            return
        if route.lane >= 0 and self.capture is not None:
            info = client or ClientInfo(session.client_id, session.version)
            if self.capture.take(will_run(will, info, route.lane, self.wall_us())):
                self.policy.dropped("will_refused")
            if route.exclusive:
                return
        if will.retain:  # [MQTT-3.1.2-14] [MQTT-3.1.2-15]
            self.router.retain(will, route.name)
        self.router.deliver(will, route, self.now_s)


def will_run(will: Message, client: ClientInfo, lane: int, time_us: int) -> PublishRun:
    """Return a will as a run of one PUBLISH, as if its client had sent it with QoS 0 or 1.

    The broker is the sender, so nobody waits for an answer.
    """
    first_byte = 0x30 | min(will.qos, 1) << 1 | will.retain
    head, tail = publish_parts(
        first_byte, client.protocol_version, will.topic, will.properties, will.payload
    )
    frame = head + b"\0\1" + tail if first_byte & 0x06 else head
    return PublishRun(client, lane, frame, 1, time_us, _nobody_waits)


def _nobody_waits(run: PublishRun, reason_code: object) -> None:
    """Settle a run that has no client to answer."""
