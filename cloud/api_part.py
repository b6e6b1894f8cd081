"""Plugs the HTTP API, the console and the latest values into a cloud node."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog
from fastapi import APIRouter

from bridge.commands import Correction
from cloud.alerts.part import AlertsPart
from cloud.api import ApiParts, create_app
from cloud.api_ledger import ledger_routes
from cloud.api_server import ApiServer
from cloud.commands.part import CommandsPart
from cloud.latest import Latest
from cloud.latest_sink import LatestSink
from cloud.ledger_part import LedgerPart
from cloud.parts import CloudNode
from cloud.sinks.contract import Sink
from cloud.storage import storage_reader

__all__ = ["ApiPart"]

log = structlog.get_logger(component="api")


class ApiPart:
    """The API of a node (cloud/parts.py).

    Attributes:
        port: The HTTP port in use; 0 before `start`.
        latest: The table of latest values.
    """

    def __init__(
        self,
        alerts: AlertsPart | None = None,
        commands: CommandsPart | None = None,
        ledger: LedgerPart | None = None,
    ) -> None:
        """Prepare; the other parts are those whose state is shown."""
        self.port = 0
        self.latest = Latest()
        self._alerts = alerts
        self._commands = commands
        self._ledger = ledger
        self._feed: LatestSink
        self._server: ApiServer | None = None
        self._shown: dict[str, Callable[[], Mapping[str, Any]]] = {}

    def show(self, name: str, figures: Callable[[], Mapping[str, Any]]) -> None:
        """Add a section to `/status`."""
        self._shown[name] = figures

    def sinks(self, node: CloudNode) -> Sequence[Sink]:
        """Return the sink that feeds the latest values."""
        config = node.config
        storage = storage_reader(config.data, config.storage) if config.storage.enabled else None
        self._feed = LatestSink(self.latest, storage, node.clock)
        return [self._feed]

    def corrected(self, gateway: str, correction: Correction, *, known: bool) -> None:
        """Show latest values with the times that storage has corrected.

        Args:
            gateway: Whose clock was wrong.
            correction: By how much.
            known: Storage had it before this start: what was read from there is right already.
        """
        self._feed.expect(gateway, correction)
        if not known:
            self.latest.correct(gateway, correction)

    async def start(self, node: CloudNode) -> None:
        """Listen; raises StartError when the port cannot be had."""
        config = node.config
        self.latest.register(node.metrics)
        parts = ApiParts(
            node=node,
            latest=self.latest,
            storage=storage_reader(config.data, config.storage),
            metrics=node.metrics,
            clock=node.clock,
            alerts=self._alerts.sink if self._alerts is not None else None,
            alert_peers=self._alerts.peers if self._alerts is not None else None,
            figures=lambda: self._figures(node),
            routers=self._routers(node),
        )
        self._server = ApiServer(
            create_app(parts, config.http), host=config.http.host, port=config.http.port
        )
        await self._server.start()
        self.port = self._server.port
        log.info("api_started", address=f"http://{config.http.host}:{self.port}")

    def _figures(self, node: CloudNode) -> Mapping[str, Any]:
        ledger = {} if self._ledger is None else {"ledger": self._ledger.figures()}
        shown = {name: figures() for name, figures in self._shown.items()}
        return {**node.figures(), **ledger, **shown}

    def _routers(self, node: CloudNode) -> Sequence[APIRouter]:
        commands = None if self._commands is None else self._commands.router()
        return (ledger_routes(node), *(() if commands is None else (commands,)))

    async def stop(self) -> None:
        """Answer what was asked and close the port."""
        self.latest.changes.end()
        if self._server is not None:
            await self._server.stop()
            self._server = None
        self.port = 0
