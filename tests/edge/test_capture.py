"""Capture: what is taken is settled once, and as durable only when it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.capture import COMMIT_BYTES, EARLY_BYTES, Capture
from edge.config import CaptureConfig, LaneConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.journal_schema import JournalError
from edge.segments import unpack_body
from mqtt.broker.seams import PublishRun
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    drop_oldest,
    journal_at,
    journal_config,
    read_all,
    run_of,
    seqs_in,
)

AT_ONCE = journal_config(commit_window_ms=0)


@dataclass
class Disk:
    """A journal whose commits end when the test says so."""

    room: dict[Lane, int] = field(default_factory=lambda: dict.fromkeys(Lane, 1 << 30))
    commits: list[list[tuple[Lane, int, bytes]]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)  # of the next commits and probes
    looks: int = 0
    probes: int = 0

    def __post_init__(self) -> None:
        self.gate = asyncio.Event()
        self.gate.set()
        self.begun = asyncio.Event()
        self.changed: Callable[[], None] = lambda: None

    async def append(self, parts: Sequence[tuple[Lane, int, bytes]]) -> None:
        self.begun.set()
        await self.gate.wait()
        if self.failures:
            raise self.failures.pop(0)
        self.commits.append(list(parts))

    def lane_room(self, lane: Lane) -> int:
        return self.room[lane]

    def on_room(self, callback: Callable[[], None]) -> None:
        self.changed = callback

    def look_again(self) -> None:
        self.looks += 1

    async def probe(self) -> None:
        self.probes += 1
        if self.failures:
            raise self.failures.pop(0)

    def frames(self, lane: Lane = Lane.LIVE) -> list[bytes]:
        """Return the packets of a lane's segments in the order they were committed."""
        return [
            segment.frames
            for parts in self.commits
            for of_lane, _, body in parts
            for segment in unpack_body(body)
            if of_lane is lane
        ]


class Answers:
    """Remembers every call of `settled`, and wakes who waits for them."""

    def __init__(self) -> None:
        self.calls: list[tuple[PublishRun, int]] = []
        self._more = asyncio.Event()

    def __call__(self, run: PublishRun, code: int | Sequence[int]) -> None:
        assert isinstance(code, int)
        self.calls.append((run, code))
        self._more.set()

    @property
    def codes(self) -> list[int]:
        return [code for _, code in self.calls]

    async def until(self, count: int) -> None:
        """Wait for `count` calls in all."""
        while len(self.calls) < count:
            self._more.clear()
            await self._more.wait()


@asynccontextmanager
async def capturing(
    disk: Disk | Journal,
    config: object = AT_ONCE,
    topics: CaptureConfig | None = None,
    clock: ManualClock | None = None,
) -> AsyncIterator[Capture]:
    """Capture into a journal until the end of the block."""
    capture = Capture(disk, topics or CaptureConfig(), config, clock or ManualClock())  # type: ignore[arg-type]
    try:
        yield capture
    finally:
        if isinstance(disk, Disk):
            disk.gate.set()  # a failed test must end
        await capture.close()


def io_error() -> JournalError:
    return JournalError(Path("journal.db"), 1, "the disk reports an error", "io")


def full() -> JournalError:
    return JournalError(Path("journal.db"), 1, "the disk is full", "full")


# --- settling -------------------------------------------------------------------------------------


async def test_nothing_is_settled_before_its_commit_is_durable() -> None:
    disk, answers = Disk(), Answers()
    disk.gate.clear()
    async with capturing(disk) as capture:
        assert capture.take(run_of(settled=answers)) == 0
        await disk.begun.wait()
        for _ in range(5):
            await asyncio.sleep(0)
        assert answers.calls == []
        disk.gate.set()
        await answers.until(1)
        assert answers.codes == [0]


