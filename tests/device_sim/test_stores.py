"""Stores: rows in the order of storage, only those of the run, and clear faults."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from device_sim.stores import Store, VerifyError, open_store
from tests.kit.stored_rows import add_rows, make_storage


async def rows_of(store: Store) -> list[tuple[str, bytes, int]]:
    rows: list[tuple[str, bytes, int]] = []
    await store.feed(lambda topic, payload, received_us: rows.append((topic, payload, received_us)))
    return rows


async def test_rows_come_in_seq_order_and_to_the_bit(tmp_path: Path) -> None:
    path = make_storage(tmp_path / "storage.db")
    add_rows(path, [("b", b"\xff\x00"), ("c", "ä".encode())], first_seq=5)
    add_rows(path, [("a", b"")], first_seq=2)
    store = open_store(str(path))
    await store.begin()
    add_rows(path, [("d", b"{}")], first_seq=9, received_us=8)
    assert await store.count() == 1
    assert await rows_of(store) == [("d", b"{}", 8)]

    fresh = open_store(path.as_uri())
    assert [row[:2] for row in await rows_of(fresh)] == [
        ("a", b""),
        ("b", b"\xff\x00"),
        ("c", "ä".encode()),
        ("d", b"{}"),
    ]


async def test_a_later_journal_comes_after_an_earlier_one(tmp_path: Path) -> None:
    path = make_storage(tmp_path / "storage.db")
    add_rows(path, [("late", b"1")], epoch=-5, received_us=20)
    add_rows(path, [("early", b"1")], epoch=9, received_us=10)
    assert [row[0] for row in await rows_of(open_store(str(path)))] == ["early", "late"]


async def test_a_folder_means_its_storage_db(tmp_path: Path) -> None:
    make_storage(tmp_path / "storage.db", [("a", b"1")])
    store = open_store(str(tmp_path))
    assert await store.count() == 1


async def test_a_store_that_comes_later_is_awaited(tmp_path: Path) -> None:
    store = open_store(str(tmp_path / "storage.db"))
    await store.begin()
    assert await store.count() == 0
    with pytest.raises(VerifyError, match="no such file; did the cloud store anything"):
        await rows_of(store)


async def test_what_is_no_storage_is_told_before_the_run(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("not a database, but long enough to be read as one")
    with pytest.raises(VerifyError, match=r"text\.db: cannot be read: file is not a database"):
        await open_store(str(tmp_path / "text.db")).begin()
    with closing(sqlite3.connect(tmp_path / "other.db")) as database:
        database.execute("CREATE TABLE t (x)")
    with pytest.raises(VerifyError, match="has no table 'readings'"):
        await open_store(str(tmp_path / "other.db")).begin()


@pytest.mark.parametrize(
    ("url", "says"),
    [("/no/such/folder/storage.db", "no such folder"), ("ftp://host/x", "not known")],
)
def test_a_wrong_url_is_told(url: str, says: str) -> None:
    with pytest.raises(VerifyError, match=says):
        open_store(url)
