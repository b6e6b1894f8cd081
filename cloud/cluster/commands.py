"""Commands in the cluster: a `CommandStore` (cloud/commands/contract.py) that all nodes share.

    control  c.{id}                 a command and how it stands; goes by itself `kept_s` after told
             r.{gateway}.{id}       a recall that is not answered
             n.{node}               a node there is, or was: a "gateway" without a link
    bodies   {id}.{created}         what the device gets; gone once the outcome is told
    registry {partition}.{device}   the gateway that last carried a device

Every node follows `control`, so what was taken at one is known at all a moment later. A change
names the revision it replaces: of two nodes that decide about one command, one is told no.

If the process goes between two steps: a body without a command goes by its time to live; a command
whose outcome was told and is not noted as told is told again.

Invariant: a command's body is durable before the command is.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Collection, Mapping, Sequence
from dataclasses import astuple, replace
from typing import Any, TypeVar

import cbor2
import structlog

from bridge.commands import FINAL
from bridge.partition import partition_of
from cloud.cluster.bucket import Bucket, Conflict, is_deleted, key_token
from cloud.cluster.connection import ApiError, ClusterError, Connection
from cloud.cluster.control import Control
from cloud.cluster.layout import Layout
from cloud.cluster.reading import all_at_once, insist, read_subject
from cloud.commands.contract import (
    CommandBody,
    CommandChanged,
    CommandRefused,
    CommandRow,
    CommandWatcher,
)
from cloud.database import DatabaseError
from mqtt.reason_codes import ReasonCode

__all__ = ["ClusterCommandStore"]

log = structlog.get_logger(component="commands")

T = TypeVar("T")

_SHOWN_MAX = 10_000  # outcomes kept in memory for lists
_TOKEN_MAX = 512  # longer names are keys by their hash
_LATE_S = 86_400.0


class ClusterCommandStore:
    """The commands of a cluster, as one node sees them.

    Args:
        connection: To the cluster.
        layout: Names.
        control: Where commands stand; not started yet.
        node_id: This node's.
        kept_s: How long an outcome stays known.
    """

    def __init__(
        self, connection: Connection, layout: Layout, control: Control, node_id: str, kept_s: float
    ) -> None:
        self._connection = connection
        self._control = control.bucket
        self._bodies = Bucket(connection, layout.bucket("bodies"))
        self._registry = Bucket(connection, layout.bucket("registry"))
        self._node_id = node_id
        self._kept_s = kept_s
        # by key:
        self._rows: dict[str, CommandRow] = {}  # without an outcome that was told
        self._finished: OrderedDict[str, CommandRow] = OrderedDict()
        self._recalls: dict[str, tuple[str, str]] = {}
        self._revisions: dict[int, dict[str, int]] = {}  # of the registry, by partition followed
        self._nodes: set[str] = {node_id}
        self._watcher: CommandWatcher | None = None
        control.on("c", self._row_seen)
        control.on("r", self._recall_seen)
        control.on("n", self._node_seen)

    async def open(self, stream_epoch: int) -> None:  # noqa: ARG002 - cursors are the stream's
        """Tell the others that devices may be connected to this node."""
        name = self._node_id.encode()
        key = f"n.{key_token(self._node_id)}"
        patience_s = self._control.patience_s
        await _said(insist(lambda: self._control.put(key, name), timeout_s=patience_s))

    async def watch(self, watcher: CommandWatcher) -> None:
        """Tell `watcher` what is there, and from here on what changes."""
        self._watcher = watcher
        for row in self._rows.values():
            watcher.row_changed(row)
        for gateway, command_id in self._recalls.values():
            watcher.recall_changed(gateway, command_id, there=True)

    async def close(self) -> None:
        """Say nothing more."""
        self._watcher = None

    # ---- commands --------------------------------------------------------------------------------

    async def add(
        self, rows: Sequence[tuple[CommandRow, CommandBody]]
    ) -> list[tuple[CommandRow, bool]]:
        """Keep commands; durable on return. False for one whose id is there already."""
        await all_at_once([lambda one=one: self._put_body(*one) for one in rows])  # type: ignore[misc]
        # begun in their order, on one connection: so the bucket has them in that order
        return await all_at_once([lambda one=one: self._create(one[0]) for one in rows])  # type: ignore[misc]

    async def _put_body(self, row: CommandRow, body: CommandBody) -> None:
        ttl_s = (row.expires_us - row.created_us) / 1e6 + 2 * self._kept_s + _LATE_S
        data = cbor2.dumps([body.payload, body.properties])
        try:
            await _said(self._bodies.put(_body_key(row), data, ttl_s=ttl_s))
        except _FullError as error:
            raise CommandRefused(ReasonCode.QUOTA_EXCEEDED, str(error)) from None

    async def _create(self, row: CommandRow) -> tuple[CommandRow, bool]:
        try:
            revision = await _said(self._control.create(_key(row.command_id), _encoded(row)))
        except _FullError as error:
            raise CommandRefused(ReasonCode.QUOTA_EXCEEDED, str(error)) from None
        except Conflict:
            known = await self.find(row.command_id)
            if known is None or known.created_us != row.created_us:  # else an answer was lost
                await _said(self._bodies.delete(_body_key(row)))
            return known or row, False
        return replace(row, revision=revision), True

    async def save(self, row: CommandRow, recall: tuple[str, str] | None = None) -> CommandRow:
        """Keep the present state of a command, and before it a recall (gateway, id)."""
        if recall is not None:
            await self.recall(*recall)
        ttl_s = self._kept_s if row.told else None
        try:
            revision = await _said(
                self._control.update(_key(row.command_id), _encoded(row), row.revision, ttl_s=ttl_s)
            )
        except Conflict:
            raise CommandChanged(row.command_id) from None
        if row.told:
            await _said(self._bodies.delete(_body_key(row)))
        return replace(row, revision=revision)

    async def body(self, row: CommandRow) -> CommandBody | None:
        """Return what the device gets, as the bucket's leader has it."""
        found = await _said(insist(lambda: self._bodies.get(_body_key(row))))
        return CommandBody(*cbor2.loads(found.value)) if found is not None else None

    async def find(self, command_id: str) -> CommandRow | None:
        """Return one command, as the bucket's leader has it."""
        found = await _said(insist(lambda: self._control.get(_key(command_id))))
        return _decoded(found.value, found.revision) if found is not None else None

    async def unfinished(self) -> list[CommandRow]:
        """Return commands without an outcome that was told, oldest first."""
        return sorted(self._rows.values(), key=lambda row: row.created_us)

    async def newest(self, device: str | None, state: str | None, limit: int) -> list[CommandRow]:
        """Return commands, the newest first; of those with an outcome the last 10,000."""
        found = [
            row
            for row in (*self._rows.values(), *self._finished.values())
            if device in (None, row.device) and state in (None, row.state)
        ]
        found.sort(key=lambda row: row.created_us, reverse=True)
        return found[:limit]

    async def forget(self, before_us: int) -> None:
        """Do nothing: outcomes go by their time to live."""

    # ---- recalls ---------------------------------------------------------------------------------

    async def recall(self, gateway: str, command_id: str) -> None:
        """Keep a recall until it is answered."""
        data = cbor2.dumps([gateway, command_id])
        await _said(self._control.put(_recall_key(gateway, command_id), data))

    async def recalls(self) -> Collection[tuple[str, str]]:
        """Return (gateway, id) of recalls not answered."""
        return set(self._recalls.values())

    async def recalled(self, gateway: str, command_id: str) -> None:
        """Forget a recall: the gateway has answered it."""
        await _said(self._control.delete(_recall_key(gateway, command_id)))

    # ---- devices ---------------------------------------------------------------------------------

    def is_node(self, gateway: str) -> bool:
        """Return True for a node that is or was of the cluster."""
        return gateway in self._nodes

    async def carriers(self, partitions: Collection[int]) -> dict[str, str]:
        """Return the gateway that last carried each device of some partitions."""
        found: dict[str, str] = {}
        for messages in await all_at_once(
            [lambda one=one: self._of_partition(one) for one in sorted(partitions)]  # type: ignore[misc]
        ):
            found.update(messages)
        return found

    async def _of_partition(self, partition: int) -> dict[str, str]:
        stream = self._registry.stream
        skip = len(f"$KV.{self._registry.name}.")
        subject = f"$KV.{self._registry.name}.{partition}.>"
        messages = await _said(
            insist(lambda: read_subject(self._connection, stream, subject, 0, 1 << 62))
        )
        found: dict[str, str] = {}
        revisions = self._revisions[partition] = {}
        for message in messages:
            revisions[message.subject[skip:]] = message.seq
            if not is_deleted(message.headers):
                device, gateway = cbor2.loads(message.data)
                found[device] = gateway
        return found

    async def carrier(self, device: str) -> str | None:
        """Return the gateway that last carried a device, as the bucket's leader has it."""
        found = await _said(insist(lambda: self._registry.get(_device_key(device))))
        return None if found is None else str(cbor2.loads(found.value)[1])

    async def cursors(self) -> None:
        """Return None: the stream keeps them."""

    async def follow(self, carriers: Mapping[str, str], cursors: Mapping[int, int]) -> None:  # noqa: ARG002
        """Keep who carries which device."""
        await all_at_once(
            [lambda one=one: self._carried(*one) for one in carriers.items()]  # type: ignore[misc]
        )

    async def _carried(self, device: str, gateway: str) -> None:
        key = _device_key(device)
        data = cbor2.dumps([device, gateway])
        revisions = self._revisions.setdefault(partition_of(device), {})
        try:
            revisions[key] = await _said(self._registry.update(key, data, revisions.get(key, 0)))
        except Conflict:
            raise CommandChanged(device) from None

    # ---- what comes ------------------------------------------------------------------------------

    def _row_seen(self, key: str, value: bytes | None, revision: int) -> None:
        before = self._rows.pop(key, None)
        self._finished.pop(key, None)
        if value is None:
            if before is not None and self._watcher is not None:
                self._watcher.row_gone(before.command_id)
            return
        row = _decoded(value, revision)
        if row.state in FINAL and row.told:
            self._finished[key] = row
            while len(self._finished) > _SHOWN_MAX:
                self._finished.popitem(last=False)
        else:
            self._rows[key] = row
        if self._watcher is not None:
            self._watcher.row_changed(row)

    def _recall_seen(self, key: str, value: bytes | None, _revision: int) -> None:
        known = self._recalls.pop(key, None)
        if value is not None:
            gateway, command_id = known = cbor2.loads(value)
            self._recalls[key] = (gateway, command_id)
        if known is not None and self._watcher is not None:
            self._watcher.recall_changed(*known, there=value is not None)

    def _node_seen(self, _key: str, value: bytes | None, _revision: int) -> None:
        if value is not None:
            self._nodes.add(value.decode())


