"""The embedded engine: the contract, and what is its own: the file, its limits, its faults."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cloud.config import StreamConfig
from cloud.ranges import RangeTable
from cloud.stream.contract import StreamError, StreamFull
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.cloud.stream_contract import EPOCH, StreamContract, opened, part, read_all


class EmbeddedEngine:
    """Opens one file in `folder` with the given configuration."""

    def __init__(self, folder: Path, config: StreamConfig | None = None) -> None:
        self.path = folder / "cloud" / "stream.db"
        self.config = config or StreamConfig(disk_reserve_bytes=0)
        self.clock = ManualClock()

    async def open(self) -> EmbeddedStream:
        return await EmbeddedStream.open(self.path, self.config, self.clock)

    async def open_snapshot(self, path: Path) -> EmbeddedStream:
        return await EmbeddedStream.open(path, self.config, self.clock)


@pytest.fixture
def engine(tmp_path: Path) -> EmbeddedEngine:
    return EmbeddedEngine(tmp_path)


class TestContract(StreamContract):
    """With the newest entries in memory, as it runs."""


class TestContractFromDisk(StreamContract):
    """With nothing in memory, as a sink that lags sees it."""

    @pytest.fixture
    def engine(self, tmp_path: Path) -> EmbeddedEngine:
        return EmbeddedEngine(tmp_path, StreamConfig(disk_reserve_bytes=0, tail_bytes_max=0))


# ---- group commit --------------------------------------------------------------------------------


async def test_appends_that_wait_share_a_commit(engine: EmbeddedEngine) -> None:
    async with opened(engine) as stream:
        await asyncio.gather(
            *(stream.append([part(n % 64, [n], gateway=f"gw-{n}")]) for n in range(1, 201))
        )
        assert stream.commits < 20
        assert (await stream.stats()).entries == 200


async def test_cursors_ride_on_the_appends_commit(engine: EmbeddedEngine) -> None:
    async with opened(engine) as stream:
        await asyncio.gather(
            stream.append([part(1, [1])]),
            stream.append([part(1, [2])]),
            stream.commit_cursors("live", {1: 1}),
        )
        assert stream.commits <= 2


# ---- limits --------------------------------------------------------------------------------------


async def test_a_full_stream_refuses_and_takes_again_after_trimming(tmp_path: Path) -> None:
    limit = 1 << 20
    engine = EmbeddedEngine(tmp_path, StreamConfig(file_bytes_max=limit, disk_reserve_bytes=0))
    async with opened(engine) as stream:
        seq = 1
        while stream.file_bytes + 20_000 <= limit:
            await stream.append([part(1, [seq], body=b"x" * 20_000)])
            seq += 1
        with pytest.raises(StreamFull, match="file_bytes_max"):
            await stream.append([part(1, [seq], body=b"x" * 20_000)])
        assert engine.path.stat().st_size <= limit + 100_000
        assert len(await read_all(stream, 1)) == seq - 1
        await stream.append([], assigned={("gw", EPOCH): 99})  # what costs nothing still goes
        end = (await stream.stats()).last_positions[1]
        await stream.trim({1: end - 5})
        await stream.append([part(1, [seq], body=b"x" * 20_000)])
        assert len(await read_all(stream, 1)) == 6


async def test_the_file_does_not_grow_while_it_is_trimmed(tmp_path: Path) -> None:
    config = StreamConfig(disk_reserve_bytes=0, trace_batches=50)
    engine = EmbeddedEngine(tmp_path, config)
    async with opened(engine) as stream:
        sizes = []
        for seq in range(1, 301):
            await stream.append([part(seq % 4, [seq], body=os.urandom(8_000))])
            await stream.trim((await stream.stats()).last_positions)
            sizes.append(stream.file_bytes)
        assert max(sizes[100:]) <= max(sizes[:100])


async def test_the_disk_reserve_is_left_free(tmp_path: Path) -> None:
    engine = EmbeddedEngine(tmp_path, StreamConfig(disk_reserve_bytes=1 << 60))
    async with opened(engine) as stream:
        with pytest.raises(StreamFull, match="disk_reserve_bytes"):
            await stream.append([part(1, [1])])
        assert await stream.held("gw", EPOCH) == []


# ---- faults --------------------------------------------------------------------------------------


async def test_nothing_overtakes_an_append_that_failed_before_its_caller_heard_of_it(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = RangeTable.write
    commits = 0

    def broken(table: RangeTable, connection: sqlite3.Connection) -> None:
        nonlocal commits
        commits += 1
        real(table, connection)
        if commits == 3:
            raise sqlite3.OperationalError("disk I/O error")

    stored: list[int] = []
    lost: list[int] = []

    async def append(seq: int) -> None:
        if not lost:
            try:
                await stream.append([part(1, [seq])])
            except StreamError:
                lost.append(seq)
            else:
                stored.append(seq)

    async with opened(engine) as stream:
        monkeypatch.setattr(RangeTable, "write", broken)
        async with asyncio.timeout(60), asyncio.TaskGroup() as group:
            seq = 0
            while not lost:  # one a turn of the loop, so that one falls into every gap
                seq += 1
                group.create_task(append(seq))
                await asyncio.sleep(0)
        assert max(stored) < min(lost)
        await stream.append([part(1, [seq + 1])])


async def test_a_failed_commit_fails_all_that_wait_and_nothing_of_it_stays(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(engine) as stream:
        await stream.append([part(1, [1])])
        real = RangeTable.write

        def broken(table: RangeTable, connection: sqlite3.Connection) -> None:
            real(table, connection)
            raise sqlite3.OperationalError("disk I/O error")

        monkeypatch.setattr(RangeTable, "write", broken)
        results = await asyncio.gather(
            *(stream.append([part(1, [n])]) for n in range(2, 6)), return_exceptions=True
        )
        assert all(isinstance(result, StreamError) for result in results)
        assert str(engine.path) in str(results[0])
        monkeypatch.undo()
        assert list(await stream.held("gw", EPOCH)) == [(1, 1)]
        await asyncio.gather(*(stream.append([part(1, [n])]) for n in range(2, 6)))
        found = [entry.seq_ranges[0][0] for entry in await read_all(stream, 1)]
        assert found == [1, 2, 3, 4, 5]


async def test_a_full_disk_is_told_apart(
    engine: EmbeddedEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(engine) as stream:

        def full(_table: RangeTable, _connection: sqlite3.Connection) -> None:
            error = sqlite3.OperationalError("database or disk is full")
            error.sqlite_errorcode = sqlite3.SQLITE_FULL
            raise error

        monkeypatch.setattr(RangeTable, "write", full)
        with pytest.raises(StreamFull, match="disk is full"):
            await stream.append([part(1, [1])])


async def test_more_sources_than_memory_keeps(
    engine: EmbeddedEngine,
) -> None:
    async with opened(engine) as stream:
        stream._tables.held = RangeTable("held", sets_max=3)
        for seq in range(1, 4):
            for n in range(10):
                await stream.append([part(1, [seq], gateway=f"gw-{n}")])
        for n in range(10):
            await stream.append([part(1, [2], gateway=f"gw-{n}")])
            assert list(await stream.held(f"gw-{n}", EPOCH)) == [(1, 3)]
        assert (await stream.stats()).entries == 30


# ---- the file ------------------------------------------------------------------------------------


async def refused(engine: EmbeddedEngine) -> str:
    with pytest.raises(StreamError) as error:
        await engine.open()
    text = str(error.value)
    assert "\n" not in text
    assert str(engine.path) in text
    return text


async def test_a_second_opener_is_told_who_has_it(engine: EmbeddedEngine) -> None:
    async with opened(engine):
        assert f"in use by process {os.getpid()}" in await refused(engine)
    async with opened(engine):
        pass


async def test_the_lock_of_a_killed_process_is_gone(engine: EmbeddedEngine) -> None:
    code = (
        "import fcntl, os, sys, time\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX); os.write(fd, b'4242\\n'); print('held', flush=True)\n"
        "time.sleep(60)"
    )
    engine.path.parent.mkdir(parents=True)
    lock = engine.path.with_name("stream.db.lock")
    with subprocess.Popen([sys.executable, "-c", code, str(lock)], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        assert "process 4242" in await refused(engine)
        child.kill()
    async with opened(engine):
        pass


async def test_a_file_that_is_no_database(engine: EmbeddedEngine) -> None:
    engine.path.parent.mkdir(parents=True)
    engine.path.write_bytes(b"telemetry,1,2,3\n" * 100)
    assert "not a database" in await refused(engine)
    assert engine.path.read_bytes().startswith(b"telemetry")


async def test_a_foreign_database(engine: EmbeddedEngine) -> None:
    engine.path.parent.mkdir(parents=True)
    connection = sqlite3.connect(engine.path)
    connection.execute("CREATE TABLE photos (name)")
    connection.commit()
    connection.close()
    assert "not a Tidegate stream" in await refused(engine)


async def test_a_newer_file(engine: EmbeddedEngine) -> None:
    async with opened(engine):
        pass
    connection = sqlite3.connect(engine.path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    assert "version 99" in await refused(engine)


async def test_a_damaged_file(engine: EmbeddedEngine) -> None:
    async with opened(engine) as stream:
        await stream.append([part(1, [1], body=bytes(50_000))])
    with engine.path.open("rb+") as file:
        file.seek(100)
        file.write(b"\xff" * 4000)
    assert "restore" in await refused(engine) or "damaged" in await refused(engine)


async def test_a_folder_in_its_place(engine: EmbeddedEngine) -> None:
    engine.path.mkdir(parents=True)
    assert "folder" in await refused(engine)


async def test_a_file_where_its_folder_belongs(engine: EmbeddedEngine) -> None:
    engine.path.parent.parent.mkdir(exist_ok=True)
    engine.path.parent.write_text("a file")
    assert "cannot be opened" in await refused(engine)


async def test_an_empty_file_becomes_a_stream(engine: EmbeddedEngine) -> None:
    engine.path.parent.mkdir(parents=True)
    engine.path.touch()
    async with opened(engine) as stream:
        await stream.append([part(1, [1])])
    async with opened(engine) as stream:
        assert [entry.seq_ranges for entry in await read_all(stream, 1)] == [((1, 1),)]


async def test_a_write_protected_file() -> None:
    with tempfile.TemporaryDirectory() as name:
        engine = EmbeddedEngine(Path(name))
        async with opened(engine):
            pass
        engine.path.chmod(0o444)
        for folder in (engine.path.parent, engine.path.parent.parent):
            folder.chmod(0o755)
        engine.path.with_name("stream.db.lock").chmod(0o666)
        user = os.geteuid()
        if user == 0:  # permissions do not bind root
            os.seteuid(65534)
        try:
            assert "write-protected" in await refused(engine)
        finally:
            os.seteuid(user)
