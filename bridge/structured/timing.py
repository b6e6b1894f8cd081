"""Which sources a batch has readings of, and when each arrived.

docs/link-format-structured.md section 6.1. Every source carries a forecast of its next reading.
Sources whose forecast lies past the batch's end are not mentioned when they were indeed silent;
those due get a count; the few that come unexpectedly, or are new, are named. Each time is then a
residual against the source's forecast (`forecasts`).
"""

from __future__ import annotations

from collections.abc import Sequence

from bridge.structured.coder import Coder, Reader, Writer, refuse
from bridge.structured.context import Context, ModelTables, Source, TimeMode
from bridge.structured.forecasts import (
    FRACTION,
    HALF,
    PERIOD_MAX,
    TIME_MAX,
    arrived,
    checked,
    expect_all,
    forecast_round,
    note_phase,
    note_round,
    settle,
)
from bridge.structured.kernel import Kernel, Maybe, native
from bridge.structured.schema import define_source
from bridge.structured.tables import Table

__all__ = [
    "Arrivals",
    "ModeChange",
    "code_arrivals",
    "code_gap",
    "code_mode_changes",
]

Arrivals = list[tuple[Source, list[int]]]
ModeChange = tuple[Source, int, int]  # source, mode, period in 256ths of a unit

_MENTIONS_MAX = 1 << 17
_COUNT_MAX = 1 << 32  # readings of one source in one batch, far beyond any limit
_ABSENT_MAX = 16
(
    _CHANGES,
    _CHANGE_SOURCE,
    _CHANGE_MODE,
    _CHANGE_PERIOD,
    _NAMED,
    _NAMED_COUNT,
    _FRESH,
    _FRESH_MODE,
    _FRESH_COUNT,
    _FRESH_TIME,
) = range(10)


# ---- times ---------------------------------------------------------------------------------------


def _code_times(
    io: Coder, context: Context, entries: Sequence[tuple[Source, int, Sequence[int]]]
) -> Arrivals:
    """Code as many times as stand beside each source, in rounds of one time a source.

    Those expected one period on come first in a round, as a column; then the others, and the
    expected ones that did not come so, one by one.

    Args:
        io: A `Writer` or `Reader`.
        context: The context.
        entries: Sources, each with its count of readings and, for an encoder, their times.
    """
    out: Arrivals = [(source, []) for source, _, _ in entries]
    waiting = list(range(len(entries)))
    turn = 0
    while waiting:
        given = [entries[at][2][turn] for at in waiting] if entries[0][2] else []
        sources = [entries[at][0] for at in waiting]
        for at, time in zip(waiting, _code_round(io, context, sources, given), strict=True):
            out[at][1].append(time)
        turn += 1
        waiting = [at for at in waiting if entries[at][1] > turn]
    return out


def _code_round(io: Coder, context: Context, sources: list[Source], given: list[int]) -> list[int]:
    """Code the next time of each source and bring its forecast up to date."""
    places, forecasts, contexts, steps = forecast_round(sources, given)
    found = io.residuals(
        context.tables.phases, contexts, list(range(len(places))), steps if given else None
    )
    times: list[int | None] = [None] * len(sources)
    note_round(sources, places, forecasts, found, times)
    if None not in times:
        return times  # type: ignore[return-value]  # no None
    among = set(places)
    return [
        _code_other(io, context, source, given[place] if given else 0, place in among)
        if known is None
        else known
        for place, (source, known) in enumerate(zip(sources, times, strict=True))
    ]


def _code_other(io: Coder, context: Context, source: Source, time: int, missed: bool) -> int:
    """Code a time that its source's period does not tell, `missed` if it should have."""
    tables = context.tables
    if missed:
        time = _code_unexpected(io, tables, source, time)
    elif source.mode == TimeMode.PERIODIC:
        time = _code_in_burst(io, tables, source, time)
    elif source.mode == TimeMode.GAP:
        return code_gap(io, tables.gaps, source, time)
    else:
        table = tables.multiples[min(source.multiple, 15)]
        multiple = io.number(table, _multiple(source, time))
        if multiple < 0:
            refuse("a time before its source's first")
        time = _code_phase(io, tables, source, time, multiple)
    arrived(source, checked(time))
    return time


def code_gap(io: Coder, gaps: list[Table], source: Source, time: int) -> int:
    """Code a time by its gap to the source's last one, and note it."""
    if native is not None:
        if isinstance(io, Writer):
            if native.write_gap(io.spans, io.plain, gaps, source, time):
                return time
        elif isinstance(io, Reader):
            done = _read_gap(native, io, gaps, source)
            if done is not None:
                return done
    return _code_and_note_gap(io, gaps, source, time)


def _code_and_note_gap(io: Coder, gaps: list[Table], source: Source, time: int) -> int:
    time = _take_gap(source, io.number(gaps[source.gap_size], time - source.last))
    arrived(source, checked(time))
    return time


