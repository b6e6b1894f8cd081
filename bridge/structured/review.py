"""What an encoder remembers to learn from, and when it looks again. An encoder's affair.

Samples are the last readings of some sources of each family, and the last times of each source.
Reviews come once enough was sampled, ever more rarely, and are spread over batches, so that no
batch takes much longer for one.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING

from bridge.structured.context import (
    Column,
    ColumnKind,
    Context,
    Family,
    Source,
    Template,
    TimeMode,
)
from bridge.structured.forecasts import PERIOD_MAX
from bridge.structured.learner import Neighbour, Series, bits_of, choose_spec, is_constant
from bridge.structured.predictors import Maybe, PredictorKind
from bridge.structured.schema import ColumnPlan, ColumnSpec, FamilyPlan, TemplatePlan
from bridge.structured.siblings import sibling_of

if TYPE_CHECKING:
    from bridge.structured.planner import KnownShape

VARYING = -2  # in place of a count of digits

__all__ = ["VARYING", "FamilyView", "SourceView", "review_columns", "review_times"]

_SAMPLED_SOURCES = 16
_SAMPLED_READINGS = 8
_FIRST_SAMPLES = 40  # readings sampled before the first review; later ones want all they can get
_REVIEW_EVERY = 32_768
_NEIGHBOURS = 8
_TIMES = 17
_FIRST_TIMES = 3
_NUMBER = re.compile(rb"-?\d+(?:\.(\d+))?")


# ---- sources -------------------------------------------------------------------------------------


class SourceView:
    """A source as an encoder sees it.

    Attributes:
        source: The source.
        known: The shape of its last payload.
        wanted: The template, or plan, to give its next payload of that shape.
        fits: Returns True for a payload that is a slot alone and spelled as the last.
        times: Its last times, kept while they are not predicted well.
        readings: How many of those it had.
        review_at: How many it must have had for the next review.
    """

    __slots__ = ("_digits", "fits", "known", "readings", "review_at", "source", "times", "wanted")

    def __init__(self, source: Source) -> None:
        self.source = source
        self.known: KnownShape | None = None
        self.wanted: Template | TemplatePlan | None = None
        self.fits: Callable[[bytes], bool] | None = None
        self.times: deque[int] = deque(maxlen=_TIMES)
        self.readings = 0
        self.review_at = _FIRST_TIMES
        self._digits = -1

    def spelling_of(self, payload: bytes) -> object:
        """Return what sets apart columns of payloads that are a slot alone."""
        match = _NUMBER.fullmatch(payload)
        if match is None:
            return "text"
        digits = len(match.group(1) or b"")
        if self._digits not in (-1, digits):
            self._digits = VARYING
        else:
            self._digits = digits
        return self._digits


def review_times(views: Iterable[SourceView], resolution_us: int) -> list[tuple[Source, int, int]]:
    """Return the sources to be predicted in another way from now on: mode and period."""
    out: list[tuple[Source, int, int]] = []
    for view in views:
        if view.readings < view.review_at or view.source.index < 0:
            continue
        view.review_at = view.readings * 3
        if len(view.times) < _FIRST_TIMES:
            continue
        mode, period = _best_mode(view, resolution_us)
        source = view.source
        if mode != source.mode or (
            mode != TimeMode.GAP and abs(period - source.period) > source.period >> 3
        ):
            out.append((source, mode, period))
    out.sort(key=lambda change: change[0].index)
    return out


def _best_mode(view: SourceView, resolution_us: int) -> tuple[int, int]:
    """Return the mode, and its period in 256ths of a unit, that would take the fewest bits."""
    times = list(view.times)
    gaps = [b - a for a, b in pairwise(times)]
    long = sorted(gap for gap in gaps if 4 * gap > max(gaps)) or [0]
    period = long[len(long) // 2]
    options = [(_gap_bits(gaps), TimeMode.GAP, 0)]
    source = view.source
    candidates = {_rounded(period << 8, resolution_us), (60_000_000 << 8) // resolution_us}
    if source.mode == TimeMode.PERIODIC:
        candidates.add(source.period)
    for candidate in sorted(candidates):
        if 256 < candidate <= min(max(gaps) << 9, PERIOD_MAX):
            bits = _periodic_bits(times, candidate, free=False)
            bits *= 1.0 if candidate == source.period else 1.05
            options.append((bits, TimeMode.PERIODIC, candidate))
    second = (1_000_000 << 8) // resolution_us
    if len(gaps) >= 8 and 256 < second < period << 8:
        options.append((_periodic_bits(times, second, free=True) + 8, TimeMode.TICK, second))
    _, mode, period = min(options)
    return mode, period


def _rounded(period: int, resolution_us: int) -> int:
    """Return a period made whole seconds, or tenths of one, if it nearly is."""
    for unit_us in (60_000_000, 1_000_000, 100_000):
        unit = (unit_us << 8) // resolution_us
        if unit and period >= unit:
            whole = (period + unit // 2) // unit * unit
            if abs(whole - period) * 128 < period:
                return whole
    return period


def _gap_bits(gaps: list[int]) -> float:
    return bits_of(gaps) + len(gaps)


def _periodic_bits(times: Sequence[int], period: int, *, free: bool) -> float:
    """Return the bits of times as multiples of a period and a residual."""
    phase = times[0] << 8
    steps: list[int] = []
    multiples: list[int] = []
    bursts: list[int] = []
    last = times[0]
    for time in times[1:]:
        multiple = max(0, ((time << 8) - phase + period // 2) // period)
        if not multiple and not free:
            bursts.append(time - last)
        else:
            expected = phase + multiple * period
            error = (time << 8) - expected
            steps.append(error >> 8)
            phase = expected + error // 2
            multiples.append(multiple - (0 if free else 1))
        last = time
    return bits_of(steps) + bits_of(multiples) + bits_of(bursts) + 3 * len(bursts)


# ---- families ------------------------------------------------------------------------------------

# time, slots by column, tokens
Sample = tuple[int, dict[ColumnPlan, int], tuple[bytes, ...]]


@dataclass(slots=True, eq=False)
class FamilyView:
    """A family as an encoder sees it: its columns by path, and samples of its readings."""

    plan: FamilyPlan
    columns: dict[tuple[object, ...], ColumnPlan] = field(default_factory=dict)
    fragments: set[bytes] = field(default_factory=set)
    members: set[Source] = field(default_factory=set)
    samples: dict[SourceView, deque[Sample]] = field(default_factory=dict)
    wants_sample: bool = True  # there is room for another source's samples
    readings: int = 0
    review_at: int = 0
    sampled: int = 0
    enough: int = _FIRST_SAMPLES
    due: list[ColumnPlan] = field(default_factory=list)  # columns still to be looked at
    tables: dict[ColumnPlan, list[list[Maybe]]] = field(default_factory=dict)  # for those
    everywhere: dict[ColumnPlan, bool] = field(default_factory=dict)  # all samples have it
    by_index: dict[int, ColumnPlan] = field(default_factory=dict)  # the columns, while some are due

    @classmethod
    def of(cls, family: Family) -> FamilyView:
        """Return the view of a family that another encoder has learned."""
        many = _SAMPLED_SOURCES * _SAMPLED_READINGS
        return cls(FamilyPlan(family), review_at=4 * many, enough=many)

    def keep_sample(self, view: SourceView, sample: Sample) -> None:
        """Keep a reading to learn from, unless those kept are being looked at."""
        if self.due:
            return
        kept = self.samples.get(view)
        if kept is None:
            kept = self.samples[view] = deque(maxlen=_SAMPLED_READINGS)
            self.wants_sample = len(self.samples) < _SAMPLED_SOURCES
        kept.append(sample)
        self.sampled += 1

    def begin_review(self) -> None:
        """Have all columns looked at, with the samples as they are."""
        self.due = list(self.columns.values())
        self.by_index = {plan.column.index: plan for plan in self.due if plan.column is not None}

    def end_review(self) -> None:
        """Go on to sample."""
        self.samples.clear()
        self.wants_sample = True
        self.sampled = 0
        self.tables.clear()
        self.everywhere.clear()
        self.by_index.clear()

    def series_of(self, column: ColumnPlan) -> Series:
        """Return the sampled tokens of a column by source, only of sources that have it."""
        return [
            [(time, tokens[slots[column]]) for time, slots, tokens in sample]
            for sample in self._samples_with(column)
        ]

    def values_of(self, column: ColumnPlan, beside: ColumnPlan) -> list[list[Maybe]]:
        """Return the integers of a NUMBER column in the sampled readings that have `beside`."""
        table = self._table(column)
        whole = self.everywhere.get(beside)
        if whole is None:
            rows = [row for sample in self.samples.values() for row in sample]
            whole = self.everywhere[beside] = all(beside in slots for _, slots, _ in rows)
        if whole:
            return table
        out = []
        for sample, values in zip(self.samples.values(), table, strict=True):
            having = [value for row, value in zip(sample, values, strict=True) if beside in row[1]]
            if having:
                out.append(having)
        return out

    def _table(self, column: ColumnPlan) -> list[list[Maybe]]:
        """Return the integers of a NUMBER column in all sampled readings, or None."""
        found = self.tables.get(column)
        if found is None:
            printer = column.column.printer if column.column is not None else None
            rows = [row for sample in self.samples.values() for row in sample]
            tokens = [tokens[slots[column]] for _, slots, tokens in rows if column in slots]
            values = iter(printer.parse_all(tokens) if printer and tokens else [])
            found = self.tables[column] = [
                [next(values, None) if column in slots else None for _, slots, _ in sample]
                for sample in self.samples.values()
            ]
        return found

    def _samples_with(self, column: ColumnPlan) -> Iterable[list[Sample]]:
        for sample in self.samples.values():
            having = [row for row in sample if column in row[1]]
            if having:
                yield having


ColumnChange = tuple[Family, Column, ColumnSpec]


def review_columns(
    context: Context, views: Sequence[FamilyView], budget: int, resolution_us: int
) -> list[ColumnChange]:
    """Return columns to be coded in another way from now on, after a look at `budget` of them."""
    out: list[ColumnChange] = []
    for view in views:
        family = view.plan.family
        if family is None:
            continue
        if view.sampled >= view.enough and view.readings >= view.review_at and not view.due:
            view.review_at = view.readings + min(3 * view.readings, _REVIEW_EVERY)
            view.enough = _SAMPLED_SOURCES * _SAMPLED_READINGS
            view.begin_review()
        if not view.due:
            continue
        refs = [column.ref[1] if column.ref[0] < 0 else -1 for column in family.columns]
        while view.due and budget > 0:
            budget -= 1
            _review_column(context, view, family, view.due.pop(), refs, resolution_us, out)
        if not view.due:
            view.end_review()
    out.sort(key=lambda change: (change[0].index, change[1].index))
    return out


def _review_column(
    context: Context,
    view: FamilyView,
    family: Family,
    plan: ColumnPlan,
    refs: list[int],
    resolution_us: int,
    out: list[ColumnChange],
) -> None:
    column = plan.column
    series = view.series_of(plan)
    if column is None or sum(map(len, series)) < 4:
        return
    if not column.hot and is_constant(series):
        return

    def neighbours() -> Iterable[Neighbour]:
        found = 0
        for index in _by_distance(column.index, len(refs)):
            other = view.by_index.get(index)
            if other is None or not _may_refer(column, family.columns[index], refs):
                continue
            yield Neighbour(index, view.values_of(other, plan))
            found += 1
            if found == _NEIGHBOURS:
                return

    spec = choose_spec(column, series, resolution_us, neighbours, plan.hint)
    if spec.kind == ColumnKind.NUMBER and spec.hot and spec.ref[1] < 0:
        sibling = sibling_of(context, family, column)
        if sibling is not None:
            spec = replace(spec, predictor=PredictorKind.SIBLING, param=(0, 0), ref=sibling)
    if spec != ColumnSpec(
        column.kind,
        column.hot,
        column.printer.key if column.printer else None,
        column.predictor,
        column.param,
        column.ref,
        column.alphabet,
    ):
        refs[column.index] = spec.ref[1] if spec.ref[0] < 0 else -1
        out.append((family, column, spec))


def _by_distance(place: int, count: int) -> Iterable[int]:
    """Return the places below `count` but `place` itself, the nearest first."""
    for distance in range(1, count):
        if place >= distance:
            yield place - distance
        if place + distance < count:
            yield place + distance


def _may_refer(column: Column, other: Column, refs: Sequence[int]) -> bool:
    """Return True when `column` may refer to `other` without closing a ring."""
    if other is column or other.kind != ColumnKind.NUMBER or not other.hot:
        return False
    at = other.index
    while at >= 0:
        if at == column.index:
            return False
        at = refs[at]
    return True
