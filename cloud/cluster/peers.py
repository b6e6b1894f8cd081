"""The other nodes of a cluster, asked one question each, and answered.

    {cluster}.{subject}.{instance}    core messages, answered by the node's run of that name

Invariant: what is returned of another node is what it had when it answered; None stands for one
that did not answer, or not so that this version understands it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import cbor2
import structlog

from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import Layout
from cloud.cluster.lease_keys import NodeSeen
from cloud.cluster.leases import Leases
from cloud.cluster.reading import insist
from runtime.logs import limited

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["Peers"]

log = structlog.get_logger(component="cluster")

_ANSWER_S: Final = 2.0
_LOG_EVERY_S: Final = 10.0


class Peers:
    """The other nodes, as far as one kind of question goes.

    Args:
        subject: Which kind, a part of the messages' subject.
        connection: To the cluster.
        layout: Names.
        leases: Know which nodes there are.
        answer: Answers the others' questions, as CBOR has questions and answers.
    """

    def __init__(
        self,
        subject: str,
        connection: Connection,
        layout: Layout,
        leases: Leases,
        answer: Callable[[Sequence[Any]], Awaitable[Any]],
    ) -> None:
        self._connection = connection
        self._name = subject
        self._prefix = f"{layout.cluster}.{subject}."
        self._leases = leases
        self._answer = answer
        self._subscription: Subscription | None = None

    async def start(self) -> None:
        """Answer the others from now on; raises ClusterError."""
        subject = self._prefix + self._leases.instance
        self._subscription = await self._connection.subscribe(subject, self._asked)
        await insist(self._connection.flush, timeout_s=self._connection.patience_s)

    async def stop(self) -> None:
        """Answer nobody; harmless when not started."""
        if self._subscription is not None:
            with contextlib.suppress(Exception):  # a line that is gone unsubscribes by itself
                await self._subscription.unsubscribe()
            self._subscription = None

    def others(self) -> list[NodeSeen]:
        """Return the other nodes there are."""
        return [one for one in self._leases.nodes() if one.instance != self._leases.instance]

    async def ask(self, instance: str, question: Sequence[Any]) -> Any:
        """Return what a node's run answers, None when it does not."""
        try:
            data = cbor2.dumps(list(question))
            subject = self._prefix + instance
            answer = await self._connection.request(subject, data, timeout_s=_ANSWER_S)
            return cbor2.loads(answer.data)
        except (ClusterError, ValueError, cbor2.CBORDecodeError) as error:
            self.log_unread(instance, error)
            return None

    def log_unread(self, instance: str, error: Exception) -> None:
        """Log, at a rate, what was not understood of a node."""
        limited(log, ("peer", self._name, instance), _LOG_EVERY_S).warning(
            f"{self._name}_not_told", instance=instance, error=str(error)
        )

    async def _asked(self, message: Msg) -> None:
        try:
            found = await self._answer(cbor2.loads(message.data))
        except Exception as error:  # noqa: BLE001 - whatever was asked, the others go on
            self.log_unread("", error)
            found = None
        with contextlib.suppress(ClusterError):  # who asked gives up
            await self._connection.send(message.reply, cbor2.dumps(found))
