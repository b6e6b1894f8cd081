"""Leases: one node works on a partition for a sink, the nodes share the partitions evenly.

A lease is a key of a bucket, `{sink}.{partition}`, with a time to live; its value names the node
and the revision at which it was taken, which is the fencing token. The holder renews it every 2 s.
A key that is gone (given up, or its 12 s have passed) is free for whoever creates it first.
Nodes themselves are keys, `node.{id}`, so that each knows how many there are; `drain.{id}` asks one
to have a share of none.

Who has what follows from two numbers every node can see. A node's share is the partitions divided
by the nodes; one that has more gives up a few at a time while another has less, one that has less
takes what is free. Nothing is assigned, nothing is moved that need not be, and two nodes that
want the same free partition are told apart by the bucket. A node that drains has a share of none.
What has been free for as long as a lease lasts, as beside a node too slow to take its share, is
taken by whoever is there, and kept for a while.

Invariants:
- A lease counts as held only until its time to live has passed on this node's own monotonic clock
  since the last renewal was *sent*: others cannot have it earlier.
- A lease that is given up in order is deleted only after the worker has said that it has ended.
- The token of a partition rises from holder to holder: revisions of a bucket only rise.

A shorter time to live would lose leases of nodes that live whenever the bucket's own leader dies:
its election takes 4 to 9 s. DESIGN section 6.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import structlog

from bridge.partition import PARTITIONS
from cloud.cluster.bucket import Bucket, BucketWatch, Conflict, Value, key_token
from cloud.cluster.connection import ClusterError
from cloud.cluster.lease_keys import (
    DRAIN,
    NODE,
    LeaseHolder,
    NodeSeen,
    drain_key,
    holder_of,
    lease_key,
    token_of,
)
from cloud.cluster.lease_share import LyingFree, share_of
from cloud.cluster.lease_view import LeaseView
from cloud.cluster.reading import insist
from cloud.cluster.skew import SkewWatch
from cloud.cluster.versions import VERSION
from runtime.clock import Clock
from runtime.logs import limited

__all__ = [
    "LeaseStats",
    "LeaseTimes",
    "Leases",
]

log = structlog.get_logger(component="leases")

_LOG_EVERY_S = 10.0
_UNREADABLE_EVERY_S = 60.0
_KEPT = 5  # times a lease's own time


@dataclass(slots=True, frozen=True)
class LeaseTimes:
    """How long things last, in seconds."""

    ttl_s: float = 12.0
    renew_s: float = 2.0
    moves_max: int = 8  # partitions of one sink that a node gives up between two renewals


@dataclass(slots=True)
class _Lease:
    """One that is ours, or was a moment ago."""

    token: int  # the revision at which it was taken
    revision: int  # of the last renewal
    until_s: float  # on the monotonic clock: after this others may have it
    leaving: bool = False  # the worker is to end; then it is deleted


@dataclass(slots=True)
class LeaseStats:
    """Counters since start, of one sink."""

    taken: int = 0
    given_up: int = 0
    lost: int = 0  # not renewed in time, or the store knew of a newer holder


class _Held:
    """The `Ownership` (cloud/sinks/ownership.py) of one sink."""

    def __init__(self, sink: str, clock: Clock) -> None:
        self.sink = sink
        self.leases: dict[int, _Lease] = {}
        self.stats = LeaseStats()
        self.given_up = 0  # partitions the worker was told to end with since the last renewal
        self.lost: dict[str, list[int]] = {}  # by cause, not told yet
        self.free = LyingFree()
        self.kept_until_s = 0.0  # nothing is given up before: its owner may still be too slow
        self._clock = clock
        self.unreadable: set[int] = set()  # partitions whose key no node wrote, till next renewal
        self._working: dict[int, int] = {}
        self._news = asyncio.Event()

    def held(self) -> dict[int, int]:
        """Return the token of each partition that may be worked on now."""
        now_s = self._clock.monotonic_s()
        return {
            partition: lease.token
            for partition, lease in self.leases.items()
            if not lease.leaving and now_s < lease.until_s
        }

    async def changed(self, known: Mapping[int, int]) -> None:
        """Return once `held` is not `known` any more."""
        while True:
            self._news.clear()
            if self.held() != known:
                return
            ends = [lease.until_s for lease in self.leases.values() if not lease.leaving]
            left_s = min(ends, default=float("inf")) - self._clock.monotonic_s()
            try:
                async with asyncio.timeout(left_s if ends else None):
                    await self._news.wait()
            except TimeoutError:
                continue  # one may just have run out

    def tell(self) -> None:
        """Wake whoever waits for a change."""
        self._news.set()

    def lose(self, partition: int, cause: str) -> None:
        """Take note that a lease is not this node's any more."""
        del self.leases[partition]
        self.stats.lost += 1
        self.lost.setdefault(cause, []).append(partition)
        self.tell()

    def working(self, tokens: Mapping[int, int]) -> None:
        """Take note of what the worker works on; it has ended with everything else."""
        self._working = dict(tokens)

    def ended(self) -> list[tuple[int, _Lease]]:
        """Return what is to be given up and the worker has ended with."""
        return [
            (partition, lease)
            for partition, lease in self.leases.items()
            if lease.leaving and self._working.get(partition) != lease.token
        ]

    def fenced(self, tokens: Mapping[int, int]) -> None:
        """Take note that others hold partitions: these leases are worth nothing."""
        for partition, token in tokens.items():
            lease = self.leases.get(partition)
            if lease is not None and lease.token == token:
                del self.leases[partition]
                self.stats.lost += 1


