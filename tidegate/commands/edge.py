"""Run a gateway: MQTT broker for devices, journal on disk, uplink to the cloud.

    tidegate edge --data /var/lib/tidegate --uplink-endpoints mqtt://cloud.example:2883
    tidegate edge -c edge.toml

Devices connect to port 1883. A PUBACK means the reading is on this machine's disk; it goes up when
the cloud can be reached, at once or after a year.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from edge.config import EdgeConfig
from edge.service import EdgeService
from runtime.clock import SystemClock
from runtime.logs import configure_logs
from runtime.reload import Reloaded
from runtime.service import run as run_loop
from runtime.service import running, stop_on_signals
from tidegate.options import add_config_arguments, config_of
from tidegate.reloading import Reloader

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags: one for every key of EdgeConfig."""
    add_config_arguments(parser, EdgeConfig)


def run(options: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM; SIGHUP reloads."""
    config = config_of(options, EdgeConfig)
    configure_logs(config.logs)
    return run_loop(_main(config, lambda: config_of(options, EdgeConfig)))


async def _main(config: EdgeConfig, read: Callable[[], EdgeConfig]) -> int:
    service = EdgeService(config, SystemClock())

    async def reload() -> Reloaded:
        return await service.reload(read())

    reloader = Reloader(config.data, ["edge"], reload)
    stop = stop_on_signals(reloader.ask)
    await running([service, reloader], stop.wait)
    return 0
