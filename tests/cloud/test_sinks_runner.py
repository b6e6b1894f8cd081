"""The runner: order, independence, retries, dead letters, cursors, bounds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import cbor2
import pytest

from bridge.intervals import IntervalSet
from cloud.config import IngestConfig, SinksConfig, StreamConfig
from cloud.dead_letters import letter_lines
from cloud.ingest import CloudCapture
from cloud.ingest_parts import PartEncoder
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner, SinkStats
from cloud.stream.contract import Entry, Part, Stream, StreamError
from cloud.stream.embedded import EmbeddedStream
from mqtt.frames import encode_publish
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, RecordingSink, Uplink, append_readings, parts_of
from tests.kit.readings import one_per_row, rows

FAST = SinksConfig(retry_s=0.001, retry_max_s=0.002, tries_max=3)


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[EmbeddedStream]:
    opened = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    yield opened
    await opened.close()


@asynccontextmanager
async def running(
    stream: Stream, sink: RecordingSink, config: SinksConfig = FAST
) -> AsyncIterator[SinkRunner]:
    runner = SinkRunner(sink, stream, DecodedEntries(1000), config)
    await runner.start()
    try:
        async with asyncio.timeout(60):
            yield runner
    finally:
        await runner.stop()


def in_order(written: Sequence[tuple[int, int]]) -> bool:
    """Return True when every partition's positions rise without one coming twice."""
    last: dict[int, int] = {}
    for partition, position in written:
        if position <= last.get(partition, 0):
            return False
        last[partition] = position
    return True


async def fill(stream: Stream, batches: int = 10, size: int = 40) -> None:
    for n in range(batches):
        await append_readings(stream, one_per_row(size, first_seq=n * size + 1, devices=20))


async def test_a_sink_gets_everything_in_order_and_goes_on_live(stream: EmbeddedStream) -> None:
    await fill(stream, 5)
    sink = RecordingSink()
    async with running(stream, sink) as runner:
        await runner.drained()
        await append_readings(stream, one_per_row(40, first_seq=201))
        await runner.drained()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 241))
    assert in_order(sink.written)
    assert sink.closed
    assert sink.stream_epoch == stream.epoch


async def test_small_bounds_make_many_writes_of_the_same(stream: EmbeddedStream) -> None:
    await fill(stream, 20)
    sink = RecordingSink()
    async with running(stream, sink, replace(FAST, write_bytes_max=300)) as runner:
        await runner.drained()
    assert sink.writes > 20
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 801))
    assert in_order(sink.written)


