"""Drives one sink: reads the stream, writes in order, retries, sets aside what cannot be taken.

Invariants:
- A partition's entries reach the sink in order; a failing one holds up its own partition only.
- A position is passed only after the sink's `write` returned, or after the entry was made durable
  as a dead letter.
- Only partitions that this node holds are worked on (cloud/sinks/ownership.py); before each write
  that is looked at again, and the sink's store refuses whoever has been overtaken meanwhile.
- What is in memory is bounded: one write's entries (`sinks.write_bytes_max` encoded and
  `_WRITE_READINGS_MAX` decoded), whatever the lag.

A failed write of many entries is cut in halves until the entries to blame stand alone; each of
them is tried `sinks.tries_max` times, with pauses. `SinkUnavailable` blames no entry: everything
waits and is tried again for as long as it takes, with pauses so short that a sink goes on soon
after what it needs is back, however long that was away.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import structlog

from bridge.errors import BatchError
from cloud.config import SinksConfig
from cloud.sinks.collector import Collector
from cloud.sinks.contract import (
    BulkSink,
    DecodedEntry,
    FencedSink,
    HandOverSink,
    Sink,
    SinkFenced,
    SinkUnavailable,
    SinkWentBack,
    TurnSink,
    WriteBounds,
)
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.ownership import Ownership
from cloud.sinks.retries import Retries
from cloud.sinks.stream_cursors import StreamCursors, agreed_positions
from cloud.sinks.waits import Waits
from cloud.stream.contract import PARTITIONS, Backlog, Entry, Stream, StreamError

__all__ = ["SinkRunner", "SinkStats"]

log = structlog.get_logger(component="sinks")

_WRITE_READINGS_MAX = 20_000
_UNAVAILABLE_PAUSE_MAX_S = 2.0
_NOTHING_S = 0.005
_CAUSE_CHARS_MAX = 500
_ALWAYS = dict.fromkeys(range(PARTITIONS), 0)  # the tokens of a node that is alone


@dataclass(slots=True, frozen=True)
class SinkStats:
    """How one sink does."""

    name: str
    readings: int  # written since start
    entries: int
    writes: int
    errors: int
    dead_letters: int  # set aside since start
    cause: str  # why it is held up now, "" when it is not
    positions: Mapping[int, int]
    lag: Mapping[int, Backlog]  # partitions that are behind
    tokens: Mapping[int, int]  # of the partitions worked on here
    waits_s: float = 0.0  # how long it has not got on
    taken_over: int = 0  # partitions, since start
    fenced: int = 0  # partitions that another turned out to hold, since start


class SinkRunner:
    """One sink at work.

    Args:
        sink: The sink; from `start` on nobody else may call it.
        stream: Where entries come from.
        decoded: Shared by all runners.
        config: Bounds and pauses.
        ownership: Which partitions are worked on; None: all, always.
        mirror: Also tell the stream, by this name, the cursors that the sink keeps itself; "": no.
    """

    def __init__(
        self,
        sink: Sink,
        stream: Stream,
        decoded: DecodedEntries,
        config: SinksConfig,
        ownership: Ownership | None = None,
        mirror: str = "",
    ) -> None:
        self.sink = sink
        self.name = sink.name
        self._stream = stream
        self._decoded = decoded
        self._config = config
        self._waits = Waits(sink.name)
        self._ownership = ownership
        self._cursors = StreamCursors(stream, sink.name, mirror)
        self._tokens: dict[int, int] = {}  # of the partitions worked on
        self._worked: dict[int, int] = {}  # and of those being taken over
        self._positions: dict[int, int] = {}  # the same partitions
        self._taken_over = self._fenced = 0
        bounds = (
            sink.bounds
            if isinstance(sink, BulkSink)
            else WriteBounds(_WRITE_READINGS_MAX, config.write_bytes_max)
        )
        self._collector = Collector(
            stream, decoded, bounds, bulk=isinstance(sink, BulkSink), blame=self._failed,
            waits=self._waits,
        )  # fmt: skip
        self._retries = Retries(config)
        self._unavailable_tries = 0
        self._idle = False
        self._stopping = False
        self._writing = asyncio.Lock()  # the loop and `redrive` take turns
        self._moved = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._readings = self._entries = self._writes = self._errors = self._dead_letters = 0

    # ---- start and stop --------------------------------------------------------------------------

    async def start(self) -> None:
        """Open the sink, find where it stood and go on from there."""
        await self.sink.open(self._stream.epoch)
        try:
            await self._take_turns()
        except (SinkUnavailable, SinkFenced, StreamError) as error:
            self._waits.failed(_cause(error))
            self._unavailable_tries = 1
        self._task = asyncio.create_task(self._run(), name=f"sink-{self.name}")

    async def _take_turns(self) -> None:
        """Let go of what this node no longer holds; take over what it holds now.

        Raises:
            SinkFenced: the store knows of a newer holder.
            SinkUnavailable: nothing can be taken over now.
        """
        self._waits.on("taking turns")
        if self._ownership is None:
            new = {p: token for p, token in _ALWAYS.items() if p not in self._tokens}
            if new:
                await self._take_over(new)
            return
        held = self._ownership.held()
        gone = [p for p, token in self._tokens.items() if held.get(p) != token]
        if gone:
            with contextlib.suppress(StreamError):  # else the next holder repeats the last moment
                await self._commit_cursors(now=True)
            self._forget(gone)
            if isinstance(self.sink, HandOverSink):
                await self.sink.give_up(gone)
            held = self._ownership.held()
        new = {p: token for p, token in held.items() if p not in self._tokens}
        self._worked = {**self._tokens, **new}
        self._ownership.working(self._worked)
        if isinstance(self.sink, TurnSink) and (gone or new):
            self.sink.turns(self._worked.keys())
        if new:
            await self._take_over(new)

    def _lacks_some(self) -> bool:
        """Return whether a partition is held that is not worked on: it could not be taken over."""
        held = _ALWAYS if self._ownership is None else self._ownership.held()
        return any(self._tokens.get(p) != token for p, token in held.items())

    async def _take_over(self, tokens: Mapping[int, int]) -> None:
        """Find where the sink stood in partitions and go on from there."""
        self._waits.on("taking over {} partitions", len(tokens))
        kept: Mapping[int, int] | None
        if isinstance(self.sink, FencedSink):
            kept = await self.sink.claim(tokens)
        else:
            kept = await self.sink.cursors()
        self._cursors.kept_by_sink = kept is not None
        if kept is None:
            kept = await self._cursors.load(tokens.keys())
        starts = {p: kept.get(p, 0) for p in tokens}
        self._positions.update(await agreed_positions(self._stream, self.name, starts))
        self._tokens.update(tokens)
        if self._ownership is not None:
            self._taken_over += len(tokens)
        self._moved.set()

    def _forget(self, partitions: Iterable[int]) -> None:
        for partition in partitions:
            self._tokens.pop(partition, None)
            self._positions.pop(partition, None)
            self._cursors.forget(partition)
            self._retries.forget(partition)
        self._moved.set()

    def _overtaken(self, error: SinkFenced) -> None:
        """End with partitions that another holds, as it turned out; alone, look at them anew."""
        log.warning("sink_fenced", sink=self.name, partitions=sorted(error.partitions))
        self._fenced += len(error.partitions)
        if self._ownership is not None:
            self._ownership.fenced({p: self._worked[p] for p in error.partitions})
        self._forget(error.partitions)
        if self._ownership is not None and isinstance(self.sink, TurnSink):
            self.sink.turns(self._tokens.keys())

    def _begin_anew(self, partitions: Collection[int]) -> None:
        """Take partitions over again from where the store stands: it has lost what it had."""
        log.error("sink_went_back", sink=self.name, partitions=sorted(partitions),
                  hint="the stream gives it again what it still has")  # fmt: skip
        self._forget(partitions)

    async def stop(self) -> None:
        """Finish the write under way, save cursors, close the sink."""
        self._stopping = True
        if self._task is not None:
            if self._idle:
                self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            with contextlib.suppress(StreamError):  # else the last moment comes again
                await self._commit_cursors(now=True)
        self._waits.stop()
        await self.sink.close()
        if self._ownership is not None:
            self._ownership.working({})

    @property
    def alive(self) -> bool:
        """False when the sink was started and its loop has ended without being asked to."""
        return self._task is None or not self._task.done()

    @property
    def positions(self) -> dict[int, int]:
        """How far the sink has got, by partition; what lies before may be trimmed.

        Cursors the stream keeps count once they are committed.
        """
        if not self._cursors.kept_by_sink:
            return dict(self._cursors.committed)
        kept = self.sink.kept() if isinstance(self.sink, HandOverSink) else None
        return dict(self._positions if kept is None else kept)

    @property
    def tokens(self) -> dict[int, int]:
        """The fencing token of each partition worked on here; 0 on a node that is alone."""
        return dict(self._tokens)

    async def drained(self) -> None:
        """Return when the sink has taken everything that was in the stream at the call.

        Of partitions worked on here, or about to be.
        """
        ends = (await self._stream.stats()).last_positions
        while self._behind(ends):
            self._moved.clear()
            await self._moved.wait()

    def _behind(self, ends: Mapping[int, int]) -> bool:
        held = _ALWAYS if self._ownership is None else self._ownership.held()
        return any(self._positions.get(p, 0) < end for p, end in ends.items() if p in held)

    async def stats(self) -> SinkStats:
        """Return counters, positions and lag as they are now.

        While the sink cannot say where it stands, everything the stream has counts as lag.
        """
        held = _ALWAYS if self._ownership is None else self._ownership.held()
        backlog = await self._stream.backlog({p: self._positions.get(p, 0) for p in held})
        causes = [self._waits.said, *self._retries.causes]
        return SinkStats(
            self.name,
            self._readings,
            self._entries,
            self._writes,
            self._errors,
            self._dead_letters,
            next(filter(None, causes), ""),
            dict(self._positions),
            {partition: lag for partition, lag in backlog.items() if lag.entries},
            dict(self._tokens),
            self._waits.seconds,
            self._taken_over,
            self._fenced,
        )

    # ---- the loop --------------------------------------------------------------------------------

    async def _run(self) -> None:
        at_once = False  # there is more to read, or something failed: partitions may have gone
        while not self._stopping:
            try:
                if not at_once and not self._lacks_some():
                    await self._wait()
                await self._take_turns()
                tried = await self._try_again()
                chunk, at_once = await self._collector.collect(
                    self._positions, self._retries.partitions
                )
                if chunk:
                    await self._deliver(chunk)
                elif not tried:
                    await asyncio.sleep(_NOTHING_S)  # woken, yet nothing came: never spin
                await self._commit_cursors()
                self._waits.over()
                self._unavailable_tries = 0
            except SinkFenced as error:
                self._overtaken(error)
                at_once = True
                await self._pause(error)
            except SinkWentBack as error:
                self._begin_anew(error.partitions)
                at_once = True
                await self._pause(error)
            except (SinkUnavailable, StreamError) as error:
                at_once = True
                await self._pause(error)
            except Exception as error:
                log.exception("sink_error", sink=self.name)
                at_once = True
                await self._pause(error)

    async def _wait(self) -> None:
        """Wait for entries, for a retry that is due, or for cursors to be saved."""
        self._waits.rest()
        waiting = {p: at for p, at in self._positions.items() if p not in self._retries.partitions}
        due_s = self._retries.next_s()
        if self._unsaved():
            due_s = min(self._cursors.due_s, math.inf if due_s is None else due_s)
        self._idle = True
        try:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout_at(due_s):
                    await self._news(waiting)
                if self.sink.linger_s:
                    await asyncio.sleep(self.sink.linger_s)
        finally:
            self._idle = False

    async def _news(self, waiting: Mapping[int, int]) -> None:
        """Return when there are entries, or when other partitions are held."""
        if self._ownership is None:
            await self._stream.wait(waiting)
            return
        if not waiting:
            await self._ownership.changed(self._worked)
            return
        turns = asyncio.ensure_future(self._ownership.changed(self._worked))
        entries = asyncio.ensure_future(self._stream.wait(waiting))
        try:
            await asyncio.wait((turns, entries), return_when=asyncio.FIRST_COMPLETED)
            if entries.done():
                entries.result()
        finally:
            turns.cancel()
            entries.cancel()
            await asyncio.gather(turns, entries, return_exceptions=True)

    async def _pause(self, error: Exception) -> None:
        self._errors += 1
        self._waits.failed(_cause(error))
        pause_s = min(self._retries.pause_s(self._unavailable_tries), _UNAVAILABLE_PAUSE_MAX_S)
        pause_s *= random.uniform(0.5, 1.0)  # nodes that lost the same store come back apart
        self._unavailable_tries += 1
        self._idle = True
        try:
            if self._ownership is None:
                await asyncio.sleep(pause_s)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._ownership.changed(self._worked)
        finally:
            self._idle = False

    async def _try_again(self) -> bool:
        """Try the entries whose pauses are over, each alone; return whether there was one."""
        loop = asyncio.get_running_loop()
        due = self._retries.due(loop.time())
        for partition in due:
            try:
                found, one = await self._collector.first(partition, self._positions[partition])
                if one is not None:
                    await self._deliver([one])
                elif not found:  # trimmed by hand meanwhile
                    self._retries.forget(partition)
            except StreamError as error:  # the other partitions go on without
                self._retries.postpone(partition, _cause(error), loop.time())
        return bool(due)

    # ---- writing ---------------------------------------------------------------------------------

    async def _deliver(self, chunk: Sequence[DecodedEntry]) -> None:
        """Write `chunk`, halving it on failure until the entries to blame stand alone."""
        todo = [list(chunk)]
        while todo:
            entries = todo.pop()
            # an entry before it may have failed a moment ago, a lease may have run out
            holds = self._holds()
            entries = [
                one
                for one in entries
                if self._retries.in_turn(one.entry) and holds(one.entry.partition)
            ]
            if not entries:
                continue
            try:
                await self._write(entries, _ends(entries))
            except (SinkFenced, SinkUnavailable, SinkWentBack, StreamError):
                raise
            except Exception as error:  # noqa: BLE001 - whatever a sink raises blames an entry
                if len(entries) == 1:
                    await self._failed(entries[0].entry, error)
                else:
                    middle = len(entries) // 2
                    todo += (entries[middle:], entries[:middle])

    def _holds(self) -> Callable[[int], bool]:
        """Return what tells whether a partition is worked on and still held, at this moment."""
        if self._ownership is None:
            return self._tokens.__contains__
        held, tokens = self._ownership.held(), self._tokens
        return lambda partition: partition in tokens and held.get(partition) == tokens[partition]

    async def _write(self, entries: Sequence[DecodedEntry], ends: Mapping[int, int]) -> None:
        self._waits.on("writing {} entries", len(entries))
        async with self._writing:
            await self.sink.write(entries, ends)
        self._writes += 1
        self._entries += len(entries)
        self._readings += sum(one.entry.count for one in entries)
        self._retries.passed(ends)
        self._move(ends)

    def _move(self, ends: Mapping[int, int]) -> None:
        if not self._unsaved():
            self._cursors.arm(asyncio.get_running_loop().time())
        self._positions.update(ends)
        self._moved.set()

    async def _failed(self, entry: Entry, error: Exception) -> None:
        """Count a failure of one entry; set it aside when it has had its tries."""
        self._errors += 1
        cause = _cause(error)
        newer = isinstance(error, BatchError) and error.is_newer
        now_s = asyncio.get_running_loop().time()
        tries = self._retries.failed(entry, cause, now_s, newer=newer)
        if self._retries.again(entry, tries):
            return
        if not self._holds()(entry.partition):
            return
        await self._stream.set_aside(self.name, entry, cause, tries)
        if self._cursors.kept_by_sink:
            async with self._writing:
                await self.sink.pass_over(entry)
        self._dead_letters += 1
        self._retries.forget(entry.partition)
        self._move({entry.partition: entry.position})
        log.error("dead_letter", sink=self.name, partition=entry.partition,
                  position=entry.position, gateway=entry.gateway, seqs=entry.seq_ranges[:8],
                  readings=entry.count, cause=cause)  # fmt: skip

    # ---- cursors in the stream -------------------------------------------------------------------

    def _unsaved(self) -> dict[int, int]:
        """Return the cursors that the stream is still to be told."""
        cursors = self._cursors
        if not cursors.is_told:
            return {}
        return cursors.ahead(self.positions if cursors.kept_by_sink else self._positions)

    async def _commit_cursors(self, *, now: bool = False) -> None:
        """Save the cursors, if that is due."""
        unsaved = self._unsaved()
        if not unsaved or not (now or asyncio.get_running_loop().time() >= self._cursors.due_s):
            return
        self._waits.on("saving {} cursors", len(unsaved))
        await self._cursors.commit(unsaved)

    # ---- dead letters ----------------------------------------------------------------------------

    async def offer_again(self, entry: Entry) -> None:
        """Have the sink write an entry that lies behind its cursor, which stays where it is.

        Raises:
            BatchError: the entry cannot be read.
            Exception: what the sink's `write` raises.
        """
        decoded = self._decoded.get(entry)
        async with self._writing:
            await self.sink.write([decoded], {})

    async def redrive(self, only: Collection[tuple[int, int]] | None = None) -> tuple[int, int]:
        """Offer the sink its dead letters once more.

        Args:
            only: (partition, position) of those that are meant; None means all.

        Returns:
            How many it took, and how many are still dead.

        Raises:
            SinkUnavailable: the sink can take nothing now.
        """
        letters = [
            letter
            for letter in await self._stream.dead_letters(self.name)
            if only is None or (letter.entry.partition, letter.entry.position) in only
        ]
        taken = 0
        for letter in letters:
            entry = letter.entry
            try:
                await self.offer_again(entry)
            except SinkUnavailable:
                raise
            except Exception as error:  # noqa: BLE001 - it stays dead, for this cause
                log.warning("still_dead", sink=self.name, partition=entry.partition,
                            position=entry.position, cause=_cause(error))  # fmt: skip
                continue
            await self._stream.forget_dead_letter(self.name, entry.partition, entry.position)
            taken += 1
        return taken, len(letters) - taken


def _ends(entries: Sequence[DecodedEntry]) -> dict[int, int]:
    """Return the last position of each partition among `entries`."""
    return {one.entry.partition: one.entry.position for one in entries}


def _cause(error: Exception) -> str:
    text = str(error) or type(error).__name__
    if not isinstance(error, (BatchError, SinkUnavailable, StreamError)):
        text = f"{type(error).__name__}: {text}"
    return text.replace("\n", " ")[:_CAUSE_CHARS_MAX]
