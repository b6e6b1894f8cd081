"""The mark of how far seqs were reserved: an old copy of a journal is found out by it."""

from __future__ import annotations

import shutil
import zlib
from pathlib import Path

import pytest

from bridge.runs import Run
from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.journal_high import high_path, read_high, write_high
from edge.segments import Segment, pack_segment
from runtime.clock import ManualClock
from tests.kit.journals import publish_frame

EPOCH = 0x0123456789ABCDEF
RUN = Run(7, 4000)


def test_the_mark_is_read_back_and_only_for_its_epoch(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    assert read_high(journal, EPOCH) == (0, None)
    write_high(journal, EPOCH, 4711, RUN)
    assert read_high(journal, EPOCH) == (4711, RUN)
    assert read_high(journal, EPOCH + 1) == (0, None)
    write_high(journal, EPOCH, 4712, RUN)
    assert read_high(journal, EPOCH) == (4712, RUN)
    assert high_path(journal).stat().st_size == 40


def test_a_mark_of_before_runs_were_kept_says_how_far_it_went(tmp_path: Path) -> None:
    journal = tmp_path / "journal.db"
    mark = b"TDJH" + EPOCH.to_bytes(8, "big") + (4711).to_bytes(8, "big")
    high_path(journal).write_bytes(mark + zlib.crc32(mark).to_bytes(4, "big"))
    assert read_high(journal, EPOCH) == (4711, None)


@pytest.mark.parametrize("damage", [b"", b"x" * 24, b"x" * 40, b"short"])
def test_a_damaged_mark_says_nothing(tmp_path: Path, damage: bytes) -> None:
    journal = tmp_path / "journal.db"
    write_high(journal, EPOCH, 4711, RUN)
    high_path(journal).write_bytes(damage)
    assert read_high(journal, EPOCH) == (0, None)


async def used(path: Path, count: int) -> tuple[int, int, list[str]]:
    """Commit `count` readings; return first and last seq given out, and tombstones' reasons."""
    journal = await Journal.open(path, JournalConfig(disk_reserve_bytes=0), ManualClock())
    before = journal.last_seq
    if count:
        frames = publish_frame("devices/d1/v", b"1") * count
        await journal.append([(Lane.LIVE, count, pack_segment(Segment(4, "c", 5, count, frames)))])
    last = journal.last_seq
    reasons = [stone.reason for stone in journal.tombstones()]
    await journal.close()
    return before + 1, last, reasons


async def test_no_session_uses_a_seq_that_another_copy_has_used(tmp_path: Path) -> None:
    path, copy = tmp_path / "journal.db", tmp_path / "copy.db"
    await used(path, 3)
    for count in (0, 1, 5000):  # nothing given out, less and more than a reservation
        shutil.copyfile(path, copy)
        _, last, _ = await used(path, count)
        shutil.copyfile(copy, path)
        first, _, reasons = await used(path, 1)
        assert first > last
        assert "restored" in reasons


async def test_an_ordinary_restart_leaves_no_tombstone(tmp_path: Path) -> None:
    path = tmp_path / "journal.db"
    end = 0
    for count in (3, 0, 5000, 2):
        first, last, reasons = await used(path, count)
        assert (first, reasons) == (end + 1, [])
        end = last