async def test_a_write_of_a_backlog_takes_what_came_at_once_in_all_partitions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So what is stored of an append is all of it, and its seqs one range."""
    monkeypatch.setattr("cloud.sinks.runner._WRITE_READINGS_MAX", 200)
    clock = ManualClock()
    path = tmp_path / "stream.db"
    stream = await EmbeddedStream.open(path, StreamConfig(disk_reserve_bytes=0), clock)
    await append_readings(stream, one_per_row(8, devices=3))  # a part of the partitions is ahead
    for n in range(40):
        clock.advance(0.01)
        await append_readings(stream, one_per_row(40, first_seq=n * 40 + 9, devices=20))
    sink = RecordingSink()
    stored = IntervalSet()
    left: list[int] = []

    def note(entries: Sequence[DecodedEntry]) -> None:
        for one in entries:
            stored.update(one.entry.seq_ranges)
        left.append(len(stored.ranges()))

    sink.fault = note
    async with running(stream, sink) as runner:
        await runner.drained()
    await stream.close()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 1609))
    assert in_order(sink.written)
    assert 8 <= len(left) <= 20
    assert max(left) <= 12, "of all that wait it would be hundreds"


async def test_a_clock_that_is_set_back_leaves_nothing_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloud.sinks.runner._WRITE_READINGS_MAX", 200)
    clock = ManualClock()
    path = tmp_path / "stream.db"
    stream = await EmbeddedStream.open(path, StreamConfig(disk_reserve_bytes=0), clock)
    for n in range(40):
        clock.set_wall(clock.wall_us() + (-3_000_000 if n % 7 == 3 else 1_000_000))
        await append_readings(stream, one_per_row(40, first_seq=n * 40 + 1, devices=3 + n % 17))
    sink = RecordingSink()
    async with running(stream, sink) as runner:
        await runner.drained()
    await stream.close()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 1601))
    assert in_order(sink.written)


@pytest.mark.parametrize("own_cursors", [False, True])
async def test_a_restart_goes_on_where_it_stopped(
    stream: EmbeddedStream, own_cursors: bool
) -> None:
    sink = RecordingSink(own_cursors=own_cursors)
    await fill(stream, 5)
    async with running(stream, sink) as runner:
        await runner.drained()
    await append_readings(stream, one_per_row(10, first_seq=1001))
    async with running(stream, sink) as runner:
        await runner.drained()
    assert sorted(seq for seq, _ in sink.readings) == [*range(1, 201), *range(1001, 1011)]
    assert in_order(sink.written)


async def test_a_slow_sink_delays_nobody(stream: EmbeddedStream) -> None:
    gate = asyncio.Event()
    slow, quick = RecordingSink("slow"), RecordingSink("quick")

    async def wait(entries: Sequence[DecodedEntry], cursors: object) -> None:
        await gate.wait()

    slow.write = wait  # type: ignore[method-assign]
    await fill(stream, 5)
    async with running(stream, slow) as behind, running(stream, quick) as runner:
        await runner.drained()
        assert len(quick.readings) == 200
        assert (await behind.stats()).readings == 0
        gate.set()
        await behind.drained()


async def test_a_sink_that_is_away_is_tried_until_it_is_back(stream: EmbeddedStream) -> None:
    sink = RecordingSink()
    left = 20  # more than tries_max: no entry is to blame

    def away(_entries: Sequence[DecodedEntry]) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            raise SinkUnavailable("database is locked")

    sink.fault = away
    await fill(stream, 3)
    async with running(stream, sink) as runner:
        await runner.drained()
        assert await stream.dead_letters() == []
        assert (await runner.stats()).cause == ""
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 121))


async def test_a_poison_entry_is_set_aside_and_only_its_partition_waits(
    stream: EmbeddedStream,
) -> None:
    sink = RecordingSink(own_cursors=True)

    def poison(entries: Sequence[DecodedEntry]) -> None:
        if any(b'"n":77,' in payload for one in entries for payload in one.readings.payloads):
            raise ValueError("cannot take 77")

    sink.fault = poison
    await fill(stream, 10)
    async with running(stream, sink) as runner:
        await runner.drained()
        (letter,) = await stream.dead_letters("recording")
        stats = await runner.stats()
    assert letter.cause == "ValueError: cannot take 77"
    assert letter.tries == 3
    dead = IntervalSet(letter.entry.seq_ranges)
    assert 77 in dead
    expected = [seq for seq in range(1, 401) if seq not in dead]
    assert sorted(seq for seq, _ in sink.readings) == expected
    assert in_order(sink.written)
    assert stats.dead_letters == 1
    assert {letter.entry.partition: letter.entry.position} in sink.passed_over
    assert sink.kept == (await stream.stats()).last_positions


@pytest.mark.parametrize("tries_max", [1, 3])
async def test_corrupt_entries_are_set_aside_wherever_they_lie(
    stream: EmbeddedStream, tries_max: int
) -> None:
    good = parts_of(one_per_row(6, devices=1))
    (partition,) = {part.partition for part in good}
    foreign = parts_of(one_per_row(1, first_seq=900, devices=1))[0].body
    bodies = {3: b"\xff\xff", 4: b"", 7: foreign}
    for seq in range(1, 10):
        (part,) = parts_of(one_per_row(1, first_seq=seq, devices=1))
        await stream.append([replace(part, body=bodies.get(seq, part.body))])
    sink = RecordingSink(own_cursors=True)
    async with running(stream, sink, replace(FAST, tries_max=tries_max)) as runner:
        await runner.drained()
    assert [seq for seq, _ in sink.readings] == [1, 2, 5, 6, 8, 9]
    letters = await stream.dead_letters()
    assert [letter.entry.seq_ranges for letter in letters] == [((n, n),) for n in sorted(bodies)]
    assert all(letter.entry.partition == partition for letter in letters)
    assert "identity" in letters[2].cause


def shared_of(gateways: int) -> list[Part]:
    """Return three readings of one device of each gateway, which share a body."""
    several = [one_per_row(3, first_seq=10 * n + 1, devices=1) for n in range(gateways)]
    yielded = PartEncoder().parts([(f"gw-{n}", EPOCH) for n in range(gateways)], several)
    return [part for found in yielded for _, part in found]


async def test_of_a_shared_body_that_is_damaged_each_entry_is_a_dead_letter_of_its_own(
    stream: EmbeddedStream,
) -> None:
    torn = shared_of(4)
    body = torn[0].body[:-9]
    for part in torn:
        await stream.append([replace(part, body=body)])
    for part in shared_of(3):  # of the same seqs, hence held: only the new one is taken
        await stream.append([replace(part, gateway=f"after-{part.gateway}")])
    (last,) = parts_of(one_per_row(2, first_seq=900, devices=1))
    await stream.append([last])
    sink = RecordingSink(own_cursors=True)
    async with running(stream, sink) as runner:
        await runner.drained()
    letters = await stream.dead_letters()
    assert [(one.entry.gateway, one.entry.seq_ranges) for one in letters[:4]] == [
        (f"gw-{n}", ((10 * n + 1, 10 * n + 3),)) for n in range(4)
    ]
    assert all("malformed" in one.cause for one in letters[:4])
    assert all("its body cannot be read" in letter_lines(one)[-1] for one in letters[:4])
    assert [one.entry.gateway for one in letters[4:]] == [f"after-gw-{n}" for n in range(3)]
    assert all("identity" in one.cause for one in letters[4:])
    assert [seq for seq, _ in sink.readings] == [900, 901]


async def test_one_of_those_that_share_a_body_is_set_aside_alone(tmp_path: Path) -> None:
    stream = await EmbeddedStream.open(
        tmp_path / "disk.db", StreamConfig(disk_reserve_bytes=0, tail_bytes_max=0), ManualClock()
    )
    await asyncio.gather(*(stream.append([part]) for part in shared_of(5)))
    sink = RecordingSink(own_cursors=True)

    def poison(entries: Sequence[DecodedEntry]) -> None:
        if any(one.entry.gateway == "gw-2" for one in entries):
            raise ValueError("not of that gateway")

    sink.fault = poison
    async with running(stream, sink) as runner:
        await runner.drained()
        (letter,) = await stream.dead_letters()
        assert (letter.entry.gateway, letter.entry.seq_ranges) == ("gw-2", ((21, 23),))
        assert [line.split()[:2] for line in letter_lines(letter)[2:]] == [
            ["seq", str(n)] for n in (21, 22, 23)
        ]
        seqs = [10 * n + k for n in (0, 1, 3, 4) for k in (1, 2, 3)]
        assert [seq for seq, _ in sink.readings] == seqs
        sink.fault = lambda _entries: None
        assert await runner.redrive([(letter.entry.partition, letter.entry.position)]) == (1, 0)
        assert [seq for seq, _ in sink.readings] == [*seqs, 21, 22, 23]
    await stream.close()


async def test_what_a_newer_version_wrote_is_not_set_aside_by_one_about_to_find_out(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's layout may be raised while an older node reads: it is another's to take."""
    part = parts_of(one_per_row(1))[0]
    fields = cbor2.loads(part.body)
    newer = replace(part, body=cbor2.dumps({**fields, 0: 9}))
    await stream.append([newer])
    sink = RecordingSink()
    async with running(stream, sink) as runner:
        await until_stats(runner, lambda stats: stats.errors > 20)  # many more than `tries_max`
        stats = await runner.stats()
        assert stats.dead_letters == 0
        assert "version 9" in stats.cause
        monkeypatch.setattr("cloud.sinks.retries._NEWER_S", 0.0)
        await until_stats(runner, lambda stats: stats.dead_letters == 1)  # it was damage after all


