"""The sink that follows which gateway last carried each device (cloud/sinks/contract.py).

A device is carried by the gateway of its newest reading in the stream's order; what had waited
through an outage says nothing of where the device is now, unless nothing else is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cloud.commands.store import CommandStore
from cloud.database import DatabaseError
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.stream.contract import Entry

__all__ = ["CarriersSink"]

_SAVE_ENTRIES = 256  # entries that change nothing before the cursors are saved all the same


class CarriersSink:
    """Keeps `carriers`: device -> gateway.

    Args:
        store: Where it lasts; opened and closed here.
        moved: Called with devices that are carried by another gateway than before.
    """

    name = "commands"
    linger_s = 0.0

    def __init__(self, store: CommandStore, moved: Callable[[Sequence[str]], None]) -> None:
        self.carriers: dict[str, str] = {}
        self._store = store
        self._moved = moved
        self._cursors: dict[int, int] = {}
        self._unsaved = 0

    async def open(self, stream_epoch: int) -> None:
        """Open the store and read who carried what."""
        await self._store.open(stream_epoch)
        self.carriers = await self._store.devices()

    async def cursors(self) -> Mapping[int, int]:
        """Return the positions followed."""
        return await self._store.cursors()

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Follow the devices of `entries`.

        Raises:
            SinkUnavailable: the store cannot be written now.
        """
        changed: dict[str, str] = {}
        known = self.carriers
        for one in entries:
            gateway = one.entry.gateway
            used = set(one.readings.source_index)
            for place in used:
                device = one.readings.sources[place][1]
                before = changed.get(device) or known.get(device)
                if before != gateway and not (one.historical and before is not None):
                    changed[device] = gateway
        self._cursors.update(cursors)
        self._unsaved += len(entries)
        if not changed and self._unsaved < _SAVE_ENTRIES:
            return
        await self._save(changed)
        known.update(changed)
        if changed:
            self._moved(list(changed))

    async def _save(self, changed: Mapping[str, str]) -> None:
        try:
            await self._store.follow(changed, self._cursors)
        except DatabaseError as error:
            raise SinkUnavailable(str(error)) from error
        self._cursors.clear()
        self._unsaved = 0

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry without its data."""
        self._cursors[entry.partition] = entry.position
        await self._save({})

    async def close(self) -> None:
        """Save the cursors and close the store."""
        try:
            if self._cursors:
                await self._save({})
        except SinkUnavailable:
            pass  # what was not saved is followed again
        finally:
            await self._store.close()
