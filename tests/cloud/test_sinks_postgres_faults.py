"""What an operator, or another server's promotion, may do to a PostgreSQL that nodes write to."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from structlog.testing import capture_logs

from bridge.commands import Correction
from cloud.commands.clocks import Clocks
from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.corrections import CorrectionLog
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace
from cloud.sinks.runner import SinkRunner
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, append_readings, decoded, ends
from tests.kit.postgres import PostgresServer, postgres_server, standby_of
from tests.kit.readings import one_per_row, readings_of
from tests.kit.small_disk import small_disk, take_all_space

STREAM = 0xAAAA_BBBB_CCCC_DDDD
NO_WAIT = StorageConfig(linger_ms=0)
FAST = SinksConfig(retry_s=0.001, retry_max_s=0.01)

EARLY, LATE = Correction(EPOCH, 1, 20, 1_000_000, 5), Correction(EPOCH, 31, 90, 2_000_000, 5)


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


def sink_at(url: str, config: StorageConfig = NO_WAIT) -> PostgresSink:
    return PostgresSink(PostgresPlace(f"{url}?sslmode=disable"), config, ManualClock())


@asynccontextmanager
async def opened(url: str, config: StorageConfig = NO_WAIT) -> AsyncIterator[PostgresSink]:
    sink = sink_at(url, config)
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


async def times_stored(server: PostgresServer, url: str) -> dict[int, int]:
    rows = await server.rows(url, "SELECT seq, time_us FROM tidegate.readings")
    return dict(rows)


async def drop_connections(server: PostgresServer, url: str) -> None:
    """End the sink's connections, as a server's restart does."""
    await server.rows(
        url,
        "SELECT pg_terminate_backend(pid, 60000) FROM pg_stat_activity"  # and wait for their end
        " WHERE datname = current_database() AND application_name LIKE 'tidegate%'",
    )


_KEPT = ("readings", "stored", "cursors", "corrections", "meta")


async def keep_copy(server: PostgresServer, url: str) -> None:
    for table in _KEPT:
        await server.rows(url, f"CREATE TABLE public.{table} AS TABLE tidegate.{table}")


async def put_back(server: PostgresServer, url: str) -> None:
    """Have the database as it was at `keep_copy`, and those that write to it connect anew."""
    for table in _KEPT:
        await server.rows(url, f"TRUNCATE tidegate.{table}")
        await server.rows(url, f"INSERT INTO tidegate.{table} SELECT * FROM public.{table}")
    await drop_connections(server, url)


async def test_a_database_that_went_back_is_given_again_what_it_lost(
    server: PostgresServer, url: str, stream: EmbeddedStream
) -> None:
    """As when a replica that lagged is promoted: the last transactions are gone, cursors too."""
    async with running(stream, url) as runner:
        await append_readings(stream, one_per_row(40, devices=20))
        await runner.drained()
        await keep_copy(server, url)
        await append_readings(stream, one_per_row(40, first_seq=41, devices=20))
        await runner.drained()
        assert len(await seqs_stored(server, url)) == 80
        await put_back(server, url)
        with capture_logs() as logs:
            await append_readings(stream, one_per_row(40, first_seq=81, devices=20))
            await runner.drained()
        assert await seqs_stored(server, url) == list(range(1, 121))
    assert "sink_went_back" in {line["event"] for line in logs}


@pytest.mark.parametrize("rows_lost", [True, False])
async def test_corrections_that_a_database_lost_by_going_back_are_given_again_at_once(
    server: PostgresServer, url: str, stream: EmbeddedStream, tmp_path: Path, rows_lost: bool
) -> None:
    """While the node runs; and to a row that comes again it is not added twice."""
    woken = asyncio.Event()
    shown: list[Correction] = []
    async with running(stream, url) as runner:
        assert isinstance(runner.sink, PostgresSink)
        clocks = Clocks(
            CorrectionLog(tmp_path / "corrections.db"), stream, runner.sink,
            lambda _gateway, one, known: shown.append(one), woken.set,
        )  # fmt: skip
        await clocks.start()
        await append_readings(stream, one_per_row(40))
        await runner.drained()
        before = await times_stored(server, url)
        await clocks.take("gw", EARLY)
        await append_readings(stream, one_per_row(1, first_seq=41))
        await runner.drained()
        await keep_copy(server, url)
        if rows_lost:
            await append_readings(stream, one_per_row(40, first_seq=42))
            await runner.drained()
        await clocks.take("gw", LATE)
        await put_back(server, url)
        await append_readings(stream, one_per_row(40, first_seq=82))
        await woken.wait()
        await clocks.apply_heard()
        await runner.drained()
        found = await times_stored(server, url)
        await clocks.stop()
    assert shown == [EARLY, LATE]
    for seq in before:
        delta_us = 1_000_000 if seq <= 20 else 2_000_000 if seq >= 31 else 0
        assert found[seq] == before[seq] + delta_us
    again = one_per_row(119)
    for seq, time_us in zip(again.seqs, again.times_us, strict=True):
        if seq in found and seq > 40:
            assert found[seq] == time_us + (2_000_000 if seq <= 90 else 0)
    assert len(found) == (121 if rows_lost else 81)


POOR = "DO $$ BEGIN CREATE ROLE poor LOGIN; EXCEPTION WHEN duplicate_object THEN END $$"
REPLICATED = {"wal_level": "replica", "max_wal_senders": "4", "hot_standby": "on"}


async def test_a_standby_that_lagged_is_promoted(stream: EmbeddedStream, tmp_path: Path) -> None:
    """The node finds it by itself, and gives it what it lacks: rows, and corrections of times."""
    woken = asyncio.Event()
    with postgres_server(**REPLICATED) as primary, standby_of(primary, **REPLICATED) as standby:
        name = (await primary.new_database()).rpartition("/")[2]
        hosts = f"127.0.0.1:{standby.port},127.0.0.1:{primary.port}"  # the standby is asked first
        async with running(stream, f"postgresql://tidegate@{hosts}/{name}") as runner:
            assert isinstance(runner.sink, PostgresSink)
            keeper = CorrectionLog(tmp_path / "corrections.db")
            clocks = Clocks(keeper, stream, runner.sink, lambda *_, known: None, woken.set)
            await clocks.start()
            await append_readings(stream, one_per_row(40))
            await runner.drained()
            await clocks.take("gw", EARLY)
            while (await applied(standby, name)) != (40, 1):
                await asyncio.sleep(0.02)
            standby.kill()
            await append_readings(stream, one_per_row(40, first_seq=41))
            await runner.drained()
            await clocks.take("gw", LATE)
            primary.kill()
            standby.start(**REPLICATED)
            await standby.rows(standby.url(name), "SELECT pg_promote()")
            await append_readings(stream, one_per_row(40, first_seq=81))
            await runner.drained()
            await woken.wait()
            await clocks.apply_heard()
            found = await times_stored(standby, standby.url(name))
            await clocks.stop()
        every = one_per_row(120)
        assert found == {
            seq: time_us + (1_000_000 if seq <= 20 else 2_000_000 if 31 <= seq <= 90 else 0)
            for seq, time_us in zip(every.seqs, every.times_us, strict=True)
        }


async def applied(standby: PostgresServer, name: str) -> tuple[int, int]:
    """Return how many rows and corrections a standby has."""
    try:
        (found,) = await standby.rows(
            standby.url(name),
            "SELECT (SELECT count(*) FROM tidegate.readings),"
            " (SELECT count(*) FROM tidegate.corrections)",
        )
    except asyncpg.PostgresError:  # the tables are not there yet
        return 0, 0
    return found[0], found[1]


async def test_slices_dropped_while_rows_are_copied_into_them_lose_and_double_nothing(
    server: PostgresServer, url: str
) -> None:
    """Retention at one node, and another that catches up with readings as old as that."""
    clock = ManualClock()
    config = StorageConfig(linger_ms=0, slice_s=60, age_max_s=3600)
    place = PostgresPlace(f"{url}?sslmode=disable")
    writes = 12
    async with opened(url, config) as sink:
        await sink.write((), {1: 0})  # the tables are there
        other = PostgresSink(place, config, clock)
        await other.open(STREAM)
        await other.cursors()
        done = asyncio.Event()

        async def expire() -> None:
            while not done.is_set():
                with contextlib.suppress(
                    SinkUnavailable
                ):  # of two that wait for each other one ends
                    await other.keep_up()
                await asyncio.sleep(0)

        expiring = asyncio.create_task(expire())
        for n in range(writes):
            old_us = 60_000_000 * (n % 3)
            entries = decoded(
                one_per_row(500, first_seq=500 * n + 1), appended_us=old_us, position=n + 1
            )
            await write_until_it_is_taken(sink, entries)
        done.set()
        await expiring
        async with asyncio.timeout(60):
            while await seqs_stored(server, url):  # one that was ended may hold its lock a moment
                await other.keep_up()
        await other.close()
    kept = await server.rows(
        url,
        "SELECT (SELECT count(*) FROM tidegate.readings),"
        " (SELECT range_agg(seqs)::text FROM tidegate.stored),"
        " (SELECT range_agg(seqs)::text FROM tidegate.expired)",
    )
    whole = f"{{[1,{500 * writes + 1})}}"
    assert kept == [(0, whole, whole)]


async def write_until_it_is_taken(sink: PostgresSink, entries: list[DecodedEntry]) -> None:
    while True:
        try:
            return await sink.write(entries, ends(entries))
        except SinkUnavailable:
            await asyncio.sleep(0)


@pytest.mark.parametrize(
    ("rights", "says"),
    [
        ((), "permission denied for database"),
        (("CREATE SCHEMA tidegate",), "permission denied for schema tidegate"),
        (("CREATE SCHEMA tidegate", "GRANT USAGE ON SCHEMA tidegate TO poor"),
         "permission denied for schema tidegate"),
    ],
)  # fmt: skip
async def test_a_role_without_rights_is_one_line_that_says_which(
    server: PostgresServer, url: str, rights: tuple[str, ...], says: str
) -> None:
    for sql in (POOR, *rights):
        await server.rows(url, sql)
    sink = sink_at(url.replace("tidegate@", "poor@"))
    await sink.open(STREAM)
    with pytest.raises(SinkUnavailable, match=says) as caught:
        await sink.claim({1: 1})
    assert "has to own schema tidegate" in str(caught.value)
    assert "\n" not in str(caught.value)
    await sink.close()


async def test_a_role_that_may_use_a_schema_which_an_admin_has_made(
    server: PostgresServer, url: str
) -> None:
    entries = decoded(one_per_row(10))
    for sql in (POOR, "CREATE SCHEMA tidegate", "GRANT ALL ON SCHEMA tidegate TO poor"):
        await server.rows(url, sql)
    async with opened(url.replace("tidegate@", "poor@")) as sink:
        await sink.write(entries, ends(entries))
    assert await seqs_stored(server, url) == list(range(1, 11))


async def test_a_pooler_that_drops_what_a_connection_asks_for_is_refused(
    server: PostgresServer, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As pgbouncer does with `ignore_startup_parameters`: tables would be made somewhere else."""
    connect = asyncpg.connect

    async def dropping(place: str, *, server_settings: dict[str, str], **options: Any) -> Any:
        return await connect(place, server_settings={}, **options)

    monkeypatch.setattr("cloud.sinks.postgres_link.asyncpg.connect", dropping)
    sink = sink_at(url)
    await sink.open(STREAM)
    with pytest.raises(SinkUnavailable, match="a pooler in between drops settings"):
        await sink.claim({1: 1})
    await sink.close()
    monkeypatch.undo()
    assert await server.rows(url, "SELECT to_regclass('public.readings')") == [(None,)]


async def test_a_limit_on_statements_set_by_others_stops_no_write(
    server: PostgresServer, url: str
) -> None:
    name, admin = url.rpartition("/")[2], server.url("postgres")
    for setting in ("statement_timeout", "lock_timeout", "idle_session_timeout"):
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
