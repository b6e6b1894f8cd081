"""Where the broker ends and its host begins: four small Protocols.

`Capture` takes publishes that must be durable before they are acknowledged (the edge journal, the
cloud ingest). `SessionStore` keeps sessions and retained messages over restarts. `Access` says who
may do what. `Bus` reaches the other nodes of a cluster. The broker never learns what is behind.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

__all__ = ["Capture", "ClientInfo", "PublishRun"]


@dataclass(slots=True)
class ClientInfo:
    """Who sent something: what the host may know of one MQTT connection."""

    client_id: str
    protocol_version: int  # 4 = MQTT 3.1.1, 5 = MQTT 5.0
    username: str | None = None
    peer: str = ""  # address, for logs
    connect_user_properties: tuple[tuple[str, str], ...] = ()
    state: dict[str, Any] = field(
        default_factory=dict
    )  # the host's own, lives as long as the connection


@dataclass(slots=True)
class PublishRun:
    """Consecutive captured PUBLISH packets of one read of one connection, for one lane.

    `frames` holds `count` whole PUBLISH packets exactly as received, except that a topic alias has
    been replaced by the topic it stood for. QoS 0, 1 and 2 may be mixed; the broker has kept
    what it needs to acknowledge them in `token`.
    """

    client: ClientInfo
    lane: int
    frames: bytes
    count: int
    time_us: int  # wall clock at the read
    settled: Callable[[PublishRun, int | Sequence[int]], None]
    token: Any = None

    # `settled(run, 0)` once every publish of the run is durable: the only way a PUBACK or PUBREC
    # leaves. A reason code >= 0x80 instead refuses the run, a sequence of them one a publish.
    # Called on the broker's loop, exactly once a run.


class Capture(Protocol):
    """Takes publishes and says when they are durable."""

    def lane(self, topic_name: str) -> int | None:
        """Return the lane that captures `topic_name`, or None when it is not captured.

        Asked once when a route is made, never per message.
        """
        ...

    def exclusive(self, lane: int) -> bool:
        """Return True when publishes of `lane` are consumed: not routed to local subscribers."""
        ...

    def take(self, run: PublishRun) -> int:
        """Take a run: 0 = taken, `run.settled` will be called; >= 0x80 = refused, nothing taken.

        A refusal (0x97 when a lane is full) is answered to v5 clients; a 3.1.1 client's connection
        is paused with the run kept, and offered again after `when_relieved`.
        """
        ...

    def saturated(self) -> bool:
        """Return True when enough is waiting for the disk: the broker then stops reading."""
        ...

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when taking can go on after refusal or saturation."""
        ...
