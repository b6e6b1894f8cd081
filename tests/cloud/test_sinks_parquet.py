"""Parquet: files that DuckDB reads, exactly once by their names, whatever is killed when."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import duckdb
import pytest

from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings
from cloud.config import ParquetConfig, SinksConfig, StreamConfig
from cloud.database import DatabaseError
from cloud.sinks import parquet
from cloud.sinks.contract import BulkSink, FencedSink, SinkFenced, SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.parquet import ParquetSink
from cloud.sinks.runner import SinkRunner
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, append_readings, decoded, ends
from tests.kit.readings import one_per_row, readings_of
from tests.kit.small_disk import small_disk, take_all_space

STREAM = 0xAAAA_BBBB_CCCC_DDDD
DAY_US = 86_400_000_000
ALL = dict.fromkeys(range(64), 1)


@asynccontextmanager
async def opened(
    folder: Path, *, node: str = "n", config: ParquetConfig | None = None
) -> AsyncIterator[ParquetSink]:
    sink = ParquetSink(folder, config or ParquetConfig(), node)
    await sink.open(STREAM)
    await sink.claim(ALL)
    yield sink
    await sink.close()


def ask(folder: Path, sql: str) -> list[tuple[Any, ...]]:
    """Return DuckDB's answer; `{}` in the question is the files."""
    return duckdb.sql(sql.replace("{}", f"'{folder}/*/*.parquet'")).fetchall()


def seqs(folder: Path) -> list[int]:
    return [row[0] for row in ask(folder, "SELECT seq FROM {} ORDER BY seq")]


async def test_readings_are_rows_that_duckdb_reads(tmp_path: Path) -> None:
    readings = Readings(
        [5, 6],
        [("devices/d1/state", "d1")],
        [0, 0],
        [1_700_000_000_000_000, -7],
        [1, 2 | FLAG_RETAIN | FLAG_PROPERTIES],
        [b'{"t": 21.5}', b"\xff\xfe"],
        [b"", b"\x01\x01"],
    )
    entries = decoded(readings)
    async with opened(tmp_path) as sink:
        assert isinstance(sink, FencedSink)
        assert isinstance(sink, BulkSink)
        await sink.write(entries, ends(entries))
        assert (sink.stats.rows, sink.stats.files) == (2, 1)
    assert ask(tmp_path, "SELECT * EXCLUDE day FROM {} ORDER BY seq") == [
        ("gw", EPOCH, 5, "d1", "devices/d1/state", 1_700_000_000_000_000, 77, 1, '{"t": 21.5}',
         None, False, None),
        ("gw", EPOCH, 6, "d1", "devices/d1/state", -7, 77, 2, None, b"\xff\xfe", True,
         b"\x01\x01"),
    ]  # fmt: skip
    found = ask(tmp_path, "SELECT CAST(payload->>'t' AS DOUBLE) FROM {} WHERE payload NOT NULL")
    assert found == [(21.5,)]


async def test_what_comes_again_is_not_written_again(tmp_path: Path) -> None:
    first = decoded(one_per_row(100))
    second = decoded(one_per_row(100, first_seq=101), position=2)
    async with opened(tmp_path) as sink:
        await sink.write(first, ends(first))
        await sink.write([*first, *second], ends(second))
    async with opened(tmp_path) as sink:
        assert await sink.cursors() == ends(second)
        await sink.write([*first, *second], ends(second))
        assert sink.stats.rows == 0
    assert seqs(tmp_path) == list(range(1, 201))


async def test_days_are_folders(tmp_path: Path) -> None:
    entries = [
        one
        for n, day in enumerate((19_000, 19_000, 19_001, 19_000))  # a clock may go back
        for one in decoded(
            one_per_row(10, first_seq=n * 10 + 1, devices=1), appended_us=day * DAY_US + 5,
            position=n + 1,
        )
    ]  # fmt: skip
    async with opened(tmp_path) as sink:
        await sink.write(entries, ends(entries))
        assert sink.stats.files == 3
        assert await sink.cursors() == ends(entries)
    found = ask(tmp_path, "SELECT day::VARCHAR, count(*) FROM {} GROUP BY 1 ORDER BY 1")
    assert found == [("2022-01-08", 30), ("2022-01-09", 10)]


