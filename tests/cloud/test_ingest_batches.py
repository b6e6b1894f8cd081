"""Ingest of batches: order, dedup, refusals, nothing acknowledged before it is durable."""

from __future__ import annotations

import asyncio
import gc
import math
import random
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from pathlib import Path

import pytest

from bridge.batch import decode_entry
from bridge.envelope import LinkLane, Tombstone
from bridge.intervals import IntervalSet, ranges_of
from bridge.shared_entry import EntryReader
from cloud.config import IngestConfig, StreamConfig
from cloud.ingest import UP_LANE, CloudCapture
from cloud.ingest_appends import Waiting
from cloud.stream.contract import (
    PARTITIONS,
    Entry,
    GivenUp,
    Part,
    Source,
    StreamError,
    StreamFull,
)
from cloud.stream.embedded import EmbeddedStream
from mqtt.broker.seams import ClientInfo
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, Uplink
from tests.kit.readings import one_per_row, rows


class GatedStream(EmbeddedStream):
    """A stream whose appends can be held up, and fail when told to.

    Attributes:
        gate: Appends wait for it; open unless cleared.
        fault: What appends raise instead of storing; None when they store.
        failing: Called with the parts of an append; True when `fault` is for it.
        shares: Whether every reader knows bodies that are shared.
    """

    gate: asyncio.Event
    fault: StreamError | None = None
    calls = 0
    shares = True

    @property
    def shares_bodies(self) -> bool:
        return self.shares

    def failing(self, _parts: Sequence[Part]) -> bool:
        return True

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[Source, int] | None = None,
    ) -> None:
        self.calls += 1
        await self.gate.wait()
        if self.fault is not None and self.failing(parts):
            raise self.fault
        await super().append(parts, given_up, assigned)


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[GatedStream]:
    config = StreamConfig(disk_reserve_bytes=0)
    opened = await GatedStream.open(tmp_path / "stream.db", config, ManualClock())
    assert isinstance(opened, GatedStream)
    opened.gate = asyncio.Event()
    opened.gate.set()
    yield opened
    await opened.close()


@pytest.fixture
async def capture(stream: GatedStream) -> AsyncIterator[CloudCapture]:
    made = CloudCapture(stream, IngestConfig(), "cloud-1", ManualClock())
    await made.start()
    yield made
    stream.gate.set()
    await made.close()


async def entries_of(stream: EmbeddedStream) -> list[Entry]:
    found: list[Entry] = []
    for partition in range(PARTITIONS):
        found += await stream.read(partition, 0, entries_max=10_000, bytes_max=1 << 30)
    return found


