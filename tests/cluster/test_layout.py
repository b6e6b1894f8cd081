"""Streams and buckets as declared: planned, made, and never made again in silence."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from cloud.cluster.applying import apply, plan, stream_epoch
from cloud.cluster.bucket import Bucket, Conflict, Value, key_token
from cloud.cluster.connection import ClusterError, Connection, Unanswered, servers_of
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import SystemClock
from tests.kit.nats import NatsServers, connected, layout_of, nats_single


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("single"), disk_bytes_max=8 << 30) as running:
        yield running


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> str:
    """A name of the test's own."""
    return "c" + format(abs(hash(request.node.nodeid)), "x")


# ---- layout --------------------------------------------------------------------------------------


async def test_what_was_applied_needs_no_plan(servers: NatsServers, cluster: str) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        assert {step.action for step in await plan(connection, layout)} == {"create"}
        made = await apply(connection, layout)
        assert [step.stream for step in made] == [spec.name for spec in layout.specs()]
        assert await plan(connection, layout) == []
        assert await apply(connection, layout) == []


async def test_the_epoch_is_made_once(servers: NatsServers, cluster: str) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
        epoch = await stream_epoch(connection, layout)
        assert 0 <= epoch < 1 << 64
        larger = layout_of(servers, cluster, ledger_bytes_max=32 << 20)
        assert {step.action for step in await plan(connection, larger)} == {"update"}
        await apply(connection, larger)
        assert await plan(connection, larger) == []
        assert await stream_epoch(connection, larger) == epoch


async def test_a_lost_stream_is_not_made_again_unless_told(
    servers: NatsServers, cluster: str
) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
        lost = layout.raw_stream(2)
        await connection.api(f"STREAM.DELETE.{lost}")
        (step,) = await plan(connection, layout)
        assert (step.action, step.stream) == ("lost", lost)
        with pytest.raises(ClusterError, match=f"--recreate {lost}"):
            await apply(connection, layout)
        await apply(connection, layout, recreate=[lost])
        assert await plan(connection, layout) == []


async def test_a_stream_altered_by_hand_is_told(servers: NatsServers, cluster: str) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
        name = layout.raw_stream(1)
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        await connection.api(f"STREAM.UPDATE.{name}", {**config, "discard": "old"})
        (step,) = await plan(connection, layout)
        assert step.line() == f"update {name}: discard is old, has to be new"
        await apply(connection, layout)
        assert await plan(connection, layout) == []


async def test_a_wrong_cluster_name_names_those_there_are(
    servers: NatsServers, cluster: str
) -> None:
    async with connected(servers) as connection:
        await apply(connection, layout_of(servers, cluster))
        with pytest.raises(ClusterError, match=f"no cluster 'other' there.*{cluster}"):
            await stream_epoch(connection, layout_of(servers, "other"))


async def test_a_ledger_without_its_epoch_is_refused_and_never_given_another(
    servers: NatsServers, cluster: str, capsys: pytest.CaptureFixture[str]
) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
        epoch = await stream_epoch(connection, layout)
        stream = await JetStreamStream.open(
            connection, layout, epoch, SystemClock(), durability="relaxed", tail_bytes_max=0,
            arrivals_max=0,
        )  # fmt: skip
        try:
            path = f"STREAM.UPDATE.{layout.ledger_stream}"
            config = (await connection.api(f"STREAM.INFO.{layout.ledger_stream}"))["config"]
            await connection.api(path, {**config, "metadata": {}})
            for refuses in (plan, apply, stream_epoch):
                with pytest.raises(ClusterError, match="was altered: its metadata") as caught:
                    await refuses(connection, layout)
                assert "\n" not in str(caught.value)
            said = ""
            async with asyncio.timeout(60):
                while f"tidegate.epoch '{epoch:016x}'" not in said:
                    await stream.append([])  # it goes on, and says what to put back
                    said += capsys.readouterr().out
            await connection.api(path, config)
            assert await plan(connection, layout) == []
        finally:
            await stream.close(keep_connection=True)


# ---- buckets -------------------------------------------------------------------------------------


@pytest.fixture
async def bucket_name(servers: NatsServers, cluster: str) -> str:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
    return layout.bucket("leases")


async def test_a_key_is_created_once_and_updated_at_its_revision(
    servers: NatsServers, bucket_name: str
) -> None:
    async with connected(servers) as connection:
        bucket = Bucket(connection, bucket_name)
        assert await bucket.get("a.b") is None
        first = await bucket.create("a.b", b"1")
        with pytest.raises(Conflict):
            await bucket.create("a.b", b"2")
        second = await bucket.update("a.b", b"3", first)
        assert second > first
        with pytest.raises(Conflict):
            await bucket.update("a.b", b"4", first)
        assert await bucket.get("a.b") == Value("a.b", b"3", second)
        with pytest.raises(Conflict):
            await bucket.delete("a.b", revision=first)
        await bucket.delete("a.b", revision=second)
        assert await bucket.get("a.b") is None
        assert await bucket.create("a.b", b"5") > second


async def test_of_many_who_create_one_wins(servers: NatsServers, bucket_name: str) -> None:
    async with connected(servers) as one, connected(servers) as two:
        buckets = [Bucket(one, bucket_name), Bucket(two, bucket_name)]
        results = await asyncio.gather(
            *(buckets[n % 2].create("k", str(n).encode()) for n in range(20)),
            return_exceptions=True,
        )
        won = [n for n, result in enumerate(results) if isinstance(result, int)]
        assert len(won) == 1
        assert all(isinstance(r, Conflict) for r in results if not isinstance(r, int))
        found = await buckets[0].get("k")
        assert found is not None
        assert found.value == str(won[0]).encode()


