"""A storage.db filled with readings, for what reads it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bridge.intervals import ranges_of
from cloud.alerts.engine import Batch
from cloud.config import StorageConfig
from cloud.sinks.contract import DecodedEntry
from cloud.sinks.storage import StorageSink
from cloud.stream.contract import Entry
from runtime.clock import ManualClock

__all__ = ["stored"]


@asynccontextmanager
async def stored(path: Path, *batches: Batch) -> AsyncIterator[StorageSink]:
    """Write `batches` (tests.kit.alerts.batch) to a storage.db that stays open."""
    sink = StorageSink(path, StorageConfig(), ManualClock())
    await sink.open(1)
    try:
        for position, one in enumerate(batches, 1):
            readings = one.readings
            entry = Entry(
                0, position, one.gateway, one.epoch, tuple(ranges_of(readings.seqs)),
                len(readings), one.received_us, b"",
            )  # fmt: skip
            await sink.write([DecodedEntry(entry, readings, historical=False)], {0: position})
        yield sink
    finally:
        await sink.close()