async def until_stats(runner: SinkRunner, check: Callable[[SinkStats], bool]) -> None:
    """Wait until a runner's figures are so."""
    async with asyncio.timeout(60):
        while not check(await runner.stats()):
            await asyncio.sleep(0.001)


async def test_many_poisons_in_many_partitions(stream: EmbeddedStream) -> None:
    sink = RecordingSink()

    def poison(entries: Sequence[DecodedEntry]) -> None:
        for one in entries:
            if one.entry.position % 4 == 2:
                raise ValueError("every fourth")

    sink.fault = poison
    await fill(stream, 12)
    async with running(stream, sink) as runner:
        await runner.drained()
    dead = {(one.entry.partition, one.entry.position) for one in await stream.dead_letters()}
    assert dead
    assert all(position % 4 == 2 for _, position in dead)
    assert not dead & set(sink.written)
    assert in_order(sink.written)
    found = IntervalSet()
    for letter in await stream.dead_letters():
        found.update(letter.entry.seq_ranges)
    found.update((seq, seq) for seq, _ in sink.readings)
    assert found.ranges() == [(1, 480)]


async def test_a_fault_that_passes_leaves_no_dead_letter(stream: EmbeddedStream) -> None:
    sink = RecordingSink()
    seen = 0

    def once(_entries: Sequence[DecodedEntry]) -> None:
        nonlocal seen
        seen += 1
        if seen == 1:
            raise RuntimeError("hiccup")

    sink.fault = once
    await fill(stream, 3)
    async with running(stream, sink) as runner:
        await runner.drained()
    assert await stream.dead_letters() == []
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 121))


