"""A sink that cannot get on: tried soon again whatever it was, and seen while it waits."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from cloud.config import SinksConfig, StreamConfig
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.stream.contract import Entry, StreamError
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import RecordingSink, append_readings
from tests.kit.readings import one_per_row

FAST = SinksConfig(retry_s=0.001, retry_max_s=0.002)


class Held:
    """Leases that stay as they are: nothing wakes who waits for them to change."""

    def __init__(self, partitions: Sequence[int]) -> None:
        self.tokens = dict.fromkeys(partitions, 1)

    def held(self) -> Mapping[int, int]:
        return dict(self.tokens)

    async def changed(self, known: Mapping[int, int]) -> None:
        while known == self.tokens:
            await asyncio.Event().wait()

    def working(self, tokens: Mapping[int, int]) -> None:
        pass

    def fenced(self, tokens: Mapping[int, int]) -> None:
        raise AssertionError(tokens)


class FarSink(RecordingSink):
    """Its store, which may be away, keeps the cursors."""

    def __init__(self) -> None:
        super().__init__(own_cursors=True)
        self.away = 0  # so many claims fail
        self.claims = 0

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        self.claims += 1
        if self.claims <= self.away:
            raise SinkUnavailable("nobody listens there")
        assert self.kept is not None
        return {p: self.kept.get(p, 0) for p in tokens}


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[EmbeddedStream]:
    opened = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    await append_readings(opened, one_per_row(200, devices=40))
    yield opened
    await opened.close()


async def run(
    stream: EmbeddedStream,
    sink: RecordingSink,
    config: SinksConfig = FAST,
    held: Held | None = None,
) -> SinkRunner:
    runner = SinkRunner(sink, stream, DecodedEntries(1000), config, held)
    await runner.start()
    return runner


@pytest.mark.parametrize("times", [1, 2, 15])
async def test_a_store_that_is_away_when_leases_are_taken_is_asked_until_it_is_back(
    stream: EmbeddedStream, times: int
) -> None:
    """Of none of its partitions it works on one, so no entry wakes it, and no lease changes."""
    sink = FarSink()
    sink.away = times
    runner = await run(stream, sink, held=Held(range(64)))
    async with asyncio.timeout(60):
        await runner.drained()
    await runner.stop()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 201))


async def test_leases_taken_later_while_the_store_is_away(stream: EmbeddedStream) -> None:
    """The sink works on some partitions; nothing new comes there."""
    sink = FarSink()
    held = Held(range(10))
    runner = await run(stream, sink, held=held)
    async with asyncio.timeout(60):
        await runner.drained()
        sink.away = sink.claims + 3
        held.tokens = dict.fromkeys(range(30), 1)
        await append_readings(stream, one_per_row(200, first_seq=201, devices=40))  # wakes it once
        await runner.drained()
    await runner.stop()
    assert {partition for partition, _ in sink.written} <= set(range(30))
    ends = (await stream.stats()).last_positions
    assert sink.kept == {p: end for p, end in ends.items() if p < 30}


async def test_pauses_stay_short_however_long_the_store_is_away(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is back at once when the store is; what blames an entry has pauses as configured."""
    pauses: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)
        await real(0)

    monkeypatch.setattr("cloud.sinks.runner.asyncio.sleep", sleep)
    left = 40
    sink = RecordingSink()

    def away(_entries: Sequence[DecodedEntry]) -> None:
        nonlocal left
        left -= 1
        if left > 0:
            raise SinkUnavailable("database is locked")

    sink.fault = away
    runner = await run(stream, sink, SinksConfig())
    async with asyncio.timeout(60):
        await runner.drained()
    await runner.stop()
    long = [seconds for seconds in pauses if seconds > 0.01]
    assert len(long) == 39
    assert 0.1 <= long[0] <= 0.2
    assert all(1.0 <= seconds <= 2.0 for seconds in long[5:])
    assert len(set(long[5:])) > 20, "nodes that lost the same store come back apart"


