"""The ledger: it balances when nothing is missing, and names the very seqs when something is."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.intervals import IntervalSet, Range
from cloud.config import SinksConfig, StorageConfig, StreamConfig
from cloud.database import DatabaseError
from cloud.ledger import Balance, JournalState, StorageState, balance
from cloud.ledger_account import SourceBalance, ranges_text
from cloud.ledger_files import balance_files
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.runner import SinkRunner
from cloud.sinks.storage import StorageSink
from cloud.storage_file import StorageFile
from cloud.stream.contract import DeadLetter, Entry, GivenUp, Source, SourceLedger
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.kit.cloud import EPOCH, append_readings, parts_of
from tests.kit.readings import one_per_row

SOURCE = ("gw", EPOCH)
Ranges = Sequence[Range]


def stone(first: int, last: int, count: int | None = None, *, lane: str = "live") -> GivenUp:
    count = last - first + 1 if count is None else count
    return GivenUp("gw", EPOCH, lane, first, last, count, "evicted-age", 5)


@dataclass
class Places:
    """A stream, a storage and a journal that say what they are told to."""

    assigned: int = 0
    held: Ranges = ()
    given_up: Sequence[GivenUp] = ()
    entries: Ranges = ()
    past_cursor: Ranges = ()
    dead: Ranges = ()
    stored: Ranges = ()
    edge: JournalState | None = None
    epoch: int = 1
    settled: int | None = None
    asked: list[str] = field(default_factory=list)

    async def catch_up(self) -> None:
        self.asked.append("end of the stream")

    async def ledger(self) -> list[SourceLedger]:
        self.asked.append("stream")
        line = SourceLedger(
            *SOURCE, self.assigned, tuple(self.held), tuple(self.given_up), self.settled
        )
        return [line] if self.assigned or self.held else []

    async def ranges_after(self, positions: dict[int, int]) -> dict[Source, list[Range]]:
        found = self.past_cursor if positions else self.entries
        return {SOURCE: list(found)} if found else {}

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        assert sink == "storage"
        if not self.dead:
            return []
        entry = Entry(1, 1, *SOURCE, tuple(self.dead), 1, 5, b"")
        return [DeadLetter("storage", entry, "x", 3, 5)]

    async def state(self, *, count_rows: bool) -> StorageState:
        self.asked.append("storage")
        stored = {SOURCE: tuple(self.stored)} if self.stored else {}
        return StorageState(stored, {1: 1}, self.epoch)


class Edge:
    def __init__(self, places: Places) -> None:
        self.places = places

    async def state(self) -> JournalState:
        self.places.asked.append("journal")
        assert self.places.edge is not None
        return self.places.edge


async def balanced(places: Places, *, thorough: bool = False) -> Balance:
    journals = [Edge(places)] if places.edge else []
    return await balance(places, places, journals, thorough=thorough)


async def one(places: Places, *, thorough: bool = False) -> SourceBalance:
    (source,) = (await balanced(places, thorough=thorough)).sources
    return source


async def test_nothing_balances() -> None:
    report = await balanced(Places())
    assert report.balanced
    assert report.lines() == ["balances: 0 accounts"]


async def test_all_stored_balances() -> None:
    report = await balanced(Places(100, [(1, 100)], stored=[(1, 100)]))
    assert report.balanced
    assert report.lines()[0] == ("gw fedcba9876543210: 100 assigned = 100 stored + 0 given up")


async def test_each_reading_counts_in_one_place() -> None:
    places = Places(
        assigned=100,
        held=[(1, 60)],
        given_up=[stone(61, 70)],
        past_cursor=[(41, 60)],
        dead=[(36, 40)],
        stored=[(1, 35), (50, 55)],  # some rows are there before the cursor says so
        edge=JournalState(EPOCH, 110, ((56, 60), (71, 110)), (stone(61, 70),)),
    )
    source = await one(places)
    assert source.balanced
    assert (source.assigned, source.stored, source.dead_letters) == (110, 41, 5)
    assert (source.waiting_stream, source.waiting_edge, source.given_up) == (14, 40, 10)
    assert source.gateway == "gw"


async def test_a_reading_the_stream_took_and_nobody_has_is_lost() -> None:
    source = await one(Places(100, [(1, 100)], stored=[(1, 16), (19, 43), (45, 100)]))
    assert source.lost == ((17, 18), (44, 44))
    assert source.absent == ()
    assert not source.balanced
    assert source.missing == 3
    assert source.lines()[1].endswith("seq 17-18, 44")


async def test_a_reading_that_never_came_is_absent_unless_its_journal_shows_it() -> None:
    places = Places(100, [(1, 50)], stored=[(1, 50)])
    assert (await one(places)).absent == ((51, 100),)
    places.edge = JournalState(EPOCH, 100, ((51, 90),), ())
    assert (await one(places)).absent == ((91, 100),)
    places.edge = JournalState(EPOCH, 100, ((51, 100),), ())
    assert (await one(places)).balanced


async def test_what_a_gateway_out_of_sight_says_tells_waiting_from_missing() -> None:
    places = Places(100, [(1, 50), (61, 70)], [stone(71, 90, 15)], stored=[(1, 50), (61, 70)])
    source = await one(places)
    assert (source.absent, source.missing, source.waiting_edge) == (((51, 60), (91, 100)), 25, 0)
    places.settled = 55
    source = await one(places)
    assert (source.absent, source.missing, source.waiting_edge) == (((51, 55),), 5, 20)
    assert source.given_up == 15
    assert dict(source.where)["edge"] == ((56, 60), (91, 100))
    places.settled = 100
    source = await one(places)
    assert (source.absent, source.missing) == (((51, 60), (91, 100)), 25)
    places.settled, places.edge = 0, JournalState(EPOCH, 100, ((91, 100),), ())
    assert (await one(places)).absent == ((51, 60),)  # its journal is in sight


async def test_nothing_comes_any_more_of_a_journal_that_was_replaced() -> None:
    class Replaced(Places):
        async def ledger(self) -> list[SourceLedger]:
            return [
                SourceLedger("gw", 1, 10, ((1, 8),), (), 8, 100),
                SourceLedger("gw", 2, 10, ((1, 8),), (), 8, 200),
                SourceLedger("other", 3, 10, ((1, 8),), (), 8, 50),
            ]

        async def state(self, *, count_rows: bool) -> StorageState:
            sources = (("gw", 1), ("gw", 2), ("other", 3))
            return StorageState(dict.fromkeys(sources, ((1, 8),)), {1: 1}, self.epoch)

    report = await balanced(Replaced())
    assert [source.absent for source in report.sources] == [((9, 10),), (), ()]
    assert [source.waiting_edge for source in report.sources] == [0, 2, 2]


async def test_a_journal_the_cloud_never_heard_of() -> None:
    places = Places(edge=JournalState(7, 5, ((1, 5),), ()))
    (source,) = (await balanced(places)).sources
    assert (source.gateway, source.epoch, source.waiting_edge) == ("", 7, 5)
    assert "(unknown gateway)" in source.lines()[0]


async def test_an_empty_journal_is_no_account() -> None:
    assert (await balanced(Places(edge=JournalState(7, 0, (), ())))).sources == ()


async def test_a_tombstone_explains_no_more_than_its_count() -> None:
    """Lanes share the seqs: 50 of 1-100 were given up, the other 50 must be somewhere."""
    urgent = [(n, n) for n in range(2, 101, 2)]
    places = Places(100, urgent, [stone(1, 99, 50)], stored=urgent)
    assert (await one(places)).given_up == 50
    assert (await one(places)).balanced
    places = replace(places, stored=urgent[:-3], asked=[])
    source = await one(places)
    assert source.lost == ((96, 96), (98, 98), (100, 100))
    places = replace(places, held=urgent[3:], stored=urgent[3:], asked=[])
    source = await one(places)
    assert source.unexplained == (((1, 99), 3),)
    assert source.missing == 3
    assert "3 more missing in seq 1-99" in source.lines()[1]


async def test_overlapping_tombstones_of_two_lanes() -> None:
    stones = [stone(1, 99, 50), stone(2, 100, 50, lane="urgent")]
    source = await one(Places(100, (), stones))
    assert (source.given_up, source.balanced) == (100, True)


async def test_what_was_given_up_and_came_all_the_same_is_stored() -> None:
    source = await one(Places(10, [(1, 10)], [stone(5, 6)], stored=[(1, 10)]))
    assert (source.stored, source.given_up, source.balanced) == (10, 0, True)


async def test_seqs_nobody_assigned_are_shown() -> None:
    source = await one(Places(5, [(1, 5)], stored=[(1, 5), (9, 12)]))
    assert source.unassigned == ((9, 12),)
    assert not source.balanced


async def test_doubles_are_exact_ranges() -> None:
    places = Places(20, [(1, 20)], entries=[(1, 10), (4, 6), (8, 20)], stored=[(1, 20)])
    places.past_cursor = [(20, 20)]
    source = await one(places, thorough=True)
    assert source.doubled == ((4, 6), (8, 10))
    assert not source.balanced
    assert (await one(places)).balanced  # not looked for


async def test_a_reading_on_its_way_is_never_missed() -> None:
    """Sources are asked in the order a reading passes them; storage's rows last."""
    places = Places(10, [(1, 10)], stored=[(1, 10)], edge=JournalState(EPOCH, 10, ((1, 10),), ()))
    await balanced(places)
    assert places.asked == [
        "stream", "journal", "end of the stream", "stream", "storage", "storage"
    ]  # fmt: skip


