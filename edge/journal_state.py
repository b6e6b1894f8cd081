"""What the journal knows of its file without asking it: seqs, lanes, tombstones, counters.

Invariants:
- `next_seq > last_seq`, and `next_seq <= reserved_seq + 1`: no seq is given out that the file has
  not reserved durably before.
- A lane's `gone_seq` never falls; readings of the lane up to it are trimmed, evicted or lost.
- `ahead` lies past `gone_seq` and never touches it: readings trimmed out of order. `deleted` is
  the part of it whose rows the file does not have any more.
- `read` is what may be on its way to the cloud as it was: it is never thinned.
- `readings` and `bytes` of a lane are those of the rows on disk, exactly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bridge.intervals import IntervalSet
from bridge.runs import Origin, Run
from edge.contract import Commit, Lane, Tombstone
from edge.journal_schema import ROW_BYTES
from runtime.clock import Clock

__all__ = [
    "Head",
    "JournalState",
    "JournalStats",
    "LaneState",
    "LaneStats",
    "Parting",
    "us_since_boot",
]


@dataclass(slots=True)
class Head:
    """The oldest row of a lane."""

    first_seq: int
    count: int
    time_us: int  # wall clock at the commit
    boot: int  # in which boot that was
    boot_us: int  # and how long after its start

    def age_us(self, wall_us: int, boot: int, boot_us: int) -> int:
        """Return how long ago the row was written.

        Within one boot by the clock that cannot be set; over boots only the wall clock is left.
        """
        age = boot_us - self.boot_us if boot == self.boot else wall_us - self.time_us
        return max(0, age)


@dataclass(slots=True)
class LaneState:
    """One lane."""

    last_seq: int = 0  # of its newest row, also when that is gone; 0 = never had one
    gone_seq: int = 0
    readings: int = 0
    bytes: int = 0  # bodies, and ROW_BYTES a row
    head: Head | None = None  # None = no rows
    trimmed: int = 0  # of `readings`: known to be gone, their rows not yet deleted
    ahead: IntervalSet = field(default_factory=IntervalSet)
    deleted: IntervalSet = field(default_factory=IntervalSet)
    read: IntervalSet = field(default_factory=IntervalSet)  # by the uplink, not trimmed since

    def absorb_ahead(self) -> None:
        """Let `gone_seq` rise over what was trimmed out of order and touches it now."""
        for ranges in (self.ahead, self.deleted, self.read):
            ranges.discard(0, self.gone_seq)
        while self.ahead and self.ahead.ranges()[0][0] == self.gone_seq + 1:
            first, self.gone_seq = self.ahead.ranges()[0]
            self.ahead.discard(first, self.gone_seq)
            self.deleted.discard(first, self.gone_seq)

    def note_read(self, commits: Sequence[Commit]) -> None:
        """Take note that the uplink has these in its hands."""
        for commit in commits:
            last_seq = commit.first_seq + commit.count - 1
            if last_seq > self.gone_seq:
                self.read.add(max(commit.first_seq, self.gone_seq + 1), last_seq)

    def first_waiting_seq(self) -> int | None:
        """Return a seq below which no reading of the lane waits; None when none waits at all."""
        if self.gone_seq >= self.last_seq:
            return None
        return max(self.gone_seq + 1, self.head.first_seq if self.head is not None else 0)

    def depth(self) -> int:
        """Return how many readings are not gone; rows about to be deleted may still count."""
        if self.gone_seq >= self.last_seq:
            return 0
        part = 0
        head = self.head
        if not self.trimmed and head and head.first_seq <= self.gone_seq:
            part = min(head.count, self.gone_seq - head.first_seq + 1)
        return max(0, self.readings - self.trimmed - part)


@dataclass(slots=True, frozen=True)
class Parting:
    """Readings past a seq are to get another epoch, once all up to it are settled."""

    after_seq: int
    epoch: int
    lane_ends: Mapping[Lane, int]  # last seq of each lane up to there


@dataclass(slots=True)
class JournalState:
    """The whole journal."""

    epoch: int
    next_seq: int
    reserved_seq: int
    last_seq: int  # the highest made durable
    boot: int  # this boot's row in `boots`
    unmet_seq: int | None = None  # past it nothing was compared with the cloud; None: all was
    lanes: dict[Lane, LaneState] = field(
        default_factory=lambda: {lane: LaneState() for lane in Lane}
    )
    tombstones: list[Tombstone] = field(default_factory=list)  # not acknowledged, oldest first
    runs: tuple[Run, ...] = ()  # of this epoch, this process's last
    origin: Origin | None = None  # of an epoch that parted from another
    parting: Parting | None = None  # what lies past some seq is to get another epoch

    def settled_seq(self) -> int | None:
        """Return the seq up to which no reading waits; None while a tombstone is unacknowledged."""
        if self.tombstones:
            return None
        waiting = [lane.first_waiting_seq() for lane in self.lanes.values()]
        return min((seq - 1 for seq in waiting if seq is not None), default=self.last_seq)

    def appended(self, lane: Lane, count: int, body_bytes: int, head: Head) -> None:
        """Take note of a row that is durable now."""
        state = self.lanes[lane]
        state.last_seq = head.first_seq + count - 1
        state.readings += count
        state.bytes += body_bytes + ROW_BYTES
        if state.head is None:
            state.head = head


@dataclass(slots=True)
class LaneStats:
    """Figures of one lane."""

    readings: int  # not gone
    bytes: int
    oldest_age_s: float
    last_seq: int
    gone_seq: int


@dataclass(slots=True)
class JournalStats:
    """Figures of the journal; counters are since the start of the process."""

    lanes: dict[Lane, LaneStats]
    file_bytes: int  # database and log as they lie on the disk
    disk_free_bytes: int
    tail_bytes: int
    tombstones: int
    commits: int
    readings: int
    body_bytes: int  # of bodies committed
    failed_commits: int
    evicted: dict[str, int]  # readings by reason
    dead_letters: int
    damaged_rows: int
    commit_s: float  # how long the last commit took, sync included
    epoch: int
    last_seq: int


def us_since_boot(clock: Clock) -> int:
    """Return the time that rows keep beside the wall clock's, in microseconds."""
    return round(clock.monotonic_s() * 1e6)
