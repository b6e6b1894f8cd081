"""The uplink on lines that are cut, fall silent or swallow, and to clouds that are away."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace

import pytest

from edge.contract import Lane
from runtime.clock import ManualClock
from tests.kit.cloud_peer import CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.proxy import Proxy
from tests.kit.sites import until
from tests.kit.uplinks import FAST, FAST_LINK, linked, numbered, online, uplink_to


async def test_starts_offline_and_drains_by_itself_when_the_cloud_appears() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 1000))
    cloud = CloudPeer()
    async with uplink_to(journal, cloud.url) as uplink:
        while uplink.status().dials < 3:
            await asyncio.sleep(0.01)
        assert uplink.status().link == "offline"
        assert uplink.status().last_error == f"{cloud.url}: Connection refused"
        assert uplink.status().backlog_readings == 1000
        await cloud.listen()
        await journal.until_trimmed()
        await cloud.close()
    assert len(cloud.rows) == 1000


@pytest.mark.parametrize("seed", range(6))
async def test_cuts_in_mid_batch_lose_nothing_and_keep_the_order(seed: int) -> None:
    rng = random.Random(seed)
    journal = MemoryJournal()
    total = 2000
    payloads = [rng.randbytes(rng.randrange(60)) for _ in range(total)]
    async with CloudPeer() as cloud, Proxy("127.0.0.1", cloud.port) as proxy:
        proxy.cut_after(up=rng.randrange(1, 400))
        config = replace(FAST, batch_readings=100, window_bytes=20_000)
        async with uplink_to(journal, proxy.url, config=config):
            for first in range(0, total, 100):
                journal.capture(payloads[first : first + 100])
            for _ in range(12):
                cuts = proxy.cuts
                await cloud.until("cut", lambda c=cuts: proxy.cuts > c or len(cloud.rows) == total)
                up, down = rng.randrange(10_000), rng.randrange(60)
                proxy.cut_after(up=up) if rng.random() < 0.6 else proxy.cut_after(down=down)
            proxy.heal()
            await journal.until_trimmed()
    assert cloud.rows == list(enumerate(payloads, start=1))
    assert proxy.cuts >= 2
    assert cloud.errors == []


async def test_a_lost_puback_means_the_readings_are_sent_again() -> None:
    journal = MemoryJournal()
    async with linked(journal) as (cloud, proxy, uplink):
        await online(uplink)
        proxy.down.swallow = True
        journal.capture(numbered(0, 100))
        await cloud.until("taken", lambda: len(cloud.rows) == 100)
        assert journal.trimmed[Lane.LIVE] == 0
        proxy.heal()
        proxy.cut()
        await journal.until_trimmed()
    assert len(cloud.rows) == 100
    assert cloud.doubled == 100, "taken twice by the link: identity tells them apart"


async def test_the_next_endpoint_is_used_when_the_first_is_down() -> None:
    journal = MemoryJournal()
    first = CloudPeer()
    async with CloudPeer() as second, uplink_to(journal, first.url, second.url) as uplink:
        journal.capture(numbered(0, 100))
        await journal.until_trimmed()
        assert uplink.status().endpoint == second.url
        await first.listen()
        second.cut()
        await first.until("back to the first", lambda: first.connections)
        journal.capture(numbered(100, 100))
        await journal.until_trimmed()
        await first.close()
    assert [p for _, p in second.rows] == numbered(0, 100)
    assert [p for _, p in first.rows] == numbered(100, 100)


async def test_a_cloud_that_says_when_to_come_again_is_dialled_then_and_not_before() -> None:
    journal = MemoryJournal()
    clock = ManualClock()
    async with (
        CloudPeer(connack=0x89, retry_after="30") as cloud,
        uplink_to(journal, cloud.url, config=replace(FAST, linger_ms=0), clock=clock) as uplink,
    ):
        journal.capture(numbered(0, 10))
        await cloud.until("a dial", lambda: cloud.connections)
        async with asyncio.timeout(60):
            while not uplink.status().last_error:
                await asyncio.sleep(0.001)
        clock.advance(29.5)
        cloud.connack = 0
        await asyncio.sleep(0.05)
        assert uplink.status().dials == 1
        clock.advance(8.5)
        await journal.until_trimmed()
        assert uplink.status().dials == 2
        assert "busy" in uplink.status().last_error


async def test_while_one_endpoint_is_busy_the_next_is_used() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(connack=0x89, retry_after="3600") as busy,
        CloudPeer() as other,
        uplink_to(journal, busy.url, other.url) as uplink,
    ):
        journal.capture(numbered(0, 10))
        await journal.until_trimmed()
        assert uplink.status().endpoint == other.url
        assert busy.connections == 1


async def test_a_peer_that_accepts_and_falls_silent_is_left() -> None:
    journal = MemoryJournal()
    config = replace(FAST, ack_timeout_s=1)
    async with (
        CloudPeer(lambda _batch, _n: None) as silent,
        CloudPeer() as good,
        uplink_to(journal, silent.url, good.url, config=config) as uplink,
    ):
        journal.capture(numbered(0, 100))
        await journal.until_trimmed()
        assert "nothing was acknowledged" in uplink.status().last_error
    assert len(silent.topics) >= 1
    assert [p for _, p in good.rows] == numbered(0, 100)


async def test_a_line_that_swallows_everything_is_dialled_anew() -> None:
    journal = MemoryJournal()
    async with linked(journal, replace(FAST, ack_timeout_s=1)) as (cloud, proxy, _):
        journal.capture(numbered(0, 10))
        await journal.until_trimmed()
        proxy.silence()
        journal.capture(numbered(10, 10))
        await proxy.until_connections(2)
        proxy.heal()
        await journal.until_trimmed()
    assert [p for _, p in cloud.rows] == numbered(0, 20)


async def test_a_line_that_takes_nothing_any_more_is_dialled_anew() -> None:
    """No reset and no word: the peer's buffers fill, and nothing is acknowledged."""
    journal = MemoryJournal()
    config = replace(FAST, ack_timeout_s=0.3)
    async with linked(journal, config) as (cloud, proxy, _):
        journal.capture(numbered(0, 10))
        await journal.until_trimmed()
        proxy.pause()
        journal.capture(numbered(10, 10))  # what it has begun to read still passes
        await until(
            "passed, or, on a busy machine, dialled anew already",
            lambda: not journal.pending(Lane.LIVE, 0) or proxy.connections > 1,
        )
        journal.capture(numbered(20, 40))
        await proxy.until_connections(2)
        proxy.heal()
        await journal.until_trimmed()
    assert [p for _, p in cloud.rows] == numbered(0, 60)


