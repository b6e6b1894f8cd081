"""The sink behind the latest values: keeps the table fed, and rebuilds it after a start.

The table lives in memory, so its cursors are storage's: what storage holds is read from there, in
the background, and what the stream has beyond comes as entries. Both may overlap, in any order,
because a value never goes back in time. Without storage everything the stream still has comes
again.

In a cluster every node has the whole table. Nodes that start at once read a storage that they
share one after the other; until a node has, what comes is shown and the rest is not denied.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import structlog

from bridge.commands import Correction
from cloud.database import DatabaseError
from cloud.latest import Latest
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.sinks.corrections import Corrections
from cloud.storage import StorageReader
from cloud.stream.contract import Entry
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["LatestSink"]

log = structlog.get_logger(component="latest")

_PAUSE_S = 0.5
_PAUSE_MAX_S = 30.0
_LOG_EVERY_S = 60.0
SLICE_S = 0.003  # how long readings may keep the event loop from others


class LatestSink:
    """One consumer of the stream (cloud/sinks/contract.py).

    Attributes:
        name: Names the cursors and metrics.
        linger_s: Values are shown as they come.
    """

    name = "latest"
    linger_s = 0.0

    def __init__(self, latest: Latest, storage: StorageReader | None, clock: Clock) -> None:
        """Prepare; `storage` is None when nothing is stored."""
        self._latest = latest
        self._storage = storage
        self._clock = clock
        self._stream_epoch = 0
        self._cursors: dict[int, int] | None = None
        self._corrections = Corrections()
        self._rebuilding: asyncio.Task[None] | None = None

    async def open(self, stream_epoch: int) -> None:
        """Remember the stream; storage is asked when the cursors are."""
        self._stream_epoch = stream_epoch

    def expect(self, gateway: str, correction: Correction) -> None:
        """Correct the times of readings that come from here on."""
        one = correction
        self._corrections.add(gateway, one.epoch, one.first_seq, one.last_seq, one.delta_us)

    async def cursors(self) -> Mapping[int, int] | None:
        """Return storage's cursors, and begin to read its newest rows; none without storage.

        Raises:
            SinkUnavailable: storage cannot be read now.
        """
        if self._storage is None and self._cursors is None:
            self._cursors = {}
        elif self._storage is not None and self._cursors is None:
            try:
                await self._storage.open()
                self._cursors = await self._storage.positions(self._stream_epoch)
            except DatabaseError as error:
                await self._storage.close()
                raise SinkUnavailable(str(error)) from None
            self._latest.complete = False
            self._rebuilding = asyncio.create_task(
                self._rebuild(self._storage), name="latest-rebuild"
            )
        return self._cursors

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Take the newest readings of `entries`."""
        loop = asyncio.get_running_loop()
        slice_ends_s = loop.time() + SLICE_S
        for one in entries:
            entry = one.entry
            self._latest.receive(
                entry.gateway, entry.epoch, entry.appended_us, one.readings,
                times_us=self._corrections.times_us(one),
                place=(entry.partition, entry.position),
            )  # fmt: skip
            if loop.time() >= slice_ends_s:
                await asyncio.sleep(0)
                slice_ends_s = loop.time() + SLICE_S
        self._move(cursors)

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry."""
        self._move({entry.partition: entry.position})

    def _move(self, cursors: Mapping[int, int]) -> None:
        if self._cursors is not None:
            self._cursors.update(cursors)

    async def close(self) -> None:
        """Stop reading storage."""
        if self._rebuilding is not None:
            self._rebuilding.cancel()
            await asyncio.gather(self._rebuilding, return_exceptions=True)
            self._rebuilding = None
        if self._storage is not None:
            await self._storage.close()

    async def rebuilt(self) -> None:
        """Return when everything storage held at the start is in the table."""
        if self._rebuilding is not None:
            await asyncio.wait([self._rebuilding])

    async def _rebuild(self, storage: StorageReader) -> None:
        started_s = self._clock.monotonic_s()
        pause_s, again = _PAUSE_S, False
        while True:
            try:
                if again:
                    await storage.open()
                devices = await self._latest.rebuild(storage, self._clock.wall_us())
                break
            except DatabaseError as error:
                limited(log, "rebuild", _LOG_EVERY_S).warning("latest_waits", error=str(error))
            finally:
                await storage.close()
            again = True
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)
        self._latest.complete = True
        took_s = self._clock.monotonic_s() - started_s
        log.info("latest_rebuilt", devices=devices, took_s=round(took_s, 3))
