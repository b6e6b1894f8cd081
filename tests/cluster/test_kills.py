"""Three NATS servers, three nodes, two gateways, PostgreSQL: each kind is killed under load.

After each attack: every reading a gateway acknowledged is there once, in its device's order, in
the stream and in the nodes' PostgreSQL, and the ledger balances. How long writes stood still is
printed, not judged.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from device_sim.config import SimConfig
from device_sim.report import SimReport
from device_sim.run import run_sim
from tests.kit.cluster import Witness, check_stored, note_order, witness_of
from tests.kit.postgres import PostgresServer, postgres_server
from tests.kit.processes import get_json, wait_for
from tidegate.cluster_demo import ClusterProcesses, TidegateProcess
from tidegate.nats_servers import NatsServer

RATE = 250.0  # readings a second at each gateway
BUSY = 8  # partitions, at least, that the devices of a test have readings in
_EDGE_FLAGS = ("--uplink-backoff-max-s", "0.5", "--uplink-ack-timeout-s", "5")


class Site(ClusterProcesses):
    """Three nodes that store in one PostgreSQL, and two gateways.

    Attributes:
        postgres: The database server.
        storage_url: The database.
    """

    def __init__(self, folder: Path, postgres: PostgresServer, storage_url: str) -> None:
        super().__init__(
            folder, nodes=3, gateways=2, gateway_flags=_EDGE_FLAGS,
            node_flags=("--storage-url", storage_url),
        )  # fmt: skip
        self.postgres = postgres
        self.storage_url = storage_url


Attack = Callable[[Site, Witness], Awaitable[None]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with postgres_server() as postgres:
        site = Site(
            tmp_path_factory.mktemp("cluster"), postgres, asyncio.run(postgres.new_database())
        )
        try:
            asyncio.run(site.start())
            asyncio.run(note_order(postgres, site.storage_url))
            yield site
        finally:
            site.kill()


async def load(
    cluster: Site, gateway: int, witness: Witness, stop: asyncio.Event, name: str
) -> SimReport:
    """Publish through a gateway until `stop`, then wait until all that was acked is stored."""
    config = SimConfig(
        broker=f"mqtt://127.0.0.1:{cluster.edge_ports[gateway]}",
        client_prefix=f"{name}-{gateway}-",
        devices=8,
        rate_per_s=RATE,
        duration_s=0,
        seed=gateway + 1,
        drain_timeout_s=60,
        verify=str(witness.path),
        verify_timeout_s=90,
    )
    return await run_sim(config, stop=stop)


async def attacked(cluster: Site, folder: Path, name: str, attack: Attack) -> None:
    """Run load, attack it, and check what is left."""
    async with witness_of(cluster, folder / "witness") as witness:
        stop = asyncio.Event()
        loading = [
            asyncio.create_task(load(cluster, gateway, witness, stop, name))
            for gateway in range(len(cluster.gateways))
        ]
        await witness.appends_after(time.monotonic())
        await witness.appends_more(20)  # under way: batches, records, sinks
        began_s = time.monotonic()
        await attack(cluster, witness)
        await witness.appends_more(20)
        stop.set()
        async with asyncio.timeout(180):
            reports = await asyncio.gather(*loading)
        print(f"\n{name}: writes stood still for {witness.longest_gap_s(began_s):.1f} s at most")
        for report in reports:
            assert report.verdict is not None
            assert report.verdict.ok, report.verdict.summary()
            assert report.verdict.acked == report.acked > 0
        await asyncio.gather(*(cluster.ready(n) for n in range(len(cluster.nodes))))
        await witness.check_stream()
        assert witness.check_rows() > 0
        await asyncio.to_thread(check_audit, cluster)
        await check_stored(cluster.postgres, cluster.storage_url, witness)


def check_audit(cluster: Site) -> None:
    """Assert that a node's ledger balances and nothing is under way."""
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "audit", "--url", cluster.urls[0], "--settled", "300"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def leader_index(cluster: Site, stream: str) -> int:
    """Return which server leads a stream."""
    leader = cluster.servers.stream_leader(stream)
    assert leader is not None
    return cluster.servers.servers.index(leader)


# ---- attacks -------------------------------------------------------------------------------------


async def kill_a_node(cluster: Site, witness: Witness) -> None:
    """The one that the first gateway is connected to."""
    node = await asyncio.to_thread(node_of, cluster, 0)
    await asyncio.to_thread(node.kill)
    await witness.appends_after(time.monotonic())
    node.start()


async def pause_a_node(cluster: Site, witness: Witness) -> None:
    """Its gateway goes elsewhere; when it wakes it still believes that the gateway is its own."""
    node = await asyncio.to_thread(node_of, cluster, 1)
    os.kill(node.pid, signal.SIGSTOP)
    try:
        await until_linked_elsewhere(cluster, 1)
        await witness.appends_after(time.monotonic())
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def pause_the_ledgers_leader(cluster: Site, witness: Witness) -> None:
    """It hangs, others elect another, and it wakes as one who does not know that yet."""
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    cluster.servers[index].pause()
    try:
        await witness.appends_after(time.monotonic() + 3.0)  # past what it had begun
    finally:
        cluster.servers[index].resume()


