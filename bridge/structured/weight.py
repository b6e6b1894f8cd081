"""How much memory a context takes, about, and when that is too much.

docs/link-format-structured.md section 8. Limits count sources, columns, cells; what hangs on each
of them (statistics, last tokens, successors) differs by three orders of magnitude between what
devices send and what a hostile body may make of it. So a context is weighed as a whole: every kind
of thing it may hold many of, by what CPython takes for one.

Weighing takes time in proportion to what is there, so it is done only when the context may have
grown past 13/16 of its bound, or by an eighth of it: whatever adds to a context is counted in
`Context.grown` at the most it may come to.

Invariant: a context weighs less than `StructuredLimits.held_bytes`, but for what one family's
columns add to it before they are looked at.
"""

from __future__ import annotations

from dataclasses import fields

from bridge.structured.coder import refuse
from bridge.structured.context import Column, Context, Family, Source, TextModel
from bridge.structured.tables import Chain, Table

__all__ = ["CELL_CODED", "READING", "check_weight", "is_heavy", "weigh"]

# Bytes that one of each takes beside the texts in it.
_SOURCE = 1_200
_AFTER = 100  # a pair of templates that followed one another
_INSTANCE = 500
_FAMILY = 3_000
_FRAGMENT = 250  # with its places in dictionaries
_FOLLOWER = 40
_STEP = 12  # a byte of a framed fragment, read
_COLUMN = 1_600
_CELL = 170  # its token, its last text, two integers and a context
_TEXT = 200  # of a column, with its place in a dictionary
_MASK = 250
_MASK_COLUMN = 40
_LAYOUT = 300
_LAYOUT_COLUMN = 72
_TEMPLATE = 1_000
_SLOT = 130
_TABLE = 200
_SYMBOL = 72  # of a table that was rebuilt
_LOGGED = 9
_BLOCK = 100

CELL_CODED = 400  # at most: a symbol on a log, a share of a table, a slot of a new template
READING = 600  # at most: a pair of templates, an instance
_HEAVY = 5, 8  # of what may be held: heavier than that, an encoder starts anew,
_REFUSED = 7, 8  # and a decoder refuses


def weigh(context: Context) -> int:
    """Return about how many bytes a context takes; never much less than it does."""
    total = _tables(context) + sum(map(_source, context.sources))
    total += sum(map(_family, context.families))
    for template in context.templates:
        if template is not None:
            total += _TEMPLATE + _SLOT * len(template.columns)
    total += sum(map(len, context.blocks)) + _BLOCK * len(context.blocks) + len(context.history)
    return total


def is_heavy(context: Context) -> bool:
    """Return True for a context that an encoder is to leave for a new one."""
    return _weighed(context) * _HEAVY[1] > context.limits.held_bytes * _HEAVY[0]


def check_weight(context: Context) -> None:
    """Refuse the body that made a context heavier than any encoder's."""
    if _weighed(context) * _REFUSED[1] > context.limits.held_bytes * _REFUSED[0]:
        refuse("the context would take more memory than allowed")


def _weighed(context: Context) -> int:
    """Return the context's weight, or an older one of which it is not far yet."""
    most = context.limits.held_bytes
    if context.grown > max(most >> 3, (most >> 4) * 13 - context.weight):
        context.weight, context.grown = weigh(context), 0
    return context.weight


def _source(source: Source) -> int:
    size = len(source.topic) + len(source.device) + len(source.block)
    return _SOURCE + size + _AFTER * len(source.after)


def _family(family: Family) -> int:
    cells = _INSTANCE + _CELL * len(family.columns)
    total = _FAMILY + len(family.tokens) * cells + _table(family.mask_table)
    for tokens in family.tokens:
        total += sum([len(token) for token in tokens if token])
    total += sum(map(len, family.fragments)) + _FRAGMENT * len(family.fragments)
    total += _FOLLOWER * sum(map(len, family.followers.values()))
    total += _STEP * sum(map(len, family.measured))
    total += _MASK * len(family.masks) + _MASK_COLUMN * sum(map(len, family.masks))
    layouts = family.hot_orders
    total += _LAYOUT * len(layouts) + _LAYOUT_COLUMN * sum(map(len, layouts))
    return total + sum(map(_column, family.columns))


def _column(column: Column) -> int:
    total = _COLUMN + len(column.recent)
    total += _TEXT * len(column.texts) + sum(map(len, column.texts))
    total += sum(map(len, column.last_texts))
    if column.chain is not None:
        total += _chain(column.chain)
    if column.model is not None:
        total += _model(column.model)
    if column.escapes is not None:
        total += _table(column.escapes)
    return total


def _tables(context: Context) -> int:
    total = 0
    for item in fields(context.tables):
        value = getattr(context.tables, item.name)
        if isinstance(value, Chain):
            total += _chain(value)
        elif isinstance(value, TextModel):
            total += _model(value)
        else:
            total += sum(map(_table, value)) if isinstance(value, list) else _table(value)
    return total


def _chain(chain: Chain) -> int:
    total = _TABLE * len(chain.tables) + _LOGGED * sum(map(len, chain.logs))
    counts = [table.counts for table in chain.tables]
    return total + _SYMBOL * sum([len(some) for some in counts if some is not None])


def _model(model: TextModel) -> int:
    return _table(model.prefix) + _table(model.suffix) + _table(model.length)


def _table(table: Table) -> int:
    size = _TABLE + _LOGGED * len(table.log)
    return size if table.counts is None else size + _SYMBOL * len(table.counts)
