"""The uplink: readings go from the journal to the cloud, and leave the journal once they are safe.

Three tasks: *pump* dials, sends and takes answers; *watch* wakes it when the journal has news; and
*settle* forgets in the journal what the cloud acknowledged (edge/uplink_settle.py).
What to send, when to give up on what, and how long to wait is decided by bridge/uplink_state.py;
here are the clock, the socket and the journal.

Nothing waits for the uplink: with no cloud in reach the journal grows, and devices are served as
ever. A batch is made in one go on the loop, which `batch_readings` and `batch_bytes` bound, but for
structured bodies, which come from a process of their own (edge/uplink_bodies.py):
benchmarks/uplink.py measures how long that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from bridge.batch import Encoder, EntryEncoder, link_columns
from bridge.devices import DeviceIds
from bridge.envelope import LinkLane, Mode
from bridge.errors import BatchError, LinkError
from bridge.link_level import LEVELS, LevelGovernor
from bridge.link_pacing import Pace, decode_credit
from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN, Readings
from bridge.uplink_state import (
    PAYLOAD_FORMAT_INVALID,
    Durable,
    Grant,
    Redial,
    Rng,
    Sent,
    SetAside,
    UplinkEvent,
    UplinkState,
)
from edge.commands import CommandLink
from edge.config import Endpoint, UplinkConfig
from edge.contract import JournalReader, Lane, Tombstone
from edge.readings import CommitError, packet_bytes
from edge.segments import Segment, pack_segment
from edge.uplink_bodies import UplinkBodies
from edge.uplink_budget import BudgetAccount
from edge.uplink_connection import ConnectionOptions, UplinkConnection, tls_context
from edge.uplink_lanes import TICK_S, UplinkLanes, journal_lane
from edge.uplink_settle import Settler, link_tombstones
from edge.uplink_status import UplinkStatus
from mqtt.frames import encode_publish
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["RELOADABLE_KEYS", "Uplink"]

# what `reconfigure` takes while the uplink runs
RELOADABLE_KEYS = (
    "endpoints",
    "username",
    "password",
    "tls_ca_file",
    "tls_cert_file",
    "tls_key_file",
    "keep_alive_s",
    "connect_timeout_s",
)

_STOP_S = 2.0  # how long a stop waits for answers
_RATE_WINDOW_S = 10.0
_LOG_EVERY_S = 30.0
_NOTHING = Readings(range(0), [], [], [], [], [], [])


class Downlink(Protocol):
    """Who takes what the cloud sends down besides credits: edge/commands.py."""

    def linked(self, link: CommandLink, /) -> None:
        """A connection is up; `link` is the way back on it."""
        ...

    def unlinked(self) -> None:
        """It is gone."""
        ...

    def received(self, payload: bytes, /) -> bool:
        """Take a control message; False when it is none of its own."""
        ...


class Uplink:
    """Carries one gateway's readings to the cloud.

    Args:
        config: Where to and how.
        gateway: The gateway's id.
        journal: What to carry.
        device_ids: Finds the device of a topic.
        clock: Gives time to the state machine and to the status.
        rng: Spreads reconnects; the system's generator when not given.
        backlog: Returns how many readings wait in the journal and the age of the oldest in
            seconds, for the status; estimated when not given.
        budget_path: Where the account of a metered link is kept over restarts.
        snapshot_path: Where what the cloud knows is kept, so that a connection starts warm.
    """

    def __init__(
        self,
        config: UplinkConfig,
        gateway: str,
        journal: JournalReader,
        device_ids: DeviceIds,
        clock: Clock,
        *,
        rng: Rng | None = None,
        backlog: Callable[[], tuple[int, float]] | None = None,
        budget_path: Path | None = None,
        snapshot_path: Path | None = None,
    ) -> None:
        self._config = config
        self._gateway = gateway
        self._journal = journal
        self._clock = clock
        self._backlog = backlog or self._estimated_backlog
        self._endpoints = [Endpoint.parse(url) for url in config.endpoints]
        self._state = UplinkState(
            config.limits, max(1, len(self._endpoints)), rng or random.SystemRandom()
        )
        self._pace = Pace(rng or random.SystemRandom(), config.batch_readings)
        self._account = BudgetAccount(config.budget.limits, budget_path, clock)
        self._lanes = UplinkLanes(
            journal, config, device_ids, self._state, self._pace, self._account
        )
        self._level = LevelGovernor(config.zstd_level)
        self._resolution_us = max(1, round(config.time_resolution_ms * 1000))
        self._encoder = Encoder(
            gateway, journal.epoch, resolution_us=self._resolution_us, level=self._level.level
        )
        level = config.zstd_level or LEVELS[0]
        self._bodies = UplinkBodies(config.mode, self._resolution_us, level, clock, snapshot_path)
        self._connection: UplinkConnection | None = None
        self._tls: ssl.SSLContext | None = None  # the last that could be made
        self._sent: dict[int, tuple[Sent, int]] = {}  # by packet id, with its packet_bytes
        self._asides: list[tuple[SetAside, bytes]] = []  # to do; b"" = encode the readings
        self._downlink: Downlink | None = None
        self._settler = Settler(journal)
        self._acked_mark = 0  # the peer's TCP count at the last look
        self._status = UplinkStatus()
        self._closed_bytes = (0, 0)
        self._counted_bytes = 0  # of those of all connections, in the budget's account
        self._rate_at_s = clock.monotonic_s()
        self._rate_bytes_s: float | None = None  # of the link, when last seen
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger(component="uplink").bind(gateway=gateway)

    # ---- life

    async def start(self) -> None:
        """Begin; without endpoints nothing is ever sent."""
        self._wake = asyncio.Event()
        if self._endpoints:
            self._begin()

    def _begin(self) -> None:
        works = {"pump": self._pump, "watch": self._watch, "settle": self._settler.run}
        self._tasks = [
            asyncio.create_task(self._for_ever(work), name=f"uplink-{name}")
            for name, work in works.items()
        ]

    async def stop(self) -> None:
        """End in order; what is not acknowledged stays in the journal."""
        self._stopping = True  # 1. no new batch
        if self._connection is not None:  # 2. answers to what is on its way; pump says DISCONNECT
            self._wake.set()
            await asyncio.wait(self._tasks[:1], timeout=_STOP_S)
        for task in self._tasks:  # 3. the tasks
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._bodies.close()
        if self._tasks:
            await self._settler.settle()  # 4. what was acknowledged last
        await self._account.close()  # 5. what the link has carried
        self._tasks = []
        self._set_link("off")

    def reconfigure(self, config: UplinkConfig) -> None:
        """Take other endpoints, credentials or certificates (RELOADABLE_KEYS): at once where the
        connection in use is not among them, else from the next on. What was not acknowledged is
        sent again."""
        before = self._config
        changes = {key: getattr(config, key) for key in RELOADABLE_KEYS}
        after = replace(before, **changes)
        if after == before:
            return
        self._config = after
        self._endpoints = [Endpoint.parse(url) for url in after.endpoints]
        self._state.endpoints_changed(max(1, len(self._endpoints)))
        connection = self._connection
        if connection is not None and (
            connection.endpoint not in self._endpoints
            or replace(after, endpoints=()) != replace(before, endpoints=())
        ):
            connection.abort("the configuration has changed")
        if not self._tasks and self._endpoints:
            self._begin()

    async def _for_ever(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run one of the tasks; whatever goes wrong is logged, and it begins again."""
        while not self._stopping:
            try:
                await work()
            except Exception as error:  # noqa: BLE001 - a task's root
                self._state.last_error = f"uplink: {error!r}"
                limited(self._log, ("failed", work), _LOG_EVERY_S).exception("uplink_failed")
                await asyncio.sleep(self._config.backoff_min_s)

    def attach(self, downlink: Downlink) -> None:
        """Give what comes down, and a way to answer it, to `downlink` from now on."""
        self._downlink = downlink
        if self._connection is not None:
            downlink.linked(self._connection)

    # ---- connection

    async def _pump(self) -> None:
        while not self._stopping:
            await self._finish_asides()
            wait_s = self._state.dial_at_s - self._clock.monotonic_s()
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, TICK_S))
                continue
            if self._lanes.parked():
                self._set_link("parked")
                await self._wait(TICK_S)
                continue
            connection = await self._dial()
            if connection is None:
                continue
            try:
                await self._converse(connection)
            finally:
                await connection.close()
                self._end(connection)

    async def _dial(self) -> UplinkConnection | None:
        """Return a connection to the endpoint whose turn it is, None when it cannot be had."""
        state = self._state
        if not self._endpoints:  # taken away while it ran
            self._set_link("off")
            await asyncio.sleep(TICK_S)
            return None
        endpoint = self._endpoints[state.endpoint]
        if self._status.link in ("off", "parked"):
            self._set_link("connecting")
        self._status.dials += 1
        self._status.endpoint = str(endpoint)
        connection: UplinkConnection | None = None
        try:
            connection = UplinkConnection(
                endpoint,
                self._options(endpoint),
                self._on_puback,
                self._wake.set,
                self._on_control,
            )
            await connection.dial()
        except LinkError as error:
            if connection is not None:
                self._closed(connection)
            retry_after_s = connection.retry_after_s if connection is not None else 0.0
            state.connection_lost(
                self._clock.monotonic_s(), str(error), retry_after_s=retry_after_s
            )
            self._set_link("offline")
            limited(self._log, "dial_failed", _LOG_EVERY_S).warning("dial_failed", error=str(error))
            return None
        state.connection_made(
            self._clock.monotonic_s(),
            receive_maximum=connection.receive_maximum - connection.says_max,
            packet_bytes_max=connection.packet_bytes_max,
        )
        self._connection = connection
        self._acked_mark = 0
        self._pace.reset()
        self._sent.clear()
        self._status.connections += 1
        self._set_link("online")
        if self._downlink is not None:
            self._downlink.linked(connection)
        self._log.info("connected", endpoint=str(endpoint), backlog=self._backlog()[0])
        return connection

    def _options(self, endpoint: Endpoint) -> ConnectionOptions:
        config = self._config
        return ConnectionOptions(
            gateway=self._gateway,
            username=config.username,
            password=config.password,
            keep_alive_s=config.keep_alive_s,
            connect_timeout_s=config.connect_timeout_s,
            tls=self._tls_context() if endpoint.tls else None,
        )

    def _tls_context(self) -> ssl.SSLContext:
        """Return a context made anew, so that renewed certificates are used.

        Files that cannot be used, half-written ones among them, leave the one of before in use.
        """
        try:
            self._tls = tls_context(self._config)
        except LinkError as error:
            if self._tls is None:
                raise
            limited(self._log, "certificates_kept", _LOG_EVERY_S).warning(
                "certificates_kept", reason=str(error)
            )
        return self._tls

    def _end(self, connection: UplinkConnection) -> None:
        """Forget a connection; what it had in flight is sent again on the next."""
        self._rate_bytes_s = self.rate_bytes_s
        self._closed(connection)
        if self._downlink is not None:
            self._downlink.unlinked()
        cause = f"{connection.endpoint}: {connection.cause}"
        now_s = self._clock.monotonic_s()
        self._handle(self._state.connection_lost(now_s, cause, connection.reason_code))
        self._set_link("offline")
        if not self._stopping:
            self._log.warning("connection_lost", cause=cause)

    def _closed(self, connection: UplinkConnection) -> None:
        """Note what a connection has moved that is gone, or was never accepted."""
        moved = connection.link_bytes()
        out, into = self._closed_bytes
        self._closed_bytes = (out + moved.out, into + moved.into)
        self._connection = None
        self._count_bytes()

    async def _converse(self, connection: UplinkConnection) -> None:
        """Send batches until the connection is lost, or all is answered when stopping."""
        while not connection.lost:
            if self._stopping and not self._state.batches_in_flight:
                return
            await self._finish_asides()
            self._count_bytes()
            if self._lanes.parked() and not self._state.batches_in_flight:
                return
            self._wake.clear()
            now_s = self._clock.monotonic_s()
            lane, wait_s = (None, TICK_S) if self._stopping else self._next_lane(now_s)
            if lane is not None:
                await self._send(connection, lane)
                await asyncio.sleep(0)  # the broker's turn
                continue
            self._look_at_link(connection, now_s)
            if self._state.holding(now_s):
                wait_s = min(wait_s, self._state.resume_s() - now_s)
            await self._wait(wait_s)

    async def _wait(self, wait_s: float) -> None:
        """Wait until something happens, but no longer than that."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await self._wake.wait()
        self._wake.clear()

    def _count_bytes(self) -> None:
        """Add what the link has moved since the last look to the budget's account."""
        moved = sum(self._moved_bytes())
        self._account.count(moved - self._counted_bytes)
        self._counted_bytes = moved

    def _moved_bytes(self) -> tuple[int, int]:
        """Return what all connections have moved, out and in."""
        out, into = self._closed_bytes
        if self._connection is not None:
            moved = self._connection.link_bytes()
            out, into = out + moved.out, into + moved.into
            self._status.rtt_ms = moved.rtt_ms
        return out, into

    def _look_at_link(self, connection: UplinkConnection, now_s: float) -> None:
        """Tell a slow link, whose bytes still move, from a dead one, which is dropped."""
        moved = connection.link_bytes()
        if moved.outstanding and moved.acked > self._acked_mark:
            self._state.progressed(now_s)
        self._acked_mark = moved.acked
        for event in self._state.handle_timeout(now_s):
            assert isinstance(event, Redial)
            connection.abort(event.cause)

    # ---- sending

    def _next_lane(self, now_s: float) -> tuple[LinkLane | None, float]:
        """Return the lane to send now, or None and how long to wait unless something happens."""
        lane, wait_s = self._lanes.next(now_s, self._config.batch_readings)
        if lane is not None or not self._state.can_send(now_s):
            return lane, wait_s
        stones = self._settler.unreported(self._state.generation)
        return (LinkLane.LIVE, 0.0) if stones else (None, wait_s)

    async def _send(self, connection: UplinkConnection, lane: LinkLane) -> None:
        """Make the next batch of a lane and send it."""
        state = self._state
        mode = self._bodies.wanted(self._clock.monotonic_s(), self._lanes.waiting())
        grant = state.grant(lane, mode)
        try:
            readings, historical = await self._lanes.take(grant, self._clock.wall_us())
        except CommitError as error:
            self._unreadable(grant, error)
            return
        if grant.generation != state.generation or connection.lost:
            return
        if grant.fresh:
            self._encoder.reset()
            self._bodies.reset()
        try:
            grant, body = await self._body(grant, readings)
        except Exception as error:  # noqa: BLE001 - what no encoder takes must not stop its lane
            self._refuse(grant, readings, "encode", f"cannot be encoded: {error!r}")
            return
        if grant.generation != state.generation or connection.lost:
            return
        stones = self._settler.unreported(state.generation)
        if readings is None:
            if lane is LinkLane.BACKLOG:
                self._handle(state.backlog_read_out())
            if not stones or lane is not LinkLane.LIVE:
                return
            readings = _NOTHING
        try:
            payload = self._encode(grant, readings, body, stones, historical=historical)
        except Exception as error:  # noqa: BLE001 - as above
            self._refuse(grant, readings, "encode", f"cannot be encoded: {error!r}")
            return
        first, last = _span(readings, grant)
        if state.too_large(connection.packet_bytes(len(payload))):
            cause = f"{len(payload)} bytes; the cloud takes at most {connection.packet_bytes_max}"
            self._refuse(grant, readings, "too-large", cause)
            return
        sent = state.sent(
            grant,
            self._clock.monotonic_s(),
            first_seq=first,
            last_seq=last,
            count=len(readings),
            batch_bytes=len(payload),
            tombstones=link_tombstones(stones),
        )
        self._settler.reported(stones)
        self._lanes.sent(lane, len(payload), len(readings))
        self._publish(connection, payload, sent, packet_bytes(readings))

    def _refuse(self, grant: Grant, readings: Readings | None, word: str, cause: str) -> None:
        """Note that a batch cannot be sent: fewer of its readings are tried next."""
        found = readings if readings is not None else _NOTHING
        first, last = _span(found, grant)
        count = len(found)
        self._handle(
            self._state.refused_here(
                grant, first_seq=first, last_seq=last, count=count, cause=cause, word=word
            )
        )

    async def _body(self, grant: Grant, readings: Readings | None) -> tuple[Grant, bytes | None]:
        """Return a structured body if there is to be one, and the grant with the mode it has."""
        if readings is None or grant.mode != Mode.STRUCTURED:
            return replace(grant, mode=int(Mode.COLUMNAR)), None
        columns = link_columns(readings, self._resolution_us)
        began_s = self._clock.monotonic_s()
        made = await self._bodies.encode(columns, self._encoder.last_time)
        if made is None:
            return replace(grant, mode=int(Mode.COLUMNAR)), None
        now_s = self._clock.monotonic_s()
        self._bodies.governor.encoded(
            now_s,
            now_s - began_s,
            len(readings),
            waiting=self._lanes.waiting(),
            idle=not self._state.batches_in_flight,
        )
        mode, body = made
        return replace(grant, mode=mode), body

    def _encode(
        self,
        grant: Grant,
        readings: Readings,
        body: bytes | None,
        stones: Sequence[Tombstone],
        *,
        historical: bool,
    ) -> bytes:
        self._encoder.level = self._level.level
        began_s = self._clock.monotonic_s()
        payload = self._encoder.encode(
            readings,
            lane=grant.lane,
            historical=historical,
            mode=grant.mode,
            body=body,
            assigned=self._journal.last_seq,
            tombstones=link_tombstones(stones),
        )
        if body is None and len(readings):
            took_s = self._clock.monotonic_s() - began_s
            self._level.encoded(took_s, len(payload), self._state.speed.rate_bytes_s)
        return payload

    def _publish(self, connection: UplinkConnection, payload: bytes, sent: Sent, size: int) -> None:
        try:
            packet_id = connection.publish(payload)
        except LinkError as error:
            connection.abort(str(error))
            return
        self._sent[packet_id] = (sent, size)

    # ---- answers

    def _on_puback(self, packet_id: int, reason_code: int, reason: str) -> None:
        found = self._sent.pop(packet_id, None)
        if found is None:
            return
        sent, size = found
        refusals = self._state.refusals
        events = self._state.answered(sent, reason_code, reason, self._clock.monotonic_s())
        if sent.durable:
            self._status.batches_sent += 1
            self._status.structured_batches += sent.mode == Mode.STRUCTURED
            self._status.packet_bytes += size
            if sent.mode == Mode.STRUCTURED and sent.generation == self._state.generation:
                self._bodies.acknowledged()
        if self._state.refusals > refusals:
            if reason_code == PAYLOAD_FORMAT_INVALID:
                self._bodies.refused()
            limited(self._log, "batch_refused", _LOG_EVERY_S).warning(
                "batch_refused",
                reason_code=f"0x{reason_code:02x}",
                reason=reason,
                first_seq=sent.first_seq,
                count=sent.count,
            )
        self._handle(events)
        self._wake.set()

    def _on_control(self, payload: bytes, own: bool) -> None:
        """Take what the cloud says, to this gateway or to all; an empty message says nothing."""
        if not payload or (self._downlink is not None and self._downlink.received(payload)):
            return
        try:
            credit = decode_credit(payload)
        except BatchError as error:
            limited(self._log, "bad_control", _LOG_EVERY_S).warning("bad_control", error=str(error))
            return
        if credit is not None:
            self._pace.take(credit, self._clock.monotonic_s(), own=own)
            self._wake.set()

    def _handle(self, events: Sequence[UplinkEvent]) -> None:
        for event in events:
            if isinstance(event, Durable):
                self._settler.forget(event.tombstones)
                self._settler.trim(journal_lane(event.lane), event.after_seq, event.seq)
                self._count(event.readings)
            elif isinstance(event, SetAside):
                self._asides.append((event, b""))
                self._wake.set()

    # ---- dead letters

    def _unreadable(self, grant: Grant, error: CommitError) -> None:
        """Set a commit aside that holds no publishes, once what lies before it is settled."""
        commit = error.commit
        last_seq = commit.first_seq + commit.count - 1
        events = self._state.unreadable(
            grant, first_seq=commit.first_seq, last_seq=last_seq, cause=str(error)
        )
        self._asides += [(event, commit.body) for event in events if isinstance(event, SetAside)]

    async def _finish_asides(self) -> None:
        """Move refused readings to the dead letters; raises what the journal raises."""
        while self._asides:
            event, body = self._asides[0]
            lane = journal_lane(event.lane)
            count = event.last_seq - event.first_seq + 1
            if not body:
                readings = await self._lanes.take_one(event.lane, event.after_seq)
                if readings is not None:
                    body = self._letter_of(readings, lane)
            await self._journal.set_aside(lane, event.first_seq, event.last_seq, event.cause, body)
            self._asides.pop(0)
            self._state.set_aside_done(event, self._clock.monotonic_s())
            self._settler.trim(lane, event.after_seq, event.last_seq)
            self._status.dead_letters += count
            self._log.error(
                "readings_set_aside",
                first_seq=event.first_seq,
                last_seq=event.last_seq,
                cause=event.cause,
            )

    def _letter_of(self, readings: Readings, lane: Lane) -> bytes:
        """Return one reading as a dead letter keeps it: an entry, or, if need be, a body of 3.1."""
        try:
            epoch = self._journal.epoch
            return EntryEncoder().encode(self._gateway, epoch, readings, lane=lane)
        except Exception:  # noqa: BLE001 - the very fault it is set aside for
            (topic, _), flags = readings.sources[readings.source_index[0]], readings.flags[0]
            first_byte = 0x30 | (flags & FLAG_QOS_MASK) << 1 | bool(flags & FLAG_RETAIN)
            block = readings.properties[0]
            frame = encode_publish(first_byte, topic.encode(), 1, block, readings.payloads[0], 5)
            return pack_segment(Segment(5, "", readings.times_us[0], 1, frame))

    async def _watch(self) -> None:
        while True:
            await self._journal.wait()
            self._wake.set()

    # ---- status

    def status(self) -> UplinkStatus:
        """Return the figures of this moment."""
        status, state = self._status, self._state
        now_s = self._clock.monotonic_s()
        status.bytes_out, status.bytes_in = self._moved_bytes()
        wall_us = self._clock.wall_us()
        status.day_bytes = self._account.budget.day_bytes(wall_us)
        status.month_bytes = self._account.budget.month_bytes(wall_us)
        verdict = self._account.verdict(LinkLane.LIVE, state.bytes_in_flight)
        status.waits_for, status.waits_s = verdict.reason, verdict.wait_s
        status.last_error = state.last_error
        status.refusals = state.refusals
        status.encoder_restarts = self._bodies.restarts
        status.zstd_level = self._level.level
        status.batches_in_flight = state.batches_in_flight
        status.bytes_in_flight = state.bytes_in_flight
        status.window_bytes = state.window_bytes
        if status.link in ("online", "waiting"):
            self._set_link("waiting" if state.holding(now_s) else "online")
        status.backlog_readings, status.oldest_age_s = self._backlog()
        self._count(0)
        rate = status.rate_readings_s
        status.drain_s = status.backlog_readings / rate if rate > 0.01 else None
        return replace(status)

    @property
    def rate_bytes_s(self) -> float | None:
        """What the link carries, as far as it was seen on this connection or the last."""
        known = self._state.speed.rate_bytes_s
        if known is not None:
            self._rate_bytes_s = known
        return self._rate_bytes_s

    @property
    def reading_bytes(self) -> float:
        """What one reading takes in a batch, on average."""
        return self._state.speed.reading_bytes

    def _set_link(self, link: str) -> None:
        if self._status.link != link:
            self._status.link = link
            self._status.since_us = self._clock.wall_us()

    def _count(self, readings: int) -> None:
        """Add acknowledged readings to the total and to the smoothed rate."""
        now_s = self._clock.monotonic_s()
        faded = math.exp(-(now_s - self._rate_at_s) / _RATE_WINDOW_S)
        self._rate_at_s = now_s
        self._status.readings_sent += readings
        rate = self._status.rate_readings_s * faded + readings / _RATE_WINDOW_S
        self._status.rate_readings_s = rate

    def _estimated_backlog(self) -> tuple[int, float]:
        """Return at most how many readings wait; lanes share seqs, so it may be fewer."""
        state = self._state
        waiting = 0
        for lane in (LinkLane.URGENT, LinkLane.LIVE):
            acked_seq = state.acked_seq(lane)
            if self._journal.pending(journal_lane(lane), acked_seq):
                waiting += self._journal.last_seq - acked_seq
        if state.backlog_end is not None:
            waiting += state.backlog_end - state.acked_seq(LinkLane.BACKLOG)
        return min(waiting, self._journal.last_seq), 0.0


def _span(readings: Readings, grant: Grant) -> tuple[int, int]:
    """Return first and last seq of a batch; of one without readings the seq it comes after."""
    if not len(readings):
        return grant.after_seq, grant.after_seq
    return readings.seqs[0], readings.seqs[-1]
