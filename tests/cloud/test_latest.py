"""Latest values never go back in time, are bounded, and come back after a restart."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.commands import Correction
from bridge.readings import Readings
from cloud.database import DatabaseError
from cloud.latest import Latest, LatestLimits, LatestReading
from cloud.latest_changes import PENDING_MAX
from cloud.latest_sink import LatestSink
from cloud.sinks.contract import DecodedEntry
from cloud.storage_file import StorageFile
from cloud.stream.contract import Entry
from runtime.clock import SystemClock
from runtime.metrics import Metrics
from tests.kit.alerts import Batch, batch, us
from tests.kit.storage import stored


def take(latest: Latest, *batches: Batch) -> None:
    for one in batches:
        latest.receive(one.gateway, one.epoch, one.received_us, one.readings)


def values(latest: Latest, device: str = "d") -> dict[str, bytes]:
    return {one.topic: one.payload for one in latest.device(device)}


def test_newest_reading_of_each_topic() -> None:
    latest = Latest()
    rows = [(1, "devices/d/t", 20), (3, "devices/d/t", 22), (2, "devices/d/h", 50)]
    take(latest, batch(rows, received=4, first_seq=10))
    assert values(latest) == {"devices/d/t": b"22", "devices/d/h": b"50"}
    newest = latest.device("d")[1]
    assert newest == LatestReading("d", "devices/d/t", "gw", 7, 11, us(3), us(4), 1, b"22", 2)
    assert latest.device("unknown") == []


def test_late_reading_does_not_take_the_place_of_a_newer_one() -> None:
    latest = Latest()
    take(
        latest,
        batch([(10, "devices/d/t", 1)], received=10),
        batch([(9, "devices/d/t", 2)], received=11),
    )
    assert values(latest) == {"devices/d/t": b"1"}


def test_later_seq_wins_at_equal_times() -> None:
    latest = Latest()
    take(latest, batch([(1, "devices/d/t", n) for n in range(5)], received=1))
    assert values(latest) == {"devices/d/t": b"4"}


def test_clock_in_2099_does_not_hold_the_place() -> None:
    latest = Latest()
    take(
        latest,
        batch([(2e9, "devices/d/t", 1)], received=10),
        batch([(12, "devices/d/t", 2)], received=12),
    )
    assert values(latest) == {"devices/d/t": b"2"}
    take(latest, batch([(-1e9, "devices/d/t", 3)], received=13))
    assert values(latest) == {"devices/d/t": b"2"}


@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 12)), min_size=1, max_size=20),
    st.randoms(use_true_random=False),
)
def test_order_of_arrival_does_not_matter(rows: list[tuple[int, int]], rng: random.Random) -> None:
    batches = [
        batch([(at, "devices/d/t", seq)], received=received, first_seq=seq)
        for seq, (at, received) in enumerate(rows, 1)
    ]
    newest = max(range(len(rows)), key=lambda index: (min(rows[index]), index))
    for _ in range(3):
        rng.shuffle(batches)
        latest = Latest()
        take(latest, *batches, *batches[:5])
        assert values(latest) == {"devices/d/t": str(newest + 1).encode()}


def test_memory_is_bounded() -> None:
    latest = Latest(LatestLimits(devices=10, topics_per_device=3, payload_bytes=100))
    for number in range(30):
        rows = [(number, f"devices/{number}/{topic}", "x" * 500) for topic in range(5)]
        take(latest, batch(rows, received=number))
    assert len(latest) == 10
    assert {len(latest.device(str(number))) for number in range(20, 30)} == {3}
    one = latest.device("29")[0]
    assert (len(one.payload), one.payload_bytes) == (100, 502)
    assert latest.evicted == 30 * 2 + 20 * 3
    assert latest._payload_bytes == 10 * 3 * 100
    small = Latest(LatestLimits(total_payload_bytes=1_000))
    for number in range(30):
        take(small, batch([(number, f"devices/{number}/t", "x" * 98)], received=number))
    assert [one.device for one in small.devices(limit=99)] == [str(n) for n in range(20, 30)]


def test_devices_are_listed_in_pages() -> None:
    latest = Latest()
    for number in range(25):
        take(latest, batch([(number, f"devices/d{number:02}/t", 1)], received=number))
    first = latest.devices(limit=10)
    assert [one.device for one in first] == [f"d{n:02}" for n in range(10)]
    assert (first[3].time_us, first[3].gateway, first[3].topics) == (us(3), "gw", 1)
    rest = latest.devices(after=first[-1].device, limit=100)
    assert [one.device for one in rest] == [f"d{n:02}" for n in range(10, 25)]
    assert [one.device for one in latest.devices(match="d?[13]", limit=9)] == [
        "d01", "d03", "d11", "d13", "d21", "d23",
    ]  # fmt: skip


async def test_rebuilt_from_storage(tmp_path: Path) -> None:
    path = tmp_path / "storage.db"
    rows = [(second, f"devices/d{second % 130}/t{second % 3}", second) for second in range(780)]
    live = Latest()
    entry = batch(rows, received=1_000)
    take(live, entry)
    async with stored(path, entry):
        rebuilt = Latest()
        storage = StorageFile(path)
        await storage.open()
        assert await rebuilt.rebuild(storage, us(1_000)) == 130
        await storage.close()
    for device in live.devices(limit=1_000):
        assert rebuilt.device(device.device) == live.device(device.device)
    assert rebuilt.devices(limit=1_000) == live.devices(limit=1_000)


async def test_rebuild_leaves_out_rows_in_the_future(tmp_path: Path) -> None:
    path = tmp_path / "storage.db"
    future = [(2e9 + n, "devices/d/t", n) for n in range(100)]
    entry = batch([(5, "devices/d/t", 5), *future], received=10)
    async with stored(path, entry):
        latest = Latest()
        storage = StorageFile(path)
        await storage.open()
        await latest.rebuild(storage, us(10))
        await storage.close()
    assert values(latest) == {"devices/d/t": b"5"}


def test_figures() -> None:
    latest, metrics = Latest(), Metrics(process=False)
    latest.register(metrics)
    take(latest, batch([(1, "devices/d/t", 20)], received=1))
    assert b"tidegate_latest_devices 1.0" in metrics.render()[0]
    assert b"tidegate_latest_payload_bytes 2.0" in metrics.render()[0]


def test_empty_entry_is_nothing() -> None:
    latest = Latest()
    latest.receive("gw", 1, 1, Readings([], [], [], [], [], []))
    assert len(latest) == 0


# ---- pushed on change ----------------------------------------------------------------------------


async def test_changes_are_pushed_to_who_wants_them() -> None:
    latest = Latest()
    with latest.changes.hear("d*") as hearer:
        take(latest, batch([(1, "devices/d/t", 1), (2, "devices/d/t", 2)], received=50))
        take(latest, batch([(3, "devices/e/t", 3)], received=50, device="e"))
        heard = await hearer.news(1)
        assert [(one.topic, one.payload) for one in heard.readings] == [("devices/d/t", b"2")]
        take(latest, batch([(1, "devices/d/t", 1)], received=50))  # late: nothing is new
        assert (await hearer.news(0.01)).readings == []
        latest.correct("gw", Correction(7, 1, 9, 5_000_000, 0))  # shown with other times
        (corrected,) = (await hearer.news(1)).readings
        assert (corrected.payload, corrected.time_us) == (b"2", us(7))
        latest.changes.end()
        await hearer.news(60)
        assert hearer.ended
    assert not latest.changes.hearers


async def test_a_hearer_that_does_not_read_costs_little_and_knows_what_it_missed() -> None:
    latest = Latest(LatestLimits(devices=PENDING_MAX + 10))
    with latest.changes.hear("*") as hearer:
        for number in range(PENDING_MAX + 5):
            name = f"d{number}"
            take(latest, batch([(1, f"devices/{name}/t", 1)], received=1, device=name))
        heard = await hearer.news(1)
        assert (len(heard.readings), heard.missed) == (PENDING_MAX, 5)
        assert (await hearer.news(0)).missed == 0


# ---- the sink ------------------------------------------------------------------------------------


class FailingStorage:
    """A storage that cannot be read the first times."""

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.turns = 0

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def positions(self, stream_epoch: int) -> dict[int, int]:
        return {1: stream_epoch}

    @asynccontextmanager
    async def rebuild_turn(self) -> AsyncIterator[None]:
        self.turns += 1
        yield

    async def newest_rows(
        self, after: str, now_us: int, payload_bytes: int
    ) -> tuple[list[str], list[LatestReading]]:
        if self.turns <= self.failures:
            raise DatabaseError("gone for a moment")
        if after:
            return [], []
        return ["d"], [LatestReading("d", "t", "gw", 7, 1, us(1), us(1), 1, b"old", 3)]


async def test_a_rebuild_that_failed_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloud.latest_sink._PAUSE_S", 0.001)
    latest = Latest()
    storage = FailingStorage(failures=3)
    sink = LatestSink(latest, storage, SystemClock())  # type: ignore[arg-type]
    await sink.open(5)
    assert await sink.cursors() == {1: 5}
    assert not latest.complete
    async with asyncio.timeout(60):
        await sink.rebuilt()
    assert latest.complete
    assert values(latest) == {"t": b"old"}
    assert storage.turns == 4
    await sink.close()


async def test_what_comes_after_a_correction_is_shown_with_its_right_time() -> None:
    latest = Latest()
    sink = LatestSink(latest, None, SystemClock())
    sink.expect("gw", Correction(7, 1, 9, 100_000_000, 0))
    one = batch([(1, "devices/d/t", 1)], received=200)
    entry = Entry(3, 12, "gw", 7, ((1, 1),), 1, one.received_us, b"")
    await sink.write([DecodedEntry(entry, one.readings, historical=False)], {3: 12})
    (value,) = latest.device("d")
    assert value.time_us == us(101)
    assert (value.partition, value.position) == (3, 12)
