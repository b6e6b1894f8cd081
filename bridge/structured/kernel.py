"""The codec's inner loops: in C where they were built (`_kernel.c`), else in Python.

docs/link-format-structured.md section 3. Each Python function here has a twin of its name in C;
`predict` there stands for the functions of `predictors`, `parse_all` and `show_all` for those of a
`Printer`. Both do the same to the bit (tests/bridge/structured/test_kernel.py). `python -X
no-structured-kernel` runs the Python ones.

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from operator import add
from typing import TYPE_CHECKING

from bridge.structured.limits import CHUNK_ROWS, INTEGER_BITS
from bridge.structured.symbols import (
    BIG,
    DIRECT,
    ESCAPE,
    EXTRA_BITS,
    SCALE,
    SCALE_BITS,
    SPAN_BITS,
    SYMBOL_BASE,
    SYMBOL_SIGN,
    SYMBOLS,
    SYMBOLS_FROM,
    Spans,
    scaled,
    spans_of,
    symbol_of,
)
from runtime.native import library

if TYPE_CHECKING:
    from bridge.structured._kernel import Kernel
    from bridge.structured.coder import Reader
    from bridge.structured.tables import Chain, Table
else:
    Kernel = object

__all__ = [
    "DIRECT_VALUES",
    "LAST_DIRECT",
    "STATE_BITS",
    "STATE_LOW",
    "VERSION",
    "Kernel",
    "Maybe",
    "bits_of",
    "frequencies",
    "integers_of",
    "native",
    "pack_symbols",
    "read_chain",
    "read_integer",
    "read_symbol",
    "symbols_of",
    "write_chain",
    "write_integer",
    "write_symbol",
]

VERSION = 13  # rises with every change of a function's arguments or meaning


native: Kernel | None = library("bridge.structured._kernel", VERSION, "no-structured-kernel")

Maybe = int | None

STATE_LOW = 1 << 16  # the coder's least state, and where it starts and must end
STATE_BITS = 32  # of a section, before its words
LAST_DIRECT = 2 * DIRECT  # no plain bits follow it, nor those before
DIRECT_VALUES = [base * sign for base, sign in zip(SYMBOL_BASE, SYMBOL_SIGN, strict=True)]
_MASK = SCALE - 1
_SPAN_MASK = (1 << SPAN_BITS) - 1


# ---- tables --------------------------------------------------------------------------------------


def _frequencies(prior: list[int], counts: list[int], gain: int) -> Spans:
    """Return the spans of a table whose symbols were seen so often."""
    return spans_of(scaled(list(map(add, prior, map(gain.__mul__, counts)))))


# ---- symbols -------------------------------------------------------------------------------------


def _write_chain(
    put: Spans,
    chain: Chain,
    contexts: list[int],
    cells: list[int],
    symbols: list[int],
    after: list[int],
) -> None:
    """Put the span of a symbol a cell, each by the table its cell's last one chose."""
    n = len(cells)
    for start in range(0, n, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, n)
        _write_symbols(put, chain.spans, chain.logs, contexts, cells, symbols, after, start, end)
        chain.note(end - start)


def _read_chain(
    reader: Reader, chain: Chain, contexts: list[int], cells: list[int], after: list[int]
) -> list[int]:
    """Return a symbol a cell, each read by the table its cell's last one chose.

    Raises:
        EOFError: the words end too early.
    """
    out: list[int] = []
    n = len(cells)
    for start in range(0, n, CHUNK_ROWS):
        end = min(start + CHUNK_ROWS, n)
        reader.state, reader.at = _read_symbols(
            out, reader.words, reader.at, reader.state,
            chain.spans, chain.logs, contexts, cells, after, start, end,
        )  # fmt: skip
        chain.note(end - start)
    return out