async def test_what_came_while_the_ledger_was_read_is_not_unassigned() -> None:
    places = Places(100, [(1, 100)], stored=[(1, 100)])

    async def busy(*, count_rows: bool) -> StorageState:
        places.assigned += 5  # a batch came, and its rows were written, before storage is read
        places.held = places.stored = [(1, places.assigned)]
        return await Places.state(places, count_rows=count_rows)

    places.state = busy  # type: ignore[method-assign]
    source = await one(places)
    assert source.balanced, source.lines()
    assert (source.assigned, source.stored) == (100, 100)


async def test_storage_of_another_stream_is_noted() -> None:
    places = Places(10, [(1, 10)], entries=[(1, 10)], stored=[(1, 4)])

    class Other(Places):
        async def state(self, *, count_rows: bool) -> StorageState:
            return StorageState({SOURCE: ((1, 4),)}, {1: 1}, 99)

    report = await balance(places, Other())
    assert report.balanced
    assert report.sources[0].waiting_stream == 6
    assert "another stream" in report.notes[0]


@given(
    st.lists(
        st.sampled_from(["stored", "dead", "stream", "edge", "given", "lost", "absent"]),
        max_size=60,
    )
)
def test_any_distribution_is_found_again(where: list[str]) -> None:
    def seqs(*kinds: str) -> list[Range]:
        found = IntervalSet()
        found.update((n, n) for n, kind in enumerate(where, 1) if kind in kinds)
        return found.ranges()

    import asyncio

    held = seqs("stored", "dead", "stream", "lost")
    places = Places(
        len(where),
        held,
        [stone(a, b) for a, b in seqs("given")],
        past_cursor=seqs("stream"),
        dead=seqs("dead"),
        stored=seqs("stored"),
        edge=JournalState(EPOCH, len(where), tuple(seqs("edge")), ()),
    )
    report = asyncio.run(balanced(places))
    if not where:
        assert report.sources == ()
        return
    (source,) = report.sources
    assert source.stored == where.count("stored")
    assert source.dead_letters == where.count("dead")
    assert source.waiting_stream == where.count("stream")
    assert source.waiting_edge == where.count("edge")
    assert source.given_up == where.count("given")
    assert list(source.lost) == seqs("lost")
    assert list(source.absent) == seqs("absent")
    assert source.balanced == (not {"lost", "absent"} & set(where))


