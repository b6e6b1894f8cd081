"""What the uplink reads for one lane of the link: commits of the journal, cut into batches.

Memory stays flat whatever the backlog: at most one read of the journal (`READ_BYTES`, or a single
larger commit) and what is left of its readings.
"""

from __future__ import annotations

import asyncio
from collections import deque

from bridge.devices import DeviceIds
from bridge.intervals import IntervalSet
from bridge.readings import Readings
from edge.contract import Commit, JournalReader, Lane
from edge.readings import CommitError, ReadingsBuffer

__all__ = ["READ_BYTES", "LaneReader"]

READ_BYTES = 256 * 1024
_SLICE_READINGS = 250  # taken apart between two turns of the loop


class LaneReader:
    """Reads one lane of the journal in order; a rewind begins anew from the journal.

    Args:
        journal: Where from.
        lane: Which of its lanes.
        device_ids: Finds the device of a topic.
        settled: Seqs to leave out: the cloud has them.
    """

    __slots__ = (
        "_buffer",
        "_commits",
        "_journal",
        "_lane",
        "_read_to",
        "_settled",
        "_taken_to",
        "cut",
        "through_seq",
    )

    def __init__(
        self,
        journal: JournalReader,
        lane: Lane,
        device_ids: DeviceIds,
        settled: IntervalSet | None = None,
    ) -> None:
        self._journal = journal
        self._lane = lane
        self._settled = settled
        self.through_seq: int | None = None  # nothing past it is read; None: everything
        self._buffer = ReadingsBuffer(device_ids)
        self._commits: deque[Commit] = deque()
        self._taken_to = 0  # last seq given out
        self._read_to = 0  # last seq read from the journal
        self.cut = False  # bytes or lateness cut the last batch short: more is at hand

    def forget(self) -> None:
        """Read anew what was read ahead: what may be sent has changed."""
        self._rewind(-1)

    def has_more(self, after_seq: int) -> bool:
        """Return True when readings past `after_seq` wait, here or in the journal."""
        if after_seq == self._taken_to and (len(self._buffer) or self._commits):
            return True
        return self._pending(after_seq)

    def _pending(self, after_seq: int) -> bool:
        if self.through_seq is not None and after_seq >= self.through_seq:
            return False
        return self._journal.pending(self._lane, after_seq)

    async def take(
        self, after_seq: int, readings_max: int, bytes_max: int, late_us: int
    ) -> Readings | None:
        """Return the next readings past `after_seq`; None when there are none.

        Limits as for `ReadingsBuffer.take`.

        Raises:
            CommitError: the next commit cannot be read.
        """
        if after_seq != self._taken_to:
            self._rewind(after_seq)
        while len(self._buffer) < readings_max:
            if not self._commits and not await self._read():
                break
            # a commit may add nothing: all of it is settled
            moved = self._fill(readings_max, bytes_max)
            await asyncio.sleep(0)  # the broker's turn
            if not moved or self._buffer.body_bytes >= bytes_max:
                break
        readings = self._buffer.take(readings_max, bytes_max, late_us)
        if readings is not None:
            self._taken_to = readings.seqs[-1]
        self.cut = bool(len(self._buffer) and readings and len(readings) < readings_max)
        return readings

    def _rewind(self, after_seq: int) -> None:
        self._buffer.clear()
        self._commits.clear()
        self._taken_to = self._read_to = after_seq
        self.cut = False

    async def _read(self) -> bool:
        if not self._pending(self._read_to):
            return False
        commits = await self._journal.read(
            self._lane, self._read_to, bytes_max=READ_BYTES, through_seq=self.through_seq
        )
        if not commits:
            return False
        self._commits.extend(commits)
        last = commits[-1]
        self._read_to = last.first_seq + last.count - 1
        return True

    def _fill(self, readings_max: int, bytes_max: int) -> bool:
        """Take commits apart: at most a slice of work, or until a batch is full.

        Returns:
            Whether any was.

        Raises:
            CommitError: the next commit cannot be read, and nothing lies before it.
        """
        buffer = self._buffer
        enough = min(readings_max, len(buffer) + _SLICE_READINGS)
        left = len(self._commits)
        while self._commits and len(buffer) < enough and buffer.body_bytes < bytes_max:
            try:
                buffer.fill(self._commits[0], self._taken_to, self._settled)
            except CommitError:
                if not len(buffer):
                    raise
                break  # what lies before it goes first
            self._commits.popleft()
        return len(self._commits) < left
