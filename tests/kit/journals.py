"""A journal in memory, for tests of the uplink: the contract without the disk."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from bridge.devices import DeviceIds
from bridge.intervals import IntervalSet
from bridge.readings import Readings
from edge.contract import Commit, Lane, Tombstone
from edge.readings import ReadingsBuffer
from edge.segments import Segment, pack_segment
from mqtt.frames import encode_publish

__all__ = ["MemoryJournal", "publish_frame", "readings_in"]

_STALLED_S = 60.0  # nothing moves: it is stuck
_UNTIL_S = 120.0  # it moves, but will never be done


def publish_frame(topic: str, payload: bytes, *, qos: int = 1, version: int = 4) -> bytes:
    """Return one PUBLISH packet."""
    return encode_publish(0x30 | qos << 1, topic.encode(), 1 if qos else 0, b"", payload, version)


@dataclass
class MemoryJournal:
    """Keeps commits in lists and remembers what was trimmed and set aside."""

    epoch: int = 0x1122334455667788
    last_seq: int = 0
    commits: dict[Lane, list[Commit]] = field(default_factory=lambda: {lane: [] for lane in Lane})
    trimmed: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 0))
    gone: dict[Lane, IntervalSet] = field(
        default_factory=lambda: {lane: IntervalSet() for lane in Lane}
    )
    aside: list[tuple[Lane, int, int, str, bytes]] = field(default_factory=list)
    stones: list[Tombstone] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # raised by the next calls
    reads: int = 0

    def __post_init__(self) -> None:
        self._news = asyncio.Event()
        self._changes = asyncio.Event()

    def capture(
        self,
        payloads: Sequence[bytes],
        *,
        lane: Lane = Lane.LIVE,
        topic: str = "devices/d1/value",
        client_id: str = "c1",
        time_us: int = 1_700_000_000_000_000,
    ) -> range:
        """Commit publishes of one client; return their seqs."""
        frames = b"".join(publish_frame(topic, payload) for payload in payloads)
        segment = Segment(4, client_id, time_us, len(payloads), frames)
        return self.commit(lane, len(payloads), time_us, pack_segment(segment))

    def commit(self, lane: Lane, count: int, time_us: int, body: bytes) -> range:
        """Add one commit as it is; return its seqs."""
        first = self.last_seq + 1
        self.commits[lane].append(Commit(lane, first, count, time_us, body))
        self.last_seq += count
        self._news.set()
        return range(first, first + count)

    def tombstone(self, stone: Tombstone) -> None:
        """Add a tombstone."""
        self.stones.append(stone)
        self._news.set()

    async def until(self, what: str, done: object) -> None:
        """Wait until `done()` is true; looked at whenever the uplink changes something here."""
        assert callable(done)
        try:
            async with asyncio.timeout(_UNTIL_S):
                while not done():
                    self._changes.clear()
                    async with asyncio.timeout(_STALLED_S):
                        await self._changes.wait()
        except TimeoutError:
            raise AssertionError(f"{what}: not in time") from None

    async def until_trimmed(self, lane: Lane = Lane.LIVE) -> None:
        """Wait until everything captured in `lane` is trimmed or set aside."""
        await self.until("trimmed", lambda: not self.pending(lane, 0))

    def _fail(self) -> None:
        if self.failures:
            raise self.failures.pop(0)

    # ---- the contract

    run = 1

    @property
    def settled_seq(self) -> int | None:
        if self.stones:
            return None
        waiting = []
        for lane, commits in self.commits.items():
            for one in commits[:1]:  # those that are gone altogether are not kept
                last = one.first_seq + one.count - 1
                waiting += [first for first, _ in self.gone[lane].missing(one.first_seq, last)[:1]]
        return min(waiting, default=self.last_seq + 1) - 1

    def pending(self, lane: Lane, after_seq: int) -> bool:
        return any(c.first_seq + c.count - 1 > after_seq for c in self.commits[lane][-1:])

    def seq_before(self, lane: Lane, time_us: int) -> int:
        older = [c for c in self.commits[lane] if c.time_us < time_us]
        return older[-1].first_seq + older[-1].count - 1 if older else 0

    async def wait(self) -> None:
        await self._news.wait()
        self._news.clear()

    async def read(
        self, lane: Lane, after_seq: int, *, bytes_max: int, through_seq: int | None = None
    ) -> list[Commit]:
        self.reads += 1
        self._fail()
        found: list[Commit] = []
        size = 0
        for commit in self.commits[lane]:
            if commit.first_seq + commit.count - 1 <= after_seq:
                continue
            if through_seq is not None and commit.first_seq > through_seq:
                break
            if found and size + len(commit.body) > bytes_max:
                break
            found.append(commit)
            size += len(commit.body)
        await asyncio.sleep(0)
        return found

    async def trim(self, lane: Lane, up_to_seq: int, *, after_seq: int = 0) -> None:
        self._fail()
        self.gone[lane].add(after_seq + 1, up_to_seq)
        first, last = self.gone[lane].ranges()[0]
        if first == 1:
            assert last >= self.trimmed[lane]
            self.trimmed[lane] = last
        self.commits[lane] = [
            c
            for c in self.commits[lane]
            if not self.gone[lane].covers(c.first_seq, c.first_seq + c.count - 1)
        ]
        self._changes.set()

    async def set_aside(
        self, lane: Lane, first_seq: int, last_seq: int, cause: str, body: bytes
    ) -> None:
        self._fail()
        self.aside.append((lane, first_seq, last_seq, cause, body))
        count = last_seq - first_seq + 1
        self.stones.append(Tombstone(lane, first_seq, last_seq, count, "refused", 0))
        self._changes.set()

    def tombstones(self) -> Sequence[Tombstone]:
        return self.stones

    async def forget_tombstones(self, up_to: Sequence[Tombstone]) -> None:
        self.stones = [stone for stone in self.stones if stone not in up_to]
        self._changes.set()


def readings_in(commits: Sequence[Commit], device_ids: DeviceIds) -> Readings:
    """Return all readings of commits of one lane, oldest first.

    Raises:
        CommitError: a body cannot be read.
    """
    buffer = ReadingsBuffer(device_ids)
    for commit in commits:
        buffer.fill(commit, 0)
    taken = buffer.take(max(1, len(buffer)), 1 << 62, -(1 << 62))
    return taken if taken is not None else Readings(range(0), [], [], [], [], [], [])