async def test_dead_letters_can_be_redriven(stream: EmbeddedStream) -> None:
    sink = RecordingSink()

    def poison(entries: Sequence[DecodedEntry]) -> None:
        if any(5 in one.readings.seqs or 9 in one.readings.seqs for one in entries):
            raise ValueError("not now")

    sink.fault = poison
    await append_readings(stream, one_per_row(20, devices=20))
    async with running(stream, sink) as runner:
        await runner.drained()
        assert await runner.redrive() == (0, 2)
        sink.fault = lambda _entries: None
        assert await runner.redrive() == (2, 0)
        assert await runner.redrive() == (0, 0)
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 21))


async def test_lag_counts_what_the_sink_has_not_taken(stream: EmbeddedStream) -> None:
    sink = RecordingSink()

    def away(_entries: Sequence[DecodedEntry]) -> None:
        raise SinkUnavailable("away")

    sink.fault = away
    await append_readings(stream, one_per_row(50, devices=20))
    async with running(stream, sink) as runner:
        while not (await runner.stats()).cause:
            await asyncio.sleep(0)
        stats = await runner.stats()
        assert sum(lag.readings for lag in stats.lag.values()) == 50
        assert all(lag.oldest_us == ManualClock().wall_us() for lag in stats.lag.values())
        assert stats.cause == "away"
        sink.fault = lambda _entries: None
        await runner.drained()
        assert (await runner.stats()).lag == {}


async def test_a_stream_older_than_the_sink_is_read_from_its_start(
    stream: EmbeddedStream,
) -> None:
    sink = RecordingSink(own_cursors=True)
    assert sink.kept is not None
    await append_readings(stream, one_per_row(20, devices=1))
    (partition,) = (await stream.stats()).last_positions
    sink.kept[partition] = 1000  # as left by a stream that was since restored from a backup
    async with running(stream, sink) as runner:
        await runner.drained()
    assert len(sink.readings) == 20


