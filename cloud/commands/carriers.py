"""The sink that follows which gateway last carried each device (cloud/sinks/contract.py).

A device is carried by the gateway of its newest reading in the stream's order; what had waited
through an outage says nothing of where the device is now, unless nothing else is known.

In a cluster each node follows the partitions it holds. Who carried what is read from the store when
a partition comes to this node, so it knows all that its former holder knew; readings that one had
followed and not yet noted come again by the cursor.

Invariant: `carries` answers for a device only while this node follows its partition and has read
what was known of it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

from bridge.partition import PARTITIONS, partition_of
from cloud.commands.contract import CommandChanged, CommandStore
from cloud.database import DatabaseError
from cloud.sinks.contract import DecodedEntry, SinkUnavailable
from cloud.stream.contract import Entry

__all__ = ["CarriersSink"]

_SAVE_ENTRIES = 256  # entries that change nothing before the cursors are saved all the same


class CarriersSink:
    """Follows the devices of the partitions worked on here.

    Args:
        store: Where it lasts; opened and closed here.
        moved: Called with devices that are carried by another gateway than before, and with
            nothing when other partitions are followed from now on.
    """

    name = "commands"
    linger_s = 0.0

    def __init__(self, store: CommandStore, moved: Callable[[Collection[str]], None]) -> None:
        self._store = store
        self._moved = moved
        self._turns: frozenset[int] = frozenset(range(PARTITIONS))
        self._by_partition: dict[int, dict[str, str]] = {}  # those that were read
        self._cursors: dict[int, int] = {}
        self._unsaved = 0

    def follows(self, device: str) -> bool:
        """Return True when this node answers for the device's commands."""
        return partition_of(device) in self._by_partition

    def carries(self, device: str) -> str | None:
        """Return the gateway that last carried a device that this node follows; None: nobody."""
        return self._by_partition[partition_of(device)].get(device)

    async def open(self, stream_epoch: int) -> None:
        """Open the store."""
        await self._store.open(stream_epoch)

    def turns(self, partitions: Collection[int]) -> None:
        """Follow these partitions from here on, once what is known of them was read."""
        self._turns = frozenset(partitions)
        for partition in [one for one in self._by_partition if one not in self._turns]:
            del self._by_partition[partition]

    async def cursors(self) -> Mapping[int, int] | None:
        """Return the positions followed, after what is known of new partitions was read.

        Raises:
            SinkUnavailable: the store cannot be read.
        """
        unread = self._turns - self._by_partition.keys()
        try:
            if unread:
                found = await self._store.carriers(unread)
                read: dict[int, dict[str, str]] = {one: {} for one in unread}
                for device, gateway in found.items():
                    read[partition_of(device)][device] = gateway
                self._by_partition.update(read)
                self._moved(())
            return await self._store.cursors()
        except DatabaseError as error:
            raise SinkUnavailable(str(error)) from error

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Follow the devices of `entries`.

        Raises:
            SinkUnavailable: the store cannot be written now.
        """
        changed: dict[str, str] = {}
        for one in entries:
            gateway = one.entry.gateway
            known = self._by_partition.get(one.entry.partition, {})
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
        for device, gateway in changed.items():
            followed = self._by_partition.get(partition_of(device))
            if followed is not None:
                followed[device] = gateway
        if changed:
            self._moved(changed.keys())

    async def _save(self, changed: Mapping[str, str]) -> None:
        try:
            await self._store.follow(changed, self._cursors)
        except CommandChanged:
            self._by_partition.clear()  # read anew what the other has noted
            await self.cursors()
            raise SinkUnavailable("another node follows some of these devices too") from None
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
