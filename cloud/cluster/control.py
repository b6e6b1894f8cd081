"""The bucket of what nodes have to know: commands, recalls, corrections, nodes, alerts' history.

A key is `{kind}.{rest}`; each kind has one taker, which gets every value there is, and then every
change, in the order of the bucket. Nothing is kept here.
"""

from __future__ import annotations

from collections.abc import Callable

import structlog

from cloud.cluster.bucket import Bucket, is_deleted
from cloud.cluster.connection import Connection
from cloud.cluster.follower import Follower, Message
from cloud.cluster.layout import Layout

__all__ = ["Control", "Taker"]

log = structlog.get_logger(component="cluster")

# called with the key, the value or None when it has gone, and the revision; what it raises is
# logged, and the value passed over: somebody altered it
Taker = Callable[[str, bytes | None, int], None]


class Control:
    """The bucket of one node.

    Args:
        connection: To the cluster.
        layout: Names.

    Attributes:
        bucket: For changes.
    """

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.bucket = Bucket(connection, layout.bucket("control"))
        self._skip = len(f"$KV.{self.bucket.name}.")
        self._takers: dict[str, Taker] = {}
        live = layout.live(self.bucket.stream)
        self._follower = Follower(connection, self.bucket.stream, live, self._take)

    def on(self, kind: str, taker: Taker) -> None:
        """Have the keys of a kind taken; before `start`."""
        self._takers[kind] = taker

    async def start(self) -> None:
        """Hand on all there is, return, and hand on every change until `stop`.

        Raises:
            ClusterError: the bucket cannot be read.
        """
        await self._follower.start()

    async def stop(self) -> None:
        """End; harmless when not started."""
        await self._follower.stop()

    def _take(self, message: Message) -> None:
        key = message.subject[self._skip :]
        taker = self._takers.get(key.partition(".")[0])
        if taker is None:
            return
        try:
            taker(key, None if is_deleted(message.headers) else message.data, message.seq)
        except Exception as error:  # noqa: BLE001 - a value of another's must not end the following
            log.error("control_not_read", key=key, error=repr(error))  # noqa: TRY400 - one line
