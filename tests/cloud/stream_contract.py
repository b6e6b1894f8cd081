"""The contract test suite of stream engines: a class that every engine's tests inherit unchanged.

    class TestEmbedded(StreamContract):
        @pytest.fixture
        def engine(self, tmp_path): ...     # an Engine: how to open it, again and again

It uses nothing but `cloud.stream.contract`: positions only rise, a closed stream is opened again
by the engine, and what an operation leaves is looked at through the contract itself.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import pytest

from bridge.intervals import IntervalSet, ranges_of
from bridge.runs import RUNS_MAX, Origin, Run
from cloud.stream.contract import (
    PARTITIONS,
    Backlog,
    Entry,
    GivenUp,
    Part,
    Stream,
    StreamError,
    origin_stone,
    run_stones,
    settled_stone,
)

__all__ = ["Engine", "StreamContract", "part"]

EPOCH = 0xFEDC_BA98_7654_3210  # past 63 bits, as half of all epochs are
EVERYTHING = {"entries_max": 10_000, "bytes_max": 1 << 30}


class Engine(Protocol):
    """How the suite gets streams of one engine: the same one every time, closed between."""

    async def open(self) -> Stream:
        """Open the stream, with all that was durable when it was last open."""
        ...

    async def open_snapshot(self, path: Path) -> Stream:
        """Open the copy that `snapshot` wrote to `path`."""
        ...


def part(
    partition: int,
    seqs: Iterable[int],
    *,
    gateway: str = "gw",
    epoch: int = EPOCH,
    body: bytes | None = None,
) -> Part:
    """Return a part holding `seqs`; the body names them unless given."""
    ranges = ranges_of(sorted(seqs))
    count = sum(last - first + 1 for first, last in ranges)
    body = f"{gateway}/{partition}/{ranges}".encode() if body is None else body
    return Part(partition, gateway, epoch, ranges, count, body)


def stone(first: int, last: int, *, gateway: str = "gw", reason: str = "evicted-age") -> GivenUp:
    """Return a tombstone of a whole range."""
    return GivenUp(gateway, EPOCH, "live", first, last, last - first + 1, reason, 1_000)


def shared_parts(name: str, appends: int) -> list[list[Part]]:
    """Return the parts of appends of gateways NAME-0, NAME-1, ... that share their bodies."""
    bodies = {partition: f"{name} in {partition}".encode() for partition in (7, 9)}
    return [
        [
            replace(
                part(partition, seqs, gateway=f"{name}-{n}", body=bodies[partition]),
                sharers=appends,
            )
            for partition, seqs in ((7, [1, 2]), (9, [3]))
        ]
        for n in range(appends)
    ]


async def append_shared(stream: Stream, name: str, appends: int) -> None:
    """Append what `shared_parts` returns, all at once."""
    await asyncio.gather(*(stream.append(parts) for parts in shared_parts(name, appends)))


async def read_all(stream: Stream, partition: int, after: int = 0) -> list[Entry]:
    """Return every entry of a partition past `after`, read in small steps."""
    found: list[Entry] = []
    while True:
        position = found[-1].position if found else after
        more = await stream.read(partition, position, entries_max=3, bytes_max=1 << 20)
        if not more:
            return found
        found += more


def as_parts(entries: Sequence[Entry]) -> list[Part]:
    """Return entries without where and when they were stored."""
    return [Part(e.partition, e.gateway, e.epoch, e.seq_ranges, e.count, e.body) for e in entries]


class StreamContract:
    """What every engine does. Subclasses give the fixture `engine`."""

    @pytest.fixture
    async def stream(self, engine: Engine) -> AsyncIterator[Stream]:
        async with opened(engine) as stream:
            yield stream

    # ---- entries ---------------------------------------------------------------------------------

    async def test_an_arrival_is_told_after_its_entries_are_gone(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.append([part(3, [1, 2, 5]), part(4, [3])])
            await stream.append([part(3, [4])])  # of another lane: it lies between the first ones
            found = await stream.arrival("gw", EPOCH, 5)
            assert found is not None
            assert (found.seq_ranges, found.count) == (((1, 3), (5, 5)), 4)
            assert [partition for partition, _ in found.places] == [3, 4]
            between = await stream.arrival("gw", EPOCH, 4)
            assert between is not None
            assert (between.seq_ranges, between.count) == (((4, 4),), 1)
            await stream.trim((await stream.stats()).last_positions)
            assert await stream.arrival("gw", EPOCH, 5) == found
        async with opened(engine) as stream:
            assert await stream.arrival("gw", EPOCH, 5) == found
            assert await stream.arrival("gw", EPOCH, 6) is None
            assert await stream.arrival("gw", EPOCH - 1, 5) is None

    async def test_an_empty_stream_has_nothing(self, stream: Stream) -> None:
        assert await stream.read(0, 0, **EVERYTHING) == []
        assert await stream.held("gw", EPOCH) == []
        assert await stream.cursors("storage") == {}
        assert await stream.ledger() == []
        stats = await stream.stats()
        assert (stats.readings, stats.entries, stats.bytes) == (0, 0, 0)
        assert dict(stats.last_positions) == {}

    async def test_what_was_appended_is_read_back_whole(self, stream: Stream) -> None:
        parts = [part(0, [1, 2, 5]), part(PARTITIONS - 1, [3, 4, 6], body=bytes(range(256)))]
        await stream.append(parts)
        found = await read_all(stream, 0) + await read_all(stream, PARTITIONS - 1)
        assert as_parts(found) == parts
        assert all(entry.position > 0 and entry.appended_us > 0 for entry in found)
        assert await read_all(stream, 1) == []

    async def test_a_body_that_appends_share_is_read_for_each(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await append_shared(stream, "a", 5)
            await stream.append([part(7, [1], body=b"of its own")])
            await append_shared(stream, "b", 3)
        async with opened(engine) as again:
            found = await read_all(again, 7)
            assert [(e.gateway[0], e.seq_ranges, e.body) for e in found] == [
                *[("a", ((1, 2),), b"a in 7")] * 5,
                ("g", ((1, 1),), b"of its own"),
                *[("b", ((1, 2),), b"b in 7")] * 3,
            ]
            assert len({e.gateway for e in found}) == 9
            for at in range(9):
                after = found[at - 1].position if at else 0
                assert await again.read(7, after, **EVERYTHING) == found[at:]
                few = await again.read(7, after, entries_max=1, bytes_max=1)
                assert few == found[at : at + 1]
            assert [e.body for e in await read_all(again, 9)] == [b"a in 9"] * 5 + [b"b in 9"] * 3

    async def test_a_shared_body_is_counted_once_and_kept_until_all_of_it_is_trimmed(
        self, engine: Engine
    ) -> None:
        async with opened(engine) as stream:
            await append_shared(stream, "a", 5)
            await stream.append([part(7, [1], body=b"of its own")])
            found = await read_all(stream, 7)
            for at in range(5):
                stats = await stream.stats()
                assert (stats.entries, stats.readings) == (11 - at, 16 - 2 * at)
                assert stats.bytes == len(b"a in 7") + len(b"a in 9") + len(b"of its own")
                assert len(await stream.read(7, 0, entries_max=9, bytes_max=6)) == 5 - at
                await stream.trim({7: found[at].position})
                assert await read_all(stream, 7) == found[at + 1 :]
        async with opened(engine) as again:
            assert await read_all(again, 7) == found[5:]
            assert (await again.stats()).bytes == len(b"a in 9") + len(b"of its own")

    async def test_appends_that_share_a_body_count_or_fail_each_by_itself(
        self, stream: Stream
    ) -> None:
        await stream.append([part(7, [1, 2], gateway="a-1", body=b"before")])
        first, second, third = shared_parts("a", 3)
        wrong = [replace(third[0], count=3), third[1]]
        results = await asyncio.gather(
            *(stream.append(parts) for parts in (first, second, wrong)), return_exceptions=True
        )
        assert [type(result) for result in results] == [type(None), type(None), ValueError]
        assert [list(await stream.held(f"a-{n}", EPOCH)) for n in range(3)] == [
            [(1, 3)],
            [(1, 3)],
            [],
        ]
        assert {(e.gateway, e.body) for e in await read_all(stream, 7)} == {
            ("a-1", b"before"), ("a-0", b"a in 7"),
        }  # fmt: skip
        await stream.append(third)
        assert (await read_all(stream, 7))[-1].body == b"a in 7"
        assert list(await stream.held("a-2", EPOCH)) == [(1, 3)]

    async def test_positions_rise_in_the_order_of_appends(self, stream: Stream) -> None:
        for seq in range(1, 20):
            await stream.append([part(7, [seq])])
        found = await read_all(stream, 7)
        assert [entry.seq_ranges for entry in found] == [((seq, seq),) for seq in range(1, 20)]
        positions = [entry.position for entry in found]
        assert positions == sorted(set(positions))

    async def test_reading_starts_past_the_position(self, stream: Stream) -> None:
        for seq in range(1, 6):
            await stream.append([part(7, [seq])])
        found = await read_all(stream, 7)
        for index, entry in enumerate(found):
            assert await stream.read(7, entry.position, **EVERYTHING) == found[index + 1 :]
        assert await stream.read(7, found[-1].position + 1000, **EVERYTHING) == []

    async def test_bounds_of_a_read_are_kept_but_one_entry_always_comes(
        self, stream: Stream
    ) -> None:
        for seq in range(1, 6):
            await stream.append([part(7, [seq], body=bytes((seq,)) * 100)])
        assert len(await stream.read(7, 0, entries_max=2, bytes_max=1 << 20)) == 2
        assert len(await stream.read(7, 0, entries_max=100, bytes_max=250)) == 2
        assert len(await stream.read(7, 0, entries_max=1, bytes_max=1)) == 1

    async def test_a_big_entry_comes_back_as_it_was(self, stream: Stream) -> None:
        body = random.Random(1).randbytes(700_000)  # past any page, below the usual message limit
        await stream.append([part(9, [1], body=body), part(10, [2], body=b"small")])
        (entry,) = await read_all(stream, 9)
        assert entry.body == body

    async def test_an_empty_body_is_a_body(self, stream: Stream) -> None:
        await stream.append([part(9, [1], body=b"")])
        (entry,) = await read_all(stream, 9)
        assert (entry.body, entry.count) == (b"", 1)

    # ---- all or nothing --------------------------------------------------------------------------

    @pytest.mark.parametrize(
        "bad",
        [
            part(PARTITIONS, [2]),
            part(-1, [2]),
            part(1, [2], gateway=""),
            part(1, [2], epoch=1 << 64),
            Part(1, "gw", EPOCH, (), 0, b""),
            Part(1, "gw", EPOCH, ((2, 2),), 2, b""),
            Part(1, "gw", EPOCH, ((0, 2),), 3, b""),
            Part(1, "gw", EPOCH, ((5, 4),), 0, b""),
            Part(1, "gw", EPOCH, ((4, 5), (6, 7)), 4, b""),
            Part(1, "gw", EPOCH, ((6, 7), (4, 4)), 3, b""),
            part(0, [2]),
        ],
        ids=[
            "partition-past-the-end",
            "partition-negative",
            "no-gateway",
            "epoch-past-64-bits",
            "no-seqs",
            "wrong-count",
            "seq-0",
            "range-backwards",
            "ranges-touch",
            "ranges-fall",
            "two-parts-for-one-place",
        ],
    )
    async def test_a_bad_part_stores_nothing_of_its_append(self, stream: Stream, bad: Part) -> None:
        with pytest.raises(ValueError, match=r"."):
            await stream.append([part(0, [1]), bad], [stone(7, 7)], {("gw", EPOCH): 9})
        assert await read_all(stream, 0) == []
        assert await stream.ledger() == []

    async def test_an_append_of_all_partitions_is_there_as_a_whole(self, engine: Engine) -> None:
        parts = [part(p, [p + 1]) for p in range(PARTITIONS)]
        async with opened(engine) as stream:
            await stream.append(parts, [stone(100, 109)], {("gw", EPOCH): 200})
        async with opened(engine) as stream:
            found = [entry for p in range(PARTITIONS) for entry in await read_all(stream, p)]
            assert as_parts(found) == parts
            (line,) = await stream.ledger()
            assert (line.assigned, line.held) == (200, ((1, PARTITIONS),))
            assert line.given_up == (stone(100, 109),)

    async def test_an_append_of_nothing_is_a_probe(self, stream: Stream) -> None:
        await stream.append(())
        assert (await stream.stats()).entries == 0

    # ---- repeating -------------------------------------------------------------------------------

    async def test_a_part_held_already_is_not_stored_again(self, engine: Engine) -> None:
        first, second = part(3, [1, 2, 9]), part(4, [3])
        async with opened(engine) as stream:
            await stream.append([first])
            await stream.append([first, second])
        async with opened(engine) as stream:
            await stream.append([second])
            assert as_parts(await read_all(stream, 3)) == [first]
            assert as_parts(await read_all(stream, 4)) == [second]

    async def test_the_same_seqs_of_another_epoch_or_gateway_are_other_readings(
        self, stream: Stream
    ) -> None:
        parts = [part(3, [1]), part(3, [1], epoch=EPOCH - 1), part(3, [1], gateway="other")]
        await stream.append(parts)
        assert as_parts(await read_all(stream, 3)) == parts

    async def test_concurrent_repeats_are_stored_once(self, stream: Stream) -> None:
        again = part(3, range(1, 50))
        await asyncio.gather(*(stream.append([again]) for _ in range(10)))
        assert as_parts(await read_all(stream, 3)) == [again]

    async def test_a_cancelled_append_is_whole_or_absent_and_can_be_repeated(
        self, engine: Engine
    ) -> None:
        parts = [[part(1, [2 * n + 1]), part(2, [2 * n + 2])] for n in range(20)]
        async with opened(engine) as stream:
            for index, pair in enumerate(parts):
                task = asyncio.create_task(stream.append(pair))
                for _ in range(index % 5):
                    await asyncio.sleep(0)
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            await stream.append([])  # whatever was under way is behind this
        async with opened(engine) as stream:
            ones = {entry.seq_ranges[0][0] for entry in await read_all(stream, 1)}
            twos = {entry.seq_ranges[0][0] - 1 for entry in await read_all(stream, 2)}
            assert ones == twos
            for pair in parts:
                await stream.append(pair)
            assert sorted(e.seq_ranges[0][0] for e in await read_all(stream, 1)) == [
                2 * n + 1 for n in range(20)
            ]
            assert list(await stream.held("gw", EPOCH)) == [(1, 40)]

    # ---- order -----------------------------------------------------------------------------------

    async def test_overlapping_appends_of_a_gateway_keep_the_order_of_the_calls(
        self, stream: Stream
    ) -> None:
        async with asyncio.TaskGroup() as group:
            for seq in range(1, 101):
                group.create_task(stream.append([part(5, [seq])]))
        found = [entry.seq_ranges[0][0] for entry in await read_all(stream, 5)]
        assert found == list(range(1, 101))

    async def test_many_gateways_at_once_each_keep_their_order(self, stream: Stream) -> None:
        async def gateway(name: str) -> None:
            rng = random.Random(name)
            pending: list[asyncio.Task[None]] = []
            for seq in range(1, 41):
                one = part(rng.choice([1, 2]), [seq], gateway=name)
                pending.append(asyncio.create_task(stream.append([one])))
                if rng.random() < 0.3:
                    await asyncio.gather(*pending)
            await asyncio.gather(*pending)

        names = [f"gw-{n}" for n in range(8)]
        await asyncio.gather(*map(gateway, names))
        entries = await read_all(stream, 1) + await read_all(stream, 2)
        for name in names:
            for partition in (1, 2):
                own = [
                    entry.seq_ranges[0][0]
                    for entry in entries
                    if entry.gateway == name and entry.partition == partition
                ]
                assert own == sorted(own)
            assert list(await stream.held(name, EPOCH)) == [(1, 40)]
        assert (await stream.stats()).readings == 8 * 40

    # ---- held ranges and the ledger --------------------------------------------------------------

    async def test_held_is_exactly_what_was_appended(self, engine: Engine) -> None:
        rng = random.Random(7)
        truth = IntervalSet()
        async with opened(engine) as stream:
            for _ in range(60):
                first = rng.randrange(1, 400)
                seqs = [s for s in range(first, first + rng.randrange(1, 20)) if s not in truth]
                seqs = [seq for seq in seqs if rng.random() < 0.8]
                if seqs:
                    truth.update((seq, seq) for seq in seqs)
                    await stream.append([part(rng.randrange(4), seqs)])
            assert list(await stream.held("gw", EPOCH)) == truth.ranges()
        async with opened(engine) as stream:
            assert list(await stream.held("gw", EPOCH)) == truth.ranges()
            assert await stream.highest_seq("gw", EPOCH) == truth.ranges()[-1][1]
            assert await stream.highest_seq("gw", EPOCH + 1) == 0
            (line,) = await stream.ledger()
            assert list(line.held) == truth.ranges()

    async def test_assigned_never_goes_back(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.append([], assigned={("gw", EPOCH): 50, ("b", 1): 3})
            await stream.append([part(1, [1])], assigned={("gw", EPOCH): 20})
        async with opened(engine) as stream:
            lines = {(line.gateway, line.epoch): line for line in await stream.ledger()}
            assert lines["gw", EPOCH].assigned == 50
            assert lines["b", 1].assigned == 3

    async def test_tombstones_are_kept_once(self, engine: Engine) -> None:
        stones = [stone(1, 5), stone(9, 9, reason="refused"), stone(2, 3, gateway="other")]
        async with opened(engine) as stream:
            await stream.append([], stones)
            await stream.append([], stones[:1])
        async with opened(engine) as stream:
            lines = {line.gateway: line.given_up for line in await stream.ledger()}
            assert lines == {"gw": tuple(stones[:2]), "other": tuple(stones[2:])}

    async def test_a_tombstone_that_was_extended_stands_once(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.append([], [stone(1, 5)])
            await stream.append([], [stone(1, 50)])
            await stream.append([], [stone(1, 20)])
        async with opened(engine) as stream:
            (line,) = await stream.ledger()
            assert line.given_up == (stone(1, 50),)

    async def test_what_is_settled_rises_and_is_no_tombstone(self, engine: Engine) -> None:
        source = ("gw", EPOCH)
        async with opened(engine) as stream:
            await stream.append([part(1, [1])], [stone(2, 3)])
            (line,) = await stream.ledger()
            assert line.settled is None
            for seq, time_us in ((0, 10), (7, 20), (5, 30)):
                await stream.append([], [settled_stone(source, seq, time_us)])
        async with opened(engine) as stream:
            (line,) = await stream.ledger()
            assert (line.settled, line.settled_us, line.given_up) == (7, 20, (stone(2, 3),))

    async def test_the_newest_runs_of_a_source_are_kept_in_order_and_are_no_tombstones(
        self, engine: Engine
    ) -> None:
        source = ("gw", EPOCH)
        runs = [Run((1 << 63) - number, number // 2) for number in range(1, RUNS_MAX + 4)]
        async with opened(engine) as stream:
            assert stream.keeps_runs
            assert await stream.runs(*source) == (0, ())
            await stream.append([part(1, [1])], [stone(2, 3)])
            for at in range(0, len(runs), 10):
                await stream.append([], run_stones(source, at, runs[at : at + 10]))
            await stream.append([], run_stones(("gw", EPOCH + 1), 0, runs[:1]))
        async with opened(engine) as stream:
            assert await stream.runs(*source) == (len(runs), tuple(runs[-RUNS_MAX:]))
            assert await stream.runs("gw", EPOCH + 1) == (1, (runs[0],))
            line = (await stream.ledger())[0]
            assert (line.held, line.given_up, line.origin) == (((1, 1),), (stone(2, 3),), None)

    @pytest.mark.parametrize("after_seq", [0, 41])
    async def test_where_an_epoch_parted_is_told_with_the_ledger(
        self, engine: Engine, after_seq: int
    ) -> None:
        origin = Origin(after_seq, EPOCH - 1)
        async with opened(engine) as stream:
            await stream.append([part(1, [50])], [origin_stone(("gw", EPOCH), origin, 9)])
        async with opened(engine) as stream:
            (line,) = await stream.ledger()
            assert (line.origin, line.given_up) == (origin, ())

    async def test_the_ledger_is_sorted_and_names_every_source(self, stream: Stream) -> None:
        await stream.append([part(1, [1], gateway="b"), part(1, [1], gateway="a", epoch=9)])
        await stream.append([part(1, [1], gateway="a", epoch=EPOCH)])
        found = [(line.gateway, line.epoch) for line in await stream.ledger()]
        assert {*found} == {("a", 9), ("a", EPOCH), ("b", EPOCH)}
        assert [gateway for gateway, _ in found] == ["a", "a", "b"]

    async def test_ranges_after_are_those_of_the_entries_past_the_positions(
        self, stream: Stream
    ) -> None:
        await stream.append([part(1, [1, 2, 5]), part(2, [3])])
        await stream.append([part(1, [4]), part(2, [8], gateway="other")])
        assert await stream.ranges_after({}) == {
            ("gw", EPOCH): [(1, 5)],
            ("other", EPOCH): [(8, 8)],
        }
        first = (await read_all(stream, 1))[0].position
        ends = (await stream.stats()).last_positions
        assert await stream.ranges_after({1: first, 2: ends[2]}) == {("gw", EPOCH): [(4, 4)]}
        assert await stream.ranges_after(ends) == {}

    async def test_a_seq_in_two_entries_shows_as_an_overlap(self, stream: Stream) -> None:
        await stream.append([part(1, range(1, 11))])
        await stream.append([part(1, range(5, 16))])
        (ranges,) = (await stream.ranges_after({})).values()
        assert ranges == [(1, 10), (5, 15)]
        assert list(await stream.held("gw", EPOCH)) == [(1, 15)]

    async def test_backlog_counts_what_lies_past_a_position(self, stream: Stream) -> None:
        for seq in range(1, 31, 3):
            await stream.append([part(1, range(seq, seq + 3)), part(2, [100 + seq])])
        found = await read_all(stream, 1)
        ends = (await stream.stats()).last_positions
        backlog = await stream.backlog({1: found[3].position, 2: ends[2], 3: 0})
        assert backlog[1] == Backlog(6, 18, found[4].appended_us)
        assert backlog[2] == Backlog(0, 0, 0)
        assert backlog[3] == Backlog(0, 0, 0)
        assert (await stream.backlog({2: 0}))[2].entries == 10

    # ---- waiting ---------------------------------------------------------------------------------

    async def test_wait_returns_at_once_when_there_is_something(self, stream: Stream) -> None:
        await stream.append([part(5, [1])])
        async with asyncio.timeout(60):
            await stream.wait({4: 0, 5: 0})

    async def test_wait_wakes_for_its_partitions_only(self, stream: Stream) -> None:
        await stream.append([part(5, [1])])
        end = (await stream.stats()).last_positions[5]
        waiting = asyncio.create_task(stream.wait({5: end, 6: 0}))
        await stream.append([part(7, [2])])
        await stream.append([])
        assert not waiting.done()
        await stream.append([part(6, [3])])
        async with asyncio.timeout(60):
            await waiting

    async def test_all_who_wait_wake(self, stream: Stream) -> None:
        waiting = [asyncio.create_task(stream.wait({p: 0})) for p in (5, 5, 6)]
        await asyncio.sleep(0)
        await stream.append([part(5, [1]), part(6, [2])])
        async with asyncio.timeout(60):
            await asyncio.gather(*waiting)

    async def test_a_cancelled_wait_leaves_the_others(self, stream: Stream) -> None:
        one, two = (asyncio.create_task(stream.wait({5: 0})) for _ in range(2))
        await asyncio.sleep(0)
        one.cancel()
        await stream.append([part(5, [1])])
        async with asyncio.timeout(60):
            await two
        assert one.cancelled()

    # ---- cursors ---------------------------------------------------------------------------------

    async def test_cursors_are_durable_and_never_go_back(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.commit_cursors("live", {1: 10, 2: 5})
            await stream.commit_cursors("live", {1: 7, 3: 1})
            await stream.commit_cursors("alerts", {1: 2})
        async with opened(engine) as stream:
            assert await stream.cursors("live") == {1: 10, 2: 5, 3: 1}
            assert await stream.cursors("alerts") == {1: 2}
            assert await stream.cursors("storage") == {}

    # ---- trimming --------------------------------------------------------------------------------

    async def test_trimming_forgets_entries_and_keeps_the_ledger(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            for seq in range(1, 11):
                await stream.append([part(1, [seq]), part(2, [100 + seq])], [stone(50, 59)])
            found = await read_all(stream, 1)
            await stream.trim({1: found[6].position})
            assert await read_all(stream, 1) == found[7:]
            assert len(await read_all(stream, 2)) == 10
        async with opened(engine) as stream:
            assert await read_all(stream, 1) == found[7:]
            stats = await stream.stats()
            assert (stats.readings, stats.entries) == (13, 13)
            left = await read_all(stream, 1) + await read_all(stream, 2)
            assert stats.bytes == sum(len(entry.body) for entry in left)
            assert list(await stream.held("gw", EPOCH)) == [(1, 10), (101, 110)]
            (line,) = await stream.ledger()
            assert line.given_up == (stone(50, 59),)

    async def test_positions_go_on_after_everything_was_trimmed(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.append([part(1, [1])])
            end = (await stream.stats()).last_positions[1]
            await stream.trim({1: end})
            assert await read_all(stream, 1) == []
            assert (await stream.stats()).entries == 0
        async with opened(engine) as stream:
            assert (await stream.stats()).last_positions[1] == end
            await stream.append([part(1, [2])])
            (entry,) = await read_all(stream, 1)
            assert entry.position > end
            await stream.append([part(1, [1])])  # held though trimmed
            assert len(await read_all(stream, 1)) == 1
            assert (await stream.backlog({1: 0}))[1].readings == 1

    async def test_what_was_trimmed_wakes_nobody(self, stream: Stream) -> None:
        await stream.append([part(1, [1])])
        await stream.trim((await stream.stats()).last_positions)
        waiting = asyncio.create_task(stream.wait({1: 0}))
        await stream.append([])
        assert not waiting.done()
        await stream.append([part(1, [2])])
        async with asyncio.timeout(60):
            await waiting

    async def test_trimming_leaves_what_is_younger(self, stream: Stream) -> None:
        await stream.append([part(1, [1])])
        (old,) = await read_all(stream, 1)
        await stream.append([part(1, [2])])
        end = (await stream.stats()).last_positions[1]
        await stream.trim({1: end}, old.appended_us)
        assert len(await read_all(stream, 1)) == 2
        await stream.trim({1: end, 40: 1000}, old.appended_us + 3_600_000_000)
        assert await read_all(stream, 1) == []

    # ---- dead letters ----------------------------------------------------------------------------

    async def test_dead_letters_are_kept_whole_until_forgotten(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            await stream.append([part(1, [1, 2, 7], body=b"\xff\x00odd"), part(2, [3])])
            (bad,) = await read_all(stream, 1)
            await stream.set_aside("storage", bad, "corrupt: check", 5)
            await stream.set_aside("storage", bad, "another cause", 9)
            await stream.set_aside("live", bad, "x", 1)
            await stream.trim({1: bad.position})
        async with opened(engine) as stream:
            (letter,) = await stream.dead_letters("storage")
            assert (letter.sink, letter.cause, letter.tries) == ("storage", "corrupt: check", 5)
            assert replace(letter.entry, appended_us=0) == replace(bad, appended_us=0)
            assert len(await stream.dead_letters()) == 2
            await stream.forget_dead_letter("storage", 1, bad.position)
            await stream.forget_dead_letter("storage", 1, 12345)
            assert await stream.dead_letters("storage") == []
            assert [letter.sink for letter in await stream.dead_letters()] == ["live"]

    # ---- identity, snapshot, closing -------------------------------------------------------------

    async def test_the_epoch_stays_with_the_stream(self, engine: Engine) -> None:
        async with opened(engine) as stream:
            epoch = stream.epoch
            assert 0 <= epoch < 1 << 64
        async with opened(engine) as stream:
            assert stream.epoch == epoch

    async def test_a_snapshot_is_the_stream_at_one_moment(
        self, engine: Engine, tmp_path: Path
    ) -> None:
        copy = tmp_path / "copy"
        async with opened(engine) as stream:
            await stream.append([part(1, [1]), part(2, [2])], [stone(9, 9)], {("gw", EPOCH): 12})
            await stream.commit_cursors("live", {1: 1})
            before = await stream.ledger(), await read_all(stream, 1), stream.epoch
            appends = asyncio.gather(*(stream.append([part(3, [n])]) for n in range(20, 40)))
            await stream.snapshot(copy)
            await appends
            with pytest.raises(StreamError):
                await stream.snapshot(copy)
        other = await engine.open_snapshot(copy)
        try:
            assert await read_all(other, 1) == before[1]
            assert other.epoch == before[2]
            assert await other.cursors("live") == {1: 1}
            held = IntervalSet(await other.held("gw", EPOCH))
            assert held.covers(1, 2)
            inside = {entry.seq_ranges[0][0] for entry in await read_all(other, 3)}
            assert inside == {seq for seq in range(20, 40) if seq in held}
        finally:
            await other.close()

    async def test_closing_finishes_what_is_under_way(self, engine: Engine) -> None:
        stream = await engine.open()
        pending = [asyncio.create_task(stream.append([part(1, [n])])) for n in range(1, 30)]
        await asyncio.sleep(0)
        await stream.close()
        await asyncio.gather(*pending)
        await stream.close()
        with pytest.raises(StreamError):
            await stream.append([part(1, [99])])
        async with opened(engine) as again:
            assert list(await again.held("gw", EPOCH)) == [(1, 29)]

    async def test_closing_wakes_who_waits(self, engine: Engine) -> None:
        stream = await engine.open()
        waiting = asyncio.create_task(stream.wait({1: 0}))
        await asyncio.sleep(0)
        await stream.close()
        async with asyncio.timeout(60):
            with pytest.raises(StreamError):
                await waiting


@asynccontextmanager
async def opened(engine: Engine) -> AsyncIterator[Stream]:
    """Open the engine's stream for as long as the block lasts."""
    stream = await engine.open()
    try:
        yield stream
    finally:
        await stream.close()
