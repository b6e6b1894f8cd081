"""Encoding the readings of a batch, source by source, then column by column.

docs/link-format-structured.md sections 5 and 6.2. Canonical order is by source, as `timing` named
them, and by seq within a source. Slots of cold columns are coded only where a reading's mask says
they changed; those of hot columns in every reading that is not a repetition of its source's last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from bridge.readings import FLAG_PROPERTIES
from bridge.structured.coder import Writer
from bridge.structured.columns import encode_column
from bridge.structured.context import RAW, Column, Context, Source, Template
from bridge.structured.heads import (
    EXPLICIT,
    MASKED,
    PLAIN,
    SAME,
    FamilyRows,
    RowPlan,
    code_mask,
    code_meta,
    code_raw,
    code_template,
    expected_template,
    note_template,
)
from bridge.structured.predictors import Maybe, Rows
from bridge.structured.schema import TemplatePlan, add_instance
from bridge.structured.tables import Table
from bridge.structured.timing import Arrivals

__all__ = ["encode_rows", "refer"]


def encode_rows(
    io: Writer, context: Context, arrivals: Arrivals, plans: Sequence[Sequence[RowPlan]]
) -> None:
    """Code the readings of a batch.

    Args:
        io: The writer.
        context: The context.
        arrivals: The sources in canonical order with their times.
        plans: Beside each of them the readings.
    """
    gathered: dict[int, FamilyRows] = {}
    for (source, times), rows in zip(arrivals, plans, strict=True):
        for time, row in zip(times, rows, strict=True):
            _encode_row(io, context, source, time, row, gathered)
    for index in sorted(gathered):
        _encode_columns(io, context, gathered[index])


def _encode_row(
    io: Writer,
    context: Context,
    source: Source,
    time: int,
    row: RowPlan,
    gathered: dict[int, FamilyRows],
) -> None:
    wanted = row.template
    if isinstance(wanted, TemplatePlan) and wanted.template is not None:
        wanted = row.template = wanted.template
    expected = expected_template(context, source)
    template = context.templates[expected] if expected != RAW else None
    usual = (
        wanted is template
        and row.flags == source.flags
        and (not row.flags & FLAG_PROPERTIES or row.block == source.block)
    )
    heads = context.tables.heads
    table = heads[source.head]
    number = expected
    if not usual:
        io.symbol(table, EXPLICIT)
        table = heads[3]
        if isinstance(wanted, Template) and context.templates[wanted.index] is not wanted:
            wanted = row.template = TemplatePlan.of(wanted)
        number = code_template(io, context, source, expected, row)
        template = context.templates[number] if number != RAW else None
        code_meta(io, context, source, row)
    note_template(source, number)
    if template is None:
        source.head = io.symbol(table, PLAIN)
        code_raw(io, context, source, row.payload)
        return
    family = template.family
    cell = source.instances.get(family.index, -1)
    if cell < 0:
        cell = add_instance(context, family, source)
    rows = gathered.get(family.index)
    if rows is None:
        rows = gathered[family.index] = FamilyRows(family)
    _encode_changes(io, context, source, table, template, cell, time, row.tokens, rows)


def _encode_changes(
    io: Writer,
    context: Context,
    source: Source,
    table: Table,
    template: Template,
    cell: int,
    time: int,
    tokens: tuple[bytes, ...],
    rows: FamilyRows,
) -> None:
    """Code how the tokens of a reading differ from its instance's last ones."""
    template.prepare()
    before = rows.family.tokens[cell]
    if template.pick_columns(before) == tokens:
        source.head = io.symbol(table, SAME)
        return
    cold = template.pick_cold(tokens)
    cold_before = template.pick_cold_columns(before)
    number = rows.add(template, cell, time)
    rows.hot.append(template.pick_hot(tokens))
    if cold == cold_before:
        source.head = io.symbol(table, PLAIN)
    else:
        columns = template.cold_columns
        pairs = zip(columns, cold, cold_before, strict=True)
        mask = tuple(column for column, token, old in pairs if old is not None and token != old)
        source.head = io.symbol(table, MASKED if mask else PLAIN)
        if mask:
            code_mask(io, context, rows.family, mask)
        for column, token, old in zip(columns, cold, cold_before, strict=True):
            if token != old:
                rows.add_extra(number, column, token)
    for column, token in zip(template.columns, tokens, strict=True):
        before[column] = token


def _encode_columns(io: Writer, context: Context, gathered: FamilyRows) -> None:
    family = gathered.family
    plain = len(gathered.layouts) == 1
    layout = next(iter(gathered.layouts), ())
    by_column = dict(zip(layout, zip(*gathered.hot, strict=True), strict=True)) if plain else {}
    numbers: dict[int, dict[int, Maybe]] = {}
    referred = {column.ref[1] for column in family.columns}
    for index in family.order:
        column = family.columns[index]
        places = gathered.rows_of(column)
        if not places:
            continue
        if not column.hot:
            tokens: Sequence[bytes] = gathered.extra[index][1]
        elif plain:
            tokens = cast("tuple[bytes, ...]", by_column[index])
        else:
            tokens = [
                gathered.hot[row][gathered.templates[row].hot_columns.index(index)]
                for row in places
            ]
        rows = gathered.select(places)
        refer(column, rows, places, numbers)
        found = encode_column(io, context, column, rows, tokens)
        if index in referred:
            numbers[index] = dict(zip(places, found, strict=False))


def refer(
    column: Column, rows: Rows, places: Sequence[int], numbers: dict[int, dict[int, Maybe]]
) -> None:
    """Give a column that refers to another the other's values in the same rows."""
    where, place = column.ref
    if place < 0:
        return
    known = numbers.get(place, {}) if where < 0 else {}
    rows.refs = [known.get(row) for row in places]
