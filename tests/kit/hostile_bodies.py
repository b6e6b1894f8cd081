"""Bodies of the structured mode that are valid and mean harm: the most of everything for the least.

What honest encoders choose (shapes, predictors, reviews, room) is left out: a `HostileSender` says
what it is told, by the codec's own writer, so that its context and a decoder's stay the same.
`ATTACKS` fill one kind of structure each; `held` meters what an object holds by itself.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import replace

from bridge.structured.body import BodyHead, Compressor, pack_body
from bridge.structured.coder import Writer
from bridge.structured.context import ColumnKind, Context, Source, Template
from bridge.structured.heads import Row
from bridge.structured.limits import StructuredLimits
from bridge.structured.order import code_order
from bridge.structured.rows import encode_rows
from bridge.structured.schema import (
    ColumnPlan,
    ColumnSpec,
    FamilyPlan,
    TemplatePlan,
    update_columns,
)
from bridge.structured.symbols import ENUM_PRIOR, residual_priors
from bridge.structured.timing import code_arrivals, code_mode_changes

__all__ = ["ATTACKS", "HostileSender", "held"]

_NUMBER = ColumnSpec(ColumnKind.NUMBER, hot=True, printer=(0, 0, b"", b"", b""))
_TEXT = ColumnSpec(ColumnKind.TEXT, hot=True)
_ENUM = ColumnSpec(ColumnKind.ENUM, hot=True)

Said = dict[Source, list[Row]]
Body = tuple[bytes, int]  # and how many readings it is of


class HostileSender:
    """Writes bodies of readings just as given.

    Args:
        limits: The decoder's; the sender keeps to none of what only a decoder refuses.
    """

    def __init__(self, limits: StructuredLimits) -> None:
        self.context = Context(replace(limits, held_bytes=1 << 50))
        self._compressor = Compressor(3)
        self._anew = True
        self._made = 0

    def source(self) -> Source:
        """Return a new source."""
        self._made += 1
        return Source(f"t/{self._made}", "t", -1)

    def body(self, said: Said) -> Body:
        """Return a body of the readings of each source, all at one time."""
        context, io = self.context, Writer()
        known = {source: rows for source, rows in said.items() if source.index >= 0}
        said = {**known, **said}
        time = context.last_time
        arrivals = [(source, [time] * len(rows)) for source, rows in said.items()]
        count = sum(map(len, said.values()))
        code_mode_changes(io, context)
        update_columns(io, context, [])
        arrivals = code_arrivals(io, context, count, arrivals)
        code_order(io, context, [time] * count, list(range(count)))
        encode_rows(io, context, arrivals, [said[source] for source, _ in arrivals])
        head, self._anew = BodyHead(0, self._anew), False
        return pack_body(io, context, self._compressor, head), count


def _columns(specs: list[ColumnSpec]) -> list[ColumnPlan]:
    return [ColumnPlan(spec) for spec in specs]


def _plan(family: FamilyPlan, columns: list[ColumnPlan], mark: bytes = b"") -> TemplatePlan:
    fragments = (mark, *(b"%d," % place for place in range(len(columns))))
    return TemplatePlan(family, fragments, columns)


def _row(wanted: TemplatePlan | Template | None, *tokens: bytes, block: bytes = b"") -> Row:
    return (9 if block else 1, block, b"", wanted, tokens)


# ---- attacks: bodies without an end --------------------------------------------------------------


def _statistics(sender: HostileSender) -> Iterator[Body]:
    """Columns of numbers whose tables all get frequencies of their own."""
    source = sender.source()
    while True:
        plan = _plan(FamilyPlan(), _columns([_NUMBER] * 20))
        steps = [2**k for k in range(22)] * 12
        tokens = [b"%d" % sum(steps[: k + 1]) for k in range(len(steps))]
        yield sender.body({source: [_row(plan, *[token] * 20) for token in tokens]})


def _words(sender: HostileSender) -> Iterator[Body]:
    """Columns of a few words each, and more that are written out every time."""
    source = sender.source()
    words = [b"%060d" % k for k in range(40)]
    while True:
        plan = _plan(FamilyPlan(), _columns([_ENUM] * 40))
        yield sender.body({source: [_row(plan, *[word] * 40) for word in words]})


def _tokens(sender: HostileSender) -> Iterator[Body]:
    """Long last tokens of many sources."""
    plan = _plan(FamilyPlan(), _columns([_TEXT] * 50))
    while True:
        sources = [sender.source() for _ in range(8)]
        yield sender.body({one: [_row(plan, *[b"x" * 512] * 50)] for one in sources})


def _templates(sender: HostileSender) -> Iterator[Body]:
    """Templates of many slots that differ in their beginning."""
    source, family, columns = sender.source(), FamilyPlan(), _columns([_TEXT] * 200)
    turn = 0
    while True:
        plans = [_plan(family, columns, b"%d" % (turn + k)) for k in range(20)]
        turn += 20
        yield sender.body({source: [_row(plan, *[b""] * 200) for plan in plans]})


def _used_by_all(sender: HostileSender) -> Iterator[Body]:
    """Many templates, all of which many sources use, one behind the other."""
    family, columns = FamilyPlan(), _columns([_ENUM])
    plans = [_plan(family, columns, b"%d" % k) for k in range(64)]
    yield sender.body({sender.source(): [_row(plan, b"") for plan in plans]})
    while True:
        sources = [sender.source() for _ in range(30)]
        yield sender.body({one: [_row(plan.template, b"") for plan in plans] for one in sources})


def _blocks(sender: HostileSender) -> Iterator[Body]:
    """A long property block for each source to remember."""
    turn = 0
    while True:
        turn += 1
        sources = [sender.source() for _ in range(4)]
        block = b"%09d" % turn + b"x" * 60_000
        yield sender.body({one: [_row(None, block=block)] for one in sources})


def _bare(sender: HostileSender) -> Iterator[Body]:
    """Instances of families without a column, which hold no cell."""
    plans = [_plan(FamilyPlan(), [], b"%d" % k) for k in range(100)]
    yield sender.body({sender.source(): [_row(plan) for plan in plans]})
    while True:
        sources = [sender.source() for _ in range(10)]
        yield sender.body({one: [_row(plan.template) for plan in plans] for one in sources})


def _fragments(sender: HostileSender) -> Iterator[Body]:
    """As many fragments as there may be, each followed by many others."""
    source, family = sender.source(), FamilyPlan()
    columns = _columns([_TEXT] * 30)
    turn = 0
    while True:
        plans = []
        for _ in range(20):
            turn += 1
            marks = [b"%d" % (turn * 31 + k) for k in range(31)]
            plans.append(TemplatePlan(family, tuple(marks), columns))
        yield sender.body({source: [_row(plan, *[b""] * 30) for plan in plans]})


def _spellings(sender: HostileSender) -> Iterator[Body]:
    """Columns of numbers, each of which spells them in its own way."""
    source = sender.source()
    turn = 0
    while True:
        turn += 1
        marks = [b"%d " % (turn * 100 + k) for k in range(100)]
        specs = [
            replace(_NUMBER, printer=(0, k % 19, b"", mark, b"")) for k, mark in enumerate(marks)
        ]
        plan = _plan(FamilyPlan(), _columns(specs))
        yield sender.body({source: [_row(plan, *[b"x"] * 100)]})


ATTACKS: dict[str, Callable[[HostileSender], Iterator[Body]]] = {
    "statistics": _statistics,
    "words": _words,
    "tokens": _tokens,
    "templates": _templates,
    "used by all": _used_by_all,
    "blocks": _blocks,
    "bare": _bare,
    "fragments": _fragments,
    "spellings": _spellings,
}


# ---- the meter -----------------------------------------------------------------------------------


def held(root: object) -> int:
    """Return the bytes of all objects that `root` leads to, but for what the module shares."""
    shared = [*residual_priors, ENUM_PRIOR]
    seen = set(map(id, shared))
    waiting, total = [root], 0
    while waiting:
        item = waiting.pop()
        kind = type(item)
        if id(item) in seen or issubclass(kind, (type, types.FunctionType)):
            continue
        seen.add(id(item))
        total += sys.getsizeof(item)
        if isinstance(item, dict):
            waiting += item.keys()
            waiting += item.values()
        elif isinstance(item, (list, tuple, set, frozenset)):
            waiting += item
        else:
            names = {name for base in kind.__mro__ for name in getattr(base, "__slots__", ())}
            waiting += [getattr(item, name) for name in names if hasattr(item, name)]
    return total
