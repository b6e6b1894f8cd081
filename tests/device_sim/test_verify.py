"""Verification waits for what is on its way, and no longer than it may."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from device_sim import verify as verify_module
from device_sim.stores import SqliteStore, VerifyError, open_store
from device_sim.verify import verify
from tests.device_sim.test_judge import Run
from tests.kit.stored_rows import add_rows, make_storage


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "_POLL_S", 0.01)
    monkeypatch.setattr(verify_module, "_POLL_MAX_S", 0.02)


async def test_rows_that_come_late_are_waited_for(tmp_path: Path) -> None:
    run = Run()
    path = make_storage(tmp_path / "storage.db", run.rows[:20])
    task = asyncio.create_task(verify(run.truth, run.source, open_store(str(path)), timeout_s=10))
    await asyncio.sleep(0.05)
    assert not task.done()
    add_rows(path, run.rows[20:], first_seq=21)
    verdict, times = await task
    assert verdict.ok
    assert times.count() == 30


async def test_what_never_comes_is_lost_when_the_time_is_up(tmp_path: Path) -> None:
    run = Run()
    path = make_storage(tmp_path / "storage.db", run.rows[:-2])
    verdict, _ = await verify(run.truth, run.source, open_store(str(path)), timeout_s=0.05)
    assert verdict.lost == 2


async def test_rows_that_trickle_are_waited_for_past_the_time(tmp_path: Path) -> None:
    run = Run()
    path = make_storage(tmp_path / "storage.db", run.rows[:10])
    late = list(enumerate(run.rows[10:], start=11))
    now_s = 0.0

    class Trickle(SqliteStore):
        async def count(self) -> int:
            nonlocal now_s
            if late:
                seq, row = late.pop(0)
                add_rows(path, [row], first_seq=seq)
                now_s += 4
            return await super().count()

    store = Trickle(path)
    verdict, _ = await verify(run.truth, run.source, store, timeout_s=5, now_s=lambda: now_s)
    assert verdict.ok


async def test_a_fault_that_waiting_cannot_mend_is_told_without_waiting(tmp_path: Path) -> None:
    run = Run()
    path = make_storage(tmp_path / "storage.db", [*run.rows, run.rows[-1]])
    async with asyncio.timeout(60):
        verdict, _ = await verify(run.truth, run.source, open_store(str(path)), timeout_s=3600)
    assert (verdict.lost, verdict.doubled) == (0, 1)


async def test_a_store_that_never_appears_is_told(tmp_path: Path) -> None:
    run = Run()
    store = open_store(str(tmp_path / "storage.db"))
    with pytest.raises(VerifyError, match="no such file"):
        await verify(run.truth, run.source, store, timeout_s=0.05)
