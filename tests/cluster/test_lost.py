"""Streams that were deleted by hand: what nodes know is kept, and made again they go on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

import pytest

from cloud.cluster import applying
from cloud.cluster.applying import apply, plan, stream_epoch
from cloud.cluster.checks import check_cluster
from cloud.cluster.connection import ApiError, ClusterError, Connection
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.bodies import Body
from cloud.stream.jetstream.engine import JetStreamStream
from tests.cloud.stream_contract import EPOCH, opened, part, read_all
from tests.cluster.test_engine import JetStreamEngine
from tests.kit.nats import NatsServers, connected, layout_of, nats_single
from tests.kit.sites import until


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("lost"), disk_bytes_max=64 << 30) as running:
        yield running


@pytest.fixture
def engine(servers: NatsServers, request: pytest.FixtureRequest) -> JetStreamEngine:
    return JetStreamEngine(
        servers, layout_of(servers, "l" + format(abs(hash(request.node.nodeid)), "x"))
    )


async def taken(stream: JetStreamStream, partition: int, seq: int) -> None:
    """Append a reading as ingest does: ask what is held, again while it fails."""
    async with asyncio.timeout(60):
        while True:
            try:
                held = await stream.held("gw", EPOCH)
                if any(first <= seq <= last for first, last in held):
                    return
                await stream.append([part(partition, [seq])])
            except StreamError:
                await asyncio.sleep(0.05)
                continue
            return


async def seqs_of(stream: JetStreamStream, partition: int) -> list[int]:
    return [entry.seq_ranges[0][0] for entry in await read_all(stream, partition)]


async def test_nodes_that_run_lose_nothing_and_go_on_when_it_is_made_again(
    engine: JetStreamEngine,
) -> None:
    name = engine.layout.ledger_stream
    async with (
        opened(engine) as one,
        opened(engine) as two,
        connected(engine.servers) as connection,
    ):
        epoch = await stream_epoch(connection, engine.layout)
        for seq in range(1, 6):
            await taken(one, 3, seq)
        await one.commit_cursors("alerts", {3: (await one.stats()).last_positions[3]})
        await connection.api(f"STREAM.DELETE.{name}")
        with pytest.raises(StreamError, match="10059"):
            await one.held("gw", EPOCH)
        appending = asyncio.create_task(taken(two, 3, 6))  # while there is none
        async with asyncio.timeout(60):
            while await one._checkpoints.newest() < 6:
                await asyncio.sleep(0.02)
        (step,) = await plan(connection, engine.layout)
        assert step.line().endswith("after record 6, behind which it would go on")
        with pytest.raises(ClusterError, match=f"--recreate {name}"):
            await apply(connection, engine.layout)
        await apply(connection, engine.layout, recreate=[name])
        assert await stream_epoch(connection, engine.layout) == epoch
        assert await plan(connection, engine.layout) == []
        await appending
        for seq in range(7, 10):
            await taken(one, 3, seq)
        assert (one.broken, two.broken) == ("", "")
        async with opened(engine) as again:
            for stream in (one, two, again):
                await stream.catch_up()
                assert list(await stream.held("gw", EPOCH)) == [(1, 9)]
                assert await seqs_of(stream, 3) == list(range(1, 10))
                positions = [entry.position for entry in await read_all(stream, 3)]
                assert positions == sorted(set(positions))
                assert await stream.cursors("alerts") == {3: positions[4]}
            assert await again.checkpoint(keep_records=0)
        async with opened(engine) as last:
            assert await seqs_of(last, 3) == list(range(1, 10))


async def test_without_a_node_what_came_after_the_newest_checkpoint_is_gone_and_comes_again(
    engine: JetStreamEngine,
) -> None:
    name = engine.layout.ledger_stream
    async with opened(engine) as stream:
        for seq in range(1, 5):
            await taken(stream, 3, seq)
        assert await stream.checkpoint(keep_records=0)
        for seq in range(5, 8):
            await taken(stream, 3, seq)
        beyond = (await stream.stats()).last_positions[3]
    async with connected(engine.servers) as connection:
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
    async with opened(engine) as stream:
        assert list(await stream.held("gw", EPOCH)) == [(1, 4)]
        for seq in range(5, 9):  # whoever has them still sends them again
            await taken(stream, 3, seq)
        assert await seqs_of(stream, 3) == list(range(1, 9))
        # no sink that has had one of the lost ones passes a new one over
        assert (await read_all(stream, 3))[4].position > beyond


async def test_lost_again_before_a_checkpoint_it_begins_beyond_what_it_had_by_then(
    engine: JetStreamEngine,
) -> None:
    name = engine.layout.ledger_stream
    positions = []
    for seq in range(1, 4):
        async with opened(engine) as stream:
            await taken(stream, 3, seq)
            positions.append((await stream.stats()).last_positions[3])
        if seq < 3:
            async with connected(engine.servers) as connection:
                await connection.api(f"STREAM.DELETE.{name}")
                await apply(connection, engine.layout, recreate=[name])
    assert positions == sorted(set(positions))  # else a sink would pass the new one over


async def test_a_purge_of_one_that_goes_on_leaves_what_a_node_needs_to_start(
    engine: JetStreamEngine,
) -> None:
    name = engine.layout.ledger_stream
    async with opened(engine) as stream, connected(engine.servers) as connection:
        await taken(stream, 3, 1)
        assert await stream.checkpoint(keep_records=0)
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
        follows = await stream._checkpoints.newest()
        await taken(stream, 3, 2)
        assert await stream._checkpoints.newest() == follows
        await connection.api(f"STREAM.PURGE.{name}")
        async with asyncio.timeout(60):
            while await stream._checkpoints.newest() == follows:
                await asyncio.sleep(0.02)
        async with opened(engine) as other:
            assert await seqs_of(other, 3) == [1, 2]


async def test_who_knows_more_than_it_goes_on_behind_takes_nothing_and_says_so(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = engine.layout.ledger_stream
    async with opened(engine) as stream, connected(engine.servers) as connection:
        monkeypatch.setattr(stream._upkeep, "gone", lambda: None)  # it was cut off meanwhile
        stream._follower._gone = lambda: None
        await taken(stream, 3, 1)
        assert await stream.checkpoint(keep_records=0)
        await taken(stream, 3, 2)
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
        with pytest.raises(StreamError, match="goes on behind record"):
            await stream.checkpoint(keep_records=0)
        async with opened(engine) as other:
            await taken(other, 3, 9)
            await until("it has seen that", lambda: stream.broken)
            assert "start this node again" in stream.broken
            assert await seqs_of(other, 3) == [1, 9]


async def test_bodies_that_were_lost_are_gone_and_no_new_ones_are_taken_for_them(
    engine: JetStreamEngine,
) -> None:
    """A stream of bodies that is made again begins beyond every place that the ledger knows."""
    name = engine.layout.raw_stream(3)
    async with opened(engine) as stream, connected(engine.servers) as connection:
        for seq in range(1, 5):
            await taken(stream, 3, seq)
        await stream.trim({3: (await read_all(stream, 3))[1].position})
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
        await stream.append([part(3, [5])])
        async with opened(engine) as other:
            found = {entry.seq_ranges[0][0]: entry.body for entry in await read_all(other, 3)}
        assert found == {3: b"", 4: b"", 5: part(3, [5]).body}


async def test_who_was_slow_while_others_were_trimmed_is_not_told_to_delete_bodies(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its place was trimmed since, as others' behind it were: it is in order, and comes again."""
    async with opened(engine) as stream:
        real = stream._writer.write
        held: list[tuple[Callable[[Body], None], Body]] = []

        def write(partition: int, data: bytes, told: Callable[[Body], None]) -> Body:
            if partition != 2:
                return real(partition, data, told)
            return real(partition, data, lambda body: held.append((told, body)))

        monkeypatch.setattr(stream._writer, "write", write)
        slow = asyncio.create_task(stream.append([part(3, [1]), part(2, [2])]))
        await until("its bodies are stored", lambda: held and stream._writer.published == 2)
        await stream.append([part(3, [1], gateway="quick")])
        await stream.trim((await stream.stats()).last_positions)
        for told, body in held:
            told(body)
        with pytest.raises(StreamError, match="is asked anew"):
            await slow
        monkeypatch.undo()
        await taken(stream, 3, 1)
        assert await seqs_of(stream, 3) == [1]