async def kill_the_ledgers_leader(cluster: Site, witness: Witness) -> None:
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    killed_s = time.monotonic()
    await asyncio.to_thread(cluster.servers[index].kill)
    print(f"\nafter {await witness.appends_after(killed_s + 0.3):.1f} s the next append")
    await asyncio.to_thread(cluster.servers[index].start)


async def kill_a_follower(cluster: Site, witness: Witness) -> None:
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    victim = cluster.servers[(index + 1) % 3]
    await asyncio.to_thread(victim.kill)
    await witness.appends_after(time.monotonic())
    await asyncio.to_thread(victim.start)


async def kill_two_servers(cluster: Site, witness: Witness) -> None:
    """Without a quorum nothing is acknowledged; gateways keep their readings.

    `kill_all_that_stores` finds a single acknowledgement that came too early.
    """
    for index in (0, 1):
        await asyncio.to_thread(cluster.servers[index].kill)
    taken: list[int] | None = None
    async with asyncio.timeout(600):
        while (now := await taken_so_far(cluster, witness)) != taken:
            taken = now  # at first what was committed before has yet to be read and counted
            await kept_at_gateways(cluster, 750)
    await asyncio.to_thread(cluster.servers.start)


async def kept_at_gateways(cluster: Site, count: int) -> None:
    """Return once each gateway keeps so many readings more than it does now."""
    before = [backlog(cluster, number) for number in range(len(cluster.gateways))]
    async with asyncio.timeout(180):
        for number, kept in enumerate(before):
            while await asyncio.to_thread(backlog, cluster, number) < kept + count:
                await asyncio.sleep(0.05)


async def until_linked_elsewhere(cluster: Site, number: int) -> None:
    """Return once a gateway is connected to another node than now."""
    before = uplink(cluster, number)["endpoint"]
    async with asyncio.timeout(180):
        while True:
            said = await asyncio.to_thread(uplink, cluster, number)
            if said["link"] == "online" and said["endpoint"] != before:
                return
            await asyncio.sleep(0.05)


def node_of(cluster: Site, number: int) -> TidegateProcess:
    """Return the node that a gateway is connected to."""
    port = int(uplink(cluster, number)["endpoint"].rpartition(":")[2])
    return cluster.nodes[cluster.mqtt_ports.index(port)]


def backlog(cluster: Site, number: int) -> int:
    """Return how many readings a gateway keeps."""
    return int(uplink(cluster, number)["backlog_readings"])


def uplink(cluster: Site, number: int) -> dict[str, Any]:
    """Return a gateway's figures of its uplink."""
    found: dict[str, Any] = status_of(f"http://127.0.0.1:{cluster.edge_http_ports[number]}")[
        "uplink"
    ]
    return found


async def taken_so_far(cluster: Site, witness: Witness) -> list[int]:
    """Return what nodes took and gateways had acknowledged, and what the witness saw of appends."""
    nodes = [await asyncio.to_thread(status_of, url) for url in cluster.urls]
    gateways = [
        await asyncio.to_thread(uplink, cluster, number) for number in range(len(cluster.gateways))
    ]
    return [
        *(int(status["readings_taken"]) for status in nodes),
        *(int(status["readings_sent"]) for status in gateways),
        len(witness.appended_s),
    ]


def status_of(url: str) -> dict[str, Any]:
    """Return the status of what runs, as soon as it has time to answer."""
    found: dict[str, Any] = wait_for(f"{url}/status", lambda: get_json(f"{url}/status"))
    return found


async def cut_the_power(cluster: Site, _witness: Witness) -> None:
    """Of everything but the witness and the devices."""
    cluster.servers.kill()
    for process in (*cluster.nodes, *cluster.gateways):
        process.kill()
    await asyncio.to_thread(cluster.servers.start)
    for process in (*cluster.nodes, *cluster.gateways):
        process.start()
    await asyncio.gather(*(cluster.ready(n) for n in range(len(cluster.nodes))))


async def kill_all_that_stores(cluster: Site, _witness: Witness) -> None:
    """The streams' quorum, then all nodes and PostgreSQL: then rows come of every partition.

    What a node acknowledged without the quorum is nowhere when it is killed: the server that is
    left did not lead the ledger, so that it has nothing of later in its log.
    """
    before = await stored_positions(cluster)
    busy: set[int] = set()
    async with asyncio.timeout(180):
        while len(busy) < BUSY:
            await asyncio.sleep(0.1)
            now = await stored_positions(cluster)
            busy |= {p for p, position in now.items() if position > before.get(p, 0)}
    leader = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    servers = [cluster.servers[(leader + 1) % 3], cluster.servers[leader]]  # none is elected now
    for server in servers:
        await asyncio.to_thread(server.kill)
    await kept_at_gateways(cluster, 750)
    for process in (*cluster.nodes, cluster.postgres):
        await asyncio.to_thread(process.kill)
    began_s = time.monotonic()
    for node in cluster.nodes:  # they find nobody, and wait
        node.start()
    await asyncio.gather(*(asyncio.to_thread(one.start) for one in (*servers, cluster.postgres)))
    answer_s = time.monotonic() - began_s
    before = await stored_positions(cluster)
    left = set(busy)
    async with told_why(cluster):
        while left:
            await asyncio.sleep(0.1)
            now = await stored_positions(cluster)
            left -= {p for p in left if now[p] > before[p]}
    print(f"\nrows of {len(busy)} partitions {time.monotonic() - began_s:.1f} s after the start;"
          f" servers and PostgreSQL answered after {answer_s:.1f} s")  # fmt: skip


