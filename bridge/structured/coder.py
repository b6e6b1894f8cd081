"""The entropy coder: symbols of known frequency become 16-bit words, and back.

docs/link-format-structured.md sections 2 and 3. A range asymmetric numeral system (J. Duda, 2009):
the state is one integer in [2^16, 2^32); coding a symbol of frequency f and start b takes it to
`(state // f << 14) + state % f + b`, after moving its low 16 bits out when it would overflow. The
decoder runs the other way, so the encoder keeps what it is to code and does it last to first.
Plain bits need no coder: they are read from the end of the section backwards.

`Writer` and `Reader` have the same verbs, each taking the value to write and returning the value:
`Reader` ignores its argument. Code that both run is written once, and cannot disagree.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from typing import NoReturn, Protocol

from bridge.errors import BatchError
from bridge.structured.limits import INTEGER_BITS
from bridge.structured.symbols import (
    BIG,
    ESCAPE,
    EXTRA_BITS,
    SCALE,
    SCALE_BITS,
    SYMBOL_BASE,
    SYMBOL_SIGN,
    SYMBOLS,
    SYMBOLS_FROM,
    symbol_of,
)
from bridge.structured.tables import Table

__all__ = ["POOLS", "Coder", "Pool", "Reader", "Writer", "refuse"]

_LOW = 1 << 16  # the state's least value, and where it starts and must end
_MASK = SCALE - 1

Pool = int
POOLS = 3  # 0 text, 1 packed digits, 2 raw payloads


def refuse(detail: str, reason: str = "bounds") -> NoReturn:
    """Raise the one error a body is refused with."""
    raise BatchError(reason, detail)


class Coder(Protocol):
    """What `Writer` and `Reader` have in common; every verb returns the value."""

    def symbol(self, table: Table, value: int = 0) -> int:
        """Code a symbol of `table`."""
        ...

    def number(self, table: Table, value: int = 0) -> int:
        """Code an integer within +-2^63 by a residual table."""
        ...

    def escapable(self, table: Table, value: int | None = None) -> int | None:
        """Code an integer or None by a residual table."""
        ...

    def below(self, bound: int, value: int = 0) -> int:
        """Code an integer of 0 to `bound` - 1, all equally likely."""
        ...

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:
        """Code `length` bytes beside the symbols, in one of the byte pools."""
        ...


class Writer:
    """Collects what a body is to say; `section` turns it into bytes.

    Attributes:
        spans: (frequency, start) of every symbol, in order; columns append here directly.
        plain: Plain bits as texts of 0 and 1, in order.
        pools: The byte pools.
    """

    __slots__ = ("plain", "pools", "spans")

    def __init__(self) -> None:
        self.spans: list[tuple[int, int]] = []
        self.plain: list[str] = []
        self.pools = [bytearray() for _ in range(POOLS)]

    def symbol(self, table: Table, value: int = 0) -> int:
        self.spans.append(table.spans[value])
        log = table.log
        log.append(value)
        if len(log) >= table.due:
            table.rebuild()
        return value

    def number(self, table: Table, value: int = 0) -> int:
        symbol = SYMBOLS[value] if SYMBOLS_FROM <= value <= -SYMBOLS_FROM else symbol_of(value)
        self.spans.append(table.spans[symbol])
        log = table.log
        log.append(symbol)
        if len(log) >= table.due:
            table.rebuild()
        count = EXTRA_BITS[symbol]
        if count:
            self.bits(count, abs(value))
        elif symbol == BIG:
            self.big(value)
        return value

    def escapable(self, table: Table, value: int | None = None) -> int | None:
        if value is None:
            self.symbol(table, ESCAPE)
            return None
        return self.number(table, value)

    def below(self, bound: int, value: int = 0) -> int:
        if bound <= SCALE:
            share = SCALE // bound
            last = bound - 1
            freq = share if value < last else SCALE - share * last
            self.spans.append((freq, share * value))
        else:
            self.bits((bound - 1).bit_length(), value)
        return value

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:  # noqa: ARG002
        self.pools[pool] += value
        return value

    def bits(self, count: int, value: int) -> None:
        """Code the low `count` bits of `value`."""
        mark = 1 << count
        self.plain.append(bin(value & (mark - 1) | mark)[3:])

    def big(self, value: int) -> None:
        """Code what follows the symbol `BIG`: sign, bit length and the bits below the first."""
        magnitude = abs(value)
        bits = magnitude.bit_length()
        if bits > INTEGER_BITS:
            raise ValueError(f"an integer of {bits} bits")
        self.bits(7, (value < 0) << 6 | bits)
        if bits > 1:
            self.bits(bits - 1, magnitude)

    def section(self) -> bytes:
        """Return the final state, the words as a decoder takes them, and the plain bits."""
        state = _LOW
        words: list[int] = []
        emit = words.append
        for freq, start in reversed(self.spans):
            if state >= freq << 18:
                emit(state & 0xFFFF)
                state >>= 16
            state += state // freq * (SCALE - freq) + start
        words.reverse()
        plain = "".join(reversed(self.plain))
        tail = int(plain, 2).to_bytes((len(plain) + 7) // 8, "big") if plain else b""
        return struct.pack(f"<I{len(words)}H", state, *words) + tail


class Reader:
    """Takes a body apart, in step with what its `Writer` was told.

    Attributes:
        state: The coder's state.
        words: The words; `at` is the place of the next one.
        plain: The whole section as a text of 0 and 1; `plain_at` is the end of the next plain bits.
        pools: The byte pools, unpacked.
    """

    __slots__ = ("_pool_at", "at", "plain", "plain_at", "pools", "state", "words")

    def __init__(self, section: bytes, pools: list[bytes]) -> None:
        if len(section) < 4:
            refuse("the symbols are cut short")
        self.state, *self.words = struct.unpack_from(f"<I{len(section) // 2 - 2}H", section)
        if self.state < _LOW:
            refuse("a coder state below its range")
        self.at = 0
        self.plain = bin(int.from_bytes(b"\1" + section, "big"))[3:]
        self.plain_at = len(self.plain)
        self.pools = pools
        self._pool_at = [0] * POOLS

    def symbol(self, table: Table, value: int = 0) -> int:  # noqa: ARG002
        low = self.state & _MASK
        symbol = bisect_right(table.starts, low) - 1
        freq, start = table.spans[symbol]
        self._advance(freq, low - start)
        log = table.log
        log.append(symbol)
        if len(log) >= table.due:
            table.rebuild()
        return symbol

    def number(self, table: Table, value: int = 0) -> int:  # noqa: ARG002
        symbol = self.symbol(table)
        if symbol >= BIG:
            if symbol == ESCAPE:
                refuse("an escape where an integer belongs")
            return self.big()
        extra = EXTRA_BITS[symbol]
        magnitude = SYMBOL_BASE[symbol] + (self.bits(extra) if extra else 0)
        return magnitude * SYMBOL_SIGN[symbol]

    def escapable(self, table: Table, value: int | None = None) -> int | None:  # noqa: ARG002
        symbol = self.symbol(table)
        if symbol == ESCAPE:
            return None
        if symbol == BIG:
            return self.big()
        extra = EXTRA_BITS[symbol]
        magnitude = SYMBOL_BASE[symbol] + (self.bits(extra) if extra else 0)
        return magnitude * SYMBOL_SIGN[symbol]

    def below(self, bound: int, value: int = 0) -> int:
        if bound > SCALE:
            value = self.bits((bound - 1).bit_length())
            if value >= bound:
                refuse("an index past its table")
            return value
        share = SCALE // bound
        last = bound - 1
        low = self.state & _MASK
        value = min(low // share, last)
        self._advance(share if value < last else SCALE - share * last, low - share * value)
        return value

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:  # noqa: ARG002
        at = self._pool_at[pool]
        data = self.pools[pool]
        if not 0 <= length <= len(data) - at:
            refuse("a length past the end of its bytes")
        self._pool_at[pool] = at + length
        return data[at : at + length]

    def bits(self, count: int) -> int:
        """Return the next `count` plain bits."""
        end = self.plain_at
        begin = end - count
        if begin < 32:
            refuse("the plain bits end too early")
        self.plain_at = begin
        return int(self.plain[begin:end], 2)

    def big(self) -> int:
        """Return the integer behind the symbol `BIG`."""
        head = self.bits(7)
        bits = head & 0x3F
        if not bits:
            refuse("an integer of no bits")
        magnitude = 1 << (bits - 1) | (self.bits(bits - 1) if bits > 1 else 0)
        return -magnitude if head & 0x40 else magnitude

    def close(self) -> None:
        """Prove that all was read: the state is where the encoder began, nothing is left."""
        words_end = 32 + 16 * self.at
        left = self.plain[words_end : self.plain_at]
        if self.state != _LOW or not words_end <= self.plain_at < words_end + 8 or "1" in left:
            refuse("symbols left over")
        if any(at != len(data) for at, data in zip(self._pool_at, self.pools, strict=True)):
            refuse("bytes left over")

    def _advance(self, freq: int, offset: int) -> None:
        state = freq * (self.state >> SCALE_BITS) + offset
        if state < _LOW:
            if self.at >= len(self.words):
                refuse("the symbols end too early")
            state = state << 16 | self.words[self.at]
            self.at += 1
        self.state = state