@pytest.mark.parametrize("which", ["mqtt_stream", "dead_stream", "checkpoint_stream"])
async def test_a_stream_that_is_made_again_goes_on_behind_the_lost_one(
    engine: JetStreamEngine, which: str
) -> None:
    name = getattr(engine.layout, which)
    async with connected(engine.servers) as connection:
        await apply(connection, engine.layout)
        subject = (await connection.api(f"STREAM.INFO.{name}"))["config"]["subjects"][0]
        for _ in range(3):
            before = await connection.publish(subject.replace(">", "x"), b"")
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
        after = await connection.publish(subject.replace(">", "x"), b"")
        assert before.seq < after.seq < 1 << 47


async def test_a_stream_of_bodies_put_back_by_hand_is_named_until_it_is_made_again_in_order(
    engine: JetStreamEngine,
) -> None:
    """Its new places are old ones, which were trimmed: appends would be void for ever."""
    name = engine.layout.raw_stream(3)
    async with opened(engine) as stream, connected(engine.servers) as connection:
        for seq in range(1, 5):
            await taken(stream, 3, seq)
        await stream.trim({3: (await stream.stats()).last_positions[3]})
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        await connection.api(f"STREAM.DELETE.{name}")
        await connection.api(f"STREAM.CREATE.{name}", config)
        words = f"{name}: its sequences went back to .*--recreate {name}"
        await stream.held("gw", EPOCH)
        with pytest.raises(StreamError, match=words):
            await stream.append([part(3, [5])])
        stream._proved_s.clear()
        with pytest.raises(StreamError, match=words):  # `/readyz` says so too
            await stream.append([])
        await connection.api(f"STREAM.DELETE.{name}")
        await apply(connection, engine.layout, recreate=[name])
        await taken(stream, 3, 5)
        await stream.append([])
        assert await seqs_of(stream, 3) == [5]


