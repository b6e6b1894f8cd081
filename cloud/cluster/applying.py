"""What differs from the layout, and making it so.

A node makes nothing: `tidegate cluster apply` does. What was ever made is noted in the ledger's
metadata, so a stream that has gone is known from one that is yet to come, and is never made again
in silence (PAINS P26, P27). The checkpoints' metadata repeat that. A ledger made again goes on: it
is of the same cluster, its sequences lie beyond any that the lost one can have had, and
`tidegate.follows` says behind which checkpoint it begins.

A stream may be a mirror of another place's. Promoted, it is the cluster's own, and what must be
done before its ledger takes records is `cloud.stream.jetstream.promotion`'s.

Invariant: a ledger that is not fit to take records yet is closed: it has another subject, which
says why. Whatever ends `apply` there, the next one goes on from it.
"""

from __future__ import annotations

import asyncio
import base64
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from bridge.partition import PARTITIONS
from cloud.cluster.bucket import Bucket
from cloud.cluster.connection import GONE, ApiError, ClusterError, Connection
from cloud.cluster.layout import (
    EPOCH_KEY,
    FIRST_KEY,
    FOLLOWS_KEY,
    Layout,
    StreamSpec,
    checkpoint_seq,
    goes_on,
)
from cloud.cluster.reading import insist
from cloud.cluster.versions import VERSION_KEY, check_version, older_nodes, version_of
from cloud.sinks.schema import epoch_text
from runtime.clock import SystemClock

__all__ = ["BEYOND", "Step", "apply", "plan", "stream_epoch"]

_EXISTS = 10058
_READY_S = 30.0
_PLACE_SHIFT = 4  # 60,000 a second since 1970, and with 16 bits more a place is an int64
_ABOUT_S = 0.5  # between a node's last look at the ledger and the head of its checkpoint
_KNOWN_S = 3.0  # nodes look at the ledger each second
BEYOND = 1 << 32  # records that no ledger can have had after its newest checkpoint
# a ledger takes no records while its subject ends so
_CLOSED = ".closed"  # it was made again, and nodes do not know yet what it follows
_PROMOTING = ".promoting"
_KEY_CLUSTER = "tidegate.cluster"
_KEY_MADE = "tidegate.made"
_KEY_PARTITIONS = "tidegate.partitions"
_OWN_KEYS = "tidegate."


@dataclass(slots=True, frozen=True)
class Step:
    """One thing that differs from the layout, and what is to be done about it."""

    # "create", "update", "open"; or "lost", "mirror", "conflict", which need a decision
    action: str
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
    said = _metadata(ledger) or _metadata(found[layout.checkpoint_stream])
    check_version(layout.cluster, said, layout.version)
    made = said.get(_KEY_MADE, "").split()
    steps: list[Step] = []
    for spec in layout.specs():
        info = found[spec.name]
        if info is not None:
            is_ledger = spec.name == layout.ledger_stream
            older = _older(_metadata(info), layout.version) if is_ledger else []
            steps += _unfinished(layout, spec, info) or _differences(spec, info["config"], older)
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
    connection: Connection,
    layout: Layout,
    *,
    recreate: Sequence[str] = (),
    promoting: Callable[[Callable[[], Awaitable[None]]], Awaitable[int]] | None = None,
) -> list[Step]:
    """Make what is missing, change what differs; return the steps taken.

    Args:
        connection: To the cluster.
        layout: What is wanted.
        recreate: Lost streams that are to be made again, empty.
        promoting: Called when mirrors were made the cluster's own, before the ledger takes
            records, with what raises ClusterError once somebody else promotes too; returns the
            sequence of the first. None: mirrors are left alone.

    Raises:
        ClusterError: a step that needs a decision, or one that was refused.
    """
    steps = await plan(connection, layout)
    actions = {step.stream: step.action for step in steps}
    if promoting is not None and actions.get(layout.ledger_stream) not in ("mirror", "lost"):
        raise ClusterError(f"{layout.ledger_stream} is no mirror: there is nothing to promote")
    for step in steps:
        if step.action == "mirror" and promoting is None:
            raise ClusterError(f"{step.stream}: {step.detail}; see 'tidegate cluster promote'")
        if step.action == "conflict":
            raise ClusterError(f"{step.line()}; move its data or delete the stream")
        if step.action == "lost" and step.stream not in recreate:
            raise ClusterError(
                f"{step.stream}: {step.detail}; restore it, or say --recreate {step.stream}"
            )
    # no node works with mirrors, whatever their copy of the leases says
    if promoting is None and (found := await _too_old(connection, layout)):
        raise ClusterError(
            f"{' and '.join(found)} would not know layout {layout.version}: start this version of"
            " tidegate there, or stop what runs there, then apply again"
        )
    # by its subject a ledger is closed for this very promotion
    word = _CLOSED if promoting is None else f"{_PROMOTING}.{secrets.token_hex(8)}"
    closed = layout.ledger_subject + word
    for step in steps:
        try:
            await _take(connection, layout, step, closed)
        except ApiError as error:
            if error.err_code != _EXISTS:  # somebody else is applying too: see below
                raise ClusterError(f"{step.stream}: {error}") from None
    if promoting is not None:
        alone = partial(_check_alone, connection, layout, closed)
        first = await promoting(alone)
        await alone()
        await _open(connection, layout, first - 1, first)
    elif actions.get(layout.ledger_stream) in ("lost", "open"):
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


