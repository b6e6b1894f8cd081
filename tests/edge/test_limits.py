"""Limits of the journal: sizes, ages, the disk's reserve, and what is done at them."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.config import LaneConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.journal_keeper import NO_LIMIT
from edge.journal_schema import ROW_BYTES, JournalError
from edge.limits import WAL_BYTES_MAX, Space, cost_bytes, lane_room_bytes, room_of, slack_of
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    body_of,
    drop_oldest,
    fill,
    journal_at,
    journal_config,
    look,
    payloads_in,
    read_all,
    seqs_in,
)

KIB, MIB = 1024, 1024 * 1024
HUGE = 1 << 60


# --- arithmetic -----------------------------------------------------------------------------------


def test_room_ends_at_the_size_of_the_files() -> None:
    config = journal_config(file_bytes_max=100 * MIB)
    space = Space(60 * MIB, 5 * MIB, 1 * MIB, HUGE)
    room = room_of(space, config)
    assert (room.bytes, room.reason) == (100 * MIB - 60 * MIB - WAL_BYTES_MAX, "evicted-bytes")


def test_a_log_longer_than_it_should_be_counts_in_full() -> None:
    config = journal_config(file_bytes_max=100 * MIB)
    assert room_of(Space(60 * MIB, 0, 30 * MIB, HUGE), config).bytes == 10 * MIB


def test_room_ends_at_the_reserve_of_the_disk() -> None:
    config = journal_config(file_bytes_max=100 * MIB, disk_reserve_bytes=10 * MIB)
    room = room_of(Space(1 * MIB, 2 * MIB, WAL_BYTES_MAX, 13 * MIB), config)
    assert (room.bytes, room.reason) == (5 * MIB, "evicted-disk")


def test_below_the_reserve_pages_that_are_free_may_be_written() -> None:
    config = journal_config(disk_reserve_bytes=10 * MIB)
    room = room_of(Space(1 * MIB, 2 * MIB, WAL_BYTES_MAX, 3 * MIB), config)
    assert (room.bytes, room.reason) == (2 * MIB, "evicted-disk")


def test_live_leaves_room_for_urgent() -> None:
    config = journal_config(file_bytes_max=160 * MIB)
    margin = MIB // 4
    assert lane_room_bytes(Lane.URGENT, 0, 50 * MIB, config) == 50 * MIB - margin
    assert lane_room_bytes(Lane.LIVE, 0, 50 * MIB, config) == 40 * MIB - margin


@given(st.integers(0, 300 * MIB), st.floats(0, 1))
def test_on_a_small_disk_live_has_most_of_it_and_urgent_its_part(disk: int, filled: float) -> None:
    config = journal_config(file_bytes_max=4096 * MIB)
    live = int(disk * filled * 0.75)
    room = lane_room_bytes(Lane.LIVE, live, disk - live, config)
    urgent = lane_room_bytes(Lane.URGENT, 0, disk - live, config)
    assert room + live >= disk * 3 // 4 - MIB // 4 - 1
    assert urgent - room >= min(64 * MIB, (disk - MIB // 4) // 4 - 1)


def test_a_lanes_own_limit_counts_too() -> None:
    config = journal_config(urgent=LaneConfig(bytes_max=3 * MIB))
    assert lane_room_bytes(Lane.URGENT, 1 * MIB, 50 * MIB, config) == 2 * MIB
    assert lane_room_bytes(Lane.URGENT, 1 * MIB, 1 * MIB, config) == 3 * MIB // 4


@given(st.integers(0, 10_000_000))
def test_a_row_never_costs_more_pages_than_reckoned(size: int) -> None:
    pages = 1 if size < 4000 else 1 + -(-size // 4092)
    assert cost_bytes(size) >= pages * 4096


def test_slack_is_a_part_of_the_limit_and_never_much() -> None:
    assert slack_of(journal_config(), 160 * KIB) == 10 * KIB
    assert slack_of(journal_config(), 0) == MIB


# --- a lane's bytes -------------------------------------------------------------------------------


async def test_a_lane_that_refuses_says_how_much_it_takes(tmp_path: Path) -> None:
    config = journal_config(live=LaneConfig(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        assert journal.lane_room(Lane.LIVE) == 10_000
        await fill(journal, 2, size=1000)
        used = journal.stats().lanes[Lane.LIVE].bytes
        assert journal.lane_room(Lane.LIVE) == 10_000 - used
        assert journal.lane_room(Lane.URGENT) > 10 * MIB
        with pytest.raises(JournalError, match="the live lane holds its 10000 bytes") as caught:
            await fill(journal, 2, size=1000)
        assert caught.value.kind == "full"
        assert journal.last_seq == 9  # the first of the two still fitted
        await fill(journal, 1, lane=Lane.URGENT, size=1000)


async def test_a_trim_makes_room_again_at_once(tmp_path: Path) -> None:
    config = journal_config(live=LaneConfig(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 3, size=1000)
        await journal.trim(Lane.LIVE, 6)
        await fill(journal, 2, size=1000)
        assert seqs_in(await read_all(journal)) == list(range(7, 16))


async def test_a_lane_that_drops_takes_the_newest_and_says_what_went(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=20_000))
    async with journal_at(tmp_path, config) as journal:
        assert journal.lane_room(Lane.LIVE) == NO_LIMIT
        payloads = await fill(journal, 40, size=500)
        kept = await read_all(journal)
        seqs = seqs_in(kept)
        assert payloads_in(kept) == payloads[-len(seqs) :]
        [lost] = journal.tombstones()
        assert (lost.first_seq, lost.last_seq) == (1, seqs[0] - 1)
        assert (lost.count, lost.reason) == (seqs[0] - 1, "evicted-bytes")
        stats = journal.stats()
        assert 20_000 >= stats.lanes[Lane.LIVE].bytes > 15_000
        assert stats.evicted == {"evicted-bytes": lost.count}
    async with journal_at(tmp_path, config) as journal:
        assert list(journal.tombstones()) == [lost]
        assert seqs_in(await read_all(journal)) == seqs


async def test_only_what_was_not_trimmed_gets_a_tombstone(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 5, size=500)
        await journal.trim(Lane.LIVE, 5)
        await fill(journal, 5, size=500)
        tombstones = list(journal.tombstones())
        first_kept = seqs_in(await read_all(journal))[0]
        assert tombstones[0].first_seq == 6
        assert tombstones[-1].last_seq == first_kept - 1
        assert sum(t.count for t in tombstones) == first_kept - 6


async def test_what_was_trimmed_between_two_evictions_is_not_lost(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 7, size=500)
        before = journal.stats().tombstones
        assert before == 1
        await journal.trim(Lane.LIVE, journal.stats().lanes[Lane.LIVE].gone_seq + 3)
        await fill(journal, 7, size=500)
        first, second = journal.tombstones()
        assert second.first_seq == first.last_seq + 4
        kept = seqs_in(await read_all(journal))
        assert first.count + 3 + second.count == kept[0] - 1


async def test_seqs_of_the_other_lane_are_not_counted_as_lost(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=8_000))
    async with journal_at(tmp_path, config) as journal:
        for at in range(12):
            await journal.append(
                [
                    (Lane.URGENT, 1, body_of([b"u%d" % at])),
                    (Lane.LIVE, 2, body_of([b"%d" % at, bytes(1000)])),
                ]
            )
        kept = seqs_in(await read_all(journal))
        [lost] = journal.tombstones()
        assert lost.count == 24 - len(kept)
        assert (lost.first_seq, lost.last_seq) == (2, kept[0] - 2)
        assert len(seqs_in(await read_all(journal, Lane.URGENT))) == 12


async def test_a_tombstone_handed_out_does_not_grow(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 10, size=500)
        [first] = journal.tombstones()
        await fill(journal, 10, size=500)
        again, second = journal.tombstones()
        assert again == first
        assert second.first_seq == first.last_seq + 1
        await journal.forget_tombstones([first])
        assert list(journal.tombstones()) == [second]


async def test_evictions_between_two_looks_share_a_tombstone(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=10_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 60, size=500)
        assert journal.stats().tombstones == 1
    assert len(look(tmp_path, "SELECT * FROM tombstones")) == 1


async def test_a_commit_larger_than_its_lane_is_refused(tmp_path: Path) -> None:
    config = journal_config(live=drop_oldest(bytes_max=5_000))
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 1, size=100)
        with pytest.raises(JournalError, match="one commit is more than the 5000 bytes"):
            await fill(journal, 1, size=3_000)
        await fill(journal, 1, size=100)


# --- the journal's bytes and the disk's reserve ---------------------------------------------------


async def until_refused(journal: Journal, lane: Lane, size: int) -> int:
    """Commit readings of `size` until the journal is full; return how many went in."""
    for count in range(10_000):
        try:
            await fill(journal, 1, lane=lane, readings=1, size=size)
        except JournalError as error:
            if error.kind == "full":
                return count
            raise
    raise AssertionError("never full")


async def test_the_files_never_pass_their_limit(tmp_path: Path) -> None:
    limit = 16 * MIB
    async with journal_at(tmp_path, journal_config(file_bytes_max=limit)) as journal:
        count = await until_refused(journal, Lane.LIVE, 200 * KIB)
        assert count > 50
        files = sum(file.stat().st_size for file in tmp_path.glob("journal.db*"))
        assert files <= limit + 64 * KIB  # the log's index
        assert journal.lane_room(Lane.LIVE) < 200 * KIB
        await journal.trim(Lane.LIVE, 20)
        assert await until_refused(journal, Lane.LIVE, 200 * KIB) >= 19
    assert (tmp_path / "journal.db").stat().st_size <= limit


async def test_live_does_not_take_the_room_of_urgent(tmp_path: Path) -> None:
    async with journal_at(tmp_path, journal_config(file_bytes_max=16 * MIB)) as journal:
        while journal.lane_room(Lane.LIVE) > 100 * KIB:
            await fill(journal, 1, readings=1, size=90 * KIB)
        assert journal.lane_room(Lane.URGENT) > 600 * KIB
        await fill(journal, 5, lane=Lane.URGENT, readings=1, size=100 * KIB)


async def test_a_full_journal_drops_the_oldest_of_a_lane_that_may(tmp_path: Path) -> None:
    config = journal_config(file_bytes_max=16 * MIB, live=drop_oldest())
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 12, lane=Lane.URGENT, readings=1, size=100 * KIB)
        await fill(journal, 120, readings=1, size=200 * KIB)
        files = sum(file.stat().st_size for file in tmp_path.glob("journal.db*"))
        assert files <= 16 * MIB + 64 * KIB
        kept = seqs_in(await read_all(journal))
        [lost] = journal.tombstones()
        assert (lost.first_seq, lost.last_seq) == (13, kept[0] - 1)
        assert lost.reason == "evicted-bytes"
        assert kept[-1] == journal.last_seq == 132
        assert len(seqs_in(await read_all(journal, Lane.URGENT))) == 12


async def test_the_disks_reserve_is_left_alone(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 4, size=50 * KIB)
    config = journal_config(disk_reserve_bytes=HUGE)
    async with journal_at(tmp_path, config) as journal:
        assert journal.lane_room(Lane.LIVE) < 0
        with pytest.raises(JournalError, match="the disk's reserve is reached"):
            await fill(journal, 1, size=50 * KIB)
        await journal.trim(Lane.LIVE, 9)  # pages it holds already may be written
        await fill(journal, 1, size=50 * KIB)
        assert seqs_in(await read_all(journal)) == [10, 11, 12, 13, 14, 15]


async def test_at_the_disks_reserve_a_lane_may_drop(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 8, size=50 * KIB)
    config = journal_config(disk_reserve_bytes=HUGE, live=drop_oldest())
    async with journal_at(tmp_path, config) as journal:
        before = (tmp_path / "journal.db").stat().st_size
        await fill(journal, 20, size=50 * KIB)
        kept = seqs_in(await read_all(journal))
        [lost] = journal.tombstones()
        assert (lost.first_seq, lost.last_seq, lost.reason) == (1, kept[0] - 1, "evicted-disk")
        assert kept[-1] == 84
    assert (tmp_path / "journal.db").stat().st_size <= before + 64 * KIB


# --- age ------------------------------------------------------------------------------------------


async def test_readings_past_their_age_go_with_a_tombstone(tmp_path: Path) -> None:
    clock = ManualClock()
    config = journal_config(live=LaneConfig(age_max_s=3600))
    async with journal_at(tmp_path, config, clock) as journal:
        await fill(journal, 3)
        await fill(journal, 1, lane=Lane.URGENT)
        clock.advance(2000)
        await fill(journal, 2)
        await journal.maintain()
        assert not journal.tombstones()
        clock.advance(2000)
        await journal.maintain()
        [lost] = journal.tombstones()
        assert (lost.first_seq, lost.last_seq, lost.reason) == (1, 9, "evicted-age")
        assert seqs_in(await read_all(journal)) == [13, 14, 15, 16, 17, 18]
        assert len(seqs_in(await read_all(journal, Lane.URGENT))) == 3


async def test_age_over_a_boot_goes_by_the_wall_clock(tmp_path: Path) -> None:
    config = journal_config(live=LaneConfig(age_max_s=3600))
    async with journal_at(tmp_path, config, ManualClock()) as journal:
        await fill(journal, 3)
    late = ManualClock(1_700_000_000_000_000 + 4000 * 1_000_000, 1.0, "boot-2")
    async with journal_at(tmp_path, config, late) as journal:
        await journal.maintain()
        assert [t.reason for t in journal.tombstones()] == ["evicted-age"]
        assert not journal.pending(Lane.LIVE, 0)


async def test_a_clock_not_yet_set_makes_nothing_old(tmp_path: Path) -> None:
    config = journal_config(live=LaneConfig(age_max_s=3600))
    async with journal_at(tmp_path, config, ManualClock()) as journal:
        await fill(journal, 3)
    async with journal_at(tmp_path, config, ManualClock(0, 1.0, "boot-2")) as journal:
        await journal.maintain()
        assert not journal.tombstones()


async def test_bytes_of_rows_are_counted_as_documented(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await journal.append([(Lane.LIVE, 1, b"x" * 1000)])
        assert journal.stats().lanes[Lane.LIVE].bytes == 1000 + ROW_BYTES
    assert look(tmp_path, "SELECT readings, bytes FROM lanes WHERE lane = 1") == [(1, 1064)]