async def test_a_watch_holds_everything_and_sees_what_changes(
    servers: NatsServers, bucket_name: str
) -> None:
    async with connected(servers) as one, connected(servers) as two:
        mine, theirs = Bucket(one, bucket_name), Bucket(two, bucket_name)
        await theirs.put("x", b"old")
        await theirs.put("x", b"new")
        seen: list[tuple[str, bytes | None]] = []
        watch = await mine.watch(lambda key, value: seen.append((key, value and value.value)))
        try:
            assert seen == [("x", b"new")]
            await theirs.put("y", b"1")
            await theirs.delete("x")
            await watch.reach(await theirs.put("z", b"2"))
            assert seen[1:] == [("y", b"1"), ("x", None), ("z", b"2")]
            assert {key: value.value for key, value in watch.values.items()} == {
                "y": b"1",
                "z": b"2",
            }
        finally:
            await watch.stop()


async def test_a_time_to_live_ends_a_key_and_the_watch_sees_it(
    servers: NatsServers, bucket_name: str
) -> None:
    async with connected(servers) as connection:
        bucket = Bucket(connection, bucket_name)
        gone = asyncio.Event()
        watch = await bucket.watch(
            lambda key, value: gone.set() if key == "t" and value is None else None, poll_s=0.2
        )
        try:
            revision = await bucket.create("t", b"", ttl_s=1)
            await watch.reach(revision)
            async with asyncio.timeout(60):
                await gone.wait()
            assert await bucket.get("t") is None
            assert await bucket.create("t", b"again") > revision
        finally:
            await watch.stop()


async def test_a_watch_forgets_what_was_purged_by_hand(
    servers: NatsServers, bucket_name: str
) -> None:
    async with connected(servers) as connection:
        bucket = Bucket(connection, bucket_name)
        gone: list[str] = []
        watch = await bucket.watch(
            lambda key, value: gone.append(key) if value is None else None, poll_s=0.1
        )
        try:
            for key in ("a", "b", "c", "a"):  # b is the oldest now
                revision = await bucket.put(key, b"1")
            await watch.reach(revision)
            stream = f"STREAM.PURGE.{bucket.stream}"
            await connection.api(stream, {"keep": 2})
            async with asyncio.timeout(60):
                while gone != ["b"]:
                    await asyncio.sleep(0.01)
            await connection.api(stream)
            async with asyncio.timeout(60):
                while gone != ["b", "c", "a"]:
                    await asyncio.sleep(0.01)
            await watch.reach(await bucket.create("a", b"2"))
            assert {key: value.value for key, value in watch.values.items()} == {"a": b"2"}
        finally:
            await watch.stop()


async def test_revisions_of_a_bucket_made_again_go_on(servers: NatsServers, cluster: str) -> None:
    layout = layout_of(servers, cluster)
    async with connected(servers) as connection:
        await apply(connection, layout)
        bucket = Bucket(connection, layout.bucket("leases"))
        watch = await bucket.watch(lambda _key, _value: None, poll_s=0.1)
        try:
            before = await bucket.create("storage.1", b"1")
            await watch.reach(before)
            await connection.api(f"STREAM.DELETE.{bucket.stream}")
            await apply(connection, layout, recreate=[bucket.stream])
            after = await bucket.create("storage.1", b"2")
            assert after > before  # a token: PostgreSQL refuses lower ones
            async with asyncio.timeout(60):
                await watch.reach(after)  # who watched the lost one goes on
            assert watch.values["storage.1"].revision == after
        finally:
            await watch.stop()


@pytest.mark.parametrize("text", ["plain", "with space", "a.b", "a*b>", "ü", "", "=x", "a/b"])
def test_any_text_is_one_token(text: str) -> None:
    token = key_token(text)
    assert token
    assert not set(token) & set(" .*>")


def test_different_texts_are_different_tokens() -> None:
    texts = ["a", "=YQ", "a.b", "a b", "a/b", "a_b"]
    assert len({*map(key_token, texts)}) == len(texts)


# ---- connection ----------------------------------------------------------------------------------


def test_an_address_names_several_servers() -> None:
    assert servers_of("nats://a,b:4223, c") == ["nats://a", "nats://b:4223", "nats://c"]
    for wrong in ("a,b", "http://a", "nats://", "mqtt://a"):
        with pytest.raises(ValueError, match="nats://host"):
            servers_of(wrong)


async def test_nothing_is_sent_for_who_has_given_up(tmp_path: Path) -> None:
    with nats_single(tmp_path) as own:
        async with connected(own) as connection:
            await connection.api("STREAM.CREATE.S", {"name": "S", "subjects": ["s"]})
            assert (await connection.publish("s", b"1")).seq == 1
            lost = asyncio.Event()
            back = asyncio.Event()
            connection.on_line(lambda up: (back if up else lost).set())
            own[0].kill()
            async with asyncio.timeout(60):
                await lost.wait()
                with pytest.raises(Unanswered):
                    await connection.publish("s", b"2")
                own[0].start()
                await back.wait()
            assert (await connection.publish("s", b"3")).seq == 2


async def test_an_address_where_nobody_is_gives_one_line() -> None:
    from cloud.cluster import connection as module

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CONNECT_S", 0.5)
        with pytest.raises(ClusterError, match=r"nats://127\.0\.0\.1:1") as caught:
            await Connection.open("nats://127.0.0.1:1", name="test")
    assert "\n" not in str(caught.value)
