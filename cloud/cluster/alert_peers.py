"""Alerts of all nodes at any of them: the others are asked, and told who takes an alert on.

    {cluster}.alerts.{instance}    core messages, answered by the node's run of that name

A partition's alerts are one node's at a time, which alone knows how they stand now. So nothing is
copied: whoever is asked asks the nodes that the leases know, and says which of them did not answer.
An acknowledgement is the holder's to make; who does not have the alert says no.

Invariant: what is returned of another node is what it had when it answered.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import cbor2
import structlog

from cloud.cluster.connection import ClusterError, Connection
from cloud.cluster.layout import Layout
from cloud.cluster.leases import Leases
from cloud.cluster.reading import insist
from cloud.sinks.contract import SinkUnavailable
from cloud.views import AlertsView, AlertView
from runtime.logs import limited

if TYPE_CHECKING:
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

__all__ = ["AlertPeers", "OthersAlerts"]

log = structlog.get_logger(component="alerts")

_ANSWER_S: Final = 2.0
_ANSWER_ALERTS: Final = 200  # in one message
_LOG_EVERY_S: Final = 10.0


class OthersAlerts(NamedTuple):
    """What the other nodes said."""

    alerts: list[AlertView]
    silent: list[str]  # nodes that did not answer


class AlertPeers:
    """The other nodes' alerts.

    Args:
        own: This node's, for when others ask.
        connection: To the cluster.
        layout: Names.
        leases: Know which nodes there are.
        sink: The name of the sink whose partitions have the alerts.
    """

    def __init__(
        self, own: AlertsView, connection: Connection, layout: Layout, leases: Leases, sink: str
    ) -> None:
        self._own = own
        self._connection = connection
        self._prefix = f"{layout.cluster}.alerts."
        self._leases = leases
        self._sink = sink
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

    # ---- asking ----------------------------------------------------------------------------------

    async def active(self, rule: str | None, device: str | None, limit: int) -> OthersAlerts:
        """Return the alerts that stand at the other nodes, at most `limit` of each."""
        others = self._others()
        answers = await asyncio.gather(
            *(self._active_at(instance, rule, device, limit) for _, instance in others)
        )
        found = OthersAlerts([], [])
        for (node, _), answer in zip(others, answers, strict=True):
            if answer is None:
                found.silent.append(node)
            else:
                found.alerts.extend(answer)
        return found

    async def _active_at(
        self, instance: str, rule: str | None, device: str | None, limit: int
    ) -> list[AlertView] | None:
        found: list[AlertView] = []
        while len(found) < limit:
            said = await self._ask(instance, ["active", rule, device, len(found)])
            if said is None:
                return None
            try:
                found += (AlertView(**one) for one in said)
            except TypeError as error:  # of another version
                self._log_unread(instance, error)
                return None
            if len(said) < _ANSWER_ALERTS:
                break
        return found[:limit]

    async def acknowledge(self, alert_id: str, by: str, note: str) -> AlertView | None:
        """Have the node that has an alert note who takes it on; None when none of them has it.

        Raises:
            SinkUnavailable: one that may have it did not answer.
        """
        others = self._others()
        question = ["acknowledge", alert_id, by, note]
        answers = await asyncio.gather(*(self._ask(one, question) for _, one in others))
        for answer in answers:
            if answer:
                return AlertView(**answer[0])
        silent = [node for (node, _), answer in zip(others, answers, strict=True) if answer is None]
        if silent:
            raise SinkUnavailable(f"{', '.join(silent)}: no answer, and the alert may be there")
        return None

    def _others(self) -> list[tuple[str, str]]:
        return [
            (one.node, one.instance)
            for one in self._leases.nodes()
            if self._sink in one.sinks and one.instance != self._leases.instance
        ]

    async def _ask(self, instance: str, question: Sequence[Any]) -> list[dict[str, Any]] | None:
        subject = self._prefix + instance
        try:
            data = cbor2.dumps(list(question))
            answer = await self._connection.request(subject, data, timeout_s=_ANSWER_S)
            said: list[dict[str, Any]] | None = cbor2.loads(answer.data)
        except (ClusterError, ValueError, cbor2.CBORDecodeError) as error:
            self._log_unread(instance, error)
            return None
        return said

    def _log_unread(self, instance: str, error: Exception) -> None:
        limited(log, ("peer", instance), _LOG_EVERY_S).warning(
            "alerts_not_told", instance=instance, error=str(error)
        )

    # ---- being asked -----------------------------------------------------------------------------

    async def _asked(self, message: Msg) -> None:
        try:
            found = await self._answer(cbor2.loads(message.data))
        except Exception as error:  # noqa: BLE001 - whatever was asked, the others go on
            self._log_unread("", error)
            found = None
        with contextlib.suppress(ClusterError):  # who asked gives up
            data = cbor2.dumps(None if found is None else [asdict(one) for one in found])
            await self._connection.send(message.reply, data)

    async def _answer(self, question: Sequence[Any]) -> list[AlertView]:
        kind, *fields = question
        if kind == "active":
            rule, device, skip = fields
            return self._own.active(rule, device)[skip : skip + _ANSWER_ALERTS]
        alert_id, by, note = fields
        done = await self._own.acknowledge(alert_id, by, note)
        return [] if done is None else [done]
