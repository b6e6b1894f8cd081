"""Configuration of a cloud node: every key, declared once.

Defaults suit one small server; nothing here needs to be set for `tidegate up`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge.devices import DEFAULT_PATTERNS, DeviceIds
from cloud.alerts.config import AlertsConfig
from cloud.api_config import HttpConfig
from cloud.commands.config import CommandsConfig
from mqtt.broker.access.config import AccessConfig
from mqtt.broker.config import BrokerConfig
from mqtt.broker.front import FrontSettings
from mqtt.broker.net.config import ListenerConfig
from mqtt.topics import topic_filter_fault
from runtime.config import section, setting, tables
from runtime.logs import LogsConfig

__all__ = [
    "CloudConfig",
    "IngestConfig",
    "LedgerConfig",
    "LiveConfig",
    "NatsConfig",
    "PacingConfig",
    "ParquetConfig",
    "SinksConfig",
    "StorageConfig",
    "StreamConfig",
]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


@dataclass(slots=True, frozen=True)
class NatsConfig:
    """How the node proves who it is to the NATS servers; empty keys are not used."""

    user: str = setting("", help="User name, where the servers ask for one.")
    password: str = setting("", help="Password of that user.", secret=True)
    token: str = setting("", help="Token in place of user and password.", secret=True)
    credentials: str = setting("", help="Credentials file, as NATS operators give them.")
    ca: str = setting("", help="Certificates to trust, for tls:// addresses.")
    cert: str = setting("", help="Certificate of this node.")
    key: str = setting("", help="Private key of this node.")


@dataclass(slots=True, frozen=True)
class StreamConfig:
    """The stream, a file of this process or a NATS cluster: limits, what is kept for replay."""

    url: str = setting(
        "",
        flag="--stream",
        help="NATS servers, nats://a,b,c: the stream is theirs and any number of nodes share it. "
        "Empty: a file of this node.",
    )
    cluster: str = setting(
        "tidegate",
        help="Name of the cluster on the NATS servers; its streams and buckets begin with it.",
    )
    durability: str = setting(
        "strict",
        choices=("strict", "relaxed"),
        help="strict: refuse a cluster whose acknowledgements do not survive a power cut; relaxed: "
        "use it, and say so in log, metrics and PUBACKs.",
    )
    monitors: tuple[str, ...] = setting(
        (),
        help="Monitoring addresses of all NATS servers, http://a:8222: what tells whether they "
        "fsync, and their versions.",
    )
    servers_fsync: bool = setting(
        False,
        help="You state that every NATS server has 'sync_interval: always'; not needed with "
        "monitors.",
    )
    replicas: int = setting(
        3, minimum=1, maximum=5, help="Replicas of each stream; fewer than 3 is relaxed."
    )
    start_wait_s: float = setting(
        60,
        unit="s",
        minimum=0,
        help="How long a node that starts waits for NATS servers that do not answer, as after a "
        "power cut of everything, before it ends with an error; for one answer it waits 2 s at "
        "least.",
    )
    nats: NatsConfig = section(NatsConfig, help="Who the node is to the NATS servers.")
    file_bytes_max: int = setting(
        8 * GIB,
        unit="bytes",
        minimum=1 * MIB,
        help="Most bytes of the stream's file in use, or of a cluster's entries; beyond it batches "
        "are refused and gateways keep their readings.",
    )
    disk_reserve_bytes: int = setting(
        256 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of the file system that the stream leaves free for everything else.",
    )
    replay_s: float = setting(
        3600,
        unit="s",
        minimum=0,
        help="How long entries stay after all sinks have passed them, so that a sink restored "
        "from a backup can catch up.",
    )
    replay_bytes: int = setting(
        1 * GIB,
        unit="bytes",
        minimum=0,
        help="Most bytes of entries that stay after all sinks have passed them.",
    )
    trace_batches: int = setting(
        200_000,
        minimum=0,
        help="Batches whose arrival is remembered for 'tidegate trace', about 120 bytes each.",
    )
    tail_bytes_max: int = setting(
        16 * MIB,
        unit="bytes",
        minimum=0,
        help="Bytes of the newest entries kept in memory, so that sinks need not read the disk.",
    )

    def __post_init__(self) -> None:
        if self.url and not self.url.startswith(("nats://", "tls://")):
            raise ValueError(f"url '{self.url}': nats://host[:port][,host[:port]...]")
        if not self.cluster.replace("-", "").replace("_", "").isalnum():
            raise ValueError(f"cluster '{self.cluster}': letters, digits, '-' and '_'")


@dataclass(slots=True, frozen=True)
class IngestConfig:
    """What the node takes from gateways and from devices connected to it."""

    topics: tuple[str, ...] = setting(
        ("devices/#",),
        help="Topic filters of publishes by devices connected to this node that become readings; "
        "topics under 'tidegate/' or beginning with '$' never do.",
    )
    devices: tuple[str, ...] = setting(
        DEFAULT_PATTERNS,
        help="Patterns that find the device id in a topic; the first match wins, else the "
        "MQTT client id counts.",
    )
    waiting_bytes_max: int = setting(
        32 * MIB,
        unit="bytes",
        minimum=64 * KIB,
        help="Bytes of publishes that may wait for the stream before the broker stops reading.",
    )
    batch_bytes_max: int = setting(
        16 * MIB,
        unit="bytes",
        minimum=4 * KIB,
        help="Largest batch accepted from a gateway.",
    )
    contexts_max: int = setting(
        256,
        minimum=0,
        maximum=65_536,
        help="How many gateways may send in the structured mode at once, each for 1 to 40 MB of "
        "a decoder's process, and 96 MB were it hostile; further ones send columnar batches. "
        "0 switches the mode off.",
    )
    decoders: int = setting(
        0,
        minimum=0,
        maximum=64,
        help="How many processes decode the structured mode, at most; they share 'contexts_max'. "
        "Each is started by the first gateway it gets, and takes about 40 MB beside the contexts. "
        "0: as many as there are cores, at most 4.",
    )
    snapshot_bytes_max: int = setting(
        256 << 20,
        minimum=0,
        unit="bytes",
        help="Most disk for snapshots of what gateways and this node know of each other, the last "
        "two of each: their next connections start from there. With 0 they start from nothing.",
    )

    def __post_init__(self) -> None:
        for topic_filter in self.topics:
            fault = topic_filter_fault(topic_filter, shared=False)
            if fault is not None:
                raise ValueError(f"topics: '{topic_filter}': {fault.detail}")
        DeviceIds(self.devices)  # raises PatternError, a ValueError, for a bad pattern


@dataclass(slots=True, frozen=True)
class SinksConfig:
    """How the stream's entries are handed to the sinks."""

    write_bytes_max: int = setting(
        2 * MIB,
        unit="bytes",
        minimum=64 * KIB,
        help="Most bytes of entries a sink gets in one write.",
    )
    tries_max: int = setting(
        5,
        minimum=1,
        help="How often an entry may fail before it is set aside as a dead letter.",
    )
    retry_s: float = setting(
        0.2,
        unit="s",
        minimum=0.001,
        help="First pause after a failure; doubles each time.",
    )
    retry_max_s: float = setting(
        30,
        unit="s",
        minimum=0.001,
        help="Longest pause between two tries of an entry; a sink that can take none is tried "
        "every 2 s at least.",
    )
    decoded_readings_max: int = setting(
        50_000,
        minimum=0,
        help="Readings kept decoded in memory, so that several sinks share the work.",
    )