def _write_symbols(
    put: Spans,
    spans: list[Spans],
    logs: list[list[int]],
    contexts: list[int],
    cells: list[int],
    symbols: list[int],
    after: list[int],
    start: int,
    end: int,
) -> None:
    """Put the spans of the symbols from `start` to `end`, the tables being as they are."""
    some = cells, symbols
    if end - start < len(cells):
        some = cells[start:end], symbols[start:end]
    append = put.append
    for cell, symbol in zip(*some, strict=True):
        which = contexts[cell]
        append(spans[which][symbol])
        logs[which].append(symbol)
        contexts[cell] = after[symbol]


def _read_symbols(
    out: list[int],
    words: list[int],
    at: int,
    state: int,
    spans: list[Spans],
    logs: list[list[int]],
    contexts: list[int],
    cells: list[int],
    after: list[int],
    start: int,
    end: int,
) -> tuple[int, int]:
    """Put the symbols of the cells from `start` to `end`; returns the state and the next word."""
    n_words = len(words)
    put = out.append
    for cell in cells[start:end] if end - start < len(cells) else cells:
        which = contexts[cell]
        low = state & _MASK
        symbol = bisect_right(spans[which], low << SPAN_BITS | _SPAN_MASK) - 1
        span = spans[which][symbol]
        state = (span & _SPAN_MASK) * (state >> SCALE_BITS) + low - (span >> SPAN_BITS)
        if state < STATE_LOW:
            if at >= n_words:
                raise EOFError("the symbols end too early")
            state = state << 16 | words[at]
            at += 1
        logs[which].append(symbol)
        contexts[cell] = after[symbol]
        put(symbol)
    return state, at


def _pack_symbols(spans: Spans) -> bytes:
    """Return the final state and the words that decode to symbols of these spans."""
    state = STATE_LOW
    words: list[int] = []
    emit = words.append
    for span in reversed(spans):
        freq = span & _SPAN_MASK
        if state >= freq << 18:
            emit(state & 0xFFFF)
            state >>= 16
        state += state // freq * (SCALE - freq) + (span >> SPAN_BITS)
    words.reverse()
    return struct.pack(f"<I{len(words)}H", state, *words)


# ---- one by one ----------------------------------------------------------------------------------


def _note_symbol(table: Table, symbol: int) -> None:
    log = table.log
    log.append(symbol)
    if len(log) >= table.due:
        table.rebuild()


def _write_symbol(put: Spans, table: Table, symbol: int) -> None:
    """Put the span of a symbol."""
    put.append(table.spans[symbol])
    _note_symbol(table, symbol)


def _write_integer(put: Spans, plain: bytearray, table: Table, value: int) -> None:
    """Put the span of an integer's symbol, and its plain bits.

    Raises:
        ValueError: the integer has more than 63 bits.
    """
    symbol = SYMBOLS[value] if SYMBOLS_FROM <= value <= -SYMBOLS_FROM else symbol_of(value)
    if symbol > LAST_DIRECT:
        _put_plain(plain, value)
    _write_symbol(put, table, symbol)


def _read_symbol(reader: Reader, table: Table) -> int:
    """Return the next symbol.

    Raises:
        EOFError: the words end too early.
    """
    low = reader.state & _MASK
    symbol = bisect_right(table.spans, low << SPAN_BITS | _SPAN_MASK) - 1
    span = table.spans[symbol]
    reader.advance(span & _SPAN_MASK, low - (span >> SPAN_BITS))
    _note_symbol(table, symbol)
    return symbol


def _read_integer(reader: Reader, table: Table) -> Maybe:
    """Return the next integer, None for an escape.

    Raises:
        EOFError: the words or the plain bits end too early.
        ValueError: a big integer of no bits.
    """
    symbol = _read_symbol(reader, table)
    if symbol <= LAST_DIRECT:
        return DIRECT_VALUES[symbol]
    if symbol == ESCAPE:
        return None
    found, reader.plain_at = _take_plain(reader.plain, reader.plain_at, symbol)
    return found


# ---- integers ------------------------------------------------------------------------------------


def bits_of(count: int, value: int) -> bytes:
    """Return the low `count` bits of `value` as signs 0 and 1, the lowest first."""
    mark = 1 << count
    return bin(value & (mark - 1) | mark)[:2:-1].encode()


