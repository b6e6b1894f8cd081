"""Which gateways are connected, and when each was last heard of: what this node saw itself.

The broker tells of clients that come and go. A client is a gateway from its first batch on; before
that one is shown as connected where its client id says so, and the ledger knows it. What must
outlive a restart is in the stream's ledger, not here.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce
from operator import or_

from bridge.envelope import LinkLane
from bridge.link_pacing import UPLINK_CLIENT_PREFIX
from bridge.partition import partitions_of
from cloud.ingest_batches import BatchTaken
from mqtt.broker.seams import ClientInfo
from runtime.clock import Clock

__all__ = ["GatewayLink", "GatewaySeen", "GatewaysSeen"]

_CONNECTED_KEY = "connected_us"


@dataclass(slots=True, frozen=True)
class GatewayLink:
    """How a gateway's link to a node is, as that node saw it itself."""

    gateway: str
    connected: bool = False
    peer: str = ""  # its address while connected
    connected_us: int | None = None
    last_batch_us: int | None = None
    last_event_us: int | None = None
    lag_s: float | None = None
    epoch: int | None = None
    node: str = ""

    def newer_than(self, other: GatewayLink) -> bool:
        """Return True when this node's word counts more than another's."""
        mine = (self.connected, self.last_batch_us or 0)
        return mine > (other.connected, other.last_batch_us or 0)


@dataclass(slots=True)
class GatewaySeen:
    """One gateway since this process started."""

    gateway: str
    client: ClientInfo | None = None  # None while it is not connected
    connected_us: int | None = None
    last_batch_us: int | None = None
    last_event_us: int | None = None  # newest time at the edge among its readings
    lag_s: float | None = None  # of the newest batch that had not waited through an outage
    epoch: int | None = None
    live_readings: int = 0  # that came by other lanes than backlog
    backlog_readings: int = 0
    backlog_batch: int = 0  # readings of the last of them
    backlog_us: int = 0  # when the last of them came; 0 = never
    partitions: int = 0  # a bit for each that its latest backlog went to

    def link(self) -> GatewayLink:
        """Return how its link is."""
        return GatewayLink(
            gateway=self.gateway,
            connected=self.client is not None,
            peer=self.client.peer if self.client is not None else "",
            connected_us=self.connected_us,
            last_batch_us=self.last_batch_us,
            last_event_us=self.last_event_us,
            lag_s=self.lag_s,
            epoch=self.epoch,
        )


class GatewaysSeen:
    """The gateways of one node; the broker's `Hooks`.

    Args:
        clock: Wall clock.
        gateways_max: Most gateways remembered; those heard of longest ago go first.
    """

    def __init__(self, clock: Clock, *, gateways_max: int = 100_000) -> None:
        self._clock = clock
        self._gateways: OrderedDict[str, GatewaySeen] = OrderedDict()
        self._gateways_max = gateways_max
        self._uplinks: dict[str, ClientInfo] = {}  # who says to be a gateway's, by its name
        self.connections = 0  # clients connected, gateways or not
        self.admits: Callable[[ClientInfo], float] = lambda _client: 0.0  # as `connect_wait_s`

    def all(self) -> list[GatewaySeen]:
        """Return every gateway heard of."""
        return list(self._gateways.values())

    def links(self) -> list[GatewayLink]:
        """Return how the links are: of every gateway heard of, and of who says to be one's."""
        found = {one.gateway: one.link() for one in self._gateways.values()}
        for name, client in self._uplinks.items():
            link = found.get(name) or GatewayLink(name)
            if not link.connected:
                since_us = client.state.get(_CONNECTED_KEY)
                found[name] = replace(link, connected=True, peer=client.peer, connected_us=since_us)
        return list(found.values())

    def quiet_s(self) -> dict[tuple[str, ...], float]:
        """Return how long ago the last batch of each gateway came, as a metric has it."""
        now_us = self._clock.wall_us()
        return {
            (one.gateway,): max(0.0, (now_us - one.last_batch_us) / 1e6)
            for one in self._gateways.values()
            if one.last_batch_us is not None
        }

    def connect_wait_s(self, client: ClientInfo) -> float:
        """Return after how long a client should come again; 0: now is fine."""
        return self.admits(client)

    def client_connected(self, client: ClientInfo) -> None:
        """Note when a client came; whether it is a gateway shows with its first batch."""
        self.connections += 1
        client.state[_CONNECTED_KEY] = self._clock.wall_us()
        if client.client_id.startswith(UPLINK_CLIENT_PREFIX):
            self._uplinks[client.client_id.removeprefix(UPLINK_CLIENT_PREFIX)] = client

    def client_disconnected(self, client: ClientInfo, reason_code: int) -> None:  # noqa: ARG002
        """Note that a client is gone."""
        self.connections -= 1
        client.state.pop(_CONNECTED_KEY, None)
        name = client.client_id.removeprefix(UPLINK_CLIENT_PREFIX)
        if self._uplinks.get(name) is client:  # not one that has taken its place
            del self._uplinks[name]
        for gateway in client.state.get("gateways", ()):
            seen = self._gateways.get(gateway)
            if seen is not None and seen.client is client:
                seen.client = None
                seen.connected_us = None

    def batch_taken(self, taken: BatchTaken) -> None:
        """Note a batch that has become durable; who sent it may be gone by now."""
        batch, client = taken.batch, taken.client
        seen = self._gateways.get(batch.gateway)
        if seen is None:
            if len(self._gateways) >= self._gateways_max:
                self._gateways.popitem(last=False)
            seen = self._gateways[batch.gateway] = GatewaySeen(batch.gateway)
        self._gateways.move_to_end(batch.gateway)
        connected_us = client.state.get(_CONNECTED_KEY)
        if seen.client is not client and connected_us is not None:
            seen.client = client
            seen.connected_us = connected_us
            client.state.setdefault("gateways", set()).add(batch.gateway)
        seen.last_batch_us = taken.now_us
        seen.epoch = batch.epoch
        if batch.lane == LinkLane.BACKLOG:
            seen.backlog_readings += len(batch.readings)
            seen.backlog_batch = len(batch.readings)
            seen.backlog_us = taken.now_us
            seen.partitions = reduce(
                or_, (1 << p for p in set(partitions_of(batch.readings.sources))), 0
            )
        else:
            seen.live_readings += len(batch.readings)
        times = batch.readings.times_us
        if times:
            newest_us = max(times)
            seen.last_event_us = max(newest_us, seen.last_event_us or newest_us)
            if not batch.historical:
                seen.lag_s = max(0.0, (taken.now_us - newest_us) / 1_000_000)
