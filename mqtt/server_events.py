"""What a server's connection machine tells its driver, and what it is told to allow.

The events of `mqtt.server`, in the order of the wire: the codec's packets, and the shapes here
for what comes in numbers. MQTT 5.0 sections 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import TYPE_CHECKING, Final, TypeAlias

from mqtt.broker.seams import PublishRun
from mqtt.codec import Limits
from mqtt.errors import MqttError
from mqtt.packets import Auth, Connect, Disconnect, Pingreq, Subscribe, Unsubscribe
from mqtt.server_messages import Message
from mqtt.server_routes import Route, VerdictPending

if TYPE_CHECKING:
    from mqtt.server import ServerConnection

__all__ = [
    "CONNECTED",
    "Acknowledged",
    "Arrivals",
    "Event",
    "RunToken",
    "Send",
    "ServerLimits",
    "Settled",
    "State",
]


class State(IntEnum):
    """Where a connection is in its life."""

    NEW = 0  # nothing but a CONNECT may come
    CONNECTING = 1  # the driver is deciding; bytes wait
    CONNECTED = 2
    CLOSED = 3  # nothing is read any more


# In Python 3.11 a member asked of its enumeration takes 190 ns, a name 5 (benchmarks/fan_in.py).
CONNECTED: Final = State.CONNECTED


@dataclass(slots=True, frozen=True)
class ServerLimits:
    """What one connection may ask of the server; what the server says in CONNACK."""

    maximum_packet_size: int = 1 << 20
    receive_maximum: int = 1024
    topic_alias_maximum: int = 64
    topic_aliases_sent_max: int = 16
    connect_timeout_s: float = 10.0
    check_payload_format: bool = False
    codec: Limits = field(default_factory=Limits)


class Acknowledged:
    """Consecutive acknowledgements of one type and reason code.

    With type PUBLISH: QoS 2 publishes whose identifiers are in use already, sent again.
    """

    __slots__ = ("packet_ids", "packet_type", "reason_code")

    def __init__(self, packet_type: int, packet_ids: list[int], reason_code: int = 0) -> None:
        self.packet_type = packet_type  # PUBACK, PUBREC, PUBREL, PUBCOMP or PUBLISH
        self.packet_ids = packet_ids
        self.reason_code = reason_code


class Arrivals:
    """Consecutive publishes that are not captured, with what they are to be answered with."""

    __slots__ = ("messages", "packet_ids", "routes")

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.packet_ids: list[int] = []  # 0 for QoS 0
        self.routes: list[Route] = []

    def rest(self, index: int) -> Arrivals:
        """Return the publishes from the one at `index` on."""
        rest = Arrivals()
        rest.messages = self.messages[index:]
        rest.packet_ids = self.packet_ids[index:]
        rest.routes = self.routes[index:]
        return rest


# What the server keeps of a captured run: whom to answer; QoS, and RETAIN as bit 2, of every
# publish of the run; their packet identifiers, 2 bytes each, none for QoS 0; the routes that local
# subscribers may share in. A plain tuple, since one is made a read (benchmarks/fan_in.py).
RunToken: TypeAlias = "tuple[ServerConnection, int, list[bytes], Sequence[Route]]"

Settled: TypeAlias = Callable[[PublishRun, "int | Sequence[int]"], None]
Send: TypeAlias = Callable[[bytes], object]

Event: TypeAlias = (
    PublishRun
    | Arrivals
    | Acknowledged
    | Connect
    | Subscribe
    | Unsubscribe
    | Pingreq
    | Disconnect
    | Auth
    | VerdictPending
    | MqttError
)
