"""Messages on their way out of a node: QoS 0 to other nodes, QoS 1 and 2 into the log.

What comes in one turn of the loop, or while the batch before is under way, leaves as one batch.

Invariants:
- a subject of the log has one batch under way at a time, sent again under its own id until it is
  durable: so its messages keep their order, and come once;
- a batch closes its ticket when it is durable and not before;
- what waits for other nodes is bounded: QoS 0 is dropped and counted, QoS 1 and 2 make `saturated`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from cloud.cluster.mqtt_fabric import Fabric, FabricError, FabricFull
from cloud.cluster.mqtt_tickets import Tickets
from cloud.cluster.mqtt_wire import encode_batch
from runtime.logs import limited

__all__ = ["Outbox"]

log = structlog.get_logger(component="mqtt-cluster")

_BATCH_BYTES = 512 << 10
_BATCH_MESSAGES = 2000
_RETRY_S = (0.05, 0.1, 0.2, 0.5)
_LOG_EVERY_S = 10.0


class _Lane:
    """What waits for one subject of the log."""

    __slots__ = ("busy", "messages", "number", "ticket", "waiting_bytes")

    def __init__(self) -> None:
        self.messages: list[bytes] = []
        self.waiting_bytes = 0
        self.ticket = 0  # of what waits; 0 when nothing does
        self.number = 0  # of the last batch
        self.busy = False


class Outbox:
    """The way out of one node.

    Args:
        fabric: The engine.
        tickets: What answers wait for.
        full: Called when the log has no room; what waits is tried again until it has.
        waiting_bytes_max: Of what is not in the log yet, before the broker stops reading.
    """

    def __init__(
        self,
        fabric: Fabric,
        tickets: Tickets,
        full: Callable[[], None],
        waiting_bytes_max: int = 16 << 20,
    ) -> None:
        self.instance = ""
        self.dropped = 0  # QoS 0 messages that other nodes did not get
        self.logged = 0  # messages appended
        self.batches = 0
        self.waiting_bytes = 0
        self._fabric = fabric
        self._tickets = tickets
        self._full = full
        self._waiting_bytes_max = waiting_bytes_max
        self._direct: dict[str, list[bytes]] = {}
        self._direct_number = 0
        self._scheduled = False
        self._lanes: dict[str, _Lane] = {}
        self._relieved: list[Callable[[], None]] = []
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def saturated(self) -> bool:
        """True when as much waits for the log as is allowed, or the log takes nothing."""
        return self.waiting_bytes > self._waiting_bytes_max

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call back when it is not saturated any more."""
        self._relieved.append(callback)
        self._relieve()

    def to_node(self, instance: str, message: bytes) -> None:
        """Send a message to another node, once at most."""
        messages = self._direct.setdefault(instance, [])
        messages.append(message)
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def to_log(self, subject: str, message: bytes) -> None:
        """Append a message to a subject of the log."""
        lane = self._lanes.get(subject)
        if lane is None:
            lane = self._lanes[subject] = _Lane()
        if not lane.messages and not lane.ticket:
            lane.ticket = self._tickets.open()
        lane.messages.append(message)
        lane.waiting_bytes += len(message)
        self.waiting_bytes += len(message)
        if not lane.busy:
            lane.busy = True
            task = asyncio.get_running_loop().create_task(
                self._run(subject, lane), name=f"mqtt-log-{subject}"
            )
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def once(self, subject: str, message: bytes, message_id: str) -> asyncio.Task[None]:
        """Append one message that several nodes may append; under one id the log has it once."""
        ticket = self._tickets.open()
        data = encode_batch("", 0, [message])
        task = asyncio.get_running_loop().create_task(
            self._once(subject, data, message_id, ticket), name=f"mqtt-log-{subject}"
        )
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def drain(self, timeout_s: float) -> None:
        """Return when all is in the log, or time is up."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=timeout_s)

    async def stop(self) -> None:
        """Give up what is not in the log; nobody was told that it is."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _flush(self) -> None:
        self._scheduled = False
        direct, self._direct = self._direct, {}
        for instance, messages in direct.items():
            for batch in _cut(messages):
                self._direct_number += 1
                data = encode_batch(self.instance, self._direct_number, batch)
                if not self._fabric.send(f"to.{instance}", data):
                    self.dropped += len(batch)

    async def _run(self, subject: str, lane: _Lane) -> None:
        await asyncio.sleep(0)  # what this turn of the loop still brings goes along
        while lane.messages:
            messages, ticket = lane.messages, lane.ticket
            batches = list(_cut(messages))
            lane.messages, lane.ticket = [], 0
            size, lane.waiting_bytes = lane.waiting_bytes, 0
            for batch in batches:
                lane.number += 1
                data = encode_batch(self.instance, lane.number, batch)
                await self._insist(subject, data, f"{self.instance}:{subject}:{lane.number}")
                self.batches += 1
            self.logged += len(messages)
            self.waiting_bytes -= size
            self._tickets.close(ticket)
            self._relieve()
        lane.busy = False

    async def _once(self, subject: str, data: bytes, message_id: str, ticket: int) -> None:
        await self._insist(subject, data, message_id)
        self.logged += 1
        self._tickets.close(ticket)

    async def _insist(self, subject: str, data: bytes, message_id: str) -> None:
        attempt = 0
        while True:
            try:
                await self._fabric.append(subject, data, message_id)
            except FabricError as error:
                if isinstance(error, FabricFull):
                    self._full()
                limited(log, "append", _LOG_EVERY_S).warning(
                    "mqtt_log_takes_nothing", error=str(error)
                )
                await asyncio.sleep(_RETRY_S[min(attempt, len(_RETRY_S) - 1)])
                attempt += 1
            else:
                return

    def _relieve(self) -> None:
        if self._relieved and not self.saturated:
            relieved, self._relieved = self._relieved, []
            for callback in relieved:
                asyncio.get_running_loop().call_soon(callback)


def _cut(messages: list[bytes]) -> list[list[bytes]]:
    """Return messages in batches that are not too large; one that is goes alone."""
    batches: list[list[bytes]] = [[]]
    size = 0
    for message in messages:
        if batches[-1] and (
            size + len(message) > _BATCH_BYTES or len(batches[-1]) >= _BATCH_MESSAGES
        ):
            batches.append([])
            size = 0
        batches[-1].append(message)
        size += len(message)
    return batches
