"""Checkpoints written while a node runs, so that starting stays quick and the ledger short.

And at once when somebody has purged records of the ledger that no checkpoint has, or deleted it, or
the checkpoints themselves: every node that runs has in memory what one that starts would lack.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable

import structlog

from cloud.stream.contract import StreamError
from cloud.stream.jetstream.checkpoint import Checkpoints
from cloud.stream.jetstream.state import LedgerState
from runtime.background import Background
from runtime.logs import limited

__all__ = ["KEEP_RECORDS", "Upkeep"]

log = structlog.get_logger(component="stream")

KEEP_RECORDS = 5_000  # before a checkpoint that stay, for nodes that lag
_RECORDS = 20_000
_BYTES = 16 << 20  # of records: many appends in one make it large
_KEEP_BYTES = 8 << 20
_EVERY_S = 30.0
_LOG_EVERY_S = 30.0


class Upkeep:
    """The checkpoints that one node writes.

    Args:
        checkpoints: Of its cluster.
        state: Of the ledger, as this node has read it.
        usable: Whether that state is still the cluster's.

    Attributes:
        goes_on: The record that a ledger which was made again follows on, and its first; None for
            others.
    """

    def __init__(
        self, checkpoints: Checkpoints, state: LedgerState, usable: Callable[[], bool]
    ) -> None:
        self._checkpoints = checkpoints
        self._state = state
        self._usable = usable
        self._record_bytes = 0  # of records read since the checkpoint this node knows
        self._first = 1  # that the ledger holds
        self._is_gone = False
        self.goes_on: tuple[int, int] | None = None
        self._purge_seen = asyncio.Event()
        background = Background(self._work, "ledger-upkeep")
        self.start = background.start
        self.stop = background.stop

    def took(self, size: int) -> None:
        """Take note of a record's bytes."""
        self._record_bytes += size

    def begins(self, seq: int) -> None:
        """Take note that the ledger holds nothing before `seq` any more."""
        self._first = seq
        self._is_gone = False
        if seq > self._next_after(self._checkpoints.seq):
            self._purge_seen.set()

    def gone(self) -> None:
        """Take note that there is no ledger any more."""
        if not self._is_gone:
            self._is_gone = True
            self._purge_seen.set()

    def _next_after(self, seq: int) -> int:
        """Return the sequence of the record behind a checkpoint."""
        if self.goes_on is not None and seq == self.goes_on[0]:
            return self.goes_on[1]
        return seq + 1

    async def write(self, *, keep_records: int = KEEP_RECORDS) -> bool:
        """Write a checkpoint now; return False when there is one as new.

        Raises:
            StreamError: the one before stands.
        """
        read = self._record_bytes
        written = await self._checkpoints.save(self._state, keep_records=keep_records)
        self._record_bytes -= read
        return written

    async def _work(self) -> None:
        while self._usable():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_EVERY_S * random.uniform(0.75, 1.25)):
                    await self._purge_seen.wait()
            self._purge_seen.clear()
            if not self._usable():
                return
            try:
                await self._look()
            except StreamError as error:
                limited(log, "failed", _LOG_EVERY_S).warning("checkpoint_failed", error=str(error))
                await asyncio.sleep(1)  # another purge may be seen at once
            except Exception:  # the task's root: the next may be written
                log.exception("checkpoint_broke")

    async def _look(self) -> None:
        """Write a checkpoint if one is due."""
        newest = await self._checkpoints.newest()
        if not self._usable():
            return  # what broke it meanwhile may have been taken in part
        missing = self._first - self._next_after(newest)
        records = self._state.seq - self._checkpoints.seq
        if self._is_gone:
            log.error("ledger_gone", hint="a checkpoint keeps what it said; make it again with"
                      " 'tidegate cluster apply --recreate'")  # fmt: skip
        elif missing > 0:
            limited(log, "purged", _LOG_EVERY_S).error(
                "ledger_purged", records=missing, hint="a checkpoint takes their place"
            )
        elif records < _RECORDS and self._record_bytes < _BYTES:
            return
        each = max(1, self._record_bytes // max(1, records))
        await self.write(keep_records=min(KEEP_RECORDS, _KEEP_BYTES // each))
