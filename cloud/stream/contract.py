"""The contract every stream engine keeps; `tests/cloud/stream_contract.py` is its proof.

A stream holds entries in 64 partitions. An entry is the readings that one append brought of one
source and partition. Its body can be read alone; entries of several sources may share one, which is
stored once (bridge/shared_entry.py). Within a partition entries have rising positions; a device's
readings all lie in one partition, in the order they were appended.

Beside the entries a stream keeps the ledger of what it took (ranges of seq, tombstones, what the
edges say they assigned), cursors of sinks that have no store of their own, and dead letters. All
of that outlives the entries themselves (DESIGN sections 3 and 6).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bridge.envelope import LinkLane
from bridge.intervals import Range
from bridge.partition import PARTITIONS
from bridge.runs import RUNS_MAX, Origin, Run

__all__ = [
    "PARTITIONS",
    "RUN",
    "SETTLED",
    "Arrival",
    "Backlog",
    "DeadLetter",
    "DeadLetters",
    "Entry",
    "GivenUp",
    "Part",
    "Source",
    "SourceLedger",
    "Stream",
    "StreamError",
    "StreamFull",
    "StreamLedger",
    "StreamLog",
    "StreamStats",
    "known_runs",
    "origin_stone",
    "run_stones",
    "settled_stone",
]

Source = tuple[str, int]  # (gateway, epoch): whose seqs they are
# reasons of what is no loss but a statement, see `settled_stone`, `run_stones`, `origin_stone`
SETTLED = "settled"
RUN = "run"
_ORIGIN = "origin"
_RUN_ID, _RUN_AFTER = "id", "after"  # what a statement of a run says, in the place of a lane
_LANES = frozenset(lane.name.lower() for lane in LinkLane)  # of tombstones: no statement has one


class StreamError(Exception):
    """An append or read that did not happen; `str()` is one line for an operator."""


class StreamFull(StreamError):  # noqa: N818 - a state of the stream, like queue.Full
    """An append that a limit of the stream forbids: certainly not stored; try again later."""


@dataclass(slots=True)
class Part:
    """What one append adds to one partition."""

    partition: int
    gateway: str
    epoch: int  # unsigned, 64 bits
    seq_ranges: tuple[Range, ...]  # inclusive (first, last), rising, not touching; never empty
    count: int  # readings; the sum of the ranges' lengths
    body: bytes  # of bridge's mode 0 or 2, self-contained; one object for all that share it
    sharers: int = 1  # parts that have this body, of several appends
    packed: bytes = b""  # its seqs as bridge.kernel.seq_runs packs them, where they are at hand

    @property
    def own_bytes(self) -> int:
        """Its part of the body's length."""
        return len(self.body) // self.sharers


@dataclass(slots=True, frozen=True)
class Entry:
    """One stored part at its position."""

    partition: int
    position: int  # rises within the partition, not necessarily by one; 0 is before the first
    gateway: str
    epoch: int
    seq_ranges: tuple[Range, ...]
    count: int
    appended_us: int  # wall clock of the cloud when it was taken
    body: bytes


@dataclass(slots=True, frozen=True)
class GivenUp:
    """Readings that will never come, and why: a tombstone as it stands in the ledger.

    `count` of the seqs in the range are given up; the others are of other lanes, or came.
    """

    gateway: str
    epoch: int
    lane: str
    first_seq: int
    last_seq: int
    count: int
    reason: str
    time_us: int


def settled_stone(source: Source, seq: int, time_us: int) -> GivenUp:
    """Return the statement that up to a seq nothing waits at the gateway any more.

    It is given to a stream like a tombstone, gives up nothing, and is kept like one: of several
    the one that reaches furthest stands.
    """
    return GivenUp(*source, "", 1, seq, 0, SETTLED, time_us)


def run_stones(source: Source, known: int, runs: Sequence[Run]) -> list[GivenUp]:
    """Return the statements that runs are known of a source, given to a stream like tombstones.

    Each lies in one of `RUNS_MAX` places, by its number among all, so that the newest stand. In a
    stream that several nodes write one that was not asked for what is held since, `held`, appends
    nothing of the source behind them.

    Args:
        source: Whose.
        known: How many were made known before.
        runs: Those that follow.
    """
    stones: list[GivenUp] = []
    for number, one in enumerate(runs, known + 1):
        place = (number - 1) % RUNS_MAX + 1
        stones.append(GivenUp(*source, _RUN_ID, place, number, 0, RUN, one.run))
        stones.append(GivenUp(*source, _RUN_AFTER, place, number, 0, RUN, one.after_seq))
    return stones


