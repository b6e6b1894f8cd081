"""Predictors: what a number is expected to be, from what both ends know already.

docs/link-format-structured.md section 5.3. `residuals` (encoder) and `values` (decoder) run the
same code over the cells of one column in row order; `x` is a value for the one and a residual for
the other, and None where the token was escaped, which leaves the cell's state as it is. A cell
without a value yet is predicted from the column's most recent value.

Invariant: a prediction uses earlier rows of the column, the rows' times and the referred column's
values of the same rows, nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from bridge.structured.kernel import Kernel, Maybe, native

__all__ = ["USES_COLUMN", "CellState", "Maybe", "PredictorKind", "Rows", "residuals", "values"]

_CLAMP = 1 << 62  # values are within +-2^61, so that no residual passes 2^63


class PredictorKind(IntEnum):
    """How a number is predicted; the numbers are those of the format."""

    LAST = 0  # as it was
    LINEAR = 1  # goes on by its last step
    MEAN = 2  # a moving average; parameter: its shift, 1 to 6
    TIME = 3  # follows the time of arrival; parameters: units per `den` time units, `den`
    DIFFERENCE = 4  # keeps its distance to another column of the row
    RATIO = 5  # keeps its proportion to another column of the row
    BEFORE = 6  # is what another column was one row earlier
    SIBLING = 7  # keeps its distance to a column of the device's other topic
    LINE = 8  # follows another column of the row; parameters: units per `den` of its, `den`


USES_COLUMN = frozenset(
    {
        PredictorKind.DIFFERENCE,
        PredictorKind.RATIO,
        PredictorKind.BEFORE,
        PredictorKind.SIBLING,
        PredictorKind.LINE,
    }
)


@dataclass(slots=True)
class CellState:
    """What a column remembers of its cells: one entry an instance of the family.

    `last` is the last integer, or None before the first; `aux` what the predictor keeps beside
    it; `recent` and `recent_aux` are those of the column's last row, whatever its instance.
    """

    last: list[Maybe] = field(default_factory=list)
    aux: list[Maybe] = field(default_factory=list)
    recent: int = 0
    recent_aux: int = 0


@dataclass(slots=True)
class Rows:
    """The rows in which a column is coded.

    `cells` are instance numbers; `times` the rows' times in the link's units; `refs` the values
    of the referred column in these rows, None where it has none.
    """

    cells: list[int]
    times: Sequence[int] = ()
    refs: Sequence[Maybe] = ()


class _Step(Protocol):
    def __call__(
        self, state: CellState, rows: Rows, xs: list[Maybe], param: tuple[int, int], fwd: bool
    ) -> list[Maybe]: ...


def residuals(
    kind: int, state: CellState, rows: Rows, given: list[Maybe], param: tuple[int, int]
) -> list[Maybe]:
    """Return how far each value is from its prediction."""
    return predict(kind, state, rows, given, param, fwd=True)


def values(
    kind: int, state: CellState, rows: Rows, given: list[Maybe], param: tuple[int, int]
) -> list[Maybe]:
    """Return the value of each residual."""
    return predict(kind, state, rows, given, param, fwd=False)


def predict(
    kind: int,
    state: CellState,
    rows: Rows,
    given: list[Maybe],
    param: tuple[int, int],
    *,
    fwd: bool,
    kernel: Kernel | None = native,
) -> list[Maybe]:
    """Take values to residuals (`fwd`), or residuals to values."""
    if kernel is not None:
        done = kernel.predict(
            kind,
            state.last,
            state.aux,
            rows.cells,
            rows.times,
            rows.refs,
            given,
            *param,
            state.recent,
            state.recent_aux,
            fwd,
        )
        if done is not None:
            out, state.recent, state.recent_aux = done
            return out
    return _STEPS[kind](state, rows, given, param, fwd)


def _last(
    state: CellState,
    rows: Rows,
    xs: list[Maybe],
    param: tuple[int, int],  # noqa: ARG001
    fwd: bool,
) -> list[Maybe]:
    last, recent = state.last, state.recent
    out: list[Maybe] = []
    put = out.append
    if None not in xs and None not in map(last.__getitem__, rows.cells):
        return _last_of_all(state, rows, xs, fwd)
    for cell, x in zip(rows.cells, xs, strict=True):
        if x is None:
            put(None)
            continue
        p = last[cell]
        if p is None:
            p = recent
        if fwd:
            put(x - p)
            last[cell] = recent = x
        else:
            last[cell] = recent = x + p
            put(recent)
    state.recent = recent
    return out


def _last_of_all(state: CellState, rows: Rows, xs: Any, fwd: bool) -> list[Maybe]:
    """Do what `_last` does where every cell has a value and none is escaped."""
    last: Any = state.last
    out: list[Maybe] = []
    put = out.append
    if fwd:
        for cell, x in zip(rows.cells, xs, strict=True):
            put(x - last[cell])
            last[cell] = x
    else:
        for cell, x in zip(rows.cells, xs, strict=True):
            value = last[cell] = x + last[cell]
            put(value)
    state.recent = last[rows.cells[-1]]
    return out


def _linear(
    state: CellState,
    rows: Rows,
    xs: list[Maybe],
    param: tuple[int, int],  # noqa: ARG001
    fwd: bool,
) -> list[Maybe]:
    last, steps, recent, recent_step = state.last, state.aux, state.recent, state.recent_aux
    out: list[Maybe] = []
    put = out.append
    for cell, x in zip(rows.cells, xs, strict=True):
        if x is None:
            put(None)
            continue
        before = last[cell]
        if before is None:
            p = before = recent
        else:
            step = steps[cell]
            p = before + (recent_step if step is None else step)
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if last[cell] is not None:
            steps[cell] = recent_step = value - before
        last[cell] = recent = value
    state.recent, state.recent_aux = recent, recent_step
    return out


def _mean(
    state: CellState, rows: Rows, xs: list[Maybe], param: tuple[int, int], fwd: bool
) -> list[Maybe]:
    last, means, recent_mean = state.last, state.aux, state.recent_aux
    shift = param[0]
    out: list[Maybe] = []
    put = out.append
    value = state.recent
    for cell, x in zip(rows.cells, xs, strict=True):
        if x is None:
            put(None)
            continue
        mean = means[cell]
        if mean is None:
            before = last[cell]
            mean = recent_mean if before is None else before << 4
        p = (mean + 8) >> 4
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if last[cell] is None:
            means[cell] = recent_mean = value << 4
        else:
            means[cell] = recent_mean = mean + (((value << 4) - mean) >> shift)
        last[cell] = value
    state.recent, state.recent_aux = value, recent_mean
    return out


def _time(
    state: CellState, rows: Rows, xs: list[Maybe], param: tuple[int, int], fwd: bool
) -> list[Maybe]:
    last, phases, recent_phase = state.last, state.aux, state.recent_aux
    num, den = param
    half = den >> 1
    out: list[Maybe] = []
    put = out.append
    value = state.recent
    for cell, x, time in zip(rows.cells, xs, rows.times, strict=True):
        if x is None:
            put(None)
            continue
        phase = phases[cell]
        known = phase is not None
        if phase is None:
            phase = recent_phase
        scaled = time * num
        p = min(max((scaled + phase) // den, -_CLAMP), _CLAMP)
        value = x if fwd else x + p
        put(x - p if fwd else value)
        seen = value * den + half - scaled
        phase = phase + ((seen - phase) >> 2) if known and abs(seen - phase) < 64 * den else seen
        phases[cell] = recent_phase = phase
        last[cell] = value
    state.recent, state.recent_aux = value, recent_phase
    return out


def _line(
    state: CellState, rows: Rows, xs: list[Maybe], param: tuple[int, int], fwd: bool
) -> list[Maybe]:
    last, offsets, recent, recent_offset = state.last, state.aux, state.recent, state.recent_aux
    num, den = param
    half = den >> 1
    out: list[Maybe] = []
    put = out.append
    for cell, x, ref in zip(rows.cells, xs, rows.refs, strict=True):
        if x is None:
            put(None)
            continue
        offset = offsets[cell]
        known = offset is not None
        if offset is None:
            offset = recent_offset
        if ref is None:
            before = last[cell]
            p = recent if before is None else before
        else:
            p = min(max((ref * num + offset) // den, -_CLAMP), _CLAMP)
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if ref is not None:
            seen = value * den + half - ref * num
            if known and abs(seen - offset) < 64 * den:
                seen = offset + ((seen - offset) >> 2)
            offsets[cell] = recent_offset = seen
        last[cell] = recent = value
    state.recent, state.recent_aux = recent, recent_offset
    return out


def _difference(
    state: CellState,
    rows: Rows,
    xs: list[Maybe],
    param: tuple[int, int],  # noqa: ARG001
    fwd: bool,
) -> list[Maybe]:
    last, gaps, recent, recent_gap = state.last, state.aux, state.recent, state.recent_aux
    out: list[Maybe] = []
    put = out.append
    for cell, x, ref in zip(rows.cells, xs, rows.refs, strict=True):
        if x is None:
            put(None)
            continue
        if ref is None:
            before = last[cell]
            p = recent if before is None else before
        else:
            gap = gaps[cell]
            p = ref + (recent_gap if gap is None else gap)
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if ref is not None:
            gaps[cell] = recent_gap = value - ref
        last[cell] = recent = value
    state.recent, state.recent_aux = recent, recent_gap
    return out


def _ratio(
    state: CellState,
    rows: Rows,
    xs: list[Maybe],
    param: tuple[int, int],  # noqa: ARG001
    fwd: bool,
) -> list[Maybe]:
    last, refs_before, recent = state.last, state.aux, state.recent
    out: list[Maybe] = []
    put = out.append
    for cell, x, ref in zip(rows.cells, xs, rows.refs, strict=True):
        if x is None:
            put(None)
            continue
        p = last[cell]
        if p is None:
            p = recent
        elif ref is not None:
            ref_before = refs_before[cell]
            if ref_before:
                p = (2 * p * ref + ref_before) // (2 * ref_before)
                p = min(max(p, -_CLAMP), _CLAMP)
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if ref is not None:
            refs_before[cell] = ref
        last[cell] = recent = value
    state.recent = recent
    return out


def _before(
    state: CellState,
    rows: Rows,
    xs: list[Maybe],
    param: tuple[int, int],  # noqa: ARG001
    fwd: bool,
) -> list[Maybe]:
    last, refs_before, recent = state.last, state.aux, state.recent
    out: list[Maybe] = []
    put = out.append
    for cell, x, ref in zip(rows.cells, xs, rows.refs, strict=True):
        if x is None:
            put(None)
            continue
        p = refs_before[cell]
        if p is None:
            p = last[cell]
            if p is None:
                p = recent
        value = x if fwd else x + p
        put(x - p if fwd else value)
        if ref is not None:
            refs_before[cell] = ref
        last[cell] = recent = value
    state.recent = recent
    return out


_STEPS: dict[int, _Step] = {
    PredictorKind.LAST: _last,
    PredictorKind.LINEAR: _linear,
    PredictorKind.MEAN: _mean,
    PredictorKind.TIME: _time,
    PredictorKind.DIFFERENCE: _difference,
    PredictorKind.RATIO: _ratio,
    PredictorKind.BEFORE: _before,
    PredictorKind.SIBLING: _difference,
    PredictorKind.LINE: _line,
}
