"""Run a cloud node: takes gateways' batches, stores readings, alerts, serves MQTT subscribers.

    tidegate cloud --data /var/lib/tidegate
    tidegate cloud -c cloud.toml
    tidegate cloud --stream nats://a,b,c --node-id one     one of many nodes on a NATS cluster

Gateways and subscribers connect to port 2883 by MQTT; the API and the console are on port 8080.
A gateway's PUBACK means its batch is in the stream on disk; with --stream, on the disks of two of
three NATS servers, made ready by 'tidegate cluster apply'.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

from cloud.config import CloudConfig
from cloud.node import Node
from runtime.clock import SystemClock
from runtime.logs import configure_logs
from runtime.reload import Reloaded
from runtime.service import run as run_loop
from runtime.service import running, stop_on_signals
from tidegate.options import add_config_arguments, config_of
from tidegate.reloading import Reloader

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's flags: one for every key of CloudConfig."""
    add_config_arguments(parser, CloudConfig)


def run(options: argparse.Namespace) -> int:
    """Run until SIGINT or SIGTERM; SIGHUP reloads."""
    config = config_of(options, CloudConfig)
    configure_logs(config.logs)
    return run_loop(_main(config, lambda: config_of(options, CloudConfig)))


async def _main(config: CloudConfig, read: Callable[[], CloudConfig]) -> int:
    node = Node(config, SystemClock())

    async def reload() -> Reloaded:
        return await node.reload(read())

    reloader = Reloader(config.data, ["cloud"], reload)
    stop = stop_on_signals(reloader.ask)
    await running([node, reloader], stop.wait)
    return 0
