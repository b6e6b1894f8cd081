"""Alerts of all nodes at any of them: the others are asked, and told who takes an alert on.

A partition's alerts are one node's at a time, which alone knows how they stand now. So nothing is
copied: whoever is asked asks the nodes that the leases know, and says which of them did not answer.
An acknowledgement is the holder's to make; who does not have the alert says no.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final, NamedTuple

from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.cluster.leases import Leases
from cloud.cluster.peers import Peers
from cloud.sinks.contract import SinkUnavailable
from cloud.views import AlertsView, AlertView

__all__ = ["AlertPeers", "OthersAlerts"]

_ANSWER_ALERTS: Final = 200  # in one message


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
        self._sink = sink
        self._peers = Peers("alerts", connection, layout, leases, self._answer)
        self.start = self._peers.start
        self.stop = self._peers.stop

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
            said = await self._peers.ask(instance, ["active", rule, device, len(found)])
            if said is None:
                return None
            try:
                found += (AlertView(**one) for one in said)
            except TypeError as error:  # of another version
                self._peers.log_unread(instance, error)
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
        answers = await asyncio.gather(*(self._peers.ask(one, question) for _, one in others))
        for answer in answers:
            if answer:
                return AlertView(**answer[0])
        silent = [node for (node, _), answer in zip(others, answers, strict=True) if answer is None]
        if silent:
            raise SinkUnavailable(f"{', '.join(silent)}: no answer, and the alert may be there")
        return None

    def _others(self) -> list[tuple[str, str]]:
        others = self._peers.others()
        return [(one.node, one.instance) for one in others if self._sink in one.sinks]

    # ---- being asked -----------------------------------------------------------------------------

    async def _answer(self, question: Sequence[Any]) -> list[dict[str, Any]]:
        kind, *fields = question
        if kind == "active":
            rule, device, skip = fields
            some = self._own.active(rule, device)[skip : skip + _ANSWER_ALERTS]
            return [asdict(one) for one in some]
        alert_id, by, note = fields
        done = await self._own.acknowledge(alert_id, by, note)
        return [] if done is None else [asdict(done)]
