"""What is done with the file found at start: docs/journal-format.md section 5."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from edge.journal_recovery import Action, Evidence, Header, Owner, decide, wal_lost_frames

PAGE = 4096
FRAME = 24 + PAGE


def by_the_page(found: Evidence) -> Action:
    """The table of section 5 as it reads: the first row that fits."""
    missing = not found.wal_whole or not (found.clean or found.synced or found.same_boot)
    table = [
        (found.replacement, Action.ADOPT),
        (found.header is Header.ABSENT, Action.CREATE),
        (found.header is Header.BLANK, Action.START_OVER),
        (found.header is Header.OTHER, Action.REFUSE_NOT_DATABASE),
        (found.owner is Owner.FOREIGN, Action.REFUSE_FOREIGN),
        (found.owner is Owner.NEWER, Action.REFUSE_NEWER),
        (not found.meta, Action.START_OVER),
        (not found.intact, Action.SALVAGE),
        (missing, Action.RESUME_PAST_RESERVED),
        (True, Action.RESUME),
    ]
    return next(action for fits, action in table if fits)


def test_the_whole_table() -> None:
    reached = set()
    for header, owner in itertools.product(Header, Owner):
        for replacement, intact, meta, clean, synced, boot, wal in itertools.product(
            (False, True), repeat=7
        ):
            found = Evidence(header, replacement, owner, intact, meta, clean, synced, boot, wal)
            assert decide(found) is by_the_page(found), found
            reached.add(decide(found))
    assert reached == set(Action)


def wal_of(path: Path, transactions: int) -> tuple[bytes, int]:
    """Return the log of a database after some inserts, and its number of frames."""
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA wal_autocheckpoint = 0")
        connection.execute("CREATE TABLE t (body)")
        for _ in range(transactions):
            connection.execute("INSERT INTO t VALUES (zeroblob(9000))")
        wal = Path(f"{path}-wal").read_bytes()
        frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    assert len(wal) == 32 + frames * FRAME
    return wal, frames


def commit_frames(wal: bytes) -> list[int]:
    """Return the numbers, from 0, of the frames that end a transaction."""
    starts = range(32, len(wal), FRAME)
    return [at for at, start in enumerate(starts) if wal[start + 4 : start + 8] != bytes(4)]


def test_a_log_that_ends_early_is_torn_only_in_its_last_transaction(tmp_path: Path) -> None:
    wal, frames = wal_of(tmp_path / "a.db", 6)
    commits = commit_frames(wal)
    assert len(commits) == 7
    for valid in range(frames + 1):
        # SQLite took `valid` frames; the next one did not check. The last transaction may be torn.
        lost = valid <= commits[-2]
        assert wal_lost_frames(wal, valid, PAGE) is lost, valid


def test_frames_of_an_earlier_cycle_are_no_loss(tmp_path: Path) -> None:
    wal, frames = wal_of(tmp_path / "a.db", 6)
    salts = bytes(a ^ 1 for a in wal[16:24])
    old = bytearray(wal)
    for start in range(32 + 3 * FRAME, len(wal), FRAME):
        old[start + 8 : start + 16] = salts
    assert not wal_lost_frames(bytes(old), 3, PAGE)
    assert wal_lost_frames(wal, 3, PAGE)
    assert frames > 3


def test_a_log_whose_header_was_damaged_is_a_loss(tmp_path: Path) -> None:
    wal, _ = wal_of(tmp_path / "a.db", 6)
    assert wal_lost_frames(bytes(32) + wal[32:], 0, PAGE)
    assert wal_lost_frames(wal[:8] + b"\xff" + wal[9:], 0, PAGE)


def test_a_log_begun_anew_over_an_old_one_is_no_loss(tmp_path: Path) -> None:
    path = tmp_path / "a.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE t (body)")
        for _ in range(20):
            connection.execute("INSERT INTO t VALUES (zeroblob(9000))")
        connection.execute("PRAGMA wal_checkpoint(FULL)")
        connection.execute("INSERT INTO t VALUES (1)")  # the second cycle, over the first
        wal = Path(f"{path}-wal").read_bytes()
        frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
    assert frames < (len(wal) - 32) // FRAME
    assert not wal_lost_frames(wal, frames, PAGE)
    assert not wal_lost_frames(wal, 0, PAGE)  # its only transaction torn


@pytest.mark.parametrize("wal", [b"", b"\0" * 10, b"\0" * 32, b"\0" * 5000])
def test_no_log_is_no_loss(wal: bytes) -> None:
    assert not wal_lost_frames(wal, 0, PAGE)
