"""The journal in use: commits, reading by lane, trims, dead letters, damage met on the way."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from edge.contract import Commit, JournalReader, Lane
from edge.journal import Journal
from edge.journal_schema import JournalError, key_of
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    body_of,
    fill,
    flip,
    journal_at,
    journal_config,
    look,
    payloads_in,
    read_all,
    seqs_in,
)

NO_TAIL = journal_config(tail_bytes_max=0)
MIB = 1024 * 1024


def as_reader(journal: Journal) -> JournalReader:
    """Let the type checker compare the journal with the contract."""
    return journal


async def rows_on_disk(path: Path) -> list[tuple[int, int]]:
    """Return (lane, first_seq) of the rows of a journal that is open."""
    with closing(sqlite3.connect(path / "journal.db")) as connection:
        return connection.execute("SELECT lane, first_seq FROM journal").fetchall()


async def test_what_is_settled_lies_before_all_that_waits(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        assert journal.settled_seq == 0
        await journal.append([(Lane.URGENT, 2, body_of([b"u1", b"u2"])), (Lane.LIVE, 1, b"l")])
        await journal.append([(Lane.LIVE, 3, body_of([b"a", b"b", b"c"]))])
        assert journal.settled_seq == 0
        await journal.trim(Lane.LIVE, 6, after_seq=4)  # the newest first, as after an outage
        await journal.trim(Lane.URGENT, 1)
        assert journal.settled_seq == 1
        await journal.trim(Lane.URGENT, 2)
        assert journal.settled_seq == 2
        await journal.trim(Lane.LIVE, 4)
        assert journal.settled_seq == 6
        await fill(journal, 1)
        seq = journal.last_seq
        await journal.set_aside(Lane.LIVE, seq, seq, "refused", b"letter")
        assert journal.settled_seq is None  # the cloud has not heard of the tombstone
        await journal.forget_tombstones(journal.tombstones())
        await journal.trim(Lane.LIVE, seq)
        assert journal.settled_seq == seq
    async with journal_at(tmp_path) as journal:
        assert journal.settled_seq == seq


async def test_a_commit_gives_seqs_in_order_urgent_first(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        assert journal.last_seq == 0
        await journal.append([(Lane.URGENT, 2, body_of([b"u1", b"u2"])), (Lane.LIVE, 1, b"l")])
        await journal.append([(Lane.LIVE, 3, body_of([b"a", b"b", b"c"]))])
        assert journal.last_seq == 6
        assert seqs_in(await read_all(journal, Lane.URGENT)) == [1, 2]
        assert seqs_in(await read_all(journal, Lane.LIVE)) == [3, 4, 5, 6]


@pytest.mark.parametrize("config", [journal_config(), NO_TAIL], ids=["tail", "disk"])
async def test_reading_goes_on_from_any_seq(tmp_path: Path, config: object) -> None:
    async with journal_at(tmp_path, config) as journal:  # type: ignore[arg-type]
        for at in range(6):
            lane = Lane.URGENT if at % 3 == 2 else Lane.LIVE
            await fill(journal, 1, lane=lane, first=at * 3)
        live = [1, 2, 3, 4, 5, 6, 10, 11, 12, 13, 14, 15]
        for after in range(19):
            got = await read_all(journal, after_seq=after)
            seqs = seqs_in(got)
            expected = [seq for seq in live if seq > after]
            assert [seq for seq in seqs if seq > after] == expected
            assert len(seqs) - len(expected) < 3  # only the first commit begins before
            assert journal.pending(Lane.LIVE, after) is bool(expected)


@pytest.mark.parametrize("config", [journal_config(), NO_TAIL], ids=["tail", "disk"])
async def test_a_read_is_bounded_and_brings_at_least_one(tmp_path: Path, config: object) -> None:
    async with journal_at(tmp_path, config) as journal:  # type: ignore[arg-type]
        await fill(journal, 10, size=1000)
        size = len((await journal.read(Lane.LIVE, 0, bytes_max=1))[0].body)
        assert len(await journal.read(Lane.LIVE, 0, bytes_max=1)) == 1
        assert len(await journal.read(Lane.LIVE, 0, bytes_max=3 * size)) == 3
        assert len(await journal.read(Lane.LIVE, 0, bytes_max=3 * size + 1)) == 4
        assert await journal.read(Lane.LIVE, 30, bytes_max=size) == []


async def test_tail_and_disk_give_the_same_commits(tmp_path: Path) -> None:
    config = journal_config(tail_bytes_max=4000)
    async with journal_at(tmp_path, config) as journal:
        payloads = await fill(journal, 30, size=200)
        assert journal.stats().tail_bytes <= 4000
        commits = await read_all(journal, bytes_max=1000)
        assert payloads_in(commits) == payloads
        assert seqs_in(commits) == list(range(1, 91))


async def test_memory_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    config = journal_config(tail_bytes_max=100_000)
    async with journal_at(tmp_path, config) as journal:
        await fill(journal, 400, size=1000)
        stats = journal.stats()
        assert stats.lanes[Lane.LIVE].readings == 1200
        assert stats.lanes[Lane.LIVE].bytes > 1_200_000
        assert stats.tail_bytes <= 100_000


async def test_wait_returns_after_a_commit(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        waiting = asyncio.create_task(journal.wait())
        await asyncio.sleep(0)
        assert not waiting.done()
        await fill(journal, 1)
        await waiting


async def test_a_cancelled_wait_harms_nobody(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        first, second = (asyncio.create_task(journal.wait()) for _ in range(2))
        await asyncio.sleep(0)
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
        assert not second.done()
        await fill(journal, 1)
        await second


# --- trims ----------------------------------------------------------------------------------------


async def test_a_trim_is_carried_out_later_and_in_one_go(tmp_path: Path) -> None:
    clock = ManualClock()
    async with journal_at(tmp_path, clock=clock) as journal:
        await fill(journal, 10)
        for seq in range(1, 19):
            await journal.trim(Lane.LIVE, seq)
        assert journal.stats().lanes[Lane.LIVE].readings == 12
        await journal.maintain()
        assert len(await rows_on_disk(tmp_path)) == 10
        clock.advance(10)
        await journal.maintain()
        assert await rows_on_disk(tmp_path) == [(1, seq) for seq in (19, 22, 25, 28)]
        assert journal.stats().lanes[Lane.LIVE].readings == 12
        assert seqs_in(await read_all(journal)) == list(range(19, 31))


async def test_a_trim_in_the_middle_of_a_commit_keeps_its_rest(tmp_path: Path) -> None:
    async with journal_at(tmp_path, NO_TAIL) as journal:
        await fill(journal, 3)
        await journal.trim(Lane.LIVE, 5)
        await journal.flush()
        assert await rows_on_disk(tmp_path) == [(1, 4), (1, 7)]
        assert journal.stats().lanes[Lane.LIVE].readings == 4
        assert seqs_in(await journal.read(Lane.LIVE, 0, bytes_max=10_000)) == [4, 5, 6, 7, 8, 9]
    async with journal_at(tmp_path, NO_TAIL) as journal:
        stats = journal.stats().lanes[Lane.LIVE]
        assert (stats.gone_seq, stats.readings) == (5, 4)


async def test_lanes_are_trimmed_apart(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 2)
        await fill(journal, 2, lane=Lane.URGENT)
        await journal.trim(Lane.URGENT, 100)
        await journal.flush()
        assert not journal.pending(Lane.URGENT, 0)
        assert journal.stats().lanes[Lane.URGENT].readings == 0
        assert seqs_in(await read_all(journal)) == [1, 2, 3, 4, 5, 6]


async def test_a_trim_never_moves_back_nor_past_the_end(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 3)
        await journal.trim(Lane.LIVE, 1000)
        await journal.trim(Lane.LIVE, 2)
        assert journal.stats().lanes[Lane.LIVE].gone_seq == 9
        await fill(journal, 1)
        assert seqs_in(await read_all(journal)) == [10, 11, 12]


async def test_an_emptied_journal_keeps_its_place(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 4)
        await journal.trim(Lane.LIVE, 12)
    async with journal_at(tmp_path) as journal:
        assert journal.last_seq == 12
        assert journal.stats().lanes[Lane.LIVE].readings == 0
        assert not journal.pending(Lane.LIVE, 0)
        await fill(journal, 1)
        assert seqs_in(await read_all(journal)) == [13, 14, 15]


async def test_trimmed_space_is_written_again(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 20, size=20_000)
        await journal.maintain()
        full = journal.stats().file_bytes
        for turn in range(5):
            await journal.trim(Lane.LIVE, journal.last_seq)
            await journal.flush()
            await fill(journal, 20, size=20_000, first=turn)
        await journal.maintain()
        assert journal.stats().file_bytes < full + 6 * MIB  # and a log of 4 MiB


async def test_a_large_file_shrinks_once_it_is_drained(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 45, size=300_000)
        await journal.trim(Lane.LIVE, journal.last_seq - 3)
        await journal.flush()
        assert (tmp_path / "journal.db").stat().st_size > 34 * MIB
        await journal.maintain()
        assert (tmp_path / "journal.db").stat().st_size < 2 * MIB
        assert journal.stats().file_bytes < 2 * MIB
        assert len(seqs_in(await read_all(journal))) == 3
        await fill(journal, 1)


async def test_a_log_held_up_by_a_reader_is_cut_once_it_is_gone(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        with closing(sqlite3.connect(tmp_path / "journal.db")) as other:
            other.execute("BEGIN")
            other.execute("SELECT * FROM meta").fetchall()
            await fill(journal, 20, size=400_000)
            assert (tmp_path / "journal.db-wal").stat().st_size > 20 * MIB
        await journal.maintain()
        assert (tmp_path / "journal.db-wal").stat().st_size == 0
        assert len(seqs_in(await read_all(journal))) == 60


# --- tombstones and dead letters ------------------------------------------------------------------


async def test_what_is_set_aside_is_kept_with_its_tombstone(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 3)
        await journal.set_aside(Lane.LIVE, 4, 4, "bomb", b"the batch")
        [tombstone] = journal.tombstones()
        assert (tombstone.first_seq, tombstone.last_seq, tombstone.count) == (4, 4, 1)
        assert tombstone.reason == "refused"
    assert look(tmp_path, "SELECT lane, first_seq, last_seq, cause, body FROM dead_letters") == [
        (1, 4, 4, "bomb", b"the batch")
    ]
    async with journal_at(tmp_path) as journal:
        assert list(journal.tombstones()) == [tombstone]
        await journal.set_aside(Lane.LIVE, 4, 4, "bomb", b"the batch")
        assert len(journal.tombstones()) == 1


async def test_tombstones_are_forgotten_when_told(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        for seq in (1, 2, 3):
            await journal.set_aside(Lane.LIVE, seq, seq, "x", b"")
        first, second, third = journal.tombstones()
        await journal.forget_tombstones([first, third])
        await journal.forget_tombstones([first])
        assert list(journal.tombstones()) == [second]
    async with journal_at(tmp_path) as journal:
        assert list(journal.tombstones()) == [second]


async def test_dead_letters_are_bounded_and_their_tombstones_stay(tmp_path: Path) -> None:
    async with journal_at(tmp_path, journal_config(dead_letters_bytes_max=2500)) as journal:
        for seq in range(1, 6):
            await journal.set_aside(Lane.LIVE, seq, seq, "x", bytes(1000))
        assert len(journal.tombstones()) == 5
    assert look(tmp_path, "SELECT first_seq FROM dead_letters") == [(4,), (5,)]


# --- damage met in use ----------------------------------------------------------------------------


async def test_a_row_that_does_not_check_is_skipped_with_a_tombstone(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        payloads = await fill(journal, 6)
    look(tmp_path, "UPDATE commits SET time_us = 7 WHERE key = ?", key_of(Lane.LIVE, 4))
    look(tmp_path, "UPDATE commits SET crc32 = 7 WHERE key = ?", key_of(Lane.LIVE, 16))
    async with journal_at(tmp_path, NO_TAIL) as journal:
        commits = await read_all(journal)
        assert payloads_in(commits) == payloads[:3] + payloads[6:15]
        assert not journal.pending(Lane.LIVE, 15)
        lost = [(t.first_seq, t.last_seq, t.count, t.reason) for t in journal.tombstones()]
        assert lost == [(4, 6, 3, "damaged"), (16, 18, 3, "damaged")]
        stats = journal.stats()
        assert (stats.damaged_rows, stats.lanes[Lane.LIVE].readings) == (2, 12)
        await fill(journal, 1)
        assert seqs_in(await read_all(journal, after_seq=15)) == [19, 20, 21]
    assert look(tmp_path, "SELECT first_seq, cause FROM dead_letters") == [
        (4, "damaged"),
        (16, "damaged"),
    ]


async def test_a_journal_of_damaged_rows_only_is_empty(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 2)
    look(tmp_path, "UPDATE commits SET crc32 = 7")
    async with journal_at(tmp_path, NO_TAIL) as journal:
        assert await read_all(journal) == []
        assert not journal.pending(Lane.LIVE, 0)
        assert journal.stats().lanes[Lane.LIVE].readings == 0
        assert sum(t.count for t in journal.tombstones()) == 6


def break_page(path: Path, table: str) -> None:
    """Turn over the head of a table's root page in a file that is open."""
    with closing(sqlite3.connect(path / "journal.db")) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        sql = "SELECT rootpage FROM sqlite_schema WHERE name = ?"
        (root,) = connection.execute(sql, (table,)).fetchone()
    flip(path / "journal.db", (root - 1) * 4096, 12)


