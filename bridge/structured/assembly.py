"""Decoding the readings of a batch: heads, then columns, then payloads put together.

docs/link-format-structured.md sections 5, 6.2 and 8. The mirror of `rows`.

Invariant: no more memory is taken than the limits allow for the payloads of one batch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bridge.readings import FLAG_PROPERTIES
from bridge.structured.coder import Reader, refuse
from bridge.structured.columns import ReadColumn, read_columns
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
    gather,
    note_template,
    scatter,
)
from bridge.structured.kernel import native
from bridge.structured.references import References
from bridge.structured.schema import add_instance
from bridge.structured.tables import Table
from bridge.structured.timing import Arrivals
from bridge.structured.weight import CELL_CODED, READING, check_weight

__all__ = ["Budget", "Decoded", "Placed", "decode_rows"]

# place of a payload, its family's rows, template, cell, and number of its row, or -1
Placed = tuple[int, FamilyRows, Template, int, int]


@dataclass(slots=True)
class Decoded:
    """The readings of a batch in canonical order, as columns."""

    flags: list[int]
    blocks: list[bytes]
    payloads: list[bytes]


class Budget:
    """What is left of the limits of one batch: tokens, and bytes of payloads."""

    __slots__ = ("bytes", "cells")

    def __init__(self, cells: int, size: int) -> None:
        self.cells = cells
        self.bytes = size

    def take(self, cells: int, size: int) -> None:
        """Count what is to be made; refuses what passes a limit."""
        self.cells -= cells
        self.bytes -= size
        if self.cells < 0 or self.bytes < 0:
            refuse("the readings would unpack to more than allowed")


def decode_rows(io: Reader, context: Context, arrivals: Arrivals) -> Decoded:
    """Return the readings of a batch in canonical order."""
    out = Decoded([], [], [])
    gathered: dict[int, FamilyRows] = {}
    placed: list[Placed] = []
    budget = Budget(context.limits.batch_cells, context.limits.batch_bytes)

    def one(source: Source, time: int, head: int) -> None:
        _decode_row(io, context, source, time, head, out, gathered, placed, budget)

    heads, texts_left = _read_heads(io, context, arrivals), io.texts_left
    lengths, templates = context.tables.lengths, context.templates
    try:
        place_rows(
            io, lengths, templates, arrivals, heads, gathered,
            FLAG_PROPERTIES, out, placed, budget, one,
        )  # fmt: skip
    except EOFError as error:
        refuse(str(error))
    context.grown += READING * len(heads)
    references = References(context)
    for _, rows in sorted(gathered.items()):
        context.grown += texts_left - io.texts_left
        check_weight(context)
        texts_left = io.texts_left
        _decode_columns(io, context, rows, references)
        context.grown += CELL_CODED * rows.coded()
    put_together(out.payloads, placed, budget, partial(_payload, budget))
    context.grown += texts_left - io.texts_left + context.limits.batch_bytes - budget.bytes
    check_weight(context)
    return out


def _place_rows(
    io: Reader,  # noqa: ARG001 - this and the others are for the twin
    lengths: Table,  # noqa: ARG001
    templates: list[Template | None],  # noqa: ARG001
    arrivals: Arrivals,
    heads: list[int],
    gathered: dict[int, FamilyRows],  # noqa: ARG001
    flag_properties: int,  # noqa: ARG001
    out: Decoded,  # noqa: ARG001
    placed: list[Placed],  # noqa: ARG001
    budget: Budget,  # noqa: ARG001
    one: Callable[[Source, int, int], None],
) -> None:
    """Have `one` decode the heads of all readings; the kernel does most by itself."""
    rest = iter(heads)
    for source, times in arrivals:
        for time in times:
            one(source, time, next(rest))


place_rows = native.place_rows if native else _place_rows


def _decode_row(
    io: Reader,
    context: Context,
    source: Source,
    time: int,
    head: int,
    out: Decoded,
    gathered: dict[int, FamilyRows],
    placed: list[Placed],
    budget: Budget,
) -> None:
    """Decode what the head of a reading says, and place its payload."""
    template, kind = _decode_head(io, context, source, head, out)
    if template is None:
        payload = code_raw(io, context, source, b"")
        budget.take(0, len(payload))
        out.payloads.append(payload)
        return
    budget.take(len(template.columns), template.literal_bytes)
    family = template.family
    rows = gathered.get(family.index)
    if rows is None:
        rows = gathered[family.index] = FamilyRows(family)
    cell = source.instances.get(family.index, -1)
    if cell < 0:
        cell = add_instance(context, family, source)
    if template.version != family.version:
        template.prepare()
    number = -1 if kind == SAME else rows.add(template, cell, time)
    tokens = family.tokens[cell]
    missing = [column for column in template.columns if tokens[column] is None]
    if kind == MASKED:
        _decode_mask(io, context, rows, template, cell, number)
    if missing and kind == SAME:
        refuse("a repetition of what never was")
    for column in missing:
        tokens[column] = b""
        if not family.columns[column].hot:
            rows.add_extra(number, column)
    placed.append((len(out.payloads), rows, template, cell, number))
    out.payloads.append(b"")


def _read_heads(io: Reader, context: Context, arrivals: Arrivals) -> list[int]:
    """Return the heads of all readings, each read in the light of its source's last one."""
    contexts = [source.head for source, _ in arrivals]
    places = [place for place, (_, times) in enumerate(arrivals) for _ in times]
    heads = io.chain(context.tables.heads, contexts, places)
    for (source, _), head in zip(arrivals, contexts, strict=True):
        source.head = head
    return heads


