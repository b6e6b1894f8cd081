"""A place that mirrors a lost cluster becomes the cluster: nothing doubled, nothing passed over."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest

from cloud.cluster.applying import apply, plan
from cloud.cluster.checks import check_cluster
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import RAW_STREAMS, Layout
from cloud.cluster.mqtt_wire import (
    SHARDS,
    Record,
    encode_record,
    key_of,
    position_of,
    shard_of,
)
from cloud.stream.jetstream import promotion
from cloud.stream.jetstream.checkpoint import Checkpoints
from cloud.stream.jetstream.promotion import promote
from cloud.stream.jetstream.state import LedgerState
from mqtt.broker.changes import SessionSaved
from runtime.clock import SystemClock
from tests.cloud.stream_contract import EPOCH, part, read_all
from tests.cluster.test_lost import seqs_of, taken
from tests.cluster.test_versions import stream_of
from tests.kit.nats import connected
from tests.kit.places import Places, last_seq, two_places

AWAY = "who is away"  # a client
LEFT_ALONE = "a mirror of .*; see 'tidegate cluster"


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Places]:
    with two_places(tmp_path_factory.mktemp("places")) as two:
        yield two


@pytest.fixture
def cluster(request: pytest.FixtureRequest) -> str:
    """A cluster of the test's own."""
    return "m" + format(abs(hash(request.node.nodeid)), "x")


async def promoted(connection: Connection, layout: Layout, *recreate: str) -> dict[str, int]:
    """Promote; return how many readings were taken back, by gateway."""
    _, taken_back = await promote(
        connection, layout, SystemClock(), arrivals_max=100, recreate=recreate
    )
    assert await plan(connection, layout) == []
    return {gateway: readings for (gateway, _), readings in taken_back.items()}


async def test_mirrors_that_lag_each_in_its_own_way(places: Places, cluster: str) -> None:
    layout = await places.begin(cluster)
    leases = f"KV_{layout.bucket('leases')}"
    async with connected(places.home) as home, stream_of(home, layout) as stream:
        for seq in range(1, 4):
            await taken(stream, 3, seq)
            assert await stream.checkpoint(keep_records=0)
        await home.publish(f"$KV.{layout.bucket('leases')}.storage.3", b"")
        await places.mirrored(layout)
        await places.freeze(layout.raw_stream(3))
        for seq in (4, 5):  # the ledger there will know them, but no body comes
            await taken(stream, 3, seq)
        await places.mirrored(layout, layout.ledger_stream)
        places.away.stop()
        await taken(stream, 3, 6)
        beyond = (await stream.stats()).last_positions[3]
        token = await last_seq(home, leases)
    places.lose()
    async with connected(places.away) as away:
        with pytest.raises(ClusterError, match=f"^{layout.ledger_stream}: {LEFT_ALONE} promote'"):
            await apply(away, layout)
        with pytest.raises(ClusterError, match=f"^{layout.ledger_stream}: {LEFT_ALONE} plan'"):
            await check_cluster(away, layout, monitors=(), servers_fsync=True)
        assert await promoted(away, layout) == {"gw": 2}
        async with stream_of(away, layout) as stream:
            assert list(await stream.held("gw", EPOCH)) == [(1, 3)]
            for seq in range(4, 8):  # its gateway has them still
                await taken(stream, 3, seq)
            found = await read_all(stream, 3)
            assert [entry.body for entry in found] == [part(3, [seq]).body for seq in range(1, 8)]
            # no sink that was ahead of the mirrors passes a new one over
            assert found[3].position > beyond
            assert await stream.checkpoint(keep_records=0)
        async with stream_of(away, layout) as stream:
            assert await seqs_of(stream, 3) == list(range(1, 8))
        asked = {"subjects_filter": ">"}
        info = await away.api(f"STREAM.INFO.{layout.checkpoint_stream}", asked)
        assert len(info["state"]["subjects"]) == 2  # a head, and the one piece it names
        assert await last_seq(away, leases) > token  # else who holds a lease is refused by stores


async def test_a_ledger_that_lags_behind_its_checkpoint(places: Places, cluster: str) -> None:
    layout = await places.begin(cluster, without=[f"KV_{cluster}-alerts"])
    async with connected(places.home) as home, connected(places.away) as away:
        async with stream_of(home, layout) as stream:
            await taken(stream, 3, 1)
            await places.mirrored(layout, layout.ledger_stream)
            # a promotion that ended after its first step leaves it so
            await places.freeze(layout.ledger_stream, f"{layout.ledger_subject}.promoting")
            for seq in (2, 3):
                await taken(stream, 3, seq)
            assert await stream.checkpoint(keep_records=0)
            beyond = (await stream.stats()).last_positions[3]
            await places.mirrored(
                layout, layout.checkpoint_stream, *map(layout.raw_stream, range(RAW_STREAMS))
            )
        with pytest.raises(ClusterError, match=f"--recreate KV_{cluster}-alerts"):
            await promoted(away, layout)
        assert await promoted(away, layout, f"KV_{cluster}-alerts") == {}
        async with stream_of(away, layout) as stream:
            await taken(stream, 3, 4)
            assert await seqs_of(stream, 3) == [1, 2, 3, 4]
            assert (await read_all(stream, 3))[3].position > beyond


