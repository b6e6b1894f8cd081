"""Checkpoints of the ledger, so that a node starts from them and the ledger itself stays short.

    {cluster}.checkpoint.{seq}.{piece}   the state after record `seq`, zstd, in pieces
    {cluster}.checkpoint.head            [1, seq, pieces, sha256]: which one counts

The head is replaced by compare-and-set after all pieces are stored, then what it replaced is
purged, and of the ledger all but the last records before it. Whatever a crash leaves is whole: the
old head with its pieces, or the new one.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Awaitable, Callable, Iterator
from functools import partial

import cbor2
import structlog
import zstandard

from cloud.cluster.connection import GONE, ApiError, ClusterError, Connection
from cloud.cluster.layout import Layout, checkpoint_seq, goes_on
from cloud.cluster.reading import insist
from cloud.stream.contract import StreamError
from cloud.stream.jetstream.saved import load, steps
from cloud.stream.jetstream.state import LedgerState

__all__ = ["Checkpoints"]

log = structlog.get_logger(component="stream")

_VERSION = 1
_PIECE_BYTES = 512 << 10
_BYTES_MAX = 1 << 31
_TRIES = 5
_LAST_S = 15.0


class Checkpoints:
    """The checkpoints of one cluster.

    Attributes:
        seq: Of the newest one this node knows; 0 without.
    """

    def __init__(self, connection: Connection, layout: Layout) -> None:
        self.seq = 0
        self._connection = connection
        self._layout = layout

    async def load(self, arrivals_max: int) -> LedgerState:
        """Return the newest state; an empty one when there is none.

        Raises:
            StreamError: it cannot be read, or is damaged.
        """
        cause: Exception | None = None
        for _ in range(_TRIES):
            try:
                head = await self._last("head")
                if head is None:
                    return LedgerState(arrivals_max)
                state = await self._load(cbor2.loads(head[1]), arrivals_max)
            except ClusterError as error:
                raise StreamError(f"{self._layout.checkpoint_stream}: {error}") from None
            except Exception as error:  # noqa: BLE001 - damaged, or replaced while it was read
                cause = error
                await asyncio.sleep(0.2)
                continue
            self.seq = state.seq
            return state
        raise StreamError(f"{self._layout.checkpoint_stream}: cannot be read: {cause}")

    async def _load(self, head: list[object], arrivals_max: int) -> LedgerState:
        version, seq, count, digest = head
        if version != _VERSION:
            raise ValueError(f"version {version}, this one knows {_VERSION}")
        assert isinstance(count, int)
        pieces = []
        for number in range(count):
            found = await self._last(seq, number)
            if found is None:
                raise ValueError(f"piece {number} of {seq} is gone")
            pieces.append(found[1])
        packed = b"".join(pieces)
        if hashlib.sha256(packed).digest() != digest:
            raise ValueError(f"checkpoint {seq} is damaged")
        data = zstandard.ZstdDecompressor().decompress(packed, max_output_size=_BYTES_MAX)
        return load(data, arrivals_max)

    async def _last(self, *tokens: object) -> tuple[int, bytes] | None:
        subject = self._layout.checkpoint_subject(*tokens)
        stream = self._layout.checkpoint_stream
        found = await insist(
            lambda: self._connection.last_message(stream, subject),
            timeout_s=min(_LAST_S, self._connection.patience_s),
        )
        if found is None:
            return None
        return int(found["seq"]), base64.b64decode(found.get("data") or "")

    async def newest(self) -> int:
        """Return the sequence of the newest checkpoint there is, 0 without.

        Raises:
            StreamError: it cannot be asked for.
        """
        try:
            head = await self._last("head")
        except ClusterError as error:
            raise StreamError(f"{self._layout.checkpoint_stream}: {error}") from None
        self.seq = _seq_of(head)
        return self.seq

    async def save(
        self,
        state: LedgerState,
        *,
        keep_records: int,
        alone: Callable[[], Awaitable[None]] | None = None,
    ) -> bool:
        """Write a checkpoint of `state` as it is now; return False when a newer one exists.

        Args:
            state: As it is at the call, whatever is taken meanwhile.
            keep_records: How many records before it stay in the ledger, for nodes that lag.
            alone: Given, it may be of a record past the ledger's end, which then goes on behind it;
                raises ClusterError if somebody else takes part in the cluster.

        Raises:
            StreamError: it was not written; the old one stands.
        """
        seq, pieces = state.seq, steps(state)
        try:
            return await self._save(
                seq, pieces, keep_records, alone or partial(self._check_end, seq)
            )
        except ClusterError as error:
            raise StreamError(f"{self._layout.checkpoint_stream}: {error}") from None

    async def _save(
        self,
        seq: int,
        steps_left: Iterator[bytes],
        keep_records: int,
        check: Callable[[], Awaitable[None]],
    ) -> bool:
        head = await self._last("head")
        before = _seq_of(head)
        if head is not None and before >= seq:
            self.seq = before
            return False
        await check()
        made = []
        for piece in steps_left:
            made.append(piece)
            await asyncio.sleep(0)
        data = b"".join(made)
        packed = await asyncio.to_thread(zstandard.ZstdCompressor(level=3).compress, data)
        pieces = [packed[at : at + _PIECE_BYTES] for at in range(0, len(packed), _PIECE_BYTES)]
        for number, piece in enumerate(pieces):
            await self._put(piece, seq, number)
        await check()  # it may have been made again meanwhile, behind another one
        digest = hashlib.sha256(packed).digest()
        expected = head[0] if head is not None else 0
        new = cbor2.dumps([_VERSION, seq, len(pieces), digest])
        try:
            await self._put(new, "head", expected=expected)
        except ApiError as error:
            if error.err_code != 10071:
                raise
            now = await self._last("head")
            if now is None or now[1] != new:  # another node was quicker; its pieces may be ours
                return False
        self.seq = seq
        if before:
            await self._purge(self._layout.checkpoint_stream,
                              filter=self._layout.checkpoint_subject(before, ">"))  # fmt: skip
        if seq > keep_records:
            await self._purge(self._layout.ledger_stream, seq=seq + 1 - keep_records)
        log.info("ledger_checkpoint", seq=seq, bytes=len(packed))
        return True

    async def forget_older(self) -> None:
        """Purge the pieces of all checkpoints but the newest, of which a mirror keeps every one.

        Raises:
            ClusterError.
        """
        stream = self._layout.checkpoint_stream
        newest = str(_seq_of(await self._last("head")))
        asked = {"subjects_filter": self._layout.checkpoint_subject("*", "*")}
        said = await insist(lambda: self._connection.api(f"STREAM.INFO.{stream}", asked))
        for token in {subject.split(".")[-2] for subject in said["state"].get("subjects") or ()}:
            if token != newest:
                await self._purge(stream, filter=self._layout.checkpoint_subject(token, "*"))

    async def _check_end(self, seq: int) -> None:
        """Refuse a state of records that the ledger does not have (any more).

        After a restore it would pass over what was restored, and have it purged. Of a ledger that
        is gone altogether the state is all there is.

        Raises:
            StreamError.
        """
        stream = self._layout.ledger_stream
        try:
            info = await insist(lambda: self._connection.api(f"STREAM.INFO.{stream}"))
        except ApiError as error:
            if error.err_code == GONE:
                return
            raise
        last = int(info["state"]["last_seq"])
        after = goes_on(info["config"].get("metadata") or {})
        if after is not None and after[0] < seq < after[1]:
            raise StreamError(f"{stream}: it goes on behind record {after[0]}, {seq} is not of it")
        if last < seq:
            raise StreamError(f"{stream}: ends at {last}, a checkpoint of {seq} is not written")

    async def _put(self, data: bytes, *tokens: object, expected: int | None = None) -> None:
        subject = self._layout.checkpoint_subject(*tokens)
        headers = (
            {"Nats-Expected-Last-Subject-Sequence": str(expected)} if expected is not None else None
        )
        await insist(lambda: self._connection.publish(subject, data, headers, timeout_s=5))

    async def _purge(self, stream: str, **what: object) -> None:
        try:
            await insist(lambda: self._connection.api(f"STREAM.PURGE.{stream}", what, timeout_s=5))
        except ApiError as error:
            if error.err_code != GONE:
                raise


def _seq_of(head: tuple[int, bytes] | None) -> int:
    """Return the sequence of the checkpoint that a head names, 0 without one or if damaged."""
    return checkpoint_seq(head[1]) if head is not None else 0