def _read_gap(kernel: Kernel, io: Reader, gaps: list[Table], source: Source) -> int | None:
    """Return a time read as a gap, and noted; None where all is as it was."""
    try:
        found = kernel.read_gap(io, gaps, source)
    except EOFError as error:
        refuse(str(error))
    if not isinstance(found, tuple):
        return found
    if found[0] is None:
        refuse("an escape where an integer belongs")
    time = _take_gap(source, found[0])
    arrived(source, checked(time))
    return time


def _code_gap(io: Coder, tables: ModelTables, source: Source, time: int) -> int:
    return _take_gap(source, io.number(tables.gaps[source.gap_size], time - source.last))


def _take_gap(source: Source, gap: int) -> int:
    source.gap_size = min(gap.bit_length(), 21)
    return source.last + gap


def _code_in_burst(io: Coder, tables: ModelTables, source: Source, time: int) -> int:
    """Code a time that is expected soon after the last; one that is not is escaped."""
    near = source.period >> FRACTION + 1
    offset = time - source.last
    table = tables.gaps[source.gap_size]
    known = io.escapable(table, offset if -near <= offset <= near else None)
    if known is None:
        return _code_unexpected(io, tables, source, time)
    source.burst += 1
    source.gap_size = min(known.bit_length(), 21)
    return source.last + known


def _code_unexpected(io: Coder, tables: ModelTables, source: Source, time: int) -> int:
    """Code a time as so many periods on; none means a burst."""
    multiple = 0
    if time - source.last << FRACTION + 1 > source.period:
        multiple = _multiple(source, time)
    multiple = io.number(tables.multiples[0], multiple)
    if multiple < 0:
        refuse("a time before its source's first")
    if not multiple:
        source.burst += 1
        return _code_gap(io, tables, source, time)
    source.burst_length, source.burst = min(source.burst, 15), 0
    return _code_phase(io, tables, source, time, multiple)


