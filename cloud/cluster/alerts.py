"""States of alerts by partition, for whoever holds it next: the bucket `alerts`.

    {partition}                       the newest state, with the token of who claimed it last
    {partition}.{token}.{id}.{n}      the pieces of one that does not fit into a message

A state is zstd over CBOR. Its pieces are written first, under the token of who keeps it and an id
of their own: so a state is there whole or not at all, and a former holder that wakes writes beside
what counts. Once the state is kept, the pieces of all before it are removed.

Invariant: `{partition}` changes only from the revision at which its claimer has seen it last.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import cbor2
import structlog
import zstandard

from cloud.alerts.engine import StoredSeries
from cloud.alerts.handover import PartitionState
from cloud.alerts.store import Message
from cloud.cluster.bucket import Bucket, Conflict, Value
from cloud.cluster.connection import ClusterError
from cloud.cluster.reading import all_at_once, insist
from cloud.sinks.contract import SinkFenced, SinkUnavailable

__all__ = ["ClusterAlertStates"]

log = structlog.get_logger(component="alerts")

_PIECE_BYTES: Final = 512 << 10
_STATE_BYTES_MAX: Final = 256 << 20  # unpacked
_LEVEL: Final = 3
_CLAIM_TRIES: Final = 20


@dataclass(slots=True)
class _Head:
    """What is known of a partition's key."""

    revision: int
    token: int
    pieces_left: bool = True  # of former states some may be there


class ClusterAlertStates:
    """The states of a cluster.

    Args:
        bucket: `alerts`.
    """

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._heads: dict[int, _Head] = {}

    async def claim(self, tokens: Mapping[int, int]) -> dict[int, PartitionState | None]:
        """Take partitions over; return their states.

        Raises:
            SinkFenced: of some a higher token is known; the others are claimed.
            SinkUnavailable: the bucket does not answer.
        """
        found: dict[int, PartitionState | None] = {}
        lost: set[int] = set()

        async def one(partition: int, token: int) -> None:
            try:
                found[partition] = await self._claim(partition, token)
            except Conflict:
                lost.add(partition)

        try:
            await all_at_once([partial(one, *item) for item in tokens.items()])
        except ClusterError as error:
            raise SinkUnavailable(f"alerts: {error}") from None
        if lost:
            raise SinkFenced(frozenset(lost))
        return found

    async def _claim(self, partition: int, token: int) -> PartitionState | None:
        for _ in range(_CLAIM_TRIES):
            value = await insist(lambda: self._bucket.get(str(partition)))
            head = _head_of(value)
            if int(head.get("token", 0)) > token:
                raise Conflict(f"partition {partition} was claimed by a later holder")
            packed = await self._packed(partition, head)
            claimed = {**head, "token": token}
            try:
                revision = await self._bucket.update(
                    str(partition), cbor2.dumps(claimed), value.revision if value else 0
                )
            except Conflict:
                continue  # the holder before has kept a newer state, or another claims it too
            self._heads[partition] = _Head(revision, token)
            return _unpacked(packed) if packed else None
        raise SinkUnavailable(f"alerts: partition {partition} is kept by its last holder still")

    async def _packed(self, partition: int, head: Mapping[str, Any]) -> bytes:
        if not head.get("pieces"):
            return bytes(head.get("state", b""))
        found = b""
        for number in range(int(head["pieces"])):
            key = f"{partition}.{head['under']}.{number}"
            piece = await insist(lambda key=key: self._bucket.get(key))  # type: ignore[misc]
            if piece is None:
                log.error("alert_state_torn", partition=partition, piece=number)
                return b""
            found += piece.value
        return found

    async def keep(self, states: Mapping[int, PartitionState]) -> frozenset[int]:
        """Keep states; return the partitions that others have claimed since."""
        lost: set[int] = set()

        async def one(partition: int, state: PartitionState) -> None:
            try:
                await self._keep(partition, state)
            except Conflict:
                lost.add(partition)

        try:
            await all_at_once([partial(one, *item) for item in states.items()])
        except ClusterError as error:
            raise SinkUnavailable(f"alerts: {error}") from None
        return frozenset(lost)

    async def _keep(self, partition: int, state: PartitionState) -> None:
        known = self._heads[partition]
        packed = _packed(state)
        head: dict[str, Any] = {"token": known.token}
        unique = ""
        if len(packed) <= _PIECE_BYTES:
            head["state"] = packed
        else:
            unique = secrets.token_hex(8)
            pieces = [packed[at : at + _PIECE_BYTES] for at in range(0, len(packed), _PIECE_BYTES)]
            head |= {"under": f"{known.token}.{unique}", "pieces": len(pieces)}
            known.pieces_left = True
            for number, piece in enumerate(pieces):
                await self._bucket.put(f"{partition}.{head['under']}.{number}", piece)
        await self._replace(partition, known, head)
        if known.pieces_left:
            await self._remove_pieces(partition, known.token, unique)
            known.pieces_left = bool(unique)

    async def _replace(self, partition: int, known: _Head, head: Mapping[str, Any]) -> None:
        """Set a partition's key; raises Conflict when another has claimed it since."""
        data = cbor2.dumps(head)
        try:
            known.revision = await self._bucket.update(str(partition), data, known.revision)
        except Conflict:
            value = await insist(lambda: self._bucket.get(str(partition)))
            if value is None or int(_head_of(value).get("token", 0)) != known.token:
                raise
            # what stands is our own: the answer to the write before was never heard
            known.revision = await self._bucket.update(str(partition), data, value.revision)

    async def _remove_pieces(self, partition: int, token: int, needed: str) -> None:
        """Remove the pieces of all states up to a token but of the one with an id."""
        for keeper in await self._below(str(partition)):
            if int(keeper) < token:
                await self._purge(f"{partition}.{keeper}")
            elif int(keeper) == token:
                for unique in await self._below(f"{partition}.{keeper}") - {needed}:
                    await self._purge(f"{partition}.{keeper}.{unique}")

    async def _below(self, key: str) -> set[str]:
        return await insist(lambda: self._bucket.tokens_below(key))

    async def _purge(self, key: str) -> None:
        await insist(lambda: self._bucket.purge_below(key))


def _head_of(value: Value | None) -> dict[str, Any]:
    return {} if value is None else dict(cbor2.loads(value.value))


def _packed(state: PartitionState) -> bytes:
    fields = [
        state.stream_epoch, state.position, state.now_us, state.kept_us,
        [[list(one.key), one.severity, one.fingerprint, one.state] for one in state.series],
        [
            [one.target, one.message_id, one.thread, one.address, one.body, one.created_us]
            for one in state.messages
        ],
    ]  # fmt: skip
    return zstandard.ZstdCompressor(level=_LEVEL).compress(cbor2.dumps(fields))


def _unpacked(packed: bytes) -> PartitionState:
    size = zstandard.frame_content_size(packed)
    if not 0 <= size <= _STATE_BYTES_MAX:
        raise SinkUnavailable(f"alerts: a state of {size} bytes")
    epoch, position, now_us, kept_us, series, messages = cbor2.loads(
        zstandard.ZstdDecompressor().decompress(packed)
    )
    return PartitionState(
        epoch, position, now_us, kept_us,
        tuple(StoredSeries(tuple(key), *rest) for key, *rest in series),
        tuple(Message(*one) for one in messages),
    )  # fmt: skip
