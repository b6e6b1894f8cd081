"""Corrections of clocks: kept, given to this node's storage, shown in its latest values.

Each node of a cluster does that with every correction, whichever node heard it from the gateway.
Storage and latest values take each once. A storage that has lost what it had (a replica that lagged
was promoted, or a backup put back, under a node that runs) is given all of them again.

Invariant: a gateway is acknowledged after its correction is kept and this node's storage has it.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Callable
from typing import Protocol

import structlog

from bridge.commands import Correction
from cloud.corrections import CorrectionKeeper
from cloud.database import DatabaseError
from cloud.sinks.contract import SinkUnavailable
from cloud.storage import Storage
from cloud.stream.contract import Stream
from runtime.logs import limited

__all__ = ["Clocks", "Shown"]

log = structlog.get_logger(component="commands")

_LOG_EVERY_S = 10.0


class Shown(Protocol):
    """Told of a correction; `known`: storage had it before this start."""

    def __call__(self, gateway: str, correction: Correction, *, known: bool) -> None: ...


class Clocks:
    """The corrections of one node.

    Args:
        keeper: Where they last.
        stream: Knows which readings there are.
        storage: Of this node; None: none.
        shown: Called with each correction, once storage has it.
        wake: Called when `apply_heard` has something to do.
    """

    def __init__(
        self,
        keeper: CorrectionKeeper,
        stream: Stream,
        storage: Storage | None,
        shown: Shown,
        wake: Callable[[], None],
    ) -> None:
        self._keeper = keeper
        self._stream = stream
        self._storage = storage
        self._shown = shown
        self._wake = wake
        self._applied: dict[tuple[str, int, int], Correction] = {}
        self._again: deque[tuple[str, Correction]] = deque()  # storage may have lost them
        # to be given to storage, and whether they were there before this start
        self._waiting: deque[tuple[str, Correction, bool]] = deque()
        self._turn = asyncio.Lock()

    async def start(self) -> None:
        """Give storage all there are: one put back from a backup lacks the newest.

        Storage that cannot be written now gets them later, by `apply_heard`.

        Raises:
            DatabaseError: they cannot be read.
        """
        if self._storage is not None:
            self._storage.on_went_back = self.give_again
        await self._keeper.open()
        found = await self._keeper.all(self._hear)
        self._waiting.extendleft((*one, True) for one in reversed(found))
        try:
            await self.apply_heard()
        except DatabaseError as error:
            log.warning("corrections_wait", error=str(error), waiting=len(self._waiting))
            self._wake()

    async def stop(self) -> None:
        """Release what is kept."""
        await self._keeper.close()

    async def take(self, gateway: str, correction: Correction) -> None:
        """Take a gateway's word; durable and applied here on return. Raises DatabaseError.

        One for readings that nobody has seen is kept all the same: they may yet come.
        """
        if not await self._stream.highest_seq(gateway, correction.epoch):
            log.warning("correction_of_unknown_epoch", gateway=gateway,
                        epoch=f"{correction.epoch:016x}", first_seq=correction.first_seq,
                        last_seq=correction.last_seq)  # fmt: skip
        await self._keeper.add(gateway, correction)
        await self._apply(gateway, correction)

    async def apply_heard(self, *, for_s: float = math.inf) -> None:
        """Apply what was there before, and what other nodes have taken.

        Args:
            for_s: About how long; when some are left then, `wake` is called.

        Raises:
            DatabaseError: storage cannot be written now; the next call goes on from there.
        """
        loop = asyncio.get_running_loop()
        until_s = loop.time() + for_s
        while self._waiting or self._again:
            if self._waiting:
                gateway, correction, is_old = self._waiting[0]
                await self._apply(gateway, correction, is_old=is_old)
                self._waiting.popleft()
            else:
                await self._give_one_again()
            if loop.time() >= until_s:
                if self._waiting or self._again:
                    self._wake()
                return

    async def _give_one_again(self) -> None:
        given = self._again
        rows = await self._store(*given[0])
        if given is self._again:  # else it went back once more, and they are all there again
            _report(*given.popleft(), rows)

    def give_again(self) -> None:
        """Give storage, which has lost some of what it had, all that it was given so far."""
        self._again = deque((gateway, one) for (gateway, _, _), one in self._applied.items())
        if self._again:
            log.warning("corrections_given_again", corrections=len(self._again))
            self._wake()

    def _hear(self, gateway: str, correction: Correction) -> None:
        if _key(gateway, correction) not in self._applied:
            self._waiting.append((gateway, correction, False))
            self._wake()

    async def _apply(self, gateway: str, correction: Correction, *, is_old: bool = False) -> None:
        async with self._turn:
            key = _key(gateway, correction)
            if key in self._applied:
                return
            rows = await self._store(gateway, correction)
            self._applied[key] = correction
            self._shown(gateway, correction, known=is_old and not rows)
        if rows or not is_old:
            _report(gateway, correction, rows)

    async def _store(self, gateway: str, correction: Correction) -> int:
        if self._storage is None:
            return 0
        try:
            return await self._storage.correct(gateway, correction)
        except SinkUnavailable as error:
            raise DatabaseError(str(error)) from error


def _report(gateway: str, correction: Correction, rows: int) -> None:
    limited(log, ("times", gateway), _LOG_EVERY_S).info(
        "times_corrected", gateway=gateway, first_seq=correction.first_seq,
        last_seq=correction.last_seq, seconds=correction.delta_us / 1e6, rows=rows,
    )  # fmt: skip


def _key(gateway: str, correction: Correction) -> tuple[str, int, int]:
    return gateway, correction.epoch, correction.first_seq
