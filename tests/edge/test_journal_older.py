"""Past which seq a journal was never compared with the cloud: over restarts, copies and repairs.

What becomes of the readings past it, wherever the power goes, is in
tests/e2e/test_older_journal.py.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from edge.contract import Lane
from tests.kit.journal_files import fill, flip, journal_at, look, page_of, payloads_in, read_all

HELD_SEQ = 40


def unmet(path: Path) -> list[int]:
    return [seq for (seq,) in look(path, "SELECT after_seq FROM unmet")]


async def test_the_first_opening_counts_until_the_cloud_was_met(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await journal.meet(0)
        await fill(journal, 2)
    for _ in range(3):
        async with journal_at(tmp_path) as journal:
            await fill(journal, 1)
        assert unmet(tmp_path) == [6]
    async with journal_at(tmp_path) as journal:
        await journal.meet(6)
        await fill(journal, 1)
        assert journal.tombstones() == []
    assert unmet(tmp_path) == []
    async with journal_at(tmp_path):
        pass
    assert unmet(tmp_path) == [18]


async def test_what_was_captured_in_any_session_since_gets_new_seqs(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await journal.meet(0)
        kept = await fill(journal, 1)
    captured = []
    for session in range(3):
        async with journal_at(tmp_path) as journal:
            captured += await fill(journal, 2, first=100 * (session + 1))
    async with journal_at(tmp_path) as journal:
        captured += await fill(journal, 1, first=900)
        await journal.meet(HELD_SEQ)
        captured += await fill(journal, 1, first=950)
        commits = await read_all(journal)
        assert payloads_in(commits) == kept + captured
        assert [commit.first_seq for commit in commits][:2] == [1, HELD_SEQ + 1]
        (stone,) = journal.tombstones()
        assert (stone.first_seq, stone.last_seq, stone.reason) == (4, HELD_SEQ, "restored")
        assert journal.stats().lanes[Lane.LIVE].readings == len(kept + captured)
    async with journal_at(tmp_path) as journal:
        assert payloads_in(await read_all(journal)) == kept + captured


async def test_only_the_clouds_first_word_counts(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        payloads = await fill(journal, 2)
        await journal.meet(0)
        await journal.meet(HELD_SEQ)  # too late: some may have been sent
        assert payloads_in(await read_all(journal)) == payloads
        assert journal.last_seq == 6


async def test_a_copy_begins_where_it_was_copied(tmp_path: Path) -> None:
    """What an image has of a session that had met nobody may have come since, as it is."""
    copy = tmp_path / "copy"
    copy.mkdir()
    async with journal_at(tmp_path) as journal:
        payloads = await fill(journal, 2)
        for file in tmp_path.glob("journal.*"):
            shutil.copyfile(file, copy / file.name)
    async with journal_at(copy) as journal:
        payloads += await fill(journal, 1, first=100)
        await journal.meet(HELD_SEQ)
        commits = await read_all(journal)
        assert payloads_in(commits) == payloads
        assert [commit.first_seq for commit in commits] == [1, 4, HELD_SEQ + 1]


async def test_a_salvage_keeps_it(tmp_path: Path) -> None:
    async with journal_at(tmp_path) as journal:
        await fill(journal, 1)
    async with journal_at(tmp_path) as journal:
        await journal.meet(0)
    async with journal_at(tmp_path) as journal:
        await fill(journal, 20, size=3000, first=100)
    flip(tmp_path / "journal.db", page_of(tmp_path, b"110:"), 64)
    flip(tmp_path / "journal.db", page_of(tmp_path, b"130:"), 8)
    async with journal_at(tmp_path):
        pass
    assert list(tmp_path.glob("*.damaged-*"))
    assert unmet(tmp_path) == [3]
