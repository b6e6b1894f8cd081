"""Batches from gateways: decoded, freed of what is held, split by partition, appended, answered.

Invariants (docs/link-format.md section 1.2):
- The batches of a connection are decoded in the order they came, appended in that order, and
  their runs are settled in that order.
- A publish is answered 0 only after every reading of its batch is in the stream, by this append
  or an earlier one.
- Nothing live waits for backlog of other connections; what lies before it in its own connection is
  worked on as if it were live (cloud/turns.py).
- Any refusal drops the connection's context, and what was decoded behind the refused batch and is
  not being appended yet is refused too, so nothing overtakes it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from pathlib import Path
from typing import NamedTuple

import structlog

from bridge.batch import Batch, Decoder, decompressor
from bridge.columnar import Limits, topic_bytes
from bridge.envelope import LinkLane, Mode, lane_of
from bridge.errors import BatchError
from bridge.intervals import ranges_of
from bridge.readings import Readings
from bridge.select import without
from cloud.ingest_appends import Appends, Waiting
from cloud.ingest_parts import Encoded, PartEncoder
from cloud.ingest_runs import RunKeeper
from cloud.ingest_sources import HeldSeqs
from cloud.ingest_structured import StructuredLine, StructuredPool, processes_by_cores
from cloud.stream.contract import Stream, StreamError, StreamFull
from cloud.turns import Turn, Turns
from mqtt.broker.access.rules import speaks_for
from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.errors import MalformedPacket
from mqtt.frames import parse_publishes
from mqtt.reason_codes import ReasonCode
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["UP_PREFIX", "BatchIngest", "BatchStats", "BatchTaken", "Waits"]

log = structlog.get_logger(component="ingest")

UP_PREFIX = "tidegate/v1/up/"
_STATE_KEY = "ingest"
_LOG_EVERY_S = 10.0
_REASON_CHARS = 200  # of a Reason String


@dataclass(slots=True)
class BatchStats:
    """Counters since start."""

    batches: int = 0
    structured: int = 0  # that came in the structured mode, refused ones included
    readings: int = 0  # new to the stream
    duplicates: int = 0  # readings that were held already
    batch_bytes: int = 0
    payload_bytes: int = 0  # topics and payloads of the readings in them
    entry_bytes: int = 0
    tombstones: int = 0
    refused: dict[str, int] = field(default_factory=dict)  # by word


class Waits(NamedTuple):
    """How long runs with live readings waited for their answers, in seconds since they came."""

    fastest_s: float = inf  # none was answered
    slowest_s: float = 0.0  # those that still wait among them

    def with_one(self, waited_s: float) -> Waits:
        """Return them with one more."""
        return Waits(min(self.fastest_s, waited_s), max(self.slowest_s, waited_s))


@dataclass(slots=True, frozen=True)
class BatchTaken:
    """A batch that has just become durable, for those who watch gateways."""

    client: ClientInfo
    batch: Batch
    now_us: int


@dataclass(slots=True, eq=False)
class _Run:
    """A run being worked on: one code a publish, None while it is under way."""

    run: PublishRun
    publishes: Sequence[tuple[int, bytes, int, bytes, bytes]] | None  # None: they cannot be read
    codes: list[int | None]
    since_s: float  # when it came
    live: bool  # not all of it is backlog

    def done(self) -> bool:
        return None not in self.codes


class _Line:
    """One connection: its decoder and its runs in order of arrival."""

    __slots__ = (
        "appending",
        "decoder",
        "gateway",
        "generation",
        "live",
        "structured",
        "task",
        "todo",
        "turn",
        "unsettled",
    )

    def __init__(self) -> None:
        self.gateway = ""
        self.decoder: Decoder | None = None
        self.structured: StructuredLine | None = None  # its context follows `decoder`'s
        self.generation = 0  # of the context; a refusal begins the next
        self.appending: list[Waiting] = []  # decoded and not answered, in order
        self.todo: deque[_Run] = deque()  # not decoded yet
        self.unsettled: deque[_Run] = deque()  # not answered yet, those of `todo` included
        self.live = 0  # of the runs not decoded yet, those that are not all backlog
        self.turn: Turn | None = None  # that it waits for
        self.task: asyncio.Task[None] | None = None

    def add(self, work: _Run) -> None:
        """Take a run; what lies before one that is live becomes as urgent as that."""
        self.todo.append(work)
        self.unsettled.append(work)
        if work.live:
            self.live += 1
            if self.turn is not None:
                self.turn.hurry()
            for waiting in self.appending:
                waiting.hurry()

    def drop_context(self) -> None:
        self.generation += 1
        if self.decoder is not None:
            self.decoder.drop_context()


class BatchIngest:
    """Takes runs of the uplink lane.

    Args:
        stream: Where entries go.
        clock: Wall clock for what is watched.
        batch_bytes_max: Longest batch accepted.
        contexts_max: How many connections may be in the structured mode; 0 = none.
        decoders: How many processes decode it, at most; 0 = by the machine's cores.
        snapshots: Where gateways' contexts are kept for warm starts; None: nowhere.
        snapshot_bytes_max: Most bytes there.
        released: Called with the bytes of a run once it is settled.
        taken: Called for each batch that became durable.
        encoded: Called with each part about to be appended, its readings, and whether they waited
            through an outage.
    """

    def __init__(
        self,
        stream: Stream,
        clock: Clock,
        *,
        batch_bytes_max: int,
        contexts_max: int = 256,
        decoders: int = 0,
        snapshots: Path | None = None,
        snapshot_bytes_max: int = 0,
        released: Callable[[int], None],
        taken: Callable[[BatchTaken], None] = lambda _taken: None,
        encoded: Encoded | None = None,
    ) -> None:
        self.stats = BatchStats()
        self._stream = stream
        self._clock = clock
        self._limits = Limits(batch_bytes=batch_bytes_max)
        self._zstd = decompressor()  # of all lines
        self.structured = StructuredPool(
            contexts_max,
            snapshots,
            snapshot_bytes_max,
            processes=decoders or processes_by_cores(),
        )
        self._released = released
        self._taken = taken
        self._held = HeldSeqs(stream)
        self.runs = RunKeeper(stream, self._held, clock)
        self._turns = Turns()
        encoder = PartEncoder(encoded, lambda: stream.shares_bodies)
        self._appends = Appends(stream, encoder, clock, self._turns)
        self._lines: set[_Line] = set()  # with work to do
        self._waiting: dict[_Run, None] = {}  # live and not answered, the oldest first
        self._waits = Waits()  # since it was asked last

    def take(self, run: PublishRun) -> None:
        """Take a run; it is settled when all its batches are durable or refused."""
        line: _Line = run.client.state.setdefault(_STATE_KEY, None) or _Line()
        run.client.state[_STATE_KEY] = line
        try:
            publishes = parse_publishes(run.frames, run.client.protocol_version)
        except MalformedPacket:
            log.exception("unreadable_run", client_id=run.client.client_id)
            publishes = None
        live = any(lane_of(payload) != LinkLane.BACKLOG for *_, payload in publishes or ())
        work = _Run(run, publishes, [None] * run.count, self._clock.monotonic_s(), live)
        if live:
            self._waiting[work] = None
        line.add(work)
        if line.task is None:
            self._lines.add(line)
            line.task = asyncio.create_task(self._work(line), name="ingest-line")

    def waits(self) -> Waits:
        """Return how long runs that were live waited since this was asked last."""
        waits, self._waits = self._waits, Waits()
        if self._waiting:
            oldest = next(iter(self._waiting))
            slowest_s = max(waits.slowest_s, self._clock.monotonic_s() - oldest.since_s)
            return Waits(waits.fastest_s, slowest_s)
        return waits

    async def close(self) -> None:
        """Finish what was taken; nothing may be taken any more."""
        while self._lines:
            tasks = [line.task for line in self._lines if line.task is not None]
            await asyncio.gather(*tasks, return_exceptions=True)
            # since 3.12 a gather of finished tasks does not let the loop run their callbacks
            await asyncio.sleep(0)
        await self._appends.settled()
        await self.structured.close()

    # ---- one connection --------------------------------------------------------------------------

    async def _work(self, line: _Line) -> None:
        """Handle the runs of one connection for as long as there are any."""
        try:
            while line.todo:
                work = line.todo.popleft()
                await self._handle(line, work)
                line.live -= work.live
                self._settle(line)
        finally:
            line.task = None
            self._lines.discard(line)

    async def _handle(self, line: _Line, work: _Run) -> None:
        run = work.run
        if work.publishes is None:
            work.codes = [ReasonCode.UNSPECIFIED_ERROR] * run.count
            line.drop_context()
            return
        for index, (_, topic, _, _, payload) in enumerate(work.publishes):
            line.turn = self._turns.ask(len(payload), later=not line.live)
            if line.turn is not None:  # a batch is some milliseconds of work
                await self._turns.wait(line.turn)
                line.turn = None
            try:
                await self._take_batch(line, work, index, topic, payload)
            except BatchError as error:
                self._refuse(line, work, index, ReasonCode.PAYLOAD_FORMAT_INVALID, error)
            except StreamError as error:
                self._refuse(line, work, index, _code(error), error)
            except Exception as error:
                log.exception("ingest_error", client_id=run.client.client_id)
                code = ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
                self._refuse(line, work, index, code, error)

    async def _take_batch(
        self, line: _Line, work: _Run, index: int, topic: bytes, payload: bytes
    ) -> None:
        """Decode one batch and start its append."""
        gateway = topic.decode()[len(UP_PREFIX) :]
        if not gateway or "/" in gateway:
            error = BatchError("malformed", "the topic does not end in a gateway's id")
            self._refuse(line, work, index, ReasonCode.TOPIC_NAME_INVALID, error)
            return
        if not speaks_for(gateway, work.run.client):
            error = BatchError("malformed", f"not a client of gateway '{gateway}'")
            self._refuse(line, work, index, ReasonCode.NOT_AUTHORIZED, error)
            return
        if line.decoder is None or line.gateway != gateway:
            line.gateway = gateway
            line.structured = self.structured.line(gateway)
            line.decoder = Decoder(
                gateway, limits=self._limits, dropped=line.structured.reset, zstd=self._zstd
            )
        batch = await self._decode(line, line.decoder, payload)
        generation = line.generation
        source = (gateway, batch.epoch)
        state = await self._held.settled(source, batch.seq_ranges)
        _check_order(line, generation)
        if not self.runs.may_send(state, batch):
            raise BatchError("run", "another run of this gateway has given out these seqs")
        self.stats.batches += 1
        self.stats.batch_bytes += len(payload)
        self.stats.payload_bytes += _payload_bytes(batch.readings)
        held = state.held
        assert held is not None
        new = without(batch.readings, held) if len(batch.readings) else None
        self.stats.duplicates += len(batch.readings) - (0 if new is None else len(new))
        if new is None and not batch.tombstones and batch.assigned <= state.assigned:
            self._finish(work, index, batch)
            return
        ranges = ranges_of(new.seqs) if new is not None else ()
        state.begin(ranges)

        def answered(waiting: Waiting, error: Exception | None) -> None:
            at = line.appending.index(waiting)
            if error is not None:
                for behind in line.appending[at + 1 :]:
                    behind.refused = True
            del line.appending[at]
            state.end(ranges, stored=error is None)
            if error is None:
                state.assigned = max(state.assigned, batch.assigned)
            self._answer(line, work, index, batch, new, error)

        later = batch.lane == LinkLane.BACKLOG and not line.live
        waiting = Waiting(batch, new, answered, later)
        line.appending.append(waiting)
        self._appends.put(waiting)

    async def _decode(self, line: _Line, decoder: Decoder, payload: bytes) -> Batch:
        """Return what a batch says; a structured body is decoded in a process of its own."""
        opened = decoder.open(payload)
        if not opened.count or opened.mode != Mode.STRUCTURED:
            return decoder.finish(opened)
        assert line.structured is not None
        self.stats.structured += 1
        columns = await line.structured.decode(opened.body, opened.count, self._limits)
        return decoder.finish(opened, columns)  # refused if an append failed meanwhile

    # ---- answers ---------------------------------------------------------------------------------

    def _answer(
        self,
        line: _Line,
        work: _Run,
        index: int,
        batch: Batch,
        new: Readings | None,
        error: Exception | None,
    ) -> None:
        """Answer a batch that was appended, or was not."""
        if error is None:
            self.stats.readings += 0 if new is None else len(new)
            self.stats.tombstones += len(batch.tombstones)
            self.stats.entry_bytes = self._appends.entry_bytes
            self._finish(work, index, batch)
        elif isinstance(error, BatchError):
            self._refuse(line, work, index, ReasonCode.PAYLOAD_FORMAT_INVALID, error)
        elif isinstance(error, StreamError):
            self._refuse(line, work, index, _code(error), error)
        else:
            log.error("ingest_error", gateway=batch.gateway, exc_info=error)
            self._refuse(line, work, index, ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR, error)
        self._settle(line)

    def _finish(self, work: _Run, index: int, batch: Batch) -> None:
        work.codes[index] = 0
        self._taken(BatchTaken(work.run.client, batch, self._clock.wall_us()))

    def _refuse(self, line: _Line, work: _Run, index: int, code: int, error: Exception) -> None:
        line.drop_context()
        work.codes[index] = code
        word = error.reason if isinstance(error, BatchError) else type(error).__name__
        self.stats.refused[word] = self.stats.refused.get(word, 0) + 1
        if isinstance(error, BatchError):  # the gateway acts on the word, docs/link-format.md 1.1
            reasons = work.run.reasons = work.run.reasons or {}
            reasons[index] = str(error)[:_REASON_CHARS]
        limited(log, ("refused", line.gateway, word), _LOG_EVERY_S).warning(
            "batch_refused", gateway=line.gateway, code=f"0x{code:02x}", error=str(error)
        )

    def _settle(self, line: _Line) -> None:
        """Answer runs from the oldest on, as far as they are done."""
        while line.unsettled and line.unsettled[0].done():
            work = line.unsettled.popleft()
            codes = [code or 0 for code in work.codes]
            if work.live:
                del self._waiting[work]
                self._waits = self._waits.with_one(self._clock.monotonic_s() - work.since_s)
            work.run.settled(work.run, codes if any(codes) else 0)
            self._released(len(work.run.frames))


def _payload_bytes(readings: Readings) -> int:
    """Return the bytes of topics and payloads as the devices published them."""
    topics = topic_bytes(readings.sources)
    return sum(map(len, readings.payloads)) + sum(map(topics.__getitem__, readings.source_index))


def _check_order(line: _Line, generation: int) -> None:
    """Raise when a batch was refused since this one was decoded."""
    if generation != line.generation:
        raise BatchError("context", "a batch before this one was refused")


def _code(error: StreamError) -> int:
    if isinstance(error, StreamFull):
        return ReasonCode.QUOTA_EXCEEDED
    return ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR
