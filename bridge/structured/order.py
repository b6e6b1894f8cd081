"""The order of a batch's readings: by time, and the little that time does not say.

docs/link-format-structured.md section 6.3. Readings are coded by source. Their seqs rise with time
but for ties and for a clock that was set back, so the order is coded as what is left of it: at
each place, which of the readings not yet placed comes next, counted in order of time.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

from bridge.structured.coder import Coder, refuse
from bridge.structured.context import Context

__all__ = ["code_order"]

_BY_TIME, _BY_TIES, _FREE = range(3)


def code_order(
    io: Coder, context: Context, times: Sequence[int], given: Sequence[int] | None = None
) -> list[int]:
    """Code the order of readings; returns their canonical positions in order of seqs.

    Args:
        io: A `Writer` or `Reader`.
        context: The context.
        times: The readings' times in canonical order.
        given: For an encoder, what is to be returned.
    """
    tables = context.tables.order
    by_time = sorted(range(len(times)), key=times.__getitem__)
    way = _BY_TIME
    if given is not None and list(given) != by_time:
        pick = itemgetter(*given)
        way = _BY_TIES if list(pick(times)) == sorted(times) else _FREE
    way = io.number(tables[0], way)
    if way == _BY_TIME:
        return by_time
    if way == _FREE:
        return _code_run(io, context, by_time, given, 2)
    if way != _BY_TIES:
        refuse("an order that does not exist")
    out: list[int] = []
    n = len(by_time)
    first = 0
    while first < n:
        time = times[by_time[first]]
        end = first + 1
        while end < n and times[by_time[end]] == time:
            end += 1
        run = by_time[first:end]
        if end - first > 1:
            run = _code_run(io, context, run, given[first:end] if given else None, 1)
        out += run
        first = end
    return out


def _code_run(
    io: Coder, context: Context, run: list[int], given: Sequence[int] | None, table: int
) -> list[int]:
    """Code an order of `run`, as the place of each next one among those left."""
    numbers = context.tables.order[table]
    left = run.copy()
    out: list[int] = []
    for turn in range(len(run) - 1):
        place = io.number(numbers, left.index(given[turn]) if given else 0)
        if not 0 <= place < len(left):
            refuse("a reading placed twice")
        out.append(left.pop(place))
    return out + left