async def damaged_while_open(path: Path, config: object) -> tuple[Journal, list[bytes]]:
    """Return an open journal whose table of commits has just been damaged on the disk."""
    journal = await Journal.open(path / "journal.db", config, ManualClock())  # type: ignore[arg-type]
    payloads = await fill(journal, 40, size=900)
    # the next statement must find the damage on the disk, not its own cache
    for connection in (journal._keeper.file._writer, journal._keeper.file._reader):
        await connection.run(lambda c: c.execute("PRAGMA cache_size = 0").fetchall())
        await connection.run(lambda c: c.execute("PRAGMA shrink_memory").fetchall())
    break_page(path, "commits")
    return journal, payloads


async def test_damage_met_by_a_commit_is_repaired_from_memory(tmp_path: Path) -> None:
    journal, payloads = await damaged_while_open(tmp_path, journal_config())
    epoch = journal.epoch
    with pytest.raises(JournalError) as caught:
        await fill(journal, 1, first=120)
    assert caught.value.kind == "damaged"
    await fill(journal, 1, first=120)
    assert journal.epoch == epoch
    commits = await read_all(journal)
    assert payloads_in(commits)[:120] == payloads
    assert journal.last_seq == 123
    assert list(journal.tombstones()) == []
    assert list(tmp_path.glob("journal.db.damaged-*"))
    await journal.close()
    async with journal_at(tmp_path) as journal:
        assert len(seqs_in(await read_all(journal))) == 123


