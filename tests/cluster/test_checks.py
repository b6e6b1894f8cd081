"""What a node makes sure of before it trusts a cluster; each fault is one line."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cloud.cluster.applying import apply
from cloud.cluster.bucket import Bucket
from cloud.cluster.checks import check_cluster
from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import Layout
from cloud.config import NatsConfig, StreamConfig
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.engine import JetStreamStream
from cloud.stream.opening import access_of, layout_of, open_cluster_stream, open_stream
from runtime.clock import SystemClock
from tests.kit.cloud import EPOCH
from tests.kit.nats import NatsServers, connected, make_layout, nats_cluster, nats_single
from tests.kit.processes import Process, get_json, wait_for
from tidegate.nats_servers import free_ports

ACCOUNTS = """
accounts {
  cloud: { jetstream: enabled, users: [
    {user: node, password: right}
    {user: asks-nothing, password: right, permissions: {publish: {deny: "$JS.API.>"}}}
    {user: no-bodies, password: right, permissions: {publish: {deny: "*.raw.>"}}}
    {user: no-ledger, password: right, permissions: {publish: {deny: "*.ledger"}}}
    {user: no-keys, password: right, permissions: {publish: {deny: "$KV.>"}}}
  ] }
  other: { users: [{user: other, password: right}] }
}
"""


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_cluster(tmp_path_factory.mktemp("three"), disk_bytes_max=8 << 30) as servers:
        yield servers


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServers]:
    with nats_single(tmp_path_factory.mktemp("one"), disk_bytes_max=8 << 30) as servers:
        yield servers


def config_of(servers: NatsServers, layout: Layout, **more: object) -> StreamConfig:
    found = StreamConfig(
        url=servers.url,
        cluster=layout.cluster,
        replicas=layout.replicas,
        file_bytes_max=layout.raw_bytes_max,
        monitors=tuple(servers.monitors),
        start_wait_s=0,
    )
    return replace(found, **more)  # type: ignore[arg-type]


async def refused(config: StreamConfig, tmp_path: Path) -> str:
    """Return the line with which a node refuses a cluster."""
    with pytest.raises(StreamError) as caught:
        await open_stream(tmp_path / "no", config, SystemClock(), node_id="n")
    line = str(caught.value)
    assert "\n" not in line
    return line


# ---- durability ----------------------------------------------------------------------------------


async def test_three_replicas_that_fsync_are_durable(three: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(three, "good")
    stream = await open_stream(
        tmp_path / "no", config_of(three, layout), SystemClock(), node_id="n"
    )
    try:
        assert stream.durability == "r3-fsync"
        await stream.append([])
    finally:
        await stream.close()


async def test_without_anybodys_word_on_fsync_a_node_refuses(
    three: NatsServers, tmp_path: Path
) -> None:
    layout = await make_layout(three, "word")
    config = config_of(three, layout, monitors=())
    assert "stream.servers_fsync" in await refused(config, tmp_path)
    stated = replace(config, servers_fsync=True)
    stream = await open_stream(tmp_path / "no", stated, SystemClock(), node_id="n")
    assert stream.durability == "r3-fsync"
    await stream.close()


async def test_servers_that_sync_now_and_then_are_refused_or_relaxed(tmp_path: Path) -> None:
    with nats_single(tmp_path, sync_interval="10s") as servers:
        layout = await make_layout(servers, "lazy")
        config = config_of(servers, layout)
        async with connected(servers) as connection:
            checked = await check_cluster(
                connection, layout, monitors=servers.monitors, servers_fsync=True
            )
        assert any("syncs every 10 s" in line for line in checked.weak)
        assert "replicas" in await refused(config, tmp_path)
        relaxed = replace(config, durability="relaxed")
        stream = await open_stream(tmp_path / "no", relaxed, SystemClock(), node_id="n")
        assert stream.durability == "relaxed"
        await stream.close()


async def test_a_stream_weakened_by_hand_is_refused(three: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(three, "weak")
    async with connected(three) as connection:
        name = layout.raw_stream(3)
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        await connection.api(f"STREAM.UPDATE.{name}", {**config, "num_replicas": 1}, timeout_s=60)
    line = await refused(config_of(three, layout), tmp_path)
    assert line.startswith(f"{name}: num_replicas is 1, has to be 3")


async def test_streams_weakened_under_a_running_node_are_acknowledged_no_more_until_put_right(
    three: NatsServers,
) -> None:
    layout = await make_layout(three, "weaker")
    config = config_of(three, layout)
    async with connected(three) as connection:
        name = layout.ledger_stream
        altered = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        strict = await open_cluster_stream(config, SystemClock(), node_id="n")
        accepting = await open_cluster_stream(
            replace(config, durability="relaxed"), SystemClock(), node_id="m"
        )
        assert strict.watch is not None
        assert accepting.watch is not None
        try:
            for stream, watch in ((strict, strict.watch), (accepting, accepting.watch)):
                await watch.look()
                assert stream.durability == "r3-fsync"
            weaker = {**altered, "num_replicas": 1}
            await connection.api(f"STREAM.UPDATE.{name}", weaker, timeout_s=60)
            for stream, watch in ((strict, strict.watch), (accepting, accepting.watch)):
                await watch.look()
                assert stream.durability == "relaxed"
            with pytest.raises(StreamError, match="num_replicas is 1, has to be 3"):
                await strict.append([])
            await accepting.append([])
            await apply(connection, layout)
            await strict.watch.look()
            assert strict.durability == "r3-fsync"
            await strict.append([])
        finally:
            await accepting.close()
            await strict.close()


# ---- not to be used at all -----------------------------------------------------------------------


async def test_a_wrong_cluster_name(one: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(one, "right")
    line = await refused(config_of(one, layout, cluster="wrong"), tmp_path)
    assert line.startswith("no cluster 'wrong' there; there are: ")
    assert "right" in line


async def test_a_lost_stream(one: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(one, "lost")
    async with connected(one) as connection:
        await connection.api(f"STREAM.DELETE.{layout.raw_stream(0)}")
    line = await refused(config_of(one, layout), tmp_path)
    assert line.startswith("lost-RAW0 is missing: it was made once and is gone")
    async with connected(one) as connection:
        with pytest.raises(ClusterError, match="10059"):
            await connection.api("STREAM.INFO.lost-RAW0")


async def test_a_stream_with_other_subjects(one: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(one, "subjects")
    async with connected(one) as connection:
        name = layout.raw_stream(0)
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        fewer = {**config, "subjects": config["subjects"][1:]}
        await connection.api(f"STREAM.UPDATE.{name}", fewer)
    assert "was altered: subjects is" in await refused(config_of(one, layout), tmp_path)


async def test_a_partition_count_of_another_version(one: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(one, "count")
    async with connected(one) as connection:
        name = layout.ledger_stream
        config = (await connection.api(f"STREAM.INFO.{name}"))["config"]
        metadata = {**config["metadata"], "tidegate.partitions": "16"}
        await connection.api(f"STREAM.UPDATE.{name}", {**config, "metadata": metadata})
    assert "has 16 partitions" in await refused(config_of(one, layout), tmp_path)


async def test_accounts_without_rights(tmp_path: Path) -> None:
    with nats_single(tmp_path, extra=ACCOUNTS) as servers:
        nats = NatsConfig(user="node", password="wrong")
        config = StreamConfig(url=servers.url, nats=nats, start_wait_s=0)
        assert "Authorization Violation" in await refused(config, tmp_path)
        config = replace(config, nats=NatsConfig(user="other", password="right"))
        assert "JetStream" in await refused(config, tmp_path)
        config = replace(config, nats=NatsConfig(user="node", password="right"))
        assert "tidegate cluster apply" in await refused(config, tmp_path)


@pytest.mark.parametrize(
    ("user", "subject"),
    [
        ("asks-nothing", "$JS.API.INFO"),
        ("no-bodies", "partly.raw."),
        ("no-ledger", "partly.ledger"),
        ("no-keys", "$KV.partly-leases.x"),
    ],
)
async def test_an_account_with_too_few_rights_is_told_which_at_once(
    tmp_path: Path, user: str, subject: str
) -> None:
    with nats_single(tmp_path, extra=ACCOUNTS, disk_bytes_max=8 << 30) as servers:
        nats = NatsConfig(user="node", password="right")
        config = StreamConfig(
            url=servers.url, cluster="partly", replicas=1, durability="relaxed",
            file_bytes_max=64 << 20,
            monitors=tuple(servers.monitors), nats=nats,
        )  # fmt: skip
        maker = await Connection.open(servers.url, name="maker", access=access_of(config))
        await apply(maker, layout_of(config))
        await maker.close()
        config = replace(config, nats=replace(nats, user=user))
        async with asyncio.timeout(30):  # no wait for an answer that never comes
            with pytest.raises((StreamError, ClusterError)) as caught:
                await work_a_little(tmp_path, config)
        assert f"this account has no rights to publish to {subject}" in str(caught.value)


async def work_a_little(tmp_path: Path, config: StreamConfig) -> None:
    """Append to a cluster's stream and change a bucket, as a node does."""
    stream = await open_stream(tmp_path / "no", config, SystemClock(), node_id="n")
    assert isinstance(stream, JetStreamStream)
    try:
        await stream.append([])
        await Bucket(stream.connection, f"{config.cluster}-leases").put("x", b"")
    finally:
        await stream.close()