async def test_a_stream_that_is_away_at_the_end_does_not_keep_the_sink_open(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> None:
        raise StreamError("no quorum")

    await fill(stream, 1)
    sink = RecordingSink()
    async with running(stream, sink) as runner:
        await runner.drained()
        monkeypatch.setattr(stream, "commit_cursors", away)
    assert sink.closed


async def test_a_sink_that_comes_after_a_trim_takes_what_is_left(stream: EmbeddedStream) -> None:
    await append_readings(stream, one_per_row(20, devices=20))
    ends = (await stream.stats()).last_positions
    await stream.trim(ends)
    await append_readings(stream, one_per_row(5, first_seq=21, devices=5))
    sink = RecordingSink()
    async with running(stream, sink) as runner:
        await runner.drained()
        assert sorted(seq for seq, _ in sink.readings) == list(range(21, 26))
        assert runner.positions.keys() <= set(range(64))


async def test_what_counts_as_passed_is_durable(stream: EmbeddedStream) -> None:
    sink = RecordingSink()
    await fill(stream, 2)
    runner = SinkRunner(sink, stream, DecodedEntries(1000), FAST)
    await runner.start()
    await runner.drained()
    assert await stream.cursors("recording") == runner.positions  # whatever was committed by now
    await runner.stop()
    assert await stream.cursors("recording") == (await stream.stats()).last_positions
    assert runner.positions == (await stream.stats()).last_positions


def test_entries_are_decoded_once_within_bounds() -> None:
    decoded = DecodedEntries(25)
    parts = [parts_of(one_per_row(10, first_seq=n * 10 + 1, devices=1))[0] for n in range(4)]
    entries = [
        Entry(p.partition, n + 1, p.gateway, p.epoch, p.seq_ranges, p.count, 5, p.body)
        for n, p in enumerate(parts)
    ]
    first = decoded.get(entries[0])
    assert decoded.get(entries[0]) is first
    again = [decoded.get(entry) for entry in entries]
    assert [one.readings.seqs for one in again] == [
        range(n * 10 + 1, n * 10 + 11) for n in range(4)
    ]
    assert decoded.get(entries[3]) is again[3]
    assert decoded.get(entries[0]) is not first
    assert first.entry.epoch == EPOCH


async def test_what_ingest_hands_over_is_not_decoded_again(stream: EmbeddedStream) -> None:
    """And is, reading for reading, what decoding would have given."""
    decoded = DecodedEntries(1000)
    plain = DecodedEntries(1000)
    capture = CloudCapture(stream, IngestConfig(), "cloud-1", ManualClock(), encoded=decoded.offer)
    await capture.start()
    uplink = Uplink(capture)
    uplink.send(uplink.batch(one_per_row(200, devices=30), historical=True))
    await uplink.answered()
    device = Uplink(capture, "thing")
    frame = encode_publish(0x33, b"devices/d1/x", 1, b"\x01\x01", b"5", 5)
    device.offer(frame, 1, 1, time_us=1_700_000_000_000_001)
    await device.answered()
    await capture.close()
    for partition in range(64):
        for entry in await stream.read(partition, 0, entries_max=100, bytes_max=1 << 20):
            one, other = decoded.get(entry), plain.get(entry)
            assert rows(one.readings) == rows(other.readings)
            assert one.readings.sources == other.readings.sources
            assert one.historical == other.historical
            assert one.entry is entry
    assert decoded.decodes == 0
    assert plain.decodes > 10


def test_what_is_handed_over_is_bounded() -> None:
    decoded = DecodedEntries(25)
    parts = [parts_of(one_per_row(10, first_seq=n * 10 + 1, devices=1))[0] for n in range(4)]
    for n, part in enumerate(parts):
        decoded.offer(part, one_per_row(10, first_seq=n * 10 + 1, devices=1), historical=False)
        decoded.offer(part, one_per_row(10, first_seq=n * 10 + 1, devices=1), historical=False)
    for n, p in enumerate(parts):
        decoded.get(Entry(p.partition, n + 1, p.gateway, p.epoch, p.seq_ranges, p.count, 5, p.body))
    assert decoded.decodes == 2
