"""Printers: the ways in which an integer is spelled as a token, each exact in both directions.

docs/link-format-structured.md section 5.2. A token is taken as an integer only if showing that
integer gives the token's own bytes, so nothing depends on how well parsing understands: whatever
fails stays text.

Invariant: `show` is a function of kind, digits, text, prefix and suffix alone, and gives bytes of
bounded length or raises ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum

from bridge.structured.calendar import parse_clock, parse_stamp, show_clock, show_stamp
from bridge.structured.limits import VALUE_BITS

__all__ = ["DIGITS_MAX", "Printer", "PrinterKey", "PrinterKind"]

PrinterKey = tuple[int, int, bytes, bytes, bytes]  # kind, digits, text, prefix, suffix

DIGITS_MAX = 18
_BOUND = 1 << VALUE_BITS
_TWO_64 = 1 << 64
_CACHE_MAX = 4096
_PARSE_ERRORS = (ValueError, OverflowError, struct.error)


class PrinterKind(IntEnum):
    """How a printer spells; the numbers are those of the format."""

    FIXED = 0  # decimal, exactly `digits` digits after the point
    TRIMMED = 1  # decimal, at most `digits`, trailing zeros and a bare point left out
    FLOATY = 2  # the same, but at least one digit after the point
    PADDED = 3  # unsigned decimal of `digits` digits, leading zeros kept
    STAMP = 4  # ISO 8601 date-time, exactly `digits` digits of the second, `text` before the hour
    STAMP_TRIMMED = 5  # the same with trailing zeros left out
    CLOCK = 6  # [days `text`]hours:MM:SS, hours of at least `digits` digits
    UNSIGNED_LITTLE = 7  # `digits` bytes
    UNSIGNED_BIG = 8
    SIGNED_LITTLE = 9
    SIGNED_BIG = 10
    FLOAT_LITTLE = 11  # IEEE 754, 4 or 8 bytes (`text` is b"4" or b"8"), the number value/10^digits
    FLOAT_BIG = 12
    VARINT = 13  # protobuf: 7 bits a byte, low first; negative numbers as 2^64 more


class _Parsed(dict[bytes, int | None]):
    """Tokens parsed before; a look-up parses what is missing."""

    __slots__ = ("_printer",)

    def __init__(self, printer: Printer) -> None:
        super().__init__()
        self._printer = printer

    def __missing__(self, token: bytes) -> int | None:
        if len(self) >= _CACHE_MAX:
            self.clear()
        value = self[token] = self._printer.parse_anew(token)
        return value


class _Shown(dict[int, bytes]):
    """Integers shown before; a look-up shows what is missing."""

    __slots__ = ("_printer",)

    def __init__(self, printer: Printer) -> None:
        super().__init__()
        self._printer = printer

    def __missing__(self, value: int) -> bytes:
        if len(self) >= _CACHE_MAX:
            self.clear()
        token = self[value] = self._printer.show_anew(value)
        return token


@dataclass(slots=True, frozen=True, eq=False)
class _Spelling:
    parse: Callable[[bytes, int, bytes], int]
    show: Callable[[int, int, bytes], bytes]


class Printer:
    """One way to spell an integer.

    Attributes:
        key: (kind, digits, text, prefix, suffix): what is sent, and what makes two printers equal.
        parse: Token to integer, or None when the printer does not spell it so.
        show: Integer to token; raises ValueError for what cannot be spelled.
    """

    __slots__ = ("_affixes", "_spelling", "key", "parse", "show")

    def __init__(
        self,
        kind: int,
        digits: int = 0,
        text: bytes = b"",
        prefix: bytes = b"",
        suffix: bytes = b"",
    ) -> None:
        self.key = (int(kind), digits, text, prefix, suffix)
        self._spelling = _SPELLINGS[PrinterKind(kind)]
        self._affixes = bool(prefix or suffix)
        self.parse: Callable[[bytes], int | None] = _Parsed(self).__getitem__
        self.show: Callable[[int], bytes] = _Shown(self).__getitem__

    def parse_anew(self, token: bytes) -> int | None:
        """Return the integer `token` spells, or None; without the cache."""
        _, digits, text, prefix, suffix = self.key
        core = token
        if self._affixes:
            end = len(token) - len(suffix)
            if len(prefix) > end or not (token.startswith(prefix) and token.endswith(suffix)):
                return None
            core = token[len(prefix) : end]
        try:
            value = self._spelling.parse(core, digits, text)
            if -_BOUND < value < _BOUND and self._spelling.show(value, digits, text) == core:
                return value
        except _PARSE_ERRORS:
            pass
        return None

    def show_anew(self, value: int) -> bytes:
        """Return the token that spells `value`; without the cache."""
        _, digits, text, prefix, suffix = self.key
        try:
            if not -_BOUND < value < _BOUND:
                raise ValueError("out of range")
            core = self._spelling.show(value, digits, text)
        except _PARSE_ERRORS as error:
            raise ValueError(f"an integer its column cannot spell: {error}") from error
        return prefix + core + suffix if self._affixes else core


# ---- decimals ------------------------------------------------------------------------------------


def _parse_fixed(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    if not digits:
        return int(token)
    return int(token[: -digits - 1] + token[-digits:])


def _show_fixed(value: int, digits: int, text: bytes) -> bytes:  # noqa: ARG001
    if not digits:
        return b"%d" % value
    shown = b"%0*d" % (digits + 1, abs(value))
    return b"%b%b.%b" % (b"-" if value < 0 else b"", shown[:-digits], shown[-digits:])


def _parse_trimmed(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    whole, _, fraction = token.partition(b".")
    if len(fraction) > digits:
        raise ValueError("more digits than the column has")
    return int(whole + fraction.ljust(digits, b"0"))


def _show_trimmed(value: int, digits: int, text: bytes) -> bytes:
    shown = _show_fixed(value, digits, text)
    return shown.rstrip(b"0").rstrip(b".") if digits else shown


def _show_floaty(value: int, digits: int, text: bytes) -> bytes:
    shown = _show_trimmed(value, digits, text)
    return shown if b"." in shown else shown + b".0"


def _parse_padded(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    return int(token)


def _show_padded(value: int, digits: int, text: bytes) -> bytes:  # noqa: ARG001
    if value < 0:
        raise ValueError("a negative count")
    return b"%0*d" % (digits, value)


# ---- times ---------------------------------------------------------------------------------------


def _parse_stamp(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    return parse_stamp(token, digits)


def _show_stamp_trimmed(value: int, digits: int, text: bytes) -> bytes:
    shown = show_stamp(value, digits, text)
    return shown.rstrip(b"0").rstrip(b".") if digits else shown


def _parse_clock(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    return parse_clock(token, text)


# ---- bytes ---------------------------------------------------------------------------------------


def _bytes_spelling(order: str, signed: bool) -> _Spelling:
    little = order == "little"

    def parse(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
        return int.from_bytes(token, "little" if little else "big", signed=signed)

    def show(value: int, digits: int, text: bytes) -> bytes:  # noqa: ARG001
        return value.to_bytes(digits, "little" if little else "big", signed=signed)

    return _Spelling(parse, show)


def _float_spelling(mark: str) -> _Spelling:
    formats = {b"4": struct.Struct(mark + "f"), b"8": struct.Struct(mark + "d")}

    def parse(token: bytes, digits: int, text: bytes) -> int:
        number: float = formats[text].unpack(token)[0]
        scale: int = 10**digits
        return round(number * scale)

    def show(value: int, digits: int, text: bytes) -> bytes:
        return formats[text].pack(value / 10**digits)

    return _Spelling(parse, show)


def _parse_varint(token: bytes, digits: int, text: bytes) -> int:  # noqa: ARG001
    value = 0
    for place, byte in enumerate(token[:10]):
        value |= (byte & 0x7F) << 7 * place
    return value - _TWO_64 if value >= 1 << 63 else value


def _show_varint(value: int, digits: int, text: bytes) -> bytes:  # noqa: ARG001
    if value < 0:
        value += _TWO_64
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


_SPELLINGS = {
    PrinterKind.FIXED: _Spelling(_parse_fixed, _show_fixed),
    PrinterKind.TRIMMED: _Spelling(_parse_trimmed, _show_trimmed),
    PrinterKind.FLOATY: _Spelling(_parse_trimmed, _show_floaty),
    PrinterKind.PADDED: _Spelling(_parse_padded, _show_padded),
    PrinterKind.STAMP: _Spelling(_parse_stamp, show_stamp),
    PrinterKind.STAMP_TRIMMED: _Spelling(_parse_stamp, _show_stamp_trimmed),
    PrinterKind.CLOCK: _Spelling(_parse_clock, show_clock),
    PrinterKind.UNSIGNED_LITTLE: _bytes_spelling("little", signed=False),
    PrinterKind.UNSIGNED_BIG: _bytes_spelling("big", signed=False),
    PrinterKind.SIGNED_LITTLE: _bytes_spelling("little", signed=True),
    PrinterKind.SIGNED_BIG: _bytes_spelling("big", signed=True),
    PrinterKind.FLOAT_LITTLE: _float_spelling("<"),
    PrinterKind.FLOAT_BIG: _float_spelling(">"),
    PrinterKind.VARINT: _Spelling(_parse_varint, _show_varint),
}
