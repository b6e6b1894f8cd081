"""The structured mode's encoder: batches of one connection to bodies.

docs/link-format-structured.md; the decoder is in `decoder`.
"""

from __future__ import annotations

from dataclasses import replace

from bridge.columnar import Columns
from bridge.structured.body import BodyHead, Compressor, pack_body
from bridge.structured.coder import Writer
from bridge.structured.context import Context
from bridge.structured.forecasts import TIME_MAX
from bridge.structured.limits import StructuredLimits
from bridge.structured.order import code_order
from bridge.structured.planner import BatchPlan, Planner
from bridge.structured.review import review_columns, review_times
from bridge.structured.rows import encode_rows
from bridge.structured.schema import update_columns
from bridge.structured.snapshot import dump, restore
from bridge.structured.timing import code_arrivals, code_mode_changes
from bridge.structured.weight import READING, is_heavy

__all__ = ["StructuredEncoder"]

DEFAULT_RESOLUTION_US = 1000
_REVIEWS_MIN = 2
_READINGS_PER_REVIEW = 25
_PRESSURE_MAX = 4096  # readings refused for want of room before a context starts anew
_APART_US = 30_000_000  # a batch so far before the last one is of another stream of readings


class _Track:
    """A context with what the encoder knows beside it."""

    __slots__ = ("anew", "context", "planner")

    def __init__(self, context: Context, resolution_us: int, *, anew: bool = True) -> None:
        self.context = context
        self.planner = Planner(context, resolution_us)
        self.anew = anew  # the decoder is to empty its context first


class StructuredEncoder:
    """Encodes the batches of one connection, in the order in which they are sent.

    A batch that was encoded and is not delivered leaves the contexts ahead of the decoder's: call
    `reset` then, as after any refusal.

    Args:
        limits: What the contexts may hold; the decoder's must be as great.
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
        self._apart = _APART_US // resolution_us
        self.reset()

    def reset(self) -> None:
        """Start anew: forget everything learned from earlier batches."""
        self._tracks = [self._new_track(0)]
        self._warm = b""

    def snapshot(self) -> tuple[bytes, bytes]:
        """Return the main context's name and the context itself, as `encode(keep=True)` has it."""
        return dump(self._tracks[0].context)

    def restore(self, name: bytes, data: bytes) -> None:
        """Go on from a snapshot; the next body names it to the decoder.

        Raises:
            SnapshotError: the bytes are not the snapshot of that name; nothing has changed.
        """
        context = restore(name, data, self._limits)
        self._tracks = [_Track(context, self._resolution_us, anew=False)]
        self._warm = name

    @property
    def contexts(self) -> list[Context]:
        """The contexts, the main one first."""
        return [track.context for track in self._tracks]

    def encode(
        self,
        columns: Columns,
        reference: int = 0,  # noqa: ARG002
        *,
        keep: bool = False,
    ) -> bytes | None:
        """Return the body of a batch of one or more readings.

        Returns None for a batch that passes the limits of one body: the contexts are as they were.

        Args:
            columns: Readings in seq order.
            reference: Not used: a context knows its last time itself.
            keep: The decoder is to keep `snapshot()` as it is after this body.
        """
        limits = self._limits
        size = sum(map(len, columns.payloads))
        if len(columns) > limits.batch_readings or size > limits.batch_bytes:
            return None
        if min(columns.times) <= -TIME_MAX or max(columns.times) >= TIME_MAX:
            return None
        columns = _distinct(columns)
        number = self._track_for(min(columns.times))
        track = self._tracks[number]
        if track.planner.refused > _PRESSURE_MAX or is_heavy(track.context):
            self._tracks[number:] = [self._new_track(number)]
            self._warm = b"" if number == 0 else self._warm
        track = self._tracks[number]
        try:
            plan = track.planner.plan(columns)
            head = BodyHead(number, track.anew, self._warm, keep)
            body = self._write(head, track, plan, len(columns))
            track.context.grown += READING * len(columns) + size
            track.context.grown += sum(map(len, columns.properties))
        except BaseException:
            self.reset()  # the context may have been changed in part
            raise
        track.anew = False
        self._warm = b""
        return body

    def _new_track(self, number: int) -> _Track:
        limits = self._limits if number == 0 else self._limits.halved()
        return _Track(Context(limits), self._resolution_us)

    def _track_for(self, first_time: int) -> int:
        """Return the context whose last batch was nearest in time.

        Readings that waited go between live ones when a link comes back: two streams, hours apart,
        of the same devices. The second context is made for the first batch that steps back.
        """
        last = self._tracks[0].context.last_time
        if len(self._tracks) == 1:
            if self._tracks[0].anew or first_time > last - self._apart:
                return 0
            self._tracks.append(self._new_track(1))
            return 1
        other = self._tracks[1].context.last_time
        return int(abs(first_time - other) < abs(first_time - last))

    def _write(self, head: BodyHead, track: _Track, plan: BatchPlan, count: int) -> bytes:
        context, planner = track.context, track.planner
        io = Writer()
        code_mode_changes(io, context, review_times(plan.views, self._resolution_us))
        budget = max(_REVIEWS_MIN, count // _READINGS_PER_REVIEW)
        changes = review_columns(context, planner.families, budget, self._resolution_us)
        update_columns(io, context, changes)
        arrivals = code_arrivals(io, context, count, plan.arrivals)
        order_of = {source: places for (source, _), places in plan.placed()}
        places = [place for source, _ in arrivals for place in order_of[source]]
        times = [time for _, source_times in arrivals for time in source_times]
        code_order(io, context, times, _inverse(places))
        encode_rows(io, context, arrivals, [plan.rows[source] for source, _ in arrivals])
        return pack_body(io, context, self._compressor, head)


def _inverse(places: list[int]) -> list[int]:
    """Return, in order of seqs, the canonical position of each reading."""
    out = [0] * len(places)
    for position, place in enumerate(places):
        out[place] = position
    return out


def _distinct(columns: Columns) -> Columns:
    """Return columns that name each source once: several clients may publish to one topic."""
    places = {source: place for place, source in enumerate(dict.fromkeys(columns.sources))}
    if len(places) == len(columns.sources):
        return columns
    where = [places[source] for source in columns.sources]
    index = list(map(where.__getitem__, columns.source_index))
    return replace(columns, sources=list(places), source_index=index)
