"""The streams and buckets of a cluster, declared; what differs, and making it so.

    {cluster}-RAW0..3     {cluster}.raw.{partition}   bodies of entries, partition p in RAW[p % 4]
    {cluster}-LEDGER      {cluster}.ledger            what was committed, in the one order
    {cluster}-CHECKPOINT  {cluster}.checkpoint.>      the ledger's state at some sequence, in pieces
    {cluster}-DEAD        {cluster}.dead.>            dead letters
    {cluster}-MQTT        {cluster}.mqtt.>            QoS 1 and 2 over nodes, and sessions away
    KV_{cluster}-{bucket} $KV.{cluster}-{bucket}.>    see BUCKETS

A body in RAW is an entry only once the ledger says so (docs/adr/0008-jetstream-engine.md): entries
are read through the `Stream` contract, never from RAW itself.

Everything is R3, file, `discard: new`. A node makes nothing: `tidegate cluster apply` does. What
was ever made is noted in the ledger's metadata, so a stream that has gone is known from one that is
yet to come, and is never made again in silence (PAINS P26, P27). The checkpoints' metadata repeat
that. A ledger made again goes on: it is of the same cluster, its sequences lie beyond any that the
lost one can have had, and `tidegate.follows` says behind which checkpoint it begins.
The version of what lies in all of this is there too (cloud/cluster/versions.py).
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import cbor2

from bridge.partition import PARTITIONS
from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import GONE, ApiError, ClusterError, Connection
from cloud.cluster.reading import insist
from cloud.cluster.versions import VERSION, VERSION_KEY, check_version, older_nodes, version_of
from cloud.sinks.schema import epoch_text
from runtime.clock import SystemClock

__all__ = [
    "BUCKETS",
    "EPOCH_KEY",
    "RAW_STREAMS",
    "Layout",
    "Step",
    "StreamSpec",
    "apply",
    "checkpoint_seq",
    "goes_on",
    "plan",
    "stream_epoch",
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
_EXISTS = 10058
_READY_S = 30.0
_PLACE_SHIFT = 4  # 60,000 a second since 1970, and with 16 bits more a place is an int64
_ABOUT_S = 0.5  # between a node's last look at the ledger and the head of its checkpoint
_KNOWN_S = 3.0  # nodes look at the ledger each second
_BEYOND = 1 << 32  # records that no ledger can have had after its newest checkpoint
EPOCH_KEY = "tidegate.epoch"
_KEY_FOLLOWS = "tidegate.follows"
_KEY_FIRST = "tidegate.first"
_KEY_CLUSTER = "tidegate.cluster"
_KEY_MADE = "tidegate.made"
_KEY_PARTITIONS = "tidegate.partitions"
_OWN_KEYS = "tidegate."


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


@dataclass(slots=True, frozen=True)
class Step:
    """One thing that differs from the layout, and what is to be done about it."""

    action: str  # "create", "update", "lost" or "conflict": the last two need a decision
    stream: str
    detail: str
    config: Mapping[str, Any]

    def line(self) -> str:
        """Return it as text."""
        return f"{self.action} {self.stream}: {self.detail}" if self.detail else (
            f"{self.action} {self.stream}"
        )  # fmt: skip


async def plan(connection: Connection, layout: Layout) -> list[Step]:
    """Return what has to be done to have what `layout` says; nothing is changed.

    Raises:
        ClusterError: JetStream cannot be asked, the cluster is of a newer version, or its ledger
            does not say any more which cluster it is of.
    """
    found = {spec.name: await _info(connection, spec.name) for spec in layout.specs()}
    ledger = found[layout.ledger_stream]
    if ledger is not None:
        _check_identity(layout, ledger)
    check_version(layout.cluster, _metadata(ledger), layout.version)
    said = _metadata(ledger) or _metadata(found[layout.checkpoint_stream])
    made = said.get(_KEY_MADE, "").split()
    steps: list[Step] = []
    for spec in layout.specs():
        info = found[spec.name]
        if info is not None:
            is_ledger = spec.name == layout.ledger_stream
            older = _older(_metadata(info), layout.version) if is_ledger else []
            steps += _differences(spec, info["config"], older)
        elif spec.name in made or (spec.name == layout.ledger_stream and any(found.values())):
            detail = "it was made once and is gone, with what was in it"
            if spec.name == layout.ledger_stream and EPOCH_KEY in said:
                follows = await _newest_checkpoint(connection, layout)
                detail += f" after record {follows}, behind which it would go on"
            steps.append(Step("lost", spec.name, detail, spec.config))
        else:
            steps.append(Step("create", spec.name, "", spec.config))
    return steps


async def apply(
    connection: Connection, layout: Layout, *, recreate: Sequence[str] = ()
) -> list[Step]:
    """Make what is missing, change what differs; return the steps taken.

    Args:
        connection: To the cluster.
        layout: What is wanted.
        recreate: Lost streams that are to be made again, empty.

    Raises:
        ClusterError: a step that needs a decision, or one that was refused.
    """
    steps = await plan(connection, layout)
    for step in steps:
        if step.action == "conflict":
            raise ClusterError(f"{step.line()}; move its data or delete the stream")
        if step.action == "lost" and step.stream not in recreate:
            raise ClusterError(
                f"{step.stream}: {step.detail}; restore it, or say --recreate {step.stream}"
            )
    if found := await _too_old(connection, layout):
        raise ClusterError(
            f"{' and '.join(found)} would not know layout {layout.version}: start this version of"
            " tidegate there, or stop what runs there, then apply again"
        )
    for step in steps:
        config = {"name": step.stream, **step.config}
        word = "UPDATE" if step.action == "update" else "CREATE"
        if step.stream == layout.ledger_stream:
            known = _metadata(await _info(connection, step.stream))
            if word == "CREATE":
                known, config["first_seq"] = await _goes_on(connection, layout)
            if step.action == "lost":
                config["subjects"] = [f"{layout.ledger_subject}.closed"]  # see `_open_again`
            config["metadata"] = {**_identity(layout), **known}
        elif word == "CREATE" and step.stream.startswith("KV_"):
            # revisions fence: those of a bucket that is made again go on where the lost one's were
            config["first_seq"] = SystemClock().wall_us()
        elif step.action == "lost":
            # so do places in a stream: what is kept of them must not mean new messages
            config["first_seq"] = SystemClock().wall_us() >> _PLACE_SHIFT
        try:
            await _call(connection, f"STREAM.{word}.{step.stream}", config)
        except ApiError as error:
            if error.err_code != _EXISTS:  # somebody else is applying too: see below
                raise ClusterError(f"{step.stream}: {error}") from None
    if any(step.action == "lost" and step.stream == layout.ledger_stream for step in steps):
        await _open_again(connection, layout)
    await _note_made(connection, layout)  # the version as well: what it needs is there now
    left = await plan(connection, layout)
    if left:
        raise ClusterError(f"after all was made still to do: {left[0].line()}")
    return steps


async def stream_epoch(connection: Connection, layout: Layout) -> int:
    """Return the cluster's epoch: the random id made with its ledger.

    Raises:
        ClusterError: there is no such cluster.
    """
    ledger = await _info(connection, layout.ledger_stream)
    if ledger is None:
        others = await _clusters(connection)
        known = f"; there are: {', '.join(others)}" if others else ""
        raise ClusterError(
            f"no cluster '{layout.cluster}' there{known}: check stream.cluster, or run"
            " 'tidegate cluster apply'"
        )
    _check_identity(layout, ledger)
    said = _metadata(ledger)
    check_version(layout.cluster, said, layout.version)
    if said.get(_KEY_PARTITIONS) != str(PARTITIONS):
        raise ClusterError(
            f"cluster '{layout.cluster}' has {said.get(_KEY_PARTITIONS)} partitions,"
            f" this version {PARTITIONS}"
        )
    return int(said[EPOCH_KEY], 16)


def goes_on(metadata: Mapping[str, str]) -> tuple[int, int] | None:
    """Return the record that a ledger which was made again follows on, and its first sequence.

    None when it was not made again.
    """
    follows, first = metadata.get(_KEY_FOLLOWS, ""), metadata.get(_KEY_FIRST, "")
    return (int(follows), int(first)) if follows.isdecimal() and first.isdecimal() else None


def checkpoint_seq(head: bytes) -> int:
    """Return the record that a checkpoint's head names (cloud/stream/jetstream/checkpoint.py).

    0 when it is damaged: whatever stands there, the next one takes its place.
    """
    try:
        return int(cbor2.loads(head)[1])
    except Exception:  # noqa: BLE001 - any bytes at all
        return 0


# ---- helpers -------------------------------------------------------------------------------------


async def _goes_on(connection: Connection, layout: Layout) -> tuple[dict[str, str], int]:
    """Return the metadata and the first sequence of a ledger that is made now.

    A first one begins at 1. One in place of a lost one goes on behind the newest checkpoint, and
    begins beyond the lost one, which may itself have been one that went on.
    """
    checkpoints = await _info(connection, layout.checkpoint_stream)
    if checkpoints is None:
        return {}, 1
    known = _own(_metadata(checkpoints))
    follows = await _newest_checkpoint(connection, layout)
    if not known and not follows:
        return {}, 1
    before = goes_on(known)
    first = max(follows, before[1] if before is not None else 0) + _BEYOND
    return {**known, _KEY_FOLLOWS: str(follows), _KEY_FIRST: str(first)}, first


async def _open_again(connection: Connection, layout: Layout) -> None:
    """Have a ledger that was just made again take records, once all nodes know what it follows.

    A node may have been about to write a checkpoint when it was made: then it follows that one.
    """
    await asyncio.sleep(_ABOUT_S)
    info = await _info(connection, layout.ledger_stream)
    if info is None:
        raise ClusterError(f"{layout.ledger_stream}: not there after it was made")
    config = dict(info["config"])
    known = goes_on(_metadata(info))
    if known is not None:
        follows = max(known[0], await _newest_checkpoint(connection, layout))
        config["metadata"] = {**_metadata(info), _KEY_FOLLOWS: str(follows)}
        await _call(connection, f"STREAM.UPDATE.{layout.ledger_stream}", config)
        await asyncio.sleep(_KNOWN_S)
    config["subjects"] = [layout.ledger_subject]
    await _call(connection, f"STREAM.UPDATE.{layout.ledger_stream}", config)


async def _newest_checkpoint(connection: Connection, layout: Layout) -> int:
    """Return the record that the newest checkpoint is of; 0 without one."""
    head = await connection.last_message(
        layout.checkpoint_stream, layout.checkpoint_subject("head"), timeout_s=5
    )
    return checkpoint_seq(base64.b64decode(head.get("data") or "")) if head is not None else 0


def _check_identity(layout: Layout, ledger: Mapping[str, Any]) -> None:
    """Refuse a ledger that was altered by hand, which a new epoch would make another cluster's.

    Raises:
        ClusterError.
    """
    said = _metadata(ledger)
    for key, wanted in ((_KEY_CLUSTER, layout.cluster), (EPOCH_KEY, said.get(EPOCH_KEY))):
        if not wanted or said.get(key) != wanted:
            raise ClusterError(
                f"{layout.ledger_stream} was altered: its metadata has no {key} of cluster"
                f" '{layout.cluster}' any more; put it back (a node that runs logs what it was)"
            )


def _identity(layout: Layout) -> dict[str, str]:
    return {
        _KEY_CLUSTER: layout.cluster,
        EPOCH_KEY: epoch_text(secrets.randbits(64)),
        VERSION_KEY: str(layout.version),
        _KEY_PARTITIONS: str(PARTITIONS),
    }


def _metadata(info: Mapping[str, Any] | None) -> dict[str, str]:
    return dict((info or {}).get("config", {}).get("metadata") or {})


async def _info(connection: Connection, stream: str) -> dict[str, Any] | None:
    try:
        return await _call(connection, f"STREAM.INFO.{stream}")
    except ApiError as error:
        if error.err_code == GONE:
            return None
        raise


async def _call(
    connection: Connection, path: str, body: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    ready_s = min(_READY_S, connection.patience_s)
    return await insist(lambda: connection.api(path, body), timeout_s=ready_s)


def _older(metadata: Mapping[str, str], version: int) -> list[str]:
    """Return what an operator is told of a cluster that may be raised to a version."""
    said = version_of(metadata)
    if said is not None and said >= version:
        return []
    return [f"layout is {said or 'not said'}, has to be {version} once no older node runs"]


async def _too_old(connection: Connection, layout: Layout) -> list[str]:
    """Return the nodes that keep a cluster from being raised to the version of a layout."""
    ledger = await _info(connection, layout.ledger_stream)
    bucket = Bucket(connection, layout.bucket("leases"))
    if ledger is None or not _older(_metadata(ledger), layout.version):
        return []
    if not await _info(connection, bucket.stream):
        return []
    return await older_nodes(bucket, layout.version)


def _differences(
    spec: StreamSpec, config: Mapping[str, Any], more: Sequence[str] = ()
) -> list[Step]:
    """Return at most one step: what differs of those fields the layout names, and `more`."""
    differing = [*more] + [
        f"{key} is {_shown(config.get(key))}, has to be {_shown(wanted)}"
        for key, wanted in spec.config.items()
        if not _same(config.get(key), wanted)
    ]
    if not differing:
        return []
    fixed = any(not _same(config.get(key), spec.config[key]) for key in spec.fixed)
    action = "conflict" if fixed else "update"
    return [Step(action, spec.name, "; ".join(differing), {**config, **spec.config})]


def _same(actual: object, wanted: object) -> bool:
    if isinstance(wanted, dict) and isinstance(actual, dict):
        return all(actual.get(key) == value for key, value in wanted.items())
    return actual == wanted or (not actual and not wanted)


def _shown(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


async def _note_made(connection: Connection, layout: Layout) -> None:
    info = await _info(connection, layout.ledger_stream)
    if info is None:
        raise ClusterError(f"{layout.ledger_stream}: not there after it was made")
    made = " ".join(spec.name for spec in layout.specs())
    metadata = {**_metadata(info), _KEY_MADE: made, VERSION_KEY: str(layout.version)}
    for stream, wanted in (
        (layout.ledger_stream, metadata),
        (layout.checkpoint_stream, _own(metadata)),
    ):
        info = await _info(connection, stream)
        if info is not None and not wanted.items() <= _metadata(info).items():
            config = {**info["config"], "metadata": {**_metadata(info), **wanted}}
            await _call(connection, f"STREAM.UPDATE.{stream}", config)


def _own(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key.startswith(_OWN_KEYS)}


async def _clusters(connection: Connection) -> list[str]:
    """Return the names of the clusters that do exist."""
    try:
        said = await connection.api("STREAM.NAMES", {"offset": 0})
    except ClusterError:
        return []
    names = said.get("streams") or []
    return sorted(name.removesuffix("-LEDGER") for name in names if name.endswith("-LEDGER"))