def test_many_ranges_are_cut_short() -> None:
    text = ranges_text([(n, n) for n in range(1, 100, 2)], 3)
    assert text == "1, 3, 5 and 47 more ranges"


async def test_detail_names_what_is_held_each_sink_and_every_tombstone() -> None:
    class WithSinks(Places):
        async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
            if sink == "storage":
                return []
            entry = Entry(1, 1, *SOURCE, ((1, 2),), 2, 5, b"")
            return [DeadLetter("alerts", entry, "x", 3, 5)]

    places = WithSinks(12, [(1, 10)], [stone(11, 12)], past_cursor=[(9, 10)], stored=[(1, 8)])
    report = await balance(places, places, sinks={"alerts": {1: 1}})
    assert report.balanced
    waiting = "2 waiting (0 at the edge, 2 in the stream)"
    assert report.lines(detail=True) == [
        f"gw fedcba9876543210: 12 assigned = 8 stored + 2 given up + {waiting}",
        "  held by the stream: 10",
        "  sink storage: 8 taken, 2 waiting",
        "  sink alerts: 6 taken, 2 waiting, 2 dead letters",
        "  given up: 2 of lane live, seq 11-12: evicted-age",
        "balances: 1 accounts",
    ]


async def test_a_second_journal_of_a_gateway_is_shown(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(10))
        await append_readings(stream, one_per_row(10), epoch=5)
        await runner.drained()
    lines = (await balance_files(tmp_path)).lines(detail=True)
    assert "gw: 2 journals" in lines[-3]
    assert "0000000000000005, fedcba9876543210" in lines[-3]


# ---- on files ------------------------------------------------------------------------------------


