"""Whose session is where: every record in sight, taking one over, letting one go.

A client that connects has its session here before it is answered. If another node that is there
has it, that node is asked first: it ends its connection with 0x8E, writes what it knows and lets
go. If it does not in time, the record is taken all the same: from that write on the other can
store nothing. What the session is owed is then read from its shard of the log.

Invariants:
- a session is restored from the record that this node has just written, and is behind from its
  cursor on (cloud/cluster/mqtt_backlog.py), so nothing is missed and nothing comes twice;
- a will in a record is published by whoever has replaced that record, under the will's own id.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Final, NamedTuple

import structlog

from cloud.cluster.mqtt_arrivals import Arrivals
from cloud.cluster.mqtt_fabric import Conflict, Fabric, FabricError, LogEntry, State
from cloud.cluster.mqtt_restore import next_packet_id, restored_state
from cloud.cluster.mqtt_sessions import SessionRecords, wanted_of
from cloud.cluster.mqtt_wire import (
    Record,
    WireError,
    decode_record,
    encode_record,
    key_of,
    shard_of,
)
from mqtt.broker.changes import SessionSaved
from mqtt.broker.core import Core
from mqtt.packets import Connect
from mqtt.session import NEVER_EXPIRES
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Claims", "Known"]

log = structlog.get_logger(component="mqtt-cluster")

_RELEASE_S: Final = 1.0  # how long a node that is there may take to let go
_RETRY_S: Final = 0.05
_READ_S: Final = 5.0  # how long the log may take until it was read to its end
_SCAN: Final = 200  # entries of the log read at once
_SETTLE_AT_ONCE: Final = 64
_LOG_EVERY_S: Final = 10.0
_US: Final = 1_000_000


class Known(NamedTuple):
    """One record as it was last seen."""

    client_id: str
    owner: str
    revision: int
    will: bool
    away_since_us: int
    expiry_s: int
    cursor_seq: int


class Claims:
    """The sessions of a cluster, as one node takes and gives them.

    Args:
        fabric: The engine.
        clock: Time.
        records: This node's own.
        wants: Called with a client id and its filters of QoS 1 or 2.
        is_there: Whether an instance has been heard of lately.
        ask_release: Asks an instance for a client's session: (instance, client id).
        fire: Publishes a record's will for good: it is in the log once, whoever else tries.
        arrivals: Of QoS 2 publishes that are in no record.
        position: Gives the number of the log up to which this node has read.
    """

    def __init__(
        self,
        fabric: Fabric,
        clock: Clock,
        records: SessionRecords,
        wants: Callable[[str, list[str]], None],
        is_there: Callable[[str], bool],
        ask_release: Callable[[str, str], None],
        fire: Callable[[Record], Awaitable[None]],
        arrivals: Arrivals,
        position: Callable[[], int],
    ) -> None:
        self._arrivals = arrivals
        self._position = position
        self._read_of: set[str] = set()  # dead owners, of which all was read
        self.core: Core
        self.instance = ""
        self.known: dict[str, Known] = {}  # by key
        self.revision = 0  # of the newest record seen
        self.taken_over = 0
        self._fabric = fabric
        self._clock = clock
        self._records = records
        self._wants = wants
        self._is_there = is_there
        self._ask_release = ask_release
        self._fire = fire
        self._waiting: dict[str, list[tuple[Connect, Callable[[], None]]]] = {}
        self._released: dict[str, asyncio.Event] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    # -- what is seen -------------------------------------------------------------------------

    def seen(self, state: State) -> None:
        """Take a record as the cluster has it."""
        self.revision = max(self.revision, state.revision)
        before = self.known.get(state.key)
        if state.value is None:
            if before is not None:
                del self.known[state.key]
                self._arrivals.ended(before.client_id)
                self._told_of(before.client_id, [], "")
            return
        try:
            record = decode_record(state.value, head=True)
        except WireError as error:
            limited(log, "wire", _LOG_EVERY_S).warning("mqtt_record_not_read", error=str(error))
            return
        saved = record.saved
        self.known[state.key] = Known(
            saved.client_id,
            record.owner,
            state.revision,
            saved.will_topic is not None,
            saved.away_since_us,
            saved.expiry_s,
            record.cursor >> 16,
        )
        self._arrivals.seen(saved.client_id, record.received)
        self._told_of(saved.client_id, wanted_of(record), record.owner)

    def _told_of(self, client_id: str, filters: list[str], owner: str) -> None:
        held = self._records.held.get(client_id)
        if held is None:
            self._wants(client_id, filters)
            if not owner:
                released = self._released.get(client_id)
                if released is not None:
                    released.set()
        elif owner not in (self.instance, "") and not held.busy:
            self.lost(client_id)
            self._wants(client_id, filters)

    # -- taking over --------------------------------------------------------------------------

    def claim(self, connect: Connect, proceed: Callable[[], None]) -> bool:
        """Make a client's session this node's; True if it is, else `proceed` is called later."""
        client_id = connect.client_id
        waiting = self._waiting.get(client_id)
        if waiting is not None:
            waiting.append((connect, proceed))
            return False
        if client_id in self._records.held or key_of("s", client_id) not in self.known:
            return True
        self._waiting[client_id] = [(connect, proceed)]
        self._spawn(self._claim(client_id, connect))
        return False

    async def _claim(self, client_id: str, connect: Connect) -> None:
        try:
            await self._take_over(client_id, clean=connect.clean_start)
        finally:
            waiting = self._waiting.pop(client_id)
        for _, proceed in waiting:
            proceed()

    async def _take_over(self, client_id: str, *, clean: bool) -> None:
        key = key_of("s", client_id)
        asked = False
        while True:
            known = self.known.get(key)
            if known is None or client_id in self._records.held:
                return
            if not asked and known.owner != self.instance and self._is_there(known.owner):
                await self._ask(known.owner, client_id)
                asked = True
            try:
                if await self._take(key, clean=clean):
                    return
            except Conflict:
                await asyncio.sleep(_RETRY_S)
            except FabricError as error:
                limited(log, "claim", _LOG_EVERY_S).warning(
                    "mqtt_session_not_claimed", error=str(error)
                )
                await asyncio.sleep(_RETRY_S * 4)

    async def _ask(self, owner: str, client_id: str) -> None:
        released = self._released[client_id] = asyncio.Event()
        self._ask_release(owner, client_id)
        try:
            async with asyncio.timeout(_RELEASE_S):
                await released.wait()
        except TimeoutError:
            log.info("mqtt_session_not_released", client_id=client_id, node=owner)
        finally:
            del self._released[client_id]

    async def _take(self, key: str, *, clean: bool) -> bool:
        """Replace the record, and restore the session or end it."""
        state = await self._fabric.get(key)
        if state is None or state.value is None:
            return True
        record = decode_record(state.value)
        saved = record.saved
        orderly = not record.owner
        over = clean or not record.lasting or self._has_expired(saved)
        will_due = saved.will_topic is not None and (over or not saved.will_delay_s)
        if not over:
            await self._read_all_of(record.owner)
            for number, packet_id in self._arrivals.missing(saved.client_id, record.received):
                record.received = number  # its PUBREC was not sent: the client sends it again
                if packet_id not in record.inbound:
                    record.inbound.append(packet_id)
        record.owner = self.instance
        if not saved.away_since_us:
            record.saved = saved._replace(away_since_us=self._clock.wall_us())
        revision = await self._fabric.put(key, encode_record(record), state.revision)
        if will_due:
            await self._fire(record)
        if over:
            await self._fabric.put(key, None, revision)
            self.known.pop(key, None)
            self._wants(saved.client_id, [])
            return True
        self.taken_over += 1
        record.saved = record.saved._replace(
            will_topic=None, will_payload=b"", will_properties=b"", will_delay_s=0
        )
        await self._restore(record, revision, orderly=orderly)
        return True

    async def _read_all_of(self, owner: str) -> None:
        """Return once what an owner has put into the log was read; raises FabricError."""
        if owner in self._read_of:
            return
        end = await self._fabric.log_end()
        try:
            async with asyncio.timeout(_READ_S):
                while self._position() < end:  # noqa: ASYNC110 - some ms, or the log lags
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise FabricError(f"the log was not read up to {end} in {_READ_S:g} s") from None
        if owner and not self._is_there(owner):
            self._read_of.add(owner)  # it appends nothing more

    def _has_expired(self, saved: SessionSaved) -> bool:
        if not saved.away_since_us or saved.expiry_s == NEVER_EXPIRES:
            return False
        return saved.away_since_us + saved.expiry_s * _US <= self._clock.wall_us()

    async def _restore(self, record: Record, revision: int, *, orderly: bool) -> None:
        """Put a session back; what has no packet identifier yet is read when it has room."""
        entries: list[LogEntry] = []
        last = max((one.position for one in record.inflight), default=0) >> 16
        after = max(0, (record.cursor >> 16) - 1)
        subject = f"s.{shard_of(record.saved.client_id)}"
        while after < last:
            try:
                found = await self._fabric.scan(subject, after, last, _SCAN)
            except FabricError:
                await asyncio.sleep(_RETRY_S)
                continue
            entries += found
            after = found[-1].seq if len(found) >= _SCAN else last
        self._put_back(record, revision, entries, orderly=orderly)

    def _put_back(
        self, record: Record, revision: int, entries: Sequence[LogEntry], *, orderly: bool
    ) -> None:
        core = self.core
        recorder = core.recorder
        assert recorder is not None
        fresh = {}  # messages that are in no log have numbers of this node's own
        for loose in record.messages:
            fresh[loose.message_id] = recorder.next_message_id
            recorder.next_message_id += 1
        record.messages = [
            loose._replace(message_id=fresh[loose.message_id]) for loose in record.messages
        ]
        record.deliveries = [
            one._replace(message_id=fresh[one.message_id])
            for one in record.deliveries
            if one.message_id in fresh
        ]
        held = self._records.hold(record, revision)
        held.behind = record.cursor + 1
        state, inflight = restored_state(record, entries)
        for one in inflight:
            self._records.restored(held, one)
        for loose in record.messages:
            self._records.put(loose)
        core.registry.restore(state, core.now_s)
        session = core.registry.sessions[record.saved.client_id]
        session.next_packet_id = next_packet_id(record, orderly=orderly)
        self._wants(record.saved.client_id, wanted_of(record))

    # -- letting go ---------------------------------------------------------------------------

    def lost(self, client_id: str) -> None:
        """Another node has the session: its connection here ends, and nothing is stored."""
        self._records.forget(client_id)
        registry = self.core.registry
        session = registry.sessions.get(client_id)
        if session is None:
            return
        session.will = None
        session.recorder = None
        connection = session.owner
        if connection is not None:
            connection.send_will = False
            connection.disconnect(0x8E)
        if registry.sessions.get(client_id) is session:
            registry.release(session)

    def release(self, client_id: str) -> None:
        """Let another node have a session of this one."""
        self._spawn(self._let_go(client_id))

    async def _let_go(self, client_id: str) -> None:
        registry = self.core.registry
        session = registry.sessions.get(client_id)
        if session is not None and session.owner is not None:
            session.owner.disconnect(0x8E)  # [MQTT-3.1.4-3] with its will, as it asks
        durable = asyncio.Event()
        assert self.core.recorder is not None
        self.core.recorder.when_durable(durable.set)
        await durable.wait()
        if client_id not in self._records.held or (session is not None and session.owner):
            return  # it ended, or the client is back here
        try:
            await self._records.let_go(client_id)
        except (Conflict, FabricError) as error:
            log.info("mqtt_session_not_let_go", client_id=client_id, error=str(error))
            return
        if session is not None and registry.sessions.get(client_id) is session:
            registry.release(session)

    # -- what the dead have left --------------------------------------------------------------

    async def settle(self, instance: str) -> None:
        """Publish the wills of a dead instance's sessions and note when their clients left.

        Raises:
            FabricError: not all could be done.
        """
        left = [
            key
            for key, known in self.known.items()
            if known.owner == instance and (known.will or not known.away_since_us)
        ]
        for at in range(0, len(left), _SETTLE_AT_ONCE):
            some = left[at : at + _SETTLE_AT_ONCE]
            await asyncio.gather(*(self._settle_one(key, instance) for key in some))

    async def _settle_one(self, key: str, instance: str) -> None:
        state = await self._fabric.get(key)
        if state is None or state.value is None:
            return
        record = decode_record(state.value)
        if record.owner != instance:
            return
        record.owner = self.instance  # if this node dies too, its heir goes on
        if not record.saved.away_since_us:
            record.saved = record.saved._replace(away_since_us=self._clock.wall_us())
        try:
            revision = await self._fabric.put(key, encode_record(record), state.revision)
        except Conflict:
            return  # the client is back
        if record.saved.will_topic is not None:
            self._spawn(self._will_later(key, record, revision))

    async def _will_later(self, key: str, record: Record, revision: int) -> None:
        """Publish a will when its delay is over, unless the client comes back before."""
        saved = record.saved
        delay_s = min(saved.will_delay_s, saved.expiry_s)
        due_us = saved.away_since_us + delay_s * _US
        while (left_us := due_us - self._clock.wall_us()) > 0:
            await asyncio.sleep(min(left_us / _US, 0.5))
            known = self.known.get(key)
            if known is None or known.revision > revision:
                return
        await self._fire(record)
        record.saved = saved._replace(will_topic=None, will_payload=b"", will_properties=b"")
        value = encode_record(record) if record.lasting else None
        while True:
            try:
                await self._fabric.put(key, value, revision)
            except Conflict:
                return
            except FabricError:
                await asyncio.sleep(_RETRY_S * 4)
            else:
                return

    async def expire(self) -> None:
        """Remove the records of sessions that have expired and that no living node has."""
        now_us = self._clock.wall_us()
        for key, known in list(self.known.items()):
            over = (
                known.away_since_us
                and known.expiry_s != NEVER_EXPIRES
                and known.away_since_us + known.expiry_s * _US <= now_us
            )
            if not over or known.will or known.client_id in self._records.held:
                continue
            if known.owner != self.instance and self._is_there(known.owner):
                continue
            try:
                await self._fabric.put(key, None, known.revision)
            except (Conflict, FabricError):
                continue

    def lowest_cursor(self, shard: int, otherwise: int) -> int:
        """Return the number of the log up to which no lasting session of a shard needs it."""
        return min(
            (
                known.cursor_seq - 1
                for known in self.known.values()
                if known.expiry_s and shard_of(known.client_id) == shard
            ),
            default=otherwise,
        )

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="mqtt-claim")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop(self) -> None:
        """End what is under way."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
