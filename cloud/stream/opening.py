"""Which engine a node's stream runs on, and how it is opened: by `stream.url`."""

from __future__ import annotations

import asyncio
from functools import partial
from pathlib import Path

import structlog

from cloud.cluster.checks import RELAXED, Checked, check_cluster
from cloud.cluster.connection import (
    ClusterError,
    Connection,
    NatsAccess,
    NoResponders,
    Unanswered,
    Unreachable,
)
from cloud.cluster.durability import DurabilityWatch
from cloud.cluster.layout import Layout
from cloud.config import StreamConfig
from cloud.stream.contract import Stream, StreamError
from cloud.stream.embedded import EmbeddedStream
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import Clock

__all__ = ["access_of", "layout_of", "open_cluster_stream", "open_stream"]

log = structlog.get_logger(component="stream")

_PAUSE_S = 2.0


def layout_of(config: StreamConfig) -> Layout:
    """Return the layout that a configuration names."""
    return Layout(config.cluster, config.replicas, config.file_bytes_max)


def access_of(config: StreamConfig) -> NatsAccess:
    """Return how a node proves who it is."""
    nats = config.nats
    return NatsAccess(
        nats.user, nats.password, nats.token, nats.credentials, nats.ca, nats.cert, nats.key
    )


async def open_stream(path: Path, config: StreamConfig, clock: Clock, *, node_id: str) -> Stream:
    """Open a node's stream: the cluster that `stream.url` names, else the file at `path`.

    Raises:
        StreamError: it cannot be used; one line.
    """
    if config.url:
        return await open_cluster_stream(config, clock, node_id=node_id)
    return await EmbeddedStream.open(path, config, clock)


async def open_cluster_stream(
    config: StreamConfig, clock: Clock, *, node_id: str
) -> JetStreamStream:
    """Open the stream on the cluster of `stream.url`, waiting for servers that do not answer.

    Raises:
        StreamError: the cluster cannot be used, or is less durable than it has to be; one line.
    """
    give_up_at_s = clock.monotonic_s() + config.start_wait_s
    left_s = config.start_wait_s
    while True:
        try:
            return await _open(config, clock, node_id, left_s)
        except (Unreachable, Unanswered, NoResponders) as error:
            left_s = give_up_at_s - clock.monotonic_s()
            if left_s <= 0:
                raise StreamError(str(error)) from None
            log.warning("waiting_for_cluster", error=str(error), left_s=round(left_s, 1))
        except ClusterError as error:
            raise StreamError(str(error)) from None
        await asyncio.sleep(min(_PAUSE_S, left_s))
        left_s = max(0.0, give_up_at_s - clock.monotonic_s())


async def _open(
    config: StreamConfig, clock: Clock, node_id: str, patience_s: float
) -> JetStreamStream:
    layout = layout_of(config)
    connection = await Connection.open(
        config.url, name=node_id, access=access_of(config), patience_s=patience_s
    )
    try:
        checked = await check_cluster(
            connection, layout, monitors=config.monitors, servers_fsync=config.servers_fsync
        )
        _tell(checked, relaxed=config.durability == RELAXED)
        stream = await JetStreamStream.open(
            connection,
            layout,
            checked.epoch,
            clock,
            durability=checked.durability,
            tail_bytes_max=config.tail_bytes_max,
            arrivals_max=config.trace_batches,
        )
    except BaseException:
        await connection.close()
        raise
    connection.patience_s = max(connection.patience_s, config.start_wait_s)  # the parts to come
    stream.watch = DurabilityWatch(
        connection,
        layout,
        monitors=config.monitors,
        servers_fsync=config.servers_fsync,
        tell=partial(stream.found_weak, accepted=config.durability == RELAXED),
    )
    stream.watch.start()
    return stream


def _tell(checked: Checked, *, relaxed: bool) -> None:
    """Say what is not as it should be.

    Raises:
        StreamError: it is less durable than asked for.
    """
    for note in checked.notes:
        log.warning("layout_differs", difference=note)
    if checked.weak and not relaxed:
        raise StreamError(
            f"{checked.weak[0]}; or go on all the same with stream.durability = 'relaxed'"
        )
    for line in checked.weak:
        log.error("not_durable", cause=line)
