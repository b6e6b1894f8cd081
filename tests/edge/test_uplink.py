"""The uplink against a scripted cloud: what it sends, in which order, and what it keeps."""

from __future__ import annotations

import asyncio
import random
import tracemalloc
from dataclasses import replace

import pytest

from bridge.batch import Batch
from bridge.envelope import LinkLane
from bridge.link_level import LevelGovernor
from bridge.mode_governor import ModeGovernor
from edge.contract import Commit, Lane, Tombstone
from runtime.clock import SystemClock
from tests.kit.cloud_peer import Answer, CloudPeer
from tests.kit.journals import MemoryJournal
from tests.kit.uplinks import FAST, FAST_LINK, linked, numbered, once, uplink_to

STONE = Tombstone(Lane.LIVE, 5, 6, 2, "evicted-age", 1_700_000_000_000_000)


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
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=FAST_LINK):
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
    config = replace(FAST_LINK, batch_readings=10)
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
    journal.capture(numbered(20, 20), time_us=now_us + 60_000_000)  # news, however long it takes
    async with CloudPeer() as cloud, uplink_to(journal, cloud.url, config=FAST_LINK):
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


STRUCTURED = replace(FAST_LINK, mode="structured", batch_readings=50)


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


async def test_the_governor_hears_how_long_structured_batches_take_to_make(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[tuple[int, float]] = []
    monkeypatch.setattr(ModeGovernor, "made", lambda _self, *batch: made.append(batch))
    journal = MemoryJournal()
    async with (
        CloudPeer() as cloud,
        uplink_to(journal, cloud.url, config=STRUCTURED) as uplink,
    ):
        journal.capture(numbered(0, 500))
        await journal.until_trimmed()
        assert len(made) == uplink.status().structured_batches > 0
    assert sum(readings for readings, _ in made) == 500
    assert all(took_s > 0 for _, took_s in made)


async def test_columnar_batches_are_known_to_fill_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full: list[bool] = []
    monkeypatch.setattr(LevelGovernor, "encoded", lambda *_, **known: full.append(known["full"]))
    journal = MemoryJournal()
    config = replace(FAST_LINK, mode="columnar", batch_readings=50, window_bytes=16 * 1024)
    async with CloudPeer(lambda *_: None) as cloud, uplink_to(journal, cloud.url, config=config):
        journal.capture([random.Random(n).randbytes(40) for n in range(2000)])
        await cloud.until("a full window", lambda: cloud.batches >= 8)
    assert full[:3] == [False] * 3
    assert full[-1]
    assert full == sorted(full), "nothing was answered"


async def test_a_few_readings_are_encoded_without_a_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.inline_bodies._HOLD_S", 60.0)  # whatever machine this is
    journal = MemoryJournal()
    async with (
        CloudPeer() as cloud,
        uplink_to(journal, cloud.url, config=STRUCTURED) as uplink,
    ):
        for n in range(20):
            journal.capture(numbered(n * 2, 2))
            await journal.until_trimmed()
        assert uplink._batches.bodies.pid is None
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
        assert uplink._batches.bodies.pid is None
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
