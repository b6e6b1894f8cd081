"""Which rows of a lane are thinned next, and what that makes of them.

A lane is thinned in passes from its oldest row on, each row once: `thinned` in the file says how
far. Left as they are: rows younger than `thin_after_s`, rows of which the cloud has acknowledged
a part, and rows that the uplink has read, for they may be on their way as they were taken.
docs/journal-format.md section 7.

Invariant: the caller holds the journal's writing lock, and keeps others from reading the file
until what was planned is carried out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile

from edge.config import LaneConfig
from edge.contract import Lane
from edge.journal_file import JournalFile
from edge.journal_schema import LANE_KEYS, Row
from edge.journal_state import Head, LaneState
from edge.thinning import Thinned, Thinner, ThinRule

__all__ = ["THIN_BYTES", "Thinning", "ThinningPass"]

THIN_BYTES = 1024 * 1024  # of bodies in one pass: what an aggregate is made of lies within it


@dataclass(slots=True, frozen=True)
class ThinningPass:
    """One pass."""

    thinned: Thinned
    through_seq: int  # the lane is thinned up to here once it is carried out

    @property
    def worthwhile(self) -> bool:
        """True when it makes room."""
        return self.thinned.freed_bytes > 0


class Thinning:
    """Plans the passes of all lanes."""

    def __init__(self, lanes: Mapping[Lane, LaneConfig]) -> None:
        self._after_us = {lane: config.thin_after_s * 1e6 for lane, config in lanes.items()}
        self._thinners = {
            lane: Thinner(rule) for lane, config in lanes.items() if (rule := _rule(config))
        }
        self._through: dict[Lane, int] = {}

    async def plan(
        self, file: JournalFile, lane: Lane, state: LaneState, now: tuple[int, int, int]
    ) -> ThinningPass | None:
        """Return the next pass; None when there is nothing to thin.

        Args:
            file: The journal's file.
            lane: Which lane.
            state: It.
            now: Wall clock in µs, boot, and time since boot in µs.

        Raises:
            JournalError: the file cannot be read.
        """
        thinner = self._thinners.get(lane)
        if thinner is None:
            return None
        if lane not in self._through:
            self._through[lane] = await file.thinned_through(lane)
        after_seq = max(self._through[lane], state.gone_seq)
        rows = await file.rows_from(lane, after_seq + 1, THIN_BYTES)
        rows = list(takewhile(lambda row: _head(row).age_us(*now) >= self._after_us[lane], rows))
        if not rows:
            return None
        free = _untouched(rows, state)
        thinned = await asyncio.to_thread(thinner.thin, free)
        if len(_untouched(free, state)) < len(free):  # trims need no lock
            thinned = Thinned([], [], [], 0)
        last = _head(rows[-1])
        return ThinningPass(thinned, last.first_seq + last.count - 1)

    def done(self, lane: Lane, through_seq: int) -> None:
        """Go on behind `through_seq` the next time."""
        self._through[lane] = through_seq


def _rule(config: LaneConfig) -> ThinRule | None:
    if config.thin == "one-of":
        return ThinRule(keep_one_of=config.thin_keep_one_of)
    if config.thin == "aggregate":
        return ThinRule(interval_us=round(config.thin_interval_s * 1e6))
    return None


def _head(row: Row) -> Head:
    key, count, _, time_us, boot, boot_us, *_ = row
    return Head(key % LANE_KEYS, count, time_us, boot, boot_us)


def _untouched(rows: Sequence[Row], state: LaneState) -> list[Row]:
    """Return the rows of which nothing is read or acknowledged."""
    found: list[Row] = []
    for row in rows:
        head = _head(row)
        last_seq = head.first_seq + head.count - 1
        seen = head.first_seq <= state.gone_seq or any(
            ranges.overlaps(head.first_seq, last_seq) for ranges in (state.read, state.ahead)
        )
        if not seen:
            found.append(row)
    return found
