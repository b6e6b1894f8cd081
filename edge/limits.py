"""How much the journal may still write: by its own size, and by what the disk has left. Pure.

Invariants:
- The journal's files never pass `file_bytes_max`: a page is added to the database only when none is
  free in it, and the log is counted at its full size even while it is shorter.
- The journal never takes the file system below `disk_reserve_bytes`; it may still write into pages
  it holds already.
- Nor ever so low that it could not write its log back into the database and delete from it: a
  journal that filled the disk to the last byte could not even make room.
- The live lane leaves some room for the urgent one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal_schema import PAGE_BYTES

__all__ = [
    "DISK_FLOOR_BYTES",
    "WAL_BYTES_MAX",
    "Room",
    "Space",
    "cost_bytes",
    "lane_room_bytes",
    "room_of",
    "slack_of",
]

MIB: Final = 1024 * 1024
WAL_BYTES_MAX: Final = 4 * MIB + 64 * 1024  # a checkpoint at 1000 pages, and the frames' heads
OVERFLOW_BYTES: Final = PAGE_BYTES - 4  # of a body on each page but its first
URGENT_SHARE: Final = 16  # the live lane leaves 1/16 of the journal, at most 64 MiB, to urgent
URGENT_DISK_SHARE: Final = 4  # but no more than 1/4 of what it can hold where the disk is small
URGENT_BYTES_MAX: Final = 64 * MIB
DISK_FLOOR_BYTES: Final = 2 * WAL_BYTES_MAX  # left free whatever the reserve
COST_MARGIN_BYTES: Final = MIB // 4  # what rounding up to pages may add to all that waits


@dataclass(slots=True, frozen=True)
class Space:
    """What the files take now."""

    used_bytes: int  # pages of the database that hold something
    free_page_bytes: int  # pages of the database that do not: written again before it grows
    wal_bytes: int
    disk_free_bytes: int  # once the log is written back into the database

    @property
    def file_bytes(self) -> int:
        """All that lies on the disk."""
        return self.used_bytes + self.free_page_bytes + self.wal_bytes


@dataclass(slots=True, frozen=True)
class Room:
    """How much may still be written, and which limit says so."""

    bytes: int  # negative when the limit is passed already
    reason: str  # "evicted-bytes" or "evicted-disk": what a tombstone would say


def room_of(space: Space, config: JournalConfig) -> Room:
    """Return how many bytes of pages may be written before a limit is reached."""
    by_size = config.file_bytes_max - max(space.wal_bytes, WAL_BYTES_MAX) - space.used_bytes
    log_growth = max(0, WAL_BYTES_MAX - space.wal_bytes)
    reserve = max(config.disk_reserve_bytes, DISK_FLOOR_BYTES)
    disk = space.disk_free_bytes - reserve - log_growth
    by_disk = space.free_page_bytes + max(0, disk)
    if by_disk < by_size:
        return Room(by_disk, "evicted-disk")
    return Room(by_size, "evicted-bytes")


def cost_bytes(body_bytes: int) -> int:
    """Return the most that a row with such a body takes in pages."""
    return (body_bytes // OVERFLOW_BYTES + 2) * PAGE_BYTES


def slack_of(config: JournalConfig, lane_bytes_max: int) -> int:
    """Return how much is given up at a time, so that not every commit has to evict."""
    limit = min(config.file_bytes_max, lane_bytes_max or config.file_bytes_max)
    return min(MIB, limit // 16)


def lane_room_bytes(lane: Lane, lane_bytes: int, room_bytes: int, config: JournalConfig) -> int:
    """Return how many bytes of rows a lane that refuses may still take.

    Args:
        lane: Which.
        lane_bytes: What its rows take now.
        room_bytes: What the journal as a whole may still write.
        config: The limits.
    """
    room_bytes -= COST_MARGIN_BYTES
    if lane is Lane.LIVE:
        held_bytes = lane_bytes + max(0, room_bytes)  # all that fits on a disk that is small
        kept_bytes = min(URGENT_BYTES_MAX, config.file_bytes_max // URGENT_SHARE)
        room_bytes -= min(kept_bytes, held_bytes // URGENT_DISK_SHARE)
    limit = (config.urgent if lane is Lane.URGENT else config.live).bytes_max
    return min(room_bytes, limit - lane_bytes) if limit else room_bytes