def known_runs(stones: Iterable[GivenUp]) -> tuple[int, tuple[Run, ...]]:
    """Return how many runs were made known of a source, and the newest, oldest first."""
    said = [stone for stone in stones if stone.reason == RUN]
    after = {stone.last_seq: stone.time_us for stone in said if stone.lane == _RUN_AFTER}
    ids = sorted((stone.last_seq, stone.time_us) for stone in said if stone.lane == _RUN_ID)
    return ids[-1][0] if ids else 0, tuple(Run(run, after[number]) for number, run in ids)


def origin_stone(source: Source, origin: Origin, time_us: int) -> GivenUp:
    """Return the statement that an epoch parted from another; its seqs lie past where."""
    after_seq = origin.after_seq
    lane = f"{origin.epoch:016x}"
    return GivenUp(*source, lane, min(1, after_seq), after_seq, after_seq, _ORIGIN, time_us)


@dataclass(slots=True, frozen=True)
class SourceLedger:
    """What the stream knows of one gateway's epoch."""

    gateway: str
    epoch: int
    assigned: int  # highest seq the edge said it has assigned; 0 when it never said
    held: tuple[Range, ...]  # every seq the stream ever took, trimmed or not
    given_up: tuple[GivenUp, ...]
    settled: int | None = None  # up to here nothing waits at the edge; None: it never said
    settled_us: int = 0  # cloud's wall clock when it said so
    origin: Origin | None = None  # of an epoch that parted from another

    @classmethod
    def of(
        cls, source: Source, assigned: int, held: Iterable[Range], stones: Iterable[GivenUp]
    ) -> SourceLedger:
        """Return the line of a source, what was settled told apart from what was given up."""
        losses: list[GivenUp] = []
        settled: int | None = None
        settled_us = 0
        origin: Origin | None = None
        for stone in stones:
            if stone.lane in _LANES:  # whatever reason a gateway gives it
                losses.append(stone)
            elif stone.reason == SETTLED:
                settled, settled_us = stone.last_seq, stone.time_us
            elif stone.reason == _ORIGIN:
                origin = Origin(stone.last_seq, int(stone.lane, 16))
            elif stone.reason != RUN:
                losses.append(stone)
        lost = tuple(losses)
        return cls(*source, assigned, tuple(held), lost, settled, settled_us, origin)


@dataclass(slots=True, frozen=True)
class Arrival:
    """One append of one source, usually a batch: when it came and where its readings lie."""

    gateway: str
    epoch: int
    seq_ranges: tuple[Range, ...]  # what was new with it
    count: int
    arrived_us: int
    places: tuple[tuple[int, int], ...]  # (partition, position)


@dataclass(slots=True, frozen=True)
class Backlog:
    """What lies in one partition past a position."""

    entries: int
    readings: int
    oldest_us: int  # when the oldest of them was appended; 0 when there are none


@dataclass(slots=True, frozen=True)
class DeadLetter:
    """An entry a sink could not take, kept whole with its cause."""

    sink: str
    entry: Entry
    cause: str
    tries: int
    time_us: int


@dataclass(slots=True, frozen=True)
class StreamStats:
    """Sizes of a stream now; trimmed entries do not count."""

    readings: int
    entries: int
    bytes: int  # of the bodies
    last_positions: Mapping[int, int]  # by partition, trimmed or not; absent = never written


