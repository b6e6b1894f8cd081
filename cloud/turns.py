"""Turns at the event loop for work that holds it for long, live readings' before backlog's.

When a fleet comes back, batches of a thousand connections are ready at once. Were each worked on as
it comes, one round of the loop would be all of them, and a live reading would wait for such a round
at every step. So work asks for a turn first. A round of the loop gives turns to what is urgent, as
much as there is up to `URGENT_COST`: it comes whether it is worked on or not. The rest gets turns
while the round has begun less than `ROUND_COST`, and one at least, so that nothing waits for ever.

Invariants: within a class turns are given in the order they were asked for; a round that could
begin something begins something.
"""

from __future__ import annotations

import asyncio

__all__ = ["PIECE_COST", "ROUND_COST", "URGENT_COST", "Turn", "Turns"]

ROUND_COST = 32_000  # about 10 ms on a slow core
URGENT_COST = 8 * ROUND_COST
PIECE_COST = 1_000  # of a piece of work beside the bytes it works on


class Turn:
    """One piece of work's place in the row.

    Attributes:
        later: It is backlog's.
    """

    __slots__ = ("_row", "cost", "future", "later")

    def __init__(self, row: Turns, cost: int, *, later: bool) -> None:
        self._row = row
        self.cost = cost
        self.later = later
        self.future: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def hurry(self) -> None:
        """Make it urgent: something live waits for it."""
        self._row.hurry(self)


class Turns:
    """Gives turns; belongs to one event loop."""

    __slots__ = ("_begun", "_rows", "_running")

    def __init__(self) -> None:
        self._rows: tuple[dict[Turn, None], dict[Turn, None]] = ({}, {})  # urgent; later
        self._begun = 0  # in this round, as cost
        self._running = False  # a next round is to come

    @property
    def waiting(self) -> int:
        """How many wait for a turn."""
        return sum(map(len, self._rows))

    def ask(self, size: int, *, later: bool) -> Turn | None:
        """Return None when it is one's turn at once, else what to wait for by `wait`.

        Args:
            size: Bytes that are worked on.
            later: It is backlog.
        """
        cost = PIECE_COST + size
        if not self._running:
            self._running = True
            asyncio.get_running_loop().call_soon(self._round)
        if self._begun < (ROUND_COST if later else URGENT_COST) and not self._rows[later]:
            self._begun += cost
            return None
        turn = Turn(self, cost, later=later)
        self._rows[later][turn] = None
        return turn

    async def wait(self, turn: Turn) -> None:
        """Return when it is one's turn."""
        try:
            await turn.future
        finally:
            self._rows[turn.later].pop(turn, None)  # cancelled

    def hurry(self, turn: Turn) -> None:
        """Make a turn that was asked for urgent; harmless when it was given."""
        if self._rows[1].pop(turn, self) is None:
            turn.later = False
            self._rows[0][turn] = None

    def _round(self) -> None:
        """Begin the next round."""
        urgent, later = self._rows
        if not urgent and not later and not self._begun:
            self._running = False
            return
        asyncio.get_running_loop().call_soon(self._round)
        self._begun = 0
        while self._begun < URGENT_COST and urgent:
            self._give(urgent)
        if later:
            self._give(later)
        while self._begun < ROUND_COST and later:
            self._give(later)

    def _give(self, row: dict[Turn, None]) -> None:
        turn = next(iter(row))
        del row[turn]
        self._begun += turn.cost
        if not turn.future.done():
            turn.future.set_result(None)
