"""Encoding the readings of a batch, source by source, then column by column.

docs/link-format-structured.md sections 5 and 6.2. Canonical order is by source, as `timing` named
them, and by seq within a source. Slots of cold columns are coded only where a reading's mask says
they changed; those of hot columns in every reading that is not a repetition of its source's last.
"""

from __future__ import annotations

from collections.abc import Callable

from bridge.readings import FLAG_PROPERTIES
from bridge.structured.coder import Writer
from bridge.structured.columns import WrittenColumn, write_columns
from bridge.structured.context import RAW, Context, Source, Template
from bridge.structured.heads import (
    EXPLICIT,
    MASKED,
    PLAIN,
    SAME,
    FamilyRows,
    Row,
    code_mask,
    code_meta,
    code_raw,
    code_template,
    gather,
    note_template,
)
from bridge.structured.kernel import native
from bridge.structured.references import References
from bridge.structured.schema import TemplatePlan, add_instance
from bridge.structured.tables import Table
from bridge.structured.timing import Arrivals
from bridge.structured.weight import CELL_CODED

__all__ = ["encode_rows"]


def encode_rows(io: Writer, context: Context, arrivals: Arrivals, plans: list[list[Row]]) -> None:
    """Code the readings of a batch.

    Args:
        io: The writer.
        context: The context.
        arrivals: The sources in canonical order with their times.
        plans: Beside each of them the readings.
    """
    gathered: dict[int, FamilyRows] = {}

    def one(source: Source, time: int, row: Row) -> int:
        return _encode_row(io, context, source, time, row, gathered)

    before, io.spans = io.spans, []
    lengths = context.tables.lengths
    heads = note_rows(
        io, lengths, context.templates, arrivals, plans, gathered, FLAG_PROPERTIES, one
    )
    details, io.spans = io.spans, before
    _write_heads(io, context, arrivals, heads)
    io.spans += details
    references = References(context)
    for index in sorted(gathered):
        _encode_columns(io, context, gathered[index], references)
        context.grown += CELL_CODED * gathered[index].coded()


def _note_rows(
    io: Writer,  # noqa: ARG001 - this and the others are for the twin
    lengths: Table,  # noqa: ARG001
    templates: list[Template | None],  # noqa: ARG001
    arrivals: Arrivals,
    plans: list[list[Row]],
    gathered: dict[int, FamilyRows],  # noqa: ARG001
    flag_properties: int,  # noqa: ARG001
    one: Callable[[Source, int, Row], int],
) -> list[int]:
    """Return the heads of all readings, each noted by `one`; the kernel does most by itself."""
    return [
        one(source, time, row)
        for (source, times), rows in zip(arrivals, plans, strict=True)
        for time, row in zip(times, rows, strict=True)
    ]


note_rows = native.note_rows if native else _note_rows


def _write_heads(io: Writer, context: Context, arrivals: Arrivals, heads: list[int]) -> None:
    """Code the heads of all readings, each in the light of its source's last one."""
    contexts = [source.head for source, _ in arrivals]
    places = [place for place, (_, times) in enumerate(arrivals) for _ in times]
    io.chain(context.tables.heads, contexts, places, heads)
    for (source, _), head in zip(arrivals, contexts, strict=True):
        source.head = head


def _encode_row(
    io: Writer,
    context: Context,
    source: Source,
    time: int,
    row: Row,
    gathered: dict[int, FamilyRows],
) -> int:
    """Code the details of a reading and note its tokens; returns its head."""
    flags, block, payload, wanted, tokens = row
    if isinstance(wanted, TemplatePlan) and wanted.template is not None:
        wanted = wanted.template
    last = source.template
    expected = source.after.get(last, last)
    template = context.templates[expected] if expected != RAW else None
    explicit = (
        wanted is not template
        or flags != source.flags
        or (flags & FLAG_PROPERTIES != 0 and block != source.block)
    )
    if explicit:
        if isinstance(wanted, Template) and context.templates[wanted.index] is not wanted:
            wanted = TemplatePlan.of(wanted)
        if template is None:
            expected = RAW
        expected = code_template(io, context, source, expected, wanted)
        template = context.templates[expected] if expected != RAW else None
        code_meta(io, context, source, flags, block)
    note_template(source, RAW if template is None else expected)
    if template is None:
        if explicit:
            io.symbol(context.tables.explicit, PLAIN)
        code_raw(io, context, source, payload)
        return EXPLICIT if explicit else PLAIN
    family = template.family
    if family.index not in gathered:
        gathered[family.index] = FamilyRows(family)
    cell = source.instances.get(family.index, -1)
    if cell < 0:
        cell = add_instance(context, family, source)
    template.prepare()
    kind, mask = note_changes(gathered, template, cell, time, tokens)
    if explicit:
        io.symbol(context.tables.explicit, kind)
    if kind == MASKED:
        code_mask(io, context, family, mask)
    return EXPLICIT if explicit else kind


def _note_changes(
    gathered: dict[int, FamilyRows],
    template: Template,
    cell: int,
    time: int,
    tokens: tuple[bytes, ...],
) -> tuple[int, tuple[int, ...]]:
    """Note what of a reading is to be coded; returns its kind and the cold columns that changed."""
    family = template.family
    rows = gathered[family.index]
    before = family.tokens[cell]
    hot = tuple([tokens[slot] for slot in template.hot])
    cold = [tokens[slot] for slot in template.cold]
    cold_before = [before[column] for column in template.cold_columns]
    kind = PLAIN
    mask: tuple[int, ...] = ()
    if cold == cold_before:
        if hot == tuple([before[column] for column in template.hot_columns]):
            return SAME, mask
        number = rows.add(template, cell, time)
    else:
        number = rows.add(template, cell, time)
        changed = []
        for column, token, old in zip(template.cold_columns, cold, cold_before, strict=True):
            if token != old:
                rows.add_extra(number, column, token)
                if old is not None:
                    changed.append(column)
        if changed:
            kind, mask = MASKED, tuple(changed)
    rows.hot.append(hot)
    for column, token in zip(template.columns, tokens, strict=True):
        before[column] = token
    return kind, mask


note_changes = native.note_changes if native else _note_changes


def _encode_columns(io: Writer, context: Context, rows: FamilyRows, references: References) -> None:
    """Code the columns of a family: the hot ones, then those cold ones that changed somewhere."""
    references.enter()
    items = _hot_items(rows)
    for column in rows.changed_columns():
        places, tokens = rows.extra[column.index]
        items.append((column, places, tokens))
    write_columns(io, context, rows, items, references)


def _hot_items(rows: FamilyRows) -> list[WrittenColumn]:
    """Return the hot columns coded in some row, in order, with their rows and tokens there."""
    if len(rows.layouts) == 1:
        (layout,) = rows.layouts
        by_place = list(zip(*rows.hot, strict=True))
        return [(column, None, by_place[place]) for column, place in rows.family.hot_order(layout)]
    by_column = gather(rows.templates, rows.hot)
    return [(column, *by_column[column.index]) for column in rows.hot_columns()]
