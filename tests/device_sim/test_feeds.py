"""Feeds: readings are released when due, handed out once, and bounded while they wait."""

from __future__ import annotations

from pathlib import Path

from device_sim import feeds
from device_sim.config import SimConfig
from device_sim.feeds import Feed, PacedFeed, TraceFeed, UnpacedFeed
from device_sim.sources import Generated, Replayed
from device_sim.traces import Record
from tests.device_sim.test_sources import write_trace

NOW_S = 1000.0


def generated(**settings: object) -> Generated:
    return Generated(SimConfig(**settings), 1_790_000_000.0)  # type: ignore[arg-type]


def taken_by(feed: Feed, now_s: float) -> list[tuple[int, float, bytes]]:
    """Release what is due and take it all."""
    taken = []
    for device in feed.release(now_s):
        reading = feed.take(device)
        assert reading is not None
        taken.append((device, reading[0], reading[1].payload))
    return taken


def test_a_paced_feed_releases_each_reading_once_when_it_is_due() -> None:
    source = generated(devices=10, rate_per_s=10)
    feed = PacedFeed(source, NOW_S, lambda device: 0.0, 0)
    taken = taken_by(feed, NOW_S + 20)
    expected = sorted(
        (source.due_s(device, n) + NOW_S, device)
        for device in range(10)
        for n in range(60)
        if source.due_s(device, n) <= 20
    )
    assert sorted((due, device) for device, due, _ in taken) == expected
    assert taken_by(feed, NOW_S + 20) == []
    next_s = feed.next_s(NOW_S + 20)
    assert next_s is not None
    assert next_s > NOW_S + 20


def test_devices_begin_when_their_connection_does() -> None:
    feed = PacedFeed(generated(devices=10), NOW_S, lambda device: 100.0 * device, 0)
    assert {device for device, _, _ in taken_by(feed, NOW_S + 99)} == {0}


def test_a_paced_feed_ends_at_its_count() -> None:
    feed = PacedFeed(generated(devices=3), NOW_S, lambda device: 0.0, 7)
    assert len(taken_by(feed, NOW_S + 1e6)) == 7
    assert feed.next_s(NOW_S) is None


def test_a_stopped_feed_gives_nothing_more() -> None:
    feed = PacedFeed(generated(devices=3), NOW_S, lambda device: 0.0, 0)
    due = list(feed.release(NOW_S + 60))
    assert feed.take(due[0]) is not None
    assert feed.stop() == len(due) - 1 > 0
    assert all(feed.take(device) is None for device in due)
    assert feed.next_s(NOW_S + 60) is None


def test_an_unpaced_feed_gives_as_long_as_it_is_asked() -> None:
    feed = UnpacedFeed(generated(devices=2), 5, lambda: NOW_S)
    assert list(feed.release(NOW_S)) == [0, 1]
    assert list(feed.release(NOW_S)) == []
    taken = [feed.take(n % 2) for n in range(7)]
    assert [reading is not None for reading in taken] == [True] * 5 + [False] * 2
    assert feed.stop() == 0
    assert feed.take(0) is None


def trace_of(tmp_path: Path, count: int) -> Replayed:
    records = [Record(1000 + n, f"tele/d{n % 3}/S", b"%d" % n) for n in range(count)]
    return Replayed(SimConfig(), write_trace(tmp_path / "t.cborseq", records))


def test_a_trace_is_released_at_its_times(tmp_path: Path) -> None:
    feed = TraceFeed(trace_of(tmp_path, 30), NOW_S, unpaced=False)
    assert [int(payload) for _, _, payload in taken_by(feed, NOW_S + 0.0095)] == list(range(10))
    assert feed.next_s(NOW_S + 0.0095) == NOW_S + 0.010
    assert len(taken_by(feed, NOW_S + 1)) == 20
    assert feed.next_s(NOW_S + 1) is None


def test_a_trace_is_not_read_on_while_too_much_waits(tmp_path: Path, monkeypatch: object) -> None:
    monkeypatch.setattr(feeds, "_AHEAD_MAX", 8)  # type: ignore[attr-defined]
    feed = TraceFeed(trace_of(tmp_path, 30), NOW_S, unpaced=True)
    released = list(feed.release(NOW_S))
    assert len(released) == 8
    assert feed.next_s(NOW_S) == NOW_S + feeds._FULL_RETRY_S
    first = feed.take(released[0])
    assert first is not None
    assert first[1].payload == b"0"
    assert len(list(feed.release(NOW_S))) == 1
    assert feed.stop() == 8
    assert feed.next_s(NOW_S) is None
