"""What the next holder of a partition needs to go on with its alerts, and when it is kept.

In a cluster a partition's alerts are one node's at a time. Their state is kept where all nodes find
it (`PartitionStates`): before anything is told, when the partition is given up, and now and then.
Readings since then come again from the stream, and the same readings give the same alerts.

Invariants:
- a state is kept before what it says is told: the next holder knows of it, and tells it if this
  node does not come to it;
- a state names the last position in it, and the stream keeps what lies behind that;
- whoever has claimed a partition last is the only one that can keep its state.

If the process goes between telling a message and keeping that it was told, the next holder sends
it again under the same id.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from bridge.partition import partition_of
from cloud.alerts.engine import RuleEngine, StoredSeries
from cloud.alerts.store import Changes, Message
from cloud.sinks.contract import SinkFenced

__all__ = [
    "KEEP_EVERY_US",
    "HandOver",
    "PartitionState",
    "PartitionStates",
    "partition_of_message",
]

KEEP_EVERY_US = 30_000_000


@dataclass(slots=True, frozen=True)
class PartitionState:
    """The alerts of one partition."""

    stream_epoch: int  # which stream the position is of
    position: int  # everything up to it is in the state
    now_us: int  # the engine's time
    kept_us: int  # wall clock when this was kept
    series: tuple[StoredSeries, ...]
    messages: tuple[Message, ...]  # to be told


class PartitionStates(Protocol):
    """Where states are; raises SinkUnavailable."""

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, PartitionState | None]:
        """Take partitions over and return their states; lower tokens are refused from here on.

        Raises:
            SinkFenced: of some a higher token is known; the others are claimed.
        """
        ...

    async def keep(self, states: Mapping[int, PartitionState]) -> frozenset[int]:
        """Keep states; return the partitions that others have claimed since."""
        ...


class HandOver:
    """The states of the partitions of one node.

    Args:
        states: Where they are.
        stream_epoch: Of the stream that positions are of.

    Attributes:
        fenced: Partitions that another has claimed, as it turned out.
    """

    def __init__(self, states: PartitionStates, stream_epoch: int) -> None:
        self.fenced: set[int] = set()
        self._states = states
        self._stream_epoch = stream_epoch
        self._kept: dict[int, int] = {}  # positions
        self._reached: dict[int, int] = {}  # positions that the engines' state is of
        self._dirty: set[int] = set()
        self._soon: set[int] = set()
        self._due_us = 0

    @property
    def waits(self) -> bool:
        """True when something is to be kept without delay."""
        return bool(self._soon)

    def kept(self) -> dict[int, int]:
        """Return the position that is kept of each partition."""
        return dict(self._kept)

    def reached(self, partition: int, position: int) -> None:
        """Note that a partition's state is of a position now."""
        self._reached[partition] = position
        self._dirty.add(partition)

    def told(self, message: Message) -> None:
        """Note that a message needs no telling any more."""
        self._soon.add(partition_of_message(message))

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, PartitionState | None]:
        """Take partitions over; return their states."""
        found = await self._states.claim(tokens)
        for partition, state in found.items():
            self.fenced.discard(partition)
            same = state is not None and state.stream_epoch == self._stream_epoch
            position = state.position if same and state is not None else 0
            self._kept[partition] = self._reached[partition] = position
        return found

    async def keep(
        self,
        changes: Changes,
        engines: Mapping[int, RuleEngine],
        pending: Callable[[], Awaitable[Iterable[Message]]],
        now_us: int,
        wanted: Collection[int],
    ) -> frozenset[int]:
        """Keep the states of partitions, with what `changes` say of them.

        Args:
            changes: About to be committed.
            engines: By partition, as they stand with `changes`.
            pending: Asks for the messages not told yet, besides those of `changes`.
            now_us: Wall clock.
            wanted: Which; see `wanted`.

        Returns:
            Partitions that others have claimed since: nothing of them may be told.
        """
        soon = self._soon.intersection(wanted)
        self._soon -= soon  # before asking: what is told from here on is kept the next time
        try:
            waiting = await pending()
            lost = await self._keep(changes, engines, waiting, now_us, wanted)
        except BaseException:
            self._soon |= soon
            raise
        self.fenced |= lost
        return lost

    async def _keep(
        self,
        changes: Changes,
        engines: Mapping[int, RuleEngine],
        pending: Iterable[Message],
        now_us: int,
        wanted: Collection[int],
    ) -> frozenset[int]:
        messages: dict[int, dict[tuple[str, str], Message]] = {p: {} for p in wanted}
        for message in (*pending, *changes.outbox):
            of_partition = messages.get(partition_of_message(message))
            if of_partition is not None:
                of_partition[message.target, message.message_id] = message
        states = {
            p: PartitionState(
                self._stream_epoch, self._reached[p], engines[p].now_us, now_us,
                tuple(engines[p].dump()), tuple(messages[p].values()),
            )
            for p in sorted(wanted)
            if p in engines and p in self._reached
        }  # fmt: skip
        lost = await self._states.keep(states) if states else frozenset()
        self._dirty.difference_update(wanted)
        self._kept.update({p: state.position for p, state in states.items() if p not in lost})
        return lost

    def wanted(self, changes: Changes, now_us: int) -> set[int]:
        """Return whose states have to be kept before `changes` are told, or are due."""
        self._dirty.update(partition_of(key[1]) for key in changes.series)
        wanted = self._soon | {partition_of(one.device) for one in changes.history}
        wanted |= {partition_of_message(one) for one in changes.outbox}
        if not 0 <= self._due_us - now_us <= KEEP_EVERY_US:
            self._due_us = now_us + KEEP_EVERY_US
            wanted |= self._dirty
        return wanted

    def forget(self, partitions: Collection[int]) -> None:
        """These are another node's from here on."""
        for partition in partitions:
            self._kept.pop(partition, None)
            self._reached.pop(partition, None)
            self._dirty.discard(partition)
            self._soon.discard(partition)

    def check(self, partitions: Iterable[int]) -> None:
        """Raise SinkFenced when one of them is another's."""
        lost = frozenset(self.fenced.intersection(partitions))
        if lost:
            raise SinkFenced(lost)


def partition_of_message(message: Message) -> int:
    """Return the partition of the device that a message is about."""
    return partition_of(message.thread.split("\0")[1])
