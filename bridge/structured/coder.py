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
import sys
from typing import NoReturn, Protocol

from bridge.errors import BatchError
from bridge.structured.kernel import (
    STATE_BITS,
    STATE_LOW,
    Maybe,
    bits_of,
    integers_of,
    pack_symbols,
    read_chain,
    read_integer,
    read_symbol,
    symbols_of,
    write_chain,
    write_integer,
    write_symbol,
)
from bridge.structured.limits import ENUM_VALUES
from bridge.structured.symbols import (
    CONTEXT_AFTER,
    ESCAPE,
    SCALE,
    SCALE_BITS,
    SPAN_BITS,
    Spans,
)
from bridge.structured.tables import Chain, Table

__all__ = ["POOLS", "SAME", "Coder", "Pool", "Reader", "Writer", "refuse"]

_MASK = SCALE - 1

SAME = list(range(ENUM_VALUES + 1))  # the context behind a symbol is the symbol

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

    def chain(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        symbols: list[int] | None = None,
        after: list[int] = SAME,
    ) -> list[int]:
        """Code a symbol a cell, each by the table its cell's last one chose: `after` by symbol."""
        ...

    def residuals(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        steps: list[Maybe] | None = None,
    ) -> list[Maybe]:
        """Code an integer or None a cell, by the table its cell's last one chose by its size."""
        ...

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:
        """Code `length` bytes beside the symbols, in one of the byte pools."""
        ...

    def take_text(self, size: int) -> None:
        """Count a text that is about to be made; a reader refuses what passes its bound."""
        ...


class Writer:
    """Collects what a body is to say; `section` turns it into bytes.

    Attributes:
        spans: The span of every symbol (`symbols.Spans`), in order; the kernel appends here.
        plain: Plain bits as signs 0 and 1, backwards: of each value the lowest first.
        pools: The byte pools.
    """

    __slots__ = ("plain", "pools", "spans")

    def __init__(self) -> None:
        self.spans: Spans = []
        self.plain = bytearray()
        self.pools = [bytearray() for _ in range(POOLS)]

    def symbol(self, table: Table, value: int = 0) -> int:
        write_symbol(self.spans, table, value)
        return value

    def number(self, table: Table, value: int = 0) -> int:
        write_integer(self.spans, self.plain, table, value)
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
            self.spans.append(share * value << SPAN_BITS | freq)
        else:
            self.bits((bound - 1).bit_length(), value)
        return value

    def chain(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        symbols: list[int] | None = None,
        after: list[int] = SAME,
    ) -> list[int]:
        assert symbols is not None
        write_chain(self.spans, chain, contexts, cells, symbols, after)
        return symbols

    def residuals(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        steps: list[Maybe] | None = None,
    ) -> list[Maybe]:
        assert steps is not None
        self.chain(chain, contexts, cells, symbols_of(steps, self.plain), CONTEXT_AFTER)
        return steps

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:  # noqa: ARG002
        self.pools[pool] += value
        return value

    def take_text(self, size: int) -> None:
        pass

    def bits(self, count: int, value: int) -> None:
        """Code the low `count` bits of `value`."""
        self.plain += bits_of(count, value)

    def section(self) -> bytes:
        """Return the final state, the words as a decoder takes them, and the plain bits."""
        plain = self.plain[::-1]
        tail = int(plain, 2).to_bytes((len(plain) + 7) // 8, "big") if plain else b""
        return pack_symbols(self.spans) + tail


class Reader:
    """Takes a body apart, in step with what its `Writer` was told.

    Attributes:
        state: The coder's state.
        words: The words; `at` is the place of the next one.
        plain: The whole section as a text of 0 and 1; `plain_at` is the end of the next plain bits.
        pools: The byte pools, unpacked.
        texts_left: How many bytes of texts may still be made: one that is like another takes next
            to nothing of the body.
    """

    __slots__ = ("_pool_at", "at", "plain", "plain_at", "pools", "state", "texts_left", "words")

    def __init__(self, section: bytes, pools: list[bytes], texts_left: int = sys.maxsize) -> None:
        if len(section) < 4:
            refuse("the symbols are cut short")
        self.state, *self.words = struct.unpack_from(f"<I{len(section) // 2 - 2}H", section)
        if self.state < STATE_LOW:
            refuse("a coder state below its range")
        self.at = 0
        self.plain = bin(int.from_bytes(b"\1" + section, "big"))[3:]
        self.plain_at = len(self.plain)
        self.pools = pools
        self.texts_left = texts_left
        self._pool_at = [0] * POOLS

    def symbol(self, table: Table, value: int = 0) -> int:  # noqa: ARG002
        try:
            return read_symbol(self, table)
        except EOFError as error:
            refuse(str(error))

    def number(self, table: Table, value: int = 0) -> int:  # noqa: ARG002
        found = self.escapable(table)
        if found is None:
            refuse("an escape where an integer belongs")
        return found

    def escapable(self, table: Table, value: int | None = None) -> int | None:  # noqa: ARG002
        try:
            return read_integer(self, table)
        except EOFError as error:
            refuse(str(error))

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
        try:
            self.advance(share if value < last else SCALE - share * last, low - share * value)
        except EOFError as error:
            refuse(str(error))
        return value

    def chain(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        symbols: list[int] | None = None,  # noqa: ARG002
        after: list[int] = SAME,
    ) -> list[int]:
        try:
            return read_chain(self, chain, contexts, cells, after)
        except EOFError as error:
            refuse(str(error))

    def residuals(
        self,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        steps: list[Maybe] | None = None,  # noqa: ARG002
    ) -> list[Maybe]:
        symbols = self.chain(chain, contexts, cells, None, CONTEXT_AFTER)
        try:
            out, self.plain_at = integers_of(symbols, self.plain, self.plain_at)
        except EOFError as error:
            refuse(str(error))
        return out

    def piece(self, pool: Pool, length: int, value: bytes = b"") -> bytes:  # noqa: ARG002
        at = self._pool_at[pool]
        data = self.pools[pool]
        if not 0 <= length <= len(data) - at:
            refuse("a length past the end of its bytes")
        self._pool_at[pool] = at + length
        return data[at : at + length]

    def take_text(self, size: int) -> None:
        self.texts_left -= size
        if self.texts_left < 0:
            refuse("the texts would be more than allowed")

    def bits(self, count: int) -> int:
        """Return the next `count` plain bits."""
        end = self.plain_at
        begin = end - count
        if begin < STATE_BITS:
            refuse("the plain bits end too early")
        self.plain_at = begin
        return int(self.plain[begin:end], 2)

    def close(self) -> None:
        """Prove that all was read: the state is where the encoder began, nothing is left."""
        words_end = 32 + 16 * self.at
        left = self.plain[words_end : self.plain_at]
        if self.state != STATE_LOW or not words_end <= self.plain_at < words_end + 8 or "1" in left:
            refuse("symbols left over")
        if any(at != len(data) for at, data in zip(self._pool_at, self.pools, strict=True)):
            refuse("bytes left over")

    def advance(self, freq: int, offset: int) -> None:
        """Take the state on by a symbol of that frequency, `offset` past its start.

        Raises:
            EOFError: the words end too early.
        """
        state = freq * (self.state >> SCALE_BITS) + offset
        if state < STATE_LOW:
            if self.at >= len(self.words):
                raise EOFError("the symbols end too early")
            state = state << 16 | self.words[self.at]
            self.at += 1
        self.state = state