# ---- helpers -------------------------------------------------------------------------------------


async def _take(connection: Connection, layout: Layout, step: Step, closed: str) -> None:
    """Take one step; a ledger in which something has to be done first has the subject `closed`."""
    config = {"name": step.stream, **step.config}
    word = "CREATE" if step.action in ("create", "lost") else "UPDATE"
    if step.action == "mirror" and step.stream == f"KV_{layout.bucket('leases')}":
        # its revisions may be behind tokens that stores know, and its holders are elsewhere
        await _call(connection, f"STREAM.DELETE.{step.stream}")
        word = "CREATE"
    if step.stream == layout.ledger_stream:
        known = _metadata(await _info(connection, step.stream))
        if word == "CREATE":
            known, config["first_seq"] = await _goes_on(connection, layout)
        if step.action in ("mirror", "lost", "open"):
            config["subjects"] = [closed]
        config["metadata"] = {**_identity(layout), **known}
    elif word == "CREATE" and step.stream.startswith("KV_"):
        # revisions fence: those of a bucket that is made again go on where the lost one's were
        config["first_seq"] = SystemClock().wall_us()
    elif step.action == "lost":
        # so do places in a stream: what is kept of them must not mean new messages
        config["first_seq"] = SystemClock().wall_us() >> _PLACE_SHIFT
    await _call(connection, f"STREAM.{word}.{step.stream}", config)


def _unfinished(layout: Layout, spec: StreamSpec, info: Mapping[str, Any]) -> list[Step]:
    """Return the step that makes a stream the cluster's own, or has a closed ledger opened."""
    config = {**info["config"], **spec.config}
    mirrored = config.pop("mirror", None)
    subjects = info["config"].get("subjects")
    if mirrored:
        said = info.get("mirror") or {}
        active_ns = int(said.get("active", -1))
        heard = f"{active_ns / 1e9:.0f} s ago" if active_ns >= 0 else "never"
        detail = f"a mirror of {mirrored.get('name')}, {said.get('lag', 0)} behind when it last"
        return [Step("mirror", spec.name, f"{detail} heard of it, {heard}", config)]
    if subjects and subjects[0].startswith(layout.ledger_subject + _PROMOTING):
        return [Step("mirror", spec.name, "its promotion was not finished", config)]
    if subjects == [layout.ledger_subject + _CLOSED]:
        detail = "it was made again and takes no records yet: 'tidegate cluster apply' was ended"
        return [Step("open", spec.name, detail, config)]
    return []


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
    first = max(follows, before[1] if before is not None else 0) + BEYOND
    return {**known, FOLLOWS_KEY: str(follows), FIRST_KEY: str(first)}, first


async def _open_again(connection: Connection, layout: Layout) -> None:
    """Have a ledger that was just made again take records, once all nodes know what it follows.

    A node may have been about to write a checkpoint when it was made: then it follows that one.
    """
    await asyncio.sleep(_ABOUT_S)
    known = goes_on(_metadata(await _info(connection, layout.ledger_stream)))
    if known is not None:
        follows = max(known[0], await _newest_checkpoint(connection, layout))
        await _alter(connection, layout.ledger_stream, {FOLLOWS_KEY: str(follows)})
        await asyncio.sleep(_KNOWN_S)
    await _alter(connection, layout.ledger_stream, {}, subjects=[layout.ledger_subject])


async def _check_alone(connection: Connection, layout: Layout, closed: str) -> None:
    """Raise ClusterError once somebody else has the ledger closed, or opened it.

    What they have read, or nodes have written since, is not what was read here.
    """
    info = await _info(connection, layout.ledger_stream)
    if info is None or info["config"].get("subjects") != [closed]:
        raise ClusterError(
            f"{layout.ledger_stream}: another promotion has begun meanwhile; when it has ended see"
            " 'tidegate cluster plan'"
        )


async def _open(connection: Connection, layout: Layout, follows: int, first: int) -> None:
    """Have a ledger that no node knows take records, the first of them at a sequence."""
    metadata = {FOLLOWS_KEY: str(follows), FIRST_KEY: str(first)}
    await _alter(connection, layout.ledger_stream, metadata, subjects=[layout.ledger_subject])


async def _alter(
    connection: Connection, stream: str, metadata: Mapping[str, str], **config: object
) -> None:
    """Change some of a stream's metadata and configuration."""
    info = await _info(connection, stream)
    if info is None:
        raise ClusterError(f"{stream}: not there after it was made")
    new = {**info["config"], **config, "metadata": {**_metadata(info), **metadata}}
    await _call(connection, f"STREAM.UPDATE.{stream}", new)


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
    said = await _info(connection, layout.ledger_stream)
    if said is None:
        said = await _info(connection, layout.checkpoint_stream)
    bucket = Bucket(connection, layout.bucket("leases"))
    if said is not None and not _older(_metadata(said), layout.version):
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
            await _alter(connection, stream, wanted)


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
