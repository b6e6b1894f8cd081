"""Whose turn it is on the link: urgent first, live and backlog by deficit round robin.

Theory of operation (Shreedhar and Varghese, "Efficient Fair Queuing Using Deficit Round Robin",
1995). Each of the two lanes has a deficit, the bytes it may still send in its turn. A turn adds the
lane's share of a round to it; a batch takes its bytes off, and may take more than there is, since
its size is known only once it is made: that debt is paid in later rounds. A lane without readings
has no deficit. What a lane sends while the other has nothing costs nothing: unused share is lent.

Invariant: over any stretch in which both lanes have readings, each gets its share of the bytes but
for two rounds and one batch.
"""

from __future__ import annotations

from collections.abc import Container

from bridge.envelope import LinkLane

__all__ = ["Shares"]

ROUND_BYTES_MIN = 2048
_PAIR = (LinkLane.LIVE, LinkLane.BACKLOG)


class Shares:
    """The turns of one uplink.

    Args:
        backlog_share: Of the link's bytes while both lanes have readings, 0 to 1.
    """

    __slots__ = ("_deficits", "_shares", "_turn", "_waiting")

    def __init__(self, backlog_share: float) -> None:
        self._shares = {LinkLane.LIVE: 1.0 - backlog_share, LinkLane.BACKLOG: backlog_share}
        self._deficits = dict.fromkeys(_PAIR, 0.0)
        self._turn = LinkLane.BACKLOG  # so that the first turn is live's
        self._waiting: Container[LinkLane] = ()

    def next(
        self,
        ready: Container[LinkLane],
        waiting: Container[LinkLane],
        round_bytes: int,
    ) -> LinkLane | None:
        """Return the lane that sends the next batch; None when none is ready.

        Args:
            ready: Lanes with a batch to send now.
            waiting: Lanes with readings, those that still gather included.
            round_bytes: Bytes of one round: what may be sent before every lane had its turn.
        """
        if LinkLane.URGENT in ready:
            return LinkLane.URGENT
        self._waiting = waiting
        for lane in _PAIR:
            if lane not in waiting:
                self._deficits[lane] = 0.0
        wanting = [lane for lane in _PAIR if lane in ready]
        if len(wanting) < 2:
            return wanting[0] if wanting else None
        round_bytes = max(ROUND_BYTES_MIN, round_bytes)
        while self._deficits[self._turn] <= 0:
            self._turn = _PAIR[self._turn is LinkLane.LIVE]
            self._deficits[self._turn] += self._shares[self._turn] * round_bytes
        return self._turn

    def sent(self, lane: LinkLane, batch_bytes: int, round_bytes: int) -> None:
        """Note what a lane has sent: it counts when the other had readings as well."""
        if lane not in _PAIR or not all(each in self._waiting for each in _PAIR):
            return
        # a lane that goes on while the other gathers would owe more and more
        floor = -2.0 * max(batch_bytes, round_bytes)
        self._deficits[lane] = max(self._deficits[lane] - batch_bytes, floor)
