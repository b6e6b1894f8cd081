"""Storage: rows as DESIGN section 7 has them, once each, bit by bit, with cursors and ranges."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings
from cloud.config import StorageConfig
from cloud.database import DatabaseError
from cloud.sinks.contract import SinkUnavailable
from cloud.sinks.schema import (
    epoch_from_sql,
    epoch_from_text,
    epoch_text,
    epoch_to_sql,
    payload_from_sql,
    payload_to_sql,
)
from cloud.sinks.storage import StorageSink
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, decoded, ends, query
from tests.kit.readings import one_per_row, readings_of

STREAM = 0xAAAA_BBBB_CCCC_DDDD


@asynccontextmanager
async def opened(
    path: Path, config: StorageConfig | None = None, *, stream: int = STREAM,
    clock: ManualClock | None = None,
) -> AsyncIterator[StorageSink]:  # fmt: skip
    sink = StorageSink(path, config or StorageConfig(), clock or ManualClock())
    await sink.open(stream)
    try:
        yield sink
    finally:
        await sink.close()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "cloud" / "storage.db"


async def test_a_reading_is_a_row(path: Path) -> None:
    readings = Readings(
        [5, 6],
        [("devices/d1/state", "d1")],
        [0, 0],
        [1_700_000_000_000_000, 1_700_000_000_500_000],
        [1, 2 | FLAG_RETAIN | FLAG_PROPERTIES],
        [b'{"t": 21.5}', b"\xff\xfe"],
        [b"", b"\x01\x01"],
    )
    entries = decoded(readings)
    async with opened(path) as sink:
        await sink.write(entries, ends(entries))
    sql = "SELECT gateway, epoch, seq, device, topic, time_us, received_us, qos, payload, retain,"
    found = query(path, f"{sql} properties FROM readings ORDER BY seq")
    topic = "devices/d1/state"
    assert found == [
        ("gw", EPOCH - (1 << 64), 5, "d1", topic, 1_700_000_000_000_000, 77, 1, '{"t": 21.5}',
         None, None),
        ("gw", EPOCH - (1 << 64), 6, "d1", topic, 1_700_000_000_500_000, 77, 2, b"\xff\xfe",
         1, b"\x01\x01"),
    ]  # fmt: skip


async def test_json_payloads_are_queried_as_json(path: Path) -> None:
    entries = decoded(one_per_row(100))
    async with opened(path) as sink:
        await sink.write(entries, ends(entries))
    sql = "SELECT sum(json_extract(payload, '$.n')) FROM readings WHERE json_valid(payload)"
    assert query(path, sql) == [(5050,)]


async def test_device_and_time_are_found_by_an_index(path: Path) -> None:
    async with opened(path):
        pass
    plan = "EXPLAIN QUERY PLAN SELECT * FROM readings WHERE device = ? AND time_us > ?"
    assert "readings_device_time" in str(query(path, plan, ("d1", 0)))


ODD = [
    b"",
    b"\0",
    b'{"a":1}\0',
    b"\xef\xbb\xbf{}",
    "naïve ☂ 𝄞".encode(),
    b"\xed\xa0\x80",
    b"\xc0\x80",
    b"\x80",
    b"NaN",
    b"9223372036854775808",
    b" 1 ",
    b"x" * 300_000,
    b'{"e":1e400}',
]


async def test_payloads_come_back_bit_by_bit(path: Path) -> None:
    entries = decoded(readings_of(ODD))
    async with opened(path) as sink:
        await sink.write(entries, ends(entries))
    found = query(path, "SELECT payload FROM readings ORDER BY seq")
    assert [payload_from_sql(row[0]) for row in found] == ODD  # type: ignore[arg-type]


@given(st.binary() | st.text(st.characters(exclude_categories=("Cs",))).map(str.encode))
@settings(max_examples=200)
def test_any_payload_comes_back_through_sqlite(payload: bytes) -> None:
    connection = sqlite3.connect(":memory:")
    connection.execute("CREATE TABLE t (payload)")
    connection.execute("INSERT INTO t VALUES (?)", (payload_to_sql(payload),))
    (value,) = connection.execute("SELECT payload FROM t").fetchone()
    connection.close()
    assert payload_from_sql(value) == payload


@pytest.mark.parametrize("epoch", [0, 1, (1 << 63) - 1, 1 << 63, (1 << 64) - 1, EPOCH])
def test_epochs_survive_signed_integers_and_text(epoch: int) -> None:
    assert -(1 << 63) <= epoch_to_sql(epoch) < 1 << 63
    assert epoch_from_sql(epoch_to_sql(epoch)) == epoch
    assert epoch_from_text(epoch_text(epoch)) == epoch


@pytest.mark.parametrize("text", ["", "xyz", "1" * 17])
def test_no_epoch(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        epoch_from_text(text)


async def test_what_comes_twice_is_stored_once(path: Path) -> None:
    entries = decoded(one_per_row(100))
    overlap = decoded(one_per_row(100, first_seq=51), appended_us=99, position=2)
    async with opened(path) as sink:
        await sink.write(entries, ends(entries))
        await sink.write(entries, ends(entries))
        await sink.write(overlap, ends(overlap))
        assert (sink.stats.rows, sink.stats.duplicates) == (150, 150)
    assert query(path, "SELECT count(*), sum(seq) FROM readings") == [(150, 150 * 151 // 2)]
    assert query(path, "SELECT max(received_us) FROM readings WHERE seq <= 100") == [(77,)]
    assert query(path, "SELECT first_seq, last_seq FROM stored") == [(1, 150)]


async def test_rows_cursors_and_ranges_are_of_one_transaction(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = decoded(one_per_row(100))
    async with opened(path) as sink:
        with monkeypatch.context() as patch:

            def broken(*_: object) -> None:
                raise sqlite3.OperationalError("disk I/O error")

            patch.setattr(sink._tables, "_store_ranges", broken)
            with pytest.raises(SinkUnavailable, match="disk I/O error"):
                await sink.write(entries, ends(entries))
        assert await sink.cursors() == {}
        assert query(path, "SELECT count(*) FROM readings") == [(0,)]
        await sink.write(entries, ends(entries))
        assert await sink.cursors() == ends(entries)
    assert query(path, "SELECT first_seq, last_seq FROM stored") == [(1, 100)]


async def test_cursors_belong_to_one_stream(path: Path) -> None:
    entries = decoded(one_per_row(10))
    async with opened(path) as sink:
        await sink.write(entries, ends(entries))
    async with opened(path) as sink:
        assert await sink.cursors() == ends(entries)
    async with opened(path, stream=STREAM + 1) as sink:
        assert await sink.cursors() == {}
        await sink.write(entries, ends(entries))
        assert sink.stats.duplicates == 10


async def test_a_dead_letter_is_passed_over(path: Path) -> None:
    async with opened(path) as sink:
        (one,) = decoded(one_per_row(1), position=9)
        await sink.pass_over(one.entry)
        assert await sink.cursors() == {one.entry.partition: 9}


async def test_many_rows_in_odd_numbers(path: Path) -> None:
    async with opened(path) as sink:
        first = 1
        for count in (1, 9, 249, 250, 251, 1009):
            entries = decoded(one_per_row(count, first_seq=first))
            await sink.write(entries, ends(entries))
            first += count
    total = first - 1
    assert query(path, "SELECT count(*), min(seq), max(seq) FROM readings") == [(total, 1, total)]


# ---- retention -----------------------------------------------------------------------------------


async def test_old_rows_expire_and_stay_in_the_ledger(path: Path) -> None:
    clock = ManualClock()
    config = StorageConfig(age_max_s=3600)
    old = decoded(one_per_row(3000), appended_us=clock.wall_us())
    async with opened(path, config, clock=clock) as sink:
        await sink.write(old, ends(old))
        clock.advance(3000)
        young = decoded(one_per_row(50, first_seq=5001), appended_us=clock.wall_us())
        await sink.write(young, ends(young))
        assert await sink.expire() == 0
        clock.advance(1000)
        assert await sink.expire() == 3000
        await sink.write(old, ends(old))  # seen once more, after a restore for instance
    assert query(path, "SELECT count(*), min(seq) FROM readings") == [(50, 5001)]
    assert query(path, "SELECT first_seq, last_seq FROM stored") == [(1, 3000), (5001, 5050)]
    assert query(path, "SELECT first_seq, last_seq FROM expired") == [(1, 3000)]


async def test_a_large_file_loses_its_oldest_rows(path: Path) -> None:
    async with opened(path, StorageConfig(file_bytes_max=2 << 20)) as sink:
        for n in range(20):
            payloads = [bytes(1000) for _ in range(200)]
            entries = decoded(readings_of(payloads, seqs=range(n * 200 + 1, n * 200 + 201)))
            await sink.write(entries, ends(entries))
        await sink.expire()
        assert (1 << 20) < sink.stats.file_bytes <= 2 << 20
        expired = sink.stats.expired
    assert 0 < expired < 4000
    sql = "SELECT count(*), min(seq), max(seq) FROM readings"
    assert query(path, sql) == [(4000 - expired, expired + 1, 4000)]
    assert query(path, "SELECT first_seq, last_seq FROM expired") == [(1, expired)]


# ---- the file ------------------------------------------------------------------------------------


async def test_one_process_at_a_time(path: Path) -> None:
    async with opened(path):
        with pytest.raises(DatabaseError, match="in use by process"):
            await StorageSink(path, StorageConfig(), ManualClock()).open(STREAM)


async def test_a_foreign_file_is_left_alone(path: Path) -> None:
    path.parent.mkdir()
    path.write_text(json.dumps({"a": "file"}) * 100)
    sink = StorageSink(path, StorageConfig(), ManualClock())
    with pytest.raises(DatabaseError, match="not a database"):
        await sink.open(STREAM)
    assert path.read_text().startswith('{"a": "file"}')
    with pytest.raises(SinkUnavailable):
        await sink.cursors()


async def test_an_entry_that_cannot_be_a_row_is_blamed(path: Path) -> None:
    entries = decoded(one_per_row(2, devices=1))
    bad = replace(entries[0], readings=replace(entries[0].readings, times_us=[1, 1 << 70]))
    async with opened(path) as sink:
        with pytest.raises(OverflowError):
            await sink.write([bad], ends(entries))
        assert await sink.cursors() == {}
