"""Everything in one process on this machine: gateway, cloud node, console.

    tidegate up --sim 50                     with fifty simulated devices
    tidegate up --replay trace.cborseq.zst   with a recorded trace
    tidegate up --data DIR --edge-port 1884 --cloud-port 2884 --http-port 8081

Ctrl-C ends it cleanly: what was taken is stored, then the ledger is balanced and printed.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import sys
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cloud.ledger_files import balance_files
from device_sim.config import SimError
from device_sim.report import SimReport
from device_sim.run import run_sim
from device_sim.traces import TraceError
from runtime.clock import SystemClock
from runtime.logs import configure_logs
from runtime.reload import Reloaded
from runtime.service import StartError, running, stop_on_signals
from runtime.service import run as run_loop
from tidegate.options import add_config_arguments, config_of
from tidegate.reloading import Reloader
from tidegate.up import Site, SiteFigures, UpConfig, sim_config

__all__ = ["add_arguments", "run"]

_SETTLE_S = 20.0
_RATE_OVER_S = 5


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags: one for every key of UpConfig."""
    add_config_arguments(parser, UpConfig, hidden=("edge", "cloud", "sim"))
    parser.epilog = (
        "Every key of the parts is a flag too: --edge-journal-commit-window-ms 20, "
        "--sim-profile shelly; docs/configuration.md has them all."
    )


def run(options: argparse.Namespace) -> int:
    """Run until Ctrl-C or the duration's end; 0 when the ledger balances."""
    config = config_of(options, UpConfig)
    # the terminal is the live line's; services tell of trouble only
    logs = config.edge.logs
    if logs.level == "info":
        logs = dataclasses.replace(logs, level="warning")
    configure_logs(logs)
    return run_loop(_main(config, lambda: config_of(options, UpConfig)))


async def _main(config: UpConfig, read: Callable[[], UpConfig]) -> int:
    site = Site(config, SystemClock())

    async def reload() -> Reloaded:
        return await site.reload(read())

    reloader = Reloader(config.data, ["edge", "cloud"], reload)
    stop = stop_on_signals(reloader.ask)
    reports: list[SimReport] = []

    async def until() -> None:
        _say_where(config, site)
        live = asyncio.create_task(_show_live(site), name="live-line")
        try:
            reports.extend(await _load(config, site, stop))
            await site.settle(_SETTLE_S)
        finally:
            live.cancel()

    try:
        await running([site, reloader], until)
    except (SimError, TraceError) as error:
        raise StartError(str(error)) from None
    return await _summary(config, site.figures(), reports)


async def _load(config: UpConfig, site: Site, stop: asyncio.Event) -> list[SimReport]:
    """Run the devices, if any, until it is time to stop."""
    if config.simulate or config.replay is not None:
        return [await run_sim(sim_config(config, site.edge_port), stop=stop)]
    timeout_s = config.duration_s or None
    try:
        async with asyncio.timeout(timeout_s):
            await stop.wait()
    except TimeoutError:
        pass
    return []


def _say_where(config: UpConfig, site: Site) -> None:
    host = config.host
    print(f"devices publish to     mqtt://{host}:{site.edge_port}   (PUBACK = on disk)")
    print(f"subscribers connect to mqtt://{host}:{site.cloud_port}   try: tidegate tail")
    print(f"console, API, metrics  http://{host}:{site.http_port}")
    print(f"all data is in         {config.data}")
    print("Ctrl-C ends it.", flush=True)


async def _show_live(site: Site) -> None:
    """Print how it stands: one line that renews itself, or one every few seconds to a file."""
    terminal = sys.stdout.isatty()
    history: deque[int] = deque(maxlen=_RATE_OVER_S + 1)
    beat = 0
    while True:
        figures = site.figures()
        history.append(figures.taken)
        rate_s = (history[-1] - history[0]) / max(1, len(history) - 1)
        if terminal:
            print(f"\r{figures.line(rate_s)}\x1b[K", end="", flush=True)
        elif beat % _RATE_OVER_S == 0:
            print(figures.line(rate_s), flush=True)
        beat += 1
        await asyncio.sleep(1)


async def _summary(config: UpConfig, figures: SiteFigures, reports: list[SimReport]) -> int:
    print()
    for report in reports:
        print(report.text())
    print(
        f"this run: {figures.taken:,} readings taken, {figures.stored:,} stored, "
        f"{figures.backlog:,} waiting at the gateway; the link carried {figures.link_bytes:,} "
        f"bytes, a bridge {figures.bridge_bytes:,} ({figures.saved:.0%} saved)"
    )
    balance = await balance_files(Path(config.data))
    print("\n".join(balance.lines()))
    return 0 if balance.balanced else 1
