"""What the journal offers the uplink: commits by lane, read from memory or disk, trimmed when safe.

The journal's file, its tables and the bytes of a commit's body are in docs/journal-format.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

__all__ = ["Commit", "JournalReader", "Lane", "Tombstone"]


class Lane(IntEnum):
    """Lanes a reading is captured into; `backlog` is a way of draining, not of capturing."""

    URGENT = 0
    LIVE = 1


@dataclass(slots=True, frozen=True)
class Commit:
    """One row of the journal: the readings of one lane in one group commit."""

    lane: Lane
    first_seq: int
    count: int
    time_us: int  # wall clock at the commit
    body: bytes  # segments: see edge/segments.py


@dataclass(slots=True, frozen=True)
class Tombstone:
    """A recorded loss: a seq range that was given up, and why."""

    lane: Lane
    first_seq: int
    last_seq: int
    count: int
    reason: str  # docs/journal-format.md section 2 has them all
    time_us: int


class JournalReader(Protocol):
    """The journal as the uplink sees it."""

    @property
    def epoch(self) -> int:
        """The random 64-bit id made with this journal file."""
        ...

    @property
    def run(self) -> int:
        """The random 63-bit id of this opening of the journal."""
        ...

    @property
    def last_seq(self) -> int:
        """The highest seq made durable; 0 when nothing was ever captured."""
        ...

    @property
    def settled_seq(self) -> int | None:
        """The seq up to which no reading waits any more; at most `last_seq`.

        All up to it was trimmed, or given up with tombstones that are acknowledged; None while
        some are not.
        """
        ...

    def pending(self, lane: Lane, after_seq: int) -> bool:
        """Return True when `lane` holds readings past `after_seq`. Never blocks."""
        ...

    def seq_before(self, lane: Lane, time_us: int) -> int:
        """Return a seq up to which all commits of `lane` are older than `time_us`. Never blocks.

        The highest that is known without the disk; wall clock.
        """
        ...

    async def wait(self) -> None:
        """Return after the next commit or tombstone."""
        ...

    async def read(
        self, lane: Lane, after_seq: int, *, bytes_max: int, through_seq: int | None = None
    ) -> list[Commit]:
        """Return commits with readings past `after_seq`, oldest first; at least one if any.

        Recent ones come from a bounded tail in memory, older ones from disk. The first commit
        may begin before `after_seq`: the caller skips what it has had. None begins after
        `through_seq`. What was trimmed out of order may come again.
        """
        ...

    async def trim(self, lane: Lane, up_to_seq: int, *, after_seq: int = 0) -> None:
        """Forget readings of `lane` past `after_seq` up to `up_to_seq`: the cloud has them."""
        ...

    async def set_aside(
        self, lane: Lane, first_seq: int, last_seq: int, cause: str, body: bytes
    ) -> None:
        """Move refused readings to the dead letters, with a tombstone; durable on return."""
        ...

    def tombstones(self) -> Sequence[Tombstone]:
        """Return the tombstones the cloud has not acknowledged yet, oldest first."""
        ...

    async def forget_tombstones(self, up_to: Sequence[Tombstone]) -> None:
        """Drop tombstones the cloud has made durable."""
        ...
