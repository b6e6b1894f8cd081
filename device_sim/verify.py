"""Verification: wait until what was acknowledged is stored, then judge it.

A run's last readings are still on their way when it ends, so the store is counted until it holds
as many as were acknowledged, or the time is up; then it is read whole and judged. A verdict that
is not good is looked at again while rows still arrive.
"""

from __future__ import annotations

import asyncio

from device_sim.judge import History, Judge, Verdict
from device_sim.latency import Latencies
from device_sim.stores import Store
from device_sim.truth import Truth

__all__ = ["verify"]

_POLL_S = 0.25
_POLL_MAX_S = 2.0


async def verify(
    truth: Truth, source: History, store: Store, *, timeout_s: float
) -> tuple[Verdict, Latencies]:
    """Judge a run against a store on which `begin()` was called before the run.

    Args:
        truth: What the run did.
        source: Where its payloads came from.
        store: Where they should be now.
        timeout_s: How long to wait for what is missing.

    Returns:
        The verdict, and the times from a stamped payload's sending to its taking by the cloud.

    Raises:
        VerifyError: the store cannot be read.
    """
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + timeout_s
    judge = await asyncio.to_thread(Judge, truth, source, store.canonical)
    acked = truth.acked()
    pause_s = _POLL_S
    while await store.count() < acked and loop.time() < deadline_s:
        await asyncio.sleep(pause_s)
        pause_s = min(_POLL_MAX_S, pause_s * 1.5)
    while True:
        before = await store.count()
        judge.begin()
        await store.feed(judge.observe)
        verdict = await asyncio.to_thread(judge.verdict)
        left_s = deadline_s - loop.time()
        if verdict.ok or left_s <= 0:
            return verdict, judge.store_latencies
        await asyncio.sleep(min(_POLL_MAX_S, left_s))
        if not verdict.lost and await store.count() == before:
            return verdict, judge.store_latencies
