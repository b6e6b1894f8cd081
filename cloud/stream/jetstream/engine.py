"""The JetStream engine: bodies in RAW, one ledger that says what counts, the same at every node.

    append ──▶ bodies to RAW (R3, fsync) ──▶ record to LEDGER (R3, fsync) ──▶ read back ──▶ answered

A body is nothing until a record of the ledger names it, and a record counts only if its sources
are as its writer believed (cloud/stream/jetstream/state.py). So an append is there as a whole or
not at all, whoever dies when; it is there once, whoever repeats it where; and no dedup window,
lease or clock has a part in that. docs/adr/0008-jetstream-engine.md has the crash analysis.

Invariants:
- An append returns only after its record was read back from the ledger, where a quorum has it.
- What is read is what the ledger says up to the record this node has reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import structlog

from bridge.intervals import Range
from bridge.partition import PARTITIONS
from bridge.runs import Run
from cloud.cluster.checks import RELAXED
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.durability import DurabilityWatch
from cloud.cluster.follower import Follower, Message
from cloud.cluster.layout import EPOCH_KEY, RAW_STREAMS, Layout, goes_on
from cloud.cluster.reading import insist
from cloud.cluster.versions import RUNS, SHARED_BODIES, check_version
from cloud.ranges import apart
from cloud.sinks.schema import epoch_text
from cloud.stream.checked import checked_bytes
from cloud.stream.contract import (
    Arrival,
    Backlog,
    DeadLetter,
    Entry,
    GivenUp,
    Part,
    Source,
    SourceLedger,
    StreamError,
    StreamStats,
)
from cloud.stream.jetstream.bodies import BodyReader, BodyWriter, Messages
from cloud.stream.jetstream.checkpoint import Checkpoints
from cloud.stream.jetstream.commits import Commits
from cloud.stream.jetstream.dead import DeadLetterBox
from cloud.stream.jetstream.entries import Indexed
from cloud.stream.jetstream.lines import Lines
from cloud.stream.jetstream.records import RecordError
from cloud.stream.jetstream.state import LedgerState
from cloud.stream.jetstream.upkeep import KEEP_RECORDS, Upkeep
from runtime.bell import Bell
from runtime.clock import Clock
from runtime.logs import limited
from runtime.slices import in_slices

__all__ = ["JetStreamStream"]

log = structlog.get_logger(component="stream")

GIVE_UP_S = 15.0  # past a leader's election, 4 to 9 s
_LOG_EVERY_S = 60.0
_SLICE_SOURCES = 64  # looked at in one turn of the loop, about 1 ms
_SLICE_ENTRIES = 256
_RAW_PROVED_S = 30.0  # a probe writes to a RAW stream that took nothing for so long


class JetStreamStream:
    """A stream on a NATS cluster; made by `open`.

    Args:
        connection: Ours: closed with the stream.
        layout: Names.
        epoch: Of the cluster.
        durability: What an acknowledgement stands for, "r3-fsync" or "relaxed".
        clock: Wall clock.
        tail_bytes_max: Of the newest bodies in memory.
        state: From the newest checkpoint.
        checkpoints: Where it came from.
        give_up_s: How long what must be answered is waited for: past a leader's election.

    Attributes:
        connection: To the cluster, for what else a node keeps there.
        layout: Names.
        state: Of the ledger, up to where it was read; nobody else changes it while this is open.
        watch: Of its durability; ended with it. None: nobody looks.
    """

    def __init__(
        self,
        connection: Connection,
        layout: Layout,
        epoch: int,
        durability: str,
        clock: Clock,
        tail_bytes_max: int,
        state: LedgerState,
        checkpoints: Checkpoints,
        *,
        give_up_s: float = GIVE_UP_S,
    ) -> None:
        self.connection = connection
        self.layout = layout
        self._epoch = epoch
        self._own_epoch = secrets.randbits(64)  # two nodes of one name must not share seqs
        self._durability = durability
        self._clock = clock
        self.state = state
        self._checkpoints = checkpoints
        self._give_up_s = give_up_s
        self._closing = False
        self._broken = ""
        self._weak = ""  # why an acknowledgement would not be worth what it says
        self._weak_accepted = False
        self.watch: DurabilityWatch | None = None
        self._version = 1  # of the layout, as the ledger said last
        # the record that the ledger goes on behind, and its first, if it was made again
        self._goes_on: tuple[int, int] | None = None
        self._purged: dict[int, int] = {}
        self._appended = Bell()
        self._proved_s: dict[int, float] = {}  # when a RAW stream last took a message
        self._barrier: asyncio.Task[None] | None = None
        self._barrier_turn = asyncio.Lock()
        self._upkeep = Upkeep(checkpoints, state, lambda: not self._broken)
        self._follower = Follower(
            connection,
            layout.ledger_stream,
            layout.live(layout.ledger_stream),
            self._deliver,
            altered=self._break,
            described=self._described,
            begins=self._upkeep.begins,
            gone=self._upkeep.gone,
        )
        messages = Messages(tail_bytes_max)
        self._reader = BodyReader(connection, layout, messages)
        self._writer = BodyWriter(connection, layout, messages, give_up_s=give_up_s)
        self._commits = Commits(
            connection, layout, self._follower, clock, secrets.token_hex(8), give_up_s=give_up_s
        )
        self._lines = Lines(lambda: self.state, self._writer, self._commits)
        self._dead = DeadLetterBox(connection, layout, clock)

    @classmethod
    async def open(
        cls,
        connection: Connection,
        layout: Layout,
        epoch: int,
        clock: Clock,
        *,
        durability: str,
        tail_bytes_max: int,
        arrivals_max: int,
        give_up_s: float = GIVE_UP_S,
    ) -> JetStreamStream:
        """Open a stream whose layout exists.

        Raises:
            ClusterError: the servers do not answer.
            StreamError: the ledger cannot be read from the newest checkpoint on.
        """
        checkpoints = Checkpoints(connection, layout)
        state = await checkpoints.load(arrivals_max)
        stream = cls(connection, layout, epoch, durability, clock, tail_bytes_max, state,
                     checkpoints, give_up_s=give_up_s)  # fmt: skip
        try:
            await stream._start()
        except BaseException:
            stream._broken = "not opened"
            await stream.close(keep_connection=True)
            raise
        return stream

    async def _start(self) -> None:
        await self._follower.start(self.state.seq + 1)
        if self._broken:
            raise StreamError(self._broken)
        self._upkeep.start()

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def own_epoch(self) -> int:
        return self._own_epoch

    @property
    def durability(self) -> str:
        return RELAXED if self._weak else self._durability

    @property
    def shares_bodies(self) -> bool:
        return self._version >= SHARED_BODIES

    @property
    def keeps_runs(self) -> bool:
        return self._version >= RUNS

    @property
    def file_bytes(self) -> int:
        return self.state.stats().bytes

    @property
    def hindered(self) -> str:
        """Why nothing is committed now, as far as it is known; empty while records are."""
        return self._commits.cause

    @property
    def broken(self) -> str:
        """Why this node has to be started anew; empty while it is well."""
        return self._broken

    def figures(self) -> dict[str, float]:
        """Return counters since the start, for metrics."""
        return {
            "published": self._writer.published,
            "repeated": self._writer.repeated,
            "records": self._commits.records,
            "appends": self.state.appends,
            "void": self.state.void,
            "conflicts": self._lines.conflicts,
            "reconnects": self.connection.reconnects,
            "connected": float(self.connection.connected),
            "ledger_seq": self.state.seq,
            "checkpoint_seq": self._checkpoints.seq,
        }

    # ---- appending -------------------------------------------------------------------------------

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[Source, int] | None = None,
    ) -> None:
        checked_bytes(parts)
        self._check_open()
        if self._weak and not self._weak_accepted:
            raise StreamError(self._weak)
        if parts or given_up or assigned:
            # who is cancelled no longer waits, but what it began goes on
            await asyncio.shield(self._lines.begin(parts, given_up, assigned or {}))
        else:
            await self._probe()

    async def _probe(self) -> None:
        """Prove that bodies and records are taken, behind all that is under way."""
        await self._lines.settled()
        self._check_open()
        now_s = asyncio.get_running_loop().time()
        for number in range(RAW_STREAMS):
            if now_s - self._proved_s.get(number, -_RAW_PROVED_S) >= _RAW_PROVED_S:
                floor = max(map(self.state.floor, range(number, PARTITIONS, RAW_STREAMS)))
                seq = await self._writer.stored(number, b"")
                if seq <= floor:
                    raise self._writer.went_back(number, seq, floor)
                self._proved_s[number] = now_s
        await self._commits.probe()

    async def commit_cursors(self, sink: str, positions: Mapping[int, int]) -> None:
        self._check_open()
        await self._commits.cursors(sink, positions)

    def _deliver(self, message: Message) -> None:
        """Take a record of the ledger."""
        if self._broken:
            return
        if (self.state.seq, message.seq) == self._goes_on:
            self.state.seq = message.seq - 1  # the ledger was made again, and goes on here
        if message.seq != self.state.seq + 1:
            self._break(
                f"{self.layout.ledger_stream}: records {self.state.seq + 1} to {message.seq - 1}"
                " are gone, though no checkpoint has them: restore the stream"
            )
            return
        try:
            record = self._commits.decoded(message.data)
        except RecordError as error:
            self._break(f"{self.layout.ledger_stream}: record {message.seq}: {error}")
            return
        self._upkeep.took(len(message.data))
        try:
            taken = self.state.take(message.seq, record)
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            self._break(
                f"{self.layout.ledger_stream}: record {message.seq}: no node wrote it: {error}"
            )
            return
        if record.writer == self._commits.writer:
            self._commits.read_back(record, taken.counted)
        if taken.added:
            self._appended.ring()

    def _described(self, metadata: Mapping[str, str]) -> None:
        """Take what the ledger says of the version that the cluster is at."""
        try:
            version = check_version(self.layout.cluster, metadata, self.layout.version)
        except ClusterError as error:
            self._break(str(error))
        else:
            self._version = self._version if version is None else version
        self._goes_on = goes_on(metadata)
        self._upkeep.goes_on = self._goes_on
        epoch = epoch_text(self._epoch)
        if metadata.get(EPOCH_KEY) != epoch:
            limited(log, "epoch", _LOG_EVERY_S).error(
                "ledger_altered", stream=self.layout.ledger_stream,
                hint=f"its metadata has no {EPOCH_KEY} '{epoch}' any more: put it back"
            )  # fmt: skip

    def found_weak(self, weak: Sequence[str], *, accepted: bool) -> None:
        """Take what makes the cluster less durable than it has to be, one line each.

        Unless that was accepted nothing is appended until there is none.
        """
        line = weak[0] if weak else ""
        if line and line != self._weak and not (accepted and self._durability == RELAXED):
            log.error("not_durable", cause=line)
        elif self._weak and not line:
            log.info("durable_again")
        self._weak, self._weak_accepted = line, accepted

    def _break(self, line: str) -> None:
        """Take nothing any more: what this node believes is not what the cluster holds."""
        if not self._broken:
            self._broken = f"{line}; then start this node again"
            log.error("stream_broken", error=self._broken)
            self._appended.ring()

    # ---- reading ---------------------------------------------------------------------------------

    async def read(
        self, partition: int, after: int, *, entries_max: int, bytes_max: int
    ) -> list[Entry]:
        self._check_open()
        chosen: list[Indexed] = []
        size = 0
        for entry in self.state.entries(partition, after):
            if not chosen or chosen[-1].extents != entry.extents:  # else they share it
                size += entry.bytes
            if chosen and (len(chosen) >= entries_max or size > bytes_max):
                break
            chosen.append(entry)
        bodies = await self._reader.read(partition, chosen) if chosen else []
        found = []
        for entry, body in zip(chosen, bodies, strict=True):
            if body is None:
                if self.state.floor(partition) >= entry.extents[0][0]:
                    continue  # trimmed meanwhile
                log.error("body_gone", partition=partition, position=entry.position,
                          stream=self.layout.raw_stream(partition))  # fmt: skip
            found.append(
                Entry(partition, entry.position, *entry.source, entry.seq_ranges, entry.count,
                      entry.appended_us, body or b"")  # a sink sets aside what it cannot read
            )  # fmt: skip
        return found

    async def wait(self, positions: Mapping[int, int]) -> None:
        while True:
            self._check_open()
            state = self.state
            if any(state.has_after(p, at) for p, at in positions.items()):
                return
            await self._appended.wait()

    async def cursors(self, sink: str) -> dict[int, int]:
        self._check_open()
        return self.state.cursors(sink)

    async def stats(self) -> StreamStats:
        self._check_open()
        return self.state.stats()

    # ---- ledger ----------------------------------------------------------------------------------

    async def held(self, gateway: str, epoch: int) -> Sequence[Range]:
        self._check_open()
        await self._reach_the_end()
        self._check_open()
        self._lines.looked((gateway, epoch))
        return self.state.held((gateway, epoch)).ranges()

    async def runs(self, gateway: str, epoch: int) -> tuple[int, tuple[Run, ...]]:
        self._check_open()
        return self.state.runs((gateway, epoch))

    async def highest_seq(self, gateway: str, epoch: int) -> int:
        self._check_open()
        await self._reach_the_end()
        self._check_open()
        ranges = self.state.held((gateway, epoch)).ranges()
        return ranges[-1][1] if ranges else 0

    async def _reach_the_end(self) -> None:
        """Return when all that was in the ledger at the call was read; callers share the asking."""
        if self._barrier is None:
            self._barrier = asyncio.create_task(self._ask_the_end(), name="ledger-end")
        await asyncio.shield(self._barrier)

    async def _ask_the_end(self) -> None:
        async with self._barrier_turn:
            self._barrier = None  # who comes from now on needs a newer answer
            try:
                async with asyncio.timeout(self._give_up_s):
                    path = f"STREAM.INFO.{self.layout.ledger_stream}"
                    info = await insist(lambda: self.connection.api(path))
                    await self._follower.reach(int(info["state"]["last_seq"]))
            except (ClusterError, TimeoutError) as error:
                raise StreamError(f"{self.layout.ledger_stream}: cannot be read: {error}") from None

    async def catch_up(self) -> None:
        self._check_open()
        await self._reach_the_end()
        self._check_open()

    async def ledger(self) -> list[SourceLedger]:
        self._check_open()
        return [line async for line in in_slices(self.state.ledger(), _SLICE_SOURCES)]

    async def arrival(self, gateway: str, epoch: int, seq: int) -> Arrival | None:
        self._check_open()
        return self.state.arrival((gateway, epoch), seq)

    async def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        self._check_open()
        found: dict[Source, list[Range]] = {}
        async for entry in in_slices(self.state.entries_after(positions), _SLICE_ENTRIES):
            found.setdefault(entry.source, []).extend(entry.seq_ranges)
        return {
            source: apart(ranges)
            async for source, ranges in in_slices(found.items(), _SLICE_SOURCES)
        }

    async def backlog(self, positions: Mapping[int, int]) -> dict[int, Backlog]:
        self._check_open()
        return self.state.backlog(positions)

    # ---- dead letters ----------------------------------------------------------------------------

    async def set_aside(self, sink: str, entry: Entry, cause: str, tries: int) -> None:
        self._check_open()
        await self._dead.set_aside(sink, entry, cause, tries)

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        self._check_open()
        return await self._dead.all(sink)

    async def forget_dead_letter(self, sink: str, partition: int, position: int) -> None:
        self._check_open()
        await self._dead.forget(sink, partition, position)

    # ---- upkeep ----------------------------------------------------------------------------------

    async def trim(self, up_to: Mapping[int, int], before_us: int | None = None) -> None:
        self._check_open()
        trims = {
            partition: reached
            for partition, position in up_to.items()
            if (reached := self.state.trimmable(partition, position, before_us))
        }
        if trims:
            await self._commits.trim(trims)
        for partition in up_to:
            await self._purge(partition)

    async def _purge(self, partition: int) -> None:
        """Give the room of what was trimmed back to the servers, by whomever it was trimmed."""
        floor = self.state.floor(partition)
        if floor <= self._purged.get(partition, 0):
            return
        body = {"filter": self.layout.raw_subject(partition), "seq": floor + 1}
        path = f"STREAM.PURGE.{self.layout.raw_stream(partition)}"
        try:
            await insist(lambda: self.connection.api(path, body, timeout_s=5))
        except ClusterError as error:
            raise StreamError(f"partition {partition}: not purged: {error}") from None
        self._purged[partition] = floor

    async def snapshot(self, path: Path) -> None:
        raise StreamError(
            f"{path}: a cluster's streams are not copied to a file: its three replicas and NATS'"
            " own 'nats account backup' are for that"
        )

    async def checkpoint(self, *, keep_records: int = KEEP_RECORDS) -> bool:
        """Write a checkpoint now; return False when there is one as new.

        Raises:
            StreamError: the one before stands.
        """
        self._check_open()
        return await self._upkeep.write(keep_records=keep_records)

    async def close(self, *, keep_connection: bool = False) -> None:
        if self._closing:
            return
        self._closing = True
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._give_up_s + 5):
                await self._lines.settled()
        await self._upkeep.stop()
        if self.watch is not None:
            await self.watch.stop()
        if self._barrier is not None:
            self._barrier.cancel()
            await asyncio.gather(self._barrier, return_exceptions=True)
        await self._commits.close()
        await self._writer.close()
        await self._follower.stop()
        self._appended.fail(StreamError(f"{self.layout.cluster}: closed"))
        if not keep_connection:
            await self.connection.close()

    # ---- helpers ---------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._broken:
            raise StreamError(self._broken)
        if self._closing:
            raise StreamError(f"{self.layout.cluster}: closed")
