"""What an operator may know of the uplink at any moment."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["UplinkStatus"]


@dataclass(slots=True)
class UplinkStatus:
    """Link state and counts since the process started; bytes as on the wire (TLS, TCP/IP)."""

    link: str = (
        "off"  # off, connecting, online, waiting (after a refusal), offline, parked (budget)
    )
    endpoint: str = ""
    since_us: int = 0  # wall clock of the last change of `link`
    dials: int = 0
    connections: int = 0
    last_error: str = ""
    bytes_out: int = 0
    bytes_in: int = 0
    packet_bytes: int = 0  # what the acknowledged readings take as MQTT packets of their own
    readings_sent: int = 0  # acknowledged by the cloud
    batches_sent: int = 0
    structured_batches: int = 0  # of those: in the structured mode
    encoder_restarts: int = 0  # the encoder's process had to be started again
    batches_in_flight: int = 0
    bytes_in_flight: int = 0
    window_bytes: int = 0  # what may be in flight, by the link's speed
    refusals: int = 0
    dead_letters: int = 0  # readings set aside
    backlog_readings: int = 0  # not acknowledged by the cloud, both lanes
    oldest_age_s: float = 0.0  # of the oldest reading not acknowledged, 0 without any
    rate_readings_s: float = 0.0  # acknowledged, smoothed over about ten seconds
    drain_s: float | None = None  # until the backlog is gone at that rate; None = not draining
    rtt_ms: float = 0.0
    day_bytes: int = 0  # this UTC day, both ways, earlier runs included; 0 without a budget
    month_bytes: int = 0
    zstd_level: int = 0  # of the next columnar batch
    waits_for: str = ""  # what live readings wait for: a budget, a time window, the rate
    waits_s: float = 0.0  # and for how long

    def as_dict(self) -> dict[str, Any]:
        """Return the figures by name, as JSON has them."""
        return asdict(self)
