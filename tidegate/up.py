"""Everything in one process: a gateway, a cloud node and, if asked for, simulated devices.

The parts are those of `tidegate edge`, `tidegate cloud` and `tidegate sim`, joined by a real uplink
over loopback; only ports, the data folder and the uplink's address are set here.
"""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cloud.config import CloudConfig
from cloud.node import Node
from device_sim.config import SimConfig
from edge.config import EdgeConfig
from edge.service import EdgeService
from runtime.clock import Clock
from runtime.config import section, setting
from runtime.reload import Reloaded, changed_keys, sort_keys

__all__ = ["Site", "SiteFigures", "UpConfig", "sim_config"]

# A bridge's QoS 1 message beside its PUBLISH: the PUBACK (4), and TCP/IP headers (52) both ways
_BRIDGE_OVERHEAD = 4 + 2 * 52
_DEVICE_RATE_S = 4.0  # lively enough to watch when nobody says how often a device speaks


@dataclass(frozen=True, slots=True)
class UpConfig:
    """What `tidegate up` reads; `[edge]`, `[cloud]` and `[sim]` hold the parts' own keys."""

    data: Path = setting(Path("tidegate-data"), help="Folder that holds all state.", flag="--data")
    host: str = setting("127.0.0.1", help="Address that every port is bound to.")
    edge_port: int = setting(
        1883, help="MQTT port for devices, the gateway's.", minimum=0, maximum=65535
    )
    cloud_port: int = setting(
        2883, help="MQTT port for gateways and subscribers.", minimum=0, maximum=65535
    )
    http_port: int = setting(
        8080, help="HTTP port of API, console and metrics.", minimum=0, maximum=65535
    )
    simulate: int = setting(
        0, help="How many devices to simulate; 0 is none.", minimum=0, maximum=100_000, flag="--sim"
    )
    replay: Path | None = setting(
        None, help="Replay this trace in place of generated signals; implies --sim."
    )
    duration_s: float = setting(
        0.0,
        help="Stop by itself after this long; 0 runs until Ctrl-C.",
        unit="s",
        minimum=0,
        flag="--duration",
    )
    edge: EdgeConfig = section(EdgeConfig, help="The gateway: see `tidegate edge`.")
    cloud: CloudConfig = section(CloudConfig, help="The cloud node: see `tidegate cloud`.")
    sim: SimConfig = section(SimConfig, help="The simulated devices: see `tidegate sim`.")

    def __post_init__(self) -> None:
        if self.cloud.http.port != CloudConfig().http.port:
            raise ValueError("'cloud.http.port' does nothing here: give 'http_port'")
        if self.edge.uplink.endpoints:
            raise ValueError(
                "'edge.uplink.endpoints' does nothing here: the cloud node is this one"
            )


@dataclass(slots=True, frozen=True)
class SiteFigures:
    """The way of the readings at one moment; counts since the process started."""

    taken: int  # captured by the gateway
    stored: int  # rows of the storage sink
    backlog: int  # at the gateway, not acknowledged by the cloud
    link: str
    link_bytes: int  # really sent and received by the uplink, TCP/IP headers included
    bridge_bytes: int  # what a bridge sends and receives for the same readings, likewise

    @property
    def saved(self) -> float:
        """The share of bytes the link did not have to carry; 0 before anything was sent."""
        return max(0.0, 1 - self.link_bytes / self.bridge_bytes) if self.bridge_bytes else 0.0

    def line(self, rate_s: float) -> str:
        """Return the one line a terminal shows."""
        return (
            f"in {self.taken:,} ({rate_s:,.0f}/s)  stored {self.stored:,}  "
            f"backlog {self.backlog:,}  link {self.link}  bytes saved {self.saved:.0%}"
        )