async def test_damage_met_by_a_read_is_repaired_and_the_loss_recorded(tmp_path: Path) -> None:
    journal, _ = await damaged_while_open(tmp_path, NO_TAIL)
    assert await read_all(journal) == []
    [lost] = journal.tombstones()
    assert (lost.first_seq, lost.last_seq, lost.count) == (1, 120, 120)
    await fill(journal, 1)
    assert seqs_in(await read_all(journal)) == [121, 122, 123]
    await journal.close()


# --- the rest -------------------------------------------------------------------------------------


async def test_figures(tmp_path: Path) -> None:
    clock = ManualClock()
    async with journal_at(tmp_path, clock=clock) as journal:
        await fill(journal, 2)
        clock.advance(60)
        await fill(journal, 1, lane=Lane.URGENT)
        await journal.maintain()
        stats = journal.stats()
        live, urgent = stats.lanes[Lane.LIVE], stats.lanes[Lane.URGENT]
        assert (live.readings, live.last_seq, live.gone_seq) == (6, 6, 0)
        assert (urgent.readings, urgent.last_seq) == (3, 9)
        assert live.oldest_age_s == pytest.approx(60)
        assert urgent.oldest_age_s == 0
        assert (stats.commits, stats.readings, stats.failed_commits) == (3, 9, 0)
        assert stats.body_bytes == live.bytes + urgent.bytes - 3 * 64
        assert stats.file_bytes >= (tmp_path / "journal.db").stat().st_size
        assert stats.disk_free_bytes > 0
        assert stats.epoch == journal.epoch
        await journal.trim(Lane.LIVE, 6)
        assert journal.stats().lanes[Lane.LIVE].oldest_age_s == 0