async def stored_positions(cluster: Site) -> dict[int, int]:
    """Return how far storage is, by partition, as PostgreSQL has it."""
    sql = "SELECT partition, position FROM tidegate.cursors"
    return dict(await cluster.postgres.rows(cluster.storage_url, sql))


async def ask_a_server_to_leave(cluster: Site, witness: Witness) -> None:
    """Lame duck: it moves its leaders and clients away."""
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    cluster.servers[index].lame_duck()
    await witness.appends_after(time.monotonic() + 2.0)
    await asyncio.to_thread(cluster.servers[index].stop)
    await asyncio.to_thread(cluster.servers[index].start)


@pytest.mark.parametrize(
    "attack",
    [
        kill_a_node,
        pause_a_node,
        pause_the_ledgers_leader,
        kill_the_ledgers_leader,
        kill_a_follower,
        kill_two_servers,
        ask_a_server_to_leave,
        kill_all_that_stores,
        cut_the_power,
    ],
)
async def test_nothing_is_lost_doubled_or_out_of_order(
    cluster: Site, tmp_path: Path, attack: Attack
) -> None:
    await attacked(cluster, tmp_path, attack.__name__.replace("_", "-"), attack)


async def test_random_kills(cluster: Site, tmp_path: Path) -> None:
    """Some for a few seconds, or as long as TIDEGATE_TEST_KILLS_S says (600 at night)."""
    seed = int(os.environ.get("TIDEGATE_TEST_SEED", "6"))
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    lasts_s = float(os.environ.get("TIDEGATE_TEST_KILLS_S", "5"))
    killed: list[tuple[float, str]] = []
    stored_s: list[float] = []

    async def kills(cluster: Site, witness: Witness) -> None:
        everything = [*cluster.processes, cluster.postgres]
        until_s = time.monotonic() + lasts_s
        while time.monotonic() < until_s:
            victims = rng.sample(everything, rng.choice((1, 1, 1, 2)))
            killed.append((time.monotonic(), " and ".join(sorted(map(kind_of, victims)))))
            for victim in victims:
                await asyncio.to_thread(victim.kill)
            await asyncio.sleep(rng.uniform(0.0, 4.0))
            for victim in victims:
                await asyncio.to_thread(victim.start)
            if cluster.postgres in victims:
                stored_s.append(await stored_again(cluster))
            await asyncio.sleep(rng.uniform(0.0, 6.0))
        ends_s = [at_s for at_s, _ in killed[1:]] + [time.monotonic()]
        await witness.appends_after(ends_s[-1])
        print_stalls(witness, killed, ends_s)
        if stored_s:
            print(f"  rows again after PostgreSQL answered: {max(stored_s):.1f} s at most")

    await attacked(cluster, tmp_path, "random", kills)


def kind_of(victim: NatsServer | TidegateProcess | PostgresServer) -> str:
    """Return what a process is."""
    if isinstance(victim, TidegateProcess):
        return victim.name.partition("-")[0]
    return "server" if isinstance(victim, NatsServer) else "postgres"


async def stored_again(cluster: Site) -> float:
    """Return how long until PostgreSQL has new rows, seconds."""
    began_s = time.monotonic()
    count = "SELECT count(*) FROM tidegate.readings"
    before = await cluster.postgres.rows(cluster.storage_url, count)
    async with told_why(cluster):
        while await cluster.postgres.rows(cluster.storage_url, count) == before:
            await asyncio.sleep(0.1)
    return time.monotonic() - began_s


@asynccontextmanager
async def told_why(cluster: Site, timeout_s: float = 180.0) -> AsyncIterator[None]:
    """Fail when it takes too long, with what the sinks of each node wait for."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except TimeoutError:
        said = [await asyncio.to_thread(sinks_of, url) for url in cluster.urls]
        raise AssertionError(f"no rows in {timeout_s:g} s: {said}") from None


def sinks_of(url: str) -> object:
    """Return what a node says of its sinks; None when it says nothing."""
    return (get_json(f"{url}/status") or {}).get("sinks")


def print_stalls(witness: Witness, killed: list[tuple[float, str]], ends_s: list[float]) -> None:
    """Print how long nothing was appended after each kind of kill."""
    stalls: dict[str, list[float]] = defaultdict(list)
    for (at_s, what), end_s in zip(killed, ends_s, strict=True):
        stalls[what].append(witness.longest_gap_s(at_s, end_s))
    for what, found in sorted(stalls.items()):
        middle = statistics.median(found)
        print(f"  {what}: {len(found)}, no append for {middle:.1f} s, {max(found):.1f} s at most")