class StreamLog(Protocol):
    """A durable, partitioned log with cursors."""

    @property
    def epoch(self) -> int:
        """The random 64-bit id made with the stream: another one means another log.

        A sink that keeps its cursor elsewhere keeps this beside it: positions of one stream say
        nothing about another.
        """
        ...

    @property
    def own_epoch(self) -> int:
        """The epoch of readings whose seqs this process gives itself.

        The stream's own where one process writes it; where several do, a new one with each opening.
        """
        ...

    @property
    def durability(self) -> str:
        """What an append that returned has survived, a word for PUBACKs and metrics."""
        ...

    @property
    def shares_bodies(self) -> bool:
        """True when every reader there may be knows bodies that several entries share."""
        ...

    @property
    def keeps_runs(self) -> bool:
        """True when every writer there may be minds the runs of gateways (`run_stones`)."""
        ...

    @property
    def file_bytes(self) -> int:
        """Bytes in use on the disk, or of a cluster's entries."""
        ...

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[Source, int] | None = None,
    ) -> None:
        """Append all of it or nothing; durable when this returns.

        Calls may overlap. Those that name the same gateway are stored in the order of the calls,
        and when one fails, later ones of that gateway which are still under way fail too: a
        gap in a device's order is never filled by what came after it. A part whose every seq the
        stream holds already is taken as done and not stored again, so an append of unknown
        outcome (an error, a cancellation) may be repeated with the same parts. With nothing to
        add it is a probe: it returns once the stream has proved that it would take an append.

        Args:
            parts: At most one a partition, gateway and epoch.
            given_up: Tombstones to record in the ledger. Of two that agree in source, lane, first
                seq and reason the one that reaches further stands: edges extend them.
            assigned: Highest seq each (gateway, epoch) says it has assigned; never goes back.

        Raises:
            StreamFull: a limit was reached; nothing was stored.
            StreamError: nothing may be assumed stored or not stored.
            ValueError: a part that breaks its invariants; nothing was stored.
        """
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

    async def trim(self, up_to: Mapping[int, int], before_us: int | None = None) -> None:
        """Forget entries up to and including a position in each partition of `up_to`.

        With `before_us`, only those appended before that time. The ledger keeps their ranges.
        """
        ...

    async def stats(self) -> StreamStats:
        """Return sizes and last positions."""
        ...

    async def snapshot(self, path: Path) -> None:
        """Write a consistent copy of everything to a new file, durable on return.

        Raises:
            StreamError: the file exists or cannot be written.
        """
        ...

    async def close(self) -> None:
        """Finish what is under way and release the files; harmless when closed already."""
        ...


class StreamLedger(Protocol):
    """What the stream took, by source, for dedup, lag and audit."""

    async def held(self, gateway: str, epoch: int) -> Sequence[Range]:
        """Return the seq ranges (inclusive) the stream has taken, for dedup.

        Only for whoever appends what this gateway sends: where several nodes append, the appends
        that follow stand on this answer, and after one that failed it has to be asked again. All
        others ask `highest_seq`.
        """
        ...

    async def runs(self, gateway: str, epoch: int) -> tuple[int, tuple[Run, ...]]:
        """Return how many runs were made known of a source, and the newest, oldest first.

        All that were when `held` was answered last, where that was asked before.
        """
        ...

    async def highest_seq(self, gateway: str, epoch: int) -> int:
        """Return the highest seq the stream has taken, 0 for none; no append stands on it."""
        ...

    async def catch_up(self) -> None:
        """Return once `ledger` and `ranges_after` have all that any node acknowledged before this.

        Raises:
            StreamError: it cannot be read to its end now.
        """
        ...

    async def ledger(self) -> list[SourceLedger]:
        """Return every (gateway, epoch) the stream has heard of, sorted."""
        ...

    async def arrival(self, gateway: str, epoch: int, seq: int) -> Arrival | None:
        """Return the append that brought a seq, trimmed or not.

        None when it never came, or so long ago that an engine may have forgotten it.
        """
        ...

    async def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        """Return the seqs of entries past `positions`: what still waits for a sink that is there.

        A partition that `positions` lacks counts from its beginning. Ranges rise; they overlap
        only where a seq is in more than one entry.
        """
        ...

    async def backlog(self, positions: Mapping[int, int]) -> dict[int, Backlog]:
        """Return, by partition of `positions`, how much lies past the position."""
        ...


class DeadLetters(Protocol):
    """Entries that a sink could not take, until someone looks."""

    async def set_aside(self, sink: str, entry: Entry, cause: str, tries: int) -> None:
        """Keep `entry` as a dead letter of `sink`; durable on return; repeating it is harmless."""
        ...

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        """Return the dead letters, of one sink or of all, oldest first."""
        ...

    async def forget_dead_letter(self, sink: str, partition: int, position: int) -> None:
        """Drop a dead letter that has been dealt with."""
        ...


class Stream(StreamLog, StreamLedger, DeadLetters, Protocol):
    """All of it: what an engine is."""
