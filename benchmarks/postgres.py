"""The PostgreSQL sink against raw COPY of the same rows by the same driver; and Parquet files.

    tidegate bench postgres -- --rounds 5
    tidegate bench postgres -- --url postgresql://me@db/bench      a server of yours, else its own

A round is the same rows once by each, in turn: 20,000 a transaction, into tables of the same
columns, keys, index and partitions. Raw COPY gets its records ready made; the sink has entries as
decoded, makes records of them, and writes cursors, tokens and the ranges of identity as well. Its
share is the median over the rounds of raw time / its time. fsync is on.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import asyncpg

from bridge.intervals import ranges_of
from bridge.readings import Readings
from bridge.select import split_by_partition
from cloud.config import ParquetConfig, StorageConfig
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.parquet import ParquetSink
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace, connect
from cloud.sinks.postgres_rows import rows_of_entry
from cloud.sinks.postgres_schema import COLUMNS, Slices, make_schema
from cloud.stream.contract import Entry
from runtime.clock import SystemClock
from runtime.service import run as run_loop
from tests.kit.postgres import postgres_server

__all__ = ["main"]

WRITE_ROWS = 20_000
WRITES = 5  # a round
DEVICES = 50
BATCH = 500
START_US = 1_790_000_000_000_000
SLICE_US = 604_800_000_000
PAYLOAD = (
    b'{"battery":87,"humidity":41.32,"linkquality":%d,"pressure":1013.2,"temperature":21.57,"v":1}'
)


def entries_of(first_seq: int, position: int) -> tuple[list[DecodedEntry], int]:
    """Return the entries of one write, as batches of 500 readings make them, and the position."""
    sources = [(f"zigbee2mqtt/0x00158d0001a2{n:04x}", f"0x00158d0001a2{n:04x}")
               for n in range(DEVICES)]  # fmt: skip
    entries = []
    for first in range(first_seq, first_seq + WRITE_ROWS, BATCH):
        seqs = range(first, first + BATCH)
        readings = Readings(
            seqs,
            sources,
            [seq % DEVICES for seq in seqs],
            [START_US + seq * 1000 for seq in seqs],
            [1] * BATCH,
            [PAYLOAD % (seq % 256) for seq in seqs],
            [b""] * BATCH,
        )
        position += 1
        for partition, some in split_by_partition(readings).items():
            entry = Entry(
                partition, position, "gateway-1", 1 << 63, ranges_of(some.seqs), len(some),
                START_US + first, b"",
            )  # fmt: skip
            entries.append(DecodedEntry(entry, some, historical=False))
    return entries, position


class Round:
    """The rows of one round."""

    def __init__(self, number: int) -> None:
        self.writes: list[tuple[list[DecodedEntry], dict[int, int]]] = []
        position = number * WRITES * (WRITE_ROWS // BATCH)
        for n in range(WRITES):
            first_seq = (number * WRITES + n) * WRITE_ROWS + 1
            entries, position = entries_of(first_seq, position)
            ends = {one.entry.partition: one.entry.position for one in entries}
            self.writes.append((entries, ends))
        self.records = [
            [row for one in entries for row in rows_of_entry(one, one.readings.times_us, None)]
            for entries, _ in self.writes
        ]


async def raw(connection: asyncpg.Connection, rows: Round) -> float:
    """Copy a round; return the seconds it took."""
    started_s = time.perf_counter()
    for records in rows.records:
        async with connection.transaction():
            await connection.copy_records_to_table("readings", records=records, columns=COLUMNS)
    return time.perf_counter() - started_s


async def by_sink(sink: PostgresSink | ParquetSink, rows: Round) -> float:
    """Write a round; return the seconds it took."""
    started_s = time.perf_counter()
    for entries, ends in rows.writes:
        await sink.write(entries, ends)
    return time.perf_counter() - started_s


async def compare(url: str, rounds: int) -> None:
    """Run the rounds and print their outcome."""
    place = PostgresPlace(url, "tidegate_bench_raw")
    connection = await connect(place, "bench")
    await make_schema(place, connection, SLICE_US)
    await Slices(SLICE_US, hypertable=False).ensure(connection, START_US, START_US + 1)
    sink = PostgresSink(PostgresPlace(url, "tidegate_bench"), StorageConfig(), SystemClock())
    await sink.open(1)
    await sink.claim(dict.fromkeys(range(64), 1))
    with tempfile.TemporaryDirectory() as folder:
        parquet = ParquetSink(Path(folder), ParquetConfig(), "bench")
        await parquet.open(1)
        shares, times = [], []
        for number in range(rounds + 1):
            rows = Round(number)
            # who goes first changes: neither always finds the other's pages in its way
            if number % 2:
                raw_s, sink_s = await raw(connection, rows), await by_sink(sink, rows)
            else:
                sink_s, raw_s = await by_sink(sink, rows), await raw(connection, rows)
            parquet_s = await by_sink(parquet, rows)
            if number:  # the first warms up
                shares.append(raw_s / sink_s)
                times.append((raw_s, sink_s, parquet_s))
        count = WRITES * WRITE_ROWS
        for name, column in zip(("raw COPY", "sink", "Parquet"), zip(*times, strict=True),
                                strict=True):  # fmt: skip
            print(f"{name:9} {count / statistics.median(column):>9,.0f} rows/s")
        size = parquet.stats.file_bytes / parquet.stats.rows
        print(f"Parquet: {parquet.stats.files} files, {size:.1f} bytes a row")
        print(f"sink: {statistics.median(shares):.0%} of raw COPY (target 70%)")
    await connection.close()
    await sink.close()


async def _main(options: argparse.Namespace) -> int:
    with contextlib.ExitStack() as stack:
        url = options.url
        if not url:
            server = stack.enter_context(postgres_server(shared_buffers="256MB"))
            url = await server.new_database()
        await compare(url, options.rounds)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run it."""
    parser = argparse.ArgumentParser(
        prog="tidegate bench postgres",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--url", default="", help="an empty database [a server of its own]")
    parser.add_argument("--rounds", type=int, default=5, help="rounds that count [5]")
    parser.add_argument("--quick", action="store_true", help="one round: does it run at all")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 1
    return run_loop(_main(options))


if __name__ == "__main__":
    sys.exit(main())
