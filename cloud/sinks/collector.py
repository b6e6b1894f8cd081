"""Reads what a sink gets in its next write: of each partition in turn, within the sink's bounds.

Invariants: a partition's entries come in order; one that cannot be decoded is blamed only when it
comes first, so that those before it are written; a partition that cannot be read now holds up
itself alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from itertools import takewhile

from bridge.errors import BatchError
from cloud.sinks.chunk import Chunk
from cloud.sinks.contract import DecodedEntry, WriteBounds
from cloud.sinks.decoded import DecodedEntries
from cloud.sinks.waits import Waits
from cloud.stream.contract import PARTITIONS, Entry, Stream, StreamError

__all__ = ["Collector"]

_READ_ENTRIES_MAX = 512


class Collector:
    """What one sink reads.

    Args:
        stream: Where entries come from.
        decoded: Shared by all sinks.
        bounds: Of one write.
        bulk: The sink wants all of a partition that fits.
        blame: Awaited with an entry that cannot be decoded, and why.
        waits: Told what is read.
    """

    def __init__(
        self,
        stream: Stream,
        decoded: DecodedEntries,
        bounds: WriteBounds,
        *,
        bulk: bool,
        blame: Callable[[Entry, Exception], Awaitable[None]],
        waits: Waits,
    ) -> None:
        self._stream = stream
        self._decoded = decoded
        self._bounds = bounds
        self._bulk = bulk
        self._blame = blame
        self._waits = waits
        self._first_partition = 0
        self._share = 1  # entries of one partition in one write

    async def collect(
        self, positions: Mapping[int, int], leave: Collection[int]
    ) -> tuple[list[DecodedEntry], bool]:
        """Read and decode what comes next.

        Args:
            positions: Where the sink stands in the partitions it works on.
            leave: Those of which nothing is read now.

        Returns:
            The entries; True when there is more to read.

        Raises:
            StreamError: a partition cannot be read, and those before it had nothing.
        """
        chunk = Chunk(self._bounds)
        busy = 0
        until_us: int | None = None
        unread = False
        partitions = range(self._first_partition, self._first_partition + PARTITIONS)
        for partition in (number % PARTITIONS for number in partitions):
            if partition not in positions or partition in leave:
                continue
            if chunk.full:
                self._first_partition = partition  # here the next write begins
                break
            try:
                read, last_us = await self._read_into(
                    chunk, partition, positions[partition], until_us
                )
            except StreamError:
                self._first_partition = (partition + 1) % PARTITIONS  # the others go on without
                if not chunk.entries:
                    raise
                unread = True
                break
            busy += read > 0
            if until_us is None and read >= self._share and not self._bulk:
                until_us = last_us
        if chunk.entries:
            self._share = chunk.share_of(busy)
        return chunk.entries, unread or until_us is not None or chunk.full

    async def first(self, partition: int, after: int) -> tuple[bool, DecodedEntry | None]:
        """Read the first entry past a position.

        Returns:
            Whether there is one; it, None when it was to blame.
        """
        entries = await self._stream.read(partition, after, entries_max=1, bytes_max=1)
        if not entries:
            return False, None
        try:
            return True, self._decoded.get(entries[0])
        except BatchError as error:
            await self._blame(entries[0], error)
            return True, None

    async def _read_into(
        self, chunk: Chunk, partition: int, after: int, until_us: int | None
    ) -> tuple[int, int]:
        """Read what comes next of a partition; with a bulk sink all of it that fits.

        Of a backlog a write takes what came in the same time in all partitions, as far as the
        first of them has its share. So an append, of which most partitions have a part, lies in
        one write, hardly ever in two: where seqs are kept as ranges, one of which some parts are
        missing is as many ranges as it has readings.

        Args:
            chunk: Takes it.
            partition: Which.
            after: Where the sink stands in it.
            until_us: Leave what was appended later; None: nothing.

        Returns:
            How many entries were read, and when the last of them was appended.
        """
        self._waits.on("reading partition {}", partition)
        bytes_max = self._bounds.bytes_max
        read = last_us = 0
        while True:
            entries = await self._stream.read(
                partition,
                after,
                entries_max=_READ_ENTRIES_MAX if self._bulk else self._share,
                bytes_max=max(
                    1, min(chunk.bytes_left, bytes_max if self._bulk else bytes_max // 4)
                ),
            )
            if until_us is not None:
                # as far as the first that came later: a clock set back leaves no gap
                entries = list(takewhile(lambda one: one.appended_us <= until_us, entries))
            if entries:
                read += len(entries)
                last_us = entries[-1].appended_us
            whole = await self._decode_into(chunk, entries)
            if not (self._bulk and whole and entries) or chunk.full:
                return read, last_us
            after = entries[-1].position

    async def _decode_into(self, chunk: Chunk, entries: Sequence[Entry]) -> bool:
        """Add entries to a chunk; return False when one of them could not be taken."""
        for entry in entries:
            if chunk.full:
                return False
            try:
                decoded = self._decoded.get(entry)
            except BatchError as error:
                # those before it are not written yet: it is blamed when it comes first
                if entry is entries[0] and not any(
                    one.entry.partition == entry.partition for one in chunk.entries
                ):
                    await self._blame(entry, error)
                return False
            if chunk.add(decoded):
                await asyncio.sleep(0)
        return True
