"""One client's connection: a transport on one side, the pure machine and the session on the other.

Anything with the methods of `asyncio.Transport` can be below it: TCP and TLS transports are, a
WebSocket one only has to look like it. `data_received` is the hot path: one pass of the machine
over the read, captured runs handed on (`capturing`), one write when they are settled
(benchmarks/fan_in.py).

Invariants:
- a captured publish with QoS 1 or 2 is answered only from `settle` (STYLE 13), and one that went
  to a stored session not before the store has it;
- events are handled in the order of the wire: while one waits, those behind it wait in `_backlog`
  and nothing more is read;
- `paused` names every reason for not reading; the transport is paused exactly while there is one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from sys import intern
from typing import TYPE_CHECKING, Any, Final

from mqtt.broker.capturing import answer_refused, take
from mqtt.broker.full_queues import Way
from mqtt.broker.net.config import is_loopback
from mqtt.broker.seams import PublishRun
from mqtt.broker.settling import settle
from mqtt.errors import MqttError, ProtocolError
from mqtt.inbound_qos_2 import SETTLED
from mqtt.reason_codes import ReasonCode
from mqtt.server import ServerConnection
from mqtt.server_events import Arrivals, Event, State
from mqtt.session import Session

if TYPE_CHECKING:
    from mqtt.broker.authenticating import Authentication
    from mqtt.broker.core import Core
    from mqtt.broker.net.listener import Listener
    from mqtt.broker.net.rates import Meter
    from mqtt.broker.retained import RetainedFeed

__all__ = ["Connection"]

# Reasons for not reading.
_CAPTURE: Final = 1  # the capture is saturated, or has refused a 3.1.1 client's run
_STORE: Final = 2
_CONNECTING: Final = 4  # the answer to CONNECT waits for the access check or the store
_INFLIGHT: Final = 8  # a 3.1.1 client has sent more than a v5 one may
_STOPPING: Final = 32
_WRITE: Final = 16  # the client does not read what it is answered
_VERDICT: Final = 64  # whether it may publish has to be asked for
_HELD: Final = 256  # whether it may subscribe has to be asked for
_QUEUE: Final = 512  # a subscriber's queue has no room for what it publishes

_CLOSE_TIMEOUT_S: Final = 2.0
_LINGERING_MAX: Final = 1000
_FEED_AT_ONCE: Final = 200


class Connection(asyncio.Protocol):
    """The driver of one `ServerConnection`."""

    __slots__ = (
        "_backlog",
        "_feeds",
        "_held",
        "_waits_for",
        "address",
        "auth",
        "closed",
        "core",
        "is_established",
        "let_in_by",
        "listener",
        "machine",
        "meter",
        "paused",
        "reason_code",
        "relayed",
        "send_will",
        "session",
        "slow_since_s",
        "source",
        "timer_tick",
        "transport",
    )

    def __init__(self, core: Core, listener: Listener | None = None) -> None:
        self.core = core
        self.listener = listener  # None: a transport that the host has made itself
        self.is_established = False  # the listener's own: counted as past CONNECT
        self.source: tuple[str, int] | None = None  # the client's address, told by a balancer
        self.relayed = False  # somebody else may be behind whoever connected: never local
        self.address = ""  # the client's, without its port; empty for a Unix socket
        self.machine: ServerConnection
        self.transport: Any = None  # asyncio.Transport, or what looks like one
        self.session: Session | None = None
        self.closed = False  # no more events are handled, nothing is sent
        self.send_will = True  # False after a DISCONNECT that deletes it
        self.reason_code = int(ReasonCode.UNSPECIFIED_ERROR)  # why it ended
        self.slow_since_s = 0.0  # when the write buffer filled
        self.timer_tick = 0
        self.meter: Meter | None = None  # None while its publishes have no rate
        self.paused = 0  # why nothing is read, by reason; 0 while it is
        self.auth: Authentication | None = None  # None without enhanced authentication
        self.let_in_by = 0  # `Core.access_changes` when the access was asked
        self._held = False  # events wait in `_backlog` for a verdict on the one before them
        self._backlog: list[Event] | None = None
        self._waits_for = 0  # the reason for a backlog that is to be offered again
        self._feeds: list[RetainedFeed] | None = None  # retained messages still to be sent

    # -- asyncio.Protocol ---------------------------------------------------------------------

    def connection_made(self, transport: Any) -> None:
        """Make the machine; the client has until the deadline to send CONNECT."""
        core = self.core
        listener = self.listener
        self.transport = transport
        source = self.source or transport.get_extra_info("peername")
        if isinstance(source, tuple) and source:
            self.address = intern(str(source[0]))
        limits = core.limits if listener is None else listener.limits
        machine = self.machine = ServerConnection(
            limits,
            core.router.routes,
            core.blocks,
            transport.write,
            settle,
            core.now_s,
            self,
            core.flush_soon,
        )
        if listener is not None and not listener.admit(self):
            self.closed = True
            transport.abort()
            return
        transport.set_write_buffer_limits(high=core.config.write_buffer_bytes)
        core.connections.add(self)
        core.stats.connections_total += 1
        core.wheel.set(self, machine.next_deadline_s() or core.now_s)

    def data_received(self, data: bytes) -> None:
        """Take what the client sent."""
        if self.closed:
            return
        core = self.core
        core.stats.bytes_received += len(data)
        machine = self.machine
        events = machine.receive_data(data, core.now_s)
        if self.meter is not None:
            events = self.meter.sift(self, events, len(data))
        if self._backlog is not None:
            self._backlog += events
        elif len(events) == 1 and machine.writable:
            # All that most devices ever send: what `_handle` does for it, without its loop.
            event = events[0]
            left = (
                take(self, event)
                if type(event) is PublishRun
                else core.handlers[type(event)](self, event)
            )
            if left or self._held:
                self._wait_with(list(left or ()))
            elif machine.unacknowledged > machine.limits.receive_maximum or not machine.writable:
                self._look_at_limits()
        else:
            self._handle(events)

    def eof_received(self) -> bool:
        """The client will send no more: close."""
        return False

    def connection_lost(self, _exc: Exception | None) -> None:
        """The transport is gone."""
        self.core.wheel.cancel(self)
        self._leave()
        if self.listener is not None:
            self.listener.lost(self)
        self.core.closed_for_good(self)

    def pause_writing(self) -> None:
        """The client does not keep up: nothing optional is sent until it does."""
        self.machine.writable = False
        self.slow_since_s = self.core.now_s
        self.core.slow.add(self)

    def resume_writing(self) -> None:
        """The client has caught up."""
        self.machine.writable = True
        self.core.slow.discard(self)
        self.core.writable_again()
        self.resume(_WRITE)
        if not self.closed and self.session is not None:
            self.session.send_waiting(self.core.refresh())
            self.pump()

    # -- events -------------------------------------------------------------------------------

    def _handle(self, events: list[Event]) -> None:
        for index, event in enumerate(events):
            if self.closed:
                self.forget(events[index:])
                return
            if type(event) is PublishRun:
                left: Sequence[Event] | None = take(self, event)
            else:
                left = self.core.handlers[type(event)](self, event)
            if left or self._held:
                self._wait_with([*(left or ()), *events[index + 1 :]])
                return
        self._look_at_limits()

    def _look_at_limits(self) -> None:
        """Stop reading a client that has too much on its way, or does not read its answers."""
        machine = self.machine
        if machine.unacknowledged > machine.limits.receive_maximum:
            self.pause(_INFLIGHT)
        if not machine.writable and self._unsent_bytes() > 4 * self.core.config.write_buffer_bytes:
            self.pause(_WRITE)

    def _wait_with(self, events: list[Event]) -> None:
        """Keep events until they can be handled; forget them if that is never."""
        self._backlog = events
        if self.closed:
            self._forget_backlog()

    def _unsent_bytes(self) -> int:
        size: int = self.transport.get_write_buffer_size()
        return size + self.machine.waiting_bytes

    def handle_waiting(self) -> None:
        """Handle what came with the CONNECT, once it is answered."""
        self._handle(self.machine.receive_data(b"", self.core.now_s))

    def blocked(self, blocker: Session) -> Way:
        """A publish of this client found a queue full: stand still, or go, if so decided."""
        core = self.core
        way = core.queues.way(self, blocker)
        if way is Way.HOLD:
            self.pause(_QUEUE)
            self._waits_for = _QUEUE
            core.queues.wait(self)
        elif way is Way.CUT_OFF:
            self.fail(ProtocolError(ReasonCode.QUOTA_EXCEEDED, "its own queue of messages is full"))
        return way

    def wait_for_capture(self, *, with_run: bool = False) -> None:
        """Read nothing until the capture has room; `with_run`: a run is to be offered again."""
        self.pause(_CAPTURE)
        if with_run:
            self._waits_for = _CAPTURE
        self.core.when_capture_relieved(partial(self._relieved, _CAPTURE))

    def lone_run(self, data: bytes, generation: int, now_s: float) -> PublishRun | None:
        """Return a read as a run if it is all that `mqtt.broker.lone` takes, else None."""
        if self.closed or self.paused or self.meter is not None or self._backlog is not None:
            return None
        return self.machine.lone_run(data, generation, now_s)

    def refused(self, run: PublishRun, reason_code: int) -> None:
        """The capture has not taken a lone run: answer it, or offer it again later."""
        if not answer_refused(run, reason_code):
            self._wait_with([run])

    def queue_eased(self) -> None:
        """A subscriber's queue may have room for what stands still here."""
        self._relieved(_QUEUE)

    def _relieved(self, reason: int) -> None:
        """The capture takes runs again, or a subscriber's queue may have room."""
        if self.closed or not self.paused & reason:
            return
        if self._held:
            self.resume(reason)
            return
        backlog, self._backlog = self._backlog, None
        if backlog is not None:
            self._handle(backlog)
        if self._is_done_with(reason):
            self.resume(reason)

    def _is_done_with(self, reason: int) -> bool:
        """Return True when nothing waits for a reason any more."""
        return self._held or self._backlog is None or self._waits_for != reason

    def _waits_for_verdict(self) -> bool:
        return self._held

    def hold(self) -> None:
        """Handle nothing more until `release`: the event in hand waits for a verdict."""
        self._held = True
        self.pause(_HELD)

    def release(self) -> None:
        """The verdict is there: go on with what waits."""
        self._held = False
        backlog, self._backlog = self._backlog, None
        if backlog and not self.closed:
            self._handle(backlog)
        if not self._waits_for_verdict():
            self.resume(_HELD)

    def pause_for_verdict(self) -> bool:
        """Stop reading for a verdict on a publish; False when that is so already."""
        if self.paused & _VERDICT:
            return False
        self.pause(_VERDICT)
        return True

    def resume_after_verdict(self) -> None:
        """Read again: the machine has kept what came behind."""
        self.resume(_VERDICT)

    # -- pausing ------------------------------------------------------------------------------

    def pause(self, reason: int) -> None:
        """Stop reading for one more reason."""
        if not self.paused and not self.closed:
            self.transport.pause_reading()
        self.paused |= reason

    def resume(self, reason: int) -> None:
        """Read again if this was the last reason not to."""
        if self.paused & reason:
            self.paused &= ~reason
            if not self.paused and not self.closed:
                self.transport.resume_reading()

    def pause_connecting(self) -> None:
        """Read nothing until the CONNECT is answered."""
        self.pause(_CONNECTING)

    def resume_connecting(self) -> None:
        """The CONNECT is answered."""
        self.resume(_CONNECTING)

    def pause_stopping(self) -> None:
        """The broker stops: read nothing more."""
        self.pause(_STOPPING)

    def owes_answers(self) -> bool:
        """Return True while publishes of this client wait for an answer from us."""
        waiting = self.machine.unacknowledged
        inbound = self.session.inbound if self.session is not None else None
        if waiting and inbound and self.machine.version >= 5:
            waiting -= sum(state == SETTLED for state in inbound.values())  # PUBREL is to come
        return waiting > 0

    def has_unsent(self) -> bool:
        """Return True while bytes for the client have not reached the system."""
        return self._unsent_bytes() > 0

    def check_store(self) -> None:
        """Stop reading while the session store has enough to do."""
        store = self.core.store
        if store is not None and store.saturated() and not self.paused & _STORE:
            self.pause(_STORE)
            self.core.when_store_relieved(partial(self.resume, _STORE))

    def settled(self) -> None:
        """Publishes of a paused connection were answered: it may have room again."""
        machine = self.machine
        if self.paused & _INFLIGHT and (
            machine.unacknowledged <= machine.limits.receive_maximum // 2
        ):
            self.resume(_INFLIGHT)

    # -- what waits to be sent ----------------------------------------------------------------

    def feed(self, source: RetainedFeed) -> None:
        """Send what is retained to the session, as fast as the client takes it."""
        if self._feeds is not None:
            self._feeds.append(source)
            return
        self._feeds = [source]
        self.pump()

    def stop_feeding(self, topic_filters: Collection[str]) -> None:
        """Send no more of what is retained under filters."""
        left = [each for each in self._feeds or () if each.topic_filter not in topic_filters]
        self._feeds = left or None

    def pump(self) -> None:
        """Send more retained messages, if any are left and the client has room."""
        feeds, session = self._feeds, self.session
        if feeds is None or session is None:
            return
        core = self.core
        now_s = core.refresh()
        left = _FEED_AT_ONCE
        while left > 0:
            room = core.policy.inflight_max - len(session.outbound or ())
            if self.closed or not self.machine.writable or room <= 0:
                return  # resume_writing or an acknowledgement goes on
            left -= feeds[0].send(min(room, left), now_s)
            if feeds[0].is_done:
                del feeds[0]
                if not feeds:
                    self._feeds = None
                    return
        asyncio.get_running_loop().call_soon(self.pump)

    # -- ending -------------------------------------------------------------------------------

    def fail(self, fault: MqttError) -> None:
        """End the connection for a fault of the client."""
        core = self.core
        core.stats.protocol_faults += 1
        core.log.warning(
            "mqtt_fault",
            cause=int(fault.reason_code),
            client_id=self.session.client_id if self.session is not None else None,
            peer=self.peer(),
            reason=str(fault),
        )
        self.machine.fail(fault)
        self.close(fault.reason_code)

    def disconnect(self, reason_code: int, reason: str = "") -> None:
        """End the connection from our side, telling a v5 client why."""
        self.machine.disconnect(reason_code, reason)
        self.close(reason_code)

    def close(self, reason_code: int, *, linger: bool = True) -> None:
        """Close the transport after what is written; whoever does not read is cut off soon.

        Closing a socket with unread bytes resets it, and the client might never see why. So our
        side is shut first, and what the client still sends is read and forgotten until it closes.
        """
        if self.closed:
            return
        self.reason_code = reason_code
        self.machine.state = State.CLOSED
        core = self.core
        self.machine.flush()
        self._leave()
        transport = self.transport
        linger = linger and transport.can_write_eof() and len(core.closing) < _LINGERING_MAX
        core.closing.add(self)
        if not linger:
            transport.close()
            if transport.get_write_buffer_size():
                core.wheel.set(self, core.now_s + _CLOSE_TIMEOUT_S)
            return
        core.wheel.set(self, core.now_s + _CLOSE_TIMEOUT_S)
        try:
            transport.write_eof()
        except OSError:  # the client has gone already
            transport.close()
            return
        if self.paused:
            self.paused = 0
            transport.resume_reading()

    def cut_off_slow(self) -> None:
        """The client has not read for too long."""
        self.core.log.warning(
            "mqtt_slow_client_cut_off",
            client_id=self.session.client_id if self.session is not None else None,
            peer=self.peer(),
            unsent_bytes=self._unsent_bytes(),
        )
        self.disconnect(ReasonCode.QUOTA_EXCEEDED, "reads too slowly")
        self.transport.abort()

    def on_timer(self, now_s: float) -> None:
        """A deadline may have passed: CONNECT, keep-alive, or closing."""
        if self.closed:
            self.transport.abort()
            return
        machine = self.machine
        if self.paused:  # not the client's fault that nothing is received
            machine.last_received_s = machine.waiting_since_s = now_s
        fault = machine.handle_timeout(now_s)
        if fault is not None:
            self.fail(fault)
            return
        self.schedule()

    def schedule(self) -> None:
        """Put the next deadline into the wheel."""
        due_s = self.machine.next_deadline_s()
        if due_s is not None:
            self.core.wheel.set(self, due_s)
        else:
            self.core.wheel.cancel(self)

    def schedule_later(self) -> None:
        """The next deadline has moved, back most of the time: see that it is not missed."""
        due_s = self.machine.next_deadline_s()
        if due_s is not None:
            self.core.wheel.hasten(self, due_s)

    def cut_off(self) -> None:
        """End the connection without a word."""
        self._leave()
        self.transport.abort()

    def is_local(self) -> bool:
        """Return True when the client is on this machine; what a balancer tells is no proof."""
        if self.source is not None or self.relayed:
            return False
        return not self.address or is_loopback(self.address)

    def peer(self) -> str:
        """Return the client's address, for logs."""
        address = self.source or self.transport.get_extra_info("peername")
        if isinstance(address, tuple):
            return f"{address[0]}:{address[1]}"
        return str(address or "")

    def _leave(self) -> None:
        """The connection counts no more; its session goes on or ends by its own terms."""
        if self.closed:
            return
        self.closed = True
        if self._backlog is not None:
            self._forget_backlog()
        self.core.queues.forget(self)
        self._feeds = None
        core = self.core
        core.connections.discard(self)
        if self.listener is not None:
            self.listener.gone(self)
        if self in core.slow:
            core.slow.discard(self)
            core.writable_again()
        core.closed_bytes_sent += self.machine.bytes_sent
        session = self.session
        machine = self.machine
        machine.state = State.CLOSED
        machine.forget_waiting()
        if session is None or session.owner is not self:
            return
        session.owner = None
        connected = session.link is not None
        session.detach()
        core.registry.leave(session, core.refresh(), machine.client, send_will=self.send_will)
        if connected and core.hooks is not None and machine.client is not None:
            core.hooks.client_disconnected(machine.client, self.reason_code)

    def _forget_backlog(self) -> None:
        """What was read and not handled comes again: its QoS 2 identifiers are free."""
        backlog, self._backlog = self._backlog, None
        if backlog:
            self.forget(backlog)

    def forget(self, events: Iterable[Event]) -> None:
        """Free the QoS 2 identifiers of publishes that were read and come to nothing."""
        inbound = self.session.inbound if self.session is not None else None
        if not inbound:
            return
        for event in events:
            if isinstance(event, PublishRun):
                _, flags, ids, _ = event.token
                if flags & 3 == 2:
                    for packet_id in ids:
                        inbound.pop(int.from_bytes(packet_id, "big"), None)
            elif isinstance(event, Arrivals):
                for message, number in zip(event.messages, event.packet_ids, strict=True):
                    if message.qos == 2:
                        inbound.pop(number, None)
