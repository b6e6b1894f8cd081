"""Decoded batches on their way into the stream: those of one source and lane share an append.

One append of a source (gateway, epoch) and lane is under way at a time. What is decoded meanwhile
goes with the next one, as readings of one batch. And what is appended of several sources at the
same time shares bodies (cloud/ingest_packs.py): an entry costs nearly as much however few readings
it holds, so work follows time and partitions, not gateways; and backlog that comes in fast is
gathered for a moment, much shorter than a gateway's window. Each source has an append of its own
nevertheless: it counts or fails by itself. One that sends a batch now and then waits for nobody,
and live readings never for an append of backlog.

Invariants:
- The batches of a source and lane are appended in the order they were put.
- A batch is answered only by an append that held all of it. One that cannot be appended does not
  have others refused with it: what shares a body or an append that fails by anything but the stream
  is encoded and appended again, each source by itself, then each batch.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from bridge.batch import Batch
from bridge.columnar import widest
from bridge.envelope import LinkLane, Tombstone
from bridge.errors import BatchError
from bridge.readings import Readings
from bridge.select import joined
from cloud.ingest_packs import LATE_S, Group, Packs
from cloud.ingest_parts import PartEncoder
from cloud.stream.contract import GivenUp, Part, Source, Stream, StreamError, settled_stone
from cloud.turns import Turn, Turns
from runtime.clock import Clock

__all__ = ["Appends", "Waiting"]

_READINGS_MAX = 8192  # of several batches in one append
_GATHER_S = 0.08  # from one append of backlog to the next,
_GATHER_READINGS = 2000  # where as many went with the one before
_BYTES_MAX = 2 << 20  # of these written out, far below what a reader takes

_RowName = tuple[str, int, int]  # gateway, epoch, lane


@dataclass(slots=True, eq=False)
class Waiting:
    """A batch that has to be appended."""

    batch: Batch
    new: Readings | None  # what the stream does not hold yet
    # called once, with this: None when it is in the stream. It must not refer to this itself: in a
    # circle all its readings would stay until the collector of garbage comes
    answered: Callable[[Waiting, Exception | None], None]
    later: bool = False  # it is backlog that nothing live waits for
    refused: bool = False  # it lies behind a batch that was refused: it is not begun any more
    turn: Turn | None = None  # that it waits for
    group: Group | None = None  # that it is being encoded with
    bytes: int = field(init=False, default=0)  # at most, of its readings written out

    def __post_init__(self) -> None:
        new = self.new
        if new is not None:
            self.bytes = len(new) * widest(new.sources) + sum(map(len, new.payloads))
            self.bytes += sum(map(len, new.properties))

    @property
    def count(self) -> int:
        """How many readings the stream does not hold yet."""
        return len(self.new) if self.new is not None else 0

    @property
    def source(self) -> Source:
        """Whose readings these are."""
        return self.batch.gateway, self.batch.epoch

    @property
    def row_name(self) -> _RowName:
        """Behind whose batches it is appended."""
        return *self.source, self.batch.lane

    def hurry(self) -> None:
        """Something live waits for it from now on."""
        self.later = False
        if self.turn is not None:
            self.turn.hurry()
        if self.group is not None:
            self.group.hurry()


class _Row:
    """The batches of one source and lane that wait for their append, in order."""

    __slots__ = ("batches", "begun_s", "full", "lane", "readings", "taken")

    def __init__(self, lane: int) -> None:
        self.lane = lane
        self.batches: deque[Waiting] = deque()
        self.readings = 0  # of these
        self.taken = 0  # readings of the last append,
        self.begun_s = 0.0  # and when it began
        self.full = asyncio.Event()

    def add(self, waiting: Waiting) -> None:
        self.batches.append(waiting)
        self.readings += waiting.count
        if self.readings >= _READINGS_MAX:
            self.full.set()

    async def gather(self) -> None:
        """Return when the next append may begin.

        Live readings behind them in their connection are appended without them; only the answer to
        those waits.
        """
        if self.lane != LinkLane.BACKLOG or self.taken < _GATHER_READINGS:
            return
        if self.readings < _READINGS_MAX:
            self.full.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(self.begun_s + _GATHER_S):
                    await self.full.wait()

    def take(self) -> list[Waiting]:
        """Take what goes into the next append; the rest keeps its order."""
        self.begun_s = asyncio.get_running_loop().time()
        group: list[Waiting] = []
        count = size = last = 0
        while self.batches:
            one = self.batches[0]
            if one.new is not None:
                count, size = count + one.count, size + one.bytes
                over = count > _READINGS_MAX or size > _BYTES_MAX
                # what an append holds is historical or not; the row keeps both in order
                other = bool(group) and one.batch.historical != group[0].batch.historical
                if group and (over or other or one.new.seqs[0] <= last):
                    break
                last = one.new.seqs[-1]
            self.batches.popleft()
            group.append(one)
        self.taken = sum(one.count for one in group)
        self.readings -= self.taken
        return group


class Appends:
    """The appends of all sources.

    Args:
        stream: Where entries go.
        encoder: Makes them.
        clock: Wall clock, for what gateways say.
        turns: Who may hold the loop; None: a row of their own.
        late_s: Nothing waits longer to be encoded with others, unless the stream is slow.

    Attributes:
        entry_bytes: Of the entries appended.
    """

    def __init__(
        self,
        stream: Stream,
        encoder: PartEncoder,
        clock: Clock,
        turns: Turns | None = None,
        *,
        late_s: float = LATE_S,
    ) -> None:
        self.entry_bytes = 0
        self._turns = turns or Turns()
        self._clock = clock
        self._stream = stream
        self._encoder = encoder
        self._packs = (Packs(encoder, late_s=late_s), Packs(encoder, late_s=late_s))  # live; later
        self._rows: dict[_RowName, _Row] = {}  # of those with something under way
        self._tasks: set[asyncio.Task[None]] = set()

    def put(self, waiting: Waiting) -> None:
        """Have a batch appended behind those of its source and lane."""
        name = waiting.row_name
        row = self._rows.get(name)
        if row is not None:
            row.add(waiting)
            return
        row = self._rows[name] = _Row(waiting.batch.lane)
        row.add(waiting)
        task = asyncio.create_task(self._work(name, row), name="ingest-append")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def settled(self) -> None:
        """Return when all that was put is answered."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    async def _work(self, name: _RowName, row: _Row) -> None:
        try:
            while row.batches:
                await self._take_turn(row)
                await self._append(row.take())
                await row.gather()
        finally:
            del self._rows[name]

    async def _take_turn(self, row: _Row) -> None:
        """Return when it is the turn of what is in front; what comes meanwhile goes with it."""
        first = row.batches[0]
        size = sum(map(len, first.new.payloads)) if first.new is not None else 0
        first.turn = self._turns.ask(size, later=all(one.later for one in row.batches))
        if first.turn is not None:
            await self._turns.wait(first.turn)
            first.turn = None

    async def _append(self, batches: Sequence[Waiting]) -> None:
        """Append batches of one source and lane and answer them."""
        begun = [one for one in batches if not _refused(one)]
        if all(one.new is None for one in begun):
            await self._answer(begun, [])
            return
        first = _first(begun)
        size = sum(one.bytes for one in begun)
        group = Group(begun[0].source, (first.lane, first.historical), _new(begun), size)
        for one in begun:
            one.group = group
        packs = self._packs[all(one.later for one in begun)]
        parts = await packs.encode(group)
        try:
            left = [one for one in begun if not _refused(one)]
            await self._answer(left, parts if len(left) == len(begun) else None)
        finally:
            packs.appended(group)

    async def _answer(self, batches: Sequence[Waiting], parts: Sequence[Part] | None) -> None:
        """Append batches, whose parts are encoded here if they are not yet, and answer them."""
        if not batches:
            return
        failure: Exception | None = None
        try:
            await self._send(batches, self._parts(batches) if parts is None else parts)
        except StreamError as error:
            failure = error
        except Exception as error:  # noqa: BLE001 - whatever it was, each is answered
            if len(batches) > 1:
                for one in batches:
                    if not _refused(one):
                        await self._answer([one], None)
                return
            failure = error
        for one in batches:
            one.answered(one, failure)

    def _parts(self, batches: Sequence[Waiting]) -> list[Part]:
        """Return the parts of one source's batches."""
        if all(one.new is None for one in batches):
            return []
        batch = _first(batches)
        encoding = self._encoder.parts(
            [batches[0].source], [_new(batches)], lane=batch.lane, historical=batch.historical
        )
        return [part for ((_, part),) in encoding]

    async def _send(self, batches: Sequence[Waiting], parts: Sequence[Part]) -> None:
        source = batches[0].source
        stones = [_given_up(one.batch, stone) for one in batches for stone in one.batch.tombstones]
        said = [one.batch.settled for one in batches if one.batch.settled is not None]
        if said:
            stones.append(settled_stone(source, max(said), self._clock.wall_us()))
        assigned = max(one.batch.assigned for one in batches)
        await self._stream.append(parts, stones, {source: assigned})
        self.entry_bytes += sum(part.own_bytes for part in parts)


def _refused(one: Waiting) -> bool:
    """Answer a batch that lies behind one that was refused; return whether it does."""
    if one.refused:
        one.answered(one, BatchError("context", "a batch before this one was refused"))
    return one.refused


def _first(batches: Sequence[Waiting]) -> Batch:
    """Return the first that brings readings: what it is, historical or not, all of those are."""
    return next(one.batch for one in batches if one.new is not None)


def _new(batches: Sequence[Waiting]) -> Readings:
    return joined([one.new for one in batches if one.new is not None])


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