async def test_what_comes_during_a_commit_shares_the_next() -> None:
    disk, answers = Disk(), Answers()
    disk.gate.clear()
    async with capturing(disk) as capture:
        capture.take(run_of(settled=answers))
        await disk.begun.wait()
        for _ in range(50):
            capture.take(run_of(2, settled=answers))
        disk.gate.set()
        await answers.until(51)
        assert [[count for _, count, _ in parts] for parts in disk.commits] == [[1], [100]]
        assert capture.stats.readings == 101
        assert capture.stats.runs == 51


async def test_lanes_share_a_commit_urgent_first_and_keep_their_order() -> None:
    disk, answers = Disk(), Answers()
    async with capturing(disk) as capture:
        runs = [
            run_of(lane=Lane(at % 2), size=at, settled=answers, client_id=f"c{at}")
            for at in range(10)
        ]
        for run in runs:
            capture.take(run)
        await answers.until(10)
    assert [[lane for lane, _, _ in parts] for parts in disk.commits] == [[0, 1]]
    for lane in Lane:
        assert disk.frames(lane) == [run.frames for run in runs if run.lane == lane]


async def test_a_large_wait_is_cut_into_commits_of_bounded_size() -> None:
    disk, answers = Disk(), Answers()
    disk.gate.clear()
    config = journal_config(commit_window_ms=0, waiting_bytes_max=1 << 26)
    async with capturing(disk, config) as capture:
        runs = [run_of(size=50_000, lane=Lane(at % 3 > 0), settled=answers) for at in range(120)]
        for run in runs:
            capture.take(run)
        disk.gate.set()
        await answers.until(120)
    sizes = [sum(len(body) for _, _, body in parts) for parts in disk.commits]
    assert max(sizes) <= 2 * COMMIT_BYTES
    assert len(sizes) >= 4
    for lane in Lane:
        assert disk.frames(lane) == [run.frames for run in runs if run.lane == lane]


async def test_a_fault_in_one_answer_does_not_cost_the_others_theirs() -> None:
    disk, answers = Disk(), Answers()

    def broken(run: PublishRun, code: int | Sequence[int]) -> None:
        answers(run, code)
        raise RuntimeError("connection is gone")

    async with capturing(disk) as capture:
        capture.take(run_of(settled=broken))
        capture.take(run_of(settled=answers))
        await answers.until(2)
        capture.take(run_of(settled=answers))
        await answers.until(3)
    assert answers.codes == [0, 0, 0]


async def test_closing_commits_what_was_taken_and_takes_no_more() -> None:
    disk, answers = Disk(), Answers()
    capture = Capture(disk, CaptureConfig(), AT_ONCE, ManualClock())
    for _ in range(3):
        capture.take(run_of(settled=answers))
    await capture.close()
    assert answers.codes == [0, 0, 0]
    assert capture.take(run_of(settled=answers)) == 0x83
    assert len(answers.calls) == 3


# --- the commit window ----------------------------------------------------------------------------


async def test_after_a_pause_a_commit_begins_at_once_then_waits_for_the_window() -> None:
    disk, answers = Disk(), Answers()
    clock = ManualClock()
    config = journal_config(commit_window_ms=10_000)
    async with capturing(disk, config, clock=clock) as capture:
        capture.take(run_of(settled=answers))
        await answers.until(1)
        capture.take(run_of(settled=answers))
        for _ in range(20):
            await asyncio.sleep(0)
        assert len(disk.commits) == 1
        clock.advance(10)
        capture.take(run_of(size=EARLY_BYTES, settled=answers))  # enough to end the wait early
        await answers.until(3)
        assert len(disk.commits) == 2
        clock.advance(10)
        capture.take(run_of(settled=answers))
        await answers.until(4)


# --- refusal and relief ---------------------------------------------------------------------------


async def test_a_full_lane_refuses_and_the_other_does_not() -> None:
    disk, answers = Disk(), Answers()
    disk.room[Lane.LIVE] = 1000
    async with capturing(disk) as capture:
        assert capture.take(run_of(size=500, settled=answers)) == 0
        assert capture.take(run_of(size=500, settled=answers)) == 0x97
        assert capture.take(run_of(size=500, lane=Lane.URGENT, settled=answers)) == 0
        await answers.until(2)
        assert answers.codes == [0, 0]
        assert capture.stats.refused_full == 1
        assert disk.looks == 1