async def test_mixed_versions(
    three: NatsServers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloud.cluster import checks

    layout = await make_layout(three, "mixed")
    real = checks._varz

    async def varz(address: str) -> dict[str, object] | None:
        page = await real(address)
        return {**page, "version": "2.11.0"} if page and address == three.monitors[0] else page

    monkeypatch.setattr(checks, "_varz", varz)
    line = await refused(config_of(three, layout), tmp_path)
    assert "different versions, 2.11.0 and 2.1" in line


async def test_monitoring_that_does_not_answer(one: NatsServers, tmp_path: Path) -> None:
    layout = await make_layout(one, "mute")
    config = config_of(one, layout, monitors=("http://127.0.0.1:1", "ftp://x"))
    assert "no monitoring page answers" in await refused(config, tmp_path)


# ---- the commands --------------------------------------------------------------------------------


def test_plan_apply_and_a_node_on_it(three: NatsServers, tmp_path: Path) -> None:
    flags = ["--stream", three.url, "--stream-cluster", "cli", "--stream-file-bytes-max", "64MiB"]

    def command(*arguments: str) -> tuple[int, str]:
        log = tmp_path / ("-".join(arguments[:2]) + ".log")
        log.unlink(missing_ok=True)
        with Process([*arguments, *flags], log) as process:
            code = process.start(wait=False).wait()
        return code, log.read_text()

    code, text = command("cloud", "--data", str(tmp_path / "node"), "--port", "0")
    assert code == 1
    assert text.strip().splitlines()[-1].startswith("tidegate cloud: stream: no cluster 'cli'")
    code, text = command("cluster", "plan")
    assert code == 1
    assert text.splitlines()[0] == "create cli-LEDGER"
    assert command("cluster", "apply")[0] == 0
    assert command("cluster", "plan") == (0, "cluster 'cli': as planned\n")
    (http,) = free_ports(1)
    node = Process(
        ["cloud", "--data", str(tmp_path / "node"), "--port", "0", "--http-port", str(http),
         "--stream-monitors", ",".join(three.monitors), *flags],
        tmp_path / "node.log",
        port=http,
    )  # fmt: skip
    with node:
        node.start()
        wait_for("ready", lambda: (get_json(f"http://127.0.0.1:{http}/readyz") or {}).get("ok"))
        assert node.stop() == 0
    assert json.loads(node.text().splitlines()[-1])["event"] == "cloud_stopped"


async def test_a_missing_package_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "nats.aio.client", None)
    monkeypatch.delitem(sys.modules, "cloud.cluster.nats_client", raising=False)
    with pytest.raises(ClusterError, match=r"pip install 'tidegate\[cluster\]'"):
        await Connection.open("nats://127.0.0.1:1", name="n")


