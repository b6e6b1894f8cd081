"""The fleet: connects its links, lets readings come due, makes churn and storms, and ends.

One timer serves all devices: a heap of links' timers and the feed's own heap of due readings, not a
task a device. Tasks exist only while a connection is dialled. Invariants: at most `_DIALS_MAX`
connections are being made at once; a fault in a callback ends the run with that fault.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator
from heapq import heappop, heappush
from random import Random
from typing import Final

from device_sim.config import SimConfig, SimError
from device_sim.feeds import Feed
from device_sim.latency import Latencies
from device_sim.link import Figures, Link, LinkSettings
from device_sim.report import Progress
from device_sim.sources import Message
from device_sim.truth import DeviceTruth, Truth
from runtime.clock import Clock

__all__ = ["Fleet"]

_TICK_S: Final = 0.02
_WAKE_MIN_S: Final = 0.001  # readings due within it are sent together
_DIALS_MAX: Final = 256
_CLOSE_TIMEOUT_S: Final = 5.0
OUTAGE_TIMEOUT_S: Final = 300.0

MakeFeed = Callable[[float, Callable[[int], float]], Feed]  # (start, start of a device after it)


class Fleet:
    """All links of a run.

    Args:
        config: What to do.
        clients: Client id by device.
        run: The run's name in stamps.
        clock: The wall clock of the stamps.
        on_progress: Called once a second.
    """

    def __init__(
        self,
        config: SimConfig,
        clients: list[str],
        run: str,
        clock: Clock,
        on_progress: Callable[[Progress], None] | None = None,
    ) -> None:
        address = config.address
        self._config = config
        self._address = address
        self._on_progress = on_progress
        self.settings = LinkSettings(
            config.protocol_version,
            config.clean_start,
            config.keep_alive_s,
            config.window,
            config.connect_timeout_s,
            address.username,
            address.password,
        )
        self.figures = Figures()
        self.elapsed_s = 0.0  # from the first reading to the last acknowledgement
        self.truth = Truth(run, config.stamp, [DeviceTruth() for _ in clients])
        self.due_latencies = Latencies()
        self.wire_latencies = Latencies()
        self.rng = Random(config.seed)
        self.wall_us = clock.wall_us
        loop = asyncio.get_running_loop()
        self._loop = loop
        self.now_s: Callable[[], float] = time.monotonic  # uvloop's own is a millisecond coarse
        shared = config.connections
        names = [f"{config.client_prefix}sim-{n}" for n in range(shared)] if shared else clients
        self.links = [Link(self, index, name) for index, name in enumerate(names)]
        self._link_of = [self.links[device % len(names)] for device in range(len(clients))]
        self.feed: Feed = _Nothing()
        self._timers: list[tuple[float, int, Link]] = []
        self._wake: asyncio.TimerHandle | None = None
        self._wake_s = 0.0
        self._dial_queue: deque[Link] = deque()
        self._dials: set[asyncio.Task[None]] = set()
        self._peer: tuple[str, int] = ("", 0)
        self._ending = False
        self._failure: Exception | None = None
        self._why = "no answer"
        self._cuts_owed = 0.0
        self._began_s = 0.0
        self._told_s = 0.0
        self._done_before = 0

    async def run(self, make_feed: MakeFeed, stop: asyncio.Event) -> str:
        """Do the whole run; return what ended it.

        Raises:
            SimError: the broker was never reached, or stayed away.
            TraceError: the trace changed or broke while it was replayed.
        """
        await self._resolve()
        began_s = self._began_s = self.now_s()
        step_s = self._config.ramp_s / len(self.links)
        for link in self.links:
            heappush(self._timers, (began_s + link.index * step_s, link.index, link))
            link.timer_s = began_s + link.index * step_s
        self._schedule()
        try:
            if not step_s:
                await self._all_connected(stop)
            self.feed = make_feed(self.now_s(), lambda device: self._link_of[device].index * step_s)
            self._schedule()
            start_s = self.now_s()
            ended_by = await self._main(stop)
            await self._drain()
            self.elapsed_s = self.now_s() - start_s
        finally:
            await self._end()
        return ended_by

    # What links ask for

    def arm(self, link: Link, when_s: float) -> None:
        """Call `link.on_timer` at `when_s`; of several calls the earliest counts."""
        if link.timer_s is not None and link.timer_s <= when_s:
            return
        link.timer_s = when_s
        heappush(self._timers, (when_s, link.index, link))
        self._schedule()

    def on_lost(self, link: Link, reason: str, *, was_connected: bool) -> None:
        """Count, and dial again after a pause."""
        if self._ending:
            return
        self._why = reason
        if was_connected:
            self.figures.connections_lost += 1
        else:
            self.figures.connect_failures += 1
        link.timer_s = None
        self.arm(link, self.now_s() + link.next_backoff_s())

    # Phases

    async def _resolve(self) -> None:
        """Look the host up once, not once a connection."""
        address = self._address
        try:
            found = await self._loop.getaddrinfo(
                address.host, address.port, type=socket.SOCK_STREAM
            )
        except OSError as error:
            raise SimError(f"{address}: unknown host: {error.strerror or error}") from None
        self._peer = (str(found[0][4][0]), int(found[0][4][1]))

    async def _all_connected(self, stop: asyncio.Event) -> None:
        """Wait for every first connection, so that a measurement begins with the whole fleet."""
        start_s = self.now_s()
        deadline_s = start_s + self._config.connect_timeout_s
        second_s = start_s + 1.0
        figures = self.figures
        while figures.connected < len(self.links) and not stop.is_set():
            await self._tick(stop)
            now_s = self.now_s()
            if now_s > deadline_s:
                break
            if now_s >= second_s:
                second_s += 1.0
                self._tell(now_s - start_s)
        self._told_s = 0.0  # from now on time counts from the first reading

    async def _main(self, stop: asyncio.Event) -> str:
        config, figures = self._config, self.figures
        start_s = self.now_s()
        end_s = start_s + config.duration_s if config.duration_s else None
        storm_s = start_s + config.storm_at_s if config.storm_at_s else None
        seen_s = start_s
        before_s = start_s
        second_s = start_s + 1.0
        while not stop.is_set():
            now_s = self.now_s()
            if end_s is not None and now_s >= end_s:
                self._stop_feed()
                return "duration"
            if self.feed.next_s(now_s) is None and all(link.idle for link in self.links):
                return "trace end" if config.replay is not None and not config.count else "count"
            if storm_s is not None and now_s >= storm_s:
                self._storm()
                storm_s = now_s + config.storm_every_s if config.storm_every_s else None
            self._churn(now_s - before_s)
            before_s = now_s
            seen_s = now_s if figures.connected else seen_s
            if now_s - seen_s > OUTAGE_TIMEOUT_S:
                self._stop_feed()
                return "broker"
            if now_s >= second_s:
                second_s += 1.0
                self._tell(now_s - start_s)
            await self._tick(stop)
        self._stop_feed()
        return "stop"

    async def _drain(self) -> None:
        """Wait for acknowledgements, as long as some still come."""
        figures = self.figures
        nothing = asyncio.Event()
        acked = -1
        deadline_s = 0.0
        while figures.open:
            if figures.acked != acked:
                acked = figures.acked
                deadline_s = self.now_s() + self._config.drain_timeout_s
            if self.now_s() >= deadline_s:
                return
            await self._tick(nothing)

    async def _end(self) -> None:
        """Stop dialling, say good-bye on every link, and wait until all are closed."""
        self._ending = True
        self.feed.stop()
        if self._wake is not None:
            self._wake.cancel()
        self._dial_queue.clear()
        dials = list(self._dials)
        for dial in dials:
            dial.cancel()
        await asyncio.gather(*dials, return_exceptions=True)
        for link in self.links:
            link.close()
        deadline_s = self.now_s() + _CLOSE_TIMEOUT_S
        while any(link.open for link in self.links):
            if self.now_s() > deadline_s:
                for link in self.links:
                    link.abort()
            await asyncio.sleep(0.005)

    async def _tick(self, stop: asyncio.Event) -> None:
        """Let the loop run for a moment; raise what went wrong in a callback."""
        try:
            async with asyncio.timeout(_TICK_S):
                await stop.wait()
        except TimeoutError:
            pass
        if self._failure is not None:
            raise self._failure
        timeout_s = self._config.connect_timeout_s
        if not self.figures.connects and self.now_s() - self._began_s > timeout_s:
            raise SimError(
                f"{self._address}: no connection in {timeout_s:g} s: {self._why};"
                " is the broker running there?"
            )

    def _stop_feed(self) -> None:
        self.figures.unsent += self.feed.stop()
        for link in self.links:
            link.forget_waiting()

    def _churn(self, elapsed_s: float) -> None:
        """Cut as many links, chosen at random, as the time that passed asks for."""
        self._cuts_owed += self._config.churn_per_s * elapsed_s
        while self._cuts_owed >= 1.0:
            self._cuts_owed -= 1.0
            link = self.links[self.rng.randrange(len(self.links))]
            if link.up:
                link.cut()

    def _storm(self) -> None:
        for link in self.links:
            if link.up:
                link.cut()

    def _tell(self, elapsed_s: float) -> None:
        """Report the second that has passed."""
        figures = self.figures
        done = figures.acked + figures.sent_qos_0
        if self._on_progress is not None:
            self._on_progress(
                Progress(
                    elapsed_s,
                    figures.connected,
                    figures.sent,
                    figures.acked,
                    (done - self._done_before) / max(elapsed_s - self._told_s, 1e-9),
                    self.due_latencies.recent_ms(50),
                    self.due_latencies.recent_ms(99),
                )
            )
        self._done_before, self._told_s = done, elapsed_s
        self.due_latencies.settle()

    # The timer

    def _schedule(self) -> None:
        """Have `_on_wake` called at the earliest of all that is due."""
        now_s = self.now_s()
        due_s = self.feed.next_s(now_s)
        if self._timers and (due_s is None or self._timers[0][0] < due_s):
            due_s = self._timers[0][0]
        if due_s is None:
            return
        due_s = max(due_s, now_s + _WAKE_MIN_S)
        if self._wake is not None:
            if self._wake_s <= due_s:
                return
            self._wake.cancel()
        self._wake_s = due_s
        self._wake = self._loop.call_later(due_s - now_s, self._on_wake)

    def _on_wake(self) -> None:
        self._wake = None
        now_s = self.now_s()
        timers = self._timers
        while timers and timers[0][0] <= now_s:
            when_s, _, link = heappop(timers)
            if link.timer_s != when_s:
                continue  # armed anew for an earlier time, which has been
            link.timer_s = None
            if link.open:
                link.on_timer(now_s)
            else:
                self._dial_queue.append(link)
        try:
            self._release(now_s)
        except Exception as error:  # noqa: BLE001 - a callback's fault has to end the run
            self._failure = error
            return
        self._dial_next()
        self._schedule()

    def _release(self, now_s: float) -> None:
        """Give what has come due to its link, and let each link send once."""
        links: dict[Link, None] = {}
        link_of = self._link_of
        for device in self.feed.release(now_s):
            link = link_of[device]
            link.offer(device)
            links[link] = None
        for link in links:
            link.pump()

    def _dial_next(self) -> None:
        while self._dial_queue and len(self._dials) < _DIALS_MAX and not self._ending:
            link = self._dial_queue.popleft()
            dial = self._loop.create_task(self._dial(link), name=f"dial {link.client_id}")
            self._dials.add(dial)
            dial.add_done_callback(self._on_dialled)

    def _on_dialled(self, dial: asyncio.Task[None]) -> None:
        self._dials.discard(dial)
        if not dial.cancelled() and (error := dial.exception()) is not None:
            self._failure = self._failure or SimError(f"{self._address}: {error}")
        self._dial_next()

    async def _dial(self, link: Link) -> None:
        host, port = self._peer
        try:
            async with asyncio.timeout(self._config.connect_timeout_s):
                await self._loop.create_connection(lambda: link, host, port)
        except TimeoutError:
            self.on_lost(link, "no answer", was_connected=False)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            self.on_lost(link, reason, was_connected=False)


class _Nothing:
    """The feed before the run has begun."""

    def release(self, now_s: float) -> Iterator[int]:  # noqa: ARG002 - the Protocol's
        return iter(())

    def next_s(self, now_s: float) -> float | None:  # noqa: ARG002
        return None

    def take(self, device: int) -> tuple[float, Message] | None:  # noqa: ARG002
        return None

    def stop(self) -> int:
        return 0
