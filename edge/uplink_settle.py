"""What the cloud has made durable, on its way out of the journal.

Answers come in faster than a disk wants to hear of them: they are gathered here and carried out by
one task, so that no disk write delays the link. What fails is tried again; until it is done the
cloud may get the same once more and drops it by identity.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from bridge.envelope import Tombstone as LinkTombstone
from bridge.intervals import IntervalSet
from edge.contract import JournalReader, Lane, Tombstone

__all__ = ["Settler", "link_tombstones"]

_TOMBSTONES_A_BATCH = 512


class Settler:
    """Trims the journal and forgets its tombstones, behind the acknowledgements."""

    def __init__(self, journal: JournalReader) -> None:
        self._journal = journal
        self._trims: dict[Lane, IntervalSet] = {lane: IntervalSet() for lane in Lane}
        self._settled: list[Tombstone] = []  # acknowledged, not forgotten by the journal yet
        self._reported: set[Tombstone] = set()  # these, and those in flight
        self._generation = -1  # of the batches that `_reported` is about
        self._wake = asyncio.Event()

    def trim(self, lane: Lane, after_seq: int, seq: int) -> None:
        """Have readings of `lane` past `after_seq` up to `seq` forgotten soon."""
        if seq > after_seq:
            self._trims[lane].add(after_seq + 1, seq)
            self._wake.set()

    def forget(self, stones: Sequence[LinkTombstone]) -> None:
        """Have tombstones forgotten soon."""
        if stones:
            self._settled += [_edge_tombstone(stone) for stone in stones]
            self._wake.set()

    def unreported(self, generation: int) -> list[Tombstone]:
        """Return tombstones the cloud has to be told of and that are not on their way.

        Args:
            generation: Of the uplink's state: what went out in an earlier one has to go again.
        """
        stones = self._journal.tombstones()
        if not stones:
            return []
        if self._generation != generation:
            self._generation = generation
            self._reported = set(self._settled)
        return [stone for stone in stones if stone not in self._reported][:_TOMBSTONES_A_BATCH]

    def reported(self, stones: Sequence[Tombstone]) -> None:
        """Note that these are on their way."""
        self._reported.update(stones)

    async def run(self) -> None:
        """Carry out what comes, until cancelled; raises what the journal raises."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.settle()

    async def settle(self) -> None:
        """Carry out everything now; after a failure it is all still to do."""
        try:
            for lane, trims in self._trims.items():
                for first, last in trims.ranges():
                    await self._journal.trim(lane, last, after_seq=first - 1)
                    trims.discard(first, last)
            if self._settled:
                settled = list(self._settled)
                await self._journal.forget_tombstones(settled)
                del self._settled[: len(settled)]
        except BaseException:
            self._wake.set()
            raise


def link_tombstones(stones: Sequence[Tombstone]) -> list[LinkTombstone]:
    """Return tombstones as the link carries them."""
    return [
        LinkTombstone(
            int(stone.lane),
            stone.first_seq,
            stone.last_seq,
            stone.count,
            stone.reason,
            stone.time_us,
        )
        for stone in stones
    ]


def _edge_tombstone(stone: LinkTombstone) -> Tombstone:
    return Tombstone(
        Lane(stone.lane), stone.first_seq, stone.last_seq, stone.count, stone.reason, stone.time_us
    )
