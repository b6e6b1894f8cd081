"""What happened to the alerts of a cluster: one history, of which each node's alerts.db has a copy.

Whoever holds a partition adds to it, before anything of that is told. Every node hears of all in
one order, and copies it, so that a page, an id and a trace are the same wherever one asks.

Invariants:
- An event's id is its place in the shared history: the same at every node, and rising.
- One transition is one event: of those that a next holder decides once more, because the one
  before it has crashed, the first counts.
- What a node has heard and could not write yet is bounded: the newest `history_max`.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import structlog

from cloud.alerts.series import Transition
from cloud.alerts.store import AlertStore, HistoryRow
from runtime.logs import limited

__all__ = ["Heard", "HistoryCopy", "SharedHistory"]

log = structlog.get_logger(component="alerts")

# told of transitions, in order, with the id of the first; the others' follow it
Heard = Callable[[int, Sequence[Transition]], None]


class SharedHistory(Protocol):
    """The history of all nodes."""

    async def add(self, transitions: Sequence[Transition], history_max: int) -> None:
        """Add transitions, durable on return; the newest `history_max` stay, or some more.

        Raises:
            SinkUnavailable: some may not be there; added again, none is there twice.
        """
        ...

    def follow(self, heard: Heard) -> None:
        """Have all there are heard, and from then on all that any node adds."""
        ...


class HistoryCopy:
    """One node's copy.

    Args:
        shared: What all nodes add to.
        store: Has the copy.
        history_max: Events kept.
    """

    def __init__(self, shared: SharedHistory, store: AlertStore, history_max: int) -> None:
        self.history_max = history_max
        self._shared = shared
        self._store = store
        self._news: deque[HistoryRow] = deque()

    async def start(self) -> None:
        """Copy it anew; what the node has from when it was alone stays, before all else."""
        await self._store.share_history()
        self._shared.follow(self._hear)

    async def add(self, transitions: Sequence[Transition]) -> None:
        """Add what this node has decided, durable on return; raises SinkUnavailable."""
        if transitions:
            await self._shared.add(transitions, self.history_max)

    async def write(self) -> None:
        """Write down what was heard; what cannot be written now is tried the next time."""
        news, self._news = self._news, deque()
        if not news:
            return
        try:
            await self._store.copy_history(news)
        except sqlite3.Error as error:
            limited(log, "history_not_copied", 60.0).error("history_not_copied", error=str(error))
            self._news.extendleft(reversed(news))
            self._bound()

    def _hear(self, first_id: int, transitions: Sequence[Transition]) -> None:
        self._news.extend(HistoryRow(first_id + n, one) for n, one in enumerate(transitions))
        self._bound()

    def _bound(self) -> None:
        while len(self._news) > self.history_max:
            self._news.popleft()