@pytest.mark.parametrize("at", ["link", "fsync", "unlink"])
async def test_a_crash_anywhere_leaves_nothing_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """The n-th call that changes the folder fails; afterwards all is there, once."""
    entries = decoded(one_per_row(200, devices=12))
    for n in range(4):
        folder = tmp_path / str(n)
        left = [n]
        real = getattr(os if at != "unlink" else Path, at)

        def failing(*arguments: Any, real: Any = real, left: list[int] = left, **keys: Any) -> Any:
            left[0] -= 1
            if left[0] == -1:
                raise OSError(5, "Input/output error")
            return real(*arguments, **keys)

        async with opened(folder) as sink:
            with monkeypatch.context() as patch:
                patch.setattr(os if at != "unlink" else Path, at, failing)
                with pytest.raises(SinkUnavailable, match="Input/output error"):
                    await sink.write(entries, ends(entries))
        async with opened(folder) as sink:
            await sink.write(entries, ends(entries))
        assert seqs(folder) == list(range(1, 201))
        assert not list((folder / ".tmp").iterdir())


async def test_what_a_killed_process_left_is_deleted(tmp_path: Path) -> None:
    async with opened(tmp_path):
        pass
    for name in ("n-1234", "other-1234"):
        (tmp_path / ".tmp" / name).write_bytes(b"half a file")
    async with opened(tmp_path):
        pass
    assert [one.name for one in (tmp_path / ".tmp").iterdir()] == ["other-1234"]


async def test_a_stalled_holder_and_its_successor(tmp_path: Path) -> None:
    """Whoever links first goes on; the other is told, reads the chain anew, and nothing doubles."""
    entries = decoded(one_per_row(30, devices=1))
    more = decoded(one_per_row(30, first_seq=31, devices=1), position=2)
    (partition,) = ends(entries)
    async with opened(tmp_path, node="old") as old, opened(tmp_path, node="new") as new:
        assert await new.claim({partition: 9}) == {partition: 0}
        await new.write([*entries, *more], ends(more))
        with pytest.raises(SinkFenced) as caught:
            await old.write(entries, ends(entries))
        assert caught.value.partitions == {partition}
        assert await old.claim({partition: 10}) == {partition: 2}
        last = decoded(one_per_row(5, first_seq=61, devices=1), position=3)
        await old.write(last, ends(last))
        with pytest.raises(SinkFenced):
            await new.pass_over(last[0].entry)
    assert seqs(tmp_path) == list(range(1, 66))


@pytest.mark.parametrize("first", ["passes over", "writes"])
async def test_one_passes_an_entry_over_that_the_other_writes(tmp_path: Path, first: str) -> None:
    """A stalled holder that has given an entry up and its successor that can write it: one wins."""
    today_us = 1_795_000_000_000_000
    entries = decoded(one_per_row(30, devices=1), appended_us=today_us)
    more = decoded(one_per_row(30, first_seq=31, devices=1), appended_us=today_us, position=2)
    (partition,) = ends(entries)
    async with opened(tmp_path, node="old") as old, opened(tmp_path, node="new") as new:
        assert await new.claim({partition: 9}) == {partition: 0}
        if first == "writes":
            await new.write([*entries, *more], ends(more))
            with pytest.raises(SinkFenced):
                await old.pass_over(entries[0].entry)
        else:
            await old.pass_over(entries[0].entry)
            with pytest.raises(SinkFenced):
                await new.write([*entries, *more], ends(more))
            assert await new.claim({partition: 10}) == {partition: 1}
            await new.write(more, ends(more))
        assert await new.claim({partition: 11}) == {partition: 2}
    assert seqs(tmp_path) == list(range(1 if first == "writes" else 31, 61))