class Site:
    """A gateway and a cloud node in this process, as one service."""

    def __init__(self, config: UpConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._cloud = Node(_cloud_config(config), clock)
        self._edge: EdgeService | None = None

    async def start(self) -> None:
        """Start the cloud node, then the gateway that dials it; raises StartError."""
        await self._cloud.start()
        self._edge = EdgeService(_edge_config(self._config, self._cloud.port), self._clock)
        await self._edge.start()
        self._cloud.show("gateway", self._edge.status)
        self._edge.show_in(self._cloud.metrics)

    async def reload(self, config: UpConfig) -> Reloaded:
        """Have both take what can be changed while they run; see `EdgeService.reload`."""
        assert self._edge is not None
        result = sort_keys(
            [
                key
                for key in changed_keys(self._config, config)
                if key.partition(".")[0] not in ("edge", "cloud")
            ],
            lambda _key: False,
        )
        # what `up` itself sets stays as it is: ports, folder, the way to one another
        wanted = replace(self._config, edge=config.edge, cloud=config.cloud)
        cloud = await self._cloud.reload(_cloud_config(wanted))
        edge = await self._edge.reload(_edge_config(wanted, self._cloud.port))
        for name, part in (("cloud", cloud), ("edge", edge)):
            result.taken += [f"{name}.{key}" for key in part.taken]
            result.needs_restart += [f"{name}.{key}" for key in part.needs_restart]
            result.problem = result.problem or part.problem
        self._config = wanted
        return result

    async def stop(self) -> None:
        """Stop the gateway first, so that what it has sent is stored."""
        if self._edge is not None:
            await self._edge.stop()
        await self._cloud.stop()

    @property
    def edge_port(self) -> int:
        """The gateway's MQTT port."""
        return self._edge.port if self._edge is not None else 0

    @property
    def cloud_port(self) -> int:
        """The cloud node's MQTT port."""
        return self._cloud.port

    @property
    def http_port(self) -> int:
        """The cloud node's HTTP port."""
        return self._cloud.http_port

    def figures(self) -> SiteFigures:
        """Return how it stands now, or how it stood when it had stopped."""
        assert self._edge is not None
        edge = self._edge.status() or self._edge.last_status
        uplink: dict[str, Any] = edge["uplink"]
        storage = self._cloud.storage
        return SiteFigures(
            taken=edge["capture"]["readings"],
            stored=storage.stats.rows if storage is not None else 0,
            backlog=uplink["backlog_readings"],
            link=uplink["link"],
            link_bytes=uplink["bytes_out"] + uplink["bytes_in"],
            bridge_bytes=uplink["packet_bytes"] + _BRIDGE_OVERHEAD * uplink["readings_sent"],
        )

    async def settle(self, timeout_s: float) -> None:
        """Return when all that was taken is stored, or after `timeout_s`."""
        deadline = self._clock.monotonic_s() + timeout_s
        while self._clock.monotonic_s() < deadline:
            figures = self.figures()
            if not figures.backlog and figures.stored >= figures.taken:
                return
            await asyncio.sleep(0.05)


def sim_config(config: UpConfig, edge_port: int) -> SimConfig:
    """Return the simulator's configuration for a site whose gateway listens on `edge_port`."""
    changes: dict[str, Any] = {
        "broker": f"mqtt://{config.host}:{edge_port}",
        "duration_s": config.duration_s,
        "verify": "",
    }
    if config.simulate:
        changes["devices"] = config.simulate
        changes["rate_per_s"] = config.sim.rate_per_s or config.simulate * _DEVICE_RATE_S
    if config.replay is not None:
        changes["replay"] = config.replay
    return dataclasses.replace(config.sim, **changes)


def _edge_config(config: UpConfig, cloud_port: int) -> EdgeConfig:
    uplink = dataclasses.replace(
        config.edge.uplink, endpoints=(f"mqtt://{config.host}:{cloud_port}",)
    )
    # the cloud node's HTTP port serves the whole site
    http = dataclasses.replace(config.edge.http, enabled=False)
    return dataclasses.replace(
        config.edge,
        data=config.data,
        host=config.host,
        port=config.edge_port,
        uplink=uplink,
        http=http,
    )


def _cloud_config(config: UpConfig) -> CloudConfig:
    http = dataclasses.replace(config.cloud.http, host=config.host, port=config.http_port)
    return dataclasses.replace(
        config.cloud, data=config.data, host=config.host, port=config.cloud_port, http=http
    )