async def until(condition: Callable[[], bool]) -> None:
    """Return once `condition()` holds, with what is ready by then done."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.001)
    for _ in range(20):
        await asyncio.sleep(0)


async def held_rows(stream: EmbeddedStream) -> list[tuple[object, ...]]:
    """Return every reading in the stream as a tuple, sorted by seq; as often as it is there."""
    found: list[tuple[object, ...]] = []
    for entry in await entries_of(stream):
        found += rows(decode_entry(entry.body).readings)
    return sorted(found, key=lambda row: str(row[0]).zfill(12))


async def test_a_batch_is_in_the_stream_when_it_is_acknowledged(
    stream: GatedStream, capture: CloudCapture
) -> None:
    readings = one_per_row(200, devices=50)
    uplink = Uplink(capture)
    stream.gate.clear()
    assert uplink.send(uplink.batch(readings)) == 0
    await until(lambda: stream.calls == 1)
    assert uplink.answers == []
    stream.gate.set()
    assert await uplink.answered() == [0]
    assert await held_rows(stream) == rows(readings)
    (line,) = await stream.ledger()
    assert (line.gateway, line.epoch, line.assigned) == ("gw", EPOCH, 200)
    assert capture.waiting_bytes == 0


async def test_the_readings_of_a_batch_are_let_go_once_it_is_answered(
    stream: GatedStream, capture: CloudCapture
) -> None:
    def kept() -> int:
        return sum(type(one) is Waiting for one in gc.get_objects())

    uplink = Uplink(capture)
    gc.collect()
    before = kept()
    gc.disable()  # nobody looks for circles
    try:
        stream.gate.clear()
        for first in (1, 11, 21):
            uplink.send(uplink.batch(one_per_row(10, first_seq=first)))
        await until(lambda: kept() == before + 3)
        stream.gate.set()
        assert await uplink.answered() == [0] * 3
        await until(lambda: kept() == before)
    finally:
        gc.enable()


async def test_each_part_can_be_read_alone_and_holds_its_partition_only(
    stream: GatedStream, capture: CloudCapture
) -> None:
    from bridge.partition import partition_of

    uplink = Uplink(capture)
    uplink.send(uplink.batch(one_per_row(300, devices=100), historical=True))
    await uplink.answered()
    entries = await entries_of(stream)
    assert len(entries) > 20
    for entry in entries:
        batch = decode_entry(entry.body)
        assert (batch.gateway, batch.epoch, batch.historical) == ("gw", EPOCH, True)
        assert batch.seq_ranges == entry.seq_ranges
        devices = {batch.readings.sources[index][1] for index in batch.readings.source_index}
        assert {partition_of(device) for device in devices} == {entry.partition}


async def test_many_batches_in_one_run_keep_their_order(
    stream: GatedStream, capture: CloudCapture
) -> None:
    uplink = Uplink(capture)
    for run in range(5):
        first = run * 60 + 1
        uplink.send(*(uplink.batch(one_per_row(20, first_seq=first + n * 20)) for n in range(3)))
    assert await uplink.answered() == [0] * 15
    for partition in range(PARTITIONS):
        entries = await stream.read(partition, 0, entries_max=1000, bytes_max=1 << 30)
        firsts = [entry.seq_ranges[0][0] for entry in entries]
        assert firsts == sorted(firsts)
    assert list(await stream.held("gw", EPOCH)) == [(1, 300)]


async def test_what_is_held_is_acknowledged_and_not_stored_again(
    stream: GatedStream, capture: CloudCapture
) -> None:
    one = Uplink(capture)
    one.send(one.batch(one_per_row(100)))
    await one.answered()
    again = Uplink(capture)
    again.send(again.batch(one_per_row(100)), again.batch(one_per_row(100, first_seq=101)))
    assert await again.answered() == [0, 0]
    overlap = Uplink(capture)
    overlap.send(overlap.batch(one_per_row(100, first_seq=151)))
    assert await overlap.answered() == [0]
    assert [row[0] for row in await held_rows(stream)] == list(range(1, 251))
    assert capture.batches.stats.duplicates == 150
    assert capture.batches.stats.readings == 250


async def test_overlapping_ranges_from_two_connections_are_stored_once(
    stream: GatedStream, capture: CloudCapture
) -> None:
    """A new connection repeats what the old one still has under way: it waits for the answer."""
    stream.gate.clear()
    old, new = Uplink(capture), Uplink(capture)
    old.send(old.batch(one_per_row(100)))
    await until(lambda: stream.calls == 1)
    new.send(new.batch(one_per_row(150)))
    await until(lambda: True)
    assert new.answers == []
    assert stream.calls == 1
    stream.gate.set()
    assert await old.answered() == [0]
    assert await new.answered() == [0]
    assert await held_rows(stream) == rows(one_per_row(150))


async def test_what_overlaps_a_failed_append_is_not_acknowledged_on_its_word(
    stream: GatedStream, capture: CloudCapture
) -> None:
    stream.gate.clear()
    old, new = Uplink(capture), Uplink(capture)
    old.send(old.batch(one_per_row(100)))
    await until(lambda: stream.calls == 1)
    new.send(new.batch(one_per_row(100)))
    await until(lambda: True)
    stream.fault = StreamError("no quorum")
    stream.failing = lambda _parts: stream.calls == 1  # type: ignore[method-assign]
    stream.gate.set()
    assert await old.answered() == [0x83]
    assert await new.answered() == [0]
    assert await held_rows(stream) == rows(one_per_row(100))


@pytest.mark.parametrize("seed", range(5))
async def test_random_repeats_over_restarts_store_each_reading_once(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    sent = IntervalSet()
    for _ in range(3):
        stream = await EmbeddedStream.open(
            tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
        )
        capture = CloudCapture(stream, IngestConfig(), "cloud-1", ManualClock())
        await capture.start()
        for _ in range(4):
            uplink = Uplink(capture)
            seq = rng.randrange(1, 200)
            for _ in range(rng.randrange(1, 6)):
                count = rng.randrange(1, 60)
                uplink.send(uplink.batch(one_per_row(count, first_seq=seq)))
                sent.add(seq, seq + count - 1)
                seq += count + rng.choice([0, 0, 3])
            assert not any(await uplink.answered())
        await capture.close()
        seqs = [row[0] for row in await held_rows(stream)]
        assert seqs == [n for first, last in sent for n in range(first, last + 1)]
        await stream.close()


@pytest.mark.parametrize("seed", range(4))
async def test_of_gateways_that_send_at_once_each_reading_is_there_once_as_it_was_sent(
    tmp_path: Path, seed: int
) -> None:
    rng = random.Random(seed)
    expected: dict[str, IntervalSet] = {f"gw-{n}": IntervalSet() for n in range(12)}
    for _ in range(3):
        stream = await GatedStream.open(
            tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
        )
        stream.gate = asyncio.Event()
        stream.gate.set()
        capture = CloudCapture(stream, IngestConfig(), "cloud-1", ManualClock())
        await capture.start()
        ill = f"gw-{rng.randrange(12)}"
        stream.fault = StreamError("not this one")
        stream.failing = lambda parts, ill=ill: any(part.gateway == ill for part in parts)
        uplinks = [Uplink(capture, gateway, epoch=EPOCH + n % 3)
                   for n, gateway in enumerate(expected)]  # fmt: skip
        for uplink in uplinks:
            seq = rng.randrange(1, 60)
            for _ in range(rng.randrange(1, 5)):
                count = rng.randrange(1, 40)
                readings = one_per_row(count, first_seq=seq, devices=rng.choice([1, 7, 30]))
                uplink.send(uplink.batch(readings, historical=rng.random() < 0.2))
                if uplink.gateway != ill:
                    expected[uplink.gateway].add(seq, seq + count - 1)
                seq += count + rng.choice([0, 0, 3])
        for uplink in uplinks:
            codes = await uplink.answered()
            if uplink.gateway != ill:
                assert not any(codes)
        await capture.close()
        await check_gateways(stream, expected)
        entries = await entries_of(stream)
        assert len({entry.body for entry in entries}) < len(entries), "bodies are shared"
        await stream.close()


async def test_no_body_is_shared_while_a_node_is_there_that_could_not_read_it(
    stream: GatedStream, capture: CloudCapture
) -> None:
    uplinks = [Uplink(capture, f"gw-{n}") for n in range(5)]
    for first, shares in ((1, False), (101, True)):
        stream.shares = shares
        for uplink in uplinks:
            uplink.send(uplink.batch(one_per_row(30, first_seq=first)))
        for uplink in uplinks:
            assert not any(await uplink.answered())
        if not shares:
            alone = await entries_of(stream)
    assert {entry.gateway for entry in alone} == {uplink.gateway for uplink in uplinks}
    for entry in alone:
        batch = decode_entry(entry.body)  # the first version's reader
        assert (batch.gateway, batch.seq_ranges) == (entry.gateway, entry.seq_ranges)
    assert any(entry.body[1:3] == b"\x00\x02" for entry in await entries_of(stream))
    await check_gateways(
        stream, {one.gateway: IntervalSet([(1, 30), (101, 130)]) for one in uplinks}
    )


async def check_gateways(stream: EmbeddedStream, expected: Mapping[str, IntervalSet]) -> None:
    """Assert what is held of each gateway, and that each reading is in one entry, unchanged."""
    found = {gateway: IntervalSet() for gateway in expected}
    reader = EntryReader()
    for entry in await entries_of(stream):
        readings = reader.read(entry.body, entry.gateway, entry.epoch).readings
        assert ranges_of(readings.seqs) == entry.seq_ranges
        for row in rows(readings):
            seq = int(str(row[0]))
            assert seq not in found[entry.gateway]
            assert f'"n":{seq},' in str(row[5])
            found[entry.gateway].add(seq, seq)
    for gateway, held in expected.items():
        assert found[gateway] == held


# ---- refusals ------------------------------------------------------------------------------------


async def test_a_bad_batch_is_refused_alone_and_what_continues_it_too(
    stream: GatedStream, capture: CloudCapture
) -> None:
    uplink = Uplink(capture)
    good = uplink.batch(one_per_row(10))
    bad = bytearray(uplink.batch(one_per_row(10, first_seq=11)))
    bad[-1] ^= 1
    behind = uplink.batch(one_per_row(10, first_seq=21))
    uplink.encoder.reset()
    fresh = uplink.batch(one_per_row(20, first_seq=11))
    uplink.send(good, bytes(bad), behind, fresh)
    assert await uplink.answered() == [0, 0x99, 0x99, 0]
    assert [row[0] for row in await held_rows(stream)] == list(range(1, 31))
    assert capture.batches.stats.refused["context"] == 1
    assert sum(capture.batches.stats.refused.values()) == 2


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", b"\xa0", b"\x00" * 100, b"{}", bytes(range(256))],
    ids=["empty", "break", "empty-map", "zeros", "json", "bytes"],
)
async def test_garbage_is_refused(
    stream: GatedStream, capture: CloudCapture, payload: bytes
) -> None:
    uplink = Uplink(capture)
    uplink.send(payload)
    assert await uplink.answered() == [0x99]
    assert await entries_of(stream) == []


async def test_one_connections_garbage_does_not_disturb_another(
    stream: GatedStream, capture: CloudCapture
) -> None:
    bad, good = Uplink(capture, "bad"), Uplink(capture, "good")
    for n in range(5):
        bad.send(b"\xff")
        good.send(good.batch(one_per_row(10, first_seq=n * 10 + 1)))
    assert await bad.answered() == [0x99] * 5
    assert await good.answered() == [0] * 5
    assert list(await stream.held("good", EPOCH)) == [(1, 50)]


@pytest.mark.parametrize("topic", ["tidegate/v1/up/", "tidegate/v1/up/a/b"])
async def test_a_topic_that_names_no_gateway(capture: CloudCapture, topic: str) -> None:
    uplink = Uplink(capture)
    uplink.send(uplink.batch(one_per_row(1)), topic=topic)
    assert await uplink.answered() == [0x90]


async def test_a_batch_of_another_gateway_than_the_topics(capture: CloudCapture) -> None:
    uplink = Uplink(capture)
    batch = uplink.batch(one_per_row(5))
    uplink.send(batch, topic="tidegate/v1/up/other")
    assert await uplink.answered() == [0x87]
    uplink.client = ClientInfo("tidegate-other", 5)
    uplink.send(batch, topic="tidegate/v1/up/other")
    assert (await uplink.answered())[1:] == [0x99]  # the check covers the gateway's name


@pytest.mark.parametrize(
    ("fault", "code"), [(StreamFull("full"), 0x97), (StreamError("no quorum"), 0x83)]
)
async def test_a_stream_that_takes_nothing(
    stream: GatedStream, capture: CloudCapture, fault: StreamError, code: int
) -> None:
    stream.fault = fault
    uplink = Uplink(capture)
    uplink.send(uplink.batch(one_per_row(10)))
    assert await uplink.answered() == [code]
    uplink.send(uplink.batch(one_per_row(10, first_seq=11)))
    assert (await uplink.answered())[1] == 0x99  # its context is gone
    stream.fault = None
    uplink.encoder.reset()
    uplink.send(uplink.batch(one_per_row(20)))
    assert (await uplink.answered())[2] == 0
    assert await held_rows(stream) == rows(one_per_row(20))


async def test_nothing_overtakes_a_failed_batch(stream: GatedStream, capture: CloudCapture) -> None:
    """The first append fails while those decoded behind it have not reached the stream yet."""
    stream.gate.clear()
    uplink = Uplink(capture)
    uplink.send(*(uplink.batch(one_per_row(10, first_seq=n * 10 + 1)) for n in range(3)))
    await until(lambda: capture.batches.stats.batches == 3)
    stream.fault = StreamError("hiccup")
    stream.gate.set()
    uplink.send(uplink.batch(one_per_row(10, first_seq=31)))
    codes = await uplink.answered()
    assert codes[0] == 0x83
    assert codes[3] == 0x99
    stream.fault = None
    uplink.send(uplink.batch(one_per_row(10, first_seq=41)))  # still the context that is gone
    assert (await uplink.answered())[4] == 0x99
    assert await entries_of(stream) == []


async def test_a_failure_is_answered_in_order(stream: GatedStream, capture: CloudCapture) -> None:
    uplink = Uplink(capture)
    uplink.send(uplink.batch(one_per_row(10)))
    await uplink.answered()
    stream.gate.clear()
    uplink.send(uplink.batch(one_per_row(10, first_seq=11)))
    uplink.encoder.reset()
    uplink.send(uplink.batch(one_per_row(10)))  # held: nothing to append, yet it waits its turn
    await until(lambda: capture.batches.stats.duplicates == 10)
    assert uplink.answers == [0]
    stream.gate.set()
    assert await uplink.answered() == [0, 0, 0]


# ---- live first ----------------------------------------------------------------------------------


async def places_of_live(stream: GatedStream, sender: str) -> tuple[int, int]:
    """Return after how many parts of a hundred gateways' backlog a live reading is encoded."""
    encoded: list[tuple[str, int]] = []
    capture = CloudCapture(
        stream, IngestConfig(), "cloud", ManualClock(),
        encoded=lambda part, readings, _: encoded.append((part.gateway, readings.seqs[0])),
    )  # fmt: skip
    await capture.start()
    fleet = {name: Uplink(capture, name) for name in (*(f"gw-{n}" for n in range(100)), sender)}
    for one in fleet.values():  # from here on nothing is asked of the file
        one.send(one.batch(one_per_row(1, first_seq=999)))
        await one.answered()
    encoded.clear()
    for name, one in fleet.items():
        if name == "another":
            continue
        firsts = range(1, 201, 50)
        batches = [one.batch(one_per_row(50, first_seq=n), lane=LinkLane.BACKLOG) for n in firsts]
        one.send(*batches)
    for _ in range(3):  # they ask for their turns
        await asyncio.sleep(0)
    live = fleet[sender]
    live.send(live.batch(one_per_row(1, first_seq=1000)))
    assert set(await live.answered()) == {0}
    for one in fleet.values():
        assert set(await one.answered()) == {0}
    await capture.close()
    return encoded.index((sender, 1000)), len(encoded)


