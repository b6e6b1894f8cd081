"""A whole cloud node: the service with everything that belongs to it plugged in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cloud.alerts.part import AlertsPart
from cloud.api_part import ApiPart
from cloud.commands.part import CommandsPart
from cloud.config import CloudConfig
from cloud.ledger_part import LedgerPart
from cloud.pacing import PacingPart
from cloud.service import CloudService
from runtime.clock import Clock

__all__ = ["Node"]


class Node(CloudService):
    """A cloud node with alerts, latest values, API, console, and gateways paced."""

    def __init__(self, config: CloudConfig, clock: Clock) -> None:
        """Prepare; `start` begins."""
        alerts = AlertsPart()
        commands = CommandsPart(config)
        ledger = LedgerPart(config.ledger.interval_s)
        self._api = ApiPart(alerts, commands, ledger)
        commands.on_corrected = self._api.corrected
        super().__init__(config, clock, (alerts, PacingPart(), commands, ledger, self._api))

    @property
    def http_port(self) -> int:
        """The HTTP port in use; 0 before `start`."""
        return self._api.port

    def show(self, name: str, figures: Callable[[], Mapping[str, Any]]) -> None:
        """Add a section to `/status`, such as the gateway's of `tidegate up`."""
        self._api.show(name, figures)