async def test_relief_comes_once_when_there_is_room_for_what_was_refused() -> None:
    disk, answers = Disk(), Answers()
    disk.room[Lane.LIVE] = 0
    relieved = []
    async with capturing(disk) as capture:
        run = run_of(size=1000, settled=answers)
        assert capture.take(run) == 0x97
        capture.when_relieved(lambda: relieved.append(capture.take(run)))
        disk.room[Lane.LIVE] = 1000
        disk.changed()
        await asyncio.sleep(0)
        assert relieved == []
        disk.room[Lane.LIVE] = 1 << 30
        disk.changed()
        disk.changed()
        await answers.until(1)
        assert relieved == [0]


async def test_relief_is_at_once_when_nothing_is_in_the_way() -> None:
    relieved = asyncio.Event()
    async with capturing(Disk()) as capture:
        capture.when_relieved(relieved.set)
        async with asyncio.timeout(60):
            await relieved.wait()
        assert not capture.saturated()


async def test_what_waits_for_the_disk_saturates_and_relieves() -> None:
    disk, answers = Disk(), Answers()
    disk.gate.clear()
    relieved = asyncio.Event()
    async with capturing(disk, journal_config(waiting_bytes_max=64 * 1024)) as capture:
        taken = 0
        while not capture.saturated():
            assert capture.take(run_of(size=1000, settled=answers)) == 0
            taken += 1
        assert 40 < taken < 70
        capture.when_relieved(relieved.set)
        await asyncio.sleep(0)
        assert not relieved.is_set()
        disk.gate.set()
        await relieved.wait()
        assert not capture.saturated()
        await answers.until(taken)


async def test_a_full_lane_does_not_hold_up_who_waits_for_the_disk() -> None:
    disk, answers = Disk(), Answers()
    disk.room[Lane.LIVE] = 0
    disk.gate.clear()
    relieved: list[str] = []
    async with capturing(disk, journal_config(waiting_bytes_max=64 * 1024)) as capture:
        live = run_of(size=1000, settled=answers)
        assert capture.take(live) == 0x97

        def offer_again() -> None:
            relieved.append("live")
            assert capture.take(live) == 0x97
            capture.when_relieved(offer_again)

        capture.when_relieved(offer_again)
        taken = 0
        while not capture.saturated():
            assert capture.take(run_of(lane=Lane.URGENT, size=1000, settled=answers)) == 0
            taken += 1
        capture.when_relieved(lambda: relieved.append("urgent"))
        disk.gate.set()
        await answers.until(taken)
        for _ in range(20):
            await asyncio.sleep(0)
        assert sorted(relieved) == ["live", "urgent"]  # refused once more, not again and again


async def test_a_refusal_is_told_for_a_while() -> None:
    disk, clock = Disk(), ManualClock()
    disk.room[Lane.LIVE] = 1000
    async with capturing(disk, clock=clock) as capture:
        assert capture.trouble() == ""
        assert capture.take(run_of(size=2000)) == 0x97
        assert capture.trouble() == (
            "journal: the live lane has no room: journal.file_bytes_max is used, or the disk has"
            " no more free than journal.disk_reserve_bytes; devices are refused"
        )
        clock.advance(11)
        assert capture.trouble() == ""
        disk.failures = [io_error(), io_error()]
        answers = Answers()
        assert capture.take(run_of(settled=answers)) == 0
        await answers.until(1)
        assert capture.trouble() == "journal: the disk cannot be written; devices are refused"


