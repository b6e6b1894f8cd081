"""Verification: wait until what was acknowledged is stored, then judge it.

A run's last readings are still on their way when it ends, so the store is counted until it holds
as many as were acknowledged, or nothing has come for a while; then it is read whole and judged. A
verdict that is not good is looked at again while rows still arrive.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from device_sim.judge import History, Judge, Verdict
from device_sim.latency import Latencies
from device_sim.stores import Store
from device_sim.truth import Truth

__all__ = ["verify"]

_POLL_S = 0.25
_POLL_MAX_S = 2.0


async def verify(
    truth: Truth,
    source: History,
    store: Store,
    *,
    timeout_s: float,
    now_s: Callable[[], float] = time.monotonic,
) -> tuple[Verdict, Latencies]:
    """Judge a run against a store on which `begin()` was called before the run.

    Args:
        truth: What the run did.
        source: Where its payloads came from.
        store: Where they should be now.
        timeout_s: How long to wait for what is missing while no row comes; each begins it anew.
        now_s: Tells the time.

    Returns:
        The verdict, and the times from a stamped payload's sending to its taking by the cloud.

    Raises:
        VerifyError: the store cannot be read.
    """
    judge = await asyncio.to_thread(Judge, truth, source, store.canonical)
    acked = truth.acked()
    pause_s = _POLL_S
    found = await store.count()
    grown_s = now_s()
    while found < acked and now_s() < grown_s + timeout_s:
        await asyncio.sleep(pause_s)
        pause_s = min(_POLL_MAX_S, pause_s * 1.5)
        before, found = found, await store.count()
        if found > before:
            grown_s = now_s()
    while True:
        judge.begin()
        await store.feed(judge.observe)
        verdict = await asyncio.to_thread(judge.verdict)
        left_s = grown_s + timeout_s - now_s()
        if verdict.ok or left_s <= 0:
            return verdict, judge.store_latencies
        await asyncio.sleep(min(_POLL_MAX_S, left_s))
        before, found = found, await store.count()
        if found > before:
            grown_s = now_s()
        elif not verdict.lost:
            return verdict, judge.store_latencies
