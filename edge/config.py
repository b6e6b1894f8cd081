"""Configuration of the edge: every key a gateway reads, declared once.

Defaults suit a small ARM board with an SD card and a link that may be away for weeks.
"""

from __future__ import annotations

import re
import socket
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from bridge.devices import DEFAULT_PATTERNS, DeviceIds
from bridge.link_budget import BudgetLimits, Window
from bridge.uplink_state import UplinkLimits
from mqtt.broker.access.config import AccessConfig
from mqtt.broker.config import BrokerConfig
from mqtt.broker.front import FrontSettings
from mqtt.broker.net.config import ListenerConfig
from mqtt.topics import topic_filter_fault
from runtime.config import section, setting, tables
from runtime.logs import LogsConfig

__all__ = [
    "BudgetConfig",
    "CaptureConfig",
    "ClockConfig",
    "CommandsConfig",
    "EdgeConfig",
    "EdgeHttpConfig",
    "Endpoint",
    "JournalConfig",
    "LaneConfig",
    "UplinkConfig",
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
class Endpoint:
    """Where a cloud node takes batches."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'mqtts' if self.tls else 'mqtt'}://{host}:{self.port}"

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """Return the endpoint of `mqtt://HOST[:PORT]` (port 1883) or `mqtts://` (8883).

        Raises:
            ValueError: `url` is something else.
        """
        parts = urlsplit(url)
        try:
            port = parts.port
        except ValueError:
            port = 0
        plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
        if parts.scheme not in ("mqtt", "mqtts") or not parts.hostname or port == 0 or not plain:
            raise ValueError(f"endpoint {url!r} is not mqtt://HOST:PORT or mqtts://HOST:PORT")
        tls = parts.scheme == "mqtts"
        return cls(parts.hostname, port or (8883 if tls else 1883), tls)


@dataclass(slots=True, frozen=True)
class BudgetConfig:
    """What a metered link may carry; days and times are UTC, bytes both ways, TCP/IP included."""

    day_bytes: int = setting(
        0, unit="bytes", minimum=0, help="Most bytes of one day; 0 = no limit."
    )
    month_bytes: int = setting(
        0, unit="bytes", minimum=0, help="Most bytes of one calendar month; 0 = no limit."
    )
    urgent_share: float = setting(
        0.1,
        minimum=0,
        maximum=0.9,
        help="Share of both budgets that only urgent readings may use.",
    )
    rate_bytes_s: float = setting(
        0,
        unit="bytes/s",
        minimum=0,
        help="Most bytes of batches a second; 0 = as the link carries. Urgent ones go at once.",
    )
    windows: tuple[str, ...] = setting(
        (),
        help="Times of the day in which the link may be used, as 'HH:MM-HH:MM' UTC; none = always. "
        "Urgent readings go at any time.",
    )

    def __post_init__(self) -> None:
        for text in self.windows:
            Window.parse(text)

    @property
    def limits(self) -> BudgetLimits:
        """What the account keeps to."""
        return BudgetLimits(
            self.day_bytes,
            self.month_bytes,
            self.urgent_share,
            self.rate_bytes_s,
            tuple(map(Window.parse, self.windows)),
        )


@dataclass(slots=True, frozen=True)
class UplinkConfig:
    """The way to the cloud: where to, in what pieces, how patient."""

    endpoints: tuple[str, ...] = setting(
        (),
        help="Cloud nodes as mqtt://HOST:PORT or mqtts://HOST:PORT, tried in this order; "
        "without any, readings stay in the journal.",
    )
    username: str = setting("", help="MQTT user name for the cloud; empty sends none.")
    password: str = setting("", secret=True, help="Password that goes with the user name.")
    tls_ca_file: Path | None = setting(
        None, help="Certificates trusted for mqtts, as PEM; the system's when not given."
    )
    tls_cert_file: Path | None = setting(
        None, help="This gateway's certificate chain for mqtts, as PEM."
    )
    tls_key_file: Path | None = setting(
        None, help="The key of that certificate, as PEM; may lie in the same file."
    )
    batch_readings: int = setting(
        500,
        minimum=1,
        maximum=10_000,
        help="Most readings in one batch; more of them cost fewer bytes a reading.",
    )
    batch_bytes: int = setting(
        256 * KIB,
        unit="bytes",
        minimum=1 * KIB,
        maximum=8 * MIB,
        help="Most bytes of payloads and topics in one batch, before compression; "
        "a single reading may be more.",
    )
    linger_ms: float = setting(
        50,
        unit="ms",
        minimum=0,
        maximum=60_000,
        help="How long a reading may wait for others to share its batch; urgent ones never wait.",
    )
    window_bytes: int = setting(
        1 * MIB,
        unit="bytes",
        minimum=4 * KIB,
        maximum=64 * MIB,
        help="Most bytes of batches on their way without an acknowledgement.",
    )
    ack_timeout_s: float = setting(
        30,
        unit="s",
        minimum=1,
        help="When bytes on their way stand still for this long the connection is dialled anew.",
    )
    connect_timeout_s: float = setting(
        10,
        unit="s",
        minimum=0.1,
        maximum=300,
        help="How long one endpoint may take to accept the connection.",
    )
    keep_alive_s: int = setting(
        30, unit="s", minimum=5, maximum=65_535, help="MQTT keep alive of an idle connection."
    )
    backoff_min_s: float = setting(
        0.5, unit="s", minimum=0.01, help="Shortest pause before dialling or sending again."
    )
    backoff_max_s: float = setting(
        60, unit="s", minimum=0.01, help="Longest pause before dialling or sending again."
    )
    time_resolution_ms: float = setting(
        1,
        unit="ms",
        minimum=0.001,
        maximum=60_000,
        help="Times of readings are cut down to multiples of this; coarser ones cost fewer bytes.",
    )
    historical_s: float = setting(
        60,
        unit="s",
        minimum=1,
        help="Readings that wait for longer than this are sent marked as historical: they are "
        "stored as all others and never raise an alert as if they were live. Once the oldest waits "
        "for longer, all that lies in the journal drains as backlog, behind what comes in.",
    )
    backlog_share: float = setting(
        0.3,
        minimum=0.05,
        maximum=0.95,
        help="Share of the link's bytes that a backlog gets while live readings want them too; "
        "what either does not use the other may.",
    )
    mode: str = setting(
        "auto",
        choices=("auto", "columnar", "structured"),
        help="How payloads are packed: 'structured' takes a fraction of the bytes and more CPU, "
        "'columnar' little of both; 'auto' is structured for as long as encoding keeps up. What "
        "the structured mode cannot make smaller always goes columnar.",
    )
    zstd_level: int = setting(
        0,
        minimum=0,
        maximum=19,
        help="Effort of columnar compression: higher is smaller and slower; 0 = 3 to 9, by the "
        "link's speed and what compressing costs.",
    )

    budget: BudgetConfig = section(BudgetConfig, help="What a metered link may carry.")

    def __post_init__(self) -> None:
        for url in self.endpoints:
            Endpoint.parse(url)
        if self.password and not self.username:
            raise ValueError("'password' is given without 'username'")
        if self.tls_key_file is not None and self.tls_cert_file is None:
            raise ValueError("'tls_key_file' is given without 'tls_cert_file'")
        if self.backoff_max_s < self.backoff_min_s:
            raise ValueError("'backoff_max_s' is less than 'backoff_min_s'")

    @property
    def limits(self) -> UplinkLimits:
        """What the uplink's state machine keeps to."""
        return UplinkLimits(
            batch_readings=self.batch_readings,
            batch_bytes=self.batch_bytes,
            window_bytes=self.window_bytes,
            rate_bytes_s=self.budget.rate_bytes_s,
            ack_timeout_s=self.ack_timeout_s,
            backoff_min_s=self.backoff_min_s,
            backoff_max_s=self.backoff_max_s,
        )


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
        "", help="This gateway's id, unique among those of one cloud; the host's name if empty."
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
