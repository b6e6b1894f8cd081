"""A whole cloud node: the service with everything that belongs to it plugged in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from cloud.alerts.part import AlertsPart
from cloud.api_part import ApiPart
from cloud.commands.part import CommandsPart
from cloud.config import CloudConfig
from cloud.ledger_part import LedgerPart
from cloud.pacing import PacingPart
from cloud.service import CloudService
from cloud.sinks.contract import SinkUnavailable
from runtime.clock import Clock
from runtime.reload import Reloaded

__all__ = ["Node"]


class Node(CloudService):
    """A cloud node with alerts, latest values, API, console, and gateways paced."""

    def __init__(self, config: CloudConfig, clock: Clock) -> None:
        """Prepare; `start` begins."""
        commands = CommandsPart(config)
        alerts = self._alerts = AlertsPart(commands.control)
        ledger = LedgerPart(config.ledger.interval_s)
        self._api = ApiPart(alerts, commands, ledger)
        commands.on_corrected = self._api.corrected
        super().__init__(config, clock, (alerts, PacingPart(), commands, ledger, self._api))

    more_reloadable = frozenset(("alerts",))

    async def reload(self, config: CloudConfig) -> Reloaded:
        """Take what can be changed while it runs, all of the alerts among it."""
        result = await super().reload(config)
        if config.alerts != self.config.alerts:
            try:
                await self._alerts.take_config(config.alerts)
            except SinkUnavailable as error:
                result.problem = result.problem or f"alerts: {error}"
            else:
                self.config = replace(self.config, alerts=config.alerts)
        return result

    @property
    def http_port(self) -> int:
        """The HTTP port in use; 0 before `start`."""
        return self._api.port

    def show(self, name: str, figures: Callable[[], Mapping[str, Any]]) -> None:
        """Add a section to `/status`, such as the gateway's of `tidegate up`."""
        self._api.show(name, figures)
