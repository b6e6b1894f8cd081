"""The session store of a cluster: one record a lasting session, written by whoever owns it.

A record is one state of the fabric and every write names the revision that it replaces: an owner
that was overtaken, however long it slept, cannot store anything any more, and learns so from its
next write or from the record it sees change. Messages are not in it: it has the position in the
log up to which its session is done, and what is special behind that (`mqtt_wire.Record`).

What is written when:
- at once, and waited for: CONNECT, SUBSCRIBE, the end, and each step of a QoS 2 exchange;
- within a second: what a client has acknowledged with QoS 1. After a crash of the owner it gets
  those messages of the last second once more.

Invariants:
- one write of a record is under way at a time, and what changed meanwhile goes into the next;
- the record forgets a will, and learns a QoS 2 identifier, only after the log has the message.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator
from functools import partial
from typing import Any, Final

import structlog

from cloud.cluster.mqtt_fabric import Conflict, Fabric, FabricError
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import (
    Inflight,
    Record,
    WireError,
    decode_record,
    encode_record,
    key_of,
    position_of,
)
from mqtt.broker.changes import (
    RELEASED,
    Change,
    DeliveryEnded,
    DeliveryReleased,
    DeliverySaved,
    InboundEnded,
    InboundSaved,
    MessageEnded,
    MessageSaved,
    SessionEnded,
    SessionSaved,
    SubscriptionEnded,
    SubscriptionSaved,
)
from runtime.logs import limited

__all__ = ["Held", "SessionRecords"]

log = structlog.get_logger(component="mqtt-cluster")

_LAZY_S: Final = 0.5
_LAZY_AT_ONCE: Final = 200  # records written for acknowledgements alone, a round
_LAG_MAX: Final = 5_000  # entries of the log that a takeover may have to read in vain
_NAMED_MAX: Final = 128  # QoS 1 deliveries whose packet identifiers are kept: more than a window
_LOOSE_BYTES_MAX: Final = 256 << 10  # of a record's messages that are not in the log
_RETRY_S: Final = 0.2
_LOG_EVERY_S: Final = 10.0
_LAST_INDEX: Final = 0xFFFF


class Held:
    """A session's record at its owner, and how much of it is written."""

    __slots__ = ("arrived", "behind", "busy", "deliveries", "dirty", "done", "ended", "key", "lazy",
                 "pending", "record", "revision", "tickets", "two", "written_seq")  # fmt: skip

    def __init__(self, key: str, record: Record, revision: int) -> None:
        self.key = key
        self.record = record
        self.revision = revision  # of the last write; 0: there is no record yet
        self.busy = False
        self.dirty = False
        self.lazy = False  # something may be written when there is time
        self.ended = False
        self.tickets: list[int] = []
        self.pending: OrderedDict[int, int] = OrderedDict()  # position -> packet id, of the log
        self.deliveries: dict[int, Inflight] = {}  # by packet id, of the log
        self.two = 0  # QoS 2 ones in `pending`
        self.done: set[int] = set(record.done)
        self.behind = 0  # the first position that was not given for want of room; 0: all were
        self.written_seq = 0  # of the log, at the last write
        self.arrived = record.received  # number of the last QoS 2 publish


