"""Opening a journal: new, again, after a crash, damaged, somebody else's."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from bridge.runs import Run
from edge.contract import Lane, Tombstone
from edge.journal_build import new_path
from edge.journal_high import high_path, write_high
from edge.journal_open import Opened, lock_journal, open_journal
from edge.journal_recovery import Action
from edge.journal_schema import APPLICATION_ID, JournalError, key_of
from runtime.clock import ManualClock
from tests.kit.journal_files import (
    fill,
    flip,
    journal_at,
    journal_config,
    look,
    page_of,
    payloads_in,
    read_all,
    seqs_in,
)

RESERVED = 4096


def reopen(path: Path, clock: ManualClock | None = None, *, gateway: str = "") -> Opened:
    """Look at a journal as a start does, without using it."""
    path, clock = path / "journal.db", clock or ManualClock()
    return open_journal(path, "power-loss", clock, gateway=gateway)


async def crashed(
    path: Path, copy: Path, *, commits: int = 5, durability: str = "power-loss"
) -> list[bytes]:
    """Leave in `copy` what a journal with some commits has on the disk while it is open."""
    async with journal_at(path, journal_config(durability=durability)) as journal:
        payloads = await fill(journal, commits)
        shutil.copytree(path, copy)
    (copy / "journal.db-shm").unlink(missing_ok=True)
    return payloads


async def closed(path: Path, *, commits: int = 60, size: int = 900) -> list[bytes]:
    """Leave an orderly journal of many pages."""
    async with journal_at(path) as journal:
        return await fill(journal, commits, size=size)


def lost_seqs(lost: list[Tombstone]) -> set[int]:
    """Return every seq in the ranges of tombstones."""
    return {seq for each in lost for seq in range(each.first_seq, each.last_seq + 1)}


async def test_a_new_journal_has_an_epoch_and_no_readings(tmp_path: Path) -> None:
    opened = reopen(tmp_path)
    assert opened.actions == [Action.CREATE, Action.RESUME]
    assert 0 < opened.state.epoch < 2**63
    assert (opened.state.next_seq, opened.state.last_seq) == (1, 0)
    assert reopen(tmp_path).state.epoch == opened.state.epoch
    (tmp_path / "other").mkdir()
    assert reopen(tmp_path / "other").state.epoch != opened.state.epoch


async def test_the_file_says_what_it_is(tmp_path: Path) -> None:
    await closed(tmp_path, commits=1)
    head = (tmp_path / "journal.db").read_bytes()[:100]
    assert head[68:72] == b"TDJL"
    assert int.from_bytes(head[60:64], "big") == 1
    assert int.from_bytes(head[16:18], "big") == 4096
    assert look(tmp_path, "SELECT lane, first_seq, count FROM journal") == [(1, 1, 3)]
    assert not (tmp_path / "journal.db-wal").exists()


async def test_an_orderly_end_and_start_go_on_where_it_was(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        epoch = journal.epoch
        payloads = await fill(journal, 4)
        await fill(journal, 2, lane=Lane.URGENT)
    async with journal_at(tmp_path) as journal:
        assert (journal.epoch, journal.last_seq) == (epoch, 18)
        assert payloads_in(await read_all(journal)) == payloads
        assert len(seqs_in(await read_all(journal, Lane.URGENT))) == 6
        stats = journal.stats()
        assert stats.lanes[Lane.LIVE].readings == 12
        assert stats.lanes[Lane.URGENT].readings == 6
        await fill(journal, 1)
        assert journal.last_seq == 21


async def test_a_crash_loses_nothing_and_leaves_no_gap(tmp_path: Path) -> None:
    payloads = await crashed(tmp_path / "a", tmp_path / "b")
    opened = reopen(tmp_path / "b")
    assert opened.actions == [Action.RESUME]
    assert (opened.state.next_seq, opened.lost) == (16, [])
    async with journal_at(tmp_path / "b") as journal:
        assert payloads_in(await read_all(journal)) == payloads
        assert journal.stats().lanes[Lane.LIVE].readings == 15


async def test_process_crash_in_one_boot_leaves_no_gap(tmp_path: Path) -> None:
    await crashed(tmp_path / "a", tmp_path / "b", durability="process-crash")
    opened = reopen(tmp_path / "b")
    assert opened.actions == [Action.RESUME]
    assert opened.state.next_seq == 16


async def test_process_crash_over_a_boot_skips_all_that_was_reserved(tmp_path: Path) -> None:
    await crashed(tmp_path / "a", tmp_path / "b", durability="process-crash")
    opened = reopen(tmp_path / "b", ManualClock(boot_id="boot-2"))
    assert opened.actions == [Action.RESUME_PAST_RESERVED]
    assert opened.state.next_seq == RESERVED + 1
    [lost] = opened.lost
    assert (lost.first_seq, lost.last_seq, lost.reason) == (16, RESERVED, "damaged")
    assert lost.count == RESERVED - 15
    assert opened.state.tombstones == [lost]
    again = reopen(tmp_path / "b", ManualClock(boot_id="boot-2"))
    assert again.state.next_seq == RESERVED + 1
    assert again.lost == []


async def test_a_machine_without_a_boot_id_may_always_have_started_anew(tmp_path: Path) -> None:
    clock = ManualClock(boot_id="unknown")
    async with journal_at(tmp_path / "a", journal_config(durability="process-crash"), clock) as j:
        await fill(j, 2)
        shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert reopen(tmp_path / "b", clock).actions == [Action.RESUME_PAST_RESERVED]


def test_an_sqlite_that_is_too_old_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    with pytest.raises(JournalError, match=r"3\.37 or later is needed"):
        reopen(tmp_path)


async def test_a_log_damaged_in_its_middle_is_reported(tmp_path: Path) -> None:
    payloads = await crashed(tmp_path / "a", tmp_path / "b", commits=8)
    wal = tmp_path / "b" / "journal.db-wal"
    flip(wal, wal.read_bytes().index(payloads[12]))
    opened = reopen(tmp_path / "b")
    assert opened.actions == [Action.RESUME_PAST_RESERVED]
    [lost] = opened.lost
    assert 13 >= lost.first_seq > 1
    assert lost.last_seq == RESERVED == opened.state.next_seq - 1
    async with journal_at(tmp_path / "b") as journal:
        kept = payloads_in(await read_all(journal))
    assert kept == payloads[: lost.first_seq - 1]


async def test_a_log_torn_at_its_end_is_not_damage(tmp_path: Path) -> None:
    payloads = await crashed(tmp_path / "a", tmp_path / "b", commits=8)
    wal = tmp_path / "b" / "journal.db-wal"
    data = wal.read_bytes()
    wal.write_bytes(data[: data.rindex(payloads[-1])])
    opened = reopen(tmp_path / "b")
    assert opened.actions == [Action.RESUME]
    assert opened.state.next_seq == 22
    assert opened.lost == []


async def test_no_seq_is_ever_reserved_after_it_was_used(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await journal.append([(Lane.LIVE, RESERVED * 3, b"")])
        await journal.append([(Lane.LIVE, 1, b"")])
        with closing(sqlite3.connect(tmp_path / "journal.db")) as connection:
            (reserved,) = connection.execute("SELECT reserved_seq FROM meta").fetchone()
        assert reserved >= journal.last_seq == RESERVED * 3 + 1


# --- somebody else's ------------------------------------------------------------------------------


def not_a_database(path: Path) -> None:
    path.write_bytes(b"#!/bin/sh\necho hello\n" * 20)


def foreign(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name)")


def newer(path: Path) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 2")
        connection.execute("CREATE TABLE meta (new)")


@pytest.mark.parametrize(
    ("make", "kind", "said"),
    [
        (not_a_database, "foreign", "not an SQLite database"),
        (foreign, "foreign", "another program"),
        (newer, "newer", "later Tidegate"),
    ],
)
def test_what_is_not_ours_is_refused_and_not_touched(
    tmp_path: Path, make: Callable[[Path], None], kind: str, said: str
) -> None:
    path = tmp_path / "journal.db"
    make(path)
    before = path.read_bytes()
    with pytest.raises(JournalError, match=said) as caught:
        reopen(tmp_path)
    assert caught.value.kind == kind
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert path.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["journal.db"]


def test_two_processes_do_not_share_a_journal(tmp_path: Path) -> None:
    held = lock_journal(tmp_path / "journal.db")
    with pytest.raises(JournalError, match=f"in use by process {os.getpid()}") as caught:
        lock_journal(tmp_path / "journal.db")
    assert caught.value.kind == "in-use"
    os.close(held)
    os.close(lock_journal(tmp_path / "journal.db"))


async def test_a_closed_journal_releases_its_lock(tmp_path: Path) -> None:
    async with journal_at(tmp_path):
        with pytest.raises(JournalError, match="in use"):
            lock_journal(tmp_path / "journal.db")
    os.close(lock_journal(tmp_path / "journal.db"))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(JournalError, match="check owner, mode and mount") as caught:
        lock_journal(tmp_path / "file" / "journal.db")
    assert caught.value.kind == "unwritable"


# --- damage ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", bytes(8192)])
def test_an_empty_or_blank_file_is_moved_aside(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal.db").write_bytes(content)
    opened = reopen(tmp_path)
    assert opened.actions == [Action.START_OVER, Action.RESUME]
    assert opened.moved_to is not None
    assert opened.moved_to.read_bytes() == content


def damage_table(path: Path, table: str) -> None:
    (root,) = look(path, "SELECT rootpage FROM sqlite_schema WHERE name = ?", table)[0]
    flip(path / "journal.db", (root - 1) * 4096, 8)


async def test_a_journal_without_its_meta_is_salvaged_by_its_mark(tmp_path: Path) -> None:
    payloads = await closed(tmp_path)
    epoch = look(tmp_path, "SELECT epoch FROM meta")[0][0]
    damage_table(tmp_path, "meta")
    opened = reopen(tmp_path)
    assert opened.actions == [Action.SALVAGE, Action.RESUME]
    assert opened.state.epoch == epoch
    assert opened.state.next_seq == RESERVED + 1
    async with journal_at(tmp_path) as journal:
        assert payloads_in(await read_all(journal)) == payloads


@pytest.mark.parametrize("reason", ["no mark", "a torn mark", "another journal's", "no runs"])
async def test_a_journal_without_its_meta_starts_over_beside_the_old(
    tmp_path: Path, reason: str
) -> None:
    await closed(tmp_path)
    epoch = look(tmp_path, "SELECT epoch FROM meta")[0][0]
    damage_table(tmp_path, "meta")
    if reason == "no mark":
        high_path(tmp_path / "journal.db").unlink()
    elif reason == "a torn mark":
        flip(high_path(tmp_path / "journal.db"), 12)
    elif reason == "another journal's":
        write_high(tmp_path / "journal.db", 7, RESERVED, Run(5, 0))
    else:
        damage_table(tmp_path, "runs")
    damaged = (tmp_path / "journal.db").read_bytes()
    opened = reopen(tmp_path)
    assert opened.actions == [Action.START_OVER, Action.RESUME]
    assert opened.state.epoch != epoch
    assert opened.moved_to is not None
    assert opened.moved_to.read_bytes() == damaged


async def test_rows_on_a_damaged_page_are_lost_and_the_others_salvaged(tmp_path: Path) -> None:
    payloads = await closed(tmp_path)
    epoch = look(tmp_path, "SELECT epoch FROM meta")[0][0]
    flip(tmp_path / "journal.db", page_of(tmp_path, payloads[90]), 16)
    opened = reopen(tmp_path)
    assert opened.actions == [Action.SALVAGE, Action.RESUME]
    assert opened.state.epoch == epoch
    assert opened.moved_to is not None
    assert opened.moved_to.exists()
    missing = lost_seqs(opened.lost)
    assert 91 in missing
    assert max(missing) == RESERVED
    async with journal_at(tmp_path) as journal:
        kept = await read_all(journal)
        seqs = seqs_in(kept)
        assert len(seqs) > 150
        assert set(seqs) | missing == set(range(1, RESERVED + 1))
        assert not set(seqs) & missing
        assert payloads_in(kept) == [payloads[seq - 1] for seq in seqs]
        assert list(journal.tombstones()) == opened.lost
        await fill(journal, 1)
        assert journal.last_seq == RESERVED + 3


async def test_a_damaged_root_page_loses_all_rows_and_keeps_the_epoch(tmp_path: Path) -> None:
    await closed(tmp_path)
    epoch = look(tmp_path, "SELECT epoch FROM meta")[0][0]
    (root,) = look(tmp_path, "SELECT rootpage FROM sqlite_schema WHERE name = 'commits'")[0]
    flip(tmp_path / "journal.db", (root - 1) * 4096, 12)
    opened = reopen(tmp_path)
    assert opened.actions == [Action.SALVAGE, Action.RESUME]
    assert opened.state.epoch == epoch
    assert [(t.first_seq, t.last_seq, t.count) for t in opened.lost] == [(1, RESERVED, RESERVED)]
    assert opened.state.next_seq == RESERVED + 1


@pytest.mark.parametrize("table", ["owner", "runs", "unmet", "tombstones", "lanes"])
async def test_damage_that_the_check_of_a_large_file_did_not_look_for_is_salvaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str
) -> None:
    async with journal_at(tmp_path, gateway="gw-1") as journal:
        payloads = await fill(journal, 3)
    epoch = look(tmp_path, "SELECT epoch FROM meta")[0][0]
    damage_table(tmp_path, table)
    monkeypatch.setattr("edge.journal_open.CHECK_BYTES_MAX", 0)
    opened = reopen(tmp_path, gateway="gw-1")
    assert opened.actions == [Action.RESUME, Action.SALVAGE, Action.RESUME]
    assert opened.state.epoch == epoch
    async with journal_at(tmp_path) as journal:
        assert payloads_in(await read_all(journal)) == payloads


@pytest.mark.parametrize("seed", range(12))
async def test_damage_anywhere_is_survived_and_accounted_for(tmp_path: Path, seed: int) -> None:
    """Turn bytes over at seeded places: every seq is readable, right, or in a tombstone."""
    import random

    rng = random.Random(seed)
    async with journal_at(tmp_path) as journal:
        sent = await fill(journal, 40, size=700)
        sent += await fill(journal, 8, lane=Lane.URGENT, size=300, first=120)
        sent += await fill(journal, 20, size=5000, first=144)
    file = tmp_path / "journal.db"
    for _ in range(rng.randint(1, 4)):
        flip(file, rng.randrange(100, file.stat().st_size - 16), rng.randint(1, 16))
    async with journal_at(tmp_path) as journal:
        kept = [c for lane in Lane for c in await read_all(journal, lane)]
        lost = lost_seqs(list(journal.tombstones()))
        if list(tmp_path.glob("*.damaged-*")) and journal.last_seq == 0:
            return  # not even `meta` could be read: the file is aside, the epoch is new
        for seq, payload in zip(seqs_in(kept), payloads_in(kept), strict=True):
            assert payload == sent[seq - 1]
        assert set(seqs_in(kept)) | lost >= set(range(1, len(sent) + 1))
        await fill(journal, 1)
        assert journal.last_seq > len(sent)


async def test_tombstones_and_dead_letters_survive_salvage(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        payloads = await fill(journal, 60, size=900)
        await journal.set_aside(Lane.LIVE, 4, 6, "mode", b"a batch")
    flip(tmp_path / "journal.db", page_of(tmp_path, payloads[90]), 16)
    opened = reopen(tmp_path)
    assert "refused" in [t.reason for t in opened.state.tombstones]
    assert look(tmp_path, "SELECT first_seq, cause, body FROM dead_letters") == [
        (4, "mode", b"a batch")
    ]


async def test_what_was_trimmed_is_not_reported_as_lost(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        payloads = await fill(journal, 60, size=900)
        await journal.trim(Lane.LIVE, 60)
    flip(tmp_path / "journal.db", page_of(tmp_path, payloads[90]), 16)
    assert min(lost_seqs(reopen(tmp_path).lost)) > 60


async def test_only_the_newest_damaged_files_are_kept(tmp_path: Path) -> None:
    clock = ManualClock()
    for _ in range(6):
        payloads = await closed(tmp_path)
        flip(tmp_path / "journal.db", page_of(tmp_path, payloads[-20]), 16)
        clock.advance(1)
        assert reopen(tmp_path, clock).moved_to is not None
        (tmp_path / "journal.db").unlink()
    assert len(list(tmp_path.glob("journal.db.damaged-*"))) == 3


# --- a replacement cut short ----------------------------------------------------------------------


async def test_every_step_of_a_replacement_may_be_the_last(tmp_path: Path) -> None:
    """Stop the replacement of a damaged file after each of its renames."""
    base = tmp_path / "base"
    payloads = await closed(base)
    flip(base / "journal.db", page_of(base, payloads[90]), 16)
    whole = tmp_path / "whole"
    shutil.copytree(base, whole)
    expected = reopen(whole).state
    for stop in range(3):
        path = tmp_path / f"stop-{stop}"
        shutil.copytree(base, path)
        with pytest.MonkeyPatch.context() as patch:
            calls = 0
            rename = Path.rename

            def cut(self: Path, target: Path) -> Path:
                nonlocal calls
                calls += 1
                if calls > stop:  # noqa: B023 - called within the loop's turn
                    raise KeyboardInterrupt
                return rename(self, target)  # noqa: B023

            patch.setattr(Path, "rename", cut)
            if stop < 2:
                with pytest.raises(KeyboardInterrupt):
                    reopen(path)
            else:
                reopen(path)
        state = reopen(path).state
        assert (state.epoch, state.next_seq) == (expected.epoch, expected.next_seq)
        assert state.lanes[Lane.LIVE].readings == expected.lanes[Lane.LIVE].readings
        assert not new_path(path / "journal.db").exists()


async def test_a_half_built_file_is_ignored(tmp_path: Path) -> None:
    await closed(tmp_path, commits=2)
    new_path(tmp_path / "journal.db").write_bytes(b"SQLite format 3\0 and no more")
    opened = reopen(tmp_path)
    assert opened.actions == [Action.RESUME]
    assert opened.state.next_seq == 7


async def test_a_row_that_does_not_check_is_given_up_alone(tmp_path: Path) -> None:
    payloads = await crashed(tmp_path / "a", tmp_path / "b", commits=10)
    look(
        tmp_path / "b",
        "UPDATE commits SET body = zeroblob(bytes) WHERE key = ?",
        key_of(Lane.LIVE, 13),
    )
    opened = reopen(tmp_path / "b")
    assert opened.actions == [Action.RESUME]
    assert [(t.first_seq, t.last_seq, t.reason) for t in opened.lost] == [(13, 15, "damaged")]
    async with journal_at(tmp_path / "b") as journal:
        assert payloads_in(await read_all(journal)) == payloads[:12] + payloads[15:]
        assert journal.stats().lanes[Lane.LIVE].readings == 27
