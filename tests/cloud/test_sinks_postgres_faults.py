"""What an operator, or another server's promotion, may do to a PostgreSQL that nodes write to."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.sinks.contract import SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace
from cloud.sinks.runner import SinkRunner
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import append_readings, decoded, ends
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.readings import one_per_row, readings_of
from tests.kit.small_disk import small_disk, take_all_space

STREAM = 0xAAAA_BBBB_CCCC_DDDD
FAST = SinksConfig(retry_s=0.001, retry_max_s=0.01)


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


@pytest.fixture
async def url(server: PostgresServer) -> str:
    return await server.new_database()


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[EmbeddedStream]:
    opened = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    yield opened
    await opened.close()


def sink_at(url: str) -> PostgresSink:
    return PostgresSink(
        PostgresPlace(f"{url}?sslmode=disable"), StorageConfig(linger_ms=0), ManualClock()
    )


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[PostgresSink]:
    sink = sink_at(url)
    await sink.open(STREAM)
    try:
        await sink.claim(dict.fromkeys(range(64), 1))
        yield sink
    finally:
        await sink.close()


@asynccontextmanager
async def running(stream: EmbeddedStream, url: str) -> AsyncIterator[SinkRunner]:
    runner = SinkRunner(sink_at(url), stream, DecodedEntries(1000), FAST)
    await runner.start()
    try:
        async with asyncio.timeout(60):
            yield runner
    finally:
        await runner.stop()


async def seqs_stored(server: PostgresServer, url: str) -> list[int]:
    rows = await server.rows(url, "SELECT seq FROM tidegate.readings ORDER BY 1")
    return [row[0] for row in rows]


async def drop_connections(server: PostgresServer, url: str) -> None:
    """End the sink's connections, as a server's restart does."""
    await server.rows(
        url,
        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'tidegate%'",
    )


async def test_a_database_that_went_back_is_given_again_what_it_lost(
    server: PostgresServer, url: str, stream: EmbeddedStream
) -> None:
    """As when a replica that lagged is promoted: the last transactions are gone, cursors too."""
    kept = ("readings", "stored", "cursors")
    async with running(stream, url) as runner:
        await append_readings(stream, one_per_row(40, devices=20))
        await runner.drained()
        for table in kept:
            await server.rows(url, f"CREATE TABLE public.{table} AS TABLE tidegate.{table}")
        await append_readings(stream, one_per_row(40, first_seq=41, devices=20))
        await runner.drained()
        assert len(await seqs_stored(server, url)) == 80
        for table in kept:
            await server.rows(url, f"TRUNCATE tidegate.{table}")
            await server.rows(url, f"INSERT INTO tidegate.{table} SELECT * FROM public.{table}")
        await drop_connections(server, url)
        with capture_logs() as logs:
            await append_readings(stream, one_per_row(40, first_seq=81, devices=20))
            await runner.drained()
        assert await seqs_stored(server, url) == list(range(1, 121))
    assert "sink_went_back" in {line["event"] for line in logs}


async def test_a_limit_on_statements_set_by_others_stops_no_write(
    server: PostgresServer, url: str
) -> None:
    name, admin = url.rpartition("/")[2], server.url("postgres")
    for setting in ("statement_timeout", "lock_timeout"):
        await server.rows(admin, f"ALTER DATABASE {name} SET {setting} = '1ms'")
    entries = decoded(one_per_row(5_000))
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
    await server.rows(admin, f"ALTER DATABASE {name} RESET ALL")
    assert len(await seqs_stored(server, url)) == 5_000


@pytest.mark.parametrize("renamed", ["readings", "cursors", "stored", "meta"])
async def test_a_table_renamed_by_hand_is_named_and_gone_on_with_when_it_is_back(
    server: PostgresServer, url: str, renamed: str
) -> None:
    entries = decoded(one_per_row(10))
    more = decoded(one_per_row(10, first_seq=11), position=2)
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await server.rows(url, f"ALTER TABLE tidegate.{renamed} RENAME TO other")
        for _ in range(2):  # on the connection that was open, and on a new one
            with pytest.raises(SinkUnavailable, match=renamed) as caught:
                await sink.write(more, ends(more))
            assert "\n" not in str(caught.value)
            await drop_connections(server, url)
        await server.rows(url, f"ALTER TABLE tidegate.other RENAME TO {renamed}")
        await sink.write(more, ends(more))
    assert await seqs_stored(server, url) == list(range(1, 21))


async def test_what_a_running_node_has_stored_in_is_not_made_again_in_silence(
    server: PostgresServer, url: str
) -> None:
    entries = decoded(one_per_row(10))
    more = decoded(one_per_row(10, first_seq=11), position=2)
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        await server.rows(url, "ALTER SCHEMA tidegate RENAME TO elsewhere")
        with pytest.raises(SinkUnavailable):
            await sink.write(more, ends(more))
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="schema tidegate is gone"):
                await sink.write(more, ends(more))
        await server.rows(url, "ALTER SCHEMA elsewhere RENAME TO tidegate")
        await sink.write(more, ends(more))
    assert await seqs_stored(server, url) == list(range(1, 21))


async def test_a_disk_without_room_blames_no_entry(server: PostgresServer) -> None:
    with small_disk(server.folder / "disk", "40m") as disk:
        place = disk / "tablespace"
        place.mkdir()
        if server.user is not None:
            os.chown(place, server.user, -1)
        admin = server.url("postgres")
        await server.rows(admin, f"CREATE TABLESPACE small LOCATION '{place}'")
        await server.rows(admin, "CREATE DATABASE small TEMPLATE template0 TABLESPACE small")
        try:
            await check_full(server, server.url("small"), disk)
        finally:
            await server.rows(admin, "DROP DATABASE small WITH (FORCE)")
            await server.rows(admin, "DROP TABLESPACE small")


async def check_full(server: PostgresServer, url: str, disk: Path) -> None:
    large = readings_of([os.urandom(1500)] * 2_000, seqs=range(11, 2_011))
    entries, more = decoded(one_per_row(10)), decoded(large, position=2)
    async with opened(url) as sink:
        await sink.write(entries, ends(entries))
        take_all_space(disk / "filler")
        for _ in range(2):
            with pytest.raises(SinkUnavailable, match="No space left on device"):
                await sink.write(more, ends(more))
        (disk / "filler").unlink()
        await sink.write(more, ends(more))
    assert await seqs_stored(server, url) == list(range(1, 2_011))
