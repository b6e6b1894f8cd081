"""Trims out of order: what a live lane has had acknowledged while its backlog still drains."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from bridge.intervals import IntervalSet
from edge.contract import Lane
from edge.journal import Journal
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    drop_oldest,
    fill,
    journal_at,
    journal_config,
    look,
    read_all,
    seqs_in,
)

NO_TAIL = journal_config(tail_bytes_max=0)


def rows_of(path: Path) -> list[int]:
    """Return the first seq of every row on the disk."""
    return [
        int(row[0]) for row in look(path, "SELECT first_seq FROM journal ORDER BY lane, first_seq")
    ]


def killed(folder: Path, name: str = "killed") -> Path:
    """Return a copy of the files as a SIGKILL would leave them now."""
    target = folder.with_name(f"{folder.name}-{name}")
    target.mkdir()
    for file in folder.glob("journal.db*"):
        shutil.copy(file, target)
    return target


async def left(journal: Journal) -> list[int]:
    """Return the seqs that an uplink which knows nothing would send."""
    return seqs_in(await read_all(journal))


async def test_rows_acknowledged_past_a_backlog_leave_the_disk_at_once(tmp_path: Path) -> None:
    async with journal_at(tmp_path, NO_TAIL) as journal:
        await fill(journal, 10)
        await journal.trim(Lane.LIVE, 24, after_seq=15)
        await journal.flush()
        assert rows_of(tmp_path) == [1, 4, 7, 10, 13, 25, 28]
        assert journal.stats().lanes[Lane.LIVE].readings == 21
        assert await left(journal) == [*range(1, 16), *range(25, 31)]


async def test_rows_of_which_a_part_is_acknowledged_stay_whole(tmp_path: Path) -> None:
    async with journal_at(tmp_path, NO_TAIL) as journal:
        await fill(journal, 6)
        await journal.trim(Lane.LIVE, 14, after_seq=7)
        await journal.flush()
        assert rows_of(tmp_path) == [1, 4, 7, 13, 16]
        await journal.trim(Lane.LIVE, 15, after_seq=14)
        await journal.flush()
        assert rows_of(tmp_path) == [1, 4, 7, 16]


async def test_when_the_backlog_is_through_the_journal_is_trimmed_past_both(
    tmp_path: Path,
) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 10)
        await journal.trim(Lane.LIVE, 27, after_seq=15)
        await journal.flush()
        await journal.trim(Lane.LIVE, 9)
        assert journal.stats().lanes[Lane.LIVE].gone_seq == 9
        await journal.trim(Lane.LIVE, 15, after_seq=9)
        assert journal.stats().lanes[Lane.LIVE].gone_seq == 27
        assert journal.stats().lanes[Lane.LIVE].readings == 3
        await journal.flush()
        assert rows_of(tmp_path) == [28]
    async with journal_at(tmp_path) as journal:
        assert await left(journal) == [28, 29, 30]
        assert journal.stats().lanes[Lane.LIVE].gone_seq == 27


async def test_no_seq_is_given_twice_after_a_kill_although_the_newest_rows_are_gone(
    tmp_path: Path,
) -> None:
    async with journal_at(tmp_path, NO_TAIL) as journal:
        await fill(journal, 10)
        await journal.trim(Lane.LIVE, 30, after_seq=15)
        await journal.flush()
        copy = killed(tmp_path)
    async with journal_at(copy, NO_TAIL) as journal:
        assert journal.last_seq == 30
        assert await left(journal) == list(range(1, 16))
        await fill(journal, 1)
        assert journal.last_seq == 33


async def test_after_a_kill_the_backlog_can_be_trimmed_to_its_end(tmp_path: Path) -> None:
    async with journal_at(tmp_path, NO_TAIL) as journal:
        await fill(journal, 10)
        await journal.trim(Lane.LIVE, 30, after_seq=15)
        await journal.flush()
        copy = killed(tmp_path)
    async with journal_at(copy, NO_TAIL) as journal:
        await fill(journal, 1)
        await journal.trim(Lane.LIVE, 33, after_seq=30)
        await journal.trim(Lane.LIVE, 30)
        assert journal.stats().lanes[Lane.LIVE].gone_seq == 33
        assert not journal.pending(Lane.LIVE, 0)


async def test_an_eviction_counts_only_what_was_not_acknowledged(tmp_path: Path) -> None:
    clock = ManualClock()
    config = journal_config(live=drop_oldest(age_max_s=100))
    async with journal_at(tmp_path, config, clock) as journal:
        await fill(journal, 10)
        await journal.trim(Lane.LIVE, 20, after_seq=15)
        await journal.flush()
        clock.advance(101)
        await fill(journal, 1)
        await journal.maintain()
        stones = journal.tombstones()
        assert sum(stone.count for stone in stones) == 25
        assert await left(journal) == [31, 32, 33]
        assert journal.stats().evicted == {"evicted-age": 25}


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tail", [True, False])
async def test_a_kill_at_any_point_keeps_what_was_not_acknowledged(
    tmp_path: Path, seed: int, tail: bool
) -> None:
    """Two cursors acknowledge at random; after every step a killed copy is opened."""
    rng = random.Random(seed)
    folder = tmp_path / "journal"
    folder.mkdir()
    acked = IntervalSet()
    clock = ManualClock()
    async with journal_at(folder, journal_config() if tail else NO_TAIL, clock) as journal:
        await fill(journal, 20)
        backlog, end = 0, journal.last_seq
        live = end
        for step in range(12):
            await fill(journal, rng.randrange(4), readings=rng.randrange(1, 6), first=step)
            if rng.random() < 0.7 and live < journal.last_seq:
                to = rng.randint(live + 1, journal.last_seq)
                acked.add(live + 1, to)
                await journal.trim(Lane.LIVE, to, after_seq=live)
                live = to
            if rng.random() < 0.7 and backlog < end:
                to = rng.randint(backlog + 1, end)
                acked.add(backlog + 1, to)
                await journal.trim(Lane.LIVE, to, after_seq=backlog)
                backlog = to
            clock.advance(rng.choice([0, 10]))
            await journal.maintain()
            assert journal.stats().lanes[Lane.LIVE].readings >= journal.last_seq - acked.count()
            copy = killed(folder, str(step))
            async with journal_at(copy, NO_TAIL) as after:
                assert after.last_seq == journal.last_seq
                assert after.tombstones() == []
                seqs = await left(after)
                assert seqs == sorted(set(seqs))
                assert set(range(1, journal.last_seq + 1)) - set(seqs) <= {
                    seq for first, last in acked for seq in range(first, last + 1)
                }


async def test_what_is_older_than_a_moment_is_told_from_memory(tmp_path: Path) -> None:
    clock = ManualClock()
    begin_us = clock.wall_us()
    config = journal_config(tail_bytes_max=5000)
    async with journal_at(tmp_path, config, clock) as journal:
        for _ in range(20):
            await fill(journal, 1)
            clock.advance(1)
        assert journal.seq_before(Lane.LIVE, begin_us + 15_500_000) == 48
        assert journal.seq_before(Lane.LIVE, begin_us + 100_000_000) == 60
        older = journal.seq_before(Lane.LIVE, begin_us + 1)
        assert 3 < older < 48, "what the memory does not hold counts as older: it is"
        assert journal.seq_before(Lane.URGENT, begin_us) == 0
