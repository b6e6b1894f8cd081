"""Killed with SIGKILL at seeded statements of stream and storage: every reading is stored once.

What was acknowledged is in storage exactly once after the next start, in its device's order, and
the ledger balances at every point in between. A SIGKILL keeps what was written but not synced: a
power cut is what `synchronous = FULL` and the fsync of SQLite are for; this does not show it.
"""

from __future__ import annotations

import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.ledger_files import balance_files
from cloud.sinks.group import Sinks
from cloud.sinks.storage import StorageSink
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import SystemClock
from tests.kit.cloud import EPOCH, query

ROUNDS = 12


@contextmanager
def writer() -> Iterator[subprocess.Popen[str]]:
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.cloud.crash_writer"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        yield child
    finally:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.close()
        child.wait(120)
        child.stdout.close()


def run_until_killed(child: subprocess.Popen[str], data: Path, statement: int, seed: int) -> int:
    """Let it write until the statement; return the last seq it acknowledged, 0 for none."""
    assert child.stdin is not None
    assert child.stdout is not None
    child.stdin.write(f"{data} {statement} {seed}\n")
    child.stdin.flush()
    acked = 0
    for line in child.stdout:
        if not line.strip().isdigit():
            assert line == "dead\n"
            return acked
        acked = int(line)
    raise AssertionError("the writer ended")


async def finish(data: Path) -> None:
    """Start once more, let storage catch up, and stop in order."""
    clock = SystemClock()
    config = StreamConfig(disk_reserve_bytes=0)
    stream = await EmbeddedStream.open(data / "cloud" / "stream.db", config, clock)
    storage = StorageSink(data / "cloud" / "storage.db", StorageConfig(linger_ms=0), clock)
    sinks = Sinks(stream, [storage], SinksConfig(), config, clock)
    await sinks.start()
    await sinks.drained()
    await sinks.stop()
    await stream.close()


@pytest.mark.parametrize("seed", [1, 2])
async def test_killed_anywhere_every_reading_is_stored_once(tmp_path: Path, seed: int) -> None:
    print(f"seed {seed}")
    rng = random.Random(seed)
    acked = 0
    with writer() as child:
        for number in range(ROUNDS):
            statement = rng.randrange(1, 900)
            acked = max(acked, run_until_killed(child, tmp_path, statement, 1000 * seed + number))
            if acked:
                report = await balance_files(tmp_path)
                assert report.balanced, (number, report.lines())
    await finish(tmp_path)
    assert acked > 500  # the rounds got somewhere
    report = await balance_files(tmp_path)
    (source,) = report.sources
    assert source.balanced
    assert source.epoch == EPOCH
    assert source.stored == source.assigned >= acked
    storage = tmp_path / "cloud" / "storage.db"
    sql = "SELECT count(*), count(DISTINCT seq), min(seq), max(seq) FROM readings"
    assert query(storage, sql) == [(source.stored, source.stored, 1, source.stored)]
    wrong = "SELECT count(*) FROM readings WHERE json_extract(payload, '$.n') <> seq"
    assert query(storage, wrong) == [(0,)]
    # received_us is the order of the stream: within a device it never runs against seq
    order = (
        "SELECT count(*) FROM (SELECT received_us, lag(received_us) OVER"
        " (PARTITION BY device ORDER BY seq) AS before FROM readings) WHERE received_us < before"
    )
    assert query(storage, order) == [(0,)]


async def test_killed_while_the_files_are_made(tmp_path: Path) -> None:
    with writer() as child:
        for statement in range(1, 60, 3):
            data = tmp_path / str(statement)
            acked = run_until_killed(child, data, statement, statement)
            await finish(data)
            ((stored,),) = query(data / "cloud" / "storage.db", "SELECT count(*) FROM readings")
            assert int(str(stored)) >= acked, statement
