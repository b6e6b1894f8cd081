"""What a lasting session is owed and this node does not keep in memory: it stays in the log.

A session whose client is away, or has as much waiting as half its queue takes, is *behind*: the
reader of the log passes it over and the record's cursor stays. When the client is there and has
taken what it has, the session's shard is read on from where it was left. So memory does not grow
with what waits, nothing that was acknowledged is dropped for want of room, and no publisher has to
wait for a client that is away (the log's own limit: docs/adr/0009-mqtt-across-nodes.md).

Invariant: a session that is not behind has been given, or is done with, everything up to the
reader's position; one that is has everything before `Held.behind`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Final

import structlog

from cloud.cluster.mqtt_fabric import Fabric, FabricError
from cloud.cluster.mqtt_restore import messages_from, owed
from cloud.cluster.mqtt_sessions import Held, SessionRecords
from cloud.cluster.mqtt_wire import Carried, position_of, shard_of
from mqtt.broker.core import Core
from mqtt.server_messages import Message
from mqtt.session import Session

__all__ = ["Backlogs"]

log = structlog.get_logger(component="mqtt-cluster")

_ENTRIES: Final = 100  # read at once
_RETRY_S: Final = 0.2


class Backlogs:
    """The sessions of one node that are behind.

    Args:
        fabric: The engine.
        records: This node's.
        position: Gives the number of the log up to which the reader has handed on.
        message: Makes a message of what was carried; None when it has expired.
    """

    def __init__(
        self,
        fabric: Fabric,
        records: SessionRecords,
        position: Callable[[], int],
        message: Callable[[Carried], Message | None],
    ) -> None:
        self.core: Core
        self.refills = 0
        self._fabric = fabric
        self._records = records
        self._position = position
        self._message = message
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def takes(self, session: Session, size: int, position: int) -> bool:
        """Return True when a message of the log may be given to a session; else it is behind."""
        held = self._records.held.get(session.client_id)
        if held is None:
            return True
        if held.behind:
            return False
        if _has_room(session, size):
            return True
        held.behind = position
        return False

    def look(self, client_id: str) -> None:
        """Read on for a session, if it is behind, its client is there and it has room."""
        held = self._records.held.get(client_id)
        if held is None or not held.behind or client_id in self._tasks:
            return
        session = self.core.registry.sessions.get(client_id)
        if session is None or session.owner is None:
            return
        if 2 * len(session.outbound or ()) > session.policy.messages_half:
            return
        task = asyncio.get_running_loop().create_task(
            self._refill(client_id, held), name="mqtt-backlog"
        )
        self._tasks[client_id] = task
        task.add_done_callback(partial(self._refilled, client_id))

    def look_at_all(self) -> None:
        """As `look`, for every session: room may have come by other ways."""
        for client_id, held in list(self._records.held.items()):
            if held.behind:
                self.look(client_id)

    def _refilled(self, client_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[client_id]
        if not task.cancelled() and task.exception() is not None:
            log.error("mqtt_backlog_failed", error=repr(task.exception()))

    async def _refill(self, client_id: str, held: Held) -> None:
        self.refills += 1
        subject = f"s.{shard_of(client_id)}"
        numbers: dict[str, int] = {}
        while held.behind and self._records.held.get(client_id) is held:
            until = self._position()
            after = (held.behind >> 16) - 1
            try:
                entries = await self._fabric.scan(subject, after, until, _ENTRIES)
            except FabricError:
                await asyncio.sleep(_RETRY_S)
                continue
            session = self.core.registry.sessions.get(client_id)
            if session is None or session.owner is None or not held.behind:
                return
            self.core.refresh()
            for position, carried in messages_from(entries, held.behind, numbers):
                if not self._give(session, held, position, carried):
                    held.behind = position
                    return
            if len(entries) >= _ENTRIES:
                held.behind = position_of(entries[-1].seq + 1, 0)
            elif self._position() == until:
                held.behind = 0
            else:
                held.behind = position_of(until + 1, 0)

    def _give(self, session: Session, held: Held, position: int, carried: Carried) -> bool:
        """Give one message of the log to its session; False when there is no room."""
        if position in held.pending or position in held.done:
            return True
        due = owed(held.record, position, carried)
        if due is None:
            return True
        message = self._message(carried)
        if message is None:
            return True
        if not _has_room(session, message.size):
            return False
        message.store_id = -position
        share = self.core.router.group(due.share) if due.share else None
        now_s = self.core.now_s
        session.offer(message, due.qos, bool(due.retain), due.identifiers, now_s, share)
        return True

    async def stop(self) -> None:
        """End."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _has_room(session: Session, size: int) -> bool:
    """Return True when a message leaves a session's queue no more than half full."""
    if session.owner is None:
        return False
    if not session.outbound:
        return True
    policy = session.policy
    return (
        len(session.outbound) < policy.messages_half
        and session.queued_bytes + size <= policy.bytes_half
        and policy.queued_bytes + size <= policy.total_half
    )
