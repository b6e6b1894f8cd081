"""Both stores of commands keep the same contract: a file of one node, buckets of a cluster."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path

import pytest

from bridge.commands import DELIVERED, HELD
from bridge.partition import partition_of
from cloud.cluster.commands import ClusterCommandStore
from cloud.cluster.connection import Unanswered
from cloud.cluster.control import Control
from cloud.cluster.corrections import ClusterCorrections
from cloud.commands.contract import (
    WAITING,
    CommandBody,
    CommandChanged,
    CommandRefused,
    CommandRow,
    CommandStore,
)
from cloud.commands.store import SqliteCommandStore
from tests.kit.nats import NatsServers, connected, make_layout, nats_single
from tests.kit.sites import until

NUMBERS = count()
BODY = CommandBody(b"open", b"")
ALL = range(64)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


def row_of(command_id: str, created_us: int = 1, **fields: object) -> CommandRow:
    row = CommandRow(command_id, "d1", "devices/d1/cmd/x", 1, 4, created_us, 10**15, WAITING, "",
                     "", created_us, "")  # fmt: skip
    return replace(row, **fields)  # type: ignore[arg-type]


class Watcher:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.rows: dict[str, CommandRow] = {}
        self.recalls: set[tuple[str, str]] = set()

    def row_changed(self, row: CommandRow) -> None:
        self.rows[row.command_id] = row

    def row_gone(self, command_id: str) -> None:
        self.rows.pop(command_id, None)

    def recall_changed(self, gateway: str, command_id: str, *, there: bool) -> None:
        (self.recalls.add if there else self.recalls.discard)((gateway, command_id))


@asynccontextmanager
async def cluster_stores(
    servers: NatsServers, number: int, **options: int
) -> AsyncIterator[list[ClusterCommandStore]]:
    layout = await make_layout(servers, f"s{next(NUMBERS)}", **options)
    async with AsyncExitStack() as stack:
        stores = []
        for one in range(number):
            connection = await stack.enter_async_context(connected(servers))
            control = Control(connection, layout)
            stores.append(ClusterCommandStore(connection, layout, control, f"node-{one}", 60))
            await control.start()
            stack.push_async_callback(control.stop)
            await stores[-1].open(1)
        yield stores


@pytest.fixture(params=["file", "cluster"])
async def store(
    request: pytest.FixtureRequest, servers: NatsServers, tmp_path: Path
) -> AsyncIterator[CommandStore]:
    if request.param == "cluster":
        async with cluster_stores(servers, 1) as (one,):
            yield one
        return
    file = SqliteCommandStore(tmp_path / "commands.db", "node-0")
    await file.open(1)
    yield file
    await file.close()


async def test_a_command_is_kept_found_and_settled(store: CommandStore) -> None:
    ((row, fresh),) = await store.add([(row_of("a"), BODY)])
    assert fresh
    ((same, fresh),) = await store.add([(row_of("a", 2), CommandBody(b"shut", b""))])
    assert not fresh
    assert same == row == await store.find("a")
    assert await store.body(row) == BODY
    held = await store.save(replace(row, state=HELD, gateway="g"))
    assert await store.find("a") == held
    done = await store.save(replace(held, state=DELIVERED, detail="so"))
    told = await store.save(replace(done, told=True))
    assert await store.find("a") == told
    ((_, fresh),) = await store.add([(row_of("a", 3), BODY)])
    assert not fresh  # known, though it is over


async def test_commands_are_listed(store: CommandStore) -> None:
    rows = [row_of("a", 1), row_of("b", 2, device="d2"), row_of("c", 3)]
    found = [row for row, _ in await store.add([(row, BODY) for row in rows])]
    last = await store.save(replace(found[2], state=DELIVERED, told=True))
    while len(await store.newest(None, None, 9)) < 3 or len(await store.unfinished()) != 2:
        await asyncio.sleep(0.005)  # a cluster's watch takes a moment
    assert [row.command_id for row in await store.newest(None, None, 2)] == ["c", "b"]
    assert [row.command_id for row in await store.newest("d1", WAITING, 9)] == ["a"]
    assert await store.newest(None, DELIVERED, 9) == [last]
    assert [row.command_id for row in await store.unfinished()] == ["a", "b"]
    assert await store.find("none") is None


async def test_recalls_last_until_they_are_answered(store: CommandStore) -> None:
    ((row, _),) = await store.add([(row_of("a"), BODY)])
    await store.save(replace(row, gateway="h"), ("g", "a"))
    await store.recall("g", "b")
    while set(await store.recalls()) != {("g", "a"), ("g", "b")}:
        await asyncio.sleep(0.005)
    await store.recalled("g", "a")
    while set(await store.recalls()) != {("g", "b")}:
        await asyncio.sleep(0.005)


async def test_who_carries_what_is_kept_by_partition(store: CommandStore) -> None:
    names = {"d1": "g", "a device/with #signs": "h", "x" * 5000: "g"}
    assert await store.carriers(ALL) == {}
    await store.follow(names, {1: 5})
    await store.follow({"d1": "h"}, {1: 6})
    assert await store.carriers(ALL) == {**names, "d1": "h"}
    assert await store.carriers([partition_of("d1")]) == {
        device: gateway
        for device, gateway in {**names, "d1": "h"}.items()
        if partition_of(device) == partition_of("d1")
    }
    assert await store.carrier("d1") == "h"
    assert await store.carrier("nobody") is None
    assert await store.cursors() in (None, {1: 6})
    assert store.is_node("node-0")
    assert not store.is_node("g")


# ---- what only several nodes can do --------------------------------------------------------------


async def test_of_two_nodes_that_decide_one_is_told_no(servers: NatsServers) -> None:
    async with cluster_stores(servers, 2) as (one, two):
        seen = Watcher()
        await two.watch(seen)
        ((row, _),) = await one.add([(row_of("a"), BODY)])
        await until("the other knows", lambda: seen.rows == {"a": row})
        saved = await two.save(replace(row, state=HELD))
        with pytest.raises(CommandChanged):
            await one.save(replace(row, state=DELIVERED))
        assert await one.find("a") == saved
        await one.recall("g", "a")
        await until("and of recalls", lambda: seen.recalls == {("g", "a")})
        await one.recalled("g", "a")
        await until("answered ones too", lambda: not seen.recalls)
        await until("and that it is a node", lambda: one.is_node("node-1"))


async def test_a_holder_that_was_overtaken_cannot_say_who_carries_a_device(
    servers: NatsServers,
) -> None:
    async with cluster_stores(servers, 2) as (late, early):
        await late.carriers(ALL)
        await late.follow({"d1": "g-1"}, {})
        assert await early.carriers(ALL) == {"d1": "g-1"}  # it takes over
        await early.follow({"d1": "g-2"}, {})
        with pytest.raises(CommandChanged):
            await late.follow({"d1": "g-1"}, {})
        assert await late.carrier("d1") == "g-2"


async def test_a_body_without_a_command_leaves_nothing_behind(servers: NatsServers) -> None:
    """The process goes between the two: the same id is taken again, with its own body."""
    async with cluster_stores(servers, 1) as (one,):
        await one._put_body(row_of("a", 1), CommandBody(b"lost", b""))
        ((row, fresh),) = await one.add([(row_of("a", 2), BODY)])
        assert fresh
        assert await one.body(row) == BODY


async def test_a_full_cluster_refuses_commands_and_keeps_what_it_has(servers: NatsServers) -> None:
    async with cluster_stores(servers, 1, bucket_bytes_max=1 << 20) as (one,):
        large = CommandBody(bytes(400_000), b"")
        await one.add([(row_of("a"), large)])
        await one.add([(row_of("b"), large)])
        with pytest.raises(CommandRefused, match="no more room"):
            await one.add([(row_of("c"), large)])
        row = await one.find("a")
        assert row is not None
        assert await one.body(row) == large
        assert await one.find("c") is None


async def test_values_that_somebody_altered_are_passed_over(servers: NatsServers) -> None:
    """Each kind, at start and while it runs: one line, and what comes after them is heard."""
    layout = await make_layout(servers, f"s{next(NUMBERS)}")
    async with connected(servers) as connection:
        bucket = Control(connection, layout).bucket
        await bucket.put("c.before", b"no command")
        control = Control(connection, layout)
        store = ClusterCommandStore(connection, layout, control, "node-1", 60)
        corrections = ClusterCorrections(control)
        await control.start()
        try:
            await store.open(1)
            for key in ("c.x", "r.x.y", "n.x", "x.gw.1.1"):
                await bucket.put(key, b"\xff not ours")
            await store.add([(row_of("a"), BODY)])
            await until("it is heard of", lambda: "c.a" in store._rows)
            assert [row.command_id for row in await store.unfinished()] == ["a"]
            assert await corrections.all(lambda _gateway, _correction: None) == []
        finally:
            await control.stop()


async def test_a_store_that_opens_between_two_leaders_waits_for_one(servers: NatsServers) -> None:
    layout = await make_layout(servers, f"s{next(NUMBERS)}")
    async with connected(servers) as connection:
        control = Control(connection, layout)
        put, failed = control.bucket.put, []

        async def fails_once(key: str, value: bytes, *, ttl_s: float | None = None) -> int:
            if not failed:
                failed.append(key)
                raise Unanswered("between two leaders")
            return await put(key, value, ttl_s=ttl_s)

        control.bucket.put = fails_once  # type: ignore[method-assign]
        store = ClusterCommandStore(connection, layout, control, "node-1", 60)
        await store.open(1)
        assert await control.bucket.get(failed[0]) is not None
