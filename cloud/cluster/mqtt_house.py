"""The housekeeping of MQTT over nodes: what nobody needs any more goes, room is made in the log.

Each node tidies what is its own. The rest is one node's work, the *keeper*: the one with the
lowest name of those that are there, which all know without a vote; two that take themselves for it
for a moment do the same twice, which does no harm.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final

import structlog

from cloud.cluster.mqtt_backlog import Backlogs
from cloud.cluster.mqtt_claims import Claims
from cloud.cluster.mqtt_fabric import Fabric, FabricError
from cloud.cluster.mqtt_peers import Peers
from cloud.cluster.mqtt_presence import Presence
from cloud.cluster.mqtt_shedding import Shedding
from cloud.cluster.mqtt_wire import SHARDS, WireError
from runtime.logs import limited

__all__ = ["House"]

log = structlog.get_logger(component="mqtt-cluster")

_HOUSEKEEPING_S: Final = 15.0
_SHED_S: Final = 2.0
_SHED_PAUSE_S: Final = 0.1
_LOG_EVERY_S: Final = 10.0


class House:
    """The housekeeping of one node.

    Args:
        fabric: The engine.
        claims: The sessions of the cluster.
        peers: The other nodes.
        presence: Which nodes are there.
        backlogs: Of the sessions here.
        shedding: Makes room in the log.
        position: Gives the number of the log up to which this node has read.
        forget: Called now and then, to forget what else nobody needs.
    """

    def __init__(
        self,
        fabric: Fabric,
        claims: Claims,
        peers: Peers,
        presence: Presence,
        backlogs: Backlogs,
        shedding: Shedding,
        position: Callable[[], int],
        forget: Callable[[], None],
    ) -> None:
        self._fabric = fabric
        self._claims = claims
        self._peers = peers
        self._presence = presence
        self._backlogs = backlogs
        self._shedding = shedding
        self._position = position
        self._forget = forget
        self._shed_soon = asyncio.Event()

    async def run(self) -> None:
        """Forget what nobody needs any more, now and then, until cancelled."""
        while True:
            await asyncio.sleep(_HOUSEKEEPING_S)
            try:
                await self.tidy()
            except (FabricError, WireError) as error:
                limited(log, "house", _LOG_EVERY_S).warning("mqtt_not_tidied", error=str(error))

    async def make_room(self) -> None:
        """Make room in the log before it is full, until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_SHED_S):
                    await self._shed_soon.wait()
            self._shed_soon.clear()
            if self._keeper == self._presence.instance:
                try:
                    await self._shedding.look()
                except (FabricError, WireError) as error:
                    limited(log, "shed", _LOG_EVERY_S).warning(
                        "mqtt_log_not_shed", error=str(error)
                    )
                await asyncio.sleep(_SHED_PAUSE_S)  # what was removed shows

    @property
    def _keeper(self) -> str:
        """The instance that keeps house; empty while none is known."""
        return min(self._presence.there, default="")

    def log_is_full(self) -> None:
        """Have room made without delay."""
        if self._keeper == self._presence.instance:
            self._shed_soon.set()
        elif self._keeper:
            self._peers.tell("full", to=self._keeper)

    async def tidy(self) -> None:
        """Forget entries of the log and records that nobody needs; raises FabricError."""
        self._backlogs.look_at_all()
        for instance in list(self._peers.known):
            if instance not in self._presence.there and not self._peers.is_there(instance):
                self._peers.gone(instance)  # a last word came after its lease was over
        self._forget()
        await self._fabric.purge(f"g.{self._presence.instance}", self._presence.settled + 1)
        if self._keeper != self._presence.instance:
            return
        read = min(self._peers.read_by_all, self._position())
        await self._fabric.purge("a.>", read)
        for shard in range(SHARDS):
            await self._fabric.purge(
                f"s.{shard}", min(read, self._claims.lowest_cursor(shard, read))
            )
        await self._claims.expire()
