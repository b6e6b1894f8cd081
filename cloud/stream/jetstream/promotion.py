"""A place that mirrors a cluster becomes the cluster: what has to be right before it takes records.

Each stream's mirror lags by itself, so what was cut off ends at another moment in each. Storage,
which has its own cursors, may be ahead of all. Identity decides what is stored; places must not
mean something else than they did:

    ledger       goes on 2^32 records behind all it can have had: a position is given once, so
                 no sink passes over what comes now
    RAW          an entry whose body did not come is taken back: its place is given to another
                 body, and its gateway may still have it
    checkpoints  a mirror keeps the pieces of all there ever were: those of the newest stay
    MQTT         goes on past every place that a session's record names
    leases       begin anew (cloud/cluster/applying.py): their tokens rise by the clock

Invariant: until all of that is done the ledger takes no records, and whoever ends in the midst of
it begins again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from bridge.partition import PARTITIONS
from cloud.cluster.applying import BEYOND, Step, apply, stream_epoch
from cloud.cluster.bucket import is_deleted
from cloud.cluster.checks import RELAXED
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import RAW_STREAMS, Layout
from cloud.cluster.mqtt_wire import WireError, decode_record
from cloud.cluster.reading import all_at_once, insist, read_everything
from cloud.stream.contract import Source, StreamError
from cloud.stream.jetstream.checkpoint import Checkpoints
from cloud.stream.jetstream.engine import JetStreamStream
from cloud.stream.jetstream.state import LedgerState
from runtime.clock import Clock

__all__ = ["promote"]

_AT_ONCE = 1024


async def promote(
    connection: Connection,
    layout: Layout,
    clock: Clock,
    *,
    arrivals_max: int,
    recreate: Sequence[str] = (),
) -> tuple[list[Step], Mapping[Source, int]]:
    """Make the mirrors that are there the cluster's own, and what is missing.

    Args:
        connection: To the place; what it mirrors must be out of reach, or at rest.
        layout: What is wanted.
        clock: Wall clock.
        arrivals_max: Appends whose arrival is remembered.
        recreate: Streams that were not mirrored, to be made again, empty.

    Returns:
        The steps taken, and by source how many readings were taken back whose bodies did not come.

    Raises:
        ClusterError: something is missing or was refused; what was done stands.
    """
    taken_back: Counter[Source] = Counter()

    async def promoting() -> int:
        await _pass_sessions(connection, layout)
        try:
            return await _begin_anew(connection, layout, clock, arrivals_max, taken_back)
        except StreamError as error:
            raise ClusterError(str(error)) from None

    anew = [*recreate, f"KV_{layout.bucket('leases')}"]  # in which nothing lasts
    steps = await apply(connection, layout, recreate=anew, promoting=promoting)
    return steps, taken_back


async def _begin_anew(
    connection: Connection,
    layout: Layout,
    clock: Clock,
    arrivals_max: int,
    taken_back: Counter[Source],
) -> int:
    """Write a checkpoint of what the ledger adds up to here; return where the ledger goes on."""
    state = await _read(connection, layout, clock, arrivals_max)
    ends = [await _end(connection, layout.raw_stream(number)) for number in range(RAW_STREAMS)]
    for number in range(PARTITIONS):
        for one in state.without_bodies_past(number, ends[number % RAW_STREAMS]):
            taken_back[one.source] += one.count
    end = await _end(connection, layout.ledger_stream)
    state.seq = max(state.seq, end) + BEYOND
    checkpoints = Checkpoints(connection, layout)
    await checkpoints.forget_older()
    await checkpoints.save(state, keep_records=0, beyond_end=True)
    return state.seq + 1


async def _read(
    connection: Connection, layout: Layout, clock: Clock, arrivals_max: int
) -> LedgerState:
    """Return what the ledger adds up to, from the newest checkpoint on."""
    stream = await JetStreamStream.open(
        connection,
        layout,
        await stream_epoch(connection, layout),
        clock,
        durability=RELAXED,
        tail_bytes_max=0,
        arrivals_max=arrivals_max,
    )
    await stream.close(keep_connection=True)
    return stream.state


async def _pass_sessions(connection: Connection, layout: Layout) -> None:
    """Have the log of MQTT messages end at or past the places that sessions' records name.

    What goes there would be taken for what those sessions have had.
    """
    bucket = layout.bucket("sessions")
    prefix = f"$KV.{bucket}.s."
    highest = 0
    for message in await read_everything(connection, f"KV_{bucket}"):
        if not message.subject.startswith(prefix) or is_deleted(message.headers):
            continue
        try:
            record = decode_record(message.data)
        except WireError:
            continue  # nobody takes it
        since = (one[2] for one in record.subscriptions.values())
        places = (record.cursor, *record.done, *(one.position for one in record.inflight))
        highest = max(highest, max(places) >> 16, *since)
    subject = layout.mqtt_subject("passed")
    end = await _end(connection, layout.mqtt_stream)
    while end < highest:
        count = min(_AT_ONCE, highest - end)
        await all_at_once([lambda: connection.publish(subject, b"")] * count)
        end = await _end(connection, layout.mqtt_stream)
    path = f"STREAM.PURGE.{layout.mqtt_stream}"
    await insist(lambda: connection.api(path, {"filter": subject}))


async def _end(connection: Connection, stream: str) -> int:
    """Return the last sequence that a stream gave out."""
    info = await insist(lambda: connection.api(f"STREAM.INFO.{stream}"))
    return int(info["state"]["last_seq"])
