"""Leases on a real bucket: shares, hand-over on stop, death and join, tokens, a stalled holder."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import Connection, NoResponders, Unanswered
from cloud.cluster.layout import Layout
from cloud.cluster.leases import Leases, LeaseTimes
from cloud.cluster.skew import SkewWatch
from runtime.clock import Clock, ManualClock, SystemClock
from tests.kit.nats import NatsServers, connected, make_layout, nats_single
from tests.kit.sites import SkewedClock

TIMES = LeaseTimes(ttl_s=60.0, renew_s=0.2, moves_max=8)  # none runs out, however slow we are
SHORT = replace(TIMES, ttl_s=2.0)  # where they are to run out


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("leases"), disk_bytes_max=8 << 30) as servers:
        yield servers


@pytest.fixture
async def bucket(servers: NatsServers, request: pytest.FixtureRequest) -> AsyncIterator[Bucket]:
    name = f"c{abs(hash(request.node.name)) % 10**9}"
    layout: Layout = await make_layout(
        servers, name, raw_bytes_max=4 << 20, ledger_bytes_max=1 << 20, bucket_bytes_max=1 << 20
    )
    async with connected(servers) as connection:
        yield Bucket(connection, layout.bucket("leases"))


class Worker:
    """A node's leases with a worker that works on whatever it may."""

    def __init__(self, leases: Leases, sink: str = "storage") -> None:
        self.leases = leases
        self.ownership = leases.of(sink)
        self.worked: dict[int, int] = {}
        self.history: list[dict[int, int]] = []
        self.stuck = False
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        await self.leases.start()
        self._task = asyncio.create_task(self._work())

    async def _work(self) -> None:
        while True:
            await self.ownership.changed(self.worked)
            if self.stuck:
                await asyncio.sleep(0.01)
                continue
            self.worked = self.ownership.held()
            self.history.append(self.worked)
            self.ownership.working(self.worked)

    async def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        self.ownership.working({})
        await self.leases.stop()

    async def kill(self) -> None:
        """End without a word, as kill -9 does."""
        for task in (self._task, self.leases._task):
            if task is not None:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        self._task = self.leases._task = None


@asynccontextmanager
async def nodes(
    bucket: Bucket, *names: str, clock: Clock | None = None, times: LeaseTimes = TIMES
) -> AsyncIterator[list[Worker]]:
    workers = [Worker(Leases(bucket, name, clock or SystemClock(), times)) for name in names]
    async with asyncio.timeout(60):
        for worker in workers:
            await worker.start()
        try:
            yield workers
        finally:
            for worker in workers:
                await worker.stop()


async def until(check: Callable[[], bool]) -> None:
    while not check():
        await asyncio.sleep(0.01)


async def renewed(worker: Worker, times: int) -> None:
    """Return when a node has renewed all it holds some times more."""
    for _ in range(times):
        before = {p: lease.revision for p, lease in worker.ownership.leases.items()}
        await until(
            lambda before=before: all(  # type: ignore[misc]
                lease.revision > before.get(p, 0) for p, lease in worker.ownership.leases.items()
            )
        )


def shares(workers: list[Worker]) -> list[int]:
    """Return how much each may work on, -1 while its worker has not heard of it."""
    return [
        len(held) if worker.stuck or worker.worked == held else -1
        for worker, held in ((worker, worker.ownership.held()) for worker in workers)
    ]