@dataclass(slots=True, frozen=True)
class StorageConfig:
    """Storage: every reading as a row, in SQLite or PostgreSQL."""

    enabled: bool = setting(True, help="Store readings.")
    url: str = setting(
        "",
        secret=True,
        help="Where: postgresql://[user@]host[:port][,host[:port]...]/database, of several servers "
        "the primary; empty = DIR/cloud/storage.db. A password belongs in PGPASSWORD or a file "
        "that PGPASSFILE names.",
    )
    schema: str = setting(
        "tidegate", help="With PostgreSQL: the schema of the tables; made when it is absent."
    )
    slice_s: float = setting(
        604_800,
        unit="s",
        minimum=60,
        maximum=100 * 366 * 86_400,
        help="With PostgreSQL: how much time of arrival one partition of the table holds; "
        "retention drops whole ones.",
    )
    linger_ms: float = setting(
        20,
        unit="ms",
        minimum=0,
        maximum=10_000,
        help="How long a write may wait for more readings.",
    )
    age_max_s: float = setting(
        0,
        unit="s",
        minimum=0,
        help="Rows whose readings came in longer ago than this are deleted; 0 = never.",
    )
    file_bytes_max: int = setting(
        0,
        unit="bytes",
        minimum=0,
        help="When storage uses more bytes than this the oldest rows are deleted; 0 = never.",
    )
    cache_bytes: int = setting(
        32 * MIB,
        unit="bytes",
        minimum=1 * MIB,
        help="Memory for pages of the database.",
    )


@dataclass(slots=True, frozen=True)
class ParquetConfig:
    """Readings as Parquet files, a folder a day, beside storage."""

    enabled: bool = setting(False, help="Write readings as Parquet files too.")
    folder: str = setting(
        "",
        help="Where; empty = DIR/cloud/parquet. Nodes of a cluster need one that they share.",
    )
    linger_s: float = setting(
        300,
        unit="s",
        minimum=0,
        maximum=86_400,
        help="How long readings wait in the stream for more, so that files are few and large.",
    )
    rows_max: int = setting(
        100_000,
        minimum=1,
        maximum=1_000_000,
        help="Most readings written at once, in as few files as there are partitions and days "
        "among them.",
    )


