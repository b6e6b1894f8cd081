"""The uplink: readings go from the journal to the cloud, and leave the journal once they are safe.

Three tasks: *pump* dials, sends and takes answers; *watch* wakes it when the journal has news; and
*settle* forgets in the journal what the cloud acknowledged (edge/uplink_settle.py).
What to send, when to give up on what, and how long to wait is decided by bridge/uplink_state.py;
here are the clock, the socket and the journal. Around it: uplink_dialler.py (where to),
uplink_sender.py (what goes and what is answered) with uplink_lanes.py (what next),
uplink_batches.py (how it is written) and uplink_asides.py (what the cloud never takes), and
uplink_status.py (what there is to know of it).

Nothing waits for the uplink: with no cloud in reach the journal grows, and devices are served as
ever. A batch is made in one go on the loop, which `batch_readings` and `batch_bytes` bound, but for
structured bodies, which come from a process of their own (edge/uplink_bodies.py):
benchmarks/uplink.py measures how long that holds it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import structlog

from bridge.backoff import Rng
from bridge.devices import DeviceIds
from bridge.envelope import LinkLane
from bridge.errors import BatchError, LinkError
from bridge.forecast import Allowance
from bridge.link_pacing import Pace, decode_credit
from bridge.uplink_events import Redial
from bridge.uplink_state import UplinkState
from edge.commands import CommandLink
from edge.contract import JournalReader
from edge.uplink_asides import Asides
from edge.uplink_batches import BatchMaker
from edge.uplink_budget import BudgetAccount
from edge.uplink_config import UplinkConfig
from edge.uplink_connection import UplinkConnection
from edge.uplink_dialler import Dialler
from edge.uplink_lanes import TICK_S, UplinkLanes, journal_lane
from edge.uplink_sender import UplinkSender
from edge.uplink_settle import Settler
from edge.uplink_status import UplinkMeter, UplinkStatus
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Uplink"]

_READY_S = 0.02  # between two looks whether the first readings may go
_STOP_S = 2.0  # how long a stop waits for answers
_LOG_EVERY_S = 30.0


class Downlink(Protocol):
    """Who takes what the cloud sends down besides credits: edge/commands.py."""

    def linked(self, link: CommandLink, /) -> None:
        """A connection is up; `link` is the way back on it."""
        ...

    def unlinked(self) -> None:
        """It is gone."""
        ...

    def ready(self) -> bool:
        """Return True once readings may go on this connection."""
        ...

    def unheard(self) -> bool:
        """Return True while they may not because the cloud has not said what it holds."""
        ...

    def disowned(self) -> None:
        """The cloud takes no more of what it was met for."""
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
        purpose: Ends the client id; asked for each connection.
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
        purpose: Callable[[], str] = str,
    ) -> None:
        self._config = config
        self._journal = journal
        self._clock = clock
        self._backlog = backlog or self._estimated_backlog
        self._dialler = Dialler(config, gateway)
        self._purpose = purpose
        self._state = UplinkState(
            config.limits, max(1, len(self._dialler.endpoints)), rng or random.SystemRandom()
        )
        self._pace = Pace(rng or random.SystemRandom(), config.batch_readings)
        self._account = BudgetAccount(config.budget.limits, budget_path, clock)
        self._lanes = UplinkLanes(
            journal, config, device_ids, self._state, self._pace, self._account
        )
        self._batches = BatchMaker(config, gateway, journal, self._state, clock, snapshot_path)
        self._settler = Settler(journal)
        self._asides = Asides(gateway, journal, self._lanes, self._state, self._settler, clock)
        self._meter = UplinkMeter(clock)
        self._sender = UplinkSender(
            gateway,
            config.batch_readings,
            self._state,
            self._lanes,
            self._batches,
            self._settler,
            self._asides,
            self._meter,
            clock,
        )
        self._connection: UplinkConnection | None = None
        self._downlink: Downlink | None = None
        self._acked_mark = 0  # the peer's TCP count at the last look
        self._rate_bytes_s: float | None = None  # of the link, when last seen
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._log = structlog.get_logger(component="uplink").bind(gateway=gateway)

    # ---- life

    async def start(self) -> None:
        """Begin; without endpoints nothing is ever sent."""
        self._wake = asyncio.Event()
        if self._dialler.endpoints:
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
        await self._batches.bodies.close()
        if self._tasks:
            await self._settler.settle()  # 4. what was acknowledged last
        await self._account.close()  # 5. what the link has carried
        self._tasks = []
        self._meter.set_link("off")

    def reconfigure(self, config: UplinkConfig) -> None:
        """Take other endpoints, credentials or certificates (RELOADABLE_KEYS): at once where the
        connection in use is not among them, else from the next on. What was not acknowledged is
        sent again."""
        if not self._dialler.reconfigure(config):
            return
        self._state.endpoints_changed(max(1, len(self._dialler.endpoints)))
        connection = self._connection
        if connection is not None and self._dialler.outdated(connection.endpoint):
            connection.abort("the configuration has changed")
        if not self._tasks and self._dialler.endpoints:
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

    def met(self, held_seq: int) -> None:
        """Hear up to which seq of the journal the cloud has some; docs: UplinkLanes.met."""
        self._lanes.met(held_seq)

    def told(self, true_us: int) -> None:
        """Hear the time, µs since 1970, from the cloud; 0: it answered without."""
        self._account.told(true_us)

    def restart(self, cause: str) -> None:
        """Send anew, on another connection, what was not acknowledged: what may go has changed."""
        self._lanes.forget()
        if self._connection is not None:
            self._connection.abort(cause)

    # ---- connection

    async def _pump(self) -> None:
        while not self._stopping:
            await self._asides.finish()
            wait_s = self._state.dial_at_s - self._clock.monotonic_s()
            if wait_s > 0:
                await asyncio.sleep(min(wait_s, TICK_S))
                continue
            if self._lanes.parked():
                self._meter.set_link("parked")
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
        if not self._dialler.endpoints:  # taken away while it ran
            self._meter.set_link("off")
            await asyncio.sleep(TICK_S)
            return None
        endpoint = self._dialler.endpoints[state.endpoint]
        status = self._meter.status
        if status.link in ("off", "parked"):
            self._meter.set_link("connecting")
        status.dials += 1
        status.endpoint = str(endpoint)
        connection: UplinkConnection | None = None
        self._dialler.purpose = self._purpose()
        try:
            connection = self._dialler.connection(
                endpoint, self._on_puback, self._wake.set, self._on_control
            )
            await connection.dial()
        except LinkError as error:
            if connection is not None:
                self._closed(connection)
            retry_after_s = connection.retry_after_s if connection is not None else 0.0
            state.connection_lost(
                self._clock.monotonic_s(), str(error), retry_after_s=retry_after_s
            )
            self._meter.set_link("offline")
            limited(self._log, "dial_failed", _LOG_EVERY_S).warning("dial_failed", error=str(error))
            return None
        state.connection_made(
            self._clock.monotonic_s(),
            receive_maximum=connection.receive_maximum - connection.says_max,
            packet_bytes_max=connection.packet_bytes_max,
            link_bytes_s=connection.dial_bytes_s,
        )
        self._connection = connection
        self._acked_mark = 0
        self._pace.reset()
        self._batches.bodies.linked(str(endpoint))
        self._sender.connected()
        status.connections += 1
        self._meter.set_link("online")
        if self._downlink is not None:
            self._downlink.linked(connection)
        self._log.info("connected", endpoint=str(endpoint), backlog=self._backlog()[0])
        return connection

    def _end(self, connection: UplinkConnection) -> None:
        """Forget a connection; what it had in flight is sent again on the next."""
        self._rate_bytes_s = self.rate_bytes_s
        self._closed(connection)
        if self._downlink is not None:
            self._downlink.unlinked()
        cause = f"{connection.endpoint}: {connection.cause}"
        now_s = self._clock.monotonic_s()
        self._sender.carry_out(self._state.connection_lost(now_s, cause, connection.reason_code))
        self._meter.set_link("offline")
        if not self._stopping:
            self._log.warning("connection_lost", cause=cause)

    def _closed(self, connection: UplinkConnection) -> None:
        """Count what a connection has moved that is gone, or was never accepted."""
        self._meter.closed(connection)
        self._connection = None
        self._count_bytes()

    async def _converse(self, connection: UplinkConnection) -> None:
        """Send batches until the connection is lost, or all is answered when stopping."""
        while not connection.lost:
            if self._stopping and not self._state.batches_in_flight:
                return
            if not self._stopping and self._downlink is not None and not self._downlink.ready():
                now_s = self._clock.monotonic_s()
                self._redial_when_due(connection, now_s, unheard=self._downlink.unheard())
                await self._wait(_READY_S)
                continue
            await self._asides.finish()
            self._count_bytes()
            if self._lanes.parked() and not self._state.batches_in_flight:
                return
            self._wake.clear()
            now_s = self._clock.monotonic_s()
            lane, wait_s = (None, TICK_S) if self._stopping else self._sender.next_lane(now_s)
            if lane is not None:
                await self._sender.send(connection, lane)
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
        self._meter.measure(self._connection)
        self._account.count(self._meter.untold())

    def _look_at_link(self, connection: UplinkConnection, now_s: float) -> None:
        """Tell a slow link, whose bytes still move, from a dead one, which is dropped."""
        moved = connection.link_bytes()
        if moved.outstanding and moved.acked > self._acked_mark:
            self._state.progressed(now_s)
        self._acked_mark = moved.acked
        self._redial_when_due(connection, now_s)

    def _redial_when_due(
        self, connection: UplinkConnection, now_s: float, *, unheard: bool = False
    ) -> None:
        """Drop a connection that nothing gets through; `unheard` as for the state."""
        for event in self._state.handle_timeout(now_s, unheard=unheard):
            assert isinstance(event, Redial)
            connection.abort(event.cause)

    # ---- answers

    def _on_puback(self, packet_id: int, reason_code: int, reason: str) -> None:
        state, connection = self._state, self._connection
        if connection is not None and state.bytes_in_flight >= state.window_bytes:
            state.speed.full(idle=not connection.link_bytes().outstanding)
        self._sender.answered(packet_id, reason_code, reason)
        if reason.startswith("run:") and self._downlink is not None:
            self._downlink.disowned()
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

    async def _watch(self) -> None:
        while True:
            await self._journal.wait()
            self._wake.set()

    # ---- status

    def status(self) -> UplinkStatus:
        """Return the figures of this moment."""
        status, state = self._meter.status, self._state
        now_s = self._clock.monotonic_s()
        self._meter.measure(self._connection)
        now_us = self._account.now_us()
        status.day_bytes = self._account.budget.day_bytes(now_us)
        status.month_bytes = self._account.budget.month_bytes(now_us)
        verdict = self._account.verdict(LinkLane.LIVE, state.bytes_in_flight)
        status.waits_for, status.waits_s = verdict.reason, verdict.wait_s
        status.last_error = state.last_error
        status.refusals = state.refusals
        status.dead_letters = self._asides.readings
        status.encoder_restarts = self._batches.bodies.restarts
        status.zstd_level = self._batches.zstd_level
        status.batches_in_flight = state.batches_in_flight
        status.bytes_in_flight = state.bytes_in_flight
        status.window_bytes = state.window_bytes
        if status.link in ("online", "waiting"):
            self._meter.set_link("waiting" if state.holding(now_s) else "online")
        status.backlog_readings, status.oldest_age_s = self._backlog()
        self._meter.acknowledged(0)  # time passes for the rate
        rate = status.rate_readings_s
        status.drain_s = status.backlog_readings / rate if rate > 0.01 else None
        return replace(status)

    @property
    def rate_bytes_s(self) -> float | None:
        """What the link carries, as far as it was seen on this connection or an earlier one.

        Only what filled the link tells: what is short of readings carries less than it could.
        """
        speed = self._state.speed
        if speed.filled and speed.rate_bytes_s is not None:
            self._rate_bytes_s = speed.rate_bytes_s
        return self._rate_bytes_s

    @property
    def reading_bytes(self) -> float:
        """What one reading takes in a batch, on average."""
        return self._state.speed.reading_bytes

    @property
    def backlog_reading_bytes(self) -> float:
        """The same in full batches, as a backlog has them."""
        return self._state.speed.backlog_reading_bytes

    @property
    def allowances(self) -> list[Allowance]:
        """What budgets leave live readings and backlog."""
        return self._account.budget.allowances(self._account.now_us())

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