async def test_a_lanes_room_counts_what_waits_and_what_is_under_way() -> None:
    disk, answers = Disk(), Answers()
    disk.room[Lane.LIVE] = 2000
    disk.gate.clear()
    async with capturing(disk) as capture:
        assert capture.take(run_of(size=500, settled=answers)) == 0
        await disk.begun.wait()
        assert capture.take(run_of(size=500, settled=answers)) == 0
        disk.changed()  # measured anew in the middle of a commit
        assert capture.take(run_of(size=800, settled=answers)) == 0x97
        assert capture.take(run_of(size=300, settled=answers)) == 0
        disk.gate.set()
        await answers.until(3)
        disk.changed()
        assert capture.take(run_of(size=1500, settled=answers)) == 0


# --- failure --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("error", "code"), [(io_error, 0x83), (full, 0x97)])
async def test_a_failed_commit_refuses_until_the_journal_works_again(
    error: Callable[[], JournalError], code: int
) -> None:
    disk, answers = Disk(), Answers()
    disk.gate.clear()
    disk.failures = [error(), error()]
    async with capturing(disk) as capture:
        capture.take(run_of(settled=answers))
        await disk.begun.wait()
        capture.take(run_of(settled=answers))  # gathers behind the commit that will fail
        disk.gate.set()
        await answers.until(2)
        assert answers.codes == [code, code]
        assert capture.take(run_of(settled=answers)) == code
        assert not capture.saturated()
        relieved = asyncio.Event()
        capture.when_relieved(relieved.set)
        await relieved.wait()
        assert disk.probes == 2
        assert capture.take(run_of(settled=answers)) == 0
        await answers.until(3)
        assert answers.codes[-1] == 0
        assert len(disk.commits) == 1


async def test_a_failure_with_nothing_behind_it_refuses_what_comes() -> None:
    disk, answers = Disk(), Answers()
    disk.failures = [io_error()]
    async with capturing(disk) as capture:
        capture.take(run_of(settled=answers))
        await answers.until(1)
        assert capture.take(run_of(settled=answers)) == 0x83
        assert answers.codes == [0x83]


async def test_an_unforeseen_fault_is_an_answer_too() -> None:
    disk, answers = Disk(), Answers()
    disk.failures = [ZeroDivisionError()]
    async with capturing(disk) as capture:
        capture.take(run_of(settled=answers))
        await answers.until(1)
        assert answers.codes == [0x83]


async def test_closing_ends_a_failing_journal() -> None:
    disk, answers = Disk(), Answers()
    disk.failures = [io_error() for _ in range(1000)]
    capture = Capture(disk, CaptureConfig(), AT_ONCE, ManualClock())
    capture.take(run_of(settled=answers))
    await answers.until(1)
    await capture.close()
    assert answers.codes == [0x83]


steps = st.lists(
    st.sampled_from(["take", "take", "take", "urgent", "large", "room", "fail", "turn", "gate"]),
    max_size=60,
)


@given(steps)
def test_whatever_happens_each_run_is_settled_exactly_once(steps: list[str]) -> None:
    async def act() -> None:
        disk, answers = Disk(), Answers()
        capture = Capture(disk, CaptureConfig(), AT_ONCE, ManualClock())
        taken, refused = [], 0
        for step in steps:
            if step in ("take", "urgent", "large"):
                size = 700_000 if step == "large" else 20
                lane = Lane.URGENT if step == "urgent" else Lane.LIVE
                run = run_of(size=size, lane=lane, settled=answers)
                if capture.take(run):
                    refused += 1
                else:
                    taken.append(run)
            elif step == "room":
                disk.room[Lane.LIVE] = 0 if disk.room[Lane.LIVE] else 1 << 30
                disk.changed()
            elif step == "fail":
                disk.failures.append(io_error())
            elif step == "gate":
                disk.gate.clear() if disk.gate.is_set() else disk.gate.set()
            else:
                await asyncio.sleep(0)
        disk.gate.set()
        await capture.close()
        assert len(answers.calls) == len(taken)
        assert {id(run) for run, _ in answers.calls} == {id(run) for run in taken}
        durable = [run.frames for run, code in answers.calls if not code]
        assert sorted(durable) == sorted(disk.frames(Lane.LIVE) + disk.frames(Lane.URGENT))
        assert capture.stats.waiting_bytes == 0
        codes = capture.stats
        assert codes.refused_full + codes.refused_broken == refused + len(taken) - len(durable)

    asyncio.run(act())


