"""Simulated devices: load a broker, and check that what it acknowledged was stored.

    tidegate sim --devices 1000 --rate 500
    tidegate sim --profile shelly --duration-s 30 --verify http://127.0.0.1:8080
    tidegate sim --replay trace.cborseq.zst --speed 60 --verify tidegate-data/cloud/storage.db

Exit code 1 when --verify finds an acknowledged reading lost, doubled or out of order.
"""

from __future__ import annotations

import argparse
import sys

from device_sim.config import SimConfig, SimError
from device_sim.report import Progress
from device_sim.run import run_sim
from device_sim.stores import VerifyError
from device_sim.traces import TraceError
from runtime.service import StartError, stop_on_signals
from runtime.service import run as run_loop
from tidegate.options import add_config_arguments, config_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags: one for every key of SimConfig."""
    add_config_arguments(parser, SimConfig)
    parser.add_argument("--quiet", action="store_true", help="only the report, no progress")


def run(options: argparse.Namespace) -> int:
    """Run the fleet and print its report."""
    return run_loop(_main(config_of(options, SimConfig), quiet=options.quiet))


async def _main(config: SimConfig, *, quiet: bool) -> int:
    stop = stop_on_signals()
    terminal = sys.stderr.isatty()

    def show(progress: Progress) -> None:
        print(progress.line(), file=sys.stderr, end="\x1b[K\r" if terminal else "\n", flush=True)

    try:
        report = await run_sim(config, on_progress=None if quiet else show, stop=stop)
    except (SimError, TraceError, VerifyError) as error:
        raise StartError(str(error)) from None
    if terminal and not quiet:
        print("\x1b[K", file=sys.stderr, end="")
    print(report.text())
    return 0 if report.ok else 1