def _multiple(source: Source, time: int) -> int:
    """Return the nearest count of periods from a source's phase to `time`, 0 or more."""
    ahead = (time << FRACTION) - source.phase
    return max(0, (ahead + (source.period >> 1)) // source.period)


def _code_phase(io: Coder, tables: ModelTables, source: Source, time: int, multiple: int) -> int:
    forecast = (source.phase + multiple * source.period + HALF) >> FRACTION
    residual = io.number(tables.strides[source.spread >> 2], time - forecast)
    note_phase(source, forecast + residual, residual, multiple)
    return forecast + residual


# ---- a batch -------------------------------------------------------------------------------------


def code_arrivals(
    io: Coder, context: Context, count: int, given: Arrivals | None = None
) -> Arrivals:
    """Code which sources have readings and their times; returns them in canonical order.

    Args:
        io: A `Writer` or `Reader`.
        context: The context.
        count: How many readings the batch has.
        given: For an encoder: each source once with its times in seq order; new sources, whose
            index is -1, behind the known ones.
    """
    start = context.last_time
    end = max(max(times) for _, times in given) if given else 0
    end = start + io.number(context.tables.span, end - start)
    if not -TIME_MAX < end < TIME_MAX:
        refuse("a time outside 61 bits")
    wanted = dict(given) if given else {}
    due = [source for source in context.awake if source.wake <= end]
    out: Arrivals = []
    left = _code_due(io, context, (start, end), count, due, wanted, out)
    rest = [item for item in given if item[0] in wanted] if given else []
    known = [item for item in rest if item[0].index >= 0]
    left = _code_named(io, context, left, due, known, out)
    left = _code_new(io, context, (start, end), left, rest[len(known) :], out)
    if left:
        refuse("readings of no source")
    context.last_time = end
    _tidy(context, out)
    return out


def _code_due(
    io: Coder,
    context: Context,
    span: tuple[int, int],
    left: int,
    due: list[Source],
    wanted: dict[Source, list[int]],
    out: Arrivals,
) -> int:
    """Code the readings of the sources that may well have some; returns how many are left."""
    expected, contexts = expect_all(due, *span)
    steps: list[Maybe] | None = None
    if wanted:
        steps = off_counts(due, expected, wanted)
    steps = io.residuals(context.tables.counts, contexts, list(range(len(due))), steps)
    try:
        places, counts = take_due(due, expected, steps)
    except ValueError as error:
        refuse(str(error))
    left -= sum(counts)
    if left < 0:
        refuse("counts of readings that do not add up")
    entries: list[tuple[Source, int, Sequence[int]]] = [
        (due[place], count, wanted.pop(due[place], ()))
        for place, count in zip(places, counts, strict=True)
    ]
    out += _code_times(io, context, entries)
    return left


def _off_counts(
    due: list[Source], expected: list[int], wanted: dict[Source, list[int]]
) -> list[Maybe]:
    """Return how many more readings each source has than expected."""
    return [
        len(wanted.get(source, ())) - count for source, count in zip(due, expected, strict=True)
    ]


def _take_due(
    due: list[Source], expected: list[int], steps: list[Maybe]
) -> tuple[list[int], list[int]]:
    """Return the places of the sources that have readings, and how many each has.

    Raises:
        ValueError: a count is negative or none.
    """
    places: list[int] = []
    counts: list[int] = []
    for place, (source, count, step) in enumerate(zip(due, expected, steps, strict=True)):
        if step is None:
            raise ValueError("an escape in place of a count")
        found = count + step
        if found:
            if not 0 < found <= _COUNT_MAX:
                raise ValueError("counts of readings that do not add up")
            source.absent = 0
            places.append(place)
            counts.append(found)
        elif count > 1 or not source.steady:
            source.absent += 1
    return places, counts


off_counts = native.off_counts if native else _off_counts
take_due = native.take_due if native else _take_due


def _code_named(
    io: Coder, context: Context, left: int, due: list[Source], known: Arrivals, out: Arrivals
) -> int:
    """Code the readings of known sources that were not due; returns how many are left."""
    tables = context.tables
    taken = {source.index for source in due}
    for turn in range(_code_count(io, context, _NAMED, len(known))):
        if not context.sources:
            refuse("a source where there is none")
        index = io.below(len(context.sources), known[turn][0].index if known else 0)
        if index in taken:
            refuse("a source named twice")
        taken.add(index)
        times = known[turn][1] if known else []
        found = 1 + io.number(tables.arrivals[_NAMED_COUNT], len(times) - 1)
        left = _take(io, context, context.sources[index], found, left, times, out)
    return left


def _code_new(
    io: Coder, context: Context, span: tuple[int, int], left: int, fresh: Arrivals, out: Arrivals
) -> int:
    """Define sources and code their readings; returns how many are left."""
    tables = context.tables
    start, end = span
    near = end
    for turn in range(_code_count(io, context, _FRESH, len(fresh))):
        given, times = fresh[turn] if fresh else (None, [])
        source = define_source(io, context, given)
        mode = io.number(tables.arrivals[_FRESH_MODE], source.mode)
        found = 1 + io.number(tables.arrivals[_FRESH_COUNT], len(times) - 1)
        near += io.number(tables.arrivals[_FRESH_TIME], times[0] - near if times else 0)
        if mode not in (TimeMode.GAP, TimeMode.PERIODIC) or mode > context.period:
            refuse("a way of arriving that does not exist")
        if not -TIME_MAX < near < TIME_MAX:
            refuse("a time outside 61 bits")
        source.mode, source.period = mode, context.period
        source.last, source.phase, source.gap = near, near << FRACTION, max(end - start, 0)
        source.gap_size = 10
        settle(source)
        out.append((source, [near]))
        left -= 1
        if found > 1:
            left = _take(io, context, source, found - 1, left, times[1:], out)
            out[-2][1].extend(out.pop()[1])
        elif found < 1 or left < 0:
            refuse("counts of readings that do not add up")
    return left


def _take(
    io: Coder,
    context: Context,
    source: Source,
    found: int,
    left: int,
    times: Sequence[int],
    out: Arrivals,
) -> int:
    """Code `found` times of a source; returns how many readings of the batch are left."""
    if not 0 < found <= left:
        refuse("counts of readings that do not add up")
    out += _code_times(io, context, [(source, found, times)])
    source.absent = 0
    return left - found


def _code_count(io: Coder, context: Context, field: int, count: int) -> int:
    count = io.number(context.tables.arrivals[field], count)
    if not 0 <= count <= _MENTIONS_MAX:
        refuse("a count that cannot be")
    return count


def _tidy(context: Context, out: Arrivals) -> None:
    """Let silent sources sleep and those that came be awake, their next wake set."""
    awake = [source for source in context.awake if source.absent <= _ABSENT_MAX]
    if len(awake) < len(context.awake):
        for source in context.awake:
            source.awake = source.absent <= _ABSENT_MAX
        context.awake = awake
    for source, _ in out:
        if not source.awake and source.index >= 0:
            source.awake = True
            source.absent = 0
            context.awake.append(source)


# ---- changes of mode -----------------------------------------------------------------------------


def code_mode_changes(io: Coder, context: Context, changes: Sequence[ModeChange] = ()) -> None:
    """Code how sources are to be predicted from now on; none are given by a decoder."""
    fields = context.tables.arrivals
    at = 0
    for turn in range(_code_count(io, context, _CHANGES, len(changes))):
        source, mode, period = changes[turn] if changes else (None, 0, 0)
        at += io.number(fields[_CHANGE_SOURCE], source.index - at if source else 0)
        if not 0 <= at < len(context.sources):
            refuse("a source that does not exist")
        mode = io.number(fields[_CHANGE_MODE], mode)
        if not TimeMode.GAP <= mode <= TimeMode.TICK:
            refuse("a way of arriving that does not exist")
        changed = context.sources[at]
        changed.mode = mode
        if mode != TimeMode.GAP:
            context.period += io.number(fields[_CHANGE_PERIOD], period - context.period)
            if not 0 < context.period <= PERIOD_MAX:
                refuse("a period that cannot be")
            changed.period = context.period
            changed.phase = changed.last << FRACTION
            changed.gain = 1
            changed.burst = changed.burst_length = 0
        settle(changed)
