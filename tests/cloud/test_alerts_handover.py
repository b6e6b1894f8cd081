"""Alerts whose partition moves between nodes: nobody is told twice, and nobody is not told."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from cloud.alerts.series import Transition
from cloud.alerts.sink import AlertSink
from cloud.alerts.store import AlertStore, Changes, HistoryRow, Message
from cloud.sinks.contract import SinkFenced
from cloud.views import AlertEventView
from tests.kit.alert_nodes import EPOCH, AlertNodes
from tests.kit.alerts import hot, silent, tick


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[AlertNodes]:
    one = AlertNodes(tmp_path, hot(for_s=5.0))
    yield one
    await one.close()


async def opened(lab: AlertNodes) -> AlertSink:
    sink = lab.add()
    await sink.open(EPOCH)
    return sink


def states(lab: AlertNodes) -> list[str]:
    return [state for _, state in lab.told]


async def test_an_alert_goes_on_at_the_next_node(lab: AlertNodes) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 99)
    await lab.reads(3, 99)
    await lab.hand_to(two)  # pending for 3 s
    assert one.active() == []
    assert [view.state for view in two.active()] == ["pending"]
    await lab.reads(6, 99)
    await lab.quiet()
    assert states(lab) == ["firing"]
    await lab.hand_to(one)
    await lab.quiet()
    assert states(lab) == ["firing"]  # told already
    (view,) = one.active()
    acknowledged = await one.acknowledge(view.alert_id, "ann", "")
    assert acknowledged is not None
    await lab.quiet()
    await lab.hand_to(two)
    assert [view.acked_by for view in two.active()] == ["ann"]
    await lab.reads(7, 20)
    await lab.quiet()
    assert states(lab) == ["firing", "acknowledged", "resolved"]


async def test_an_alert_that_was_told_is_not_told_again_after_a_crash(lab: AlertNodes) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 99)
    await lab.reads(6, 99)
    await lab.quiet()
    assert states(lab) == ["firing"]
    await lab.hand_to(two, crash=True)
    await lab.quiet()
    assert states(lab) == ["firing"]
    await lab.reads(8, 20)
    await lab.quiet()
    assert states(lab) == ["firing", "resolved"]


async def test_what_is_told_while_its_state_is_being_kept_is_not_told_again(
    lab: AlertNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    assert one._store is not None
    real = one._store.pending
    seen: list[Message] = []

    async def told_meanwhile() -> list[Message]:
        waiting = await real()
        lab.may_tell.set()
        for message in waiting:
            while message in await real():
                await asyncio.sleep(0.001)
        seen.extend(waiting)
        return waiting

    await lab.reads(0, 99)
    lab.may_tell.clear()
    await lab.reads(6, 99)  # committed: the outbox is about to tell it
    monkeypatch.setattr(one._store, "pending", told_meanwhile)
    assert one._hand_over is not None
    async with one._lock:
        await one._keep([lab.partition])
    monkeypatch.undo()
    assert [message.target for message in seen] == ["mqtt"]
    await lab.quiet()
    await lab.hand_to(two, crash=True)
    await lab.quiet()
    assert states(lab) == ["firing"]


async def test_a_file_that_cannot_be_written_does_not_hold_a_partition(
    lab: AlertNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 99)
    assert one._store is not None

    async def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(one._store, "drop", full)
    await lab.hand_to(two)
    assert lab.partition not in one._engines
    assert [view.state for view in two.active()] == ["pending"]


async def test_a_file_that_cannot_be_read_is_closed_all_the_same(
    lab: AlertNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 99)
    assert one._store is not None

    async def broken() -> None:
        raise sqlite3.OperationalError("disk I/O error")

    monkeypatch.setattr(one._store, "pending", broken)
    await one.close()
    assert one._store is None


async def test_what_was_not_told_is_told_by_the_next_node(
    lab: AlertNodes, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    for task in one._tasks:  # it decides, and its messages go nowhere
        task.cancel()
    await lab.reads(0, 99)
    await lab.reads(6, 99)
    await lab.reads(8, 20)
    assert lab.told == []
    await lab.hand_to(two, crash=True)
    await lab.quiet()
    assert states(lab) == ["firing", "resolved"]


async def test_deadlines_go_on_and_silence_is_not_made_up(tmp_path: Path) -> None:
    lab = AlertNodes(tmp_path, silent(absent_s=10.0))
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 1)
    await lab.hand_to(two, crash=True)
    lab.holder = None
    await lab.reads(8, 1)  # while nobody had it
    await lab.hand_to(two)
    lab.clock.advance(5)  # second 13: 5 s of silence
    await lab.quiet()
    assert lab.told == []
    lab.clock.advance(6)
    await lab.quiet()
    assert states(lab) == ["firing"]
    await lab.close()


async def test_a_holder_that_does_not_know_yet_is_refused(lab: AlertNodes) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 99)
    await lab.hand_to(two, silent=True)
    await lab.reads(6, 99)
    await lab.quiet()
    await lab.write(one, lab._stream[-1])  # it would tell, keeps its state before, and is refused
    with pytest.raises(SinkFenced):
        await lab.write(one, lab._stream[-1])
    await tick(one)
    assert states(lab) == ["firing"]
    assert await one._store.pending() == []  # type: ignore[union-attr]


async def test_a_node_that_restarts_does_not_tell_what_others_have_told(
    tmp_path: Path, lab: AlertNodes
) -> None:
    one, two = await opened(lab), await opened(lab)
    await lab.hand_to(one)
    for task in one._tasks:
        task.cancel()
    await lab.reads(0, 99)
    await lab.reads(6, 99)  # queued in its own file
    await lab.hand_to(two, crash=True)
    await lab.quiet()
    await one.open(EPOCH)
    assert await one._store.pending() == []  # type: ignore[union-attr]
    await lab.hand_to(one)
    await lab.quiet()
    assert states(lab) == ["firing"]


async def test_the_stream_keeps_what_no_state_has(lab: AlertNodes) -> None:
    one = await opened(lab)
    await lab.hand_to(one)
    await lab.reads(0, 20)
    kept = one.kept()
    assert kept is not None
    assert kept[lab.partition] <= 1
    await lab.reads(1, 99)
    await lab.reads(7, 99)  # told: what was told is kept before
    await lab.quiet()
    assert (one.kept() or {})[lab.partition] == 3


async def test_a_node_shows_what_happened_while_it_was_away_and_before_it_joined(
    tmp_path: Path, lab: AlertNodes
) -> None:
    store = await AlertStore.open(tmp_path / "alerts-0.db", history_max=100, outbox_max=5)
    old = [Transition("firing", f"old{n}", "hot", "critical", "d", "", n, n, 9.0) for n in (1, 2)]
    await store.commit(Changes(history=old), 1)  # of when the node was alone
    await store.close()
    one, two = await opened(lab), await opened(lab)
    for _ in range(2):
        await lab.hand_to(two)
        await lab.reads(0, 99)
        await lab.reads(6, 99)
        await lab.quiet()
        said = [one.alert_id for one in await lab.history(one)]
        assert said[1:] == ["old2", "old1"]
        assert [one.alert_id for one in await lab.history(two)] == said[:1]
        await one.close()
        await one.open(EPOCH)


async def test_the_copy_of_the_history_is_bounded(tmp_path: Path) -> None:
    store = await AlertStore.open(tmp_path / "alerts.db", history_max=100, outbox_max=5)
    await store.share_history()
    for n in range(0, 250, 10):
        some = [
            Transition("firing", f"a{m}", "hot", "low", "d", "", m, m, 9.0)
            for m in range(n, n + 10)
        ]
        await store.copy_history(HistoryRow((n << 12) + m, one) for m, one in enumerate(some, 1))
        await store.copy_history([HistoryRow((n << 12) + 20, some[0])])  # decided once more
    rows = await store.history(rule=None, device=None, before=None, limit=1000)
    await store.close()
    assert [row.transition.alert_id for row in rows[:100]] == [f"a{m}" for m in range(249, 149, -1)]
    assert len(rows) <= 101


def what(event: AlertEventView) -> tuple[object, ...]:
    return event.alert_id, event.state, event.at_us, event.value


@pytest.mark.parametrize("seed", range(6))
async def test_any_history_of_moves_is_told_like_that_of_one_node(
    tmp_path: Path, seed: int
) -> None:
    """Orderly moves: exactly the same messages. With crashes: the same, some perhaps again."""
    rng = random.Random(seed)
    readings = [(float(at), rng.choice((20, 99))) for at in range(0, 120, 2)]
    (tmp_path / "alone").mkdir()
    alone = AlertNodes(tmp_path / "alone", hot(for_s=3.0))
    await alone.hand_to(await opened(alone))
    moved = AlertNodes(tmp_path, hot(for_s=3.0))
    await moved.hand_to(await opened(moved))
    crashes = 0
    for at, value in readings:
        await alone.reads(at, value)
        await alone.quiet()
        await moved.reads(at, value)
        if rng.random() < 0.8:
            await moved.quiet()
        if rng.random() < 0.25:
            crash = seed % 2 == 1 and rng.random() < 0.5
            crashes += crash
            await moved.hand_to(await opened(moved), crash=crash)
    await moved.quiet()
    shown = [await moved.history(one) for one in moved.nodes if one._store is not None]
    assert all(one == shown[0] for one in shown)  # ids among it
    assert alone.holder is not None
    assert [what(one) for one in shown[0]] == [what(e) for e in await alone.history(alone.holder)]
    await alone.close()
    await moved.close()
    expected, found = Counter(alone.told), Counter(moved.told)
    assert found.keys() == expected.keys()
    assert expected
    if not crashes:
        assert found == expected
