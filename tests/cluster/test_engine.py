"""The JetStream engine: the contract, and what is its own: nodes beside each other, faults."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bridge.intervals import IntervalSet
from bridge.runs import Run
from cloud.cluster.applying import apply, stream_epoch
from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.stream.contract import StreamError, StreamFull, run_stones
from cloud.stream.jetstream import bodies
from cloud.stream.jetstream import upkeep as module
from cloud.stream.jetstream.engine import JetStreamStream
from cloud.stream.jetstream.records import (
    NEVER,
    AppendRecord,
    PartRow,
    Record,
    SourceRecord,
    encode,
    pack_ranges,
)
from cloud.stream.jetstream.state import LedgerState
from runtime.clock import SystemClock
from tests.cloud.stream_contract import EPOCH, Engine, StreamContract, opened, part, read_all, stone
from tests.kit.nats import NatsServers, connected, layout_of, nats_single


class JetStreamEngine:
    """Opens one cluster's stream on running servers."""

    def __init__(self, servers: NatsServers, layout: Layout, *, tail_bytes_max: int = 1 << 20):
        self.servers = servers
        self.layout = layout
        self.tail_bytes_max = tail_bytes_max
        self._applied = False

    async def open(self, *, give_up_s: float = 15.0) -> JetStreamStream:
        connection = await Connection.open(self.servers.url, name="test")
        if not self._applied:
            await apply(connection, self.layout)
            self._applied = True
        try:
            return await JetStreamStream.open(
                connection,
                self.layout,
                await stream_epoch(connection, self.layout),
                SystemClock(),
                durability="relaxed",
                tail_bytes_max=self.tail_bytes_max,
                arrivals_max=1000,
                give_up_s=give_up_s,
            )
        except StreamError:
            await connection.close()
            raise

    async def open_snapshot(self, path: Path) -> JetStreamStream:
        raise AssertionError("a cluster makes no snapshots")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=64 << 30) as running:
        yield running


@pytest.fixture
def engine(servers: NatsServers, request: pytest.FixtureRequest) -> JetStreamEngine:
    name = "c" + format(abs(hash(request.node.nodeid)), "x")
    return JetStreamEngine(servers, layout_of(servers, name))