async def test_an_apply_that_ended_before_it_takes_records_is_gone_on_with(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the one that ended would have: nodes know what it follows before it takes records."""
    name = engine.layout.ledger_stream
    async with opened(engine) as stream, connected(engine.servers) as connection:
        await taken(stream, 3, 1)
        await connection.api(f"STREAM.DELETE.{name}")
        async with asyncio.timeout(10):
            while await stream._checkpoints.newest() < 1:
                await asyncio.sleep(0.02)

        async def ended(*_: object) -> None:
            raise ClusterError("the power went")

        monkeypatch.setattr(applying, "_open_again", ended)
        with pytest.raises(ClusterError, match="the power went"):
            await apply(connection, engine.layout, recreate=[name])
        monkeypatch.undo()
        (step,) = await plan(connection, engine.layout)
        assert step.line().startswith(f"open {name}: it was made again and takes no records yet")
        with pytest.raises(ClusterError, match="takes no records yet"):
            await check_cluster(connection, engine.layout, monitors=(), servers_fsync=True)
        await apply(connection, engine.layout)
        await taken(stream, 3, 2)
        assert stream.broken == ""
        async with opened(engine) as other:
            assert await seqs_of(other, 3) == [1, 2]


async def test_a_checkpoint_that_was_about_to_be_written_is_followed(
    engine: JetStreamEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node had looked, found no ledger, and writes its head just after the ledger is there."""
    name = engine.layout.ledger_stream
    async with opened(engine) as stream, connected(engine.servers) as connection:
        monkeypatch.setattr(stream._upkeep, "gone", lambda: None)
        stream._follower._gone = lambda: None
        for seq in range(1, 4):
            await taken(stream, 3, seq)
        await connection.api(f"STREAM.DELETE.{name}")
        real = stream._checkpoints._put

        async def put(data: bytes, *tokens: object, expected: int | None = None) -> None:
            if tokens == ("head",):
                async with asyncio.timeout(60):
                    while not await exists(connection, name):
                        await asyncio.sleep(0.005)
            await real(data, *tokens, expected=expected)

        monkeypatch.setattr(stream._checkpoints, "_put", put)
        writing = asyncio.create_task(stream.checkpoint(keep_records=0))
        await asyncio.sleep(0)
        await apply(connection, engine.layout, recreate=[name])
        assert await writing
        await taken(stream, 3, 4)
        async with opened(engine) as other:
            assert await seqs_of(other, 3) == [1, 2, 3, 4]


async def exists(connection: Connection, name: str) -> bool:
    try:
        await connection.api(f"STREAM.INFO.{name}")
    except ApiError:
        return False
    return True


async def test_a_ledger_and_its_checkpoints_both_lost_begin_anew(engine: JetStreamEngine) -> None:
    names = (engine.layout.ledger_stream, engine.layout.checkpoint_stream)
    async with opened(engine) as stream:
        await taken(stream, 3, 1)
    async with connected(engine.servers) as connection:
        for name in names:
            await connection.api(f"STREAM.DELETE.{name}")
        assert {step.action for step in await plan(connection, engine.layout)} <= {"lost", "create"}
        await apply(connection, engine.layout, recreate=names)
        assert await plan(connection, engine.layout) == []
    async with opened(engine) as stream:
        await taken(stream, 3, 2)
        assert list(await stream.held("gw", EPOCH)) == [(2, 2)]
