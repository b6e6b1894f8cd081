"""A picture of where the readings of the last hours stand, for a terminal.

    gw-1 3f6a…  seq 1,200-4,711  since 2026-11-21T08:00:00Z
      |################################################===...!!|
      # stored 3,300   = in the stream 90   . at the edge 100   ! missing 22

One line of cells a journal; a cell is a run of seqs and shows the worst of what is in it, so that
one missing reading among millions is seen.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.intervals import IntervalSet, Range
from cloud.ledger import Balance, SourceBalance
from cloud.query_time import iso
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import Source

__all__ = ["CELLS", "picture"]

CELLS = 64
# the best first: a later one in the same cell covers it
_SIGNS = (
    ("stored", "#"),
    ("stream", "="),
    ("edge", "."),
    ("given-up", "x"),
    ("dead", "D"),
    ("missing", "!"),
)
_NAMES = {
    "stored": "stored",
    "stream": "in the stream",
    "edge": "at the edge",
    "given-up": "given up",
    "dead": "dead letters",
    "missing": "missing",
}


def picture(balance: Balance, since: Mapping[Source, int], since_us: int) -> list[str]:
    """Return the picture as lines.

    Args:
        balance: What is known.
        since: The first seq to show of each source; a source that is absent has nothing new.
        since_us: The time that stands for.
    """
    lines: list[str] = []
    for source in balance.sources:
        first = since.get((source.gateway, source.epoch))
        waits = source.waiting_edge + source.waiting_stream
        if first is None and not (waits or source.missing):
            continue
        lines += _source_lines(source, max(1, first or 1), since_us)
    return lines or [f"nothing has come since {iso(since_us)}, and nothing waits"]


def _source_lines(source: SourceBalance, first: int, since_us: int) -> list[str]:
    last = max([source.assigned, first, *(end for _, ranges in source.where for _, end in ranges)])
    where = dict(source.where)
    cells = [" "] * CELLS
    legend = []
    span = last - first + 1
    for name, sign in _SIGNS:
        inside = _inside(where.get(name, ()), first, last)
        if not inside:
            continue
        legend.append(f"{sign} {_NAMES[name]} {sum(b - a + 1 for a, b in inside):,}")
        for start, end in inside:
            low = (start - first) * CELLS // span
            high = (end - first) * CELLS // span
            cells[low : high + 1] = [sign] * (high + 1 - low)
    name = f"{source.gateway or '(unknown gateway)'} {epoch_text(source.epoch)}"
    return [
        f"{name}  seq {first:,}-{last:,}  since {iso(since_us)}",
        f"  |{''.join(cells)}|",
        f"  {'   '.join(legend)}",
    ]


def _inside(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    cut = IntervalSet()
    for start, end in ranges:
        if start <= last and end >= first:
            cut.add(max(start, first), min(end, last))
    return cut.ranges()
