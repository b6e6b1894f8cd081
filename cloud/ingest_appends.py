"""Decoded batches on their way into the stream: those of one source and lane share an append.

One append of a source (gateway, epoch) and lane is under way at a time. What is decoded meanwhile
goes with the next one, as readings of one batch: an entry costs nearly as much however few readings
it holds, and a batch of a gateway with many devices falls into as many entries as there are
partitions. So the busier a gateway is, the less each of its readings costs; one that sends a
batch now and then waits for nobody, and live readings never for an append of backlog.

Invariants:
- The batches of a source and lane are appended in the order they were put.
- A batch is answered only by an append that held all of it. One that cannot be appended does not
  have others refused with it: what shares an append that fails by anything but the stream is
  appended again, each batch by itself.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bridge.batch import Batch
from bridge.envelope import LinkLane, Tombstone
from bridge.errors import BatchError
from bridge.readings import Readings
from bridge.select import joined
from cloud.ingest_parts import PartEncoder
from cloud.stream.contract import GivenUp, Part, Source, Stream, StreamError, settled_stone
from cloud.turns import Turn, Turns
from runtime.clock import Clock

__all__ = ["Appends", "Waiting"]

_READINGS_MAX = 8192  # of several batches in one append
_PAYLOAD_BYTES_MAX = 2 << 20
_TURN_READINGS = 1_000  # encoded in one turn of the loop: about 3 ms

_Row = tuple[str, int, int, bool]  # gateway, epoch, lane, historical


@dataclass(slots=True, eq=False)
class Waiting:
    """A batch that has to be appended."""

    batch: Batch
    new: Readings | None  # what the stream does not hold yet
    answered: Callable[[Exception | None], None]  # called once: None when it is in the stream
    later: bool = False  # it is backlog that nothing live waits for
    refused: bool = False  # it lies behind a batch that was refused: it is not begun any more
    turn: Turn | None = None  # that it waits for

    @property
    def source(self) -> Source:
        """Whose readings these are."""
        return self.batch.gateway, self.batch.epoch

    @property
    def row(self) -> _Row:
        """With whose batches it may share an append."""
        return *self.source, self.batch.lane, self.batch.historical

    def hurry(self) -> None:
        """Something live waits for it from now on."""
        self.later = False
        if self.turn is not None:
            self.turn.hurry()


class Appends:
    """The appends of all sources.

    Args:
        stream: Where entries go.
        encoder: Makes them.
        clock: Wall clock, for what gateways say.
        turns: Who may hold the loop; None: a row of their own.

    Attributes:
        entry_bytes: Of the entries appended.
    """

    def __init__(
        self, stream: Stream, encoder: PartEncoder, clock: Clock, turns: Turns | None = None
    ) -> None:
        self.entry_bytes = 0
        self._turns = turns or Turns()
        self._clock = clock
        self._stream = stream
        self._encoder = encoder
        self._queues: dict[_Row, deque[Waiting]] = {}  # of those with something under way
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, waiting: Waiting) -> None:
        """Have a batch appended behind those of its source and lane."""
        row = waiting.row
        queue = self._queues.get(row)
        if queue is not None:
            queue.append(waiting)
            return
        self._queues[row] = deque((waiting,))
        task = asyncio.create_task(self._work(row), name="ingest-append")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when all that was put is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _work(self, row: _Row) -> None:
        queue = self._queues[row]
        try:
            while queue:
                await self._take_turn(queue)
                await self._append(_next_group(queue))
        finally:
            del self._queues[row]

    async def _take_turn(self, queue: deque[Waiting]) -> None:
        """Return when it is the turn of what is in front; what comes meanwhile goes with it."""
        first = queue[0]
        size = sum(map(len, first.new.payloads)) if first.new is not None else 0
        first.turn = self._turns.ask(size, later=all(one.later for one in queue))
        if first.turn is not None:
            await self._turns.wait(first.turn)
            first.turn = None

    async def _append(self, group: Sequence[Waiting]) -> None:
        """Append a group and answer it."""
        begun: list[Waiting] = []
        for one in group:
            if one.refused:
                one.answered(BatchError("context", "a batch before this one was refused"))
            else:
                begun.append(one)
        if not begun:
            return
        failure: Exception | None = None
        try:
            await self._store(begun)
        except Exception as error:  # noqa: BLE001 - whatever it was, each is answered
            if len(begun) > 1 and not isinstance(error, StreamError):
                for one in begun:
                    await self._append([one])
                return
            failure = error
        for one in begun:
            one.answered(failure)

    async def _store(self, group: Sequence[Waiting]) -> None:
        new = [one.new for one in group if one.new is not None]
        first = group[0].batch
        parts: list[Part] = []
        if new:
            encoding = self._encoder.parts(
                first.gateway,
                first.epoch,
                joined(new),
                lane=first.lane,
                historical=first.historical,
            )
            turn = 0
            for part in encoding:
                parts.append(part)
                turn += part.count
                if turn >= _TURN_READINGS:
                    turn = 0
                    await asyncio.sleep(0)
        stones = [_given_up(one.batch, stone) for one in group for stone in one.batch.tombstones]
        said = [one.batch.settled for one in group if one.batch.settled is not None]
        if said:
            stones.append(settled_stone(group[0].source, max(said), self._clock.wall_us()))
        assigned = max(one.batch.assigned for one in group)
        await self._stream.append(parts, stones, {group[0].source: assigned})
        self.entry_bytes += sum(len(part.body) for part in parts)


def _next_group(queue: deque[Waiting]) -> list[Waiting]:
    """Take from a queue what goes into the next append; the rest keeps its order."""
    group: list[Waiting] = []
    count = size = last = 0
    while queue:
        new = queue[0].new
        if new is not None:
            count, size = count + len(new), size + sum(map(len, new.payloads))
            over = count > _READINGS_MAX or size > _PAYLOAD_BYTES_MAX
            if group and (over or new.seqs[0] <= last):
                break
            last = new.seqs[-1]
        group.append(queue.popleft())
    return group


def _given_up(batch: Batch, stone: Tombstone) -> GivenUp:
    return GivenUp(
        batch.gateway,
        batch.epoch,
        LinkLane(stone.lane).name.lower(),
        stone.first_seq,
        stone.last_seq,
        stone.count,
        stone.reason,
        stone.time_us,
    )
