"""Columns of tokens: the hot loops of the codec, both ways.

docs/link-format-structured.md section 5. A column is coded for the rows in which it may have
changed, in row order. A NUMBER column turns tokens into integers, integers into residuals, and
residuals into symbols, whose table is chosen by the size of the cell's last residual; a token that
its printer does not spell is escaped. An ENUM column codes which of its texts a token is, in a
table chosen by the cell's last one. A TEXT column codes what differs from the cell's last text.

The loops keep the coder's state in locals: `benchmarks/codec.py` pays for that.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from bridge.structured.coder import Coder, Reader, Writer, refuse
from bridge.structured.context import Column, ColumnKind, Context, TextModel
from bridge.structured.limits import CHUNK_ROWS, ENUM_VALUES
from bridge.structured.predictors import Maybe, Rows, residuals, values
from bridge.structured.symbols import (
    BIG,
    CONTEXT_AFTER,
    DIRECT,
    ESCAPE,
    EXTRA_BITS,
    SCALE,
    SCALE_BITS,
    SYMBOL_BASE,
    SYMBOL_SIGN,
    UNKNOWN_PRIOR,
    symbol_of,
)
from bridge.structured.tables import Table
from bridge.structured.texts import code_text

__all__ = ["decode_column", "encode_column"]

_MASK = SCALE - 1
_LOW = 1 << 16
_REMEMBERED_BYTES = 64  # longer texts are not kept by a column
_FIRST_WITH_EXTRA = 2 * DIRECT + 1
# Index by residual, -8 to 8: the list is made so that negative indices count from its end.
_DIRECT_SYMBOLS = [symbol_of(r) for r in (*range(DIRECT + 1), *range(-DIRECT, 0))]
_DIRECT_VALUES = [
    base * sign for base, sign in zip(SYMBOL_BASE, SYMBOL_SIGN, strict=True)
]  # by symbol, right for those without plain bits


def encode_column(
    io: Writer, context: Context, column: Column, rows: Rows, tokens: Sequence[bytes]
) -> list[Maybe]:
    """Code the tokens of a column; returns the integers of a NUMBER column for those referring."""
    column.prepare()
    if column.kind == ColumnKind.NUMBER and column.printer is not None:
        numbers = list(map(column.printer.parse, tokens))
        steps = residuals(column.predictor, column.cells, rows, numbers, column.param)
        _write_residuals(io, context, column, rows.cells, steps, tokens)
        return numbers
    if column.kind == ColumnKind.ENUM:
        _write_enum(io, context, column, rows.cells, tokens)
    else:
        _code_texts(io, context, column, rows.cells, tokens)
    return []


def decode_column(
    io: Reader, context: Context, column: Column, rows: Rows
) -> tuple[list[bytes], list[Maybe]]:
    """Return the tokens of a column and, of a NUMBER column, their integers."""
    column.prepare()
    if column.kind == ColumnKind.NUMBER and column.printer is not None:
        steps, escaped = _read_residuals(io, context, column, rows.cells)
        numbers = values(column.predictor, column.cells, rows, steps, column.param)
        show = column.printer.show
        if not escaped:
            return list(map(show, numbers)), numbers  # type: ignore[arg-type]  # none is None
        spare = iter(escaped)
        return [next(spare) if n is None else show(n) for n in numbers], numbers
    if column.kind == ColumnKind.ENUM:
        return _read_enum(io, context, column, rows.cells), []
    return _code_texts(io, context, column, rows.cells, None), []


# ---- NUMBER --------------------------------------------------------------------------------------


def _write_residuals(
    io: Writer,
    context: Context,
    column: Column,
    cells: Sequence[int],
    steps: Sequence[Maybe],
    tokens: Sequence[bytes],
) -> None:
    contexts, tables = column.contexts, column.tables
    put = io.spans.append
    for start in range(0, len(cells), CHUNK_ROWS):
        spans = [table.spans for table in tables]
        logs = [table.log.append for table in tables]
        chunk = slice(start, start + CHUNK_ROWS)
        for at, (cell, r) in enumerate(zip(cells[chunk], steps[chunk], strict=True), start):
            which = contexts[cell]
            if r is None:
                symbol = ESCAPE
            elif -DIRECT <= r <= DIRECT:
                symbol = _DIRECT_SYMBOLS[r]
            else:
                symbol = symbol_of(r)
            put(spans[which][symbol])
            logs[which](symbol)
            contexts[cell] = CONTEXT_AFTER[symbol]
            if symbol >= _FIRST_WITH_EXTRA:
                if r is None:
                    _code_escape(io, context, column, tokens[at])
                elif symbol == BIG:
                    io.big(r)
                else:
                    io.bits(EXTRA_BITS[symbol], abs(r))
        _rebuild(tables)


def _read_residuals(
    io: Reader, context: Context, column: Column, cells: Sequence[int]
) -> tuple[list[Maybe], list[bytes]]:
    contexts, tables = column.contexts, column.tables
    words = io.words
    n_words = len(words)
    out: list[Maybe] = []
    put = out.append
    escaped: list[bytes] = []
    for start in range(0, len(cells), CHUNK_ROWS):
        spans = [table.spans for table in tables]
        starts = [table.starts for table in tables]
        logs = [table.log.append for table in tables]
        state, at = io.state, io.at
        for cell in cells[start : start + CHUNK_ROWS]:
            which = contexts[cell]
            low = state & _MASK
            symbol = bisect_right(starts[which], low) - 1
            freq, base = spans[which][symbol]
            state = freq * (state >> SCALE_BITS) + low - base
            if state < _LOW:
                if at >= n_words:
                    refuse("the symbols end too early")
                state = state << 16 | words[at]
                at += 1
            logs[which](symbol)
            contexts[cell] = CONTEXT_AFTER[symbol]
            if symbol < _FIRST_WITH_EXTRA:
                put(_DIRECT_VALUES[symbol])
                continue
            io.state, io.at = state, at
            if symbol == ESCAPE:
                put(None)
                escaped.append(_code_escape(io, context, column))
            elif symbol == BIG:
                put(io.big())
            else:
                extra = io.bits(EXTRA_BITS[symbol])
                put((SYMBOL_BASE[symbol] + extra) * SYMBOL_SIGN[symbol])
            state, at = io.state, io.at
        io.state, io.at = state, at
        _rebuild(tables)
    return out, escaped


def _rebuild(tables: Sequence[Table]) -> None:
    for table in tables:
        if len(table.log) >= table.due:
            table.rebuild()


def _code_escape(io: Coder, context: Context, column: Column, token: bytes = b"") -> bytes:
    """Code a token that is no integer of its column: one of those before, or a new text."""
    table = column.escapes
    if table is None:
        table = column.escapes = Table(UNKNOWN_PRIOR)
    place = io.number(table, column.text_index.get(token, 0))
    if place:
        if not 0 < place <= len(column.texts):
            refuse("a spelling that was never used")
        return column.texts[place - 1]
    return _code_new_text(io, context, column, token)


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
    io: Writer, context: Context, column: Column, cells: Sequence[int], tokens: Sequence[bytes]
) -> None:
    contexts, tables, index = column.contexts, column.tables, column.text_index
    for cell, token in zip(cells, tokens, strict=True):
        place = index.get(token, 0)
        io.symbol(tables[contexts[cell]], place)
        if not place:
            _code_new_text(io, context, column, token)
            place = index.get(token, 0)
        contexts[cell] = place


def _read_enum(io: Reader, context: Context, column: Column, cells: Sequence[int]) -> list[bytes]:
    contexts, tables, texts = column.contexts, column.tables, column.texts
    out: list[bytes] = []
    for cell in cells:
        place = io.symbol(tables[contexts[cell]])
        if not place:
            token = _code_new_text(io, context, column, b"")
            place = column.text_index.get(token, 0)
        elif place <= len(texts):
            token = texts[place - 1]
        else:
            refuse("a text that was never used")
        contexts[cell] = place
        out.append(token)
    return out


# ---- TEXT ----------------------------------------------------------------------------------------


def _code_texts(
    io: Coder,
    context: Context,
    column: Column,
    cells: Sequence[int],
    tokens: Sequence[bytes] | None,
) -> list[bytes]:
    last = column.last_texts
    most = context.limits.token_bytes
    model = column.model
    if model is None:
        model = column.model = TextModel()
    out: list[bytes] = []
    for at, cell in enumerate(cells):
        near = last[cell] or column.recent
        token = tokens[at] if tokens is not None else b""
        token = code_text(io, model, near, most, token, column.alphabet)
        last[cell] = column.recent = token
        out.append(token)
    return out