class SessionRecords:
    """The records of this node's sessions.

    Args:
        fabric: The engine.
        tickets: What answers wait for.
        position: Gives the number of the log's entry up to which this node's sessions have all.
        lost: Called with the client id of a session that another node has now.
        subscribed: Called with a client id and its filters of QoS 1 or 2 when they change.
        room: Called with the client id of a session that is behind when something has left it.
    """

    def __init__(
        self,
        fabric: Fabric,
        tickets: Tickets,
        position: Callable[[], int],
        lost: Callable[[str], None],
        subscribed: Callable[[str, list[str]], None],
        room: Callable[[str], None],
    ) -> None:
        self.instance = ""
        self.held: dict[str, Held] = {}  # by client id
        self.writes = 0
        self.revision = 0  # of the newest write of this node
        self._fabric = fabric
        self._tickets = tickets
        self._position = position
        self._lost = lost
        self._subscribed = subscribed
        self._room = room
        self._loose: dict[int, MessageSaved] = {}  # messages that are in no log
        self._ending: dict[str, Held] = {}  # records that are to be removed, by client id
        self._lazy: dict[str, Held] = {}
        self._round: Iterator[str] = iter(())
        self._tasks: set[asyncio.Task[None]] = set()
        self._apply: dict[type, Callable[[Change], None]] = {
            SessionSaved: self._session_saved,  # type: ignore[dict-item] # each its own kind
            SessionEnded: self._session_ended,  # type: ignore[dict-item]
            SubscriptionSaved: self._subscription_saved,  # type: ignore[dict-item]
            SubscriptionEnded: self._subscription_ended,  # type: ignore[dict-item]
            MessageSaved: self._message_saved,  # type: ignore[dict-item]
            MessageEnded: self._message_ended,  # type: ignore[dict-item]
            DeliverySaved: self._delivery_saved,  # type: ignore[dict-item]
            DeliveryReleased: self._delivery_released,  # type: ignore[dict-item]
            DeliveryEnded: self._delivery_ended,  # type: ignore[dict-item]
            InboundSaved: self._inbound_saved,  # type: ignore[dict-item]
            InboundEnded: self._inbound_ended,  # type: ignore[dict-item]
        }

    def put(self, change: Change) -> None:
        """Take a change of a session of this node."""
        self._apply[type(change)](change)

    # -- sessions -----------------------------------------------------------------------------

    def hold(self, record: Record, revision: int) -> Held:
        """Take a record that was claimed; its deliveries are told by `restored`."""
        client_id = record.saved.client_id
        held = self.held[client_id] = Held(key_of("s", client_id), record, revision)
        return held

    def restored(self, held: Held, one: Inflight) -> None:
        """Note a delivery that was restored from the log."""
        held.pending[one.position] = one.packet_id
        held.deliveries[one.packet_id] = one
        held.two += one.qos == 2

    def forget(self, client_id: str) -> None:
        """Another node has the session: nothing is written any more."""
        held = self.held.pop(client_id, None)
        if held is not None:
            held.ended = True
            self._lazy.pop(client_id, None)
            self._close(held)

    def drop(self, client_id: str) -> None:
        """Remove the record, once the log has what was put before."""
        held = self.held.pop(client_id, None)
        if held is None:
            return
        held.ended = True
        self._lazy.pop(client_id, None)
        self._ending[client_id] = held
        self._tickets.when_done(partial(self._spawn, partial(self._delete, held)))
        held.tickets.append(self._tickets.open())

    async def let_go(self, client_id: str) -> None:
        """Write a record one last time, owned by nobody; raises Conflict and FabricError."""
        held = self.held[client_id]
        await self._until_idle(held)
        held.record.owner = ""
        held.revision = await self._fabric.put(held.key, self._encoded(held), held.revision)
        self.forget(client_id)

    def _fresh(self, client_id: str) -> Held:
        """Return an empty record; one that is about to be removed is written over instead."""
        held = self._ending.pop(client_id, None) or self.held.get(client_id)
        if held is None:
            held = Held(key_of("s", client_id), Record(self.instance), 0)
        else:
            held.ended = held.lazy = False
            held.record = Record(self.instance)
            held.pending.clear()
            held.deliveries.clear()
            held.done.clear()
            held.two = held.behind = 0
        self.held[client_id] = held
        return held

    def write(self, held: Held) -> None:
        """Write a record as it is now; an answer may wait for it."""
        self._write(held)

    def _session_saved(self, change: SessionSaved) -> None:
        held = self.held.get(change.client_id)
        if held is None or not held.record.lasting:
            held = self._fresh(change.client_id)
            held.record.saved = change
        record = held.record
        before = record.saved
        if change.will_topic is not None and not change.away_since_us:
            self.writes += 1
            record.will_id = f"{self.instance}:{self.writes}"
        if before.will_topic is None or change.will_topic is not None or not change.away_since_us:
            record.saved = change
            self._write(held)
            return

        def forget_will() -> None:  # it was published just now, and the log has it
            if record.saved is before:
                record.saved = change

        self._write_after_log(held, forget_will)

    def _session_ended(self, change: SessionEnded) -> None:
        self._subscribed(change.client_id, [])
        self.drop(change.client_id)

    def _subscription_saved(self, change: SubscriptionSaved) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        subscriptions = held.record.subscriptions
        before = subscriptions.get(change.topic_filter)
        since = self._position() if before is None else before[2]
        subscriptions[change.topic_filter] = (change.options, change.identifier, since)
        self._tell(held)
        self._write(held)

    def _subscription_ended(self, change: SubscriptionEnded) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        held.record.subscriptions.pop(change.topic_filter, None)
        self._tell(held)
        self._write(held)

    def _tell(self, held: Held) -> None:
        record = held.record
        self._subscribed(record.saved.client_id, wanted_of(record))

    # -- deliveries ---------------------------------------------------------------------------

    def _message_saved(self, change: MessageSaved) -> None:
        if change.message_id > 0:
            self._loose[change.message_id] = change

    def _message_ended(self, change: MessageEnded) -> None:
        self._loose.pop(change.message_id, None)

    def _delivery_saved(self, change: DeliverySaved) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        if change.message_id > 0:
            held.record.deliveries.append(change)
            self._write(held)
            return
        one = Inflight(change.packet_id, -change.message_id, change.qos, change.progress,
                       change.retain, change.identifiers, change.share)  # fmt: skip
        self.restored(held, one)
        if one.qos == 2:
            self._write(held)
        else:
            self._write_lazily(held)

    def _delivery_released(self, change: DeliveryReleased) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        one = held.deliveries.get(change.packet_id)
        if one is not None:
            held.deliveries[change.packet_id] = one._replace(progress=RELEASED)
        else:
            held.record.deliveries = [
                loose._replace(progress=RELEASED) if loose.packet_id == change.packet_id else loose
                for loose in held.record.deliveries
            ]
        self._write(held)

    def _delivery_ended(self, change: DeliveryEnded) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        one = held.deliveries.pop(change.packet_id, None)
        if one is not None:
            if held.pending.pop(one.position, None) is not None:
                held.done.add(one.position)
                held.two -= one.qos == 2
                if held.behind:
                    self._room(change.client_id)
        else:
            held.record.deliveries = [
                loose for loose in held.record.deliveries if loose.packet_id != change.packet_id
            ]
        self._write_lazily(held)

    def arrive(self, client_id: str) -> int:
        """Return the number of the next QoS 2 publish of a session; 0: it has no record."""
        held = self.held.get(client_id)
        if held is None:
            return 0
        # the log only gets longer: so it rises over sessions of the same name as well
        held.arrived = max(held.arrived + 1, position_of(self._position(), 0))
        return held.arrived

    def _inbound_saved(self, change: InboundSaved) -> None:
        held = self.held.get(change.client_id)
        if held is None:
            return
        record, number = held.record, held.arrived

        def note() -> None:
            record.received = max(record.received, number)
            if change.packet_id not in record.inbound:
                record.inbound.append(change.packet_id)

        self._write_after_log(held, note)

    def _inbound_ended(self, change: InboundEnded) -> None:
        held = self.held.get(change.client_id)
        if held is not None and change.packet_id in held.record.inbound:
            held.record.inbound.remove(change.packet_id)
            self._write(held)

    # -- writing ------------------------------------------------------------------------------

    def _write_after_log(self, held: Held, change: Callable[[], None]) -> None:
        """Change and write once everything put before is durable; an answer waits for it."""

        def go_on() -> None:
            if held.ended:
                self._tickets.close(ticket)
                return
            change()
            held.tickets.append(ticket)
            self._start(held)

        self._tickets.when_done(go_on)
        ticket = self._tickets.open()

    def _write(self, held: Held) -> None:
        held.tickets.append(self._tickets.open())
        self._start(held)

    def _start(self, held: Held) -> None:
        held.dirty = True
        if not held.busy:
            held.busy = True
            self._spawn(partial(self._run, held))

    def _write_lazily(self, held: Held) -> None:
        if not held.lazy:
            held.lazy = True
            self._lazy[held.record.saved.client_id] = held

    async def keep_up(self) -> None:
        """Write what was acknowledged, now and then, until cancelled."""
        while True:
            await asyncio.sleep(_LAZY_S)
            for client_id in list(self._lazy)[:_LAZY_AT_ONCE]:
                held = self._lazy.pop(client_id)
                held.lazy = False
                if not held.ended:
                    self._start(held)
            self._look_for_laggards()

    def _look_for_laggards(self) -> None:
        """Bring a few records whose cursors lag up to date: a takeover reads from there."""
        behind = self._position() - _LAG_MAX
        for _ in range(_LAZY_AT_ONCE):
            client_id = next(self._round, None)
            if client_id is None:
                self._round = iter(list(self.held))
                return
            held = self.held.get(client_id)
            if held is not None and held.written_seq < behind and held.record.lasting:
                self._write_lazily(held)

    def _spawn(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        task = asyncio.get_running_loop().create_task(work(), name="mqtt-record")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, held: Held) -> None:
        """Write until nothing has changed during the write."""
        unsure = False
        while held.dirty and not held.ended:
            held.dirty = False
            tickets, held.tickets = held.tickets, []
            value = self._encoded(held)
            if len(value) > self._fabric.payload_bytes_max:
                log.error("mqtt_session_too_large", client_id=held.record.saved.client_id)
                held.tickets = tickets + held.tickets
                self._overtaken(held)
                return
            try:
                held.revision = await self._fabric.put(held.key, value, held.revision)
            except Conflict:
                held.tickets = tickets + held.tickets
                if not await self._is_still_ours(held, unsure=unsure):
                    self._overtaken(held)
                    return
                held.dirty = True
                continue
            except FabricError as error:
                held.tickets = tickets + held.tickets
                held.dirty = unsure = True
                limited(log, "record", _LOG_EVERY_S).warning(
                    "mqtt_session_not_stored", error=str(error)
                )
                await asyncio.sleep(_RETRY_S)
                continue
            self.revision = max(self.revision, held.revision)
            for ticket in tickets:
                self._tickets.close(ticket)
        held.busy = False
        if held.ended and held not in self._ending.values():
            self._close(held)

    def _encoded(self, held: Held) -> bytes:
        record = held.record
        if record.owner:
            record.owner = self.instance
        self.writes += 1
        record.stamp = f"{self.instance}:{self.writes}"
        pending = held.pending
        held.written_seq = self._position()
        first = next(iter(pending), None)
        if held.behind:
            first = held.behind if first is None else min(first, held.behind)
        record.cursor = (
            first - 1 if first is not None else position_of(held.written_seq, _LAST_INDEX)
        )
        held.done = {one for one in held.done if one > record.cursor}
        record.done = sorted(held.done)
        record.inflight = []
        left = held.two
        for count, packet_id in enumerate(pending.values()):
            one = held.deliveries[packet_id]
            if count < _NAMED_MAX or one.qos == 2:
                record.inflight.append(one)
            left -= one.qos == 2
            if count >= _NAMED_MAX and left <= 0:
                break
        record.messages = self._bodies(record)
        record.next_packet_id = max(
            (one.packet_id for one in record.inflight), default=record.next_packet_id
        )
        return encode_record(record)

    def _bodies(self, record: Record) -> list[MessageSaved]:
        """Return the messages of a record that are in no log, such as retained ones, within bounds.

        What is left out the client still gets from this node, but from no other if it dies.
        """
        bodies: dict[int, MessageSaved] = {}
        left = _LOOSE_BYTES_MAX
        for delivery in record.deliveries:
            message = self._loose.get(delivery.message_id)
            if message is not None and message.message_id not in bodies:
                left -= len(message.payload) + len(message.topic) + len(message.properties)
                if left < 0:
                    break
                bodies[message.message_id] = message
        return list(bodies.values())

    async def _is_still_ours(self, held: Held, *, unsure: bool) -> bool:
        """Return True when a write whose outcome was not known is what stands there."""
        while True:
            try:
                state = await self._fabric.get(held.key)
                break
            except FabricError:
                await asyncio.sleep(_RETRY_S)
        if state is None or state.value is None:
            return False
        try:
            record = decode_record(state.value)
        except WireError:
            return False
        if not unsure or record.owner != self.instance:
            return False
        held.revision = state.revision
        return True

    def _overtaken(self, held: Held) -> None:
        client_id = held.record.saved.client_id
        log.info("mqtt_session_overtaken", client_id=client_id)
        held.ended = True
        self._close(held)
        if self.held.get(client_id) is held:
            del self.held[client_id]
            self._lost(client_id)

    async def _delete(self, held: Held) -> None:
        client_id = held.record.saved.client_id
        await self._until_idle(held)
        if not held.ended:
            return  # there is a session of that name again
        held.busy = True
        while held.revision:
            try:
                await self._fabric.put(held.key, None, held.revision)
            except Conflict:
                pass  # another node's by now
            except FabricError:
                await asyncio.sleep(_RETRY_S)
                continue
            held.revision = 0
        if self._ending.get(client_id) is held:
            del self._ending[client_id]
        await self._run(held)  # somebody may have begun a session of that name again

    @staticmethod
    async def _until_idle(held: Held) -> None:
        while held.busy:  # noqa: ASYNC110 - one write; an event a record would cost memory
            await asyncio.sleep(0.001)

    def _close(self, held: Held) -> None:
        tickets, held.tickets = held.tickets, []
        for ticket in tickets:
            self._tickets.close(ticket)

    async def stop(self) -> None:
        """Write what waits, as far as the engine takes it in a second, and end."""
        for held in list(self._lazy.values()):
            if not held.ended:
                self._start(held)
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=1.0)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def wanted_of(record: Record) -> list[str]:
    """Return the filters of a lasting session that messages are logged for."""
    if not record.lasting:
        return []
    return sorted(
        topic_filter
        for topic_filter, (options, _, _) in record.subscriptions.items()
        if options & 3
    )