@asynccontextmanager
async def node(
    data: Path, *, replay_s: float = 3600
) -> AsyncIterator[tuple[EmbeddedStream, SinkRunner]]:
    """A stream with storage at work."""
    config = StreamConfig(disk_reserve_bytes=0, replay_s=replay_s)
    stream = await EmbeddedStream.open(data / "cloud" / "stream.db", config, ManualClock())
    sink = StorageSink(data / "cloud" / "storage.db", StorageConfig(linger_ms=0), ManualClock())
    runner = SinkRunner(sink, stream, DecodedEntries(1000), SinksConfig())
    await runner.start()
    try:
        yield stream, runner
    finally:
        await runner.stop()
        await stream.close()


async def test_files_balance_while_open_and_after(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(200))
        await append_readings(stream, one_per_row(50, first_seq=1), gateway="other", epoch=5)
        await runner.drained()
        report = await balance_files(tmp_path)
        assert report.balanced, report.lines()
        assert [source.stored for source in report.sources] == [200, 50]
        assert "journal.db" in report.notes[0]
    assert (await balance_files(tmp_path)).balanced


async def test_what_waits_in_the_stream_balances(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(20))
        await runner.drained()
        await runner.stop()
        await append_readings(stream, one_per_row(30, first_seq=21))
        (source,) = (await balance_files(tmp_path)).sources
        assert (source.stored, source.waiting_stream, source.balanced) == (20, 30, True)


async def test_a_deleted_storage_is_refilled_or_shown_as_lost(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(100))
        await runner.drained()
    storage = tmp_path / "cloud" / "storage.db"
    storage.unlink()
    async with node(tmp_path) as (stream, runner):  # what is kept for replay fills it again
        await runner.drained()
        assert (await balance_files(tmp_path)).balanced
        await stream.trim((await stream.stats()).last_positions)
    storage.unlink()
    report = await balance_files(tmp_path)
    assert not report.balanced
    assert report.sources[0].lost == ((1, 100),)
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(10, first_seq=101))
        await runner.drained()
    report = await balance_files(tmp_path)
    assert report.sources[0].lost == ((1, 100),)
    assert report.sources[0].stored == 10


async def test_a_storage_rolled_back_to_a_copy_is_shown(tmp_path: Path) -> None:
    storage = tmp_path / "cloud" / "storage.db"
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(40))
        await runner.drained()
    backup = storage.read_bytes()
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(25, first_seq=41))
        await runner.drained()
        await stream.trim((await stream.stats()).last_positions)
    storage.write_bytes(backup)
    report = await balance_files(tmp_path)
    assert report.sources[0].lost == ((41, 65),)


async def test_rows_deleted_by_hand_are_found_by_counting(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(100))
        await runner.drained()
        await stream.trim((await stream.stats()).last_positions)
    with closing(sqlite3.connect(tmp_path / "cloud" / "storage.db")) as connection:
        connection.execute("DELETE FROM readings WHERE seq IN (7, 8, 50)")
        connection.commit()
    assert (await balance_files(tmp_path)).sources[0].lost == ((7, 8), (50, 50))
    assert (await balance_files(tmp_path, thorough=False)).balanced


async def test_dead_letters_are_accounted_for(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        parts = parts_of(one_per_row(30, devices=1))
        await stream.append([replace(parts[0], body=b"\xff")], assigned={SOURCE: 30})
        runner._config = SinksConfig(tries_max=1)
        await runner.drained()
    (source,) = (await balance_files(tmp_path)).sources
    assert (source.dead_letters, source.balanced) == (30, True)
    assert "30 dead letters" in source.lines()[0]


async def test_expired_rows_stay_accounted_for(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(30))
        await runner.drained()
        assert isinstance(runner.sink, StorageSink)
        clock = ManualClock()
        clock.advance(100)
        runner.sink._config, runner.sink._clock = StorageConfig(age_max_s=10), clock
        assert await runner.sink.expire() == 30
        await stream.trim((await stream.stats()).last_positions)
    assert (await balance_files(tmp_path)).balanced


async def test_no_stream_is_an_error_no_storage_is_a_note(tmp_path: Path) -> None:
    with pytest.raises(DatabaseError, match=r"stream\.db: no such file"):
        await balance_files(tmp_path)
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(3))
        await runner.drained()
    (tmp_path / "cloud" / "storage.db").unlink()
    report = await balance_files(tmp_path)
    assert any("storage.db" in note for note in report.notes)
    assert report.sources[0].lost == () or report.sources[0].stored == 0


async def test_reading_changes_nothing(tmp_path: Path) -> None:
    async with node(tmp_path) as (stream, runner):
        await append_readings(stream, one_per_row(10))
        await runner.drained()
    before = {path.name: path.read_bytes() for path in (tmp_path / "cloud").glob("*.db")}
    await balance_files(tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "cloud").glob("*.db")} == before


async def test_a_foreign_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "storage.db"
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(DatabaseError, match=r"storage\.db: not a database"):
        await StorageFile(path).open()
