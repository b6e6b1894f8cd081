"""PostgreSQL asked: the same answers as storage.db gives, and a whole node that stores there."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bridge.intervals import ranges_of
from cloud.alerts.engine import Batch
from cloud.config import SinksConfig, StorageConfig
from cloud.database import DatabaseError
from cloud.latest import Latest
from cloud.ledger_files import balance_files
from cloud.node import Node
from cloud.query import QueryError, QueryResult, ReadingsQuery
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.postgres import PostgresSink
from cloud.sinks.postgres_link import PostgresPlace
from cloud.storage import StorageReader
from cloud.storage_file import StorageFile
from cloud.storage_postgres import StoragePostgres
from cloud.stream.contract import Entry
from runtime.clock import ManualClock
from tests.kit.alerts import batch, us
from tests.kit.cloud import Uplink
from tests.kit.nodes import node_config, run_command, running_node
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.readings import one_per_row
from tests.kit.storage import stored

MINUTE_US = 60_000_000
BATCHES = [
    batch(
        [
            (10 * n, f"devices/boiler-{n % 3}/state", {"t": [n, n / 2], "ok": n % 3 == 0})
            for n in range(60)
        ],
        received=600,
    ),
    batch([(60 * n + 1, "devices/fan/speed", n * 100) for n in range(10)], received=601,
          first_seq=100),
    batch([(3, "devices/odd/a", b"\xff\x00"), (4, "devices/odd/b", b""),
           (5, "devices/odd/c", b"[x]"), (6, "devices/a.b/x", b"7"), (7, "devices/a-b/x", b"8"),
           (8, "devices/ábc/ü", b"9"), (9, "devices/x", b"1"), (2, "$SYS/x", b"10"),
           (2, "devices/same/x", b"11"), (2, "devices/same/y", b"12")],
          received=602, first_seq=200, gateway="gw2"),
]  # fmt: skip
QUERIES: list[dict[str, Any]] = [
    {},
    {"newest_first": False},
    {"devices": ("boiler-0",)},
    {"devices": ("boiler-*",)},
    {"devices": ("boiler-[01]", "fan")},
    {"devices": ("boiler-[!0]",)},
    {"devices": ("?an", "a.b")},
    {"devices": ("a?b",)},
    {"devices": ("[f]an",)},
    {"devices": ("nobody",)},
    {"devices": ("á*",)},
    {"topic": "devices/+/state"},
    {"topic": "devices/a.b/x"},
    {"topic": "devices/a.b/#"},
    {"topic": "devices/#"},
    {"topic": "+/+"},
    {"topic": "+/x"},
    {"topic": "devices/ábc/+"},
    {"topic": "$SYS/#"},
    {"start_us": us(100), "end_us": us(200)},
    {"start_us": -(1 << 80), "end_us": 1 << 80},
    {"field": "t[0]"},
    {"field": "ok", "devices": ("boiler-1",)},
    {"every_us": MINUTE_US, "devices": ("fan",)},
    {"every_us": MINUTE_US, "field": "t[1]", "aggregate": "max", "newest_first": False},
    {"every_us": MINUTE_US, "field": "t[1]", "aggregate": "last", "devices": ("boiler-*",)},
]


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    with postgres_server() as server:
        yield server


async def fill(url: str) -> PostgresPlace:
    place = PostgresPlace(url)
    sink = PostgresSink(place, StorageConfig(), ManualClock())
    await sink.open(1)
    await sink.claim({0: 1})
    for position, one in enumerate(BATCHES, 1):
        await sink.write([entry_of(one, position)], {0: position})
    await sink.close()
    return place


def entry_of(one: Batch, position: int) -> DecodedEntry:
    readings = one.readings
    entry = Entry(
        0, position, one.gateway, one.epoch, ranges_of(readings.seqs), len(readings),
        one.received_us, b"",
    )  # fmt: skip
    return DecodedEntry(entry, readings, historical=False)


@pytest.fixture(scope="module")
def both(
    server: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> tuple[StorageFile, StoragePostgres]:
    path = tmp_path_factory.mktemp("storage") / "storage.db"

    async def make() -> PostgresPlace:
        async with stored(path, *BATCHES):
            pass
        return await fill(await server.new_database())

    return StorageFile(path), StoragePostgres(asyncio.run(make()))


@pytest.fixture
async def opened(both: tuple[StorageFile, StoragePostgres]) -> AsyncIterator[list[StorageReader]]:
    for one in both:
        await one.open()
    yield list(both)
    for one in both:
        await one.close()


async def pages(storage: StorageReader, keys: dict[str, Any], limit: int) -> QueryResult:
    """Return the whole answer, asked for page by page."""
    whole = await storage.ask(ReadingsQuery(**keys, limit=limit))
    page = whole
    while page.next:
        page = await storage.ask(ReadingsQuery(**keys, limit=limit, after=page.next))
        whole.rows.extend(page.rows)
    return whole


@pytest.mark.parametrize("keys", QUERIES, ids=str)
async def test_the_same_answers(
    both: tuple[StorageFile, StoragePostgres], keys: dict[str, Any]
) -> None:
    file, postgres = both
    limit = 1000 if "every_us" in keys else 7
    expected, found = await pages(file, keys, limit), await pages(postgres, keys, limit)

    def by_time(row: Any) -> Any:
        return row.time_us, row.gateway, row.seq

    assert sorted(map(repr, found.rows)) == sorted(map(repr, expected.rows))
    assert found.steps == expected.steps
    times = [row.time_us for row in found.rows]
    rising = keys.get("newest_first", True) is False
    assert all((a <= b) if rising else (a >= b) for a, b in pairwise(times))
    assert len({by_time(row) for row in found.rows}) == len(found.rows)


async def test_the_same_ledger_and_rows(opened: list[StorageReader]) -> None:
    file, postgres = opened
    for count_rows in (True, False):
        assert await postgres.state(count_rows=count_rows) == await file.state(
            count_rows=count_rows
        )
    assert await postgres.positions(1) == await file.positions(1) == {0: 3}
    assert await postgres.positions(2) == await file.positions(2) == {}
    for seq in (200, 203, 999):
        assert await postgres.row("gw2", 7, seq) == await file.row("gw2", 7, seq)
    assert not await postgres.expired("gw2", 7, 200)
    for device, time_us in (("fan", us(1e9)), ("fan", us(5)), ("fan", us(0)), ("none", us(9))):
        assert await postgres.newest(device, time_us) == await file.newest(device, time_us)


async def test_latest_values_are_rebuilt_the_same(opened: list[StorageReader]) -> None:
    tables = []
    for one in opened:
        latest = Latest()
        assert await latest.rebuild(one, us(500)) == 10
        tables.append([latest.device(found.device) for found in latest.devices(limit=100)])
    assert tables[0] == tables[1]


async def test_nodes_that_start_at_once_read_everything_in_turn(
    opened: list[StorageReader],
) -> None:
    _, postgres = opened
    assert isinstance(postgres, StoragePostgres)
    others = [StoragePostgres(postgres.place) for _ in range(2)]
    for one in others:
        await one.open()
    async with others[0].rebuild_turn():
        waiting = asyncio.create_task(Latest().rebuild(others[1], us(500)))
        done, _ = await asyncio.wait([waiting], timeout=0.3)
        assert not done
    assert await waiting == 10
    async with others[0].rebuild_turn():
        waiting = asyncio.create_task(Latest().rebuild(others[1], us(500)))
        await others[0].close()  # a node that dies holds up nobody
        assert await waiting == 10
    await others[1].close()


async def test_a_question_that_takes_too_long_is_ended(
    both: tuple[StorageFile, StoragePostgres], server: PostgresServer, monkeypatch: Any
) -> None:
    _, postgres = both
    monkeypatch.setattr("cloud.storage_postgres._PAYLOAD", "pg_sleep(10)::text::bytea AS payload")
    with pytest.raises(QueryError, match=r"took longer than 0\.1 s"):
        await postgres.ask(ReadingsQuery(every_us=MINUTE_US), timeout_s=0.1)


async def test_nothing_there_is_one_line(server: PostgresServer) -> None:
    url = await server.new_database()
    with pytest.raises(DatabaseError, match="nothing was stored there yet"):
        await StoragePostgres(PostgresPlace(url)).ask(ReadingsQuery())
    with pytest.raises(DatabaseError, match="nobody listens there"):
        await StoragePostgres(PostgresPlace("postgresql://127.0.0.1:1/x")).ask(ReadingsQuery())


# ---- a node --------------------------------------------------------------------------------------


async def send(node: Node, count: int, first_seq: int = 1) -> None:
    uplink = Uplink(node.capture)
    uplink.send(uplink.batch(one_per_row(count, first_seq=first_seq)))
    assert await uplink.answered() == [0]


async def test_a_node_stores_in_postgres(
    server: PostgresServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = await server.new_database()
    monkeypatch.setenv("TIDEGATE_STORAGE_URL", url)
    config = node_config(tmp_path, storage=StorageConfig(url=url, linger_ms=0))
    async with running_node(tmp_path, config=config) as node:
        await send(node, 300)
        await node.sinks.drained()
        assert (await node.balance(thorough=True)).balanced
        assert node.status().readings_stored == 300
        audit = await run_command("audit", "--data", tmp_path)
        assert (audit.code, "300 assigned = 300 stored" in audit.out) == (0, True)
        query = await run_command("query", "--data", tmp_path, "d3", "--format", "json")
        assert len(json.loads(query.out)) == 43
        trace = await run_command("trace", "--data", tmp_path, "gw", "7")
        assert trace.code == 0
        assert not (tmp_path / "cloud" / "storage.db").exists()
    async with running_node(tmp_path, config=config) as node:
        await node.sinks.drained()
        assert node.status().readings_stored == 0
        assert (await balance_files(tmp_path, config=config.storage)).balanced


async def test_a_node_outlives_its_database(tmp_path: Path) -> None:
    """It starts without, takes readings, stores them when it comes, and again after a kill."""
    with postgres_server() as server:
        url = await server.new_database()
        server.kill()
        config = node_config(
            tmp_path,
            storage=StorageConfig(url=url, linger_ms=0),
            sinks=SinksConfig(retry_s=0.05, retry_max_s=0.2),
        )
        async with running_node(tmp_path, config=config) as node:
            await send(node, 100)
            storage = node.sinks.runners["storage"]
            stats = await storage.stats()
            assert "nobody listens there" in stats.cause
            assert sum(lag.readings for lag in stats.lag.values()) == 100
            server.start()
            async with asyncio.timeout(60):
                await node.sinks.drained()
            server.kill()
            await send(node, 100, first_seq=101)
            assert node.ready() == []
            server.start()
            async with asyncio.timeout(60):
                await node.sinks.drained()
            assert await node.stream.dead_letters() == []
            report = await node.balance(thorough=True)
            assert report.balanced
            assert report.sources[0].stored == 200


def test_a_malformed_address_is_one_line(tmp_path: Path) -> None:
    arguments = ["cloud", "--data", tmp_path, "--storage-url", "mysql://me:hunter2@x/y"]
    said = subprocess.run(
        [sys.executable, "-m", "tidegate", *arguments, "--port", "0", "--http-port", "0"],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert said.returncode == 1
    assert "storage.url: expected postgresql://" in said.stderr
    assert "hunter2" not in said.stderr + said.stdout
    assert "Traceback" not in said.stderr