async def test_a_slow_line_whose_bytes_move_is_not_taken_for_dead() -> None:
    journal = MemoryJournal()
    config = replace(FAST, ack_timeout_s=2, batch_readings=1)
    async with linked(journal, config) as (cloud, proxy, uplink):
        await online(uplink)
        proxy.up.bytes_s = 1_500_000
        journal.capture([random.Random(1).randbytes(6_000_000)])
        await journal.until_trimmed()
        assert uplink.status().connections == 1
    assert len(cloud.rows) == 1


async def test_without_endpoints_readings_stay_in_the_journal() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 10))
    async with uplink_to(journal) as uplink:
        await asyncio.sleep(0)
        assert uplink.status().link == "off"
        assert uplink.status().backlog_readings == 10
    assert journal.reads == 0


async def test_stop_waits_for_answers_and_trims_what_they_settle() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud:
        async with uplink_to(journal, cloud.url, config=FAST_LINK):
            journal.capture(numbered(0, 100))
            await cloud.until("taken", lambda: cloud.rows)
        assert not journal.pending(Lane.LIVE, 0)


async def test_stop_while_the_cloud_is_mute_does_not_hang(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.uplink._STOP_S", 0.1)
    journal = MemoryJournal()
    async with CloudPeer(lambda _batch, _n: None) as cloud:
        async with uplink_to(journal, cloud.url):
            journal.capture(numbered(0, 100))
            await cloud.until("taken", lambda: cloud.batches)
        assert journal.pending(Lane.LIVE, 0)


async def test_of_the_acknowledgements_three_fifths_never_come_and_the_line_is_cut_at_each() -> (
    None
):
    """The cloud has the batch; what it says of it is lost, and the line with it."""
    rng = random.Random(5)
    journal = MemoryJournal()
    lost = 0
    config = replace(FAST_LINK, batch_readings=20)
    async with CloudPeer() as cloud, Proxy("127.0.0.1", cloud.port) as proxy:

        def change(packet: bytes) -> bytes:
            nonlocal lost
            if packet[0] >> 4 != 4 or rng.random() >= 0.6:
                return packet
            lost += 1
            proxy.cut()
            return b""

        proxy.down.packets = lambda: change
        async with uplink_to(journal, proxy.url, config=config) as uplink:
            journal.capture(numbered(0, 240))
            await journal.until_trimmed()
            assert uplink.status().dead_letters == 0
    assert [payload for _, payload in cloud.rows] == numbered(0, 240), "each once, in order"
    assert lost >= 5
    assert cloud.errors == []
