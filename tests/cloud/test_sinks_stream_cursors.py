"""What the stream is told of a sink's cursors, and where a sink starts from."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud.config import StreamConfig
from cloud.sinks.stream_cursors import StreamCursors, agreed_positions
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import append_readings
from tests.kit.readings import one_per_row


@pytest.fixture
async def stream(tmp_path: Path) -> AsyncIterator[EmbeddedStream]:
    opened = await EmbeddedStream.open(
        tmp_path / "stream.db", StreamConfig(disk_reserve_bytes=0), ManualClock()
    )
    yield opened
    await opened.close()


async def test_only_what_went_on_is_saved_and_loaded_again(stream: EmbeddedStream) -> None:
    cursors = StreamCursors(stream, "storage", "")
    assert cursors.ahead({1: 5, 2: 0}) == {1: 5}
    await cursors.commit({1: 5})
    assert cursors.ahead({1: 5, 2: 3}) == {2: 3}
    other = StreamCursors(stream, "storage", "")
    assert await other.load([1]) == {1: 5}
    assert other.committed == {1: 5}


async def test_what_a_sink_keeps_itself_is_told_by_another_name_if_at_all(
    stream: EmbeddedStream,
) -> None:
    alone, mirrored = StreamCursors(stream, "storage", ""), StreamCursors(stream, "storage", "m")
    alone.kept_by_sink = mirrored.kept_by_sink = True
    assert (alone.is_told, mirrored.is_told) == (False, True)
    await mirrored.commit({1: 5})
    assert await stream.cursors("storage") == {}
    assert await stream.cursors("m") == {1: 5}


async def test_a_partition_let_go_of_is_loaded_anew(stream: EmbeddedStream) -> None:
    cursors = StreamCursors(stream, "storage", "")
    await cursors.commit({1: 5})
    cursors.forget(1)
    assert cursors.committed == {}
    await cursors.load([1])
    assert cursors.committed == {1: 5}


async def test_a_start_is_where_the_sink_stood_as_far_as_the_stream_agrees(
    stream: EmbeddedStream,
) -> None:
    await append_readings(stream, one_per_row(1))
    (partition,) = (await stream.stats()).last_positions
    end = (await stream.stats()).last_positions[partition]
    for kept, start in ((0, 0), (end, end), (end + 1, 0)):
        assert await agreed_positions(stream, "s", {partition: kept}) == {partition: start}
    empty = (partition + 1) % 64
    assert await agreed_positions(stream, "s", {empty: 3}) == {empty: 0}
