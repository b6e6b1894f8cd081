"""The streams and buckets of a cluster, declared.

    {cluster}-RAW0..3     {cluster}.raw.{partition}   bodies of entries, partition p in RAW[p % 4]
    {cluster}-LEDGER      {cluster}.ledger            what was committed, in the one order
    {cluster}-CHECKPOINT  {cluster}.checkpoint.>      the ledger's state at some sequence, in pieces
    {cluster}-DEAD        {cluster}.dead.>            dead letters
    {cluster}-MQTT        {cluster}.mqtt.>            QoS 1 and 2 over nodes, and sessions away
    KV_{cluster}-{bucket} $KV.{cluster}-{bucket}.>    see BUCKETS

A body in RAW is an entry only once the ledger says so (docs/adr/0008-jetstream-engine.md): entries
are read through the `Stream` contract, never from RAW itself.

Everything is R3, file, `discard: new`. cloud/cluster/applying.py makes it so. The version of what
lies in all of this is in the ledger's metadata (cloud/cluster/versions.py).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cbor2

from bridge.partition import PARTITIONS
from cloud.cluster.versions import VERSION

__all__ = [
    "BUCKETS",
    "EPOCH_KEY",
    "FIRST_KEY",
    "FOLLOWS_KEY",
    "RAW_STREAMS",
    "Layout",
    "StreamSpec",
    "checkpoint_seq",
    "goes_on",
]

RAW_STREAMS = 4
BUCKETS = (
    "leases",
    "sessions",
    "retained",
    "registry",  # device -> gateway, for commands
    "control",  # commands, what is said of clocks, what happened to alerts
    "bodies",  # of commands
    "alerts",
)

_NS = 1_000_000_000
_MIB = 1 << 20
EPOCH_KEY = "tidegate.epoch"
FOLLOWS_KEY = "tidegate.follows"
FIRST_KEY = "tidegate.first"


@dataclass(slots=True, frozen=True)
class StreamSpec:
    """A stream as it has to be."""

    name: str
    config: Mapping[str, Any]  # of JetStream's own fields
    # a server refuses to change them
    fixed: frozenset[str] = frozenset({"storage", "retention", "sealed", "deny_purge"})


@dataclass(slots=True, frozen=True)
class Layout:
    """Everything of one cluster.

    Args:
        cluster: Its name: one word.
        replicas: 3, or 1 for tests that are not about durability.
        raw_bytes_max: Bytes of all RAW streams together; beyond it appends are refused.
        ledger_bytes_max: Bytes of the ledger and of its checkpoints, each.
        bucket_bytes_max: Bytes of each bucket, and of the dead letters.
        mqtt_bytes_max: Bytes of MQTT messages for sessions that are away; before it is full nodes
            count and remove the oldest (cloud/cluster/mqtt_shedding.py).
        version: What this program knows, and writes once `apply` has raised the cluster to it.
    """

    cluster: str = "tidegate"
    replicas: int = 3
    raw_bytes_max: int = 1 << 30
    ledger_bytes_max: int = 256 * _MIB
    bucket_bytes_max: int = 256 * _MIB
    mqtt_bytes_max: int = 512 * _MIB
    version: int = VERSION

    def raw_stream(self, partition: int) -> str:
        """Return the stream that has a partition's bodies."""
        return f"{self.cluster}-RAW{partition % RAW_STREAMS}"

    def raw_subject(self, partition: int) -> str:
        """Return the subject of a partition's bodies."""
        return f"{self.cluster}.raw.{partition}"

    @property
    def ledger_stream(self) -> str:
        """The stream of commit records."""
        return f"{self.cluster}-LEDGER"

    @property
    def ledger_subject(self) -> str:
        """The subject of commit records."""
        return f"{self.cluster}.ledger"

    @property
    def checkpoint_stream(self) -> str:
        """The stream of the ledger's checkpoints."""
        return f"{self.cluster}-CHECKPOINT"

    def checkpoint_subject(self, *tokens: object) -> str:
        """Return the subject of a piece of a checkpoint."""
        return ".".join((f"{self.cluster}.checkpoint", *map(str, tokens)))

    @property
    def dead_stream(self) -> str:
        """The stream of dead letters."""
        return f"{self.cluster}-DEAD"

    def dead_subject(self, *tokens: object) -> str:
        """Return the subject of a dead letter."""
        return ".".join((f"{self.cluster}.dead", *map(str, tokens)))

    @property
    def mqtt_stream(self) -> str:
        """The log of MQTT messages between nodes."""
        return f"{self.cluster}-MQTT"

    def mqtt_subject(self, word: str) -> str:
        """Return a subject of that log."""
        return f"{self.cluster}.mqtt.{word}"

    def bucket(self, name: str) -> str:
        """Return a bucket's full name, as `cloud.cluster.bucket.Bucket` wants it."""
        return f"{self.cluster}-{name}"

    def live(self, stream: str) -> str:
        """Return the wildcard that a stream is republished to."""
        return f"live.{stream}.>"

    def specs(self) -> Iterator[StreamSpec]:
        """Yield every stream, buckets among them; the ledger first."""
        ledger = self._stream(
            self.ledger_stream, [self.ledger_subject], self.ledger_bytes_max, republish=True
        )
        yield replace(ledger, config={**ledger.config, "duplicate_window": 120 * _NS})
        for number in range(RAW_STREAMS):
            subjects = [
                self.raw_subject(partition) for partition in range(number, PARTITIONS, RAW_STREAMS)
            ]
            name = f"{self.cluster}-RAW{number}"
            yield self._stream(name, subjects, self.raw_bytes_max // RAW_STREAMS)
        for name, subject in (
            (self.checkpoint_stream, self.checkpoint_subject(">")),
            (self.dead_stream, self.dead_subject(">")),
        ):
            spec = self._stream(name, [subject], self.ledger_bytes_max)
            yield replace(spec, config={**spec.config, "max_msgs_per_subject": 1})
        mqtt = self._stream(
            self.mqtt_stream, [self.mqtt_subject(">")], self.mqtt_bytes_max, republish=True
        )
        yield replace(mqtt, config={**mqtt.config, "duplicate_window": 120 * _NS})
        for bucket in BUCKETS:
            yield self._bucket(self.bucket(bucket))

    def _stream(
        self, name: str, subjects: Sequence[str], bytes_max: int, *, republish: bool = False
    ) -> StreamSpec:
        config: dict[str, Any] = {
            "subjects": list(subjects),
            "retention": "limits",
            "storage": "file",
            "num_replicas": self.replicas,
            "discard": "new",
            "max_age": 0,
            "max_msgs": -1,
            "max_bytes": bytes_max,
            "max_msgs_per_subject": -1,
            "max_msg_size": -1,
            "duplicate_window": _NS // 10,  # ids are not used: the ledger decides
            "compression": "none",  # bodies are compressed
            "allow_direct": True,
            "sealed": False,
            "deny_purge": False,
            "no_ack": False,
        }
        if republish:
            config["republish"] = {"src": ">", "dest": self.live(name)}
        return StreamSpec(name, config)

    def _bucket(self, name: str) -> StreamSpec:
        spec = self._stream(f"KV_{name}", [f"$KV.{name}.>"], self.bucket_bytes_max)
        config = {
            **spec.config,
            "max_msgs_per_subject": 1,
            "allow_rollup_hdrs": True,
            "deny_delete": True,
            "allow_msg_ttl": True,
            "subject_delete_marker_ttl": 3600 * _NS,
            "republish": {"src": f"$KV.{name}.>", "dest": self.live(f"KV_{name}")},
        }
        return replace(spec, config=config)


def goes_on(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the record that a ledger which was made again follows on, and its first sequence.

    None when it was not made again.
    """
    follows, first = metadata.get(FOLLOWS_KEY, ""), metadata.get(FIRST_KEY, "")
    return (int(follows), int(first)) if follows.isdecimal() and first.isdecimal() else None


def checkpoint_seq(head: bytes) -> int:
    """Return the record that a checkpoint's head names (cloud/stream/jetstream/checkpoint.py).

    0 when it is damaged: whatever stands there, the next one takes its place.
    """
    try:
        return int(cbor2.loads(head)[1])
    except Exception:  # noqa: BLE001 - any bytes at all
        return 0