def _put_plain(plain: bytearray, value: int) -> None:
    """Put the bits that follow the symbol of an integer that has some.

    Raises:
        ValueError: the integer has more than 63 bits.
    """
    magnitude = abs(value)
    symbol = symbol_of(value)
    count = EXTRA_BITS[symbol]
    if symbol == BIG:
        bits = magnitude.bit_length()
        if bits > INTEGER_BITS:
            raise ValueError(f"an integer of {bits} bits")
        plain += bits_of(7, (value < 0) << 6 | bits)
        count = bits - 1
    plain += bits_of(count, magnitude)


def _take_plain(plain: str, end: int, symbol: int) -> tuple[int, int]:
    """Return the integer of a symbol that plain bits follow, and where the bits before them end.

    Raises:
        EOFError: there are not so many bits.
        ValueError: a big integer of no bits.
    """
    count, base, sign = EXTRA_BITS[symbol], SYMBOL_BASE[symbol], SYMBOL_SIGN[symbol]
    if symbol == BIG:
        if end - 7 < STATE_BITS:
            raise EOFError("the plain bits end too early")
        head = int(plain[end - 7 : end], 2)
        end -= 7
        count = (head & 0x3F) - 1
        if count < 0:
            raise ValueError("an integer of no bits")
        base, sign = 1 << count, -1 if head & 0x40 else 1
    begin = end - count
    if begin < STATE_BITS:
        raise EOFError("the plain bits end too early")
    rest = int(plain[begin:end], 2) if count else 0
    return sign * (base + rest), begin


# Plain bits of small residuals, by residual: negative ones count from the end of the list.
_PLAIN = [
    bits_of(EXTRA_BITS[symbol_of(r)], abs(r))
    for r in (*range(-SYMBOLS_FROM + 1), *range(SYMBOLS_FROM, 0))
]


def _symbols_of(steps: list[Maybe], plain: bytearray) -> list[int]:
    """Return the symbols of residuals, their plain bits put in order."""
    known: list[int] = steps  # type: ignore[assignment]  # unless there is a None, see below
    escapes = None in steps
    if escapes:
        known = [step for step in steps if step is not None]
    if known and min(known) >= SYMBOLS_FROM and max(known) <= -SYMBOLS_FROM:
        plain += b"".join([_PLAIN[step] for step in known if step > DIRECT or step < -DIRECT])
        if escapes:
            return [ESCAPE if step is None else SYMBOLS[step] for step in steps]
        return list(map(SYMBOLS.__getitem__, known))
    for step in known:
        if step > DIRECT or step < -DIRECT:
            _put_plain(plain, step)
    return [ESCAPE if step is None else symbol_of(step) for step in steps]


def _integers_of(symbols: list[int], plain: str, end: int) -> tuple[list[Maybe], int]:
    """Return the residuals of symbols, and where the plain bits before theirs end."""
    if max(symbols, default=0) <= LAST_DIRECT:
        return list(map(DIRECT_VALUES.__getitem__, symbols)), end
    out: list[Maybe] = []
    put = out.append
    for symbol in symbols:
        if symbol <= LAST_DIRECT:
            put(DIRECT_VALUES[symbol])
        elif symbol == ESCAPE:
            put(None)
        else:
            value, end = _take_plain(plain, end, symbol)
            put(value)
    return out, end


# ---- which of them -------------------------------------------------------------------------------

frequencies = native.frequencies if native else _frequencies
integers_of = native.integers_of if native else _integers_of
pack_symbols = native.pack_symbols if native else _pack_symbols
read_chain = native.read_chain if native else _read_chain
read_integer = native.read_integer if native else _read_integer
read_symbol = native.read_symbol if native else _read_symbol
symbols_of = native.symbols_of if native else _symbols_of
write_chain = native.write_chain if native else _write_chain
write_integer = native.write_integer if native else _write_integer
write_symbol = native.write_symbol if native else _write_symbol
