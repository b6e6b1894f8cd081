"""A commit: seqs for what was captured, rows in the file, and the newest of them in memory.

Seqs are reserved ahead, durably and in two places, so that none is given out twice whatever becomes
of the file (journal_high.py); the faster they go, the more are reserved at once.

Invariants:
- The caller holds the journal's writing lock.
- State and tail change after the transaction that makes it true, and not at all when that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeAlias

from edge.contract import Commit, Lane
from edge.journal_high import write_high
from edge.journal_keeper import Keeper
from edge.journal_schema import JournalError, Row, key_of, row_crc32
from edge.journal_state import Head, us_since_boot
from edge.journal_tail import Tail
from runtime.clock import Clock

__all__ = ["Committer", "OnCommit", "Part", "row_of"]

Part: TypeAlias = tuple[Lane, int, bytes]  # lane, count of readings, body
# told of each commit before it is made: first seq, wall clock, time since boot, in µs
OnCommit: TypeAlias = Callable[[int, int, int], Awaitable[None] | None]

RESERVE_MIN, RESERVE_MAX = 4096, 1 << 20
RESERVE_PACE_S = 1.0  # a reservation that lasted less is followed by one twice as large


class Committer:
    """Makes the commits of one journal.

    Attributes:
        on_commit: Told of each; what it returns is waited for.
        commits: Made since the start of the process.
        readings: In them.
        body_bytes: In them.
        commit_s: How long the last one took, sync included.
    """

    def __init__(self, path: Path, clock: Clock, keeper: Keeper, tail: Tail) -> None:
        self.on_commit: OnCommit = _nothing
        self.commits = 0
        self.readings = 0
        self.body_bytes = 0
        self.commit_s = 0.0
        self._path = path
        self._clock = clock
        self._keeper = keeper
        self._tail = tail
        self._reserve_size = RESERVE_MIN
        self._reserved_at_s = clock.monotonic_s()

    async def commit(self, parts: Sequence[Part]) -> None:
        """Make readings durable; see `Journal.append`."""
        keeper = self._keeper
        await keeper.make_room(parts)
        state = keeper.state
        total = sum(count for _, count, _ in parts)
        if state.next_seq + total - 1 > state.reserved_seq:
            await self._reserve(total)
        now_us = self._clock.wall_us()
        boot_us = us_since_boot(self._clock)
        rows: list[Row] = []
        seq = state.next_seq
        for lane, count, body in parts:
            rows.append(row_of(lane, seq, count, now_us, state.boot, boot_us, body))
            seq += count
        first = self.on_commit(state.next_seq, now_us, boot_us)
        if first is not None:
            await first
        began_s = self._clock.monotonic_s()
        await keeper.file.insert(rows)
        self.commit_s = self._clock.monotonic_s() - began_s
        seq = state.next_seq
        for lane, count, body in parts:
            head = Head(seq, count, now_us, state.boot, boot_us)
            state.appended(lane, count, len(body), head)
            self._tail.push(Commit(lane, seq, count, now_us, body))
            self.body_bytes += len(body)
            seq += count
        state.next_seq = seq
        state.last_seq = seq - 1
        self.commits += 1
        self.readings += total

    async def _reserve(self, total: int) -> None:
        """Reserve seqs ahead, the more the faster they go: a sync a second at most."""
        state = self._keeper.state
        now_s = self._clock.monotonic_s()
        lasted_s = now_s - self._reserved_at_s
        size = self._reserve_size * 2 if lasted_s < RESERVE_PACE_S else self._reserve_size // 2
        self._reserve_size = min(max(size, RESERVE_MIN), RESERVE_MAX)
        self._reserved_at_s = now_s
        seq = state.next_seq + total - 1 + self._reserve_size
        await self._keeper.file.reserve(seq)
        try:
            await asyncio.to_thread(write_high, self._path, state.epoch, seq, state.runs[-1])
        except OSError as error:
            hint = f"journal.high cannot be written: {error.strerror or error}"
            raise JournalError(self._path, seq, hint, "io") from None
        state.reserved_seq = seq


def _nothing(_seq: int, _wall_us: int, _boot_us: int) -> None:
    return None


def row_of(
    lane: Lane, seq: int, count: int, time_us: int, boot: int, boot_us: int, body: bytes
) -> Row:
    """Return a commit of one lane as the file has it."""
    key = key_of(lane, seq)
    crc32 = row_crc32(key, count, time_us, body)
    return (key, count, len(body), time_us, boot, boot_us, crc32, body)
