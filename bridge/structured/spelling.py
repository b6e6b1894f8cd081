"""Which printer spells the tokens of a column. An encoder's affair.

A decoder follows what is defined in band, so everything here may change without a new version of
the format. Tokens that the printer does not spell will be escaped, at a price: the choice weighs
that against the digits every other token would carry for their sake.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from bridge.structured.printers import DIGITS_MAX, Printer, PrinterKey, PrinterKind
from bridge.structured.texts import shared_prefix

__all__ = ["ESCAPE_BITS", "FLOAT_DIGITS", "printer_for", "printer_like", "share_spelled"]

_NUMBER = re.compile(rb"-?(\d+)(?:\.(\d+))?")
_STAMP = re.compile(rb"\d{4}-\d\d-\d\d([T ])\d\d:\d\d:\d\d(?:\.(\d+))?")
_CLOCK = re.compile(rb"(?:\d+([^\d:.+-]{1,8}))?(\d+):\d\d:\d\d")
_CORES = (_STAMP, re.compile(rb"(?:\d+[^\d:.+-]{1,8})?\d+:\d\d:\d\d"), _NUMBER)
_SHARE = 0.6  # of the tokens a printer must spell, lest the column be one of texts
ESCAPE_BITS = 24  # about what an escaped token takes
_DIGIT_BITS = 3.3
FLOAT_DIGITS = (0, 1, 2, 3, 4, 6)  # decimals that floats are tried to be of
_FLOAT_SHARE = 0.85
_AFFIX_BYTES_MAX = 64


def share_spelled(key: PrinterKey, tokens: Sequence[bytes]) -> float:
    """Return the share of `tokens` that a printer spells."""
    values = Printer(*key).parse_all(tokens)
    return 1 - values.count(None) / len(values)


def printer_for(tokens: Sequence[bytes]) -> PrinterKey | None:
    """Return the printer that spells most of `tokens`, or None when there is none for most."""
    for prefix, suffix in dict.fromkeys(((b"", b""), *_affixes(tokens))):
        end = len(suffix)
        cores = [
            token[len(prefix) : len(token) - end]
            for token in tokens
            if token.startswith(prefix)
            and token.endswith(suffix)
            and len(token) > len(prefix) + end
        ]
        if len(cores) < _SHARE * len(tokens):
            continue
        for kind, digits, text in _candidates(cores):
            key = (int(kind), digits, text, prefix, suffix)
            if share_spelled(key, tokens) >= _SHARE:
                return key
    return None


def printer_like(hint: PrinterKey, tokens: Sequence[bytes]) -> PrinterKey | None:
    """Return how `tokens` of a binary field are spelled, of which `hint` tells the kind."""
    kind, _, text, *_ = hint
    if kind in (PrinterKind.FLOAT_LITTLE, PrinterKind.FLOAT_BIG):
        for decimals in FLOAT_DIGITS:
            key: PrinterKey = (kind, decimals, text, b"", b"")
            if share_spelled(key, tokens) >= _FLOAT_SHARE:
                return key
        little = kind == PrinterKind.FLOAT_LITTLE
        whole = PrinterKind.UNSIGNED_LITTLE if little else PrinterKind.UNSIGNED_BIG
        return (int(whole), int(text), b"", b"", b"")
    return hint if share_spelled(hint, tokens) >= _SHARE else None


def _affixes(tokens: Sequence[bytes]) -> Iterable[tuple[bytes, bytes]]:
    """Return what most tokens may have before and behind a time or number."""
    common = Counter(tokens).most_common(1)[0][0]
    prefix = suffix = common
    for token in tokens:
        if token.startswith(prefix) and token.endswith(suffix):
            continue
        shared = shared_prefix(prefix, token)
        end = shared_prefix(suffix[::-1], token[::-1])
        if shared or end:  # one that shares neither will be escaped
            prefix, suffix = prefix[:shared], suffix[len(suffix) - end :]
    for core in _CORES:
        for match in core.finditer(common):
            before, behind = common[: match.start()], common[match.end() :]
            if max(len(before), len(behind)) > _AFFIX_BYTES_MAX:
                continue
            if prefix.startswith(before) and suffix.endswith(behind):
                yield before, behind


def _candidates(tokens: Sequence[bytes]) -> Iterable[tuple[int, int, bytes]]:
    """Return kind, digits and text of printers that may spell `tokens`, the likeliest first."""
    numbers = [match for match in map(_NUMBER.fullmatch, tokens) if match]
    if len(numbers) >= _SHARE * len(tokens):
        yield from _decimals(numbers)
        return
    stamps = [match for match in map(_STAMP.fullmatch, tokens) if match]
    if len(stamps) >= _SHARE * len(tokens):
        digits = min(9, max(len(match.group(2) or b"") for match in stamps))
        same = all(len(match.group(2) or b"") == digits for match in stamps)
        kind = PrinterKind.STAMP if same else PrinterKind.STAMP_TRIMMED
        yield kind, digits, stamps[0].group(1)
        return
    clocks = [match for match in map(_CLOCK.fullmatch, tokens) if match]
    if len(clocks) >= _SHARE * len(tokens):
        width = min(len(match.group(2)) for match in clocks)
        yield PrinterKind.CLOCK, min(width, 2), clocks[0].group(1) or b""


def _decimals(numbers: Sequence[re.Match[bytes]]) -> Iterable[tuple[int, int, bytes]]:
    fractions = [match.group(2) or b"" for match in numbers]
    wholes = [match.group(1) for match in numbers]
    room = DIGITS_MAX - max(map(len, wholes))
    digits = min(_best_digits([fraction[: max(room, 0)] for fraction in fractions]), DIGITS_MAX)
    if not digits:
        width, *others = {len(whole) for whole in wholes}
        if not others and 1 < width <= DIGITS_MAX and any(whole[:1] == b"0" for whole in wholes):
            yield PrinterKind.PADDED, width, b""
        yield PrinterKind.FIXED, 0, b""
        return
    kept = [fraction for fraction in fractions if len(fraction) <= digits]
    if all(len(fraction) == digits for fraction in kept):
        # two of them may come from one that trims: with more digits, more tokens will tell
        yield PrinterKind.FIXED, digits, b""
    elif any(fraction == b"0" for fraction in kept):
        yield PrinterKind.FLOATY, digits, b""
    yield PrinterKind.TRIMMED, digits, b""
    yield PrinterKind.FLOATY, digits, b""
    yield PrinterKind.FIXED, digits, b""


def _best_digits(fractions: Sequence[bytes]) -> int:
    """Return how many decimals cost least: each one in every token, or escapes of those finer."""
    lengths = Counter(map(len, fractions))
    total = len(fractions)
    best, best_bits = 0, float("inf")
    for digits in sorted(lengths):
        finer = {length: count for length, count in lengths.items() if length > digits}
        escapes = sum(
            count * (ESCAPE_BITS + length * _DIGIT_BITS) for length, count in finer.items()
        )
        bits = escapes + (total - sum(finer.values())) * digits * _DIGIT_BITS
        if bits < best_bits:
            best, best_bits = digits, bits
    return best
