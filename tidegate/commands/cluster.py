"""The cloud as a cluster: its streams and buckets on NATS, and a demonstration.

    tidegate cluster plan  --stream nats://a,b,c      what would be made or changed; changes nothing
    tidegate cluster apply --stream nats://a,b,c      make and change it
    tidegate cluster promote --stream nats://x,y,z    make a place that mirrors it the cluster
    tidegate cluster drain NODE --stream nats://a,b,c  have a node hand its work over
    tidegate cluster demo                             three NATS servers, three nodes and devices on
                                                      this machine, until Ctrl-C

Nodes make nothing themselves: 'apply' once, then 'tidegate cloud --stream ...' on any number of
machines. A stream that was made once and is gone is never made again unless --recreate names it:
what was in it is gone with it, but for the ledger, which goes on behind its newest checkpoint (some
seconds; nodes that run have written one). plan ends with 1 when something is to be done, 0
otherwise.

promote is for when the cluster is lost, or was brought to rest (docs/cluster.md, "Another place"):
streams that mirror it elsewhere become streams of their own, and nodes that are started there go
on. Make sure first that nodes of the lost place do not come back.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping

from cloud.cluster.applying import Step, apply, plan
from cloud.cluster.connection import ClusterError, Connection
from cloud.config import CloudConfig
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import Source
from cloud.stream.jetstream.promotion import promote
from cloud.stream.opening import access_of, layout_of
from runtime.clock import SystemClock
from runtime.config import ConfigError
from runtime.service import StartError
from tidegate.cluster_demo import add_demo_arguments, run_demo
from tidegate.cluster_drain import add_drain_arguments, drain
from tidegate.options import add_config_arguments, config_of

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the subcommands."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    for name, summary in (
        ("plan", "say what differs from the layout; changes nothing"),
        ("apply", "make what is missing, change what differs"),
        ("promote", "make the mirrors of a cluster that is lost the cluster itself"),
    ):
        action = actions.add_parser(
            name,
            help=summary,
            description=__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        add_config_arguments(action, CloudConfig, hidden=_HIDDEN)
        if name != "plan":
            action.add_argument(
                "--recreate",
                action="append",
                default=[],
                metavar="STREAM",
                help="make a lost stream again, empty; may be given several times",
            )
    action = actions.add_parser("drain", help="have a node hand its work over before it is stopped")
    add_config_arguments(action, CloudConfig, hidden=_HIDDEN)
    add_drain_arguments(action)
    add_demo_arguments(
        actions.add_parser(
            "demo", help="three NATS servers, three nodes and a simulated fleet on this machine"
        )
    )


_HIDDEN = tuple(
    name
    for name in CloudConfig.__dataclass_fields__
    if name not in ("stream", "data", "node_id", "host", "port")
)


def run(options: argparse.Namespace) -> int:
    """Do what was asked."""
    if options.action == "demo":
        return run_demo(options)
    config = config_of(options, CloudConfig)
    if not config.stream.url:
        raise ConfigError("which cluster? --stream nats://a,b,c (stream.url)")
    if options.action == "drain":
        try:
            return drain(options, config)
        except ClusterError as error:
            raise StartError(str(error)) from None
    try:
        steps, taken_back = asyncio.run(_work(options, config))
    except ClusterError as error:
        raise StartError(str(error)) from None
    for step in steps:
        print(step.line())
    for (gateway, epoch), readings in sorted(taken_back.items()):
        print(f"taken back {gateway} {epoch_text(epoch)}: {readings:,} readings whose bodies did"
              " not come; if the gateway has them still, they come again")  # fmt: skip
    name = config.stream.cluster
    if options.action != "plan":
        print(f"cluster '{name}': {len(steps)} changes made" if steps else
              f"cluster '{name}': nothing to do")  # fmt: skip
        return 0
    print(f"cluster '{name}': {len(steps)} to do" if steps else f"cluster '{name}': as planned")
    return 1 if steps else 0


async def _work(
    options: argparse.Namespace, config: CloudConfig
) -> tuple[list[Step], Mapping[Source, int]]:
    """Plan, apply or promote; return the steps, and readings that were taken back."""
    layout = layout_of(config.stream)
    connection = await Connection.open(
        config.stream.url, name="tidegate cluster", access=access_of(config.stream)
    )
    try:
        if options.action == "plan":
            return await plan(connection, layout), {}
        if options.action == "apply":
            return await apply(connection, layout, recreate=options.recreate), {}
        return await promote(connection, layout, SystemClock(), recreate=options.recreate,
                             arrivals_max=config.stream.trace_batches)  # fmt: skip
    finally:
        await connection.close()
