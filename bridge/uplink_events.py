"""What `bridge.uplink_state` and its driver tell one another: grants, batches sent, events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from bridge.envelope import Tombstone
from bridge.link_speed import Mark

__all__ = ["Durable", "Grant", "Redial", "Sent", "SetAside", "UplinkEvent", "UplinkLimits"]


@dataclass(slots=True, frozen=True)
class UplinkLimits:
    """Sizes and times the uplink keeps to."""

    batch_readings: int = 500
    batch_bytes: int = 256 * 1024  # of payloads and topics before compression
    window_bytes: int = 1024 * 1024  # of batches in flight
    window_batches: int = 512  # as many as fill a window of a fast and long way
    rate_bytes_s: float = 0.0  # what the link may be used for; 0 = as it carries
    ack_timeout_s: float = 30.0
    backoff_min_s: float = 0.5
    backoff_max_s: float = 60.0


@dataclass(slots=True, frozen=True)
class Grant:
    """Leave to make one batch; worthless once `generation` is no longer the state's."""

    lane: int
    after_seq: int
    readings_max: int
    bytes_max: int  # a single reading may be more
    mode: int
    fresh: bool  # start a new context first
    generation: int


@dataclass(slots=True, eq=False)
class Sent:
    """A batch in flight."""

    lane: int
    after_seq: int
    first_seq: int
    last_seq: int  # = after_seq when the batch holds no readings
    count: int
    bytes: int
    mode: int
    generation: int
    mark: Mark | None = None  # None: it was not sent
    tombstones: Sequence[Tombstone] = ()
    durable: bool = False


@dataclass(slots=True, frozen=True)
class Durable:
    """Everything of `lane` past `after_seq` up to `seq` is safe in the cloud, and these stones."""

    lane: int
    seq: int
    readings: int
    tombstones: Sequence[Tombstone]
    after_seq: int = 0


@dataclass(slots=True, frozen=True)
class SetAside:
    """These readings will not be taken: make them dead letters, then call `set_aside_done`."""

    lane: int
    after_seq: int
    first_seq: int
    last_seq: int
    cause: str


@dataclass(slots=True, frozen=True)
class Redial:
    """Drop the connection: it is open, and nothing gets through."""

    cause: str


UplinkEvent: TypeAlias = Durable | SetAside | Redial