def _decode_head(
    io: Reader, context: Context, source: Source, head: int, out: Decoded
) -> tuple[Template | None, int]:
    """Return the template of a reading and its kind of change; note its flags and properties."""
    last = source.template
    number = source.after.get(last, last)
    template = context.templates[number] if number != RAW else None
    if head == EXPLICIT:
        if template is None:
            number = RAW
        number = code_template(io, context, source, number, None)
        template = context.templates[number] if number != RAW else None
        flags, block = code_meta(io, context, source, 0, b"")
        note_template(source, RAW if template is None else number)
        head = io.symbol(context.tables.explicit)
        if head == EXPLICIT:
            refuse("a head within a head")
    else:
        note_template(source, RAW if template is None else number)
        flags = source.flags
        block = source.block if flags & FLAG_PROPERTIES else b""
    if template is None:
        if head:
            refuse("changes of a raw payload")
    elif source.index < 0:
        refuse("a template for a source that is not remembered")
    out.flags.append(flags)
    out.blocks.append(block)
    return template, head


def _decode_mask(
    io: Reader, context: Context, rows: FamilyRows, template: Template, cell: int, number: int
) -> None:
    """Read which cold columns a row changes, and note them."""
    tokens = rows.family.tokens[cell]
    allowed = set(template.cold_columns)
    for column in code_mask(io, context, rows.family, ()):
        if column not in allowed or tokens[column] is None:
            refuse("a change in a column that is not there")
        rows.add_extra(number, column)


def _decode_columns(io: Reader, context: Context, rows: FamilyRows, references: References) -> None:
    references.enter()
    changed = rows.changed_columns()
    cold: list[ReadColumn] = [(column, rows.extra[column.index][0]) for column in changed]
    if len(rows.layouts) == 1:
        (layout,) = rows.layouts
        order = rows.family.hot_order(layout)
        hot: list[ReadColumn] = [(column, None) for column, _ in order]
        tokens = read_columns(io, context, rows, hot + cold, references)
        by_place: list[list[bytes]] = [[]] * len(layout)
        for (_, place), some in zip(order, tokens, strict=False):
            by_place[place] = some
        rows.hot = list(zip(*by_place, strict=True))
    else:
        by_column = gather(rows.templates, [])
        hot = [(column, by_column[column.index][0]) for column in rows.hot_columns()]
        tokens = read_columns(io, context, rows, hot + cold, references)
        by_index = {column.index: some for (column, _), some in zip(hot, tokens, strict=False)}
        rows.hot = scatter(rows.templates, by_index)
    for column, some in zip(changed, tokens[len(hot) :], strict=True):
        for place, token in zip(rows.extra[column.index][0], some, strict=True):
            rows.changes.setdefault(place, []).append((column.index, token))


def _put_together(
    payloads: list[bytes],
    placed: list[Placed],
    budget: Budget,  # noqa: ARG001 - for the twin
    payload_of: Callable[[Template, list[bytes]], bytes],
) -> None:
    """Make the payloads, each from its template and its instance's tokens as they are by then."""
    for place, rows, template, cell, number in placed:
        tokens: list[bytes] = rows.family.tokens[cell]  # type: ignore[assignment]  # complete by now
        if number >= 0:
            if template.hot_columns:
                for column, token in zip(template.hot_columns, rows.hot[number], strict=True):
                    tokens[column] = token
            if rows.changes:
                for column, token in rows.changes.get(number, ()):
                    tokens[column] = token
        payloads[place] = payload_of(template, tokens)


put_together = native.put_together if native else _put_together


def _payload(budget: Budget, template: Template, tokens: list[bytes]) -> bytes:
    payload = template.payload(tuple([tokens[column] for column in template.columns]))
    budget.take(0, len(payload))
    return payload
