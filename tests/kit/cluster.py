"""A cluster of real processes for tests, and a witness that reads its stream on its own.

The witness follows the cluster's stream from outside the nodes and writes what it reads into a
storage of its own, so that what is judged does not hang on which node holds which partition. It
notes when appends came, which tells how long writes stood still.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, closing
from itertools import pairwise
from pathlib import Path

from bridge.intervals import ranges_of
from bridge.shared_entry import EntryReader
from cloud.cluster.applying import stream_epoch
from cloud.cluster.connection import Connection
from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.sinks.group import Sinks
from cloud.sinks.storage import StorageSink
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import SystemClock
from tests.kit.postgres import PostgresServer
from tidegate.cluster_demo import ClusterProcesses

__all__ = ["Witness", "check_stored", "note_order", "witness_of"]

StoredRow = tuple[str, int, int, str]  # gateway, epoch, seq, device


class Witness:
    """A reader of the cluster's stream.

    Attributes:
        stream: Opened by the witness itself.
        path: Its storage: the table `readings` of DESIGN section 7.
    """

    def __init__(self, stream: JetStreamStream, path: Path) -> None:
        self.stream = stream
        self.path = path
        self.appended_s: list[float] = []  # monotonic, one for each look that found new appends
        self._appends = 0
        self._task = asyncio.create_task(self._look(), name="witness")

    async def _look(self) -> None:
        while True:
            count = int(self.stream.figures()["appends"])
            if count != self._appends:
                self._appends = count
                self.appended_s.append(time.monotonic())
            await asyncio.sleep(0.02)

    async def appends_after(self, since_s: float, *, timeout_s: float = 180.0) -> float:
        """Return how long after a moment the next append came."""
        async with asyncio.timeout(timeout_s):
            while not self.appended_s or self.appended_s[-1] <= since_s:
                await asyncio.sleep(0.02)
        return next(at for at in self.appended_s if at > since_s) - since_s

    async def appends_more(self, count: int, *, timeout_s: float = 180.0) -> None:
        """Return once appends have been seen so many times more."""
        wanted = len(self.appended_s) + count
        async with asyncio.timeout(timeout_s):
            while len(self.appended_s) < wanted:
                await asyncio.sleep(0.02)

    def longest_gap_s(self, since_s: float, until_s: float = float("inf")) -> float:
        """Return the longest time without an append that began between two moments."""
        times = [since_s, *(at for at in self.appended_s if at > since_s)]
        return max((b - a for a, b in pairwise(times) if a < until_s), default=0.0)

    def close(self) -> None:
        """Look no more."""
        self._task.cancel()

    def rows(self) -> list[StoredRow]:
        """Return what it has read, each device's in the order of the stream."""
        with closing(sqlite3.connect(f"file:{self.path}?mode=ro", uri=True)) as database:
            return database.execute(
                "SELECT gateway, epoch, seq, device FROM readings ORDER BY rowid"
            ).fetchall()

    def check_rows(self) -> int:
        """Assert one row a reading; return the rows."""
        rows = self.rows()
        assert len({row[:3] for row in rows}) == len(rows)
        return len(rows)

    async def check_stream(self) -> None:
        """Assert that each seq is in one entry, and that a lane rises in each partition."""
        doubled = {
            source: ranges
            for source, ranges in (await self.stream.ranges_after({})).items()
            if any(first <= last for (_, last), (first, _) in pairwise(ranges))
        }
        assert doubled == {}
        reader = EntryReader()
        for partition in range(64):
            last: dict[tuple[str, int, int], int] = defaultdict(int)
            position = 0
            while found := await self.stream.read(
                partition, position, entries_max=500, bytes_max=4 << 20
            ):
                position = found[-1].position
                for entry in found:
                    batch = reader.read(entry.body, entry.gateway, entry.epoch)
                    assert ranges_of(batch.readings.seqs) == entry.seq_ranges
                    line = (entry.gateway, entry.epoch, batch.lane)
                    assert entry.seq_ranges[0][0] > last[line]
                    last[line] = entry.seq_ranges[-1][1]


async def note_order(server: PostgresServer, url: str) -> None:
    """Have the nodes' PostgreSQL note in which order rows are written, for `check_stored`."""
    await server.rows(url, "ALTER TABLE tidegate.readings ADD COLUMN written bigserial")


async def check_stored(server: PostgresServer, url: str, witness: Witness) -> None:
    """Assert that PostgreSQL has what the witness has read: a row a reading, devices in order."""
    rows: list[StoredRow] = await server.rows(
        url, "SELECT gateway, epoch, seq, device FROM tidegate.readings ORDER BY written"
    )
    read = witness.rows()
    known = {row[:3] for row in read}
    assert len({row[:3] for row in rows}) == len(rows)
    assert _by_device(row for row in rows if row[:3] in known) == _by_device(read)


def _by_device(rows: Iterable[StoredRow]) -> dict[str, list[StoredRow]]:
    found: dict[str, list[StoredRow]] = defaultdict(list)
    for row in rows:
        found[row[3]].append(row)
    return found


@asynccontextmanager
async def witness_of(cluster: ClusterProcesses, folder: Path) -> AsyncIterator[Witness]:
    """Give a witness that has read everything there is, for as long as the block lasts."""
    folder.mkdir(parents=True, exist_ok=True)
    connection = await Connection.open(cluster.servers.url, name="witness")
    clock = SystemClock()
    stream = await JetStreamStream.open(
        connection,
        cluster.layout,
        await stream_epoch(connection, cluster.layout),
        clock,
        durability="r3-fsync",
        tail_bytes_max=0,
        arrivals_max=0,
    )
    config = StreamConfig(replay_s=1e9, replay_bytes=1 << 40)  # it never trims
    storage = StorageSink(folder / "storage.db", StorageConfig(), clock)
    sinks = Sinks(stream, [storage], SinksConfig(retry_max_s=0.5), config, clock)
    await sinks.start()
    await sinks.drained()
    witness = Witness(stream, folder / "storage.db")
    try:
        yield witness
    finally:
        witness.close()
        await sinks.stop()
        await stream.close()