async def test_live_readings_of_a_gateway_do_not_wait_for_the_backlog_of_others(
    stream: GatedStream,
) -> None:
    place, parts = await places_of_live(stream, "another")
    assert place < parts / 5


async def test_backlog_before_a_live_reading_of_its_own_gateway_is_hurried(
    stream: GatedStream,
) -> None:
    """Its PUBACK comes after those of the four batches before it: a round of the loop for each."""
    place, parts = await places_of_live(stream, "gw-99")
    assert place < parts / 2


async def test_how_long_runs_wait_for_their_answers(stream: GatedStream) -> None:
    clock = ManualClock()
    capture = CloudCapture(stream, IngestConfig(), "cloud", clock)
    await capture.start()
    uplink = Uplink(capture)
    assert capture.batches.waits() == (math.inf, 0.0), "nothing came"
    stream.gate.clear()
    uplink.send(uplink.batch(one_per_row(1)))
    clock.advance(2)
    assert capture.batches.waits() == (math.inf, pytest.approx(2)), "it waits still"
    clock.advance(1)
    stream.gate.set()
    await uplink.answered()
    uplink.send(uplink.batch(one_per_row(1, first_seq=2)))
    await uplink.answered()
    assert capture.batches.waits() == (0.0, pytest.approx(3))
    assert capture.batches.waits() == (math.inf, 0.0)
    await capture.close()


