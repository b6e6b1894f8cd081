"""The structured mode's encoder: batches of one connection to bodies.

docs/link-format-structured.md; the decoder is in `decoder`.
"""

from __future__ import annotations

from bridge.columnar import Columns
from bridge.structured.body import Compressor, pack_body
from bridge.structured.coder import Writer
from bridge.structured.context import Context
from bridge.structured.limits import StructuredLimits
from bridge.structured.order import code_order
from bridge.structured.planner import BatchPlan, Planner
from bridge.structured.review import review_columns, review_times
from bridge.structured.rows import encode_rows
from bridge.structured.schema import update_columns
from bridge.structured.snapshot import dump, restore
from bridge.structured.timing import TIME_MAX, code_arrivals, code_mode_changes

__all__ = ["StructuredEncoder"]

DEFAULT_RESOLUTION_US = 1000
_REVIEWS_MIN = 2
_READINGS_PER_REVIEW = 25
_PRESSURE_MAX = 4096  # readings refused for want of room before the context starts anew


class StructuredEncoder:
    """Encodes the batches of one connection, in the order in which they are sent.

    A batch that was encoded and is not delivered leaves the context ahead of the decoder's: call
    `reset` then, as after any refusal.

    Args:
        limits: What the context may hold; the decoder's must be as great.
        resolution_us: The link's time unit, which the choice of predictors needs to know.
        level: zstd level of what is no symbol.
    """

    def __init__(
        self,
        limits: StructuredLimits | None = None,
        *,
        resolution_us: int = DEFAULT_RESOLUTION_US,
        level: int = 9,
    ) -> None:
        self._limits = limits or StructuredLimits()
        self._resolution_us = resolution_us
        self._compressor = Compressor(level)
        self.reset()

    def reset(self) -> None:
        """Start a new context: forget everything learned from earlier batches."""
        self._context = Context(self._limits)
        self._planner = Planner(self._context, self._resolution_us)
        self._anew = True

    def snapshot(self) -> tuple[bytes, bytes]:
        """Return the context's name and the context itself, for `restore` at both ends."""
        return dump(self._context)

    def restore(self, name: bytes, data: bytes) -> None:
        """Go on from a snapshot that the decoder restores as well.

        Raises:
            SnapshotError: the bytes are not the snapshot of that name; nothing has changed.
        """
        context = restore(name, data, self._limits)
        self._context = context
        self._planner = Planner(context, self._resolution_us)
        self._anew = False

    @property
    def context(self) -> Context:
        """The context, for snapshots and tests."""
        return self._context

    def encode(self, columns: Columns, reference: int = 0) -> bytes | None:  # noqa: ARG002
        """Return the body of a batch of one or more readings.

        Returns None for a batch that passes the limits of one body: then the context is as it was.

        Args:
            columns: Readings in seq order.
            reference: Not used: the context knows its last time itself.
        """
        limits = self._limits
        size = sum(map(len, columns.payloads))
        if len(columns) > limits.batch_cells or size > limits.batch_bytes:
            return None
        if min(columns.times) <= -TIME_MAX or max(columns.times) >= TIME_MAX:
            return None
        if self._planner.refused > _PRESSURE_MAX:
            self.reset()
        planner = self._planner
        try:
            plan = planner.plan(columns)
            return self._write(plan, len(columns))
        except BaseException:
            self.reset()  # the context may have been changed in part
            raise

    def _write(self, plan: BatchPlan, count: int) -> bytes:
        context, planner = self._context, self._planner
        io = Writer()
        changes = review_times(plan.views, self._resolution_us)
        code_mode_changes(io, context, changes)
        budget = max(_REVIEWS_MIN, count // _READINGS_PER_REVIEW)
        update_columns(io, context, review_columns(planner.families, budget, self._resolution_us))
        arrivals = code_arrivals(io, context, count, plan.arrivals)
        order_of = {id(source): places for (source, _), places in plan.placed()}
        places = [place for source, _ in arrivals for place in order_of[id(source)]]
        times = [time for _, source_times in arrivals for time in source_times]
        code_order(io, context, times, _inverse(places))
        encode_rows(io, context, arrivals, [plan.rows[id(source)] for source, _ in arrivals])
        body = pack_body(io, context, self._compressor, anew=self._anew)
        self._anew = False
        return body


def _inverse(places: list[int]) -> list[int]:
    """Return, in order of seqs, the canonical position of each reading."""
    out = [0] * len(places)
    for position, place in enumerate(places):
        out[place] = position
    return out
