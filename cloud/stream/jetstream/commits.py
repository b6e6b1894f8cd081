"""Writes the ledger: what waits while a record is on its way goes into the next one.

One record of a node is on its way at a time, so its appends stand in the ledger in the order they
were given. An answer that was lost is found in the ledger itself, which every node follows; a
record that stands there twice counts once, because its appends are void the second time.

Invariant: a commit's result is set only when its record was read back from the ledger.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import structlog

from cloud.cluster.connection import ApiError, ClusterError, Connection, NoResponders, Unanswered
from cloud.cluster.follower import Follower
from cloud.cluster.layout import Layout
from cloud.stream.contract import StreamError, StreamFull
from cloud.stream.jetstream.bodies import RETRY_CODES
from cloud.stream.jetstream.records import AppendRecord, Record, decode, encode
from cloud.stream.jetstream.state import PARTS_MAX
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Commits"]

log = structlog.get_logger(component="stream")

_GROUP_APPENDS = 512
_GROUP_NUMBERS = 60_000  # integers of ranges and extents, at most 5 bytes each
_PAUSE_S = 0.05
_PAUSE_MAX_S = 0.5
_LOG_EVERY_S = 10.0


@dataclass(slots=True, eq=False)
class _Commit:
    """Something to be committed; exactly one of its fields is not empty, or none: a probe."""

    future: asyncio.Future[bool]  # False: void
    append: AppendRecord | None = None
    cursors: Mapping[str, Mapping[int, int]] = field(default_factory=dict)
    trims: Mapping[int, int] = field(default_factory=dict)
    numbers: int = 0


class Commits:
    """The commits of one node.

    Args:
        connection: To the cluster.
        layout: Names.
        follower: Of the ledger; its owner hands what it reads to `read_back`.
        clock: Wall clock, for the records.
        writer: This run of the node, a word nobody else uses.
        give_up_s: How long one record is tried.

    Attributes:
        records: Records written and read back.
        cause: Why the one on its way had to be written again, "" when it had not.
    """

    def __init__(
        self,
        connection: Connection,
        layout: Layout,
        follower: Follower,
        clock: Clock,
        writer: str,
        *,
        give_up_s: float,
    ) -> None:
        self.records = 0
        self.cause = ""
        self.writer = writer
        self._connection = connection
        self._layout = layout
        self._follower = follower
        self._clock = clock
        self._give_up_s = give_up_s
        self._number = 0
        self._queue: deque[_Commit] = deque()
        self._wake = asyncio.Event()
        self._sent: dict[int, list[_Commit]] = {}  # by number of the record
        self._written: tuple[bytes, Record] | None = None  # the one on its way
        self._task = asyncio.create_task(self._work(), name="ledger-writer")

    def append(self, append: AppendRecord) -> asyncio.Future[bool]:
        """Commit an append; the result is whether it counts.

        The future raises StreamError when the outcome is unknown, StreamFull when it was refused.
        """
        numbers = sum(
            len(packed) // 4 + len(extents) + 8 for _, _, _, packed, extents in append.parts
        )
        numbers += sum(2 * len(one.seq_ranges) for one in append.sources)
        return self._put(append=append, numbers=numbers + 32 * len(append.given_up) + 8)

    def cursors(self, sink: str, positions: Mapping[int, int]) -> asyncio.Future[bool]:
        """Commit cursors of a sink."""
        return self._put(cursors={sink: dict(positions)}, numbers=2 * len(positions))

    def trim(self, up_to: Mapping[int, int]) -> asyncio.Future[bool]:
        """Commit a trim."""
        return self._put(trims=dict(up_to), numbers=2 * len(up_to))

    def probe(self) -> asyncio.Future[bool]:
        """Commit nothing."""
        return self._put()

    def decoded(self, data: bytes) -> Record:
        """Return the record that these bytes are; the one on its way is known.

        Raises:
            RecordError: damaged, or of another version.
        """
        if self._written is not None and data == self._written[0]:
            return self._written[1]
        return decode(data)

    def read_back(self, record: Record, counted: Sequence[bool]) -> None:
        """Note that a record of this node was read from the ledger."""
        commits = self._sent.pop(record.number, None)
        if commits is None:
            return  # it stands there twice, or was given up
        self._written = None
        self.cause = ""
        self.records += 1
        results = iter(counted)
        for commit in commits:
            result = next(results) if commit.append is not None else True
            if not commit.future.done():
                commit.future.set_result(result)

    async def close(self) -> None:
        """Give up what is under way."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        for commits in (*self._sent.values(), list(self._queue)):
            for commit in commits:
                commit.future.cancel()

    # ---- writing ---------------------------------------------------------------------------------

    def _put(
        self,
        *,
        append: AppendRecord | None = None,
        cursors: Mapping[str, Mapping[int, int]] | None = None,
        trims: Mapping[int, int] | None = None,
        numbers: int = 0,
    ) -> asyncio.Future[bool]:
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._queue.append(_Commit(future, append, cursors or {}, trims or {}, numbers))
        self._wake.set()
        return future

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            while self._queue:
                group = self._next_group()
                self._number += 1
                number = self._number
                self._sent[number] = group
                try:
                    await self._write(number, group)
                except Exception as error:  # noqa: BLE001 - whatever it was, nobody waits for ever
                    self._sent.pop(number, None)
                    failure = error if isinstance(error, StreamError) else StreamError(repr(error))
                    for commit in group:
                        if not commit.future.done():
                            commit.future.set_exception(type(failure)(str(failure)))

    def _next_group(self) -> list[_Commit]:
        group: list[_Commit] = []
        numbers = parts = 0
        while self._queue and len(group) < _GROUP_APPENDS:
            commit = self._queue[0]
            numbers += commit.numbers
            parts += len(commit.append.parts) if commit.append is not None else 0
            if group and (numbers > _GROUP_NUMBERS or parts > PARTS_MAX):
                break
            group.append(self._queue.popleft())
        return group

    def _record(self, number: int, group: Sequence[_Commit]) -> Record:
        cursors: dict[str, dict[int, int]] = {}
        trims: dict[int, int] = {}
        for commit in group:
            for sink, positions in commit.cursors.items():
                known = cursors.setdefault(sink, {})
                for partition, position in positions.items():
                    known[partition] = max(position, known.get(partition, 0))
            for partition, position in commit.trims.items():
                trims[partition] = max(position, trims.get(partition, 0))
        appends = tuple(commit.append for commit in group if commit.append is not None)
        return Record(self.writer, number, self._clock.wall_us(), appends, cursors, trims)

    async def _write(self, number: int, group: Sequence[_Commit]) -> None:
        """Publish a record until it was read back.

        Raises:
            StreamFull: refused.
            StreamError: not in time; it may stand in the ledger, now or later.
        """
        record = self._record(number, group)
        data = encode(record)
        self._written = (data, record)
        loop = asyncio.get_running_loop()
        give_up_at_s = loop.time() + self._give_up_s
        headers = {"Nats-Msg-Id": f"{self.writer}:{number}"}
        pause_s = _PAUSE_S
        subject = self._layout.ledger_subject
        cause: Exception | None = None
        while number in self._sent:
            left_s = give_up_at_s - loop.time()
            if left_s <= 0:
                raise StreamError(f"{subject}: not committed in {self._give_up_s:g} s: {cause}")
            try:
                ack = await self._connection.publish(
                    subject, data, headers, timeout_s=min(2.0, left_s)
                )
                async with asyncio.timeout(max(0.1, give_up_at_s - loop.time())):
                    await self._follower.reach(ack.seq)
            except TimeoutError:
                cause = Unanswered("stored, but not read back")
            except ApiError as error:
                if error.is_full:
                    raise StreamFull(f"{self._layout.ledger_stream}: {error}") from None
                if error.err_code not in RETRY_CODES:
                    raise StreamError(f"{subject}: {error}") from None
                cause = error
            except (NoResponders, Unanswered, ClusterError) as error:
                cause = error
            if number in self._sent:
                self.cause = str(cause)
                limited(log, "ledger", _LOG_EVERY_S).warning("commit_repeated", error=str(cause))
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, _PAUSE_MAX_S)
