"""A process that appends and stores until it is killed at a given statement; for test_crash.py.

Reads lines `DATA STATEMENT SEED` from stdin. For each it forks a child that opens the stream and
storage below DATA, appends batches as a gateway would, repeats some, trims, and prints the last
seq acknowledged after each append. At the STATEMENT-th SQL statement of the two databases the
child sends itself SIGKILL. When the child is gone the parent prints `dead`.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sqlite3
import sys
from pathlib import Path

import cloud.database
from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.sinks.group import Sinks
from cloud.sinks.storage import StorageSink
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import SystemClock
from tests.kit.cloud import EPOCH, parts_of
from tests.kit.readings import one_per_row

__all__: list[str] = []  # a program

BATCH = 20
APPENDS_MAX = 400


def say(text: str) -> None:
    """Print a line that is out before anything else happens."""
    os.write(1, f"{text}\n".encode())


def kill_at(statement: int) -> None:
    """Make every connection count its statements, and die at the given one."""
    real = cloud.database._connect
    left = statement

    def count(_sql: str) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def connect(path: Path, mode: str) -> sqlite3.Connection:
        connection = real(path, mode)
        connection.set_trace_callback(count)
        return connection

    cloud.database._connect = connect


async def write(data: Path, rng: random.Random) -> None:
    """Append, store and trim until killed."""
    clock = SystemClock()
    config = StreamConfig(disk_reserve_bytes=0, replay_s=0, replay_bytes=0)
    stream = await EmbeddedStream.open(data / "cloud" / "stream.db", config, clock)
    storage = StorageSink(data / "cloud" / "storage.db", StorageConfig(linger_ms=0), clock)
    sinks = Sinks(stream, [storage], SinksConfig(), config, clock)
    await sinks.start()
    held = await stream.held("gw", EPOCH)
    seq = held[-1][1] + 1 if held else 1
    for number in range(APPENDS_MAX):
        first = seq
        if seq > BATCH and rng.random() < 0.3:
            first = seq - BATCH  # what was held already comes again
        parts = parts_of(one_per_row(BATCH, first_seq=first, devices=9))
        await stream.append(parts, assigned={("gw", EPOCH): first + BATCH - 1})
        seq = first + BATCH
        say(str(seq - 1))
        if number % 7 == 6:
            await sinks.trim()


def main() -> None:
    """Serve the lines of stdin."""
    for line in sys.stdin:
        data, statement, seed = line.split()
        child = os.fork()
        if child == 0:
            kill_at(int(statement))
            asyncio.run(write(Path(data), random.Random(seed)))
            os._exit(3)
        _, status = os.waitpid(child, 0)
        say("dead" if os.WIFSIGNALED(status) else f"ended {status}")


if __name__ == "__main__":
    main()
