"""Whether a cluster is still as durable as it was when a node started.

Replicas, retention and `sync_interval` can be altered by hand while nodes run; what these
acknowledge then is not what they promised. So they look again every `_LOOK_S`: what is weak is
told, and a node that has to be durable takes nothing until it was put right (PAINS P26).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import structlog

from cloud.cluster.checks import check_cluster
from cloud.cluster.connection import ClusterError, Connection, NoResponders, Unanswered, Unreachable
from cloud.cluster.layout import Layout
from runtime.background import Background
from runtime.logs import limited

__all__ = ["DurabilityWatch"]

log = structlog.get_logger(component="stream")

_LOOK_S = 10.0
_LOG_EVERY_S = 60.0


class DurabilityWatch:
    """Looks at a cluster for as long as a node runs.

    Args:
        connection: To it.
        layout: What is expected.
        monitors, servers_fsync: As of `check_cluster`.
        tell: Called after each look with what is weak, one line each; must not raise.
    """

    def __init__(
        self,
        connection: Connection,
        layout: Layout,
        *,
        monitors: Sequence[str],
        servers_fsync: bool,
        tell: Callable[[Sequence[str]], None],
    ) -> None:
        self._connection = connection
        self._layout = layout
        self._monitors = monitors
        self._servers_fsync = servers_fsync
        self._tell = tell
        background = Background(self._work, "durability")
        self.start = background.start
        self.stop = background.stop

    async def look(self) -> None:
        """Look once; what cannot be asked now changes nothing."""
        try:
            checked = await check_cluster(
                self._connection,
                self._layout,
                monitors=self._monitors,
                servers_fsync=self._servers_fsync,
            )
        except (NoResponders, Unanswered, Unreachable):
            return
        except ClusterError as error:  # appends fail by themselves where that matters
            limited(log, ("altered", str(error)), _LOG_EVERY_S).error(
                "cluster_altered", cause=str(error)
            )
            return
        self._tell(checked.weak)

    async def _work(self) -> None:
        while True:
            await asyncio.sleep(_LOOK_S)
            try:
                await self.look()
            except Exception:  # the task's root: the next look may go well
                log.exception("durability_not_looked_at")
