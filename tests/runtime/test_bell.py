"""A bell wakes all who wait, once."""

from __future__ import annotations

import asyncio
import gc

import pytest

from runtime.bell import Bell


async def test_a_ring_wakes_all_who_wait_and_nobody_who_comes_later() -> None:
    bell = Bell()
    first = [asyncio.create_task(bell.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    bell.ring()
    later = asyncio.create_task(bell.wait())
    await asyncio.gather(*first)
    await asyncio.sleep(0)
    assert not later.done()
    bell.ring()
    await later


async def test_who_gives_up_is_forgotten() -> None:
    bell = Bell()
    waiting = [asyncio.create_task(bell.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
    assert not bell._waiters
    bell.ring()


async def test_a_ring_just_before_the_wait_is_given_up_is_not_a_fault() -> None:
    bell = Bell()
    task = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    bell.ring()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not bell._waiters


async def test_a_failure_is_raised_in_each_who_waits_and_told_to_nobody_else() -> None:
    bell = Bell()
    waiting = [asyncio.create_task(bell.wait()) for _ in range(2)]
    gone = asyncio.create_task(bell.wait())
    await asyncio.sleep(0)
    gone.cancel()
    bell.fail(RuntimeError("closed"))
    for task in waiting:
        with pytest.raises(RuntimeError, match="closed"):
            await task
    await asyncio.gather(gone, return_exceptions=True)
    gc.collect()
