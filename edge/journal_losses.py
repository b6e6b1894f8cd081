"""Which tombstones the journal keeps, and which of them grow instead of getting a neighbour.

A journal at its limit gives up a little again and again: what follows the newest tombstone of its
lane and reason makes that one larger, so that a year at the limit is not a million of them. One
that the uplink has been handed is not grown any more, or the cloud's answer would be about another
range than the file's; only past `TOMBSTONES_MAX` is that given up, and then an answer to the
smaller one forgets nothing.

Invariants:
- A tombstone never covers a reading the cloud has acknowledged.
- The list is changed after the transaction that makes the change true in the file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from edge.contract import Tombstone
from edge.journal_state import JournalState

__all__ = ["Losses"]

JOINED_BACK = 4  # newest tombstones one of which may grow: thinning and evicting take turns
TOMBSTONES_MAX = 4096  # kept apart; past that neighbours are joined although handed out


class Losses:
    """Keeps the list of tombstones in a journal's state.

    Attributes:
        readings: Readings given up since the start of the process, by reason.
    """

    def __init__(self) -> None:
        self.readings: dict[str, int] = {}
        self._handed_out = 0  # tombstones at the front of the list that the uplink has seen

    def joined(self, state: JournalState, tombstone: Tombstone) -> Tombstone:
        """Return the newest tombstone of its kind grown by this one, if it may, else this one."""
        newest = self._newest_like(state, tombstone)
        if newest is None:
            return tombstone
        # what was trimmed in between is not lost
        lane = state.lanes[tombstone.lane]
        if newest.last_seq < lane.gone_seq or lane.ahead:
            return tombstone
        handed_out = state.tombstones.index(newest) < self._handed_out
        if handed_out and len(state.tombstones) <= TOMBSTONES_MAX:
            return tombstone
        count = newest.count + tombstone.count
        return replace(newest, last_seq=tombstone.last_seq, count=count)

    def given_up(self, state: JournalState, tombstone: Tombstone, joined: Tombstone) -> None:
        """Take note of a tombstone that is in the file, perhaps grown out of a newest one."""
        tombstones = state.tombstones
        if joined.first_seq != tombstone.first_seq:
            newest = self._newest_like(state, tombstone)
            assert newest is not None, "it has grown out of one"
            tombstones.remove(newest)
        tombstones.append(joined)
        self._handed_out = min(self._handed_out, len(tombstones) - 1)
        reason = tombstone.reason
        self.readings[reason] = self.readings.get(reason, 0) + tombstone.count

    def recorded(self, state: JournalState, tombstone: Tombstone) -> None:
        """Take note of a tombstone that is in the file; of the same loss there is one."""
        same = (tombstone.lane, tombstone.first_seq, tombstone.reason)
        kept = [t for t in state.tombstones if (t.lane, t.first_seq, t.reason) != same]
        state.tombstones[:] = [*kept, tombstone]
        self._handed_out = min(self._handed_out, len(kept))

    def replaced(
        self, state: JournalState, tombstone: Tombstone, parts: Sequence[Tombstone]
    ) -> None:
        """Take note that a tombstone is others in the file now."""
        at = state.tombstones.index(tombstone)
        state.tombstones[at : at + 1] = parts
        self._handed_out = min(self._handed_out, at)

    def handed_out(self, state: JournalState) -> list[Tombstone]:
        """Return all tombstones for the uplink; none of them grows after this."""
        self._handed_out = len(state.tombstones)
        return list(state.tombstones)

    def known(self, state: JournalState, sent: Sequence[Tombstone]) -> list[Tombstone]:
        """Return those of `sent` that are still kept as they were sent."""
        known = set(state.tombstones)
        return [tombstone for tombstone in sent if tombstone in known]

    def forgotten(self, state: JournalState, gone: Sequence[Tombstone]) -> None:
        """Take note that these are no longer in the file."""
        known = set(gone)
        kept = [tombstone for tombstone in state.tombstones if tombstone not in known]
        self._handed_out = max(0, self._handed_out - len(known))
        state.tombstones[:] = kept

    def _newest_like(self, state: JournalState, tombstone: Tombstone) -> Tombstone | None:
        """Return the last of the newest few tombstones with the same lane and reason."""
        for newest in state.tombstones[: -JOINED_BACK - 1 : -1]:
            if (newest.lane, newest.reason) == (tombstone.lane, tombstone.reason):
                return newest
        return None
