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

Invariants: until all of that is done the ledger takes no records, and whoever ends in the midst of
it begins again; of two at once only the one that closed the ledger last gets through.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence

from bridge.partition import PARTITIONS
from cloud.cluster.applying import BEYOND, Step, apply, stream_epoch
from cloud.cluster.bucket import is_deleted
from cloud.cluster.checks import RELAXED
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import RAW_STREAMS, Layout
from cloud.cluster.mqtt_wire import SHARDS, Record, WireError, decode_record, shard_of
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

    async def promoting(alone: Callable[[], Awaitable[None]]) -> int:
        await _pass_sessions(connection, layout)
        try:
            return await _begin_anew(connection, layout, clock, arrivals_max, taken_back, alone)
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
    alone: Callable[[], Awaitable[None]],
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
    await alone()  # else those of another promotion would be forgotten
    await checkpoints.forget_older()
    if not await checkpoints.save(state, keep_records=0, alone=alone):
        raise ClusterError(f"{layout.checkpoint_stream}: there is a newer one; promote again")
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
    highest = 0
    needed: dict[int, int] = {}  # by shard, the first entry that a session may need
    for record in await _sessions(connection, layout):
        since = (one[2] for one in record.subscriptions.values())
        places = (record.cursor, *record.done, *(one.position for one in record.inflight))
        highest = max(highest, max(places) >> 16, *since)
        if record.lasting:
            shard, entry = shard_of(record.saved.client_id), (record.cursor >> 16) - 1
            needed[shard] = min(entry, needed.get(shard, entry))
    end = await _end(connection, layout.mqtt_stream)
    if end >= highest:
        return
    # a mirror keeps what nobody needs any more, and may have no room left
    await _purge_log(connection, layout, "a.>", end + 1)
    for shard in range(SHARDS):
        await _purge_log(connection, layout, f"s.{shard}", needed.get(shard, end + 1))
    subject = layout.mqtt_subject("passed")
    while end < highest:
        count = min(_AT_ONCE, highest - end)
        await all_at_once([lambda: insist(lambda: connection.publish(subject, b""))] * count)
        end = await _end(connection, layout.mqtt_stream)
        await _purge_log(connection, layout, "passed", end + 1)


async def _sessions(connection: Connection, layout: Layout) -> list[Record]:
    """Return the records of sessions that nodes would take."""
    bucket = layout.bucket("sessions")
    prefix = f"$KV.{bucket}.s."
    found = []
    for message in await read_everything(connection, f"KV_{bucket}"):
        if message.subject.startswith(prefix) and not is_deleted(message.headers):
            with contextlib.suppress(WireError):
                found.append(decode_record(message.data))
    return found


async def _purge_log(connection: Connection, layout: Layout, word: str, below: int) -> None:
    """Forget the entries of the log under a word with smaller numbers."""
    if below > 1:  # a server takes 0 and 1 for all there are
        path = f"STREAM.PURGE.{layout.mqtt_stream}"
        body = {"filter": layout.mqtt_subject(word), "seq": below}
        await insist(lambda: connection.api(path, body))


async def _end(connection: Connection, stream: str) -> int:
    """Return the last sequence that a stream gave out."""
    info = await insist(lambda: connection.api(f"STREAM.INFO.{stream}"))
    return int(info["state"]["last_seq"])