async def ended_in_the_midst(
    away: Connection, layout: Layout, monkeypatch: pytest.MonkeyPatch, *recreate: str
) -> None:
    """Have a promotion end before its checkpoint is saved; `apply` then opens nothing."""

    async def save(*_: object, **__: object) -> bool:
        raise ClusterError("the power went")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", save)
        with pytest.raises(ClusterError, match="the power went"):
            await promoted(away, layout, *recreate)
    with pytest.raises(ClusterError, match="not finished; see 'tidegate cluster promote'"):
        await apply(away, layout)


async def test_a_promotion_that_ended_in_the_midst_is_gone_on_with(
    places: Places, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = await places.begin(cluster)
    async with connected(places.home) as home, connected(places.away) as away:
        async with stream_of(home, layout) as stream:
            await taken(stream, 3, 1)
        await places.mirrored(layout)
        await ended_in_the_midst(away, layout, monkeypatch)
        with pytest.raises(ClusterError, match="promotion was not finished"):
            await check_cluster(away, layout, monitors=(), servers_fsync=True)
        assert await promoted(away, layout) == {}
        with pytest.raises(ClusterError, match="is no mirror"):
            await promoted(away, layout)
        async with stream_of(away, layout) as stream:
            await taken(stream, 3, 2)
            assert await seqs_of(stream, 3) == [1, 2]


async def test_a_ledger_that_no_mirror_has_and_a_promotion_that_ended(
    places: Places, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = Layout(cluster).ledger_stream
    layout = await places.begin(cluster, without=[ledger])
    async with connected(places.home) as home, connected(places.away) as away:
        async with stream_of(home, layout) as stream:
            await taken(stream, 3, 1)
            assert await stream.checkpoint(keep_records=0)
        names = [spec.name for spec in layout.specs() if spec.name != ledger]
        await places.mirrored(layout, *names)
        await ended_in_the_midst(away, layout, monkeypatch, ledger)
        assert await promoted(away, layout) == {}
        async with stream_of(away, layout) as stream:
            await taken(stream, 3, 2)
            assert await seqs_of(stream, 3) == [1, 2]


async def test_of_two_promotions_at_once_the_one_that_came_first_does_nothing(
    places: Places, cluster: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What nodes took since the other had ended would be passed over."""
    layout = await places.begin(cluster)
    async with connected(places.home) as home, connected(places.away) as away:
        async with stream_of(home, layout) as stream:
            await taken(stream, 3, 1)
        await places.mirrored(layout)
        read = promotion._read

        async def other(*args: Any) -> LedgerState:
            monkeypatch.undo()
            state = await read(*args)
            assert await promoted(away, layout) == {}
            async with stream_of(away, layout) as stream:
                await taken(stream, 3, 2)
            return state

        monkeypatch.setattr(promotion, "_read", other)
        with pytest.raises(ClusterError, match="another promotion has begun"):
            await promoted(away, layout)
        async with stream_of(away, layout) as stream:
            await taken(stream, 3, 3)
            assert await seqs_of(stream, 3) == [1, 2, 3]


async def test_no_message_goes_where_a_session_has_had_one(places: Places, cluster: str) -> None:
    """The log's mirror lags more than the sessions': what comes now lies past their cursors.

    It is full, for a mirror keeps all that home had purged.
    """
    layout = await places.begin(cluster)
    bucket = layout.bucket("sessions")
    async with connected(places.home) as home, connected(places.away) as away:
        lasting = SessionSaved(AWAY, 4, 60, 0, None, b"", b"", 0, 0, -1)
        for name, value in (
            ("one", encode_record(Record(cursor=position_of(40, 3)))),
            ("two", encode_record(Record(subscriptions={"a/#": (1, 0, 50)}))),
            (AWAY, encode_record(Record(saved=lasting, cursor=position_of(2, 0)))),
            ("bad", b"no record"),
        ):
            await home.publish(f"$KV.{bucket}.{key_of('s', name)}", value)
        for _ in range(3):
            await home.publish(layout.mqtt_subject(f"s.{shard_of(AWAY)}"), b"waits")
        for word in ("a.home", f"s.{(shard_of(AWAY) + 1) % SHARDS}"):
            for _ in range(8):
                await home.publish(layout.mqtt_subject(word), bytes(1024))
        await places.mirrored(layout)
        await promoted(away, replace(layout, mqtt_bytes_max=8192))
        assert await last_seq(away, layout.mqtt_stream) == 50
        info = await away.api(f"STREAM.INFO.{layout.mqtt_stream}")
        assert info["state"]["messages"] == 3
