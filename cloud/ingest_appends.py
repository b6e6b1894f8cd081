"""Decoded batches on their way into the stream: those of one source that wait share an append.

One append of a source (gateway, epoch) and lane is under way at a time. What is decoded meanwhile
goes with the next one, as readings of one batch: an entry costs nearly as much however few readings
it holds, and a batch of a gateway with many devices falls into as many entries as there are
partitions. So the busier a gateway is, the less each of its readings costs; one that sends a
batch now and then waits for nobody.

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
from runtime.clock import Clock

__all__ = ["Appends", "Waiting"]

_READINGS_MAX = 4096  # of several batches in one append
_PAYLOAD_BYTES_MAX = 2 << 20
_TURN_PARTS = 16  # encoded in one turn of the loop


@dataclass(slots=True, eq=False)
class Waiting:
    """A batch that has to be appended."""

    batch: Batch
    new: Readings | None  # what the stream does not hold yet
    answered: Callable[[Exception | None], None]  # called once: None when it is in the stream
    refused: bool = False  # it lies behind a batch that was refused: it is not begun any more

    @property
    def source(self) -> Source:
        """Whose readings these are."""
        return self.batch.gateway, self.batch.epoch


class Appends:
    """The appends of all sources.

    Args:
        stream: Where entries go.
        encoder: Makes them.
        clock: Wall clock, for what gateways say.

    Attributes:
        entry_bytes: Of the entries appended.
    """

    def __init__(self, stream: Stream, encoder: PartEncoder, clock: Clock) -> None:
        self.entry_bytes = 0
        self._clock = clock
        self._stream = stream
        self._encoder = encoder
        self._queues: dict[Source, deque[Waiting]] = {}  # of sources with something under way
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, waiting: Waiting) -> None:
        """Have a batch appended behind those of its source."""
        queue = self._queues.get(waiting.source)
        if queue is not None:
            queue.append(waiting)
            return
        self._queues[waiting.source] = deque((waiting,))
        task = asyncio.create_task(self._work(waiting.source), name="ingest-append")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when all that was put is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _work(self, source: Source) -> None:
        queue = self._queues[source]
        try:
            while queue:
                await asyncio.gather(*map(self._append, _groups(queue)))
        finally:
            del self._queues[source]

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
            for part in encoding:
                parts.append(part)
                if not len(parts) % _TURN_PARTS:
                    await asyncio.sleep(0)
        stones = [_given_up(one.batch, stone) for one in group for stone in one.batch.tombstones]
        said = [one.batch.settled for one in group if one.batch.settled is not None]
        if said:
            stones.append(settled_stone(group[0].source, max(said), self._clock.wall_us()))
        assigned = max(one.batch.assigned for one in group)
        await self._stream.append(parts, stones, {group[0].source: assigned})
        self.entry_bytes += sum(len(part.body) for part in parts)


def _groups(queue: deque[Waiting]) -> list[list[Waiting]]:
    """Take from a queue what goes into the next appends, one a lane; the rest keeps its order."""
    groups: dict[tuple[int, bool], list[Waiting]] = {}
    sizes: dict[tuple[int, bool], tuple[int, int, int]] = {}  # readings, bytes, last seq
    full: set[tuple[int, bool]] = set()
    left: list[Waiting] = []
    for one in queue:
        lane = (one.batch.lane, one.batch.historical)
        count, size, last = sizes.get(lane, (0, 0, 0))
        new = one.new
        if new is not None:
            count, size = count + len(new), size + sum(map(len, new.payloads))
            over = count > _READINGS_MAX or size > _PAYLOAD_BYTES_MAX
            if lane in groups and (over or new.seqs[0] <= last):
                full.add(lane)
            last = new.seqs[-1]
        if lane in full:
            left.append(one)
            continue
        sizes[lane] = count, size, last
        groups.setdefault(lane, []).append(one)
    queue.clear()
    queue.extend(left)
    return list(groups.values())


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
