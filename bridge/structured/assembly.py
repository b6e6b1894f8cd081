"""Decoding the readings of a batch: heads, then columns, then payloads put together.

docs/link-format-structured.md sections 5, 6.2 and 8. The mirror of `rows`.

Invariant: no more memory is taken than the limits allow for the payloads of one batch.
"""

from __future__ import annotations

from dataclasses import dataclass

from bridge.readings import FLAG_PROPERTIES
from bridge.structured.coder import Reader, refuse
from bridge.structured.columns import decode_column
from bridge.structured.context import RAW, Context, Source, Template
from bridge.structured.heads import (
    EXPLICIT,
    MASKED,
    SAME,
    FamilyRows,
    code_mask,
    code_meta,
    code_raw,
    code_template,
    expected_template,
    note_template,
)
from bridge.structured.predictors import Maybe
from bridge.structured.rows import refer
from bridge.structured.schema import add_instance
from bridge.structured.timing import Arrivals

__all__ = ["Reading", "decode_rows"]


@dataclass(slots=True)
class Reading:
    """A reading as a decoder found it, in canonical order."""

    flags: int
    block: bytes
    payload: bytes = b""


class _Budget:
    """What is left of the limits of one batch."""

    __slots__ = ("_bytes", "_cells")

    def __init__(self, cells: int, size: int) -> None:
        self._cells = cells
        self._bytes = size

    def take(self, cells: int, size: int) -> None:
        """Count what is to be made; refuses what passes a limit."""
        self._cells -= cells
        self._bytes -= size
        if self._cells < 0 or self._bytes < 0:
            refuse("the readings would unpack to more than allowed")


def decode_rows(io: Reader, context: Context, arrivals: Arrivals) -> list[Reading]:
    """Return the readings of a batch in canonical order."""
    out: list[Reading] = []
    gathered: dict[int, FamilyRows] = {}
    placed: list[tuple[Reading, FamilyRows, Template, int, int]] = []
    limits = context.limits
    budget = _Budget(limits.batch_cells, limits.batch_bytes)
    for source, times in arrivals:
        for time in times:
            reading, template, kind = _decode_head(io, context, source)
            out.append(reading)
            if template is None:
                reading.payload = code_raw(io, context, source, b"")
                budget.take(0, len(reading.payload))
                continue
            budget.take(len(template.columns), template.literal_bytes)
            family = template.family
            rows = gathered.get(family.index)
            if rows is None:
                rows = gathered[family.index] = FamilyRows(family)
            cell = source.instances.get(family.index, -1)
            if cell < 0:
                cell = add_instance(context, family, source)
            template.prepare()
            number = -1 if kind == SAME else rows.add(template, cell, time)
            _decode_changes(io, context, rows, template, cell, number, kind)
            placed.append((reading, rows, template, cell, number))
    for index in sorted(gathered):
        _decode_columns(io, context, gathered[index])
    for reading, rows, template, cell, number in placed:
        tokens = rows.family.tokens[cell]
        if number >= 0:
            for column, token in rows.decoded[number]:
                tokens[column] = token
        payload = reading.payload = template.payload(template.pick_columns(tokens))
        budget.take(0, len(payload))
    return out


def _decode_head(
    io: Reader, context: Context, source: Source
) -> tuple[Reading, Template | None, int]:
    """Return a reading without its payload, its template and what kind of change it is."""
    number = expected_template(context, source)
    heads = context.tables.heads
    kind = io.symbol(heads[source.head])
    if kind == EXPLICIT:
        number = code_template(io, context, source, number, None)
        flags, block = code_meta(io, context, source, None)
        note_template(source, number)
        template = context.templates[number] if number != RAW else None
        kind = io.symbol(heads[3])
        if kind == EXPLICIT:
            refuse("a head within a head")
    else:
        note_template(source, number)
        template = context.templates[number] if number != RAW else None
        flags = source.flags
        block = source.block if flags & FLAG_PROPERTIES else b""
    source.head = kind
    if template is None:
        if kind:
            refuse("changes of a raw payload")
    elif source.index < 0:
        refuse("a template for a source that is not remembered")
    return Reading(flags, block), template, kind


def _decode_changes(
    io: Reader,
    context: Context,
    rows: FamilyRows,
    template: Template,
    cell: int,
    number: int,
    kind: int,
) -> None:
    """Read which cold columns a row changes; note them and those that had no token yet."""
    tokens = rows.family.tokens[cell]
    if kind == MASKED:
        allowed = template.cold_columns
        for column in code_mask(io, context, rows.family, ()):
            if column not in allowed or tokens[column] is None:
                refuse("a change in a column that is not there")
            rows.add_extra(number, column)
    if cell in template.complete:
        return
    missing = [column for column in template.columns if tokens[column] is None]
    if missing and kind == SAME:
        refuse("a repetition of what never was")
    for column in missing:
        tokens[column] = b""
        if not rows.family.columns[column].hot:
            rows.add_extra(number, column)
    template.complete.add(cell)


def _decode_columns(io: Reader, context: Context, gathered: FamilyRows) -> None:
    family = gathered.family
    gathered.decoded = [[] for _ in gathered.cells]
    decoded = gathered.decoded
    numbers: dict[int, dict[int, Maybe]] = {}
    referred = {column.ref[1] for column in family.columns}
    for index in family.order:
        column = family.columns[index]
        places = gathered.rows_of(column)
        if not places:
            continue
        rows = gathered.select(places)
        refer(column, rows, places, numbers)
        tokens, found = decode_column(io, context, column, rows)
        if index in referred:
            numbers[index] = dict(zip(places, found, strict=False))
        for row, token in zip(places, tokens, strict=True):
            decoded[row].append((index, token))
