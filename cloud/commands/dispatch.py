"""Commands without an outcome: who carries the device, what goes to gateways here, what is due.

Two hands share the work, on one node the same one:

- the node that follows a device's partition (`CarriersSink`) says which gateway a command is meant
  for, takes it back from one that lost the device, ends it when it expires, and tells the outcome;
- the node a gateway is connected to sends it what is meant for it and notes what it answers.

So nothing is handed over when either moves: the next one finds the command as the store has it.

Invariants:
- a command is sent until its gateway says that it has it; what is final never changes again;
- a command that may be at a gateway does not expire here before that gateway was asked, so that
  what a device has got is never told as expired (for `kept_s`, then it is given up);
- an outcome is told by one node, after it is durable, and noted as told after that: if the process
  goes between the two it is told again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from dataclasses import replace
from typing import Any

import structlog

from bridge.commands import (
    DELIVERED,
    DOWN_PREFIX,
    EXPIRED,
    FINAL,
    HELD,
    HELD_IDS_MAX,
    NO_DEVICE,
    NO_EXPIRY,
    Command,
    HoldsCommands,
    Message,
    Outcome,
    Recall,
    seal_message,
)
from cloud.commands.carriers import CarriersSink
from cloud.commands.config import CommandsConfig
from cloud.commands.contract import SENT, WAITING, CommandChanged, CommandRow, CommandStore
from cloud.commands.outcomes import publish_outcome
from cloud.database import DatabaseError
from cloud.query_time import iso
from mqtt.broker.broker import Broker, Outgoing
from runtime.clock import Clock

__all__ = ["Dispatch"]

log = structlog.get_logger(component="commands")

_AT_ONCE = 32
_TRIES_MAX = 20  # of a change that others are quicker with


class Dispatch:
    """The commands of one node.

    Args:
        config: Times.
        store: Where commands are.
        carriers: Who carries which device.
        broker: Ours.
        clock: Time.
        wake: Called when there is something to look at.

    Attributes:
        open: Commands without an outcome that was told, by id.
        counts: Outcomes by state that this node has noted, since the start.
    """

    def __init__(
        self,
        config: CommandsConfig,
        store: CommandStore,
        carriers: CarriersSink,
        broker: Broker,
        clock: Clock,
        wake: Callable[[], None],
    ) -> None:
        self.open: dict[str, CommandRow] = {}
        self.counts: dict[str, int] = {}
        self._config = config
        self._store = store
        self._carriers = carriers
        self._broker = broker
        self._clock = clock
        self._wake = wake
        self._ready: set[str] = set()  # gateways that said hello here and still listen
        self._sent: dict[str, tuple[str, float]] = {}  # by id: gateway, monotonic time
        self._recalls: set[tuple[str, str]] = set()  # (gateway, id) not answered
        self._recalls_due: set[tuple[str, str]] = set()
        self._touched: set[str] = set()  # ids to be looked at soon
        self._settled: dict[str, int] = {}  # told here, and the store's watch has yet to say so

    async def resume(self) -> None:
        """Take up what is there; raises DatabaseError."""
        self.take(await self._store.unfinished())
        self._recalls = set(await self._store.recalls())
        await self._store.watch(self)

    def take(self, rows: Iterable[CommandRow]) -> None:
        """Take commands that are durable."""
        for row in rows:
            if row.state not in FINAL or not row.told:
                self._put(row)
                self._touched.add(row.command_id)
        self._wake()

    # ---- what others do (CommandWatcher) ---------------------------------------------------------

    def row_changed(self, row: CommandRow) -> None:
        """Another node, or this one a moment ago, has changed a command."""
        if row.revision <= self._settled.get(row.command_id, 0):
            return
        if row.state in FINAL and row.told:
            self.row_gone(row.command_id)
        elif self._put(row):
            self._touched.add(row.command_id)
            self._wake()

    def row_gone(self, command_id: str) -> None:
        """A command needs nothing any more."""
        self.open.pop(command_id, None)
        self._sent.pop(command_id, None)
        self._settled.pop(command_id, None)

    def recall_changed(self, gateway: str, command_id: str, *, there: bool) -> None:
        """A recall is to be sent by whoever has the gateway, or was answered."""
        recall = (gateway, command_id)
        if not there:
            self._recalls.discard(recall)
        elif recall not in self._recalls:
            self._recalls.add(recall)
            self._recalls_due.add(recall)
            self._wake()

    def moved(self, devices: Collection[str]) -> None:
        """Devices are carried by another gateway than before; none named: any may be."""
        self._touched.update(
            row.command_id for row in self.open.values() if not devices or row.device in devices
        )
        self._wake()

    # ---- gateways --------------------------------------------------------------------------------

    async def greeted(self, gateway: str, answer: Message) -> None:
        """A gateway listens here: all it lacks goes out again, after an answer."""
        self._ready.add(gateway)
        self._sent = {one: sent for one, sent in self._sent.items() if sent[0] != gateway}
        await self._send(gateway, answer)
        for target, command_id in sorted(self._recalls):
            if target == gateway:
                await self._send(gateway, Recall(command_id))
        mine = [row for row in self.open.values() if row.gateway == gateway]
        held = [row.command_id for row in mine if row.state == HELD]
        for first in range(0, len(held), HELD_IDS_MAX):
            await self._send(gateway, HoldsCommands(tuple(held[first : first + HELD_IDS_MAX])))
        self._touched.update(row.command_id for row in mine)

    async def hear(self, gateway: str, outcome: Outcome) -> None:
        """Note what a gateway says of a command; durable on return. Raises DatabaseError."""
        command_id = outcome.command_id
        if outcome.state != HELD and (gateway, command_id) in self._recalls:
            await self._store.recalled(gateway, command_id)
            self._recalls.discard((gateway, command_id))
        for _ in range(_TRIES_MAX):
            row = self.open.get(command_id) or await self._store.find(command_id)
            if row is None or row.state in FINAL:
                return  # it is settled, or nobody knows it
            try:
                await self._note(gateway, outcome, row)
            except CommandChanged:
                await self._refresh(command_id)
            else:
                return
        raise DatabaseError(f"command {command_id}: others change it all the time")

    async def _note(self, gateway: str, outcome: Outcome, row: CommandRow) -> None:
        if outcome.state in (DELIVERED, EXPIRED) or (
            outcome.state == NO_DEVICE and not await self._elsewhere(gateway, row.device)
        ):
            if row.gateway not in ("", gateway):  # another has it as well
                await self._recall(row.gateway, row.command_id)
            await self._finish(replace(row, gateway=gateway), outcome.state, outcome.detail)
        elif outcome.state == HELD:
            if row.gateway == gateway:
                await self._change(row, state=HELD)
            else:
                await self._recall(gateway, row.command_id)
        elif row.gateway == gateway:  # recalled there, or the device is elsewhere now
            self._sent.pop(row.command_id, None)
            await self._change(row, state=WAITING)
            self._touched.add(row.command_id)

    async def _elsewhere(self, gateway: str, device: str) -> bool:
        if self._carriers.follows(device):
            carrier = self._carriers.carries(device)
        else:
            carrier = await self._store.carrier(device)
        return carrier not in (None, gateway)

    async def _recall(self, gateway: str, command_id: str) -> None:
        await self._store.recall(gateway, command_id)
        self._recalls.add((gateway, command_id))
        await self._send(gateway, Recall(command_id))

    # ---- what is due -----------------------------------------------------------------------------

    async def look(self, *, everywhere: bool) -> None:
        """Send, send again, move, expire and tell whatever is due; raises DatabaseError.

        Args:
            everywhere: Look at every command, not only at those of which something was heard.
        """
        recalls, self._recalls_due = self._recalls_due, set()
        for gateway, command_id in sorted(recalls):
            await self._send(gateway, Recall(command_id))
        touched, self._touched = self._touched, set()
        rows = [row for one, row in self.open.items() if everywhere or one in touched]
        rows.sort(key=lambda row: row.created_us)  # a device's commands keep their order
        try:
            await _some_at_once(self._decide, [row.command_id for row in rows])
        except BaseException:
            self._touched |= touched  # they are looked at again
            raise
        for one in rows:
            row = self.open.get(one.command_id)  # as it stands by now
            if row is None or row.state not in (WAITING, SENT) or row.gateway not in self._ready:
                continue
            try:
                await self._dispatch(row)
            except CommandChanged:
                await self._refresh(row.command_id)
                self._touched.add(row.command_id)

    async def _decide(self, command_id: str) -> None:
        """Do what the node that follows the device has to."""
        row = self.open.get(command_id)
        if row is None or not self._carriers.follows(row.device):
            return
        try:
            if row.state in FINAL:
                await self._tell(row)
            elif row.state in (SENT, HELD):
                await self._follow_device(row)
            elif row.expires_us <= self._clock.wall_us():
                await self._finish(row, EXPIRED, f"not delivered by {iso(row.expires_us)}")
            else:
                await self._assign(row)
        except CommandChanged:
            await self._refresh(command_id)
            self._touched.add(command_id)

    async def _follow_device(self, row: CommandRow) -> None:
        """Move a command that a gateway may have for a device which another one carries now."""
        if row.expires_us + round(self._config.kept_s * 1e6) <= self._clock.wall_us():
            await self._finish(row, EXPIRED, f"not delivered by {iso(row.expires_us)}")
            return
        carrier = self._carriers.carries(row.device) or row.gateway
        if carrier == row.gateway:
            return
        recall = (row.gateway, row.command_id)
        self._sent.pop(row.command_id, None)
        self._recalls.add(recall)
        await self._change(row, recall=recall, gateway=carrier, state=WAITING)
        await self._send(row.gateway, Recall(row.command_id))

    async def _assign(self, row: CommandRow) -> None:
        """Note the gateway that a waiting command is meant for."""
        gateway = self._carriers.carries(row.device)
        if gateway is None:
            await self._finish(row, NO_DEVICE, "no gateway has ever carried it")
        elif self._store.is_node(gateway):  # connected to the cloud: routed when it was published
            known = self._broker.has_subscribers(row.topic)
            detail = "by the cloud's own broker, not confirmed" if known else "nobody subscribes"
            state = DELIVERED if known else NO_DEVICE
            await self._finish(replace(row, gateway=gateway), state, detail)
        elif row.gateway != gateway:
            await self._change(row, gateway=gateway)

    async def _dispatch(self, row: CommandRow) -> None:
        """Send a command to its gateway, unless that was just done; ask once it is too late."""
        now_s, now_us = self._clock.monotonic_s(), self._clock.wall_us()
        sent = self._sent.get(row.command_id)
        if sent and sent[0] == row.gateway and now_s - sent[1] < self._config.retry_s:
            return
        if not self._listens(row.gateway):
            return
        if row.expires_us <= now_us:
            if row.state == SENT:
                self._sent[row.command_id] = (row.gateway, now_s)
                await self._send(row.gateway, HoldsCommands((row.command_id,)))
            return
        body = await self._store.body(row)
        if body is None:
            return  # its outcome was told this moment
        if row.state == WAITING:
            row = await self._change(row, state=SENT)
        left_s = max(1, min(NO_EXPIRY - 1, round((row.expires_us - now_us) / 1e6)))
        self._sent[row.command_id] = (row.gateway, now_s)
        command = Command(row.command_id, row.device, row.topic, body.payload, row.qos,
                          body.properties, left_s)  # fmt: skip
        await self._send(row.gateway, command)

    def _listens(self, gateway: str) -> bool:
        if gateway in self._ready and not self._broker.has_subscribers(
            DOWN_PREFIX + gateway, here=True
        ):
            self._ready.discard(gateway)
        return gateway in self._ready

    async def _send(self, gateway: str, message: Message) -> None:
        """Send something down, if the gateway listens here."""
        if self._listens(gateway):
            topic = DOWN_PREFIX + gateway
            await self._broker.publish_many([Outgoing(topic, seal_message(message), 1)])

    async def _finish(self, row: CommandRow, state: str, detail: str) -> None:
        row = await self._change(row, state=state, detail=detail, told=False)
        self._sent.pop(row.command_id, None)
        self.counts[state] = self.counts.get(state, 0) + 1
        if self._carriers.follows(row.device):
            await self._tell(row)

    async def _tell(self, row: CommandRow) -> None:
        """Publish an outcome, and note that it was."""
        body = await self._store.body(row) if row.response_topic else None
        await publish_outcome(self._broker, row, body)
        if row.revision:
            self._settled[row.command_id] = row.revision  # until the watch says that it is told
        try:
            await self._store.save(replace(row, told=True))
        except BaseException:
            self._settled.pop(row.command_id, None)
            raise
        self.open.pop(row.command_id, None)
        self._sent.pop(row.command_id, None)

    # ---- helpers ---------------------------------------------------------------------------------

    def _put(self, row: CommandRow) -> bool:
        """Take a row unless a newer one is known."""
        known = self.open.get(row.command_id)
        if known is not None and known.revision > row.revision:
            return False
        self.open[row.command_id] = row
        return known is None or known.revision != row.revision

    async def _change(
        self, row: CommandRow, recall: tuple[str, str] | None = None, **fields: Any
    ) -> CommandRow:
        changed = replace(row, changed_us=self._clock.wall_us(), **fields)
        saved = await self._store.save(changed, recall)
        self._put(saved)
        return saved

    async def _refresh(self, command_id: str) -> None:
        """Read what another node has made of a command."""
        row = await self._store.find(command_id)
        if row is None or (row.state in FINAL and row.told):
            self.row_gone(command_id)
        else:
            self._put(row)


async def _some_at_once(work: Callable[[str], Awaitable[None]], ids: Sequence[str]) -> None:
    """Do `work` for all, some at a time in their order; the first failure after all have ended."""
    for first in range(0, len(ids), _AT_ONCE):
        outcomes = await asyncio.gather(
            *(work(one) for one in ids[first : first + _AT_ONCE]), return_exceptions=True
        )
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome
