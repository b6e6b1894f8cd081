"""The contract every stream engine keeps; `tests/cloud/stream_contract.py` is its proof.

A stream holds entries in 64 partitions. An entry is the readings of one uplink batch that fall in
one partition, encoded so that it can be read alone. Within a partition entries have rising
positions; a device's readings all lie in one partition, in the order they were appended.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

__all__ = ["PARTITIONS", "Entry", "GivenUp", "Part", "Stream", "StreamError", "StreamStats"]

PARTITIONS = 64


class StreamError(Exception):
    """An append or read that did not happen; `str()` is one line for an operator."""


@dataclass(slots=True, frozen=True)
class Part:
    """What one append adds to one partition."""

    partition: int
    gateway: str
    epoch: int
    seq_ranges: tuple[tuple[int, int], ...]  # inclusive (first, last), rising, not touching
    count: int
    body: bytes  # a batch of bridge's mode 0, self-contained


@dataclass(slots=True, frozen=True)
class Entry:
    """One stored part at its position."""

    partition: int
    position: int  # rises within the partition; 0 is before the first
    gateway: str
    epoch: int
    count: int
    appended_us: int
    body: bytes


@dataclass(slots=True, frozen=True)
class GivenUp:
    """Readings that will never come, and why: a tombstone as it stands in the ledger."""

    gateway: str
    epoch: int
    lane: str
    first_seq: int
    last_seq: int
    count: int
    reason: str
    time_us: int


@dataclass(slots=True, frozen=True)
class StreamStats:
    """Sizes of a stream now."""

    readings: int
    entries: int
    bytes: int
    last_positions: Mapping[int, int]  # by partition; absent = empty


class Stream(Protocol):
    """A durable, partitioned log with cursors and the ledger of what it holds."""

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[tuple[str, int], int] | None = None,
    ) -> None:
        """Append all of it or nothing; durable when this returns.

        Args:
            parts: At most one a partition and gateway.
            given_up: Tombstones to record in the ledger.
            assigned: Highest seq each (gateway, epoch) says it has assigned.

        Raises:
            StreamError: nothing may be assumed stored; append again with the same parts.
        """
        ...

    async def held(self, gateway: str, epoch: int) -> Sequence[tuple[int, int]]:
        """Return the seq ranges (inclusive) the stream has taken, for dedup and ledger."""
        ...

    async def read(
        self, partition: int, after: int, *, entries_max: int, bytes_max: int
    ) -> list[Entry]:
        """Return entries past position `after`, oldest first; at least one if there is any."""
        ...

    async def wait(self, positions: Mapping[int, int]) -> None:
        """Return when some partition of `positions` has an entry past the position given."""
        ...

    async def cursors(self, sink: str) -> dict[int, int]:
        """Return the committed position by partition for a sink that keeps its cursor here."""
        ...

    async def commit_cursors(self, sink: str, positions: Mapping[int, int]) -> None:
        """Make cursors durable; they never move back."""
        ...

    async def trim(self, partition: int, up_to: int) -> None:
        """Forget entries up to a position; the ledger keeps their ranges."""
        ...

    async def stats(self) -> StreamStats:
        """Return sizes and last positions."""
        ...

    async def snapshot(self, path: Path) -> None:
        """Write a consistent copy of everything to a new file."""
        ...

    async def close(self) -> None:
        """Finish what is under way and release the files."""
        ...
