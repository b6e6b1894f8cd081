"""The journal as the uplink sees it: what may be sent under the epoch that the cloud was met in.

While a journal parts (journal_parting.py) it ends where that does; and of an epoch that the cloud
was not met in there is nothing yet. Else it is the journal as it is.

Invariant: what `epoch` says holds for all that is read while it says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from bridge.runs import Origin
from edge.contract import Commit, JournalReader, Lane, Tombstone
from edge.journal_state import Parting

__all__ = ["PartingJournal", "UplinkJournal"]


class PartingJournal(JournalReader, Protocol):
    """A journal whose epoch may change."""

    @property
    def parting(self) -> Parting | None:
        """What is to get another epoch; None: nothing."""
        ...

    @property
    def origin(self) -> Origin | None:
        """Where the epoch parted from another; None: it did not."""
        ...


class UplinkJournal:
    """A journal's readings, as far as they may be sent: a `JournalReader`.

    Args:
        journal: The journal.
    """

    def __init__(self, journal: PartingJournal) -> None:
        self._journal = journal
        self._epoch = journal.epoch
        self._met = False  # the cloud, in the epoch
        self._last_seq = 0  # of it, once it is over

    def met(self) -> bool:
        """Note that the cloud was met in the journal's epoch; return True when that is another."""
        changed = self._epoch != self._journal.epoch
        self._epoch = self._journal.epoch
        self._met = True
        return changed

    def owns(self, epoch: int, seq: int) -> bool:
        """Return True when no other gateway has captured anything else up to a seq of an epoch.

        That is not known before the cloud was met in the journal's epoch, nor while that parts of
        what will have another.
        """
        journal = self._journal
        parting, origin = journal.parting, journal.origin
        if epoch == journal.epoch:
            met = self._met and not self._over
            return met and (parting is None or seq <= parting.after_seq)
        return origin is None or epoch != origin.epoch or seq <= origin.after_seq

    @property
    def epoch(self) -> int:
        return self._epoch

    @property
    def run(self) -> int:
        return self._journal.run

    @property
    def last_seq(self) -> int:
        parting = self._journal.parting
        if self._over:
            return self._last_seq
        last_seq = self._journal.last_seq
        self._last_seq = last_seq if parting is None else min(last_seq, parting.after_seq)
        return self._last_seq

    @property
    def settled_seq(self) -> int | None:
        settled_seq = self._journal.settled_seq
        return None if settled_seq is None else min(settled_seq, self.last_seq)

    @property
    def _over(self) -> bool:
        """True when the journal has begun another epoch, in which the cloud was not met yet."""
        return self._epoch != self._journal.epoch

    def pending(self, lane: Lane, after_seq: int) -> bool:
        parting = self._journal.parting
        if self._over or (parting is not None and after_seq >= parting.lane_ends[lane]):
            return False
        return self._journal.pending(lane, after_seq)

    def seq_before(self, lane: Lane, time_us: int) -> int:
        return min(self._journal.seq_before(lane, time_us), self.last_seq)

    async def wait(self) -> None:
        await self._journal.wait()

    async def read(
        self, lane: Lane, after_seq: int, *, bytes_max: int, through_seq: int | None = None
    ) -> list[Commit]:
        if not self.pending(lane, after_seq):
            return []
        parting = self._journal.parting
        if parting is not None:
            end = parting.lane_ends[lane]
            through_seq = end if through_seq is None else min(through_seq, end)
        return await self._journal.read(
            lane, after_seq, bytes_max=bytes_max, through_seq=through_seq
        )

    async def trim(self, lane: Lane, up_to_seq: int, *, after_seq: int = 0) -> None:
        await self._journal.trim(lane, up_to_seq, after_seq=after_seq)

    async def set_aside(
        self, lane: Lane, first_seq: int, last_seq: int, cause: str, body: bytes
    ) -> None:
        await self._journal.set_aside(lane, first_seq, last_seq, cause, body)

    def tombstones(self) -> Sequence[Tombstone]:
        if self._over:
            return []
        stones, parting = self._journal.tombstones(), self._journal.parting
        if parting is None:
            return stones
        return [stone for stone in stones if stone.last_seq <= parting.after_seq]

    async def forget_tombstones(self, up_to: Sequence[Tombstone]) -> None:
        await self._journal.forget_tombstones(up_to)
