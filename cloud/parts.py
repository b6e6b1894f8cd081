"""What can be plugged into a cloud node: sinks of its own, and something that runs beside it.

A part gets the node once its stream and broker exist, gives the sinks it wants to be fed, is
started when the sinks run, before gateways are let in, and is stopped first. The node
knows nothing else of it; `cloud/node.py` has those that every node has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from cloud.config import CloudConfig
from cloud.gateways import GatewaysSeen
from cloud.ledger import Balance
from cloud.sinks.contract import Sink
from cloud.sinks.group import Sinks
from cloud.storage import Storage
from cloud.stream.contract import Stream
from cloud.views import NodeView
from mqtt.broker.broker import Broker
from runtime.clock import Clock
from runtime.metrics import Metrics

if TYPE_CHECKING:
    from cloud.ingest import CloudCapture

__all__ = ["CloudNode", "CloudPart"]


class CloudNode(NodeView, Protocol):
    """A node as its parts see it."""

    @property
    def config(self) -> CloudConfig:
        """Everything that is configured."""
        ...

    @property
    def clock(self) -> Clock:
        """Time."""
        ...

    @property
    def metrics(self) -> Metrics:
        """Where a part adds its figures."""
        ...

    @property
    def stream(self) -> Stream:
        """The stream, open."""
        ...

    @property
    def broker(self) -> Broker:
        """The MQTT front: `publish_many` for messages of the cloud's own."""
        ...

    @property
    def capture(self) -> CloudCapture:
        """The way into the stream."""
        ...

    @property
    def gateways_seen(self) -> GatewaysSeen:
        """The gateways of this node, as it saw them itself."""
        ...

    @property
    def storage(self) -> Storage | None:
        """The storage sink; None when it is not enabled."""
        ...

    @property
    def sinks(self) -> Sinks:
        """All sinks; only once they are started."""
        ...

    async def stream_ends(self) -> Mapping[int, int]:
        """Return the last position of each partition."""
        ...

    async def balance(self, *, thorough: bool = False) -> Balance:
        """Balance the ledger now; `thorough` counts storage row by row."""
        ...

    def figures(self) -> Mapping[str, Any]:
        """Return the figures of all parts as JSON values; empty before the node runs."""
        ...


class CloudPart(Protocol):
    """Something plugged into a node."""

    def sinks(self, node: CloudNode) -> Sequence[Sink]:
        """Return the sinks to feed; called once, before `start`."""
        ...

    async def start(self, node: CloudNode) -> None:
        """Begin; the sinks run, gateways come next.

        Raises:
            StartError: it cannot; one line.
        """
        ...

    async def stop(self) -> None:
        """End; harmless when not started."""
        ...