class Leases:
    """The leases of one node.

    Args:
        bucket: Where they are.
        node: This node's id; no two nodes of a cluster have the same.
        clock: For the monotonic clock.
        times: How long things last.
        version: Of the layout, that this node knows; the others are told.
    """

    def __init__(
        self,
        bucket: Bucket,
        node: str,
        clock: Clock,
        times: LeaseTimes | None = None,
        *,
        version: int = VERSION,
    ) -> None:
        self.node = node
        self._version = version
        self._bucket = bucket
        self._clock = clock
        self._times = times or LeaseTimes()
        self._groups: dict[str, _Held] = {}
        self._others: set[str] = set()
        self._watch: BucketWatch | None = None
        self._view = LeaseView()
        self._skew = SkewWatch()
        self._wake = asyncio.Event()
        self._looked = asyncio.Event()  # set after each look at what there is to do
        self._task: asyncio.Task[None] | None = None
        self.draining = False
        self._due_s = 0.0  # when to renew and announce next
        self._stopping = False
        self.instance = secrets.token_hex(8)

    def of(self, sink: str) -> _Held:
        """Return the ownership of a sink's partitions on this node.

        Raises:
            ValueError: its leases would be taken for keys of another kind.
        """
        if sink not in self._groups:
            if f"{sink}." in (NODE, DRAIN):
                raise ValueError(f"a sink cannot be named '{sink}': see lease_keys.py")
            self._groups[sink] = _Held(sink, self._clock)  # before `start`, that others know it
        return self._groups[sink]

    def tell(self, sink: str) -> None:
        """Tell the other nodes, from `start` on, of a sink that takes no leases."""
        self._others.add(sink)

    async def start(self) -> None:
        """Join; a drain that was asked for before is over.

        Raises:
            ClusterError: the bucket cannot be read or written.
        """
        patience_s = self._bucket.patience_s
        await insist(lambda: self._bucket.delete(drain_key(self.node)), timeout_s=patience_s)
        await insist(self._announce, timeout_s=patience_s)
        self._watch = await self._bucket.watch(self._changed, poll_s=self._times.renew_s / 2)
        self._task = asyncio.create_task(self._run(), name="leases")

    async def drain(self) -> None:
        """Have a share of none from now on; return once everything is handed over.

        What `tidegate cluster drain` does from outside, by `drain_key`.
        """
        self.begin_drain()
        while any(group.leases for group in self._groups.values()):
            self._looked.clear()
            await self._looked.wait()

    def begin_drain(self) -> None:
        """Have a share of none from now on."""
        self.draining = True
        self._due_s = 0.0  # the others have to know before they may take more
        self._wake.set()

    async def stop(self) -> None:
        """Give up what the workers have ended with, and leave; harmless when not started."""
        if self._task is not None:
            # a renewal under way is heard out: without its revision nothing could be deleted
            self._stopping = True
            self._wake.set()
            await asyncio.wait([self._task], timeout=self._times.renew_s)
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        try:
            # longer would be little sooner than the others take over by themselves
            async with asyncio.timeout(self._times.ttl_s / 2):
                for group in self._groups.values():
                    self._leave(group, list(group.leases))
                    await self._give_up(group)
                await self._bucket.delete(self._node_key)
        except (ClusterError, TimeoutError) as error:
            log.warning("leases_not_given_up", error=str(error) or "no answer in time")
        if self._watch is not None:
            await self._watch.stop()
            self._watch = None

    # ---- what is seen ----------------------------------------------------------------------------

    def nodes(self) -> Sequence[NodeSeen]:
        """Return the nodes there are, by id."""
        return self._view.all_nodes()

    def holders(self) -> Sequence[LeaseHolder]:
        """Return who has what, by sink and partition."""
        return self._view.all_holders()

    def stats(self) -> Mapping[str, LeaseStats]:
        """Return the counters of each sink."""
        return {sink: group.stats for sink, group in self._groups.items()}

    def _changed(self, key: str, value: Value | None) -> None:
        if key == drain_key(self.node) and value is not None and self._task is not None:
            log.info("draining", node=self.node)
            self.begin_drain()
        seen = self._view.take(key, value)
        if seen is not None:
            self._saw(seen)
        self._wake.set()

    def _saw(self, seen: NodeSeen) -> None:
        if self._task is None:
            return  # what was said before this node came
        if seen.node != self.node and seen.time_us is not None:
            self._skew.saw(seen.node, seen.time_us, self._clock.wall_us())
        if seen.node == self.node and seen.instance != self.instance:
            limited(log, "twice", _LOG_EVERY_S).error(
                "node_id_twice", node=self.node, hint="give each cloud node a node_id of its own"
            )

    # ---- the work --------------------------------------------------------------------------------

    async def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            now_s = self._clock.monotonic_s()
            try:
                if now_s >= self._due_s:
                    self._due_s = now_s + self._times.renew_s
                    await self._renew()
                for group in list(self._groups.values()):
                    await self._balance(group)
            except ClusterError as error:
                limited(log, "leases", _LOG_EVERY_S).warning("leases_wait", error=str(error))
            self._drop_expired()
            self._looked.set()
            wait_s = max(0.05, min(self._due_s - self._clock.monotonic_s(), self._times.renew_s))
            # what the workers end with is looked for often: the next holder waits for it
            if any(lease.leaving for g in self._groups.values() for lease in g.leases.values()):
                wait_s = min(wait_s, 0.05)
            try:
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            except TimeoutError:
                continue

    async def _renew(self) -> None:
        """Renew everything at once: each is a message to the bucket's leader."""
        for group in self._groups.values():
            group.given_up = 0
            group.unreadable.clear()
        work = [
            self._renew_one(group, partition, lease)
            for group in self._groups.values()
            for partition, lease in list(group.leases.items())
        ]
        outcomes = await asyncio.gather(self._announce(), *work, return_exceptions=True)
        for outcome in outcomes:
            if isinstance(outcome, BaseException):
                raise outcome

    async def _renew_one(self, group: _Held, partition: int, lease: _Lease) -> None:
        sent_s = self._clock.monotonic_s()
        if sent_s >= lease.until_s:
            return  # it has run out: `_drop_expired` says so
        try:
            lease.revision = await self._bucket.update(
                lease_key(group.sink, partition),
                self._value(lease.token),
                lease.revision,
                ttl_s=self._times.ttl_s,
            )
        except Conflict:
            if await self._still_ours(group.sink, partition, lease):
                return  # the next renewal is in time: nothing is held longer for having looked
            if group.leases.get(partition) is lease:
                group.lose(partition, "no longer ours in the bucket")
            return
        lease.until_s = max(lease.until_s, sent_s + self._times.ttl_s)

    async def _balance(self, group: _Held) -> None:
        """Give up what is beyond this node's share, take what is free within it."""
        await self._give_up(group)
        others = (one for one in self._view.nodes.values() if one.node != self.node)
        active = sorted(
            [self.node]
            + [one.node for one in others if not one.draining and group.sink in one.sinks]
        )
        holders = self._view.holders.get(group.sink, {})
        mine = [p for p, lease in group.leases.items() if not lease.leaving]
        if self.draining:
            self._leave(group, mine)
            return
        rank = active.index(self.node)
        share = share_of(len(active), rank)
        now_s = self._clock.monotonic_s()
        taken = holders.keys() | group.leases.keys() | group.unreadable
        late = group.free.look(taken, now_s, self._times.ttl_s)
        if late:
            before = group.stats.taken
            await self._take_some(group, late, rank, len(active), self._times.moves_max)
            if group.stats.taken > before:
                group.kept_until_s = now_s + _KEPT * self._times.ttl_s
        elif len(mine) > share and now_s >= group.kept_until_s:
            # only while somebody lacks them, so that one who has just come is not flooded
            counts = dict.fromkeys(active, 0)
            for node in holders.values():
                counts[node] = counts.get(node, 0) + 1
            lacking = sum(
                max(0, share_of(len(active), place) - counts[node])
                for place, node in enumerate(active)
                if node != self.node
            )
            free = PARTITIONS - len(holders)
            leaving = len(group.leases) - len(mine)
            spare = min(
                len(mine) - share,
                max(0, lacking - free - leaving),
                self._times.moves_max - group.given_up,
            )
            group.given_up += max(0, spare)
            self._leave(group, sorted(mine)[len(mine) - spare :] if spare > 0 else [])
        elif len(mine) < share:
            free_ones = [p for p in range(PARTITIONS) if p not in taken]
            await self._take_some(group, free_ones, rank, len(active), share - len(mine))

    async def _take_some(
        self, group: _Held, free: list[int], rank: int, nodes: int, count: int
    ) -> None:
        """Take at most so many of the free partitions."""
        # each node begins elsewhere: few want the same one
        start = rank * PARTITIONS // nodes
        wanted = sorted(free, key=lambda p: (p - start) % PARTITIONS)[:count]
        await asyncio.gather(*(self._take(group, partition) for partition in wanted))
        if wanted:
            self._wake.set()  # some may have been taken by others: look again

    def _leave(self, group: _Held, partitions: Collection[int]) -> None:
        """Have the worker end with partitions."""
        for partition in partitions:
            group.leases[partition].leaving = True
        if partitions:
            group.tell()

    async def _take(self, group: _Held, partition: int) -> None:
        sent_s = self._clock.monotonic_s()
        try:
            revision = await self._bucket.create(
                lease_key(group.sink, partition), self._value(0), ttl_s=self._times.ttl_s
            )
        except Conflict:
            await self._look_at(group, partition)
            return
        group.leases[partition] = _Lease(revision, revision, sent_s + self._times.ttl_s)
        group.stats.taken += 1
        group.tell()

    async def _look_at(self, group: _Held, partition: int) -> None:
        """Leave a key be, till the next renewal, that is there and that no node wrote."""
        key = lease_key(group.sink, partition)
        found = await self._bucket.get(key)
        if found is not None and holder_of(found) is None:
            group.unreadable.add(partition)
            limited(log, ("unreadable", key), _UNREADABLE_EVERY_S).error(
                "lease_unreadable", key=key,
                hint="no node wrote it, and the partition waits: delete it from the leases' bucket"
            )  # fmt: skip

    async def _give_up(self, group: _Held) -> None:
        """Delete what the worker has ended with."""
        await asyncio.gather(*(self._delete(group, *ended) for ended in group.ended()))

    async def _delete(self, group: _Held, partition: int, lease: _Lease) -> None:
        while True:
            try:
                await self._bucket.delete(lease_key(group.sink, partition), revision=lease.revision)
            except Conflict:
                if await self._still_ours(group.sink, partition, lease):
                    continue
                group.stats.lost += 1
            else:
                group.stats.given_up += 1
            break
        group.leases.pop(partition, None)

    async def _still_ours(self, sink: str, partition: int, lease: _Lease) -> bool:
        """Take over the revision of a renewal whose answer was never heard; False: lost."""
        found = await self._bucket.get(lease_key(sink, partition))
        if found is None or (holder_of(found), token_of(found)) != (self.node, lease.token):
            return False
        lease.revision = found.revision
        return True

    def _drop_expired(self) -> None:
        """Forget what has run out on this node's clock and whose worker has ended or been told."""
        now_s = self._clock.monotonic_s()
        for group in self._groups.values():
            for partition, lease in list(group.leases.items()):
                if now_s >= lease.until_s:
                    group.lose(partition, "not renewed in time")
            for cause, partitions in group.lost.items():
                log.warning(
                    "leases_lost", sink=group.sink, cause=cause, partitions=sorted(partitions)
                )
            group.lost.clear()

    async def _announce(self) -> None:
        said = {
            "node": self.node,
            "draining": self.draining,
            "sinks": sorted({*self._groups, *self._others}),
            "instance": self.instance,
            "layout": self._version,
            "time_us": self._clock.wall_us(),
        }
        value = json.dumps(said).encode()
        await self._bucket.put(self._node_key, value, ttl_s=self._times.ttl_s)

    @property
    def _node_key(self) -> str:
        return NODE + key_token(self.node)

    def _value(self, token: int) -> bytes:
        return json.dumps({"node": self.node, "token": token}).encode()
