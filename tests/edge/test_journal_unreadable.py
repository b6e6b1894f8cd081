"""What a disk or a lock refuses to read now is not absent: a start says so and changes nothing."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from edge import journal_build
from edge.database import connect_file
from edge.journal_build import new_path, read_unmet
from edge.journal_high import high_path
from edge.journal_open import Opened, open_journal
from edge.journal_owner import read_owner
from edge.journal_recovery import Action
from edge.journal_runs import read_origin, read_runs
from edge.journal_schema import JournalError
from runtime.clock import ManualClock
from tests.kit.journal_files import fill, journal_at, look, payloads_in, read_all


async def closed(path: Path) -> list[bytes]:
    async with journal_at(path) as journal:
        return await fill(journal, 2)


def reopen(path: Path) -> Opened:
    return open_journal(path / "journal.db", "power-loss", ManualClock())


def refusing(path: Path, table: str) -> sqlite3.Connection:
    """Open a file of which one table cannot be read now, though it is there and whole."""
    connection = connect_file(path, "rw")

    def allow(action: int, name: str | None, *_: object) -> int:
        denied = action == sqlite3.SQLITE_READ and name == table
        return sqlite3.SQLITE_DENY if denied else sqlite3.SQLITE_OK

    connection.set_authorizer(allow)
    return connection


@pytest.mark.parametrize(
    ("table", "read"),
    [
        ("owner", read_owner),
        ("runs", read_runs),
        ("origin", read_origin),
        ("unmet", lambda connection: read_unmet(connection, Path(__file__))),
    ],
)
async def test_what_cannot_be_read_now_is_not_taken_for_absent(
    tmp_path: Path, table: str, read: Callable[[sqlite3.Connection], object]
) -> None:
    path = tmp_path / "journal.db"
    await closed(tmp_path)
    look(tmp_path, "DROP TABLE IF EXISTS " + table)
    with closing(connect_file(path, "rw")) as connection:
        assert not read(connection)  # a journal of before
    look(tmp_path, f"CREATE TABLE {table} (id, gateway, run, after_seq, epoch, inode)")
    with closing(refusing(path, table)) as connection, pytest.raises(sqlite3.DatabaseError):
        read(connection)


async def test_a_replacement_that_cannot_be_read_now_is_not_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    payloads = await closed(tmp_path)
    path = tmp_path / "journal.db"
    path.rename(new_path(path))  # as a start leaves it that ends before its last step
    with monkeypatch.context() as patch:
        patch.setattr(journal_build, "connect_file", lambda one, _mode: refusing(one, "meta"))
        with pytest.raises(JournalError):
            reopen(tmp_path)
    assert not path.exists()
    assert reopen(tmp_path).actions == [Action.ADOPT, Action.RESUME]
    async with journal_at(tmp_path) as journal:
        assert payloads_in(await read_all(journal)) == payloads


async def test_a_mark_that_cannot_be_read_now_is_not_taken_for_absent(tmp_path: Path) -> None:
    await closed(tmp_path)
    mark = high_path(tmp_path / "journal.db")
    mark.unlink()
    mark.mkdir()  # as a disk that fails: it is there, and reading it is an error
    with pytest.raises(JournalError, match="check owner, mode and mount"):
        reopen(tmp_path)
