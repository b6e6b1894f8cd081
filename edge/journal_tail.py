"""The newest commits in memory, so that an uplink that keeps up never reads the disk.

Invariant: the tail holds every row of a lane whose readings lie past `after(lane)`; how many those
are is bounded by bytes, over both lanes.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator

from bridge.intervals import IntervalSet
from edge.contract import Commit, Lane

__all__ = ["Tail"]

COMMIT_BYTES = 256  # what a commit takes in memory beside its body
COMPACT_AT = 1024  # dead entries at the front of a list before they are cut off


class Tail:
    """Commits by lane, oldest first."""

    __slots__ = ("_after", "_bytes_max", "_commits", "_lasts", "_starts", "bytes")

    def __init__(self, bytes_max: int, after: dict[Lane, int]) -> None:
        """Begin empty.

        Args:
            bytes_max: Most bytes kept.
            after: The last seq of each lane that is on disk already.
        """
        self.bytes = 0
        self._bytes_max = bytes_max
        self._after = dict(after)
        self._commits: dict[Lane, list[Commit]] = {lane: [] for lane in Lane}
        self._lasts: dict[Lane, list[int]] = {lane: [] for lane in Lane}
        self._starts = dict.fromkeys(Lane, 0)  # entries before it are dead

    def after(self, lane: Lane) -> int:
        """Return the seq past which the tail has everything of a lane."""
        return self._after[lane]

    def seq_before(self, lane: Lane, time_us: int) -> int:
        """Return the last seq of the newest commit older than `time_us`, as far as is here."""
        commits, start = self._commits[lane], self._starts[lane]
        for at in range(len(commits) - 1, start - 1, -1):
            if commits[at].time_us < time_us:
                return self._lasts[lane][at]
        return self._after[lane]

    def push(self, commit: Commit) -> None:
        """Add the newest commit of a lane; the oldest leave when there are too many bytes."""
        self._commits[commit.lane].append(commit)
        self._lasts[commit.lane].append(commit.first_seq + commit.count - 1)
        self.bytes += len(commit.body) + COMMIT_BYTES
        while self.bytes > self._bytes_max:
            self._pop(self._oldest_lane())

    def read(
        self, lane: Lane, after_seq: int, bytes_max: int, through_seq: int
    ) -> list[Commit] | None:
        """Return commits past `after_seq`, or None when they begin before the tail.

        None of them begins after `through_seq`.
        """
        if after_seq < self._after[lane]:
            return None
        commits = self._commits[lane]
        at = bisect_right(self._lasts[lane], after_seq, self._starts[lane])
        found: list[Commit] = []
        size = 0
        while at < len(commits) and size < bytes_max:
            commit = commits[at]
            if commit.first_seq > through_seq:
                break
            size += len(commit.body)
            found.append(commit)
            at += 1
        return found

    def forget(self, lane: Lane, up_to_seq: int, deleted: IntervalSet | None = None) -> int:
        """Drop commits of a lane that are gone up to a seq.

        Returns:
            How many readings they had, without those of rows that are `deleted` already.
        """
        lasts = self._lasts[lane]
        readings = 0
        while self._starts[lane] < len(lasts) and lasts[self._starts[lane]] <= up_to_seq:
            commit = self._commits[lane][self._starts[lane]]
            if not deleted or commit.first_seq not in deleted:
                readings += commit.count
            self._pop(lane)
        return readings

    def restart(self, lane: Lane, after_seq: int) -> None:
        """Begin a lane anew: what is there up to a seq is on the disk only."""
        self.forget(lane, after_seq)
        self._after[lane] = after_seq

    def __iter__(self) -> Iterator[Commit]:
        """Iterate over all commits, lane by lane, oldest first."""
        for lane in Lane:
            yield from self._commits[lane][self._starts[lane] :]

    def _oldest_lane(self) -> Lane:
        heads = [
            (self._commits[lane][self._starts[lane]].first_seq, lane)
            for lane in Lane
            if self._starts[lane] < len(self._commits[lane])
        ]
        return min(heads)[1]

    def _pop(self, lane: Lane) -> None:
        start = self._starts[lane]
        commits, lasts = self._commits[lane], self._lasts[lane]
        self.bytes -= len(commits[start].body) + COMMIT_BYTES
        self._after[lane] = lasts[start]
        start += 1
        if start == len(commits) or start >= COMPACT_AT:
            del commits[:start], lasts[:start]
            start = 0
        else:
            commits[start - 1] = _DEAD  # its body is freed at once
        self._starts[lane] = start


_DEAD = Commit(Lane.LIVE, 0, 0, 0, b"")
