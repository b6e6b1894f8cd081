"""When the log of MQTT messages is nearly full, or old: what has to go, goes counted.

The engine removes nothing: a log without room takes nothing more, and publishers wait. So one node,
the one that keeps house, makes room before that: it reads what is to go, counts for each session
that is still owed some of it, and removes it. A client that stays away loses its oldest messages;
who lost how many is in the log, in `/metrics` and in `/status` of that node.

A message of a shared subscription that goes before its member has acknowledged it is with that
member's node all the same, and lost only if the node dies; it is counted apart, as unguarded.

Invariants:
- a message is counted before it is removed: after a crash between the two it is counted twice;
- what is removed was read by every node, and is owed only to sessions that have not come for it,
  or to a member that has not acknowledged it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from cloud.cluster.mqtt_claims import Claims
from cloud.cluster.mqtt_fabric import Fabric, LogState
from cloud.cluster.mqtt_restore import messages_from, owed
from cloud.cluster.mqtt_wire import (
    SHARDS,
    Record,
    WireError,
    decode_batch,
    decode_record,
    key_of,
    shard_of,
)
from runtime.clock import Clock

__all__ = ["Shedding"]

log = structlog.get_logger(component="mqtt-cluster")

_FILL_MAX: Final = 0.9
_SLICE: Final = 20  # parts of the log that are removed at a time
_SLICES_MAX: Final = 10  # of them in one look
_SHOWN_MAX: Final = 1_000


class Shedding:
    """Makes room in the log.

    Args:
        fabric: The engine.
        claims: Knows the sessions of the cluster.
        clock: Wall clock.
        read: Gives the number of the log that every node has read up to.
        done: Gives, of each instance, the number up to which its members have acknowledged.

    Attributes:
        lost_messages: Removed before their sessions came for them, since the start.
        unguarded_messages: Of shared subscriptions, removed before they were acknowledged.
        lost_by_session: The same by client id, of those that lost some last.
        fill: Of the log, 0 to 1, when this node last looked.
    """

    def __init__(
        self,
        fabric: Fabric,
        claims: Claims,
        clock: Clock,
        read: Callable[[], int],
        done: Callable[[], Mapping[str, int]],
    ) -> None:
        self.lost_messages = 0
        self.unguarded_messages = 0
        self.lost_by_session: OrderedDict[str, int] = OrderedDict()
        self.fill = 0.0
        self._fabric = fabric
        self._claims = claims
        self._clock = clock
        self._read = read
        self._done = done

    async def look(self) -> None:
        """Make room if there is need; raises FabricError."""
        for _ in range(_SLICES_MAX):
            state = await self._fabric.log_state()
            self.fill = state.bytes / state.bytes_max if state.bytes_max > 0 else 0.0
            up_to = min(await self._wanted(state), self._read())
            if up_to < state.first_seq:
                return
            for shard in range(SHARDS):
                await self._count_shard(shard, state.first_seq, up_to)
            await self._count_shared(state.first_seq, up_to)
            await self._fabric.purge(">", up_to + 1)

    async def _wanted(self, state: LogState) -> int:
        """Return the number up to which a slice of the log has to go; 0 for nothing."""
        if state.last_seq < state.first_seq:
            return 0
        slice_end = state.first_seq + max(1, (state.last_seq - state.first_seq + 1) // _SLICE) - 1
        if self.fill > _FILL_MAX:
            return slice_end
        old_us = self._clock.wall_us() - state.age_max_us
        if state.age_max_us and 0 < state.oldest_us < old_us:
            return min(slice_end, await self._fabric.log_before(old_us))
        return 0

    async def _count_shard(self, shard: int, first_seq: int, up_to: int) -> None:
        """Count what sessions of one shard are owed of what it has in [first_seq, up_to]."""
        records = await self._owed_records(shard, up_to)
        if not records:
            return
        entries = await self._fabric.scan(f"s.{shard}", first_seq - 1, up_to)
        for client_id, record in records.items():
            done = set(record.done)
            lost = sum(
                position not in done and owed(record, position, carried) is not None
                for position, carried in messages_from(entries, record.cursor + 1, {})
            )
            if lost:
                self._count(client_id, lost)

    async def _count_shared(self, first_seq: int, up_to: int) -> None:
        """Count what members have not acknowledged of what there is in [first_seq, up_to]."""
        for instance, done in self._done().items():
            if done >= up_to:
                continue
            entries = await self._fabric.scan(f"g.{instance}", max(done, first_seq - 1), up_to)
            count = sum(len(decode_batch(entry.data).messages) for entry in entries)
            if count:
                self.unguarded_messages += count
                log.warning("mqtt_messages_unguarded", instance=instance, messages=count,
                            hint="the log is full: they are lost if that node dies before its "
                            "subscribers acknowledge them")  # fmt: skip

    async def _owed_records(self, shard: int, up_to: int) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for known in list(self._claims.known.values()):
            if known.expiry_s and known.cursor_seq <= up_to and shard_of(known.client_id) == shard:
                state = await self._fabric.get(key_of("s", known.client_id))
                if state is None or state.value is None:
                    continue
                try:
                    found[known.client_id] = decode_record(state.value)
                except WireError as error:  # altered: nobody can say what it is owed
                    log.warning("mqtt_record_not_read", client_id=known.client_id, error=str(error))
        return found

    def _count(self, client_id: str, lost: int) -> None:
        self.lost_messages += lost
        before = self.lost_by_session.pop(client_id, 0)
        self.lost_by_session[client_id] = before + lost
        while len(self.lost_by_session) > _SHOWN_MAX:
            self.lost_by_session.popitem(last=False)
        log.warning("mqtt_messages_lost", client_id=client_id, messages=lost,
                    in_all=before + lost, hint="the log of messages for clients that are away is "
                    "full or old; end sessions that do not come back")  # fmt: skip
