"""The structured mode's decoder: bodies of one connection to readings, in step with the encoder.

docs/link-format-structured.md section 8 says what is checked. Whatever is wrong with a body ends in
one `BatchError`, and the context is gone.
"""

from __future__ import annotations

import struct
from typing import Protocol

from bridge.columnar import Columns, Limits
from bridge.errors import BatchError
from bridge.structured.assembly import decode_rows
from bridge.structured.body import body_head, unpack_body
from bridge.structured.context import Context
from bridge.structured.limits import KEEP_BODIES_MAX, StructuredLimits
from bridge.structured.order import code_order
from bridge.structured.schema import update_columns
from bridge.structured.snapshot import SnapshotError, dump, restore
from bridge.structured.timing import code_arrivals, code_mode_changes

__all__ = ["Snapshots", "StructuredDecoder"]


class Snapshots(Protocol):
    """Keeps snapshots of one sender's contexts."""

    def get(self, name: bytes) -> bytes | None:
        """Return the snapshot of that name, None if it is not here."""
        ...

    def put(self, name: bytes, data: bytes) -> None:
        """Keep a snapshot; those before it may be dropped."""
        ...


class StructuredDecoder:
    """Decodes the bodies of one connection, in the order in which they arrive.

    Args:
        limits: What is accepted and held.
        snapshots: What was kept for this sender; None: nothing is.
    """

    def __init__(
        self, limits: StructuredLimits | None = None, snapshots: Snapshots | None = None
    ) -> None:
        self._limits = limits or StructuredLimits()
        self._snapshots = snapshots
        self.reset()

    def reset(self) -> None:
        """Drop the contexts: until a body starts one anew, all are refused."""
        self._contexts: list[Context | None] = [None, None]
        self._bodies = 0  # since then,
        self._kept = 0  # and how many of them had a snapshot made
        self._keep_from = 1  # number of the first body that may have the next

    @property
    def contexts(self) -> list[Context]:
        """The contexts that are there, the main one first."""
        return [context for context in self._contexts if context is not None]

    def decode(
        self,
        body: bytes,
        count: int,
        reference: int = 0,  # noqa: ARG002 - the context knows its last time itself
        limits: Limits | None = None,
    ) -> Columns:
        """Return exactly `count` readings in seq order.

        Args:
            body: A body of the structured mode.
            count: How many readings the envelope says there are, 1 or more.
            reference: Not used: the context knows its last time itself.
            limits: The envelope's, of which `content_bytes` bounds the pools.

        Raises:
            BatchError: the body cannot be what an encoder made, or breaks a limit.
        """
        try:
            return self._decode(body, count, (limits or Limits()).content_bytes)
        except BatchError:
            self.reset()
            raise
        except (ArithmeticError, LookupError, TypeError, ValueError, struct.error) as error:
            self.reset()
            raise BatchError("malformed", f"{type(error).__name__} in decoding") from error

    def _decode(self, body: bytes, count: int, content_bytes: int) -> Columns:
        head = body_head(body)
        self._bodies += 1
        if head.warm:
            if self._bodies > 1:
                raise BatchError("malformed", "a snapshot named behind other bodies")
            self._contexts = [self._snapshot(head.warm), None]
        number = head.number
        if head.anew:
            limits = self._limits if number == 0 else self._limits.halved()
            self._contexts[number:] = [Context(limits), None][: 2 - number]
        context = self._contexts[number]
        if context is None:
            raise BatchError("context", "the body continues a context that is not here")
        if not 0 < count <= self._limits.batch_readings:
            raise BatchError("bounds", "more readings than allowed")
        io = unpack_body(body, context, content_bytes)
        code_mode_changes(io, context)
        update_columns(io, context, [])
        arrivals = code_arrivals(io, context, count)
        times = [time for _, source_times in arrivals for time in source_times]
        order = code_order(io, context, times)
        readings = decode_rows(io, context, arrivals)
        io.close()
        if head.keep:
            self._keep()
        sources = [source for source, source_times in arrivals for _ in source_times]
        table = {source: place for place, source in enumerate(dict.fromkeys(sources))}
        return Columns(
            sources=[(source.topic, source.device) for source in table],
            source_index=[table[sources[position]] for position in order],
            times=[times[position] for position in order],
            flags=[readings.flags[position] for position in order],
            payloads=[readings.payloads[position] for position in order],
            properties=[readings.blocks[position] for position in order],
        )

    def _snapshot(self, name: bytes) -> Context:
        data = self._snapshots.get(name) if self._snapshots is not None else None
        if data is None:
            raise BatchError("snapshot", "the body continues a snapshot that is not here")
        try:
            return restore(name, data, self._limits)
        except SnapshotError as error:
            raise BatchError("snapshot", str(error)) from error

    def _keep(self) -> None:
        """Keep a snapshot: never more often than encoders ask, since each takes some work."""
        main = self._contexts[0]
        if main is None or self._snapshots is None or self._bodies < self._keep_from:
            return
        self._snapshots.put(*dump(main))
        self._keep_from = self._bodies + min(KEEP_BODIES_MAX, 1 << self._kept)
        self._kept = min(self._kept + 1, 16)
