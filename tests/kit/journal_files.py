"""Real journals on a disk, for tests: open, fill, read, look into, damage."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge.config import JournalConfig, LaneConfig
from edge.contract import Commit, Lane
from edge.journal import Journal
from edge.segments import Segment, pack_segment, unpack_body
from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.frames import parse_publishes
from runtime.clock import Clock, ManualClock
from tests.kit.journals import publish_frame

__all__ = [
    "body_of",
    "drop_oldest",
    "fill",
    "flip",
    "journal_at",
    "journal_config",
    "look",
    "page_of",
    "payloads_in",
    "read_all",
    "run_of",
    "seqs_in",
]

# a machine with little free disk must not decide a test
QUIET = JournalConfig(disk_reserve_bytes=0)


def journal_config(**changes: Any) -> JournalConfig:
    """Return a configuration without disk reserve; `live=...` and `urgent=...` are LaneConfig."""
    return replace(QUIET, **changes)


@contextlib.asynccontextmanager
async def journal_at(
    path: Path,
    config: JournalConfig = QUIET,
    clock: Clock | None = None,
    *,
    gateway: str = "",
) -> AsyncIterator[Journal]:
    """Open a journal in a folder and close it in order at the end."""
    file, clock = path / "journal.db", clock or ManualClock()
    journal = await Journal.open(file, config, clock, gateway=gateway)
    try:
        yield journal
    finally:
        await journal.close()


def body_of(payloads: Sequence[bytes], *, client_id: str = "c1", time_us: int = 1) -> bytes:
    """Return a commit's body with one segment."""
    frames = b"".join(publish_frame("devices/d1/v", payload) for payload in payloads)
    return pack_segment(Segment(4, client_id, time_us, len(payloads), frames))


async def fill(
    journal: Journal,
    commits: int,
    *,
    lane: Lane = Lane.LIVE,
    readings: int = 3,
    size: int = 100,
    first: int = 0,
) -> list[bytes]:
    """Make commits of numbered payloads of `size` bytes; return the payloads."""
    payloads = [b"%d:" % (first + at) for at in range(commits * readings)]
    payloads = [payload.ljust(size, b".") for payload in payloads]
    for at in range(0, len(payloads), readings):
        some = payloads[at : at + readings]
        await journal.append([(lane, len(some), body_of(some))])
    return payloads


def payloads_in(commits: Sequence[Commit]) -> list[bytes]:
    """Return the payloads of commits in order."""
    return [
        parts[4]
        for commit in commits
        for segment in unpack_body(commit.body)
        for parts in parse_publishes(segment.frames, segment.version)
    ]


def seqs_in(commits: Sequence[Commit]) -> list[int]:
    """Return the seqs of commits in order."""
    return [seq for c in commits for seq in range(c.first_seq, c.first_seq + c.count)]


async def read_all(
    journal: Journal, lane: Lane = Lane.LIVE, *, after_seq: int = 0, bytes_max: int = 1 << 16
) -> list[Commit]:
    """Read a lane to its end as an uplink does."""
    commits: list[Commit] = []
    while journal.pending(lane, after_seq):
        got = await journal.read(lane, after_seq, bytes_max=bytes_max)
        if not got:
            break
        commits += got
        after_seq = got[-1].first_seq + got[-1].count - 1
    return commits


def run_of(
    count: int = 1,
    *,
    lane: Lane = Lane.LIVE,
    size: int = 20,
    client_id: str = "c1",
    settled: Callable[[PublishRun, int | Sequence[int]], None] = lambda run, code: None,
) -> PublishRun:
    """Return a run as the broker offers it."""
    frames = b"".join(publish_frame("devices/d1/v", b"p" * size) for _ in range(count))
    return PublishRun(ClientInfo(client_id, 4), int(lane), frames, count, 1_700_000_000, settled)


def look(path: Path, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run SQL on a journal's file that nobody has open; changes are committed."""
    with contextlib.closing(sqlite3.connect(path / "journal.db")) as connection:
        rows = connection.execute(sql, values).fetchall()
        connection.commit()
        return rows


def page_of(path: Path, content: bytes) -> int:
    """Return the offset of the 4096-byte page in a journal's file that holds `content`."""
    data = (path / "journal.db").read_bytes()
    at = data.find(content)
    assert at >= 0, f"{content!r} is not in the file"
    assert data.find(content, at + 1) < 0, f"{content!r} is in the file twice"
    return at // 4096 * 4096


def flip(file: Path, offset: int, length: int = 1) -> None:
    """Turn over every bit of some bytes of a file."""
    data = bytearray(file.read_bytes())
    assert offset + length <= len(data)
    for at in range(offset, offset + length):
        data[at] ^= 0xFF
    file.write_bytes(data)


def drop_oldest(**limits: Any) -> LaneConfig:
    """Return a lane's configuration that drops its oldest readings."""
    return LaneConfig(policy="drop-oldest", **limits)
