"""When the log of MQTT messages is nearly full, or old: what has to go, goes counted.

The engine would drop its oldest entries by itself and say nothing. So one node, the one that keeps
house, makes room before that: it reads what is to go, counts for each session that is still owed
some of it, and removes it. A client that stays away loses its oldest messages; who lost how many
is in the log, in `/metrics` and in `/status` of that node.

Invariants:
- a message is counted before it is removed: after a crash between the two it is counted twice;
- what is removed was read by every node, and is owed only to sessions that have not come for it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import structlog

from cloud.cluster.mqtt_claims import Claims
from cloud.cluster.mqtt_fabric import Fabric, LogState
from cloud.cluster.mqtt_restore import messages_from, owed
from cloud.cluster.mqtt_wire import SHARDS, Record, decode_record, key_of, shard_of
from runtime.clock import Clock

__all__ = ["Shedding"]

log = structlog.get_logger(component="mqtt-cluster")

_FILL_MAX: Final = 0.9
_SLICE: Final = 20  # parts of the log that are removed at a time
_SLICES_MAX: Final = 10  # of them in one look
_AGE_MARGIN_US: Final = 3600 * 1_000_000
_SHOWN_MAX: Final = 1_000


class Shedding:
    """Makes room in the log.

    Args:
        fabric: The engine.
        claims: Knows the sessions of the cluster.
        clock: Wall clock.
        read: Gives the number of the log that every node has read up to.

    Attributes:
        lost_messages: Removed before their sessions came for them, since the start.
        lost_by_session: The same by client id, of those that lost some last.
        fill: Of the log, 0 to 1, when this node last looked.
    """

    def __init__(
        self, fabric: Fabric, claims: Claims, clock: Clock, read: Callable[[], int]
    ) -> None:
        self.lost_messages = 0
        self.lost_by_session: OrderedDict[str, int] = OrderedDict()
        self.fill = 0.0
        self._fabric = fabric
        self._claims = claims
        self._clock = clock
        self._read = read

    async def look(self) -> None:
        """Make room if there is need; raises FabricError."""
        for _ in range(_SLICES_MAX):
            state = await self._fabric.log_state()
            self.fill = state.bytes / state.bytes_max if state.bytes_max > 0 else 0.0
            if not self._wants_room(state):
                return
            count = max(1, (state.last_seq - state.first_seq + 1) // _SLICE)
            up_to = min(state.first_seq + count - 1, self._read())
            if up_to < state.first_seq:
                return
            for shard in range(SHARDS):
                await self._shed(shard, state.first_seq, up_to)

    def _wants_room(self, state: LogState) -> bool:
        if state.last_seq < state.first_seq:
            return False
        if self.fill > _FILL_MAX:
            return True
        age_us = self._clock.wall_us() - state.oldest_us
        return bool(state.oldest_us and state.age_max_us) and (
            age_us > state.age_max_us - _AGE_MARGIN_US
        )

    async def _shed(self, shard: int, first_seq: int, up_to: int) -> None:
        """Count and remove what one shard has in [first_seq, up_to]."""
        records = await self._owed_records(shard, up_to)
        if records:
            entries = await self._fabric.scan(f"s.{shard}", first_seq - 1, up_to)
            for client_id, record in records.items():
                done = set(record.done)
                lost = sum(
                    position not in done and owed(record, position, carried) is not None
                    for position, carried in messages_from(entries, record.cursor + 1, {})
                )
                if lost:
                    self._count(client_id, lost)
        await self._fabric.purge(f"s.{shard}", up_to + 1)

    async def _owed_records(self, shard: int, up_to: int) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for known in list(self._claims.known.values()):
            if known.expiry_s and known.cursor_seq <= up_to and shard_of(known.client_id) == shard:
                state = await self._fabric.get(key_of("s", known.client_id))
                if state is not None and state.value is not None:
                    found[known.client_id] = decode_record(state.value)
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
