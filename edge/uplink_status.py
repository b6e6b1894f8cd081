"""What an operator may know of the uplink at any moment, and the counting behind it."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from edge.uplink_connection import UplinkConnection
from runtime.clock import Clock

__all__ = ["UplinkMeter", "UplinkStatus"]

_RATE_WINDOW_S = 10.0


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


class UplinkMeter:
    """Counts what the uplink does, over all its connections.

    Attributes:
        status: The figures that are counted; the others are filled in when asked for.
    """

    def __init__(self, clock: Clock) -> None:
        self.status = UplinkStatus()
        self._clock = clock
        self._closed_bytes = (0, 0)  # out and in, of connections that are gone
        self._told_bytes = 0
        self._rate_at_s = clock.monotonic_s()

    def set_link(self, link: str) -> None:
        """Note what the link is now."""
        if self.status.link != link:
            self.status.link = link
            self.status.since_us = self._clock.wall_us()

    def closed(self, connection: UplinkConnection) -> None:
        """Note what a connection has moved that is gone, or was never accepted."""
        moved = connection.link_bytes()
        out, into = self._closed_bytes
        self._closed_bytes = (out + moved.out, into + moved.into)

    def measure(self, connection: UplinkConnection | None) -> None:
        """Take what all connections have moved until now, the one in use among them."""
        status = self.status
        status.bytes_out, status.bytes_in = self._closed_bytes
        if connection is not None:
            moved = connection.link_bytes()
            status.bytes_out += moved.out
            status.bytes_in += moved.into
            status.rtt_ms = moved.rtt_ms

    def untold(self) -> int:
        """Return the bytes measured that no earlier call has returned."""
        moved = self.status.bytes_out + self.status.bytes_in
        before, self._told_bytes = self._told_bytes, moved
        return moved - before

    def acknowledged(self, readings: int) -> None:
        """Add acknowledged readings to the total and to the smoothed rate."""
        now_s = self._clock.monotonic_s()
        faded = math.exp(-(now_s - self._rate_at_s) / _RATE_WINDOW_S)
        self._rate_at_s = now_s
        status = self.status
        status.readings_sent += readings
        status.rate_readings_s = status.rate_readings_s * faded + readings / _RATE_WINDOW_S
