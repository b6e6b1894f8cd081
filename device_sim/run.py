"""Running a simulation: from a configuration to a report.

The steps: raise the file limit, open the source and the store, run the fleet, verify, report.
"""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Callable

from device_sim.config import SimConfig, SimError
from device_sim.feeds import Feed, PacedFeed, TraceFeed, UnpacedFeed
from device_sim.fleet import Fleet
from device_sim.limits import allow_connections
from device_sim.report import Progress, SimReport
from device_sim.sources import Generated, Replayed
from device_sim.stores import Store, open_store
from device_sim.verify import verify
from runtime.clock import Clock, SystemClock

__all__ = ["run_sim"]


async def run_sim(
    config: SimConfig,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    stop: asyncio.Event | None = None,
    clock: Clock | None = None,
) -> SimReport:
    """Run a fleet until its duration, count or trace is over, or `stop` is set.

    Args:
        config: What to do.
        on_progress: Called once a second while readings are sent.
        stop: Ends the run early and orderly: what is under way is waited for, then reported.
        clock: The wall clock of stamps and simulated time.

    Returns:
        The report, with a verdict when `config.verify` names a store.

    Raises:
        SimError: the broker cannot be reached, too few open files are allowed, or the report's
            file cannot be written.
        TraceError: the trace cannot be read.
        VerifyError: the store cannot be read.
    """
    clock = clock or SystemClock()
    stop = stop or asyncio.Event()
    started_us = clock.wall_us()
    source: Generated | Replayed
    if config.replay is not None:
        source = await asyncio.to_thread(Replayed, config, config.replay)
    else:
        source = Generated(config, config.start_s or started_us / 1e6)
    clients = list(source.clients)
    allow_connections(config.connections or len(clients))
    store: Store | None = None
    if config.verify:
        store = open_store(config.verify)
        await store.begin()
    fleet = Fleet(config, clients, _base36(started_us), clock, on_progress)

    def make_feed(start_s: float, starts_s: Callable[[int], float]) -> Feed:
        if isinstance(source, Replayed):
            return TraceFeed(source, start_s, unpaced=not config.speed)
        if not config.speed:
            return UnpacedFeed(source, config.count, fleet.now_s)
        return PacedFeed(source, start_s, starts_s, config.count)

    ended_by = await fleet.run(make_feed, stop)
    report = _report(fleet, ended_by)
    if store is not None:
        verdict, times = await verify(fleet.truth, source, store, timeout_s=config.verify_timeout_s)
        report.verdict = verdict
        report.store_latency = times.as_dict() if times.count() else {}
    if config.report is not None:
        try:
            report.write(config.report)
        except OSError as error:
            raise SimError(f"{config.report}: cannot be written: {error.strerror}") from None
    return report


def _report(fleet: Fleet, ended_by: str) -> SimReport:
    figures = fleet.figures
    done = figures.acked + figures.sent_qos_0
    return SimReport(
        run=fleet.truth.run,
        devices=len(fleet.truth.devices),
        connections=len(fleet.links),
        elapsed_s=fleet.elapsed_s,
        readings=figures.readings,
        unsent=figures.unsent,
        sent=figures.sent,
        acked=figures.acked,
        refused=figures.refused,
        unacked=figures.open + figures.given_up,
        rate_per_s=done / fleet.elapsed_s if fleet.elapsed_s else 0.0,
        payload_bytes=figures.payload_bytes,
        connects=figures.connects,
        connect_failures=figures.connect_failures,
        connections_lost=figures.connections_lost,
        due_latency=fleet.due_latencies.as_dict(),
        wire_latency=fleet.wire_latencies.as_dict(),
        stopped_by=ended_by,
        max_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        truth=fleet.truth,
    )


def _base36(value: int) -> str:
    digits = ""
    while value:
        value, digit = divmod(value, 36)
        digits = "0123456789abcdefghijklmnopqrstuvwxyz"[digit] + digits
    return digits or "0"
