"""The uplink's byte account on disk: DIR/edge/uplink.json, and what is counted into it.

Bytes are the kernel's own counts of the connection, both ways. What is written is ahead of what was
spent by a reserve, and is written again once half of it is used up, so that after a crash the
account is over by at most that, and under only by what went while a write was under way and was
more than the other half. An orderly stop writes the truth. A file that cannot be read counts as
empty, and is said so.

Days and windows go by the true time as soon as the cloud has told it: a gateway without a clock of
its own begins each boot in 1970 and would otherwise spend the budget of one day for years.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from pathlib import Path

import structlog

from bridge.link_budget import FREE, Budget, BudgetLimits, Verdict, day_of
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["BudgetAccount"]

log = structlog.get_logger(component="uplink")

_RESERVE_BYTES_MIN = 64 * 1024
_RESERVE_SHARE = 0.01  # of a day's budget
_LOG_EVERY_S = 60.0


class BudgetAccount:
    """A budget that outlives the process.

    Args:
        limits: What is allowed.
        path: Where it is kept; None: only in memory.
        clock: Time.
    """

    def __init__(self, limits: BudgetLimits, path: Path | None, clock: Clock) -> None:
        self._clock = clock
        self._path = None if limits.unlimited else path
        self._budget = Budget(limits, _read(self._path))
        share = int(limits.day_bytes * _RESERVE_SHARE)
        self._reserve_bytes = share or _RESERVE_BYTES_MIN
        self._unwritten = self._reserve_bytes  # counted since the last write began
        self._writing: asyncio.Task[None] | None = None
        self._true_offset_us: int | None = None  # true time less the clock since boot
        self._asked = False  # a cloud has answered, with the time or without
        self._by_own: dict[str, int] = {}  # counted since the start, by a clock nobody confirmed

    @property
    def budget(self) -> Budget:
        """The account itself."""
        return self._budget

    def count(self, moved_bytes: int) -> None:
        """Note bytes that went over the link; written down now and then."""
        if not moved_bytes or self._budget.limits.unlimited:
            return
        self._budget.count(moved_bytes, self.now_us())
        if self._true_offset_us is None:
            day = day_of(self.now_us())
            self._by_own[day] = self._by_own.get(day, 0) + moved_bytes
        self._unwritten += moved_bytes
        if self._due and (self._writing is None or self._writing.done()):
            self._writing = asyncio.create_task(self._write_ahead(), name="uplink-budget")

    def now_us(self) -> int:
        """Return the time that days and windows go by: the cloud's once told, else the clock's."""
        if self._true_offset_us is None:
            return self._clock.wall_us()
        return self._true_offset_us + round(self._clock.monotonic_s() * 1e6)

    def told(self, true_us: int) -> None:
        """Take the true time from the cloud's answer; 0: it does not say."""
        self._asked = True
        if not true_us:
            return
        self._true_offset_us = true_us - round(self._clock.monotonic_s() * 1e6)
        self._budget.recount(self._by_own, true_us)
        self._by_own.clear()

    def doubtful(self) -> bool:
        """Return True when the clock is behind a day that was counted, and no cloud was asked.

        What it says of budgets and windows is then no reason not to dial and be told.
        """
        return not self._asked and self._budget.ahead_of(self.now_us())

    @property
    def _due(self) -> bool:
        return self._path is not None and self._unwritten >= self._reserve_bytes / 2

    def verdict(self, lane: int, on_the_way: int) -> Verdict:
        """Return whether `lane` may send a batch now; see `Budget.verdict`."""
        if self._budget.limits.unlimited:
            return FREE
        now_s = self._clock.monotonic_s()
        return self._budget.verdict(lane, on_the_way, now_s, self.now_us())

    async def written(self) -> None:
        """Wait for a write that is under way."""
        if self._writing is not None:
            await self._writing

    async def close(self) -> None:
        """Write the account as it is."""
        await self.written()
        if self._path is not None:
            await self._write(self._budget.days())

    async def _write_ahead(self) -> None:
        while self._due:
            self._unwritten = 0
            ahead = Budget(self._budget.limits, self._budget.days())
            ahead.count(self._reserve_bytes, self.now_us())
            await self._write(ahead.days())

    async def _write(self, days: dict[str, int]) -> None:
        assert self._path is not None
        try:
            await asyncio.to_thread(_replace, self._path, days)
        except OSError as error:  # a full disk must not stop the link that empties it
            limited(log, "budget_not_kept", _LOG_EVERY_S).warning(
                "budget_not_kept", path=str(self._path), error=str(error)
            )


def _read(path: Path | None) -> dict[str, int]:
    if path is None:
        return {}
    try:
        kept = json.loads(path.read_text("utf-8"))
        return {str(day): int(moved) for day, moved in kept["bytes_by_day"].items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError) as error:
        log.warning("budget_unreadable", path=str(path), error=str(error))
        return {}


def _replace(path: Path, days: dict[str, int]) -> None:
    """Write the file anew, durable, so that a crash leaves the old or the new one."""
    new = path.with_suffix(".json.new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        os.write(descriptor, json.dumps({"bytes_by_day": days}, indent=1).encode())
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    new.rename(path)
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
