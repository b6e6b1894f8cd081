"""The cloud's parts for tests: streams filled with readings, sinks that record or fail."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

from bridge.batch import Encoder, EntryEncoder
from bridge.intervals import IntervalSet, ranges_of
from bridge.readings import Readings
from bridge.select import rows_of, split_by_partition
from cloud.sinks.contract import DecodedEntry
from cloud.stream.contract import Entry, Part, Stream
from mqtt.broker.seams import Capture, ClientInfo, PublishRun
from mqtt.frames import encode_publish
from tests.kit.readings import START_US

__all__ = [
    "EPOCH",
    "RecordingSink",
    "Uplink",
    "append_readings",
    "decoded",
    "ends",
    "parts_of",
    "query",
]

EPOCH = 0xFEDC_BA98_7654_3210


def parts_of(
    readings: Readings, *, gateway: str = "gw", epoch: int = EPOCH, historical: bool = False
) -> list[Part]:
    """Return readings as the parts ingest would append."""
    encoder = EntryEncoder()
    return [
        Part(
            partition,
            gateway,
            epoch,
            ranges_of(some.seqs),
            len(some),
            encoder.encode(gateway, epoch, some, historical=historical),
        )
        for partition, some in sorted(split_by_partition(readings).items())
    ]


def decoded(
    readings: Readings, *, gateway: str = "gw", appended_us: int = 77, position: int = 1
) -> list[DecodedEntry]:
    """Return readings as the entries a sink is given, one a partition, all at one position."""
    entries = []
    for part in parts_of(readings, gateway=gateway):
        wanted = IntervalSet(part.seq_ranges)
        some = rows_of(readings, [n for n, seq in enumerate(readings.seqs) if seq in wanted])
        entry = Entry(
            part.partition, position, gateway, EPOCH, part.seq_ranges, part.count, appended_us,
            part.body,
        )  # fmt: skip
        entries.append(DecodedEntry(entry, some, historical=False))
    return entries


def ends(entries: Sequence[DecodedEntry]) -> dict[int, int]:
    """Return the position of each partition among `entries`: the cursors that go with them."""
    return {one.entry.partition: one.entry.position for one in entries}


async def append_readings(
    stream: Stream, readings: Readings, *, gateway: str = "gw", epoch: int = EPOCH
) -> None:
    """Append readings and say they were assigned."""
    await stream.append(
        parts_of(readings, gateway=gateway, epoch=epoch),
        assigned={(gateway, epoch): readings.seqs[-1]},
    )


def query(path: Path, sql: str, parameters: Sequence[object] = ()) -> list[tuple[object, ...]]:
    """Return the rows of a query on a database file, opened read-only."""
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        return connection.execute(sql, parameters).fetchall()


class RecordingSink:
    """Remembers what it was given; fails when told to.

    Attributes:
        written: (partition, position) of every entry written, in order.
        fault: Called with the entries of each write before it; may raise.
    """

    linger_s = 0.0

    def __init__(self, name: str = "recording", *, own_cursors: bool = False) -> None:
        self.name = name
        self.written: list[tuple[int, int]] = []
        self.readings: list[tuple[int, bytes]] = []
        self.kept: dict[int, int] | None = {} if own_cursors else None
        self.passed_over: list[dict[int, int]] = []
        self.writes = 0
        self.closed = False
        self.fault: Callable[[Sequence[DecodedEntry]], None] = lambda _entries: None

    async def open(self, stream_epoch: int) -> None:
        self.stream_epoch = stream_epoch

    async def cursors(self) -> Mapping[int, int] | None:
        return self.kept

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        self.writes += 1
        self.fault(entries)
        self.written += [(one.entry.partition, one.entry.position) for one in entries]
        for one in entries:
            self.readings += zip(one.readings.seqs, one.readings.payloads, strict=True)
        if self.kept is not None:
            self.kept.update(cursors)

    async def pass_over(self, entry: Entry) -> None:
        assert self.kept is not None
        self.passed_over.append({entry.partition: entry.position})
        self.kept[entry.partition] = entry.position

    async def close(self) -> None:
        self.closed = True


class Uplink:
    """A gateway's connection without a network: encodes batches and offers them as runs.

    Attributes:
        answers: The code of each publish, in the order they were settled.
        encoder: Its context; `reset` it as a gateway does after a refusal.
    """

    def __init__(
        self, capture: Capture, gateway: str = "gw", *, epoch: int = EPOCH, version: int = 5
    ) -> None:
        self.capture = capture
        self.gateway = gateway
        self.client = ClientInfo(gateway, version)
        self.encoder = Encoder(gateway, epoch)
        self.answers: list[int] = []
        self._sent = 0
        self._answered = asyncio.Event()

    def batch(self, readings: Readings, **options: Any) -> bytes:
        """Return the next batch of the connection."""
        return self.encoder.encode(readings, **options)

    def send(self, *batches: bytes, topic: str | None = None) -> int:
        """Offer batches as one run; return the capture's answer."""
        name = (topic or f"tidegate/v1/up/{self.gateway}").encode()
        frames = b"".join(
            encode_publish(0x32, name, 1, b"", batch, self.client.protocol_version)
            for batch in batches
        )
        return self.offer(frames, len(batches), 0)

    def offer(self, frames: bytes, count: int, lane: int, *, time_us: int = START_US) -> int:
        """Offer PUBLISH packets as one run."""
        refused = self.capture.take(
            PublishRun(self.client, lane, frames, count, time_us, self._settled)
        )
        if not refused:
            self._sent += count
        return refused

    def _settled(self, run: PublishRun, codes: int | Sequence[int]) -> None:
        self.answers += [codes] * run.count if isinstance(codes, int) else codes
        self._answered.set()

    @property
    def unanswered(self) -> int:
        """How many publishes have no answer yet."""
        return self._sent - len(self.answers)

    async def answer(self, *, timeout_s: float = 60) -> None:
        """Return at the next answer."""
        self._answered.clear()
        async with asyncio.timeout(timeout_s):
            await self._answered.wait()

    async def answered(self, *, timeout_s: float = 60) -> list[int]:
        """Return all answers, once everything that was taken has one."""
        async with asyncio.timeout(timeout_s):
            while len(self.answers) < self._sent:
                self._answered.clear()
                await self._answered.wait()
        return self.answers
