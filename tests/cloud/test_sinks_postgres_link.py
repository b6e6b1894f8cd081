"""A COPY whose server takes no more: it ends with the line, or with the time it may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import asyncpg
import pytest
import uvloop

from cloud.config import StorageConfig
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace, connect
from runtime.clock import ManualClock
from tests.kit.cloud import decoded, ends
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.proxy import Proxy
from tests.kit.readings import readings_of

LARGE = [b"x" * 60_000] * 200  # past what buffers on the way take


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


async def until_it_takes_no_more(sink: PostgresSink, writing: asyncio.Task[None]) -> None:
    """Return once the driver has been told to write no more, or the write has failed for that."""
    transport: Any = sink._connection._transport
    last = -1
    while (size := transport.get_write_buffer_size()) != last or size < 100_000:
        if writing.done():
            return
        last = size
        await asyncio.sleep(0.2)


async def stalled(
    server: PostgresServer, then: Callable[[Proxy], None], give_up_s: float
) -> tuple[str, Sequence[DecodedEntry]]:
    """Stop taking what a write sends, do `then`, and have it written again once all is well."""
    url = await server.new_database()
    entries = decoded(readings_of(LARGE))
    async with Proxy("127.0.0.1", server.port) as proxy:
        through = url.replace(str(server.port), str(proxy.port))
        sink = PostgresSink(
            PostgresPlace(f"{through}?sslmode=disable"), StorageConfig(), ManualClock()
        )
        await sink.open(1)
        await sink.claim(dict.fromkeys(range(64), 1))
        begin = sink._writer._copy

        async def copy(*arguments: Any, **options: Any) -> int:
            proxy.pause()
            with pytest.MonkeyPatch.context() as patch:  # all else takes as long as it takes
                patch.setattr("cloud.sinks.postgres_link._COMMAND_TIMEOUT_S", give_up_s)
                return await begin(*arguments, **options)

        sink._writer._copy = copy  # type: ignore[method-assign]
        writing = asyncio.create_task(sink.write(entries, ends(entries)))
        async with asyncio.timeout(60):
            await until_it_takes_no_more(sink, writing)
            then(proxy)
            with pytest.raises(SinkUnavailable):
                await writing
        sink._writer._copy = begin  # type: ignore[method-assign]
        proxy.heal()
        await sink.write(entries, ends(entries))
        await sink.close()
    return url, entries


def check(
    server: PostgresServer,
    loop: Callable[[], Any],
    then: Callable[[Proxy], None],
    give_up_s: float = 120.0,
) -> None:
    with asyncio.Runner(loop_factory=loop) as runner:
        url, entries = runner.run(stalled(server, then, give_up_s))
        sql = "SELECT count(*), count(DISTINCT seq) FROM tidegate.readings"
        count = sum(one.entry.count for one in entries)
        assert runner.run(server.rows(url, sql)) == [(count, count)]


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_line_that_breaks_while_a_copy_waits_for_room_ends_it(
    server: PostgresServer, loop: Callable[[], Any]
) -> None:
    check(server, loop, Proxy.cut)


@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_copy_that_waits_for_room_too_long_is_ended(
    server: PostgresServer, loop: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.sinks.postgres_write._ROLL_BACK_S", 0.2)
    check(server, loop, lambda _proxy: None, give_up_s=2.0)


async def test_a_first_server_that_says_nothing_keeps_nobody_from_the_second(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose machine is gone: nothing refuses the line."""
    dial = asyncpg.connect

    async def impatient(url: str, **options: Any) -> Any:
        if options.get("port") == silent_port:
            options["timeout"] = 0.05
        return await dial(url, **options)

    monkeypatch.setattr(asyncpg, "connect", impatient)
    gone = asyncio.Event()

    async def say_nothing(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await gone.wait()
        writer.close()

    async with await asyncio.start_server(say_nothing, "127.0.0.1", 0) as silent:
        silent_port = silent.sockets[0].getsockname()[1]
        name = (await server.new_database()).rpartition("/")[2]
        hosts = f"127.0.0.1:{silent_port},127.0.0.1:{server.port}"
        place = PostgresPlace(f"postgresql://tidegate@{hosts}/{name}")
        connection = await connect(place, "test")
        assert await connection.fetchval("SELECT inet_server_port()") == server.port
        await connection.close()
        gone.set()
