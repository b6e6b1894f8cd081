"""The shapes of the API's answers that are not already records of cloud/views.py, for `/docs`.

Every time is given twice where people look at it: `time` as ISO 8601 in UTC, `time_us` as
microseconds since 1970. A payload is under `payload` (its JSON value, or its text) or, when it is
neither, under `payload_base64`.
"""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from cloud.views import AlertEventView, AlertView, GatewayView, LedgerView, PartitionView

__all__ = [
    "Acknowledgement",
    "Alerts",
    "Devices",
    "Gateways",
    "Health",
    "LatestValues",
    "Ledger",
    "Partitions",
    "Problem",
    "Readings",
]


class Problem(BaseModel):
    """Why there is no answer: one line."""

    detail: str


class LatestValue(BaseModel):
    """The newest reading of one topic."""

    topic: str
    time: str
    time_us: int
    received_us: int
    gateway: str
    epoch: str
    seq: int
    qos: int
    payload: Any = None
    payload_base64: str | None = None
    payload_bytes: int = Field(description="Of the whole payload; a long one is shown cut.")
    stored: bool = Field(description="Storage has it: a query finds it.")


class LatestValues(BaseModel):
    """The newest reading of each topic of a device."""

    device: str
    values: list[LatestValue]


class Device(BaseModel):
    """One device that sent something."""

    device: str
    gateway: str
    time: str
    time_us: int
    received_us: int
    topics: int
    values: list[LatestValue] | None = Field(None, description="When asked for by `values=true`.")


class Devices(BaseModel):
    """A page of devices, by id."""

    devices: list[Device]
    next: str = Field(description='Give it as `after` for the next page; "" when this is the last.')


class Reading(BaseModel):
    """One reading, or one step of an aggregate (then only up to `count`)."""

    time: str
    time_us: int
    device: str
    topic: str
    value: Any = None
    count: int | None = None
    payload: Any = None
    payload_base64: str | None = None
    gateway: str | None = None
    epoch: str | None = None
    seq: int | None = None
    received_us: int | None = None
    qos: int | None = None


class Readings(BaseModel):
    """A page of readings."""

    device: str
    readings: list[Reading]
    next: str = Field(description='Give it as `after` for the next page; "" when this is the last.')


class Gateways(BaseModel):
    """Every gateway the node knows."""

    gateways: list[GatewayView]


class Ledger(BaseModel):
    """The balance of every (gateway, epoch)."""

    balanced: bool
    ledger: list[LedgerView]


class Partitions(BaseModel):
    """The partitions of the stream."""

    partitions: list[PartitionView]


class Alerts(BaseModel):
    """Alerts that are on, or with `view=history` what happened to alerts.

    `next` is for the next page of events: give it as `before`. `silent` are nodes of the cluster
    that did not answer: what stands there is missing.
    """

    alerts: list[AlertView] | None = None
    events: list[AlertEventView] | None = None
    next: str | None = None
    silent: list[str] = []


class Acknowledgement(BaseModel):
    """Who takes an alert on, and what they say."""

    by: str = Field(min_length=1, max_length=100)
    note: str = Field("", max_length=1_000)


class Health(BaseModel):
    """Whether all is well, and if not, why."""

    ok: bool
    reasons: list[str]
