"""Configuration of the edge: every key a gateway reads, declared once; the link's in
edge/uplink_config.py.

Defaults suit a small ARM board with an SD card and a link that may be away for weeks.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path

from bridge.devices import DEFAULT_PATTERNS, DeviceIds
from edge.uplink_config import UplinkConfig
from mqtt.broker.access.config import AccessConfig
from mqtt.broker.config import BrokerConfig
from mqtt.broker.front import FrontSettings
from mqtt.broker.net.config import ListenerConfig
from mqtt.topics import topic_filter_fault
from runtime.config import section, setting, tables
from runtime.logs import LogsConfig

__all__ = [
    "CaptureConfig",
    "ClockConfig",
    "CommandsConfig",
    "EdgeConfig",
    "EdgeHttpConfig",
    "JournalConfig",
    "LaneConfig",
]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB
POLICIES = ("refuse", "drop-oldest")
DURABILITIES = ("power-loss", "process-crash")


@dataclass(slots=True, frozen=True)
class LaneConfig:
    """Limits of one lane of the journal and what happens at them."""

    bytes_max: int = setting(
        0,
        unit="bytes",
        minimum=0,
        help="Most bytes of readings this lane keeps; 0 = only the limit of the whole journal.",
    )
    age_max_s: float = setting(
        0,
        unit="s",
        minimum=0,
        help="Readings older than this are dropped with a tombstone; 0 = kept however old.",
    )
    policy: str = setting(
        "refuse",
        choices=POLICIES,
        help="At a byte or disk limit: refuse new publishes, or drop the oldest readings "
        "and record the loss in a tombstone.",
    )
    thin: str = setting(
        "off",
        choices=("off", "one-of", "aggregate"),
        help="Before a lane that drops its oldest readings drops any, thin them: keep one of "
        "'thin_keep_one_of' of each client and topic, or make one of those within "
        "'thin_interval_s', its numbers with mean, min and max. What went is in a tombstone.",
    )
    thin_keep_one_of: int = setting(
        10, minimum=2, maximum=1_000_000, help="With thin = one-of: one of so many is kept."
    )
    thin_interval_s: float = setting(
        60,
        unit="s",
        minimum=1,
        maximum=86_400,
        help="With thin = aggregate: readings of a client and topic within this become one.",
    )
    thin_after_s: float = setting(
        3600, unit="s", minimum=0, help="Readings younger than this are never thinned."
    )

    def __post_init__(self) -> None:
        if self.thin != "off" and self.policy != "drop-oldest":
            raise ValueError(f"'thin' = {self.thin} needs 'policy' = drop-oldest")


@dataclass(slots=True, frozen=True)
class JournalConfig:
    """The journal: how durable, how large, how often it is written."""

    durability: str = setting(
        "power-loss",
        choices=DURABILITIES,
        help="What an acknowledged reading survives: power-loss syncs every commit to the disk; "
        "process-crash leaves it to the system, and a power cut may take the last seconds.",
    )
    commit_window_ms: float = setting(
        2,
        unit="ms",
        minimum=0,
        maximum=10_000,
        help="Least time from one commit to the next: more of it wears the card less; a publish "
        "after a pause, or 64 KB of them, are committed whatever the window.",
    )
    commit_window_max_ms: float = setting(
        1000,
        unit="ms",
        minimum=0,
        maximum=10_000,
        help="How far 'day_write_bytes' may widen the commit window.",
    )
    day_write_bytes: int = setting(
        0,
        unit="bytes",
        minimum=0,
        help="Bytes a day that the gateway should write to its disk at most: the commit window "
        "widens while more is written than that pace; 0 = no limit.",
    )
    file_bytes_max: int = setting(
        4 * GIB,
        unit="bytes",
        minimum=16 * MIB,
        help="Most bytes the journal's files take on the disk, all lanes and log together.",
    )
    disk_reserve_bytes: int = setting(
        256 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of the file system that the journal leaves free for everything else.",
    )
    tail_bytes_max: int = setting(
        8 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of recent commits kept in memory, so that the uplink need not read the disk.",
    )
    waiting_bytes_max: int = setting(
        8 * MIB,
        unit="bytes",
        minimum=64 * KIB,
        help="Bytes of publishes that may wait for a commit before the broker stops reading.",
    )
    dead_letters_bytes_max: int = setting(
        16 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of refused batches kept for inspection; the oldest go first.",
    )
    urgent: LaneConfig = section(LaneConfig, help="The lane that always goes up first.")
    live: LaneConfig = section(LaneConfig, help="The lane of all other captured readings.")


@dataclass(slots=True, frozen=True)
class CaptureConfig:
    """Which publishes become readings, and in which lane."""

    topics: tuple[str, ...] = setting(
        ("#",),
        help="Topic filters of what is captured and goes up; '#' leaves out topics "
        "that begin with '$'.",
    )
    ignore: tuple[str, ...] = setting(
        (), help="Topic filters of what stays local although 'topics' matches it."
    )
    urgent: tuple[str, ...] = setting(
        (), help="Topic filters of captured readings that go in the urgent lane."
    )

    def __post_init__(self) -> None:
        for key in ("topics", "ignore", "urgent"):
            for topic_filter in getattr(self, key):
                fault = topic_filter_fault(topic_filter, shared=False)
                if fault is not None:
                    raise ValueError(f"'{key}': {fault.detail}")


@dataclass(slots=True, frozen=True)
class ClockConfig:
    """Repairs the times of readings that were taken while the clock was wrong."""

    repair: bool = setting(
        True, help="Compare the clock with the cloud's, and correct readings taken before."
    )
    tolerance_s: float = setting(
        5,
        unit="s",
        minimum=0.1,
        help="How far the clock may be off, or be set, before readings are corrected.",
    )


@dataclass(slots=True, frozen=True)
class CommandsConfig:
    """Commands from the cloud to devices of this gateway."""

    enabled: bool = setting(True, help="Take commands and give them to devices' sessions.")
    held_max: int = setting(
        1_000,
        minimum=1,
        help="Most commands kept for devices that are away; the cloud keeps what is beyond it.",
    )
    wait_s: float = setting(
        10,
        unit="s",
        minimum=0,
        help="How long a command waits for a session that subscribes to its topic, before the "
        "outcome is 'no such device'; one that is there but away is waited for until it expires.",
    )


@dataclass(slots=True, frozen=True)
class EdgeHttpConfig:
    """Metrics, health and status by HTTP."""

    enabled: bool = setting(True, help="Serve /metrics, /healthz, /readyz and /status.")
    host: str = setting("127.0.0.1", help="Address the HTTP port is bound to.")
    port: int = setting(8081, minimum=0, maximum=65_535, help="HTTP port; 0 takes a free one.")


_GATEWAY = re.compile(r"[^\x00-\x1f\x7f/+#$][^\x00-\x1f\x7f/+#]*")


@dataclass(slots=True, frozen=True)
class EdgeConfig:
    """A gateway."""

    data: Path = setting(
        Path("tidegate-data"), flag="--data", help="Folder that holds all state, in its edge/."
    )
    gateway: str = setting(
        "",
        help="This gateway's id, unique among those of one cloud; the host's name if empty. Its "
        "readings are known by it: another id needs another data folder.",
    )
    host: str = setting(
        "0.0.0.0",  # noqa: S104 - devices come from the network; `access` says which may
        help="Address the MQTT port is bound to; empty opens only [[listeners]].",
    )
    port: int = setting(1883, minimum=0, maximum=65_535, help="MQTT port; 0 takes a free one.")
    listeners: tuple[ListenerConfig, ...] = tables(
        ListenerConfig, help="More ways in, beside host and port: TLS, WebSocket, Unix sockets."
    )
    access: AccessConfig = section(AccessConfig, help="Who may connect and what they may do.")
    devices: tuple[str, ...] = setting(
        DEFAULT_PATTERNS,
        help="Patterns that find the device id in a topic, such as 'tele/{device}/SENSOR'; the "
        "first match wins, else the MQTT client id counts.",
    )
    broker: BrokerConfig = section(BrokerConfig, help="What the MQTT broker allows its clients.")
    capture: CaptureConfig = section(CaptureConfig, help="Which publishes become readings.")
    journal: JournalConfig = section(JournalConfig, help="The journal on the disk.")
    uplink: UplinkConfig = section(UplinkConfig, help="The way to the cloud.")
    clock: ClockConfig = section(ClockConfig, help="Readings taken under a wrong clock.")
    commands: CommandsConfig = section(CommandsConfig, help="Commands from the cloud to devices.")
    http: EdgeHttpConfig = section(EdgeHttpConfig, help="Metrics, health and status by HTTP.")
    logs: LogsConfig = section(LogsConfig, help="What is logged and how.")

    def __post_init__(self) -> None:
        DeviceIds(self.devices)
        name = self.gateway_id
        if not _GATEWAY.fullmatch(name) or len(name.encode()) > 128:
            raise ValueError(
                f"'gateway' {name!r} is not 1 to 128 bytes without '/', '+', '#' and controls"
            )

    @property
    def front(self) -> FrontSettings:
        """What concerns the broker's clients."""
        return FrontSettings(self.host, self.port, self.broker, self.access, self.listeners)

    @property
    def gateway_id(self) -> str:
        """The gateway's id: as configured, else the host's name."""
        return self.gateway or socket.gethostname()