async def test_one_node_has_everything(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as workers:
        await until(lambda: shares(workers) == [64])
        assert sorted(workers[0].worked) == list(range(64))


async def test_nodes_share_evenly_and_nobody_twice(bucket: Bucket) -> None:
    async with nodes(bucket, "a", "7", "c d") as workers:  # nodes may be called anything
        await until(lambda: sorted(shares(workers)) == [21, 21, 22])
        held = Counter(p for worker in workers for p in worker.worked)
        assert held == Counter(range(64))
        holders = {one.partition: one.node for one in workers[0].leases.holders()}
        assert holders == {p: w.leases.node for w in workers for p in w.worked}


async def test_a_node_that_joins_takes_its_share_a_few_at_a_time(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        before = first.worked
        async with nodes(bucket, "b") as (second,):
            await until(lambda: shares([first, second]) == [32, 32])
            sizes = [len(one) for one in first.history if len(one) <= 64]
            assert max(a - b for a, b in zip(sizes[-40:], sizes[-39:], strict=False)) <= 8
            stayed = first.worked
            assert all(before[p] == token for p, token in stayed.items())
            assert all(token > before[p] for p, token in second.worked.items())
        await until(lambda: shares([first]) == [64])


async def test_an_orderly_stop_hands_over_at_once(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        async with nodes(bucket, "b") as (second,):  # its leases do not run out: it deletes them
            await until(lambda: shares([first, second]) == [32, 32])
        await until(lambda: shares([first]) == [64])
        assert [one.node for one in first.leases.nodes()] == ["a"]
        assert second.leases.stats()["storage"].given_up >= 32


class BetweenLeaders(Bucket):
    """A bucket whose next changes of either kind nobody answers."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._connection, bucket.name)
        self.failing = {"put", "delete"}

    async def put(self, key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        if "put" in self.failing:
            self.failing.discard("put")
            raise Unanswered("between two leaders")
        return await super().put(key, value, ttl_s=ttl_s)

    async def delete(self, key: str, *, revision: int | None = None) -> int:
        if "delete" in self.failing:
            self.failing.discard("delete")
            raise NoResponders("between two leaders")
        return await super().delete(key, revision=revision)


async def test_a_node_that_starts_between_two_leaders_waits_for_one(bucket: Bucket) -> None:
    between = BetweenLeaders(bucket)
    async with nodes(between, "a") as workers:
        assert not between.failing
        await until(lambda: shares(workers) == [64])


class HangsInUpdates(Bucket):
    """A bucket that stores renewals and, while `deaf`, never hears the answers."""

    def __init__(self, bucket: Bucket) -> None:
        super().__init__(bucket._connection, bucket.name)
        self.deaf = False
        self.unheard = 0

    async def update(
        self, key: str, value: bytes, revision: int, *, ttl_s: float | None = None
    ) -> int:
        found = await super().update(key, value, revision, ttl_s=ttl_s)
        if self.deaf:
            self.unheard += 1
            await asyncio.Event().wait()
        return found


async def test_a_stop_in_the_midst_of_a_renewal_hands_over_at_once(bucket: Bucket) -> None:
    hangs = HangsInUpdates(bucket)
    worker = Worker(Leases(hangs, "b", SystemClock(), TIMES))
    async with asyncio.timeout(60):
        await worker.start()
        await until(lambda: shares([worker]) == [64])
        hangs.deaf = True
        await until(lambda: hangs.unheard == 64)
        await worker.stop()
    assert worker.leases.stats()["storage"].given_up == 64
    assert worker.leases.stats()["storage"].lost == 0
    assert [await bucket.get(f"storage.{p}") for p in range(64)] == [None] * 64


async def test_an_unheard_renewal_loses_no_lease(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        before = first.worked
        leases = first.ownership.leases.values()
        known = max(lease.revision for lease in leases)
        for lease in leases:
            lease.revision -= 1  # as if the answer to the last renewal were lost
        await until(lambda: all(lease.revision > known for lease in leases))
        assert first.worked == before
        assert first.leases.stats()["storage"].lost == 0


async def test_a_killed_nodes_work_moves_when_its_leases_run_out(bucket: Bucket) -> None:
    async with nodes(bucket, "a", "b", times=SHORT) as (first, second):
        await until(lambda: shares([first, second]) == [32, 32])
        tokens = second.worked
        await second.kill()

        def moved() -> bool:
            # by its own clock, nobody told it, and before others could have them
            both = first.worked.keys() & second.ownership.held().keys()
            assert not both
            return shares([first]) == [64]

        await until(moved)
        assert all(first.worked[p] > token for p, token in tokens.items())
        assert second.ownership.held() == {}


async def test_a_stalled_holder_holds_nothing_when_it_wakes(bucket: Bucket) -> None:
    clock = ManualClock()
    worker = Worker(Leases(bucket, "a", clock, TIMES))
    await worker.start()
    async with asyncio.timeout(60):
        await until(lambda: shares([worker]) == [64])
    await worker.kill()
    worker.stuck = True
    clock.advance(TIMES.ttl_s - 0.01)
    assert len(worker.ownership.held()) == 64
    clock.advance(0.02)
    assert worker.ownership.held() == {}
    await worker.leases.stop()


async def test_draining_waits_for_the_worker(bucket: Bucket) -> None:
    async with nodes(bucket, "a", "b") as (first, second):
        await until(lambda: shares([first, second]) == [32, 32])
        await until(lambda: len(second.worked) == 32)
        second.stuck = True
        draining = asyncio.create_task(second.leases.drain())
        await until(lambda: shares([second]) == [0])
        await renewed(first, 3)
        assert shares([first]) == [32]  # the worker has not ended yet
        assert not draining.done()
        second.stuck = False
        await draining
        await until(lambda: shares([first]) == [64])
        assert {one.node: one.draining for one in first.leases.nodes()} == {"a": False, "b": True}


async def test_what_a_node_is_too_slow_to_take_is_taken_by_others(bucket: Bucket) -> None:
    """It is there and says so, and holds nothing."""
    said = {"node": "slow", "sinks": ["storage"], "instance": "i", "layout": 1}
    await bucket.put("node.slow", json.dumps(said).encode(), ttl_s=60)
    async with nodes(bucket, "a", "b", times=SHORT) as workers:
        await until(lambda: sum(shares(workers)) == 64)
        held = Counter(p for worker in workers for p in worker.worked)
        assert held == Counter(range(64))


async def test_only_nodes_with_the_sink_share_it(bucket: Bucket) -> None:
    plain = Leases(bucket, "b", SystemClock(), TIMES)
    plain.of("live")
    await plain.start()
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        assert len(first.leases.nodes()) == 2
    await plain.stop()


async def test_a_lease_lost_to_another_is_let_go(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        await bucket.put("storage.5", b'{"node": "x", "token": 0}')
        await until(lambda: 5 not in first.worked)
        assert first.leases.stats()["storage"].lost == 1

        def holder() -> str:
            return next((h.node for h in first.leases.holders() if h.partition == 5), "")

        await until(lambda: holder() == "x")


async def test_a_newer_token_in_the_store_ends_a_lease(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        token = first.worked[7]
        first.ownership.fenced({7: token - 1})
        assert first.ownership.held()[7] == token
        first.ownership.fenced({7: token})
        assert 7 not in first.ownership.held()


async def test_two_nodes_of_one_name_share_nothing(bucket: Bucket) -> None:
    async with nodes(bucket, "a") as (first,):
        await until(lambda: shares([first]) == [64])
        async with nodes(bucket, "a") as (second,):
            await until(lambda: bool(first.leases.nodes()))
            await renewed(first, 2)
            assert shares([second]) == [0]  # the leases keep them apart
            instances = {one.instance for one in second.leases.nodes()}
            assert len(instances) == 1
        assert shares([first]) == [64]


async def test_the_bucket_away_for_longer_than_a_lease(tmp_path: Path) -> None:
    """Nobody works without a lease, and all is taken again when the servers are back."""
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        connection = await Connection.open(servers.url, name="test")
        bucket = Bucket(connection, layout.bucket("leases"), timeout_s=0.5)
        try:
            async with nodes(bucket, "a", times=SHORT) as (first,):
                await until(lambda: shares([first]) == [64])
                tokens = first.worked
                servers[0].kill()
                await until(lambda: shares([first]) == [0])
                servers[0].start()
                await until(lambda: shares([first]) == [64])
                await until(lambda: len(first.worked) == 64)
                assert all(first.worked[p] >= token for p, token in tokens.items())
        finally:
            await connection.close()


async def test_a_bucket_purged_by_hand_is_shared_out_anew(bucket: Bucket) -> None:
    async with nodes(bucket, "a", "b") as workers:
        await until(lambda: shares(workers) == [32, 32])
        tokens = {p: token for worker in workers for p, token in worker.worked.items()}
        await bucket._connection.api(f"STREAM.PURGE.{bucket.stream}")
        await until(lambda: all(worker.leases.stats()["storage"].lost for worker in workers))
        await until(lambda: sorted(shares(workers)) == [32, 32])
        taken = {p: token for worker in workers for p, token in worker.worked.items()}
        assert all(taken[p] > token for p, token in tokens.items())


async def test_keys_that_no_node_wrote_are_overlooked(bucket: Bucket) -> None:
    keys = ("foo", "foo.bar", "storage.64", "storage.-1", "storage.x", "node.x", "a.b.c")
    async with nodes(bucket, "a") as workers:
        for key in keys:
            for value in (b"", b"junk", b"[1]", b'{"node": 5, "sinks": 7, "layout": "x"}'):
                await bucket.put(key, value)
        await until(lambda: shares(workers) == [64])
        async with nodes(bucket, "b") as others:  # one that starts, and reads them all
            await until(lambda: shares([*workers, *others])[1] > 0)


def test_announcements_that_come_all_at_once_are_no_clock_that_is_wrong() -> None:
    """As of a node that hung for 20 s, and of the one that wakes and reads what has waited."""
    watch = SkewWatch()
    with capture_logs() as logs:
        for seconds in range(0, 20, 2):
            watch.saw("other", seconds * 1_000_000, 20_000_000 + seconds)
        assert logs == []
        for seconds in range(0, 8, 2):
            watch.saw("other", seconds * 1_000_000, (20 + seconds) * 1_000_000)
    assert {line["event"] for line in logs} == {"clocks_differ"}


async def test_a_lease_that_no_node_wrote_is_tried_once_a_renewal(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls: Counter[str] = Counter()
    create, put = bucket.create, bucket.put

    async def created(key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        calls[key] += 1
        return await create(key, value, ttl_s=ttl_s)

    async def was_put(key: str, value: bytes, *, ttl_s: float | None = None) -> int:
        calls[key] += 1
        return await put(key, value, ttl_s=ttl_s)

    await bucket.put("storage.5", b"junk")  # and nothing ends it
    monkeypatch.setattr(bucket, "create", created)
    monkeypatch.setattr(bucket, "put", was_put)
    async with nodes(bucket, "a") as (worker,):
        await until(lambda: shares([worker]) == [63])
        await renewed(worker, 4)
        assert 1 < calls["storage.5"] <= calls["node.a"]
        assert capsys.readouterr().out.count("lease_unreadable") == 1
        await bucket.delete("storage.5")
        await until(lambda: shares([worker]) == [64])


async def test_nodes_whose_clocks_are_apart_say_so(
    bucket: Bucket, capsys: pytest.CaptureFixture[str]
) -> None:
    late = SkewedClock(-3_600_000_000)
    async with nodes(bucket, "right") as (right,), nodes(bucket, "late", clock=late) as (other,):
        said = ""
        async with asyncio.timeout(60):
            while said.count("clocks_differ") < 2:
                await renewed(right, 1)
                said += capsys.readouterr().out
        assert "node=late" in said
        assert "node=right" in said
        assert "ahead_s=-36" in said
        late.set_right()
        await renewed(right, 1)
        await renewed(other, 1)
        await until(lambda: sorted(shares([right, other])) == [32, 32])


@pytest.mark.parametrize("name", ["node", "drain"])
async def test_a_sink_whose_leases_would_be_taken_for_other_keys_is_refused(
    bucket: Bucket, name: str
) -> None:
    leases = Leases(bucket, "a", ManualClock())
    with pytest.raises(ValueError, match=f"a sink cannot be named '{name}'"):
        leases.of(name)
