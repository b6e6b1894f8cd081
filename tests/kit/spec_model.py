"""What `tests/kit/spec_decoder.py` keeps and computes: the specification's tables and contexts.

Written from docs/link-format-structured.md alone; shares no code with `bridge/structured/`. Section
numbers are the specification's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "ENUM",
    "Chain",
    "Column",
    "Context",
    "Family",
    "OutsideError",
    "Reading",
    "Section",
    "Source",
    "Template",
    "expect_arrivals",
    "note_arrival",
    "note_residual",
    "parse_value",
    "predict",
    "print_value",
    "residual_prior",
]

# time, flags, topic, device, payload
Reading = tuple[int, int, str, str, bytes]
_AFTER_SIZE = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 10, 10, 10, 11, 11, 11, 11, 12, 12, 12, 12]
_ESCAPE, _BIG = 62, 61
_LETTERS = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
_ALPHABETS = [
    b"",
    b"0123456789",
    b"0123456789abcdef",
    b"0123456789ABCDEF",
    b"0123456789ABCDEFGHJKMNPQRSTVWXYZ",
    _LETTERS + b"+/",
    _LETTERS + b"-_",
]


class OutsideError(Exception):
    """Something the format has and this decoder has not."""


# ---- 3.2, 3.3 ------------------------------------------------------------------------------------


def _scaled(weights: list[int]) -> list[int]:
    freqs = [1 + w * (16384 - len(weights)) // sum(weights) for w in weights]
    freqs[weights.index(max(weights))] += 16384 - sum(freqs)
    return freqs


def _symbol_size(symbol: int) -> int:
    if symbol == _BIG:
        return 21
    if symbol == _ESCAPE:
        return 0
    if symbol < 17:
        return ((symbol + 1) // 2).bit_length()
    return 4 + (symbol - 17) // 4 if symbol < 37 else 9 + (symbol - 37) // 2


def residual_prior(context: int) -> list[int]:
    if context < 13:
        e = max(size for size in range(22) if _AFTER_SIZE[size] == context)
        by_size = [4096 >> min(12, abs(size - e)) for size in range(22)]
    else:
        by_size = [4096] + [512] * 12 + [64] * 9
    sizes = [_symbol_size(symbol) for symbol in range(62)]
    weights = [by_size[size] // sizes.count(size) + 1 for size in sizes]
    return [*weights, 4096 if context == 13 else 64]


class Table:
    def __init__(self, prior: list[int]) -> None:
        self.prior = _scaled(prior)
        self.freqs = self.prior
        self.counts = [0] * len(prior)
        self.log: list[int] = []
        self.due = 16

    def rebuild(self) -> None:
        for symbol in self.log:
            self.counts[symbol] += 1
        self.log = []
        if sum(self.counts) > 1024:
            self.counts = [count // 2 for count in self.counts]
        self.due = max(16, min(256, sum(self.counts) // 2))
        self.freqs = _scaled([p + 2048 * c for p, c in zip(self.prior, self.counts, strict=True)])


class Chain:
    def __init__(self, priors: list[list[int]]) -> None:
        self.tables = [Table(prior) for prior in priors]
        self.noted = 0


_HEAD, _CHOICE, _MASK = [2048, 128, 128, 128], [64, 32, 32, 32], [16] * 64
_FOLLOWER, ENUM, _ANY = [64] + [16] * 13, [64] * 32, residual_prior(14)


def _by_size(count: int) -> list[list[int]]:
    return [residual_prior(min(n, 12)) for n in range(count)]


# ---- 1 -------------------------------------------------------------------------------------------


class TextModel:
    def __init__(self) -> None:
        self.tables = [Table(_ANY) for _ in range(3)]
        self.last = [0, 0, 0]


@dataclass(eq=False)
class Source:
    topic: str
    device: str
    mode: int = 0
    last: int = 0
    gap: int = 0
    gap_size: int = 0
    phase: int = 0
    period: int = 0
    gain: int = 1
    strayed: int = 0
    spread: int = 24
    multiple: int = 1
    burst: int = 0
    burst_length: int = 0
    absent: int = 0
    awake: bool = False
    head: int = 0
    template: int = -1
    after: dict[int, int] = field(default_factory=dict)
    flags: int = 0
    block: bytes = b""
    length: int = 0

    @property
    def margin(self) -> int:
        return min(self.period >> 1, 4 << (self.spread >> 2) << 8)

    @property
    def steady(self) -> bool:
        return self.mode == 1 and self.multiple == 1 and 4 * self.margin < self.period

    @property
    def wake(self) -> float:
        return (self.phase + self.period - self.margin) >> 8 if self.steady else -math.inf


@dataclass(eq=False)
class Column:
    kind: int = 2
    hot: bool = False
    printer: tuple[Any, ...] = ()
    predictor: int = 0
    param: tuple[int, ...] = ()
    ref: int = -1
    chain: Chain | None = None
    contexts: dict[int, int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)
    aux: dict[int, int] = field(default_factory=dict)
    recent: int = 0
    recent_aux: int = 0
    texts: list[bytes] = field(default_factory=list)
    escapes: Table = field(default_factory=lambda: Table(_ANY))
    model: TextModel = field(default_factory=TextModel)
    recent_text: bytes = b""
    last_texts: dict[int, bytes] = field(default_factory=dict)


class Family:
    def __init__(self) -> None:
        self.columns: list[Column] = []
        self.fragments: list[bytes] = []
        self.followers: dict[int, list[int]] = defaultdict(list)
        self.repeated: set[int] = set()
        self.next_column: dict[int, int] = {}
        self.slots = 0
        self.masks: list[list[int]] = []
        self.mask_table = Table(_MASK)
        self.instances: dict[int, dict[int, bytes]] = {}  # by id of the source
        self.cells: dict[int, int] = {}

    def order(self) -> list[int]:
        out: list[int] = []
        while len(out) < len(self.columns):
            for index, column in enumerate(self.columns):
                if index not in out and (column.ref < 0 or column.ref in out):
                    out.append(index)
        return out


@dataclass(eq=False)
class Template:
    family: Family
    number: int
    fragments: list[int]
    columns: list[int]

    def payload(self, tokens: dict[int, bytes]) -> bytes:
        texts = [self.family.fragments[fragment] for fragment in self.fragments]
        middle = [tokens[column] for column in self.columns]
        return b"".join(a + b for a, b in zip(texts, [*middle, b""], strict=True))


class Context:
    def __init__(self) -> None:
        self.sources: list[Source] = []
        self.awake: list[Source] = []
        self.families: list[Family] = []
        self.ring: dict[int, Template] = {}
        self.next_template = 0
        self.blocks: list[bytes] = []
        self.history = b""
        self.last_time = self.period = 0
        some: dict[str, tuple[int, list[int]]] = {
            "schema": (20, _ANY),
            "arrivals": (10, _ANY),
            "multiples": (16, _ANY),
            "order": (3, _ANY),
            "decimals": (2, _ANY),
            "fragment_choice": (13, _FOLLOWER),
            "span": (1, _ANY),
            "lengths": (1, _ANY),
            "explicit": (1, _HEAD),
            "family_choice": (1, _CHOICE),
            "column_choice": (1, _CHOICE),
            "template_choice": (1, _CHOICE),
            "meta_choice": (1, _CHOICE),
        }
        self.t = {name: [Table(prior) for _ in range(n)] for name, (n, prior) in some.items()}
        self.t["gaps"] = [Table(prior) for prior in _by_size(22)]
        self.t["strides"] = [Table(prior) for prior in _by_size(16)]
        self.counts = Chain([_ANY] * 36)
        self.phases = Chain(_by_size(16))
        self.heads = Chain([_HEAD] * 4)
        self.m = {name: TextModel() for name in ("topic", "device", "literal", "block", "spelling")}


# ---- 3.1 -----------------------------------------------------------------------------------------


class Section:
    def __init__(self, data: bytes, pools: list[bytes]) -> None:
        self.state = int.from_bytes(data[:4], "little")
        self.data, self.at, self.pools = data, 4, [*pools]
        self.bits = "".join(f"{byte:08b}" for byte in data)

    def _take(self, freqs: list[int]) -> int:
        low, start, symbol = self.state % 16384, 0, 0
        while low >= start + freqs[symbol]:
            start += freqs[symbol]
            symbol += 1
        self.state = freqs[symbol] * (self.state >> 14) + low - start
        if self.state < 1 << 16:
            word = int.from_bytes(self.data[self.at : self.at + 2], "little")
            self.state, self.at = self.state << 16 | word, self.at + 2
        return symbol

    def symbol(self, table: Table) -> int:
        symbol = self._take(table.freqs)
        table.log.append(symbol)
        if len(table.log) >= table.due:
            table.rebuild()
        return symbol

    def plain(self, n: int) -> int:
        taken, self.bits = (self.bits[-n:], self.bits[:-n]) if n else ("0", self.bits)
        return int(taken, 2)

    def uniform(self, b: int) -> int:
        if b > 16384:
            return self.plain((b - 1).bit_length())
        share = 16384 // b
        return self._take([share] * (b - 1) + [16384 - share * (b - 1)])

    def piece(self, pool: int, n: int) -> bytes:
        taken, self.pools[pool] = self.pools[pool][:n], self.pools[pool][n:]
        return taken

    def integer(self, symbol: int) -> int | None:
        if symbol == _ESCAPE:
            return None
        if symbol < 17:
            return (symbol + 1) // 2 if symbol % 2 else -symbol // 2
        if symbol == _BIG:
            head = self.plain(7)
            n = head & 63
            return (-1 if head & 64 else 1) * (1 << (n - 1) | self.plain(n - 1))
        size = _symbol_size(symbol)
        if size <= 8:
            value = (2 + (symbol - 17) // 2 % 2) << (size - 2) | self.plain(size - 2)
        else:
            value = 1 << (size - 1) | self.plain(size - 1)
        return value if symbol % 2 else -value

    def maybe(self, table: Table) -> int | None:
        return self.integer(self.symbol(table))

    def number(self, table: Table) -> int:
        value = self.maybe(table)
        assert value is not None
        return value

    def chain(
        self, chain: Chain, contexts: dict[int, int], cells: list[int], *, numbers: bool
    ) -> list[int]:
        out = []
        for start in range(0, len(cells), 128):
            some = cells[start : start + 128]
            for cell in some:
                table = chain.tables[contexts.get(cell, 14 if numbers else 0)]
                symbol = self._take(table.freqs)
                table.log.append(symbol)
                after = 13 if symbol == _ESCAPE else _AFTER_SIZE[min(_symbol_size(symbol), 21)]
                contexts[cell] = after if numbers else symbol
                out.append(symbol)
            chain.noted += len(some)
            if chain.noted >= 48:
                chain.noted = 0
                for table in chain.tables:
                    if len(table.log) >= table.due:
                        table.rebuild()
        return out

    def residuals(
        self, chain: Chain, contexts: dict[int, int], cells: list[int]
    ) -> list[int | None]:
        return [self.integer(s) for s in self.chain(chain, contexts, cells, numbers=True)]

    def text(self, m: TextModel, ref: bytes, alphabet: int = 0) -> bytes:
        prefix = m.last[0] + self.number(m.tables[0])
        suffix = m.last[1] + self.number(m.tables[1])
        step = self.maybe(m.tables[2])
        length = self.number(m.tables[2]) if step is None else m.last[2] + step
        m.last = [prefix, suffix, length]
        replaced = ref[prefix : len(ref) - suffix]
        middle = b""
        if alphabet and step is not None and length:
            middle = self._packed(_ALPHABETS[alphabet], length, replaced)
        else:
            middle = self.piece(0, length)
        return ref[:prefix] + middle + ref[len(ref) - suffix :]

    def _packed(self, members: bytes, length: int, replaced: bytes) -> bytes:
        like = replaced if len(replaced) == length else members[:1] * length
        k = sum(byte in members for byte in like)
        base = len(members)
        if base == 64:
            packed = self.piece(1, (6 * k + 7) // 8)
            bits = "".join(f"{byte:08b}" for byte in packed)
            rest = iter([members[int(bits[at : at + 6], 2)] for at in range(0, 6 * k, 6)])
        else:
            bits_of = {10: (10**k - 1).bit_length(), 16: 4 * k, 32: 5 * k}
            value = int.from_bytes(self.piece(1, (bits_of[base] + 7) // 8), "big")
            rest = iter([members[value // base ** (k - 1 - at) % base] for at in range(k)])
        return bytes([next(rest) if byte in members else byte for byte in like])


# ---- 5.2 -----------------------------------------------------------------------------------------


def print_value(printer: tuple[Any, ...], value: int) -> bytes:
    kind, digits, _, prefix, suffix = printer
    if kind > 3:
        raise OutsideError("other printers")
    if kind == 3:
        core = f"{value:0{digits}d}"
    else:
        text = f"{abs(value):0{digits + 1}d}"
        core = ("-" if value < 0 else "") + text[: len(text) - digits]
        fraction = text[len(text) - digits :]
        if kind:
            fraction = fraction.rstrip("0")
        if kind == 2 and not fraction:
            fraction = "0"
        core += "." + fraction if fraction else ""
    return bytes(prefix) + core.encode() + bytes(suffix)


def parse_value(printer: tuple[Any, ...], token: bytes) -> int | None:
    """Return the value a token is printed from, None if there is none."""
    _, digits, _, prefix, suffix = printer
    core = token[len(prefix) : len(token) - len(suffix)].decode(errors="replace")
    whole, _, fraction = core.partition(".")
    try:
        value = int(whole.lstrip("-") + fraction.ljust(digits, "0")[:digits])
    except ValueError:
        return None
    value = -value if core.startswith("-") else value
    return value if print_value(printer, value) == token and abs(value) < 1 << 61 else None


# ---- 5.3 -----------------------------------------------------------------------------------------


def predict(column: Column, cell: int, time: int, ref: int | None, step: int) -> int:
    kind, param = column.predictor, (*column.param, 0, 0)
    known = cell in column.last
    last = column.last.get(cell, column.recent)
    aux = column.aux.get(cell)
    m = column.recent_aux if aux is None else aux
    p = last
    by = time if kind == 3 else ref
    if kind == 1 and known:
        p = last + m
    elif kind == 2:
        m = 16 * last if aux is None and known else m
        p = (m + 8) >> 4
    elif kind in (3, 8) and by is not None:
        p = min(max((by * param[0] + m) // param[1], -(1 << 62)), 1 << 62)
    elif kind == 4 and ref is not None:
        p = ref + m
    elif kind == 5 and known and ref is not None and aux:
        p = min(max((2 * last * ref + aux) // (2 * aux), -(1 << 62)), 1 << 62)
    elif kind == 6 and aux is not None:
        p = aux
    v = p + step
    new: int | None = None
    if kind == 1 and known:
        new = v - last
    elif kind == 2:
        new = m + ((16 * v - m) >> param[0]) if known else 16 * v
    elif kind in (3, 8) and by is not None:
        new = v * param[1] + (param[1] // 2) - by * param[0]
        if aux is not None and abs(new - aux) < 64 * param[1]:
            new = aux + ((new - aux) >> 2)
    elif kind == 4 and ref is not None:
        new = v - ref
    elif kind in (5, 6) and ref is not None:
        new = ref
    if new is not None:
        column.aux[cell] = new
        if kind not in (5, 6):
            column.recent_aux = new
    column.last[cell] = column.recent = v
    return v


# ---- 6.1 -----------------------------------------------------------------------------------------


def expect_arrivals(source: Source, start: int, end: int) -> tuple[int, int]:
    if source.steady:
        n, r = divmod(256 * end - source.phase, source.period)
        if n < 0:
            return 0, 0
        doubt = 1 if r < source.margin else 2 if source.period - r < source.margin else 0
        return min(n, 64) * (source.burst_length + 1), 3 * min(n, 3) + doubt
    window = 8 * max(0, end - max(source.last, start)) // (source.gap + 1)
    return 0, (24 if source.mode else 12) + min(11, window.bit_length())


def note_arrival(source: Source, time: int) -> None:
    source.gap += (max(time - source.last, 0) - source.gap) >> 2
    source.last = time


def note_residual(source: Source, time: int, r: int, m: int) -> None:
    s = source.phase + m * source.period
    e = 256 * time - s
    bound = 3 << (source.spread >> 2) << 8
    if abs(e) <= bound or source.gain <= 2:
        source.strayed = 0
        n = source.gain = min(source.gain + 1, 16)
        source.phase = s + e * (4 * n - 2) // (n * n + n)
        if m > 0 and source.mode == 1:
            period = source.period + 6 * e // ((n * n + n) * m)
            source.period = min(max(period, 256), 1 << 54)
    else:
        source.strayed += 1
        n = source.gain
        if source.strayed == 3:
            source.strayed, source.gain, source.phase = 0, 1, 256 * time
        else:
            sign = 1 if e > 0 else -1
            source.phase = s + sign * (bound // 2) * (4 * n - 2) // (n * n + n)
    source.multiple = m
    z = 4 * r.bit_length()
    if z > source.spread:
        source.spread += (min(z, 56) - source.spread + 3) >> 2
    else:
        source.spread += (z - source.spread) >> 2
