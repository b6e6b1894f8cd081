"""Bodies of entries in the RAW streams: written in groups by partition, read by their place.

Bodies that wait for a round of their stream (rounds.py) share a message with others of their
partition, so the number of messages follows time and partitions and not the gateways. One message
of a partition is on its way at a time. A message whose answer was lost is sent again; the copy
nobody refers to is no entry. A body that several appends bring, one after the other, is written
once.

Invariants: an extent is given out only for what a quorum has stored; what is in memory is bounded
(`tail_bytes_max`, and one fetch).
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence

import structlog

from cloud.cluster.connection import (
    ApiError,
    ClusterError,
    Connection,
    NoResponders,
    Unanswered,
)
from cloud.cluster.layout import RAW_STREAMS, Layout
from cloud.stream.contract import StreamError, StreamFull
from cloud.stream.jetstream.entries import Indexed
from cloud.stream.jetstream.records import flat
from cloud.stream.jetstream.rounds import Rounds
from runtime.logs import limited

__all__ = ["RETRY_CODES", "Body", "BodyReader", "BodyWriter", "Messages"]

log = structlog.get_logger(component="stream")

RETRY_CODES = frozenset({10158, 10164, 10210, 10008, 10009})  # under way, or not available yet
_GROUP_BYTES = 256 << 10
_HEADROOM_BYTES = 4096  # of a message, for what the protocol adds
_PAUSE_S = 0.05
_PAUSE_MAX_S = 0.5
_FETCH_MESSAGES = 256
_FETCH_BYTES = 4 << 20
_LOOKS = 20  # at the replicas for a body, before it counts as gone
_LOG_EVERY_S = 10.0
_CLOSED = "closed while it was under way"

_Key = tuple[int, int]  # (partition, sequence in its RAW stream)


class Body:
    """A body on its way.

    Attributes:
        data: It.
        extents: Where it lies, its extents one after the other; empty until it is stored.
        failure: Why it is not stored, if that is certain or unknown.
        told: Called with this once it is one or the other; while there is nobody, it need not be
            written.
    """

    __slots__ = ("data", "extents", "failure", "told")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.extents: tuple[int, ...] = ()
        self.failure: StreamError | None = None
        self.told: list[Callable[[Body], None]] = []

    def tell(self, extents: tuple[int, ...] = (), failure: StreamError | None = None) -> None:
        """Note what became of it."""
        self.extents, self.failure = extents, failure
        told, self.told = self.told, []
        for one in told:
            one(self)


class Messages:
    """The newest messages in memory.

    Args:
        bytes_max: Of them together.
    """

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._found: OrderedDict[_Key, bytes] = OrderedDict()

    def add(self, key: _Key, data: bytes) -> None:
        """Keep a message, and drop the oldest ones that are too many."""
        if key in self._found:
            return
        self._found[key] = data
        self._bytes += len(data)
        while self._bytes > self._bytes_max:
            self._bytes -= len(self._found.popitem(last=False)[1])

    def get(self, key: _Key) -> bytes | None:
        """Return a message, or None."""
        return self._found.get(key)


class BodyWriter:
    """Writes bodies.

    Args:
        connection: To the cluster.
        layout: Names of streams and subjects.
        messages: Keeps what was written.
        give_up_s: How long one message is tried.

    Attributes:
        published: Messages stored.
        repeated: Attempts that were not the first.
    """

    def __init__(
        self, connection: Connection, layout: Layout, messages: Messages, *, give_up_s: float
    ) -> None:
        self.published = 0
        self.repeated = 0
        self._connection = connection
        self._layout = layout
        self._messages = messages
        self._give_up_s = give_up_s
        self._queues: dict[int, deque[Body]] = {}
        self._newest: dict[int, Body] = {}  # by partition, while it is on its way
        self._tasks: set[asyncio.Task[None]] = set()
        self._rounds = [Rounds(self._begin) for _ in range(RAW_STREAMS)]

    def write(self, partition: int, data: bytes, told: Callable[[Body], None]) -> Body:
        """Begin to store a body, or wait for the same object that is on its way.

        Who takes `told` out of the body's no longer wants it.
        """
        body = self._newest.get(partition)
        if body is None or body.data is not data:
            body = self._newest[partition] = Body(data)
            self._queues.setdefault(partition, deque()).append(body)
            self._rounds[partition % RAW_STREAMS].want(partition)
        body.told.append(told)
        return body

    def went_back(self, partition: int, seq: int, floor: int) -> StreamError:
        """Return what is said of a body whose place is one that was trimmed: it counts for nothing.

        Args:
            partition: Whose stream of bodies it is.
            seq: Where it was stored.
            floor: Up to where all was trimmed.
        """
        name = self._layout.raw_stream(partition)
        return StreamError(
            f"{name}: its sequences went back to {seq}, up to {floor} all was trimmed: it was made"
            f" or put back by hand; delete it, then 'tidegate cluster apply --recreate {name}'"
        )

    async def stored(self, partition: int, data: bytes) -> int:
        """Store a body; return its sequence.

        Raises:
            StreamError: it may be there or not; StreamFull: it is not.
        """
        done: asyncio.Future[Body] = asyncio.get_running_loop().create_future()

        def told(body: Body) -> None:
            if not done.done():
                done.set_result(body)

        self.write(partition, data, told)
        body = await done
        if body.failure is not None:
            raise body.failure
        return body.extents[0]

    async def close(self) -> None:
        """Give up what is under way."""
        for rounds in self._rounds:
            rounds.close()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for partition, queue in self._queues.items():
            self._fail(partition, queue, StreamError(_CLOSED))

    def _begin(self, partition: int) -> asyncio.Task[None]:
        task = asyncio.create_task(self._write_next(partition), name=f"raw-{partition}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _write_next(self, partition: int) -> None:
        """Write what waits of a partition, as much as one message takes."""
        queue = self._queues[partition]
        group = self._next_group(partition, queue)
        if queue:
            self._rounds[partition % RAW_STREAMS].want(partition)
        if not group:
            return
        try:
            await self._write_group(partition, group)
        except Exception as error:  # noqa: BLE001 - whatever it was, nobody waits for ever
            self._fail(partition, group, _as_stream_error(error))
        except asyncio.CancelledError:
            self._fail(partition, group, StreamError(_CLOSED))
            raise

    def _next_group(self, partition: int, queue: deque[Body]) -> list[Body]:
        group: list[Body] = []
        size = 0
        limit = min(_GROUP_BYTES, self._piece_bytes)
        while queue:
            body = queue[0]
            if group and size + len(body.data) > limit:
                break
            queue.popleft()
            if body.told:
                size += len(body.data)
                group.append(body)
            else:
                self._leave(partition, body)
        return group

    def _leave(self, partition: int, body: Body) -> None:
        """Have nobody wait for a body any more, which is on its way no longer."""
        if self._newest.get(partition) is body:
            del self._newest[partition]

    def _fail(self, partition: int, bodies: Sequence[Body], failure: StreamError) -> None:
        for body in list(bodies):
            self._leave(partition, body)
            if not body.extents:
                body.tell(failure=failure)

    @property
    def _piece_bytes(self) -> int:
        return self._connection.payload_bytes_max - _HEADROOM_BYTES

    async def _write_group(self, partition: int, group: list[Body]) -> None:
        payload = b"".join(body.data for body in group)
        pieces: list[tuple[int, int]] = []  # sequence, length
        for start in range(0, len(payload) or 1, self._piece_bytes):
            piece = payload[start : start + self._piece_bytes]
            seq = await self._publish(partition, piece)
            self._messages.add((partition, seq), piece)
            pieces.append((seq, len(piece)))
        for body in group:
            self._leave(partition, body)
        if len(pieces) > 1:  # a body alone, past what one message takes
            group[0].tell(flat([(seq, 0, length) for seq, length in pieces]))
            return
        offset = 0
        for body in group:
            body.tell((pieces[0][0], offset, len(body.data)))
            offset += len(body.data)

    async def _publish(self, partition: int, payload: bytes) -> int:
        """Return the sequence of a message, stored; sent until it is, or the time is up."""
        subject = self._layout.raw_subject(partition)
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + self._give_up_s
        pause_s = _PAUSE_S
        while True:
            try:
                ack = await self._connection.publish(subject, payload)
            except (NoResponders, Unanswered) as error:
                cause: ClusterError = error
            except ApiError as error:
                if error.is_full:
                    raise StreamFull(f"{self._layout.raw_stream(partition)}: {error}") from None
                if error.err_code not in RETRY_CODES:
                    raise StreamError(f"{subject}: {error}") from None
                cause = error
            else:
                self.published += 1
                return ack.seq
            if loop.time() + pause_s > give_up_at_s:
                raise StreamError(f"{subject}: not stored in {self._give_up_s:g} s: {cause}")
            limited(log, "raw", _LOG_EVERY_S).warning("publish_repeated", error=str(cause))
            self.repeated += 1
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)


class BodyReader:
    """Reads bodies.

    Args:
        connection: To the cluster.
        layout: Names of streams and subjects.
        messages: Looked at first.
    """

    def __init__(self, connection: Connection, layout: Layout, messages: Messages) -> None:
        self._connection = connection
        self._layout = layout
        self._messages = messages

    async def read(self, partition: int, entries: Sequence[Indexed]) -> list[bytes | None]:
        """Return the bodies of entries of one partition; None for one that is certainly gone.

        Raises:
            StreamError: it cannot be found out now.
        """
        found: dict[int, bytes] = {}
        wanted: set[int] = set()
        for entry in entries:
            for seq, _, _ in entry.extents:
                data = self._messages.get((partition, seq))
                if data is None:
                    wanted.add(seq)
                else:
                    found[seq] = data
        try:
            gone = await self._fetch(partition, wanted, found)
        except ClusterError as error:
            raise StreamError(f"partition {partition}: {error}") from None
        bodies: list[bytes | None] = []
        for n, entry in enumerate(entries):
            shared = n > 0 and entries[n - 1].extents == entry.extents
            bodies.append(bodies[-1] if shared else _body(entry, found, gone))
        return bodies

    async def _fetch(self, partition: int, wanted: set[int], found: dict[int, bytes]) -> set[int]:
        """Add the messages wanted to `found`; return those that are nowhere."""
        stream = self._layout.raw_stream(partition)
        subject = self._layout.raw_subject(partition)
        gone: set[int] = set()
        looks = 0
        while wanted:
            first = min(wanted)
            asked = {"seq": first, "next_by_subj": subject, "batch": _FETCH_MESSAGES,
                     "max_bytes": _FETCH_BYTES}  # fmt: skip
            for message in await self._connection.direct_get(stream, asked):
                seq = int((message.headers or {})["Nats-Sequence"])
                self._messages.add((partition, seq), message.data)
                if seq in wanted:
                    wanted.discard(seq)
                    found[seq] = message.data
            if first not in wanted:
                looks = 0
                continue
            looks += 1  # that replica lags, or the message is not there
            if looks >= _LOOKS:
                wanted.discard(first)
                gone.add(first)
                looks = 0
            else:
                await asyncio.sleep(_PAUSE_S)
        return gone


def _body(entry: Indexed, found: dict[int, bytes], gone: set[int]) -> bytes | None:
    if any(seq in gone for seq, _, _ in entry.extents):
        return None
    pieces = [found[seq][offset : offset + length] for seq, offset, length in entry.extents]
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def _as_stream_error(error: Exception) -> StreamError:
    if isinstance(error, StreamError):
        return type(error)(str(error))
    return StreamError(f"{type(error).__name__}: {error}")
