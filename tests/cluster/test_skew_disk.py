"""Clocks of nodes that disagree by days, and servers whose disks are full."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cloud.cluster.connection import Connection
from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.node import Node
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.engine import JetStreamStream
from runtime.clock import SystemClock
from tests.cloud.stream_contract import part, read_all
from tests.kit.cloud import EPOCH, Uplink, query
from tests.kit.nats import NatsServers, make_layout, nats_cluster, nats_single
from tests.kit.nodes import node_config
from tests.kit.readings import one_per_row
from tests.kit.small_disk import small_disk, take_all_space

DAY_S = 86_400


class SkewedClock(SystemClock):
    """The machine's clock, set wrong."""

    def __init__(self, off_s: float) -> None:
        super().__init__()
        self._off_us = round(off_s * 1_000_000)

    def wall_us(self) -> int:
        return super().wall_us() + self._off_us


async def test_nodes_whose_clocks_are_days_apart_share_the_work_and_lose_nothing(
    tmp_path: Path,
) -> None:
    """Leases and order go by no wall clock; what a clock trims too early, sinks have had."""
    offsets_s = (0.0, 10.0 * DAY_S, -10.0 * DAY_S)
    with nats_single(tmp_path, disk_bytes_max=8 << 30) as server:
        layout = await make_layout(server, "skew")
        nodes = []
        for number, off_s in enumerate(offsets_s):
            stream = StreamConfig(
                url=server.url, cluster="skew", replicas=1, durability="relaxed",
                file_bytes_max=layout.raw_bytes_max, monitors=tuple(server.monitors),
            )  # fmt: skip
            config = node_config(
                tmp_path / f"node-{number}", stream=stream, node_id=f"node-{number}",
                storage=StorageConfig(linger_ms=0), sinks=SinksConfig(retry_s=0.01),
            )  # fmt: skip
            nodes.append(Node(config, SkewedClock(off_s)))
        for node in nodes:
            await node.start()
        try:
            async with asyncio.timeout(60):
                while sorted(len(held(node)) for node in nodes) != [21, 21, 22]:
                    await asyncio.sleep(0.05)
            # a gateway goes from node to node, forth and back in time
            seq = 1
            for turn in range(9):
                await sent(nodes[turn % 3], seq)
                seq += 50
                for node in nodes:
                    await node.sinks.trim()
            for node in nodes:
                await node.stream.catch_up()
                await node.sinks.runners["storage"].drained()
                report = await node.balance(thorough=True)
                assert report.balanced, report.lines()
                assert (report.waiting, report.sources[0].stored) == (0, 450)
        finally:
            for node in nodes:
                await node.stop()
        for node in nodes:
            rows = query(
                node.config.data / "cloud" / "storage.db",
                "SELECT device, seq FROM readings ORDER BY rowid",
            )
            assert len(rows) == len(set(rows)) == 450
            for device in {device for device, _ in rows}:
                seqs = [seq for name, seq in rows if name == device]
                assert seqs == sorted(seqs)  # type: ignore[type-var]


async def sent(node: Node, first_seq: int) -> None:
    """Send 50 readings as a gateway does: again, while the node has to ask what is held."""
    async with asyncio.timeout(60):
        while True:
            uplink = Uplink(node.capture)
            uplink.send(uplink.batch(one_per_row(50, first_seq=first_seq, devices=7)))
            if await uplink.answered() == [0]:
                return


def held(node: Node) -> set[int]:
    """Return the partitions whose alerts a node works on."""
    assert node.sinks.leases is not None
    return set(node.sinks.leases.of("alerts").held())


# ---- disks ---------------------------------------------------------------------------------------


async def opened_stream(servers: NatsServers) -> JetStreamStream:
    layout = await make_layout(servers)
    connection = await Connection.open(servers.url, name="n")
    return await JetStreamStream.open(
        connection, layout, 1, SystemClock(), durability="r3-fsync", tail_bytes_max=1 << 20,
        arrivals_max=0, give_up_s=1.0,
    )  # fmt: skip


async def taken(stream: JetStreamStream, seq: int, *, within_s: float = 90) -> None:
    """Append a reading, the same again and again, until it is in."""
    async with asyncio.timeout(within_s):
        while True:
            try:
                await stream.append([part(1, [seq])])
            except StreamError:
                await asyncio.sleep(0.1)
                continue
            return


async def fill(stream: JetStreamStream) -> None:
    """Append until it is refused: what is in the files has some room left."""
    for seq in range(20_000, 24_000):
        await stream.append([part(2, [seq], body=bytes(60_000))])


@pytest.mark.parametrize("full", [1, 3])
async def test_a_full_disk_loses_nothing_and_all_goes_on_when_there_is_room(
    tmp_path: Path, full: int
) -> None:
    """Of one server: the others go on. Of all: no append is taken, until there is room again."""
    disks = []
    with (
        small_disk(tmp_path / "disk-0", "300m") as first,
        small_disk(tmp_path / "disk-1", "300m") as second,
        small_disk(tmp_path / "disk-2", "300m") as third,
    ):
        disks = [first, second, third]
        (tmp_path / "nats").mkdir()
        for number, disk in enumerate(disks):
            (tmp_path / "nats" / f"local-{number}").symlink_to(disk)
        with nats_cluster(tmp_path) as servers:
            stream = await opened_stream(servers)
            try:
                await taken(stream, 1)
                for disk in disks[:full]:
                    take_all_space(disk / "filler")
                if full == 1:
                    for seq in range(2, 40):
                        await taken(stream, seq)
                else:
                    with pytest.raises(StreamError):
                        await fill(stream)
                for number, disk in enumerate(disks[:full]):
                    (disk / "filler").unlink()
                    servers[number].kill()  # what an operator does then
                servers.start()
                await taken(stream, 40)
                held = set()
                for one, last in await stream.held("gw", EPOCH):
                    held |= set(range(one, last + 1))
                assert {1, 40} <= held
                assert full == 3 or set(range(1, 41)) == held
                found = [seq for entry in await read_all(stream, 1)
                         for seq, _ in entry.seq_ranges]  # fmt: skip
                assert found == sorted(set(found), key=found.index)
                assert {1, 40} <= set(found)
            finally:
                await stream.close()