# --- lanes ----------------------------------------------------------------------------------------


async def test_topics_find_their_lane() -> None:
    topics = CaptureConfig(
        topics=("#",), ignore=("local/#", "devices/+/debug"), urgent=("+/+/alarm", "doors/#")
    )
    async with capturing(Disk(), topics=topics) as capture:
        assert capture.lane("devices/d1/temperature") == Lane.LIVE
        assert capture.lane("devices/d1/alarm") == Lane.URGENT
        assert capture.lane("doors") == Lane.URGENT
        assert capture.lane("devices/d1/debug") is None
        assert capture.lane("local/x/alarm") is None
        assert capture.lane("$SYS/broker/load") is None
        assert not capture.exclusive(Lane.LIVE)


async def test_a_topic_that_is_not_captured_is_not_urgent() -> None:
    topics = CaptureConfig(topics=("devices/#",), urgent=("#",))
    async with capturing(Disk(), topics=topics) as capture:
        assert capture.lane("other") is None
        assert capture.lane("devices/d1") == Lane.URGENT


@pytest.mark.parametrize("bad", ["a/#/b", "", "a+", "x\0"])
@pytest.mark.parametrize("key", ["topics", "ignore", "urgent"])
def test_a_filter_that_is_none_is_refused(key: str, bad: str) -> None:
    with pytest.raises(ValueError, match=f"'{key}'"):
        CaptureConfig(**{key: (bad,)})  # type: ignore[arg-type]


# --- with the real journal ------------------------------------------------------------------------


async def test_what_is_settled_is_in_the_file(tmp_path: Path) -> None:
    answers = Answers()
    async with journal_at(tmp_path) as journal, capturing(journal) as capture:
        for at in range(20):
            capture.take(run_of(3, settled=answers, client_id=f"c{at}"))
            if at % 7 == 0:
                await answers.until(at + 1)
        await answers.until(20)
        assert answers.codes == [0] * 20
        assert journal.last_seq == 60
        clients = [s.client_id for c in await read_all(journal) for s in unpack_body(c.body)]
        assert clients == [f"c{at}" for at in range(20)]


async def test_a_full_lane_asks_back_after_a_trim(tmp_path: Path) -> None:
    answers, relieved = Answers(), asyncio.Event()
    config = journal_config(commit_window_ms=0, live=LaneConfig(bytes_max=500_000))
    async with journal_at(tmp_path, config) as journal, capturing(journal, config) as capture:
        taken = 0
        while capture.take(run_of(size=10_000, settled=answers)) == 0:
            taken += 1
            await answers.until(taken)
        assert taken == 49
        assert 0 not in set(answers.codes) - {0}
        capture.when_relieved(relieved.set)
        await journal.trim(Lane.LIVE, journal.last_seq)
        await journal.maintain()
        await relieved.wait()
        assert capture.take(run_of(size=10_000, settled=answers)) == 0
        await answers.until(taken + 1)
        assert answers.codes == [0] * (taken + 1)


async def test_a_lane_that_drops_never_refuses(tmp_path: Path) -> None:
    answers = Answers()
    config = journal_config(commit_window_ms=0, live=drop_oldest(bytes_max=300_000))
    async with journal_at(tmp_path, config) as journal, capturing(journal, config) as capture:
        for at in range(100):
            assert capture.take(run_of(size=10_000, settled=answers)) == 0
            await answers.until(at + 1)
        assert answers.codes == [0] * 100
        kept = seqs_in(await read_all(journal))
        [lost] = journal.tombstones()
        assert lost.count + len(kept) == 100
