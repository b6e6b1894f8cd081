"""What MQTT over nodes needs of NATS, besides what whole nodes show."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from cloud.cluster.connection import Connection
from cloud.cluster.mqtt_fabric import FabricFull
from cloud.cluster.mqtt_nats import NatsFabric
from tests.kit.nats import make_layout, nats_single
from tests.kit.sites import until


async def test_the_log_says_how_large_and_how_old_it_is(tmp_path: Path) -> None:
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        fabric = NatsFabric(await Connection.open(servers.url, name="test"), layout)
        empty = await fabric.log_state()
        assert empty.first_seq > empty.last_seq
        assert (empty.bytes, empty.oldest_us) == (0, 0)
        assert empty.bytes_max == layout.mqtt_bytes_max
        assert empty.age_max_us == 7 * 86_400 * 1_000_000
        before_us = time.time_ns() // 1_000
        for number in range(3):
            await fabric.append("s.1", bytes(1_000), f"id-{number}")
        state = await fabric.log_state()
        assert (state.first_seq, state.last_seq) == (1, 3)
        assert state.bytes > 3_000
        assert abs(state.oldest_us - before_us) < 5_000_000
        assert await fabric.log_before(before_us - 60_000_000) == 0
        assert await fabric.log_before(before_us + 60_000_000) == 3
        for below in (-1, 0, 1):  # there is nothing; a server takes 0 for everything
            await fabric.purge("s.1", below)
        assert (await fabric.log_state()).first_seq == 1
        await fabric.purge("s.1", 3)
        assert (await fabric.log_state()).first_seq == 3
        assert [one.seq for one in await fabric.scan("s.1", 0, 9)] == [3]
        await fabric.stop()


async def test_a_full_log_takes_nothing_and_keeps_all_it_has(tmp_path: Path) -> None:
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers, mqtt_bytes_max=1 << 20)
        fabric = NatsFabric(await Connection.open(servers.url, name="test"), layout)
        count = 0
        with pytest.raises(FabricFull):  # noqa: PT012 - which of them it is depends on the size
            while True:
                await fabric.append("s.1", bytes(100_000), f"id-{count}")
                count += 1
        state = await fabric.log_state()
        assert (state.first_seq, state.last_seq) == (1, count)
        await fabric.purge(">", 3)
        assert (await fabric.log_state()).first_seq == 3
        await fabric.append("s.1", bytes(100_000), f"id-{count}")
        await fabric.stop()


async def test_a_subject_listened_to_again_is_heard_once(tmp_path: Path) -> None:
    """As a node does that joins again and again until there is a quorum."""
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        fabric = NatsFabric(await Connection.open(servers.url, name="test"), layout)
        first: list[bytes] = []
        heard: list[bytes] = []
        await fabric.listen("to.me", first.append)
        await fabric.listen("to.me", heard.append)
        fabric.send("to.me", b"1")
        fabric.send("to.me", b"2")
        await until("it is heard", lambda: heard[-1:] == [b"2"])
        assert (first, heard) == ([], [b"1", b"2"])
        await fabric.stop()


async def test_an_instance_that_was_purged_by_hand_is_gone(tmp_path: Path) -> None:
    with nats_single(tmp_path) as servers:
        layout = await make_layout(servers)
        connection = await Connection.open(servers.url, name="test")
        fabric = NatsFabric(connection, layout)
        states: dict[str, bytes | None] = {}
        await fabric.follow_states(lambda state: states.__setitem__(state.key, state.value))
        await fabric.put("n.gone", b"1", None, 60)
        await fabric.put("s.client", b"2", None)
        await until("both are seen", lambda: len(states) == 2)
        await connection.api(f"STREAM.PURGE.KV_{layout.bucket('sessions')}")
        await until("it is gone", lambda: states["n.gone"] is None)
        await fabric.put("n.there", b"3", None, 60)
        await until("the next one is seen", lambda: states.get("n.there") == b"3")
        assert states["s.client"] == b"2"  # a client's session is not given up for that
        await fabric.stop()
