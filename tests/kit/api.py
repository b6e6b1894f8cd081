"""A node of the imagination behind the real API."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from cloud.api import ApiParts
from cloud.latest import Latest
from cloud.storage_file import StorageFile
from cloud.views import (
    AlertEventView,
    AlertView,
    GatewayView,
    GivenUpView,
    LedgerView,
    PartitionView,
    StatusView,
)
from runtime.clock import ManualClock
from runtime.metrics import Metrics
from tests.kit.alerts import us

__all__ = ["FakeAlerts", "FakeNode", "alert", "api_parts", "gateway", "ledger"]


def gateway(name: str = "gw-1", **keys: object) -> GatewayView:
    """Return a gateway that is well; `keys` change it."""
    made = GatewayView(
        gateway=name,
        connected=True,
        peer="127.0.0.1:50000",
        connected_us=us(0),
        last_batch_us=us(99),
        last_event_us=us(98.5),
        epoch="00000000000000ff",
        readings=12_345,
        backlog_readings=0,
        lag_s=0.4,
    )
    return replace(made, **keys)  # type: ignore[arg-type]


def ledger(name: str = "gw-1", **keys: object) -> LedgerView:
    """Return an account that balances; `keys` change it."""
    made = LedgerView(
        gateway=name,
        epoch="00000000000000ff",
        assigned=12_345,
        held=12_345,
        stored=12_300,
        given_up=40,
        dead_letters=0,
        waiting_edge=0,
        waiting_stream=5,
        missing=0,
        balanced=True,
        gaps=(),
        losses=(GivenUpView(10, 49, 40, "live", "evicted-bytes", us(50)),),
    )
    return replace(made, **keys)  # type: ignore[arg-type]


def alert(alert_id: str = "a1", **keys: object) -> AlertView:
    """Return an alert that fires; `keys` change it."""
    made = AlertView(
        alert_id=alert_id,
        state="firing",
        rule="hot",
        severity="critical",
        device="boiler-1",
        topic="",
        value=91.5,
        since_us=us(10),
        fired_us=us(20),
        clear_us=None,
        flapping=False,
        acked_by="",
        acked_us=None,
        note="",
        summary="too hot",
    )
    return replace(made, **keys)  # type: ignore[arg-type]


@dataclass
class FakeNode:
    """What the API asks of a node, as plain attributes."""

    gateway_views: list[GatewayView] = field(default_factory=lambda: [gateway()])
    ledger_views: list[LedgerView] = field(default_factory=lambda: [ledger()])
    partition_views: list[PartitionView] = field(
        default_factory=lambda: [PartitionView(3, 7, {"storage": 5}, {"storage": 2})]
    )
    stored: dict[int, int] = field(default_factory=dict)
    unhealthy: list[str] = field(default_factory=list)
    unready: list[str] = field(default_factory=list)
    status_view: StatusView = field(
        default_factory=lambda: StatusView("0.1.0", us(0), 12_345, 12_300, 90_000, 2_000_000, 1, 2)
    )

    async def gateways(self) -> Sequence[GatewayView]:
        return self.gateway_views

    async def ledger(self) -> Sequence[LedgerView]:
        return self.ledger_views

    async def partitions(self) -> Sequence[PartitionView]:
        return self.partition_views

    async def stored_positions(self) -> Mapping[int, int]:
        return self.stored

    def health(self) -> Sequence[str]:
        return self.unhealthy

    def ready(self) -> Sequence[str]:
        return self.unready

    def status(self) -> StatusView:
        return self.status_view


@dataclass
class FakeAlerts:
    """What the API asks of the alerts part."""

    views: list[AlertView] = field(default_factory=lambda: [alert()])
    events: list[AlertEventView] = field(default_factory=list)

    def active(self, rule: str | None = None, device: str | None = None) -> list[AlertView]:
        return [
            one for one in self.views if rule in {None, one.rule} and device in {None, one.device}
        ]

    async def history(
        self, *, rule: str | None, device: str | None, before: int | None, limit: int
    ) -> Sequence[AlertEventView]:
        return [
            one
            for one in self.events
            if rule in {None, one.rule}
            and device in {None, one.device}
            and (before is None or int(one.event_id) < before)
        ][:limit]

    async def acknowledge(self, alert_id: str, by: str, note: str) -> AlertView | None:
        for index, view in enumerate(self.views):
            if view.alert_id == alert_id:
                self.views[index] = replace(view, acked_by=by, acked_us=us(100), note=note)
                return self.views[index]
        return None


def api_parts(storage: Path) -> ApiParts:
    """Return the parts of an API at second 100, with fakes for node and alerts."""
    return ApiParts(
        node=FakeNode(),
        latest=Latest(),
        storage=StorageFile(storage),
        metrics=Metrics(process=False),
        clock=ManualClock(wall_us=us(100)),
        alerts=FakeAlerts(),
    )
