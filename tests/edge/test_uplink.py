"""The uplink against a scripted cloud: what it sends, and what it does with each answer."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from bridge.batch import Batch, Encoder, EntryEncoder, decode_entry
from bridge.devices import DeviceIds
from bridge.envelope import LinkLane
from bridge.structured_bodies import BodyChoice
from edge.config import UplinkConfig
from edge.contract import Commit, Lane, Tombstone
from edge.segments import Segment, pack_segment, unpack_body
from edge.uplink import Uplink
from mqtt.frames import parse_publishes
from runtime.clock import Clock, ManualClock, SystemClock
from tests.kit.cloud_peer import Answer, CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.proxy import Proxy

FAST = UplinkConfig(linger_ms=5, backoff_min_s=0.01, backoff_max_s=0.05, connect_timeout_s=5)
STONE = Tombstone(Lane.LIVE, 5, 6, 2, "evicted-age", 1_700_000_000_000_000)


@asynccontextmanager
async def uplink_to(
    journal: MemoryJournal, *urls: str, config: UplinkConfig = FAST, clock: Clock | None = None
) -> AsyncIterator[Uplink]:
    uplink = Uplink(
        replace(config, endpoints=urls), "gw-1", journal, DeviceIds(), clock or SystemClock(),
        rng=random.Random(1),
    )  # fmt: skip
    await uplink.start()
    try:
        yield uplink
    finally:
        await uplink.stop()


@asynccontextmanager
async def linked(
    journal: MemoryJournal, config: UplinkConfig = FAST
) -> AsyncIterator[tuple[CloudPeer, Proxy, Uplink]]:
    """Run an uplink that reaches the cloud through a proxy."""
    async with (
        CloudPeer() as cloud,
        Proxy("127.0.0.1", cloud.port) as proxy,
        uplink_to(journal, proxy.url, config=config) as uplink,
    ):
        yield cloud, proxy, uplink


async def online(uplink: Uplink) -> None:
    while uplink.status().link != "online":
        await asyncio.sleep(0.005)


def numbered(first: int, count: int) -> list[bytes]:
    return [b'{"n":%d}' % n for n in range(first, first + count)]


def once(answers: dict[int, Answer]) -> Callable[[Batch, int], Answer]:
    """Return a script that answers the n-th batch so, and all others with success."""
    return lambda _batch, n: answers.get(n, (0, ""))


# ---- the plain way -------------------------------------------------------------------------------


async def test_readings_arrive_in_order_and_leave_the_journal() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url) as uplink:
        for n in range(0, 3000, 300):
            journal.capture(numbered(n, 300))
        await journal.until_trimmed()
        status = uplink.status()
    assert cloud.rows == [(n + 1, payload) for n, payload in enumerate(numbered(0, 3000))]
    assert cloud.doubled == 0
    assert (cloud.accepted[0].gateway, cloud.accepted[0].epoch) == ("gw-1", journal.epoch)
    assert cloud.accepted[0].readings.sources == [("devices/d1/value", "d1")]
    assert cloud.accepted[-1].assigned == 3000
    assert status.link == "online"
    assert status.readings_sent == 3000
    assert status.backlog_readings == 0
    assert 0 < status.bytes_out < status.packet_bytes


async def test_a_batch_holds_at_most_its_readings_and_its_bytes() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 1700))
    journal.capture([b"x" * 3000] * 10)
    journal.capture([b"y" * 20_000])
    config = replace(FAST, batch_readings=500, batch_bytes=8192)
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=config):
        await journal.until_trimmed()
    sizes = [(len(b.readings), sum(map(len, b.readings.payloads))) for b in cloud.accepted]
    assert max(count for count, _ in sizes) <= 500
    assert [size for _, size in sizes if size > 8192] == [20_000], "one reading may be larger"
    assert len(cloud.rows) == 1711


async def test_small_commits_share_a_batch() -> None:
    journal = MemoryJournal()
    for n in range(400):
        journal.capture(numbered(n, 1), client_id=f"c{n % 7}", topic=f"t/{n % 5}")
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        await journal.until_trimmed()
    assert len(cloud.accepted) == 1
    devices = {device for _, device in cloud.accepted[0].readings.sources}
    assert devices == {f"c{n}" for n in range(7)}, "no pattern matches: the client id counts"


async def test_urgent_readings_overtake_live_ones() -> None:
    journal = MemoryJournal()
    config = replace(FAST, window_bytes=4096, batch_readings=50)
    hold = asyncio.Event()
    async with CloudPeer() as cloud:
        cloud.script = lambda batch, n: (0, "") if n else (0x97, "later")
        journal.capture([random.Random(1).randbytes(50) for _ in range(2000)])
        async with uplink_to(journal, cloud.url, config=config):
            await cloud.until("first batch", lambda: cloud.batches)
            journal.capture([b"fire"], lane=Lane.URGENT)
            hold.set()
            await journal.until_trimmed(Lane.URGENT)
            await journal.until_trimmed(Lane.LIVE)
    lanes = [batch.lane for batch in cloud.accepted]
    assert lanes.index(Lane.URGENT) < len(lanes) // 2


def now_us() -> int:
    return SystemClock().wall_us()


async def test_after_an_outage_live_readings_flow_while_the_backlog_drains() -> None:
    journal = MemoryJournal()
    rng = random.Random(1)
    for _ in range(200):
        journal.capture([rng.randbytes(40) for _ in range(100)])  # of 2023
    config = replace(FAST, batch_readings=50, window_bytes=4096)
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=config) as uplink:
        await cloud.until("the drain", lambda: cloud.batches >= 3)
        news = journal.capture(numbered(0, 10), time_us=now_us())
        await journal.until_trimmed()
        assert uplink.status().backlog_readings == 0
    by_lane = {
        lane: [seq for b in cloud.accepted if b.lane == lane for seq in b.readings.seqs]
        for lane in LinkLane
    }
    assert by_lane[LinkLane.BACKLOG] == list(range(1, 20_001))
    assert by_lane[LinkLane.LIVE] == list(news)
    arrivals = [seq for seq, _ in cloud.rows]
    assert arrivals.index(news[-1]) < arrivals.index(20_000) - 1000, "news did not wait"
    assert {b.historical for b in cloud.accepted if b.lane == LinkLane.BACKLOG} == {True}
    assert {b.historical for b in cloud.accepted if b.lane == LinkLane.LIVE} == {False}
    assert journal.trimmed[Lane.LIVE] == 20_010
    assert cloud.doubled == 0


async def test_a_second_outage_in_the_drain_sends_nothing_twice_that_was_answered() -> None:
    journal = MemoryJournal()
    rng = random.Random(2)
    journal.capture([rng.randbytes(40) for _ in range(2000)])
    config = replace(FAST, batch_readings=50, window_bytes=4096)
    async with linked(journal, config) as (cloud, proxy, _):
        await cloud.until("the drain", lambda: cloud.batches >= 3)
        first = journal.capture([rng.randbytes(40) for _ in range(50)], time_us=now_us())
        await journal.until("live trimmed", lambda: journal.gone[Lane.LIVE].covers(*ends(first)))
        await proxy.refuse()
        journal.capture([rng.randbytes(40) for _ in range(300)])  # of 2023 again
        await proxy.listen()
        await journal.until_trimmed()
    assert sorted(seq for seq, _ in cloud.rows) == list(range(1, 2351))
    again = [
        b for b in cloud.accepted if b.lane == LinkLane.BACKLOG and first[0] in b.readings.seqs
    ]
    assert not again, "what live had answered is left out of the backlog"
    backlog = [s for b in cloud.accepted if b.lane == LinkLane.BACKLOG for s in b.readings.seqs]
    assert list(dict.fromkeys(backlog)) == sorted(set(backlog))


def ends(seqs: range) -> tuple[int, int]:
    return seqs[0], seqs[-1]


async def test_after_the_first_batch_a_header_is_a_few_bytes() -> None:
    journal = MemoryJournal()
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        for n in range(3):
            journal.capture(numbered(n, 1))
            await journal.until_trimmed()
    assert cloud.topics == ["tidegate/v1/up/gw-1", "", ""]
    assert max(cloud.publish_heads[1:]) <= 11


async def test_without_topic_aliases_the_topic_is_repeated() -> None:
    journal = MemoryJournal()
    async with CloudPeer(topic_alias_maximum=0) as cloud, uplink_to(journal, cloud.url):
        for n in range(2):
            journal.capture(numbered(n, 1))
            await journal.until_trimmed()
    assert cloud.topics == ["tidegate/v1/up/gw-1"] * 2


async def test_receive_maximum_of_the_cloud_is_honoured() -> None:
    journal = MemoryJournal()
    config = replace(FAST, batch_readings=10)
    journal.capture(numbered(0, 1000))
    most = 0

    def script(_batch: Batch, _n: int) -> Answer:
        nonlocal most
        most = max(most, uplink.status().batches_in_flight)
        return (0, "")

    async with (
        CloudPeer(script, receive_maximum=3) as cloud,
        uplink_to(journal, cloud.url, config=config) as uplink,
    ):
        await journal.until_trimmed()
    assert len(cloud.accepted) == 100
    assert 1 < most <= 3


async def test_old_readings_are_marked_as_historical_and_never_share_a_batch_with_new_ones() -> (
    None
):
    journal = MemoryJournal()
    now_us = SystemClock().wall_us()
    journal.capture(numbered(0, 20), time_us=now_us - 3_600_000_000)
    journal.capture(numbered(20, 20), time_us=now_us)
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        await journal.until_trimmed()
    sent = {(len(b.readings), b.lane, b.historical) for b in cloud.accepted}
    assert sent == {(20, LinkLane.BACKLOG, True), (20, LinkLane.LIVE, False)}


async def test_tombstones_are_told_and_forgotten_once_acknowledged() -> None:
    journal = MemoryJournal()
    journal.tombstone(STONE)
    async with CloudPeer(once({0: (0x97, "")})) as cloud, uplink_to(journal, cloud.url):
        await journal.until("forgotten", lambda: not journal.stones)
    assert [(s.lane, s.first_seq, s.reason) for s in cloud.tombstones] == [(1, 5, "evicted-age")]


class EndlessBacklog(MemoryJournal):
    """Makes its commits when they are read: a backlog of any length without the memory for it."""

    def pending(self, lane: Lane, after_seq: int) -> bool:
        return lane is Lane.LIVE and after_seq < self.last_seq

    def seq_before(self, lane: Lane, time_us: int) -> int:
        return self.last_seq

    async def read(
        self, lane: Lane, after_seq: int, *, bytes_max: int, through_seq: int | None = None
    ) -> list[Commit]:
        made = MemoryJournal(last_seq=after_seq)
        for n in range(min(10, (self.last_seq - after_seq) // 100)):
            made.capture(numbered(n, 100))
        return made.commits[lane]

    async def trim(self, lane: Lane, up_to_seq: int, *, after_seq: int = 0) -> None:
        self.trimmed[lane] = up_to_seq
        self._changes.set()


async def peak_of_draining(total: int) -> int:
    """Return the most memory in use, in bytes, while a backlog of that length drains."""
    journal = EndlessBacklog(last_seq=total)
    async with CloudPeer() as cloud:
        cloud.keep = False
        tracemalloc.start()
        try:
            async with uplink_to(journal, cloud.url):
                await journal.until("drained", lambda: journal.trimmed[Lane.LIVE] == total)
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            assert cloud.readings == total


async def test_memory_does_not_grow_with_the_backlog() -> None:
    short = await peak_of_draining(5_000)
    long = await peak_of_draining(60_000)
    assert long < short * 1.3 + (1 << 20)


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [0x10, 0x80, 0x83, 0x97])
async def test_not_now_is_tried_again_until_it_is_taken(code: int) -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(once({0: (code, "later"), 1: (code, "later")})) as cloud,
        uplink_to(journal, cloud.url) as uplink,
    ):
        journal.capture(numbered(0, 100))
        await journal.until_trimmed()
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == numbered(0, 100)
    assert journal.aside == []
    assert status.refusals == 2
    assert status.dials == 1, "on the same connection"
    assert "later" in status.last_error


async def test_a_batch_refused_by_the_check_is_sent_again_in_a_fresh_context() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(once({3: (0x99, "check: no")})) as cloud,
        uplink_to(journal, cloud.url, config=replace(FAST, batch_readings=10)),
    ):
        journal.capture(numbered(0, 200))
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 200)
    assert cloud.doubled == 0, "nothing behind the refused batch was taken before it"
    assert journal.aside == []


async def test_the_reading_a_cloud_never_takes_is_set_aside_with_its_cause() -> None:
    def script(batch: Batch, _n: int) -> Answer:
        return (0x99, "bounds: poison") if b"poison" in batch.readings.payloads else (0, "")

    journal = MemoryJournal()
    payloads = numbered(0, 100)
    payloads[37] = b"poison"
    async with CloudPeer(script) as cloud, uplink_to(journal, cloud.url) as uplink:
        journal.capture(payloads)
        await journal.until_trimmed()
        await journal.until("tombstone", lambda: not journal.stones)
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == payloads[:37] + payloads[38:]
    ((lane, first, last, cause, body),) = journal.aside
    assert (lane, first, last) == (Lane.LIVE, 38, 38)
    assert "bounds: poison" in cause
    assert decode_entry(body).readings.payloads == [b"poison"]
    assert status.dead_letters == 1
    assert [(s.first_seq, s.reason) for s in cloud.tombstones] == [(38, "refused")]


async def test_a_reading_larger_than_the_cloud_takes_is_set_aside_unsent() -> None:
    journal = MemoryJournal()
    big = random.Random(3).randbytes(5000)
    async with (
        CloudPeer(maximum_packet_size=2000) as cloud,
        uplink_to(journal, cloud.url),
    ):
        journal.capture([*numbered(0, 5), big, *numbered(5, 5)])
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 10)
    ((_, first, _, cause, body),) = journal.aside
    assert first == 6
    assert "2000" in cause
    assert decode_entry(body).readings.payloads == [big]


@pytest.mark.parametrize("mode", ["columnar", "structured"])
async def test_a_reading_no_encoder_takes_is_set_aside_and_the_lane_moves_on(
    mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(encode: Callable[..., Any]) -> Callable[..., Any]:
        def checked(encoder: object, *values: Any, **named: Any) -> Any:
            if any(b"poison" in one.payloads for one in values if hasattr(one, "payloads")):
                raise ValueError("an encoder's fault")
            return encode(encoder, *values, **named)

        return checked

    for owner in (Encoder, EntryEncoder, BodyChoice):
        monkeypatch.setattr(owner, "encode", poisoned(owner.encode))
    journal = MemoryJournal()
    config = replace(FAST, mode=mode)
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=config):
        journal.capture([*numbered(0, 3), b"poison", *numbered(3, 3)])
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 6)
    ((lane, first, last, cause, body),) = journal.aside
    assert (lane, first, last) == (Lane.LIVE, 4, 4)
    assert "an encoder's fault" in cause
    (segment,) = unpack_body(body)
    assert parse_publishes(segment.frames, segment.version)[0][4] == b"poison"


async def test_a_commit_that_holds_no_publishes_is_set_aside_whole() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 5))
    body = pack_segment(Segment(4, "c", 1_700_000_000_000_000, 3, b"\x30\xff\xff\xff\xff\xff"))
    journal.commit(Lane.LIVE, 3, 1_700_000_000_000_000, body)
    journal.capture(numbered(5, 5))
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        await journal.until_trimmed()
    assert cloud.rows == [
        *((n + 1, p) for n, p in enumerate(numbered(0, 5))),
        *((n + 9, p) for n, p in enumerate(numbered(5, 5))),
    ]
    ((lane, first, last, _, kept),) = journal.aside
    assert (lane, first, last, kept) == (Lane.LIVE, 6, 8, body)


async def test_a_refused_connect_is_reported_and_tried_again() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 5))
    async with CloudPeer(connack=0x87) as cloud, uplink_to(journal, cloud.url) as uplink:
        await cloud.until("three dials", lambda: cloud.connections >= 3)
        status = uplink.status()
    assert status.link in ("offline", "connecting")
    assert "Not authorized" in status.last_error
    assert cloud.url in status.last_error
    assert cloud.topics == []


async def test_a_journal_that_fails_for_a_while_only_delays() -> None:
    journal = MemoryJournal()
    journal.failures = [OSError("disk"), OSError("disk"), OSError("disk")]
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url):
        journal.capture(numbered(0, 50))
        await journal.until_trimmed()
    assert [payload for _, payload in cloud.rows] == numbered(0, 50)


# ---- faults of the link --------------------------------------------------------------------------


async def test_starts_offline_and_drains_by_itself_when_the_cloud_appears() -> None:
    journal = MemoryJournal()
    journal.capture(numbered(0, 1000))
    cloud = CloudPeer()
    await cloud.listen()
    await cloud.close()
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
    await first.listen()
    await first.close()
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
        async with asyncio.timeout(10):
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
        await journal.until_trimmed()
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
        async with uplink_to(journal, cloud.url):
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


# ---- the structured mode -------------------------------------------------------------------------

STRUCTURED = replace(FAST, mode="structured", batch_readings=50)


async def test_a_cloud_that_does_not_know_the_mode_gets_everything_columnar() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(structured=False) as cloud,
        uplink_to(journal, cloud.url, config=STRUCTURED) as uplink,
    ):
        journal.capture(numbered(0, 500))
        await journal.until_trimmed()
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == numbered(0, 500)
    assert cloud.doubled == 0
    assert journal.aside == []
    assert (status.refusals, status.structured_batches) == (1, 0)
    assert {error.reason for error in cloud.errors} <= {"mode", "context"}


async def test_a_refused_structured_batch_is_sent_again_in_a_fresh_context() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer(once({2: (0x99, "context: evicted"), 5: (0x99, "check: no")})) as cloud,
        uplink_to(journal, cloud.url, config=STRUCTURED) as uplink,
    ):
        journal.capture(numbered(0, 500))
        await journal.until_trimmed()
        status = uplink.status()
    assert [payload for _, payload in cloud.rows] == numbered(0, 500)
    assert cloud.doubled == 0
    assert status.structured_batches == 10


async def test_a_few_readings_are_encoded_without_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.uplink_bodies._INLINE_S", 60.0)  # a busy machine is not the matter
    journal = MemoryJournal()
    async with (
        CloudPeer() as cloud,
        uplink_to(journal, cloud.url, config=STRUCTURED) as uplink,
    ):
        for n in range(20):
            journal.capture(numbered(n * 2, 2))
            await journal.until_trimmed()
        assert uplink._bodies.pid is None
        assert uplink.status().structured_batches > 0
    assert [payload for _, payload in cloud.rows] == numbered(0, 40)


async def test_columnar_starts_no_process_whatever_comes() -> None:
    journal = MemoryJournal()
    async with (
        CloudPeer() as cloud,
        uplink_to(journal, cloud.url, config=replace(FAST, mode="columnar")) as uplink,
    ):
        journal.capture(numbered(0, 1000))
        await journal.until_trimmed()
        assert uplink._bodies.pid is None
        assert uplink.status().structured_batches == 0


async def test_a_connection_cut_while_a_batch_is_encoded_sends_it_once() -> None:
    journal = MemoryJournal()
    async with linked(journal, STRUCTURED) as (cloud, proxy, _):
        journal.capture(numbered(0, 2000))
        for _ in range(5):
            before = cloud.batches
            await cloud.until("a batch", lambda before=before: cloud.batches > before)
            proxy.cut()
        await journal.until_trimmed()
    assert sorted(payload for _, payload in cloud.rows) == sorted(numbered(0, 2000))