@dataclass(slots=True, frozen=True)
class LiveConfig:
    """Readings as MQTT messages for subscribers of this node."""

    enabled: bool = setting(True, help="Publish readings under their own topics on this node.")
    skip_older_s: float = setting(
        300,
        unit="s",
        minimum=0,
        help="At start, entries that came in longer ago than this are passed over.",
    )
    historical_s: float = setting(
        60,
        unit="s",
        minimum=0,
        help="Readings older than this carry the user property 'tidegate-historical' = 1.",
    )


@dataclass(slots=True, frozen=True)
class PacingConfig:
    """How gateways are told to drain no faster than the sinks write."""

    enabled: bool = setting(True, help="Limit backlog when sinks fall behind; live never is.")
    lag_target_s: float = setting(
        5,
        unit="s",
        minimum=0.1,
        help="Seconds of work a sink may have before it before gateways are slowed down.",
    )
    interval_s: float = setting(
        1, unit="s", minimum=0.05, maximum=60, help="How often credits are set."
    )
    connects_s: float = setting(
        200,
        minimum=0,
        help="Gateways let in a second, a burst of one second's worth; others are told when it is "
        "their turn and dial again then. 0 = any number.",
    )
    valid_s: int = setting(
        30,
        unit="s",
        minimum=1,
        maximum=3600,
        help="How long a credit holds at a gateway that hears nothing more.",
    )


@dataclass(slots=True, frozen=True)
class LedgerConfig:
    """The account of every reading, as figures of the running node."""

    interval_s: float = setting(
        15,
        unit="s",
        minimum=0.05,
        help="How often the ledger is balanced for /metrics and status.",
    )


@dataclass(slots=True, frozen=True)
class FrontBrokerConfig(BrokerConfig):
    """What the cloud's broker allows its clients; gateways are among them."""

    maximum_packet_size_bytes: int = setting(
        4 << 20,
        help="Largest MQTT packet taken. More than gateways take of their devices: a batch wraps "
        "what a device sent, and one that is too large ends among the gateway's dead letters.",
        unit="bytes",
        minimum=256,
        maximum=268_435_460,
    )


@dataclass(slots=True, frozen=True)
class CloudConfig:
    """Everything a cloud node reads."""

    data: Path = setting(
        Path("tidegate-data"),
        flag="--data",
        help="Folder for all state; the cloud's is below cloud/.",
    )
    node_id: str = setting(
        "cloud",
        help="This node's id: the gateway of readings by devices connected to it.",
    )
    host: str = setting(
        "127.0.0.1",
        help="Address the MQTT port is bound to; 0.0.0.0 lets gateways in from the network; "
        "empty opens only [[listeners]].",
    )
    port: int = setting(2883, minimum=0, maximum=65535, help="MQTT port; 0 takes a free one.")
    listeners: tuple[ListenerConfig, ...] = tables(
        ListenerConfig, help="More ways in, beside host and port: TLS, WebSocket, Unix sockets."
    )
    access: AccessConfig = section(AccessConfig, help="Who may connect and what they may do.")
    broker: FrontBrokerConfig = section(FrontBrokerConfig, help="The MQTT front and its limits.")
    ingest: IngestConfig = section(IngestConfig, help="What is taken into the stream.")
    stream: StreamConfig = section(StreamConfig, help="The stream between ingest and sinks.")
    sinks: SinksConfig = section(SinksConfig, help="How sinks are fed.")
    storage: StorageConfig = section(StorageConfig, help="Readings as rows.")
    parquet: ParquetConfig = section(ParquetConfig, help="Readings as files of columns.")
    live: LiveConfig = section(LiveConfig, help="Readings as MQTT messages.")
    pacing: PacingConfig = section(PacingConfig, help="How fast gateways may drain.")
    alerts: AlertsConfig = section(AlertsConfig, help="Rules and where alerts go.")
    commands: CommandsConfig = section(CommandsConfig, help="Commands to devices.")
    ledger: LedgerConfig = section(LedgerConfig, help="Where every reading is.")
    http: HttpConfig = section(HttpConfig, help="API, console, metrics and health.")
    logs: LogsConfig = section(LogsConfig, help="What is logged, and how.")

    def __post_init__(self) -> None:
        if not self.node_id or any(sign in self.node_id for sign in "/+#\0"):
            raise ValueError(f"node_id '{self.node_id}': a word without '/', '+' and '#'")

    @property
    def front(self) -> FrontSettings:
        """What concerns the broker's clients."""
        return FrontSettings(self.host, self.port, self.broker, self.access, self.listeners)