async def test_dead_letters_are_passed_over_and_redriven(tmp_path: Path) -> None:
    dead = decoded(one_per_row(10, devices=1))
    after = decoded(one_per_row(10, first_seq=11, devices=1), position=2)
    async with opened(tmp_path) as sink:
        for one in dead:
            await sink.pass_over(one.entry)
        await sink.write(after, ends(after))
        assert seqs(tmp_path) == list(range(11, 21))
        for _ in range(2):
            await sink.write(dead, {})
        assert await sink.cursors() == ends(after)
    assert seqs(tmp_path) == list(range(1, 21))


async def test_another_stream_begins_anew(tmp_path: Path) -> None:
    entries = decoded(one_per_row(10))
    async with opened(tmp_path) as sink:
        await sink.write(entries, ends(entries))
    sink = ParquetSink(tmp_path, ParquetConfig(), "n")
    await sink.open(STREAM + 1)
    assert await sink.cursors() == {}


async def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    sink = ParquetSink(tmp_path / "file" / "x", ParquetConfig(), "n")
    with pytest.raises(DatabaseError, match="cannot be written"):
        await sink.open(STREAM)


async def test_a_backlog_makes_few_files(tmp_path: Path) -> None:
    """What waits in the stream is written partition by partition, as large as allowed."""
    stream = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    for n in range(60):
        await append_readings(stream, one_per_row(400, first_seq=n * 400 + 1, devices=8))
    partitions = len((await stream.stats()).last_positions)
    folder = tmp_path / "parquet"
    sink = ParquetSink(folder, ParquetConfig(linger_s=0, rows_max=30_000), "n")
    runner = SinkRunner(sink, stream, DecodedEntries(0), SinksConfig())
    await runner.start()
    await runner.drained()
    await runner.stop()
    await stream.close()
    assert seqs(folder) == list(range(1, 24_001))
    assert sink.stats.files == partitions


async def test_a_file_whose_folder_could_not_be_synced_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file has its name all the same: a node that is alone finds it, and does not wait."""
    stream = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    await append_readings(stream, one_per_row(40, devices=5))
    folder = tmp_path / "parquet"
    folder.mkdir()
    synced: list[Path] = []
    real = parquet._sync_folder

    def failing(path: Path) -> None:
        synced.append(path)
        if len(synced) in {1, 3}:  # the folder of folders, and a day's that has a file in it
            raise OSError(5, "Input/output error")
        real(path)

    monkeypatch.setattr(parquet, "_sync_folder", failing)
    sink = ParquetSink(folder, ParquetConfig(linger_s=0), "n")
    runner = SinkRunner(sink, stream, DecodedEntries(0), SinksConfig(retry_s=0.001))
    await runner.start()
    async with asyncio.timeout(60):
        await runner.drained()
    await runner.stop()
    await stream.close()
    assert seqs(folder) == list(range(1, 41))
    assert synced[:2] == [folder, folder], "until it is durable"


async def test_the_folder_itself_outlasts_the_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[Path] = []
    real = os.fsync

    def fsync(fd: int) -> None:
        synced.append(Path(f"/proc/self/fd/{fd}").resolve())
        real(fd)

    monkeypatch.setattr(os, "fsync", fsync)
    async with opened(tmp_path / "a" / "b"):
        assert {tmp_path, tmp_path / "a"} <= set(synced)


async def test_a_disk_without_room_blames_no_entry_and_leaves_nothing_half(tmp_path: Path) -> None:
    entries = decoded(one_per_row(30))
    large = decoded(
        readings_of([os.urandom(1500)] * 1000, seqs=range(31, 1031), device="d1"), position=2
    )
    with small_disk(tmp_path / "disk", "4m") as disk:
        async with opened(disk / "files") as sink:
            await sink.write(entries, ends(entries))
            take_all_space(disk / "filler")
            for _ in range(2):
                with pytest.raises(SinkUnavailable, match="No space left on device"):
                    await sink.write(large, ends(large))
            (disk / "filler").unlink()
            await sink.write(large, ends(large))
        assert seqs(disk / "files") == list(range(1, 1031))
        assert not list((disk / "files" / ".tmp").iterdir())
