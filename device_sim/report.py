"""What a simulation tells: once a second while it runs, and as a whole at its end."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from device_sim.judge import Verdict
from device_sim.truth import Truth

__all__ = ["Progress", "SimReport"]


@dataclass(slots=True, frozen=True)
class Progress:
    """The fleet now; rates and quantiles are of the second just past."""

    elapsed_s: float
    connected: int
    sent: int  # publishes so far, repeated ones included
    acked: int
    rate_per_s: float  # acknowledged (QoS 0: sent)
    p50_ms: float  # from due to acknowledged
    p99_ms: float

    def line(self) -> str:
        """Return the one line that a terminal shows."""
        return (
            f"{self.elapsed_s:6.0f} s  {self.connected} connected  {self.sent} sent"
            f"  {self.acked} acknowledged  {self.rate_per_s:.0f}/s"
            f"  p50 {self.p50_ms:.1f} ms  p99 {self.p99_ms:.1f} ms"
        )


@dataclass(slots=True)
class SimReport:
    """A finished run.

    Latencies are in milliseconds: `due_latency` from when a reading was due to its
    acknowledgement, waiting for a connection or a full window included; `wire_latency` from its
    writing to the socket; `store_latency` from its writing to its taking by the cloud.
    """

    run: str
    devices: int
    connections: int
    elapsed_s: float  # first to last publish or acknowledgement
    readings: int  # distinct readings sent
    unsent: int  # readings that were due when the run ended and never went out
    sent: int  # publishes: readings and what was sent again
    acked: int  # readings acknowledged (QoS 0: none)
    refused: int  # acknowledged with a reason code of failure
    unacked: int  # readings left without an acknowledgement
    rate_per_s: float
    payload_bytes: int
    connects: int
    connect_failures: int
    connections_lost: int
    due_latency: dict[str, float]
    wire_latency: dict[str, float]
    stopped_by: str  # "duration", "count", "trace end", "stop", "broker"
    max_rss_bytes: int
    store_latency: dict[str, float] = field(default_factory=dict)
    verdict: Verdict | None = None
    truth: Truth | None = None  # not part of the JSON

    @property
    def ok(self) -> bool:
        """True unless a verification found a fault."""
        return self.verdict is None or self.verdict.ok

    def as_dict(self) -> dict[str, Any]:
        """Return everything but the truth as JSON values."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "truth"}
        if self.verdict is not None:
            fields["verdict"] = asdict(self.verdict)
        return fields | {"ok": self.ok}

    def write(self, path: Path) -> None:
        """Write the report as JSON; raises OSError."""
        path.write_text(json.dumps(self.as_dict(), indent=2) + "\n", "utf-8")

    def text(self) -> str:
        """Return the summary for a person, a few lines."""
        due, wire = self.due_latency, self.wire_latency
        lines = [
            (
                f"{self.devices} devices on {self.connections} connections, {self.elapsed_s:.1f} s,"
                f" ended by {self.stopped_by}"
            ),
            (
                f"{self.readings} readings in {self.sent} publishes ({self.rate_per_s:.0f}/s):"
                f" {self.acked} acknowledged, {self.refused} refused, {self.unacked} unacknowledged"
            ),
            (
                f"{self.connects} connects, {self.connect_failures} failed,"
                f" {self.connections_lost} connections lost"
            ),
        ]
        if self.unsent:
            lines.append(f"{self.unsent} readings were due at the end and had not been sent")
        for name, times in (("due", due), ("sent", wire), ("stored", self.store_latency)):
            if times.get("max_ms"):
                shown = "  ".join(f"{key[:-3]} {value:.1f}" for key, value in times.items())
                end = "taken by the cloud" if name == "stored" else "acknowledged"
                begin = "sent" if name == "stored" else name
                lines.append(f"{begin} to {end}, ms: {shown}")
        if self.verdict is not None:
            lines.append(self.verdict.summary())
        return "\n".join(lines)
