"""Retained messages of a cluster: one state a topic, and every node has them all in memory.

The order of the states decides: whatever was written last is what all nodes end with, deletions
too, after any restart. A node shows its own write at once, and what the cluster made of it when it
is told; so two nodes that write at the same time differ for a moment and then agree.

A node that subscribes has to know what is retained before its SUBACK: it asks the others, each of
which answers once its own writes are durable (`when_written`), and then reads the states up to the
cluster's present end (`when_current`).

Invariant: when nothing of this node is under way for a topic, its router has the newest state seen.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Final

import structlog

from cloud.cluster.mqtt_fabric import Conflict, Fabric, FabricError, State
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import WireError, decode, encode, key_of
from mqtt.broker.changes import RetainedEnded, RetainedSaved
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["RetainedStates"]

log = structlog.get_logger(component="mqtt-cluster")

_RETRY_S: Final = 0.2
_CURRENT_S: Final = 5.0  # longer than that nobody waits for SUBACK
_LOG_EVERY_S: Final = 10.0


class _Write:
    """What this node has under way for one topic."""

    __slots__ = ("change", "seen", "tickets")

    def __init__(self) -> None:
        self.change: RetainedSaved | RetainedEnded | None = None  # not begun yet
        self.tickets: list[tuple[int, int]] = []  # of the answers, of our own
        self.seen: State | None = None  # the newest that came meanwhile


class RetainedStates:
    """The retained messages of a cluster, as one node writes and hears them.

    Args:
        fabric: The engine.
        tickets: What answers wait for.
        clock: Wall clock, for expiries.
        apply: Called with a topic's name and its message, None for none.
    """

    def __init__(
        self,
        fabric: Fabric,
        tickets: Tickets,
        clock: Clock,
        apply: Callable[[str, RetainedSaved | None], None],
    ) -> None:
        self._fabric = fabric
        self._tickets = tickets
        self._own = Tickets()  # of what is written here
        self._clock = clock
        self._apply = apply
        self._known: dict[str, tuple[str, int, int]] = {}  # key -> name, revision, expires_us
        self._writes: dict[str, _Write] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._wanting: list[Callable[[], None]] = []  # to be current
        self._is_asking = False

    def put(self, change: RetainedSaved | RetainedEnded) -> None:
        """Write what was retained or forgotten here."""
        key = key_of("r", change.topic.decode())
        known = self._known.get(key)
        if isinstance(change, RetainedEnded):
            if known is None and key not in self._writes:
                return
            if known is not None and 0 < known[2] <= self._clock.wall_us():
                self._spawn(self._expire(key, known[1]))
                return
        write = self._writes.get(key)
        if write is None:
            write = self._writes[key] = _Write()
            self._spawn(self._run(key, write))
        write.change = change
        write.tickets.append((self._tickets.open(), self._own.open()))

    def seen(self, state: State) -> None:
        """Take what the cluster has for one topic."""
        write = self._writes.get(state.key)
        if write is not None:
            write.seen = state
            return
        known = self._known.get(state.key)
        if known is not None and known[1] >= state.revision:
            return
        if state.value is None:
            if known is not None:
                del self._known[state.key]
                self._apply(known[0], None)
            return
        try:
            change = RetainedSaved(*decode(state.value))
            name = change.topic.decode()
        except (WireError, AttributeError, TypeError, ValueError) as error:
            limited(log, "wire", _LOG_EVERY_S).warning("mqtt_retained_not_read", error=str(error))
            return
        self._known[state.key] = (name, state.revision, change.expires_us)
        self._apply(name, change)

    def when_written(self, callback: Callable[[], object]) -> None:
        """Call back when what was retained or forgotten here until now is durable."""
        self._own.when_done(callback)

    def when_current(self, callback: Callable[[], None]) -> None:
        """Call back when what any node had retained before this call is here; all that ask
        meanwhile are answered together. Where the cluster cannot say, after a few seconds."""
        self._wanting.append(callback)
        if not self._is_asking:
            self._is_asking = True
            self._spawn(self._become_current())

    async def _become_current(self) -> None:
        while self._wanting:
            wanting, self._wanting = self._wanting, []
            try:
                async with asyncio.timeout(_CURRENT_S):
                    await self._fabric.catch_up("r")
            except (FabricError, TimeoutError) as error:
                limited(log, "current", _LOG_EVERY_S).warning(
                    "mqtt_retained_may_lag", error=str(error) or "no answer in time"
                )
            for callback in wanting:
                callback()
        self._is_asking = False

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work, name="mqtt-retained")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, key: str, write: _Write) -> None:
        """Write the newest change of a topic until there is none."""
        revision = 0
        change: RetainedSaved | RetainedEnded | None = None
        while write.change is not None:
            change, write.change = write.change, None
            tickets, write.tickets = write.tickets, []
            value = encode(list(change)) if isinstance(change, RetainedSaved) else None
            revision = await self._insist(key, value)
            for answers, own in tickets:
                self._tickets.close(answers)
                self._own.close(own)
        del self._writes[key]
        if isinstance(change, RetainedSaved):
            name = change.topic.decode()
            self._known[key] = (name, revision, change.expires_us)
        elif change is not None and key in self._known:
            self._known[key] = (self._known[key][0], revision, 0)
        if write.seen is not None:
            self.seen(write.seen)

    async def _insist(self, key: str, value: bytes | None) -> int:
        while True:
            try:
                return await self._fabric.put(key, value, None)
            except FabricError as error:
                limited(log, "retained", _LOG_EVERY_S).warning(
                    "mqtt_retained_not_stored", error=str(error)
                )
                await asyncio.sleep(_RETRY_S)

    async def _expire(self, key: str, revision: int) -> None:
        """Remove what has expired, if it is still that; every node tries, one does."""
        try:
            await self._fabric.put(key, None, revision)
        except (Conflict, FabricError):
            return

    async def stop(self) -> None:
        """End; what was not written was not answered."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
