"""A picture of where the readings of the last hours stand, for a terminal.

    gw-1 3f6a…  seq 1,200-4,711  since 2026-11-21T08:00:00Z
      |################################################===...!!|
       08:00:03        08:14:51        08:29:40        not here
      # stored 3,300   = in the stream 90   . at the edge 100   ! missing 22
      a cell is 62 readings, and shows the worst of them

One line of cells a journal; a cell is a run of seqs and shows the worst of what is in it, so that
one missing reading among millions is seen. Below it is when what is in some of them came (UTC).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bridge.intervals import IntervalSet, Range
from cloud.ledger import Balance
from cloud.ledger_account import SourceBalance
from cloud.query_time import iso
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import Source

__all__ = ["CELLS", "Came", "marks", "picture"]

CELLS = 64
MARK_CELLS = 16  # between two times
# when a seq of a source came, by source and seq; absent: it has not
Came = Mapping[tuple[Source, int], int]
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


def marks(balance: Balance, since: Mapping[Source, int], cells: int) -> dict[Source, list[int]]:
    """Return the seqs that a picture gives times for."""
    return {
        (source.gateway, source.epoch): _marks(*_shown(source, first), cells)
        for source, first in _sources(balance, since)
    }


def picture(
    balance: Balance,
    since: Mapping[Source, int],
    since_us: int,
    *,
    came: Came | None = None,
    cells: int = CELLS,
) -> list[str]:
    """Return the picture as lines.

    Args:
        balance: What is known.
        since: The first seq to show of each source; a source that is absent has nothing new.
        since_us: The time that stands for.
        came: When those of `marks` came; None: nobody knows.
        cells: How many cells a line has.
    """
    lines: list[str] = []
    for source, first in _sources(balance, since):
        lines += _source_lines(source, first, since_us, came, cells)
    return lines or [f"nothing has come since {iso(since_us)}, and nothing waits"]


def _sources(balance: Balance, since: Mapping[Source, int]) -> Iterator[tuple[SourceBalance, int]]:
    for source in balance.sources:
        first = since.get((source.gateway, source.epoch))
        if first is not None or source.waiting_edge + source.waiting_stream or source.missing:
            yield source, max(1, first or 1)


def _shown(source: SourceBalance, first: int) -> tuple[int, int]:
    last = max([source.assigned, first, *(end for _, ranges in source.where for _, end in ranges)])
    return first, last


def _marks(first: int, last: int, cells: int) -> list[int]:
    span = last - first + 1
    # the first seq of each marked cell
    return [first - (-cell * span // cells) for cell in range(0, cells, MARK_CELLS)]


def _source_lines(
    source: SourceBalance, first: int, since_us: int, came: Came | None, count: int
) -> list[str]:
    first, last = _shown(source, first)
    where = dict(source.where)
    cells = [" "] * count
    legend = []
    span = last - first + 1
    for name, sign in _SIGNS:
        inside = _inside(where.get(name, ()), first, last)
        if not inside:
            continue
        legend.append(f"{sign} {_NAMES[name]} {sum(b - a + 1 for a, b in inside):,}")
        for start, end in inside:
            low = (start - first) * count // span
            high = (end - first) * count // span
            cells[low : high + 1] = [sign] * (high + 1 - low)
    name = f"{source.gateway or '(unknown gateway)'} {epoch_text(source.epoch)}"
    lines = [f"{name}  seq {first:,}-{last:,}  since {iso(since_us)}", f"  |{''.join(cells)}|"]
    if came is not None:
        held = IntervalSet(where.get("stored", ()))
        held.update(where.get("stream", ()))
        held.update(where.get("dead", ()))
        times = [
            iso(came[key])[11:19] if key in came and not held.missing(seq, seq) else "not here"
            for seq in _marks(first, last, count)
            for key in [((source.gateway, source.epoch), seq)]
        ]
        lines.append("   " + "".join(f"{time:<{MARK_CELLS}}" for time in times).rstrip())
    lines.append(f"  {'   '.join(legend)}")
    if span > count:
        lines.append(f"  a cell is {-(-span // count):,} readings, and shows the worst of them")
    return lines


def _inside(ranges: Sequence[Range], first: int, last: int) -> list[Range]:
    cut = IntervalSet()
    for start, end in ranges:
        if start <= last and end >= first:
            cut.add(max(start, first), min(end, last))
    return cut.ranges()