async def test_age_does_not_follow_a_clock_that_is_set(tmp_path: Path) -> None:
    clock = ManualClock()
    async with journal_at(tmp_path, clock=clock) as journal:
        await fill(journal, 1)
        clock.advance(5)
        clock.set_wall(4_000_000_000_000_000)
        assert journal.stats().lanes[Lane.LIVE].oldest_age_s == pytest.approx(5)


async def test_a_journal_can_be_closed_twice_and_then_refuses(tmp_path: Path) -> None:
    journal = await Journal.open(tmp_path / "journal.db", journal_config(), ManualClock())
    await fill(journal, 1)
    await journal.close()
    await journal.close()
    with pytest.raises(JournalError, match="closed"):
        await fill(journal, 1)
    assert look(tmp_path, "SELECT clean, last_seq FROM meta") == [(1, 3)]


async def test_commits_and_reads_and_trims_at_once(tmp_path: Path) -> None:
    """One writes, one reads and trims behind it, from memory and disk; nothing is lost."""
    config = journal_config(tail_bytes_max=3000)
    async with journal_at(tmp_path, config) as journal:
        got: list[Commit] = []

        async def drain() -> None:
            after = 0
            while after < 600:
                if not journal.pending(Lane.LIVE, after):
                    await journal.wait()
                    continue
                for commit in await journal.read(Lane.LIVE, after, bytes_max=2000):
                    got.append(commit)
                    after = commit.first_seq + commit.count - 1
                await journal.trim(Lane.LIVE, after)
                if after % 5 == 0:
                    await journal.flush()

        async with asyncio.TaskGroup() as group:
            group.create_task(drain())
            payloads = await fill(journal, 200)
        assert payloads_in(got) == payloads
        await journal.flush()
        assert await rows_on_disk(tmp_path) == []
