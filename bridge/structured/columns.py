"""Columns of tokens: the hot loops of the codec, both ways.

docs/link-format-structured.md section 5. A column is coded for the rows in which it may have
changed, in row order. A NUMBER column turns tokens into integers, integers into residuals, and
residuals into symbols, whose table is chosen by the size of the cell's last residual; tokens that
its printer does not spell are escaped and follow the symbols. An ENUM column names its new texts,
then codes which of its texts each token is, in a table chosen by the cell's last one. A TEXT column
codes what differs from the cell's last text.

What is split into passes here, each a tight loop or one in C (`kernel`), is paid for by
`benchmarks/codec.py`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import partial

from bridge.structured.coder import SAME, Coder, Reader, Writer, refuse
from bridge.structured.context import Column, ColumnKind, Context, TextModel
from bridge.structured.heads import FamilyRows
from bridge.structured.kernel import Maybe, native
from bridge.structured.limits import ENUM_VALUES
from bridge.structured.predictors import residuals, values
from bridge.structured.printers import DIGITS_MAX, Printer, PrinterKind
from bridge.structured.references import Places, References
from bridge.structured.symbols import CONTEXT_AFTER, UNKNOWN_PRIOR
from bridge.structured.tables import Table
from bridge.structured.texts import ALPHABETS, code_text

__all__ = ["ReadColumn", "WrittenColumn", "read_columns", "write_columns"]

_DECIMAL = re.compile(rb"-?\d+(?:\.(\d+))?")
_OTHER_DIGITS = -1
_REMEMBERED_BYTES = 64  # longer texts are not kept by a column

WrittenColumn = tuple[Column, Places, Sequence[bytes]]  # the rows it is coded in, and its tokens
ReadColumn = tuple[Column, Places]


def write_columns(
    io: Writer,
    context: Context,
    rows: FamilyRows,
    items: list[WrittenColumn],
    references: References,
) -> None:
    """Code columns of one family, in order; the kernel does most by itself."""
    one = partial(_write_column, io, context, rows, references)
    if native is None:
        for column, places, tokens in items:
            one(column, places, tokens)
    elif items:
        after = CONTEXT_AFTER, SAME
        escape = partial(_code_escape, io, context)
        native.write_columns(io, rows, items, references, context.tables, after, one, escape)


def read_columns(
    io: Reader,
    context: Context,
    rows: FamilyRows,
    items: list[ReadColumn],
    references: References,
) -> list[list[bytes]]:
    """Return the tokens of columns of one family, in order."""
    one = partial(_read_column, io, context, rows, references)
    if native is None or not items:
        return [one(column, places) for column, places in items]
    rest = partial(_tokens_of, io, context, rows, references)
    escape = partial(_code_escape, io, context)
    try:
        return native.read_columns(io, rows, items, references, CONTEXT_AFTER, one, rest, escape)
    except EOFError as error:
        refuse(str(error))


def _write_column(
    io: Writer,
    context: Context,
    rows: FamilyRows,
    references: References,
    column: Column,
    places: Places,
    tokens: Sequence[bytes],
) -> None:
    selected = rows.select(places)
    if column.kind == ColumnKind.NUMBER and column.printer is not None:
        references.give(rows, column, places, selected)
        numbers = column.printer.parse_all(tokens)
        steps = residuals(column.predictor, column.cells, selected, numbers, column.param)
        io.residuals(column.prepare(), column.contexts, selected.cells, steps)
        for number, token in zip(numbers, tokens, strict=True):
            if number is None:
                _code_escape(io, context, column, token)
        references.keep(rows, column, places, numbers)
    elif column.kind == ColumnKind.ENUM:
        _write_enum(io, context, column, selected.cells, tokens)
    else:
        _code_texts(io, context, column, selected.cells, tokens)


def _read_column(
    io: Reader,
    context: Context,
    rows: FamilyRows,
    references: References,
    column: Column,
    places: Places,
) -> list[bytes]:
    cells = rows.select(places).cells
    if column.kind == ColumnKind.NUMBER and column.printer is not None:
        steps = io.residuals(column.prepare(), column.contexts, cells)
        return _tokens_of(io, context, rows, references, column, places, steps)
    if column.kind == ColumnKind.ENUM:
        return _read_enum(io, context, column, cells)
    return _code_texts(io, context, column, cells, None)


# ---- NUMBER --------------------------------------------------------------------------------------


def _tokens_of(
    io: Reader,
    context: Context,
    rows: FamilyRows,
    references: References,
    column: Column,
    places: Places,
    steps: list[Maybe],
) -> list[bytes]:
    """Return the tokens of a column of numbers whose residuals are known."""
    selected = rows.select(places)
    references.give(rows, column, places, selected)
    numbers = values(column.predictor, column.cells, selected, steps, column.param)
    references.keep(rows, column, places, numbers)
    printer = column.printer
    assert printer is not None
    if None not in numbers:
        return printer.show_all(numbers)  # type: ignore[arg-type]  # no None
    return [
        _code_escape(io, context, column) if number is None else printer.show(number)
        for number in numbers
    ]


def _code_escape(io: Coder, context: Context, column: Column, token: bytes = b"") -> bytes:
    """Code a token that is no integer of its column.

    It is one of those before, or a decimal with other digits (-1), or a new text (0).
    """
    table = column.escapes
    if table is None:
        table = column.escapes = Table(UNKNOWN_PRIOR)
    place = column.text_index.get(token, 0)
    decimal = _DECIMAL.fullmatch(token) if not place else None
    digits = len(decimal.group(1) or b"") if decimal else DIGITS_MAX + 1
    value: int | None = None
    if digits <= DIGITS_MAX:
        value = _other_digits(context, digits).parse(token)
        place = 0 if value is None else _OTHER_DIGITS
    place = io.number(table, place)
    if place == _OTHER_DIGITS:
        fields = context.tables.decimals
        digits = io.number(fields[0], digits)
        if not 0 <= digits <= DIGITS_MAX:
            refuse("a decimal of too many digits")
        return _other_digits(context, digits).show(io.number(fields[1], value or 0))
    if place:
        if not 0 < place <= len(column.texts):
            refuse("a spelling that was never used")
        return column.texts[place - 1]
    return _code_new_text(io, context, column, token)


def _other_digits(context: Context, digits: int) -> Printer:
    return context.printer((int(PrinterKind.FIXED), digits, b"", b"", b""))


def _code_new_text(io: Coder, context: Context, column: Column, token: bytes) -> bytes:
    """Code a text the column does not have, and keep it if there is room."""
    model = context.tables.spelling
    token = code_text(io, model, column.recent, context.limits.token_bytes, token)
    column.recent = token
    texts = column.texts
    if len(texts) < ENUM_VALUES and len(token) <= _REMEMBERED_BYTES:
        texts.append(token)
        column.text_index[token] = len(texts)
    return token


# ---- ENUM ----------------------------------------------------------------------------------------


def _write_enum(
    io: Writer, context: Context, column: Column, cells: list[int], tokens: Sequence[bytes]
) -> None:
    index = column.text_index
    new = [token for token in dict.fromkeys(tokens) if token not in index]
    new = [token for token in new if len(token) <= _REMEMBERED_BYTES]
    new = new[: ENUM_VALUES - len(column.texts)]
    io.number(context.tables.lengths, len(new))
    for token in new:
        _code_new_text(io, context, column, token)
    places = [index.get(token, 0) for token in tokens]
    io.chain(column.prepare(), column.contexts, cells, places)
    if 0 in places:
        for place, token in zip(places, tokens, strict=True):
            if not place:
                _code_new_text(io, context, column, token)


def _read_enum(io: Reader, context: Context, column: Column, cells: list[int]) -> list[bytes]:
    count = io.number(context.tables.lengths)
    texts = column.texts
    if not 0 <= count <= ENUM_VALUES - len(texts):
        refuse("more texts than an enumeration holds")
    for _ in range(count):
        _code_new_text(io, context, column, b"")
    places = io.chain(column.prepare(), column.contexts, cells)
    if max(places) > len(texts):
        refuse("a text that was never used")
    known = [b"", *texts]
    return [known[place] if place else _code_new_text(io, context, column, b"") for place in places]


# ---- TEXT ----------------------------------------------------------------------------------------


def _code_texts(
    io: Coder,
    context: Context,
    column: Column,
    cells: list[int],
    tokens: Sequence[bytes] | None,
) -> list[bytes]:
    most = context.limits.token_bytes
    model = column.model
    if model is None:
        model = column.model = TextModel()
    if native is not None:
        packing = ALPHABETS[column.alphabet]
        try:
            return native.code_texts(io, model, column, cells, tokens, most, packing)
        except EOFError as error:
            refuse(str(error))
    last = column.last_texts
    out: list[bytes] = []
    for at, cell in enumerate(cells):
        near = last[cell] or column.recent
        token = tokens[at] if tokens is not None else b""
        token = code_text(io, model, near, most, token, column.alphabet)
        last[cell] = column.recent = token
        out.append(token)
    return out
