"""How an integer becomes a symbol and some plain bits, and how likely symbols are at first.

docs/link-format-structured.md section 3. A residual r of any column is written as one of
`RESIDUALS` symbols: -8..8 each have their own; larger ones share one by sign, bit length (4 to 20)
and, up to 8 bits, the bit after the leading one; the other bits follow plainly. Still larger ones
are `BIG`.
`ESCAPE` says that no integer follows. A symbol's *size* is the bit length of its integer.

Invariant: everything here is integer arithmetic, so every machine gets the same tables.
"""

from __future__ import annotations

from itertools import accumulate

__all__ = [
    "BIG",
    "CONTEXTS",
    "CONTEXT_AFTER",
    "CONTEXT_ESCAPE",
    "CONTEXT_NEW",
    "DIRECT",
    "ENUM_PRIOR",
    "ESCAPE",
    "EXTRA_BITS",
    "RESIDUALS",
    "SCALE",
    "SCALE_BITS",
    "SMALL_PRIOR",
    "SPAN_BITS",
    "SYMBOLS",
    "SYMBOLS_FROM",
    "SYMBOL_BASE",
    "SYMBOL_SIGN",
    "UNKNOWN_PRIOR",
    "Prior",
    "Spans",
    "residual_priors",
    "spans_of",
    "symbol_of",
]

SCALE_BITS = 14
SCALE = 1 << SCALE_BITS  # the frequencies of a table add up to this

DIRECT = 8
_BUCKET_BITS_MIN = 4
_BUCKET_BITS_MAX = 20
_HALVED_BITS_MAX = 8
_BUCKETS = 2 * DIRECT + 1
_HALVED = 4 * (_HALVED_BITS_MAX - _BUCKET_BITS_MIN + 1)
BIG = _BUCKETS + _HALVED + 2 * (_BUCKET_BITS_MAX - _HALVED_BITS_MAX)
ESCAPE = BIG + 1
RESIDUALS = ESCAPE + 1

# A column's table is chosen by the size of the same cell's last residual.
_CONTEXT_OF_SIZE = (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12)
CONTEXT_ESCAPE = 13  # the cell's last token was escaped
CONTEXT_NEW = 14  # the cell had no token yet
CONTEXTS = 15


def _bucket_tables() -> tuple[list[int], list[int], list[int], list[int]]:
    base, sign, extra, size = [0], [1], [0], [0]
    for r in range(1, DIRECT + 1):
        for s in (1, -1):
            base.append(r)
            sign.append(s)
            extra.append(0)
            size.append(r.bit_length())
    for bits in range(_BUCKET_BITS_MIN, _BUCKET_BITS_MAX + 1):
        plain = bits - 2 if bits <= _HALVED_BITS_MAX else bits - 1
        for leading in (2, 3) if bits <= _HALVED_BITS_MAX else (1,):
            for s in (1, -1):
                base.append(leading << plain)
                sign.append(s)
                extra.append(plain)
                size.append(bits)
    return [*base, 0, 0], [*sign, 1, 1], [*extra, 0, 0], [*size, _BUCKET_BITS_MAX + 1, 0]


# By symbol: least magnitude, sign, count of plain bits, context of the cell's next residual.
SYMBOL_BASE, SYMBOL_SIGN, EXTRA_BITS, _SIZES = _bucket_tables()
CONTEXT_AFTER = [_CONTEXT_OF_SIZE[size] for size in _SIZES]
CONTEXT_AFTER[ESCAPE] = CONTEXT_ESCAPE


def symbol_of(r: int) -> int:
    """Return the symbol of residual `r`; its plain bits are those below `EXTRA_BITS`."""
    magnitude = abs(r)
    if magnitude <= DIRECT:
        return 2 * r - 1 if r > 0 else -2 * r
    bits = magnitude.bit_length()
    if bits > _BUCKET_BITS_MAX:
        return BIG
    if bits > _HALVED_BITS_MAX:
        return _BUCKETS + _HALVED + (bits - _HALVED_BITS_MAX - 1) * 2 + (r < 0)
    half = magnitude >> (bits - 2) & 1
    return _BUCKETS + ((bits - _BUCKET_BITS_MIN) * 2 + half) * 2 + (r < 0)


# The symbols of small residuals, by residual: negative ones count from the end of the list.
SYMBOLS_FROM = -1023
SYMBOLS = [symbol_of(r) for r in (*range(-SYMBOLS_FROM + 1), *range(SYMBOLS_FROM, 0))]


Spans = list[int]  # by symbol start << SPAN_BITS | frequency, so they rise
SPAN_BITS = 16


class Prior:
    """The frequencies a table starts from.

    Attributes:
        freqs: By symbol; each 1 or more, all together `SCALE`.
        spans: By symbol its start, the sum of the frequencies before it, and its frequency.
    """

    __slots__ = ("freqs", "spans")

    def __init__(self, weights: list[int]) -> None:
        self.freqs = scaled(weights)
        self.spans = spans_of(self.freqs)


def spans_of(freqs: list[int]) -> Spans:
    """Return the spans of symbols of these frequencies."""
    starts = accumulate(freqs, initial=0)
    return [start << SPAN_BITS | freq for freq, start in zip(freqs, starts, strict=False)]


def scaled(weights: list[int]) -> list[int]:
    """Return frequencies in proportion to `weights`: each 1 or more, together `SCALE`.

    What rounding leaves goes to the greatest weight, the first of equals.
    """
    room = SCALE - len(weights)
    total = sum(weights)
    freqs = [1 + weight * room // total for weight in weights]
    freqs[weights.index(max(weights))] += SCALE - sum(freqs)
    return freqs


def _residual_prior(context: int) -> Prior:
    """Return the prior of a context: sizes near the last one are likely, halving with distance."""
    expected = max((size for size in range(22) if _CONTEXT_OF_SIZE[size] == context), default=0)
    if context in (CONTEXT_ESCAPE, CONTEXT_NEW):
        by_size = [4096] + [512] * 12 + [64] * 9
    else:
        by_size = [4096 >> min(12, abs(size - expected)) for size in range(22)]
    members = [_SIZES[:ESCAPE].count(size) for size in range(22)]
    weights = [by_size[size] // members[size] + 1 for size in _SIZES]
    weights[ESCAPE] = 4096 if context == CONTEXT_ESCAPE else 64
    return Prior(weights)


residual_priors = [_residual_prior(context) for context in range(CONTEXTS)]
UNKNOWN_PRIOR = residual_priors[CONTEXT_NEW]  # any integer
ENUM_PRIOR = Prior([64] * 32)
SMALL_PRIOR = Prior([4096 >> min(k, 12) for k in range(16)])  # rarely anything but 0