# ---- ledger --------------------------------------------------------------------------------------


async def test_tombstones_and_assigned_reach_the_ledger(
    stream: GatedStream, capture: CloudCapture
) -> None:
    uplink = Uplink(capture)
    stone = Tombstone(LinkLane.LIVE, 5, 9, 5, "evicted-bytes", 123)
    uplink.send(uplink.batch(one_per_row(4), assigned=40, tombstones=[stone]))
    empty = one_per_row(0)
    later = Tombstone(LinkLane.URGENT, 20, 21, 1, "damaged", 456)
    uplink.send(uplink.batch(empty, assigned=50, tombstones=[later]))
    uplink.send(uplink.batch(empty, assigned=60))
    uplink.send(uplink.batch(empty))
    assert await uplink.answered() == [0] * 4
    (line,) = await stream.ledger()
    assert line.assigned == 60
    assert line.held == ((1, 4),)
    assert line.given_up == (
        GivenUp("gw", EPOCH, "live", 5, 9, 5, "evicted-bytes", 123),
        GivenUp("gw", EPOCH, "urgent", 20, 21, 1, "damaged", 456),
    )


# ---- pressure ------------------------------------------------------------------------------------


async def test_bytes_waiting_are_bounded_by_asking_the_broker_to_stop(stream: GatedStream) -> None:
    capture = CloudCapture(
        stream, IngestConfig(waiting_bytes_max=64 * 1024), "cloud-1", ManualClock()
    )
    await capture.start()
    stream.gate.clear()
    uplink = Uplink(capture)
    seq = 1
    while not capture.saturated():
        uplink.send(uplink.batch(one_per_row(300, first_seq=seq)))
        seq += 300
    assert capture.waiting_bytes < 100 * 1024
    relieved = asyncio.Event()
    capture.when_relieved(relieved.set)
    assert not relieved.is_set()
    stream.gate.set()
    async with asyncio.timeout(60):
        await relieved.wait()
    await uplink.answered()
    assert capture.waiting_bytes == 0
    await capture.close()


