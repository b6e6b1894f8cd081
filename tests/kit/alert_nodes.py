"""Nodes that hand a partition's alerts to one another, on a stream of the imagination."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bridge.partition import partition_of
from cloud.alerts.config import AlertsConfig, LimitsConfig, RuleConfig
from cloud.alerts.handover import PartitionState, PartitionStates
from cloud.alerts.history import Heard
from cloud.alerts.series import Transition
from cloud.alerts.sink import AlertSink
from cloud.sinks.contract import DecodedEntry, SinkFenced
from cloud.stream.contract import Entry
from cloud.views import AlertEventView
from runtime.clock import ManualClock
from tests.kit.alerts import batch, tick, us

__all__ = ["AlertNodes", "MemoryHistory", "MemoryStates", "StatesOfNode"]

EPOCH = 5


class MemoryStates:
    """What `cloud.cluster.alerts` keeps, in memory."""

    def __init__(self) -> None:
        self.states: dict[int, PartitionState] = {}
        self.tokens: dict[int, int] = {}

    def of_node(self) -> StatesOfNode:
        """Return one node's side of it."""
        return StatesOfNode(self)


class StatesOfNode:
    """One node's claims."""

    def __init__(self, shared: MemoryStates) -> None:
        self._shared = shared
        self._mine: dict[int, int] = {}

    async def claim(self, tokens: Mapping[int, int]) -> dict[int, PartitionState | None]:
        lost = {p for p, token in tokens.items() if self._shared.tokens.get(p, 0) > token}
        for partition in tokens.keys() - lost:
            self._shared.tokens[partition] = self._mine[partition] = tokens[partition]
        if lost:
            raise SinkFenced(frozenset(lost))
        return {p: self._shared.states.get(p) for p in tokens}

    async def keep(self, states: Mapping[int, PartitionState]) -> frozenset[int]:
        await asyncio.sleep(0)
        lost = frozenset(p for p in states if self._shared.tokens[p] != self._mine.get(p))
        self._shared.states.update({p: one for p, one in states.items() if p not in lost})
        return lost


class MemoryHistory:
    """What `cloud.cluster.alert_history` keeps, in memory; whoever adds again is heard again."""

    def __init__(self) -> None:
        self._added: list[Transition] = []
        self._nodes: list[Heard] = []

    async def add(self, transitions: Sequence[Transition], history_max: int) -> None:
        await asyncio.sleep(0)
        first_id = len(self._added) + 1
        self._added += transitions
        for heard in self._nodes:
            heard(first_id, list(transitions))

    def follow(self, heard: Heard) -> None:
        self._nodes.append(heard)
        heard(1, list(self._added))


class AlertNodes:
    """Some nodes, of which one at a time has the partition of device `d`.

    Attributes:
        told: What was published, by whichever node.
        may_tell: Cleared, nothing is published until it is set again.
    """

    def __init__(
        self, folder: Path, *rules: RuleConfig, states: list[PartitionStates] | None = None
    ) -> None:
        self.told: list[tuple[str, str]] = []
        self.may_tell = asyncio.Event()
        self.may_tell.set()
        self.clock = ManualClock(wall_us=us(0))
        self.partition = partition_of("d")
        self._config = AlertsConfig(rule=rules, limits=LimitsConfig(grace_s=0.0))
        self._folder = folder
        self._shared = MemoryStates()
        self._history = MemoryHistory()
        self._states = states
        self._stream: list[DecodedEntry] = []
        self._token = 0
        self.holder: AlertSink | None = None
        self.nodes: list[AlertSink] = []

    def add(self) -> AlertSink:
        """Return another node's sink, not open yet."""
        number = len(self.nodes)
        states = self._states[number] if self._states is not None else self._shared.of_node()
        sink = AlertSink(
            self._config, self._folder / f"alerts-{number}.db", self.clock, self._heads,
            self._publish, states=states, history=self._history,
        )  # fmt: skip
        self.nodes.append(sink)
        return sink

    async def _heads(self) -> Mapping[int, int]:
        return {self.partition: len(self._stream)}

    async def _publish(self, topic: str, payload: bytes) -> None:
        await self.may_tell.wait()
        body: dict[str, Any] = json.loads(payload) if payload else {}
        self.told.append((body.get("id", topic), body.get("state", "")))

    async def hand_to(self, sink: AlertSink, *, crash: bool = False, silent: bool = False) -> None:
        """Let another node have the partition.

        Args:
            sink: Whose turn it is now.
            crash: The holder until now is gone without a word.
            silent: The holder until now does not know yet.
        """
        before = self.holder
        if before is not None and crash:
            await self.kill(before)
        elif before is not None and not silent:
            await before.give_up([self.partition])
            before.turns([])
        self._token += 1
        sink.turns([self.partition])
        positions = await sink.claim({self.partition: self._token})
        self.holder = sink
        at = positions[self.partition]
        for entry in self._stream[at:]:
            await self.write(sink, entry)
        await tick(sink)

    async def kill(self, sink: AlertSink) -> None:
        """End a node's process: what it has not kept is gone."""
        for task in sink._tasks:
            task.cancel()
        await asyncio.gather(*sink._tasks, return_exceptions=True)
        sink._tasks = []
        assert sink._store is not None
        await sink._store.close()
        sink._store = None

    async def reads(self, at: float, value: object) -> None:
        """Append a reading, and let the holder have it."""
        number = len(self._stream) + 1
        made = batch([(at, "devices/d/t", value)], received=at, first_seq=number)
        entry = Entry(self.partition, number, "gw", 7, ((number, number),), 1, us(at), b"")
        self.clock.advance(max(0.0, at - (self.clock.wall_us() - us(0)) / 1e6))
        self._stream.append(DecodedEntry(entry, made.readings, historical=False))
        if self.holder is not None:
            await self.write(self.holder, self._stream[-1])

    async def write(self, sink: AlertSink, entry: DecodedEntry) -> None:
        """Give an entry to a node."""
        await sink.write([entry], {self.partition: entry.entry.position})

    async def history(self, sink: AlertSink) -> list[AlertEventView]:
        """Return what a node shows of what happened, newest first."""
        return await sink.history(rule=None, device=None, before=None, limit=10_000)

    async def quiet(self) -> None:
        """Return once the holder has told all it has to, and the next one would know."""
        assert self.holder is not None
        store = self.holder._store
        assert store is not None
        async with asyncio.timeout(60):
            await tick(self.holder)
            while await store.pending() or self.holder._changes.outbox:
                await asyncio.sleep(0.002)
                await tick(self.holder)
            outbox = self.holder._outbox
            assert outbox is not None
            async with outbox.quiet(10):  # what was told is noted, and the next holder knows
                await tick(self.holder)

    async def close(self) -> None:
        """End all nodes that are open."""
        for sink in self.nodes:
            await sink.close()