class TestContract(StreamContract):
    """With the newest bodies in memory, as it runs."""

    async def test_a_snapshot_is_the_stream_at_one_moment(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        async with opened(engine) as stream:
            await stream.append([part(1, [1])])
            with pytest.raises(StreamError, match="nats account backup"):
                await stream.snapshot(tmp_path / "copy")
            assert not (tmp_path / "copy").exists()


class TestContractFromServers(TestContract):
    """With nothing in memory, as another node sees it."""

    @pytest.fixture
    def engine(self, servers: NatsServers, request: pytest.FixtureRequest) -> JetStreamEngine:
        name = "c" + format(abs(hash(request.node.nodeid)), "x")
        return JetStreamEngine(servers, layout_of(servers, name), tail_bytes_max=0)


# ---- nodes beside each other ---------------------------------------------------------------------


async def test_two_nodes_have_the_same_stream(engine: JetStreamEngine) -> None:
    async with opened(engine) as one, opened(engine) as two:
        await one.append([part(1, [1]), part(2, [2])])
        assert await two.held("gw", EPOCH) == [(1, 2)]
        await two.append([part(1, [3])])
        assert await one.held("gw", EPOCH) == [(1, 3)]
        assert await read_all(one, 1) == await read_all(two, 1)
        assert await one.stats() == await two.stats()


async def test_who_waits_at_one_node_wakes_for_an_append_at_another(
    engine: JetStreamEngine,
) -> None:
    async with opened(engine) as one, opened(engine) as two:
        waiting = asyncio.create_task(one.wait({5: 0}))
        await two.append([part(5, [1])])
        async with asyncio.timeout(60):
            await waiting
        assert len(await read_all(one, 5)) == 1


async def test_a_node_that_was_passed_by_asks_anew_before_it_stores(
    engine: JetStreamEngine,
) -> None:
    """The gateway went to another node and back; what the first one believes is old."""
    async with opened(engine) as one, opened(engine) as two:
        await one.held("gw", EPOCH)
        await one.append([part(1, [1, 2])])
        await two.held("gw", EPOCH)
        await two.append([part(1, [3, 4])])
        await one.stats()
        with pytest.raises(StreamError, match="another node took readings"):
            await one.append([part(1, [3, 4, 5])])
        assert await one.held("gw", EPOCH) == [(1, 4)]
        await one.append([part(1, [5])])
        assert [e.seq_ranges for e in await read_all(two, 1)] == [((1, 2),), ((3, 4),), ((5, 5),)]


async def test_a_run_that_is_made_known_at_one_node_ends_what_another_believes(
    engine: JetStreamEngine,
) -> None:
    """A clone was met at the second: what its original sends to the first is looked at anew."""
    async with opened(engine) as one, opened(engine) as two:
        await one.held("gw", EPOCH)
        await one.append([part(1, [1, 2])], run_stones(("gw", EPOCH), 0, [Run(7, 0)]))
        await two.held("gw", EPOCH)
        await two.append([], run_stones(("gw", EPOCH), 1, [Run(8, 2)]))
        with pytest.raises(StreamError, match="another node took readings"):
            await one.append([part(1, [3])])
        assert await one.held("gw", EPOCH) == [(1, 2)]
        assert await one.runs("gw", EPOCH) == (2, (Run(7, 0), Run(8, 2)))
        await two.append([part(1, [3])])
        with pytest.raises(StreamError, match="another node took readings"):
            await one.append([], run_stones(("gw", EPOCH), 2, [Run(9, 2)]))


async def test_a_run_is_made_known_behind_what_is_under_way(engine: JetStreamEngine) -> None:
    async with opened(engine) as one:
        await one.held("gw", EPOCH)
        appends = [
            one.append([part(1, [1])]),
            one.append([], run_stones(("gw", EPOCH), 0, [Run(7, 1)])),
            one.append([part(1, [2])]),
        ]
        await asyncio.gather(*appends)
        assert await one.held("gw", EPOCH) == [(1, 2)]


async def test_a_question_of_another_is_no_leave_to_store(engine: JetStreamEngine) -> None:
    """What the node's commands ask when a gateway says hello, its ingest does not know of."""
    async with opened(engine) as one, opened(engine) as two:
        await one.held("gw", EPOCH)
        await two.held("gw", EPOCH)
        await two.append([part(1, [1, 2])])  # late: the gateway is at the first node by now
        assert await one.highest_seq("gw", EPOCH) == 2
        with pytest.raises(StreamError, match="another node took readings"):
            await one.append([part(1, [1, 2, 3])])
        assert await one.held("gw", EPOCH) == [(1, 2)]


async def test_after_a_failure_nothing_is_stored_before_it_was_asked_again(
    engine: JetStreamEngine,
) -> None:
    """What a gateway's other lane or connection had under way stands on the same old answer."""
    async with opened(engine) as one, opened(engine) as two:
        await one.held("gw", EPOCH)
        await two.held("gw", EPOCH)
        await two.append([part(1, [1, 2])])
        for _ in range(2):
            await one.catch_up()
            with pytest.raises(StreamError, match="asked anew"):
                await one.append([part(1, [2, 3])])
        assert await one.held("gw", EPOCH) == [(1, 2)]
        await one.append([part(1, [3])])
        assert [e.seq_ranges for e in await read_all(two, 1)] == [((1, 2),), ((3, 3),)]


async def test_two_nodes_that_write_one_gateways_readings_at_once_store_them_once(
    engine: JetStreamEngine,
) -> None:
    """As ingest does it: ask what is held, append the rest, ask again after a failure."""

    async def gateway(stream: JetStreamStream, rng: random.Random) -> None:
        done = 0
        while done < 120:
            held = IntervalSet(await stream.held("gw", EPOCH))
            last = min(120, done + rng.randrange(1, 30))
            new = [seq for seq in range(done + 1, last + 1) if seq not in held]
            parts = [
                part(p, mine) for p in range(3) if (mine := [seq for seq in new if seq % 3 == p])
            ]
            try:
                await stream.append(parts, assigned={("gw", EPOCH): last})
            except StreamError:
                continue
            done = last

    one, two = await engine.open(), await engine.open()
    try:
        async with asyncio.timeout(60):
            await asyncio.gather(gateway(one, random.Random(1)), gateway(two, random.Random(2)))
        assert await one.held("gw", EPOCH) == [(1, 120)]
        for partition in range(3):
            seqs = [
                seq
                for entry in await read_all(one, partition)
                for first, last in entry.seq_ranges
                for seq in range(first, last + 1)
            ]
            assert seqs == [seq for seq in range(1, 121) if seq % 3 == partition]
    finally:
        await one.close()
        await two.close()


async def test_a_trim_at_one_node_is_one_at_all(engine: JetStreamEngine) -> None:
    async with opened(engine) as one, opened(engine) as two:
        for seq in range(1, 6):
            await one.append([part(1, [seq])])
        await two.held("gw", EPOCH)
        third = (await read_all(two, 1))[2]
        await two.trim({1: third.position})
        await one.held("gw", EPOCH)
        assert [e.seq_ranges for e in await read_all(one, 1)] == [((4, 4),), ((5, 5),)]
        await two.append([part(1, [6])])
        assert len(await read_all(two, 1)) == 3


# ---- checkpoints ---------------------------------------------------------------------------------


async def test_a_node_starts_from_a_checkpoint_and_goes_on(engine: JetStreamEngine) -> None:
    stream = await engine.open()
    try:
        for seq in range(1, 21):
            await stream.append([part(seq % 4, [seq])], [stone(90, 99)], {("gw", EPOCH): 99})
        assert await stream.checkpoint(keep_records=2)
        assert not await stream.checkpoint()
        await stream.append([part(1, [21])])
        async with opened(engine) as other:
            assert await other.held("gw", EPOCH) == [(1, 21)]
            assert await other.ledger() == await stream.ledger()
            assert await read_all(other, 1) == await read_all(stream, 1)
            await other.append([part(1, [22])])
            for seq in range(23, 30):
                await other.append([part(1, [seq])])
        assert await stream.checkpoint(keep_records=1)
    finally:
        await stream.close()
    async with opened(engine) as again:
        assert await again.held("gw", EPOCH) == [(1, 29)]
        assert len(await read_all(again, 1)) == 14


async def test_checkpoints_keep_the_ledger_short(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.05)
    monkeypatch.setattr(module, "_BYTES", 2_000)
    monkeypatch.setattr(module, "_KEEP_BYTES", 1_000)
    async with opened(engine) as stream, connected(engine.servers) as connection:
        path = f"STREAM.INFO.{engine.layout.ledger_stream}"
        seq = 0
        async with asyncio.timeout(60):
            while (await connection.api(path))["state"]["first_seq"] < 30:
                seq += 1
                await stream.append([part(seq % 4, [seq])])
        async with opened(engine) as other:
            assert await other.held("gw", EPOCH) == [(1, seq)]


async def test_a_ledger_with_a_hole_is_not_read_past(engine: JetStreamEngine) -> None:
    async with opened(engine) as stream:
        for seq in range(1, 9):
            await stream.append([part(1, [seq])])
    async with connected(engine.servers) as connection:
        path = f"STREAM.PURGE.{engine.layout.ledger_stream}"
        await connection.api(path, {"seq": 4})
    with pytest.raises(StreamError, match="records 1 to 3 are gone"):
        await engine.open()


@pytest.mark.parametrize("purged", ["ledger", "checkpoints too"])
async def test_a_purge_by_hand_leaves_what_a_node_needs_to_start(
    engine: JetStreamEngine, purged: str
) -> None:
    async with opened(engine) as stream:
        for seq in range(1, 5):
            await stream.append([part(3, [seq])])
        async with connected(engine.servers) as connection:
            if purged != "ledger":
                assert await stream.checkpoint(keep_records=0)
                await connection.api(f"STREAM.PURGE.{engine.layout.checkpoint_stream}")
            await connection.api(f"STREAM.PURGE.{engine.layout.ledger_stream}")
            async with asyncio.timeout(60):
                while await stream._checkpoints.newest() < 4:
                    await asyncio.sleep(0.02)
        await stream.append([part(3, [5])])
    async with opened(engine) as again:
        assert list(await again.held("gw", EPOCH)) == [(1, 5)]
        assert [entry.seq_ranges for entry in await read_all(again, 3)] == [
            ((seq, seq),) for seq in range(1, 6)
        ]


async def test_a_checkpoint_damaged_by_hand_is_written_anew(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_EVERY_S", 0.05)
    async with opened(engine) as stream:
        for seq in range(1, 5):
            await stream.append([part(3, [seq])])
        assert await stream.checkpoint(keep_records=0)
        async with connected(engine.servers) as connection:
            await connection.publish(engine.layout.checkpoint_subject("head"), b"damaged")
            async with asyncio.timeout(60):
                while await stream._checkpoints.newest() < 4:
                    await asyncio.sleep(0.02)
    async with opened(engine) as again:
        assert list(await again.held("gw", EPOCH)) == [(1, 4)]


async def put_back_empty(connection: Connection, layout: Layout) -> None:
    """Have a ledger as it was before anything was in it, as from a backup."""
    name = layout.ledger_stream
    config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
    await connection.api(f"STREAM.DELETE.{name}")
    await connection.api(f"STREAM.CREATE.{name}", config)


async def test_a_ledger_that_went_back_stops_the_node(engine: JetStreamEngine) -> None:
    async with opened(engine) as stream:
        await stream.append([part(1, [1])])
        async with connected(engine.servers) as connection:
            await put_back_empty(connection, engine.layout)
        with pytest.raises(StreamError, match="went back"):
            async with asyncio.timeout(60):
                await stream.wait({2: 0})
        with pytest.raises(StreamError, match="start this node again"):
            await stream.append([part(1, [2])])


async def test_a_ledger_that_was_put_back_is_given_no_checkpoint_of_what_it_lost(
    engine: JetStreamEngine,
) -> None:
    async with opened(engine) as stream, connected(engine.servers) as connection:
        await stream.append([part(1, [1])])
        await put_back_empty(connection, engine.layout)
        with pytest.raises(StreamError, match="ends at 0"):  # sooner than it breaks by itself
            await stream.checkpoint(keep_records=0)
        assert await stream._checkpoints.newest() == 0


async def test_a_state_that_broke_while_the_newest_was_asked_for_is_not_saved() -> None:
    class Broke:
        """Checkpoints; asking for the newest takes long enough for the state to break."""

        seq = 0
        saved = 0
        usable = True

        async def newest(self) -> int:
            self.usable = False
            return 0

        async def save(self, _state: LedgerState, *, keep_records: int) -> bool:
            self.saved += keep_records
            return True

    checkpoints: Any = Broke()
    upkeep = module.Upkeep(checkpoints, LedgerState(0), lambda: checkpoints.usable)
    upkeep.begins(5)
    await upkeep._look()
    assert not checkpoints.saved


@pytest.mark.parametrize(("partition", "raw_seq"), [(64, 99), (3, 1 << 70)])
async def test_a_record_that_no_node_wrote_stops_the_node(
    engine: JetStreamEngine, partition: int, raw_seq: int
) -> None:
    async with opened(engine) as stream:
        await stream.append([part(1, [1])])
        one: PartRow = (0, partition, 1, pack_ranges(((1, 1),)), (raw_seq, 0, 1))
        sources = (SourceRecord(("gw", 1), NEVER, 1, ((1, 1),)),)
        said = encode(Record("hand", 1, 1, (AppendRecord(1, sources, (one,)),)))
        await stream.connection.publish(engine.layout.ledger_subject, said)
        with pytest.raises(StreamError, match="start this node again"):
            await stream.held("gw", EPOCH)


async def test_a_body_that_is_gone_shows_as_an_entry_nobody_can_read(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bodies, "_LOOKS", 2)
    async with opened(engine) as stream:
        await stream.append([part(1, [1])])
        await stream.append([part(1, [2])])
    async with connected(engine.servers) as connection:
        await connection.api(
            f"STREAM.PURGE.{engine.layout.raw_stream(1)}",
            {"filter": engine.layout.raw_subject(1), "seq": 2},
        )
    async with opened(engine) as stream:
        gone, there = await read_all(stream, 1)
        assert (gone.body, gone.seq_ranges) == (b"", ((1, 1),))
        assert there.body


# ---- limits --------------------------------------------------------------------------------------


async def test_a_full_stream_refuses_and_takes_again_after_trimming(
    servers: NatsServers, engine: JetStreamEngine
) -> None:
    engine = JetStreamEngine(
        servers, layout_of(servers, engine.layout.cluster, raw_bytes_max=4 << 20)
    )
    async with opened(engine) as stream:
        seq = 1
        with pytest.raises(StreamFull):  # noqa: PT012 - which of them it is depends on the size
            while True:
                await stream.append([part(1, [seq], body=bytes(300_000))])
                seq += 1
        assert seq > 2
        assert await stream.held("gw", EPOCH) == [(1, seq - 1)]
        await stream.trim((await stream.stats()).last_positions)
        await stream.append([part(1, [seq], body=bytes(300_000))])
        assert await stream.held("gw", EPOCH) == [(1, seq)]


async def test_a_body_larger_than_a_message_comes_back_as_it_was(engine: JetStreamEngine) -> None:
    body = random.Random(1).randbytes(2_500_000)
    async with opened(engine) as stream:
        await stream.append([part(9, [1], body=body), part(9, [2], gateway="b", body=b"small")])
        await stream.set_aside("storage", (await read_all(stream, 9))[0], "too large", 1)
    async with opened(engine) as stream:
        large, small = await read_all(stream, 9)
        assert (large.body, small.body) == (body, b"small")
        (letter,) = await stream.dead_letters()
        assert letter.entry == large


async def test_appends_that_wait_share_messages_and_records(engine: JetStreamEngine) -> None:
    stream = await engine.open()
    try:
        await asyncio.gather(
            *(stream.append([part(n % 4, [n], gateway=f"gw-{n}")]) for n in range(1, 401))
        )
        figures = stream.figures()
        assert figures["appends"] == 400
        assert figures["records"] < 40
        assert figures["published"] < 80
    finally:
        await stream.close()
