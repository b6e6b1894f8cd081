"""Three NATS servers, three nodes, two gateways, real processes: each kind is killed under load.

After each attack: every reading a gateway acknowledged is there once, in its device's order, and
the ledger balances. How long writes stood still is printed, not judged.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from device_sim.config import SimConfig
from device_sim.report import SimReport
from device_sim.run import run_sim
from tests.kit.cluster import Witness, witness_of
from tidegate.cluster_demo import ClusterProcesses

RATE = 250.0  # readings a second at each gateway
_EDGE_FLAGS = ("--uplink-backoff-max-s", "0.5", "--uplink-ack-timeout-s", "5")

Attack = Callable[[ClusterProcesses, Witness], Awaitable[None]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterProcesses]:
    processes = ClusterProcesses(
        tmp_path_factory.mktemp("cluster"), nodes=3, gateways=2, gateway_flags=_EDGE_FLAGS
    )
    try:
        asyncio.run(processes.start())
        yield processes
    finally:
        processes.kill()


async def load(
    cluster: ClusterProcesses, gateway: int, witness: Witness, stop: asyncio.Event, name: str
) -> SimReport:
    """Publish through a gateway until `stop`, then wait until all that was acked is stored."""
    config = SimConfig(
        broker=f"mqtt://127.0.0.1:{cluster.edge_ports[gateway]}",
        client_prefix=f"{name}-{gateway}-",
        devices=8,
        rate_per_s=RATE,
        duration_s=0,
        seed=gateway + 1,
        drain_timeout_s=30,
        verify=str(witness.path),
        verify_timeout_s=90,
    )
    return await run_sim(config, stop=stop)


async def attacked(
    cluster: ClusterProcesses, folder: Path, name: str, attack: Attack, *, after_s: float = 1.0
) -> None:
    """Run load, attack it, and check what is left."""
    async with witness_of(cluster, folder / "witness") as witness:
        stop = asyncio.Event()
        loading = [
            asyncio.create_task(load(cluster, gateway, witness, stop, name))
            for gateway in range(len(cluster.gateways))
        ]
        await witness.appends_after(time.monotonic())
        await asyncio.sleep(after_s)  # under way: batches, records, sinks
        began_s = time.monotonic()
        await attack(cluster, witness)
        await witness.appends_after(time.monotonic())
        await asyncio.sleep(after_s)
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


def check_audit(cluster: ClusterProcesses) -> None:
    """Assert that a node's ledger balances and nothing is under way."""
    done = subprocess.run(
        [sys.executable, "-m", "tidegate", "audit", "--url", cluster.urls[0], "--settled", "60"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def leader_index(cluster: ClusterProcesses, stream: str) -> int:
    """Return which server leads a stream."""
    leader = cluster.servers.stream_leader(stream)
    assert leader is not None
    return cluster.servers.servers.index(leader)


# ---- attacks -------------------------------------------------------------------------------------


async def kill_a_node(cluster: ClusterProcesses, witness: Witness) -> None:
    """The one that the first gateway is connected to."""
    await asyncio.to_thread(cluster.nodes[0].kill)
    await witness.appends_after(time.monotonic())
    cluster.nodes[0].start()


async def pause_a_node(cluster: ClusterProcesses, witness: Witness) -> None:
    """Its gateway goes elsewhere; when it wakes it still believes that the gateway is its own."""
    node = cluster.nodes[1]
    os.kill(node.pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(8.0)  # past the gateway's wait for an acknowledgement
        await witness.appends_after(time.monotonic())
    finally:
        os.kill(node.pid, signal.SIGCONT)


async def pause_the_ledgers_leader(cluster: ClusterProcesses, witness: Witness) -> None:
    """It hangs, others elect another, and it wakes as one who does not know that yet."""
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    cluster.servers[index].pause()
    try:
        await witness.appends_after(time.monotonic() + 3.0)
    finally:
        cluster.servers[index].resume()


async def kill_the_ledgers_leader(cluster: ClusterProcesses, witness: Witness) -> None:
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    killed_s = time.monotonic()
    await asyncio.to_thread(cluster.servers[index].kill)
    print(f"\nafter {await witness.appends_after(killed_s + 0.3):.1f} s the next append")
    await asyncio.to_thread(cluster.servers[index].start)


async def kill_a_follower(cluster: ClusterProcesses, witness: Witness) -> None:
    index = await asyncio.to_thread(leader_index, cluster, cluster.layout.ledger_stream)
    victim = cluster.servers[(index + 1) % 3]
    await asyncio.to_thread(victim.kill)
    await witness.appends_after(time.monotonic())
    await asyncio.to_thread(victim.start)


async def kill_two_servers(cluster: ClusterProcesses, witness: Witness) -> None:
    """Without a quorum nothing is acknowledged; gateways keep their readings."""
    for index in (0, 1):
        await asyncio.to_thread(cluster.servers[index].kill)
    await asyncio.sleep(1.0)  # what was committed before has been read
    taken = len(witness.appended_s)
    sent = [await asyncio.to_thread(_acked_batches, url) for url in cluster.urls]
    await asyncio.sleep(3.0)
    assert len(witness.appended_s) == taken
    assert [await asyncio.to_thread(_acked_batches, url) for url in cluster.urls] == sent
    await asyncio.to_thread(cluster.servers.start)


def _acked_batches(url: str) -> int:
    """Return how many readings a node says it has taken."""
    with urllib.request.urlopen(f"{url}/status", timeout=10) as answer:
        return int(json.load(answer)["readings_taken"])


async def cut_the_power(cluster: ClusterProcesses, _witness: Witness) -> None:
    """Of everything but the witness and the devices."""
    cluster.servers.kill()
    for process in (*cluster.nodes, *cluster.gateways):
        process.kill()
    await asyncio.to_thread(cluster.servers.start)
    for process in (*cluster.nodes, *cluster.gateways):
        process.start()
    await asyncio.gather(*(cluster.ready(n) for n in range(len(cluster.nodes))))


async def ask_a_server_to_leave(cluster: ClusterProcesses, witness: Witness) -> None:
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
        cut_the_power,
    ],
)
async def test_nothing_is_lost_doubled_or_out_of_order(
    cluster: ClusterProcesses, tmp_path: Path, attack: Attack
) -> None:
    await attacked(cluster, tmp_path, attack.__name__.replace("_", "-"), attack)


async def test_random_kills(cluster: ClusterProcesses, tmp_path: Path) -> None:
    """One of each for a few seconds, or as long as TIDEGATE_TEST_KILLS_S says (600 at night)."""
    seed = int(os.environ.get("TIDEGATE_TEST_SEED", "6"))
    print(f"\nseed {seed}")
    rng = random.Random(seed)
    until_s = time.monotonic() + float(os.environ.get("TIDEGATE_TEST_KILLS_S", "5"))

    async def kills(cluster: ClusterProcesses, _witness: Witness) -> None:
        while True:
            victim = rng.choice(cluster.processes)
            await asyncio.to_thread(victim.kill)
            await asyncio.sleep(rng.uniform(0.0, 4.0))
            await asyncio.to_thread(victim.start)
            await asyncio.sleep(rng.uniform(0.0, 6.0))
            if time.monotonic() >= until_s:
                return

    await attacked(cluster, tmp_path, "random", kills)