async def test_a_partition_that_cannot_be_read_holds_up_itself_alone(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = stream.read
    unreadable = {1, 2, 3, 40}

    async def read(partition: int, after: int, **bounds: int) -> list[Entry]:
        if partition in unreadable:
            raise StreamError(f"partition {partition}: no more answers in 2 s")
        return await real(partition, after, **bounds)

    monkeypatch.setattr(stream, "read", read)
    sink = FarSink()
    runner = await run(stream, sink)
    ends = (await stream.stats()).last_positions
    assert unreadable & ends.keys()
    async with asyncio.timeout(60):
        while sink.kept != {p: end for p, end in ends.items() if p not in unreadable}:
            await asyncio.sleep(0.01)
        assert (await runner.stats()).cause.startswith("partition ")
        unreadable.clear()
        await runner.drained()
    await runner.stop()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 201))


async def test_a_failed_entry_that_cannot_be_read_again_holds_up_its_partition_alone(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = (await stream.stats()).last_positions
    bad = min(ends)
    real = stream.read
    unreadable: set[int] = set()

    async def read(partition: int, after: int, **bounds: int) -> list[Entry]:
        if partition in unreadable:
            raise StreamError(f"partition {partition}: no more answers in 2 s")
        return await real(partition, after, **bounds)

    def refuses(entries: Sequence[DecodedEntry]) -> None:
        if any(one.entry.partition == bad for one in entries):
            if len(entries) == 1:
                unreadable.add(bad)  # from now on
            raise ValueError("not this one")

    monkeypatch.setattr(stream, "read", read)
    sink = FarSink()
    sink.fault = refuses
    runner = await run(stream, sink)
    async with asyncio.timeout(60):
        while not unreadable:
            await asyncio.sleep(0)
        await append_readings(stream, one_per_row(200, first_seq=201, devices=40))
        ends = (await stream.stats()).last_positions
        while sink.kept != {p: end for p, end in ends.items() if p != bad}:
            await asyncio.sleep(0.01)
        while not (await runner.stats()).cause.startswith("partition "):
            await asyncio.sleep(0.01)
        sink.fault = lambda _entries: None
        unreadable.clear()
        await runner.drained()
    await runner.stop()
    assert sorted(seq for seq, _ in sink.readings) == list(range(1, 401))


async def test_a_long_wait_is_said_and_seen_until_it_is_over(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write without an end raises nothing: only that it lasts tells of it."""
    writing, gate = asyncio.Event(), asyncio.Event()

    class Slow(RecordingSink):
        async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
            writing.set()
            await gate.wait()
            await super().write(entries, cursors)

    with capture_logs() as logs:
        runner = await run(stream, Slow(), replace(FAST, write_bytes_max=1 << 20))
        async with asyncio.timeout(60):
            await writing.wait()
            with monkeypatch.context() as patched:
                patched.setattr("cloud.sinks.waits._LONG_S", 0.05)
                runner._waits.stop()
                runner._waits._look()  # its timer was set for longer
                while not any(line["event"] == "sink_waits" for line in logs):
                    await asyncio.sleep(0.01)
                stats = await runner.stats()
            gate.set()
            await runner.drained()
            while not any(line["event"] == "sink_goes_on" for line in logs):
                await asyncio.sleep(0.01)
            while not runner._idle:
                await asyncio.sleep(0.001)
        after = await runner.stats()
        await runner.stop()
    (said,) = (line for line in logs if line["event"] == "sink_waits")
    assert said["sink"] == "recording"
    assert said["during"].startswith("writing ")
    assert said["for_s"] >= 0.0
    assert stats.waits_s >= 0.05
    assert "writing " in stats.cause
    assert after.waits_s == 0.0
    assert after.cause == ""


async def test_a_sink_with_nothing_to_do_waits_for_nothing(
    stream: EmbeddedStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    with capture_logs() as logs:
        runner = await run(stream, RecordingSink())
        async with asyncio.timeout(60):
            await runner.drained()
            while not runner._idle:
                await asyncio.sleep(0.001)
        with monkeypatch.context() as patched:
            patched.setattr("cloud.sinks.waits._LONG_S", 0.0)
            runner._waits._look()  # as its timer would, however long nothing comes
        stats = await runner.stats()
        await runner.stop()
    assert [line for line in logs if line["event"].startswith("sink_")] == []
    assert (stats.waits_s, stats.cause) == (0.0, "")
