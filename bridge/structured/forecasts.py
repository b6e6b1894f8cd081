"""When the next reading of a source is expected, and what one that came says of the next.

docs/link-format-structured.md section 6.1. A periodic source is followed by a phase-locked loop
with least-squares gains, so that the phase of a steady device with jitter is known better than any
one reading.

Invariant: a forecast depends on the source's earlier times and the batch's last time only; all of
it is integer arithmetic in 256ths of the link's time unit.
"""

from __future__ import annotations

from collections.abc import Iterable

from bridge.structured.coder import refuse
from bridge.structured.context import Source, TimeMode
from bridge.structured.kernel import Maybe, native

__all__ = [
    "FRACTION",
    "HALF",
    "PERIOD_MAX",
    "TIME_MAX",
    "arrived",
    "checked",
    "expect_all",
    "forecast_round",
    "note_phase",
    "note_round",
    "settle",
]

PERIOD_MAX = 1 << 54  # in 256ths of a unit
TIME_MAX = 1 << 61  # in units, so that no residual passes 2^63
FRACTION = 8  # bits of a phase behind the unit
HALF = 1 << (FRACTION - 1)
_GAIN_MAX = 16
_CLAMP = 3
# Least-squares gains of a straight line through the last n times: position and slope.
_GAINS = [(0, 0, 1)] + [(2 * (2 * n - 1), 6, n * (n + 1)) for n in range(1, _GAIN_MAX + 1)]


def settle(source: Source) -> None:
    """Work out what follows from a source's state: how steady it is, and when to expect it."""
    period = source.period
    margin = min(period >> 1, 4 << (source.spread >> 2) << FRACTION)
    source.margin = margin
    if source.mode == TimeMode.PERIODIC and source.multiple == 1 and 4 * margin < period:
        source.steady = True
        source.wake = (source.phase + period - margin) >> FRACTION
    else:
        source.steady = False
        source.wake = -TIME_MAX


def expect_all(sources: list[Source], start: int, end: int) -> tuple[list[int], list[int]]:
    """Return how many readings of each source are expected up to `end`, and their tables."""
    found = native.expect_all(sources, start, end) if native else None
    return found or _expect_all(sources, start, end)


def _expect_all(sources: list[Source], start: int, end: int) -> tuple[list[int], list[int]]:
    both = [_expect(source, start, end) for source in sources]
    return [count for count, _ in both], [table for _, table in both]


def _expect(source: Source, start: int, end: int) -> tuple[int, int]:
    """Return how many readings are expected up to `end`, and the table for their count."""
    if source.steady:
        period = source.period
        periods, rest = divmod((end << FRACTION) - source.phase, period)
        if periods < 0:
            return 0, 0
        doubt = 1 if rest < source.margin else 2 if period - rest < source.margin else 0
        expected = min(periods, 64) * (source.burst_length + 1)
        return expected, min(periods, 3) * 3 + doubt
    window = max(end - max(source.last, start), 0)
    size = min(((window << 3) // (source.gap + 1)).bit_length(), 11)
    return 0, (12 if source.mode == TimeMode.GAP else 24) + size


def _note_expected(source: Source, time: int, residual: int) -> None:
    """Note a reading that came `residual` off its forecast, one period on."""
    if source.burst_length or source.burst:
        source.burst_length, source.burst = min(source.burst, 15), 0
    note_phase(source, time, residual, 1)
    arrived(source, time)


def arrived(source: Source, time: int) -> None:
    """Note when a source's last reading came."""
    gap = time - source.last
    source.gap += (max(gap, 0) - source.gap) >> 2
    source.last = time


def note_phase(source: Source, time: int, residual: int, multiple: int) -> None:
    """Take over what a reading, `residual` off its forecast, says of the source's phase."""
    period, spread = source.period, source.spread
    step = source.phase + multiple * period
    error = (time << FRACTION) - step
    source.multiple = multiple
    limit = _CLAMP << (spread >> 2) << FRACTION
    if -limit <= error <= limit or source.gain <= 2:
        source.strayed = 0
        gain = source.gain
        if gain < _GAIN_MAX:
            gain = source.gain = gain + 1
        position, slope, whole = _GAINS[gain]
        source.phase = step + error * position // whole
        if multiple and source.mode == TimeMode.PERIODIC:
            period += error * slope // (whole * multiple)
            source.period = min(max(period, 1 << FRACTION), PERIOD_MAX)
    else:
        source.strayed += 1
        if source.strayed >= 3:
            source.strayed, source.gain = 0, 1
            source.phase = time << FRACTION
        else:
            position, _, whole = _GAINS[source.gain]
            source.phase = step + (limit if error > 0 else -limit) // 2 * position // whole
    size = 4 * residual.bit_length()
    if size > spread:
        source.spread = spread + ((min(size, 56) - spread + 3) >> 2)
    else:
        source.spread = spread + ((size - spread) >> 2)
    settle(source)


# ---- rounds of one time a source ---------------------------------------------------------------


def forecast_round(
    sources: list[Source], given: list[int]
) -> tuple[list[int], list[int], list[int], list[Maybe]]:
    """Return which sources are expected one period on, and of each what that needs.

    Returns:
        Their places, forecasts, and tables; and, if times are given, how far these are off, None
        where it is more than half a period.
    """
    found = native.forecasts(sources, given) if native else None
    return found or _forecast_round(sources, given)


def _forecast_round(
    sources: list[Source], given: list[int]
) -> tuple[list[int], list[int], list[int], list[Maybe]]:
    places = [
        place
        for place, source in enumerate(sources)
        if source.mode == TimeMode.PERIODIC and source.burst >= source.burst_length
    ]
    ahead = [sources[place] for place in places]
    forecasts = [source.phase + source.period + HALF >> FRACTION for source in ahead]
    steps: list[Maybe] = []
    if given:
        steps = [given[place] - forecast for place, forecast in zip(places, forecasts, strict=True)]
        for at, source in enumerate(ahead):
            near = source.period >> FRACTION + 1
            if not -near <= steps[at] <= near:  # type: ignore[operator]  # none is None yet
                steps[at] = None
    return places, forecasts, [source.spread >> 2 for source in ahead], steps


def note_round(
    sources: list[Source],
    places: list[int],
    forecasts: list[int],
    steps: list[Maybe],
    times: list[int | None],
) -> None:
    """Note the readings that came as expected, and put their times where they belong."""
    rest: Iterable[int] = range(len(places))
    if native is not None:
        rest = native.note_round(sources, places, forecasts, steps, times)
    for at in rest:
        step = steps[at]
        if step is not None:
            place = places[at]
            time = times[place] = checked(forecasts[at] + step)
            _note_expected(sources[place], time, step)


def checked(time: int) -> int:
    """Return a time that is within bounds; refuses any other."""
    if not -TIME_MAX < time < TIME_MAX:
        refuse("a time outside 61 bits")
    return time
