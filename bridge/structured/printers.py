"""Printers: the ways in which an integer is spelled as a token, each exact in both directions.

docs/link-format-structured.md section 5.2. A token is taken as an integer only if showing that
integer gives the token's own bytes, so nothing depends on how well parsing understands: whatever
fails stays text.

Invariant: `show` is a function of kind, digits, text, prefix and suffix alone, and gives bytes of
bounded length or raises ValueError.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Literal

from bridge.kernel import varint
from bridge.structured.calendar import parse_clock, parse_stamp, show_clock, show_stamp
from bridge.structured.kernel import Kernel, native
from bridge.structured.limits import VALUE_BITS

__all__ = ["DIGITS_MAX", "Printer", "PrinterKey", "PrinterKind"]

PrinterKey = tuple[int, int, bytes, bytes, bytes]  # kind, digits, text, prefix, suffix

DIGITS_MAX = 18
_BOUND = 1 << VALUE_BITS
_TWO_64 = 1 << 64
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


_Parse = Callable[[bytes], int]
_Show = Callable[[int], bytes]
_ParseMany = Callable[[Sequence[bytes]], "list[int | None]"]
_ShowMany = Callable[[list[int]], list[bytes]]


class Printer:
    """One way to spell an integer.

    Attributes:
        key: (kind, digits, text, prefix, suffix): what is sent, and what makes two printers equal.
        native: It is one of those the kernel spells.
    """

    __slots__ = ("_parse_core", "_parse_many", "_show_core", "_show_many", "key", "native")

    def __init__(
        self,
        kind: int,
        digits: int = 0,
        text: bytes = b"",
        prefix: bytes = b"",
        suffix: bytes = b"",
    ) -> None:
        self.key: PrinterKey = (int(kind), digits, text, prefix, suffix)
        self._parse_core, self._show_core = _SPELLINGS[PrinterKind(kind)](digits, text)
        self._parse_many: _ParseMany = self._parse_one_by_one
        self._show_many: _ShowMany = self._show_one_by_one
        self.native = kind in _NATIVE or (kind in _WHOLE and 0 < digits <= 8)
        if native is not None and self.native:
            self._use_native(native)
        elif kind in (PrinterKind.FIXED, PrinterKind.TRIMMED) and not prefix and not suffix:
            self._parse_many, self._show_many = _decimals(self, digits, kind)

    def _use_native(self, kernel: Kernel) -> None:
        parse_all, show_all, key = kernel.parse_all, kernel.show_all, self.key
        self._parse_many = lambda tokens: parse_all(tokens, *key)
        self._show_many = lambda values: show_all(values, *key)

    def parse(self, token: bytes) -> int | None:
        """Return the integer `token` spells, or None when this printer does not spell it so."""
        _, _, _, prefix, suffix = self.key
        core = token
        if prefix or suffix:
            end = len(token) - len(suffix)
            if len(prefix) > end or not (token.startswith(prefix) and token.endswith(suffix)):
                return None
            core = token[len(prefix) : end]
        try:
            value = self._parse_core(core)
            if -_BOUND < value < _BOUND and self._show_core(value) == core:
                return value
        except _PARSE_ERRORS:
            pass
        return None

    def show(self, value: int) -> bytes:
        """Return the token that spells `value`.

        Raises:
            ValueError: there is none.
        """
        _, _, _, prefix, suffix = self.key
        try:
            if not -_BOUND < value < _BOUND:
                raise ValueError("out of range")
            core = self._show_core(value)
        except _PARSE_ERRORS as error:
            raise ValueError(f"an integer its column cannot spell: {error}") from error
        return prefix + core + suffix

    def parse_all(self, tokens: Sequence[bytes]) -> list[int | None]:
        """Return what `parse` returns for each token."""
        return self._parse_many(tokens)

    def show_all(self, values: list[int]) -> list[bytes]:
        """Return what `show` returns for each value.

        Raises:
            ValueError: there is none for some value.
        """
        return self._show_many(values)

    def _parse_one_by_one(self, tokens: Sequence[bytes]) -> list[int | None]:
        return list(map(self.parse, tokens))

    def _show_one_by_one(self, values: list[int]) -> list[bytes]:
        return list(map(self.show, values))

    def resembles(self, token: bytes) -> bool:
        """Return True for a token that this printer, if it is decimal, may well spell."""
        kind, digits, *_ = self.key
        if kind != PrinterKind.FIXED:
            return self.parse(token) is not None
        if digits:
            return token[-digits - 1 : -digits] == b"."
        return token.isdigit() or token[1:].isdigit()


# ---- decimals ------------------------------------------------------------------------------------


def _fixed(digits: int, text: bytes) -> tuple[_Parse, _Show]:  # noqa: ARG001
    if not digits:
        return int, b"%d".__mod__
    form = b"%%0%dd" % (digits + 1)
    point = -digits - 1

    def parse(token: bytes) -> int:
        return int(token[:point] + token[-digits:])

    def show(value: int) -> bytes:
        if value < 0:
            shown = form % -value
            return b"-" + shown[:-digits] + b"." + shown[-digits:]
        shown = form % value
        return shown[:-digits] + b"." + shown[-digits:]

    return parse, show


def _decimals(printer: Printer, digits: int, kind: int) -> tuple[_ParseMany, _ShowMany]:
    """Return what parses and shows many tokens of a FIXED or TRIMMED printer at once.

    Parsing does nearly all tokens in C loops and leaves the rest to `printer`. It proves them all
    as well: shown with its point left out, a value must give the token with its point left out.
    """
    form, negative_form = b"%%0%dd" % (digits + 1), b"%%0%dd" % (digits + 2)
    point = -digits - 1
    trimmed = kind == PrinterKind.TRIMMED and digits > 0

    def parse_some(tokens: Sequence[bytes]) -> list[int] | None:
        if digits:
            if [token[point : point + 1] for token in tokens].count(b".") < len(tokens):
                return None
            bare = [token.replace(b".", b"", 1) for token in tokens]
            values = list(map(int, bare))
            forms = [(form if value >= 0 else negative_form) % value for value in values]
            if trimmed and 0 in [value % 10 for value in values]:
                return None
        else:
            bare = list(tokens)
            values = list(map(int, bare))
            forms = list(map(b"%d".__mod__, values))
        if forms != bare or min(values) <= -_BOUND or max(values) >= _BOUND:
            return None
        return values

    def likely(tokens: Sequence[bytes]) -> list[bytes]:
        if not digits:
            return [token for token in tokens if token.isdigit() or token[1:].isdigit()]
        some = [token for token in tokens if token[point : point + 1] == b"."]
        return [token for token in some if token[-1:] != b"0"] if trimmed else some

    def tried(tokens: Sequence[bytes]) -> list[int] | None:
        try:
            return parse_some(tokens)
        except ValueError:
            return None

    def parse(tokens: Sequence[bytes]) -> list[int | None]:
        values = tried(tokens)
        if values is not None:
            return [*values]
        some = likely(tokens)
        if 2 * len(some) > len(tokens):
            values = tried(some)
        if values is None:
            return list(map(printer.parse, tokens))
        known = dict(zip(some, values, strict=True))
        return [known[token] if token in known else printer.parse(token) for token in tokens]

    def show(values: Sequence[int]) -> list[bytes]:
        if min(values) <= -_BOUND or max(values) >= _BOUND:
            raise ValueError("an integer its column cannot spell: out of range")
        if not digits:
            return list(map(b"%d".__mod__, values))
        bare = [(form if value >= 0 else negative_form) % value for value in values]
        shown = [text[: point + 1] + b"." + text[point + 1 :] for text in bare]
        if trimmed:
            return [text if text[-1:] != b"0" else text.rstrip(b"0").rstrip(b".") for text in shown]
        return shown

    return parse, show


def _trimmed(digits: int, text: bytes) -> tuple[_Parse, _Show]:
    _, show_fixed = _fixed(digits, text)

    def parse(token: bytes) -> int:
        whole, _, fraction = token.partition(b".")
        if len(fraction) > digits:
            raise ValueError("more digits than the column has")
        return int(whole + fraction.ljust(digits, b"0"))

    def show(value: int) -> bytes:
        shown = show_fixed(value)
        return shown.rstrip(b"0").rstrip(b".") if digits else shown

    return parse, show


def _floaty(digits: int, text: bytes) -> tuple[_Parse, _Show]:
    parse, show_trimmed = _trimmed(digits, text)

    def show(value: int) -> bytes:
        shown = show_trimmed(value)
        return shown if b"." in shown else shown + b".0"

    return parse, show


def _padded(digits: int, text: bytes) -> tuple[_Parse, _Show]:  # noqa: ARG001
    form = b"%%0%dd" % digits

    def show(value: int) -> bytes:
        if value < 0:
            raise ValueError("a negative count")
        return form % value

    return int, show


# ---- times ---------------------------------------------------------------------------------------


def _stamp(digits: int, text: bytes) -> tuple[_Parse, _Show]:
    return lambda token: parse_stamp(token, digits), lambda value: show_stamp(value, digits, text)


def _stamp_trimmed(digits: int, text: bytes) -> tuple[_Parse, _Show]:
    parse, show_whole = _stamp(digits, text)

    def show(value: int) -> bytes:
        shown = show_whole(value)
        return shown.rstrip(b"0").rstrip(b".") if digits else shown

    return parse, show


def _clock(digits: int, text: bytes) -> tuple[_Parse, _Show]:
    return lambda token: parse_clock(token, text), lambda value: show_clock(value, digits, text)


# ---- bytes ---------------------------------------------------------------------------------------


def _whole(order: Literal["little", "big"], *, signed: bool) -> _Spelling:
    def spelling(digits: int, text: bytes) -> tuple[_Parse, _Show]:  # noqa: ARG001
        def parse(token: bytes) -> int:
            return int.from_bytes(token, order, signed=signed)

        def show(value: int) -> bytes:
            return value.to_bytes(digits, order, signed=signed)

        return parse, show

    return spelling


def _float(mark: str) -> _Spelling:
    def spelling(digits: int, text: bytes) -> tuple[_Parse, _Show]:
        form = struct.Struct(mark + ("f" if text == b"4" else "d"))
        scale: int = 10**digits

        def parse(token: bytes) -> int:
            number: float = form.unpack(token)[0]
            return round(number * scale)

        def show(value: int) -> bytes:
            return form.pack(value / scale)

        return parse, show

    return spelling


def _varint(digits: int, text: bytes) -> tuple[_Parse, _Show]:  # noqa: ARG001
    def parse(token: bytes) -> int:
        value = 0
        for place, byte in enumerate(token[:10]):
            value |= (byte & 0x7F) << 7 * place
        return value - _TWO_64 if value >= 1 << 63 else value

    def show(value: int) -> bytes:
        return varint(value + _TWO_64 if value < 0 else value)

    return parse, show


_Spelling = Callable[[int, bytes], tuple[_Parse, _Show]]
_WHOLE = frozenset(
    {
        PrinterKind.UNSIGNED_LITTLE,
        PrinterKind.UNSIGNED_BIG,
        PrinterKind.SIGNED_LITTLE,
        PrinterKind.SIGNED_BIG,
    }
)
# what the kernel spells, beside whole numbers of 1 to 8 bytes
_NATIVE = frozenset(
    {
        *range(PrinterKind.CLOCK + 1),
        PrinterKind.FLOAT_LITTLE,
        PrinterKind.FLOAT_BIG,
        PrinterKind.VARINT,
    }
)
_SPELLINGS: dict[int, _Spelling] = {
    PrinterKind.FIXED: _fixed,
    PrinterKind.TRIMMED: _trimmed,
    PrinterKind.FLOATY: _floaty,
    PrinterKind.PADDED: _padded,
    PrinterKind.STAMP: _stamp,
    PrinterKind.STAMP_TRIMMED: _stamp_trimmed,
    PrinterKind.CLOCK: _clock,
    PrinterKind.UNSIGNED_LITTLE: _whole("little", signed=False),
    PrinterKind.UNSIGNED_BIG: _whole("big", signed=False),
    PrinterKind.SIGNED_LITTLE: _whole("little", signed=True),
    PrinterKind.SIGNED_BIG: _whole("big", signed=True),
    PrinterKind.FLOAT_LITTLE: _float("<"),
    PrinterKind.FLOAT_BIG: _float(">"),
    PrinterKind.VARINT: _varint,
}
