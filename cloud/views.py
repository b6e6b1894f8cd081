"""What the API and the console show of a cloud node, as plain records.

The node fills them in (`NodeView`); the API knows nothing else of it. Times are microseconds since
1970 UTC, or None when it has not happened; an epoch is 16 hex digits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = [
    "AlertEventView",
    "AlertView",
    "AlertsView",
    "GatewayView",
    "GivenUpView",
    "LedgerView",
    "NodeView",
    "PartitionView",
    "StatusView",
]


@dataclass(slots=True, frozen=True)
class GatewayView:
    """One gateway as the cloud sees it now."""

    gateway: str
    connected: bool
    peer: str  # its address when connected, else ""
    connected_us: int | None  # when the present connection began
    last_batch_us: int | None  # when the newest batch was made durable
    last_event_us: int | None  # newest time at the edge among its readings
    epoch: str  # of its newest journal; "" when it never sent a batch
    readings: int  # held by the stream, of all its epochs
    backlog_readings: int  # assigned at the edge, neither held nor given up
    lag_s: float | None  # from reading to durable, for the newest live batch
    node: str = ""  # of a cluster, the node that has it or heard of it last, if another


@dataclass(slots=True, frozen=True)
class GivenUpView:
    """Readings that will never come."""

    first_seq: int
    last_seq: int
    count: int
    lane: str
    reason: str
    time_us: int


@dataclass(slots=True, frozen=True)
class LedgerView:
    """The account of one (gateway, epoch), in readings (cloud/ledger.py).

    assigned = stored + given_up + dead_letters + waiting_edge + waiting_stream + missing
    """

    gateway: str
    epoch: str
    assigned: int  # highest seq the edge has told of, hence how many
    held: int  # the stream ever took
    stored: int  # storage has written
    given_up: int
    dead_letters: int
    waiting_edge: int  # not here yet
    waiting_stream: int  # storage has not come to them yet
    missing: int
    balanced: bool
    gaps: tuple[tuple[int, int], ...]  # inclusive seq ranges of what is missing, the first few
    losses: tuple[GivenUpView, ...]  # the newest few


@dataclass(slots=True, frozen=True)
class PartitionView:
    """One partition of the stream and how far each sink is."""

    partition: int
    last_position: int
    cursors: Mapping[str, int]  # by sink, of those worked on by this node
    lag_entries: Mapping[str, int]  # by sink, the same: entries it has not taken yet
    owners: Mapping[str, str] = field(default_factory=dict)  # node by sink, in a cluster
    tokens: Mapping[str, int] = field(default_factory=dict)  # fencing token by sink


@dataclass(slots=True, frozen=True)
class StatusView:
    """Figures of the node; counters are since its start."""

    version: str
    started_us: int
    readings_taken: int  # by the stream
    readings_stored: int  # by the storage sink
    uplink_bytes: int  # of batches from gateways, as received
    payload_bytes: int  # of the readings in them: topics and payloads
    stream_bytes: int  # in use by stream.db now
    storage_bytes: int  # in use by storage.db now


@dataclass(slots=True, frozen=True)
class AlertView:
    """One alert that is pending or firing."""

    alert_id: str  # "" while pending
    state: str  # "pending" or "firing"
    rule: str
    severity: str
    device: str
    topic: str  # "" when the rule is by device
    value: float | str | None  # as of the newest reading
    since_us: int  # when it became wrong
    fired_us: int | None
    clear_us: int | None  # firing, but well since then: waits to be resolved
    flapping: bool
    acked_by: str
    acked_us: int | None
    note: str
    summary: str


@dataclass(slots=True, frozen=True)
class AlertEventView:
    """Something that happened to an alert, as history keeps it."""

    event_id: str  # a number that rises; above 2^53, which many readers of JSON round
    alert_id: str
    state: str  # "firing", "resolved" or "acknowledged"
    rule: str
    severity: str
    device: str
    topic: str
    value: float | str | None
    at_us: int  # event time
    decided_us: int
    reason: str
    historical: bool  # told by late readings: was never sent out
    flapping: bool


class AlertsView(Protocol):
    """What the API asks of the alerts part."""

    def active(self, rule: str | None = None, device: str | None = None) -> list[AlertView]:
        """Return alerts pending or firing, the most severe and newest first.

        Args:
            rule: Only of this rule.
            device: Only of this device.
        """
        ...

    async def history(
        self, *, rule: str | None, device: str | None, before: int | None, limit: int
    ) -> Sequence[AlertEventView]:
        """Return what happened, newest first, from before event `before` if it is given."""
        ...

    async def acknowledge(self, alert_id: str, by: str, note: str) -> AlertView | None:
        """Note that somebody has taken a firing alert on; None when there is no such alert."""
        ...


class NodeView(Protocol):
    """What the API asks of its node."""

    async def gateways(self) -> Sequence[GatewayView]:
        """Return every gateway that ever connected or sent a batch, by name."""
        ...

    async def ledger(self) -> Sequence[LedgerView]:
        """Return the balance of every (gateway, epoch), by gateway, newest epoch first."""
        ...

    async def partitions(self) -> Sequence[PartitionView]:
        """Return the partitions that hold or held anything, by number."""
        ...

    async def stored_positions(self) -> Mapping[int, int]:
        """Return how far storage has got, by partition; empty without storage, or if unknown."""
        ...

    def health(self) -> Sequence[str]:
        """Return why the process should be restarted, one line each; empty when it is well."""
        ...

    def ready(self) -> Sequence[str]:
        """Return why it cannot take batches now, one line each; empty when it can."""
        ...

    def status(self) -> StatusView:
        """Return figures of the node."""
        ...