# ---- while it runs -------------------------------------------------------------------------------


async def test_without_a_quorum_appends_fail_and_go_on_when_it_is_back(tmp_path: Path) -> None:
    from cloud.stream.jetstream.engine import JetStreamStream
    from tests.cloud.stream_contract import part, read_all

    with nats_cluster(tmp_path) as servers:
        layout = await make_layout(servers)
        connection = await Connection.open(servers.url, name="n")
        stream = await JetStreamStream.open(
            connection, layout, 1, SystemClock(), durability="r3-fsync",
            tail_bytes_max=1 << 20, arrivals_max=0, give_up_s=1.0,
        )  # fmt: skip
        try:
            await stream.append([part(1, [1])])
            servers[1].kill()
            servers[2].kill()
            with pytest.raises(StreamError):
                await stream.append([part(1, [2])])
            servers.start()
            async with asyncio.timeout(120):
                while True:  # the same append, until there is a leader again
                    try:
                        await stream.append([part(1, [2])])
                        break
                    except StreamError:
                        await asyncio.sleep(0.1)
            assert list(await stream.held("gw", EPOCH)) == [(1, 2)]
            entries = await read_all(stream, 1)
            assert [entry.seq_ranges for entry in entries] == [((1, 1),), ((2, 2),)]
        finally:
            await stream.close()


async def test_a_node_that_starts_waits_for_servers_that_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloud.stream import opening

    monkeypatch.setattr(opening, "_PAUSE_S", 0.05)
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        servers.kill()
        config = config_of(servers, layout, start_wait_s=60.0, durability="relaxed")
        opening_it = asyncio.create_task(
            open_stream(tmp_path / "no", config, SystemClock(), node_id="n")
        )
        await asyncio.sleep(0.3)
        assert not opening_it.done()
        servers.start()
        async with asyncio.timeout(60):
            stream = await opening_it
        await stream.append([])
        await stream.close()


async def test_apply_twice_at_once_makes_one_layout(one: NatsServers) -> None:
    layout = Layout("twice", 1, raw_bytes_max=64 << 20, ledger_bytes_max=8 << 20,
                    bucket_bytes_max=8 << 20)  # fmt: skip
    async with connected(one) as first, connected(one) as second:
        await asyncio.gather(apply(first, layout), apply(second, layout))
        assert await apply(first, layout) == []


async def test_servers_that_take_small_messages_only(tmp_path: Path) -> None:
    with nats_single(tmp_path, extra="max_payload: 64KB\n") as servers:
        layout = await make_layout(servers, "small")
        line = await refused(config_of(servers, layout), tmp_path)
        assert "takes messages of at most 65,536 bytes: set 'max_payload: 1MB'" in line