# ---- helpers -------------------------------------------------------------------------------------


class _FullError(DatabaseError):
    """A bucket takes no more."""


async def _said(call: Awaitable[T]) -> T:
    """Return what a call on a bucket returns, its failures as the store's.

    Raises:
        DatabaseError: it was not done, or nobody can say.
        _FullError: the bucket is.
        Conflict: the key is not as was believed.
    """
    try:
        return await call
    except ApiError as error:
        if error.is_full:
            raise _FullError("no more room for commands in the cluster") from error
        raise DatabaseError(f"commands: {error}") from error
    except ClusterError as error:
        raise DatabaseError(f"commands: {error}") from error


def _name(text: str) -> str:
    """Return any text as one token: short, and the same for the same text."""
    token = key_token(text)
    if len(token) <= _TOKEN_MAX:
        return token
    return "=sha256-" + hashlib.sha256(text.encode()).hexdigest()


def _key(command_id: str) -> str:
    return f"c.{_name(command_id)}"


def _body_key(row: CommandRow) -> str:
    return f"{_name(row.command_id)}.{row.created_us}"


def _recall_key(gateway: str, command_id: str) -> str:
    return f"r.{_name(gateway)}.{_name(command_id)}"


def _device_key(device: str) -> str:
    return f"{partition_of(device)}.{_name(device)}"


def _encoded(row: CommandRow) -> bytes:
    return cbor2.dumps(list(astuple(row)[:-1]))


def _decoded(value: bytes, revision: int) -> CommandRow:
    fields: list[Any] = cbor2.loads(value)
    return replace(CommandRow(*fields), revision=revision)
