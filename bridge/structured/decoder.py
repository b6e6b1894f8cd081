"""The structured mode's decoder: bodies of one connection to readings, in step with the encoder.

docs/link-format-structured.md section 8 says what is checked. Whatever is wrong with a body ends in
one `BatchError`, and the context is gone.
"""

from __future__ import annotations

import struct

from bridge.columnar import Columns, Limits
from bridge.errors import BatchError
from bridge.structured.assembly import decode_rows
from bridge.structured.body import body_head, unpack_body
from bridge.structured.context import Context
from bridge.structured.limits import StructuredLimits
from bridge.structured.order import code_order
from bridge.structured.schema import update_columns
from bridge.structured.snapshot import restore
from bridge.structured.timing import code_arrivals, code_mode_changes

__all__ = ["StructuredDecoder"]


class StructuredDecoder:
    """Decodes the bodies of one connection, in the order in which they arrive.

    Args:
        limits: What is accepted and held.
    """

    def __init__(self, limits: StructuredLimits | None = None) -> None:
        self._limits = limits or StructuredLimits()
        self.reset()

    def reset(self) -> None:
        """Drop the contexts: until a body starts one anew, all are refused."""
        self._contexts: list[Context | None] = [None, None]

    def restore(self, name: bytes, data: bytes) -> None:
        """Go on from a snapshot, as the encoder does.

        Raises:
            SnapshotError: the bytes are not the snapshot of that name; nothing has changed.
        """
        self._contexts = [restore(name, data, self._limits), None]

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
        number, anew = body_head(body)
        if anew:
            limits = self._limits if number == 0 else self._limits.halved()
            self._contexts[number:] = [Context(limits), None][: 2 - number]
        context = self._contexts[number]
        if context is None:
            raise BatchError("context", "the body continues a context that is not here")
        if not 0 < count <= self._limits.batch_cells:
            raise BatchError("bounds", "more readings than allowed")
        io = unpack_body(body, context, content_bytes)
        code_mode_changes(io, context)
        update_columns(io, context, [])
        arrivals = code_arrivals(io, context, count)
        times = [time for _, source_times in arrivals for time in source_times]
        order = code_order(io, context, times)
        readings = decode_rows(io, context, arrivals)
        io.close()
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
