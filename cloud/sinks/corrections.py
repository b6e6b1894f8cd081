"""Corrections of clocks as a storage knows them: what is added to the times of which readings.

A gateway says, once its clock is right, by how much the times of a range of seqs were wrong
(bridge/commands.py). Storage corrects the rows it has, and with this what comes later.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from cloud.sinks.contract import DecodedEntry

__all__ = ["Corrections"]


class Corrections:
    """Corrections by source; those of one source do not overlap."""

    __slots__ = ("_by_source",)

    def __init__(self) -> None:
        # by (gateway, epoch): (first_seq, last_seq, delta_us), rising
        self._by_source: dict[tuple[str, int], list[tuple[int, int, int]]] = {}

    def add(self, gateway: str, epoch: int, first_seq: int, last_seq: int, delta_us: int) -> None:
        """Know one more."""
        of_source = self._by_source.setdefault((gateway, epoch), [])
        of_source.append((first_seq, last_seq, delta_us))
        of_source.sort()

    def has_all_of(self, others: Corrections) -> bool:
        """Return whether each correction of `others` is known here too."""
        mine = self._by_source
        return all(set(some) <= set(mine.get(one, ())) for one, some in others._by_source.items())

    def times_us(self, one: DecodedEntry) -> Sequence[int]:
        """Return the times of an entry's readings, corrected where that is known already."""
        of_source = self._by_source.get((one.entry.gateway, one.entry.epoch))
        times = one.readings.times_us
        if of_source is None:
            return times
        corrected = list(times)
        firsts = [first for first, _, _ in of_source]
        for index, seq in enumerate(one.readings.seqs):
            place = bisect_right(firsts, seq) - 1
            if place >= 0 and seq <= of_source[place][1]:
                corrected[index] += of_source[place][2]
        return corrected