def test_lanes(tmp_path: Path) -> None:
    capture = CloudCapture(
        None,  # type: ignore[arg-type]  # not asked for a lane
        IngestConfig(topics=("#",)),
        "cloud-1",
        ManualClock(),
    )
    assert capture.lane("tidegate/v1/up/gw") == UP_LANE
    assert capture.lane("tidegate/v1/down/gw") is None
    assert capture.lane("$SYS/x") is None
    assert capture.lane("devices/d1/state") == 1
    assert capture.exclusive(0)
    assert capture.exclusive(1)
    default = CloudCapture(None, IngestConfig(), "cloud-1", ManualClock())  # type: ignore[arg-type]
    assert default.lane("devices/d1/state") == 1
    assert default.lane("alerts/x") is None


async def test_what_comes_while_closing_is_neither_answered_nor_looked_at(
    stream: GatedStream, capture: CloudCapture
) -> None:
    uplink = Uplink(capture)
    stream.gate.clear()
    assert uplink.send(uplink.batch(one_per_row(5))) == 0
    await until(lambda: stream.calls == 1)
    closing = asyncio.create_task(capture.close())
    await asyncio.sleep(0)
    assert uplink.send(uplink.batch(one_per_row(5, first_seq=6))) == 0
    assert capture.saturated()  # nothing more is read of it
    stream.gate.set()
    await closing
    assert uplink.answers == [0]
    assert list(await stream.held("gw", EPOCH)) == [(1, 5)]
