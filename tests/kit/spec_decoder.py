"""A second decoder of the structured body, written from docs/link-format-structured.md alone.

It checks that text, not bodies: no limits, no refusals, and only a part of the format (no framed
templates, printers above 3, SIBLING or snapshots: `OutsideError`). It shares no code with
`bridge/structured/`. Section numbers are the specification's.
"""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import zstandard

__all__ = ["OutsideError", "Reading", "SpecDecoder"]

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


def _residual_prior(context: int) -> list[int]:
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
_FOLLOWER, _ENUM, _ANY = [64] + [16] * 13, [64] * 32, _residual_prior(14)


def _by_size(count: int) -> list[list[int]]:
    return [_residual_prior(min(n, 12)) for n in range(count)]


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


# ---- the rest ------------------------------------------------------------------------------------


class SpecDecoder:
    """Decodes the bodies of one connection."""

    def __init__(self) -> None:
        self.contexts: dict[int, Context] = {}

    def decode(self, body: bytes, count: int) -> list[Reading]:
        """Return the readings of a body in order of seq."""
        head = body[0]
        which = head >> 4 & 1
        if head & 0x20:
            raise OutsideError("snapshots")
        if head & 1:
            if not which:
                self.contexts = {}
            self.contexts[which] = Context()
        self.c = self.contexts[which]
        self.io = self._section(body)
        self._change_modes()
        self._change_columns()
        arrivals = self._arrivals(count)
        times = [(time, source) for source, some in arrivals for time in some]
        order = self._order([time for time, _ in times])
        flags, payloads = self._readings(arrivals)
        assert self.io.state == 1 << 16
        assert not any(self.io.pools)
        return [
            (times[at][0], flags[at], times[at][1].topic, times[at][1].device, payloads[at])
            for at in order
        ]

    def _section(self, body: bytes) -> Section:
        at, pools = 1, [b"", b"", b""]
        for pool in range(3):
            if body[0] >> (1 + pool) & 1:
                value = shift = 0
                while True:
                    byte, at = body[at], at + 1
                    value |= (byte & 127) << shift
                    shift += 7
                    if byte < 128:
                        break
                stored, at = body[at : at + (value >> 2)], at + (value >> 2)
                pools[pool] = self._pool(stored, value & 3)
        self.c.history = (self.c.history + pools[0] + pools[2])[-32768:]
        return Section(body[at:], pools)

    def _pool(self, stored: bytes, method: int) -> bytes:
        if method == 0:
            return stored
        form = zstandard.FORMAT_ZSTD1_MAGICLESS
        if method == 1:
            return zstandard.ZstdDecompressor(format=form).decompress(stored)
        raw = zstandard.DICT_TYPE_RAWCONTENT
        known = zstandard.ZstdCompressionDict(self.c.history, dict_type=raw)
        return zstandard.ZstdDecompressor(format=form, dict_data=known).decompress(stored)

    def _number(self, table: str, place: int = 0) -> int:
        return self.io.number(self.c.t[table][place])

    # ---- 4 ----

    def _define_source(self) -> Source:
        kept = self._number("schema", 0) == 0
        near = self.c.sources[-1] if self.c.sources else Source("", "")
        topic = self.io.text(self.c.m["topic"], near.topic.encode()).decode()
        level = self._number("schema", 1)
        if level:
            device = topic.split("/", 254)[level - 1]
        else:
            device = self.io.text(self.c.m["device"], near.device.encode()).decode()
        source = Source(topic, device)
        if kept:
            self.c.sources.append(source)
        return source

    def _define_template(self, near: Template | None) -> int:
        io, c = self.io, self.c
        choice = io.symbol(c.t["family_choice"][0])
        if choice == 2:
            c.families.append(Family())
        family = c.families[-1]
        if choice == 0:
            assert near is not None
            family = near.family
        elif choice == 1:
            family = c.families[io.uniform(len(c.families))]
        family.slots += self._number("schema", 12)
        if self._number("schema", 13) == 1:
            raise OutsideError("framed templates")
        fragments: list[int] = []
        columns: list[int] = []
        for slot in range(family.slots + 1):
            before = fragments[-1] if fragments else -1
            follow = family.followers[before]
            likely = [f for f in follow if f not in fragments or f in family.repeated]
            choice = io.symbol(c.t["fragment_choice"][len(likely)])
            if choice < 12:
                at = likely[choice]
            elif choice == 12:
                at = io.uniform(len(family.fragments))
            else:
                ref = family.fragments[before] if before >= 0 else b""
                at = len(family.fragments)
                family.fragments.append(io.text(c.m["literal"], ref))
            if at in follow:
                follow.remove(at)
            follow.insert(0, at)
            del follow[12:]
            if at in fragments:
                family.repeated.add(at)
            fragments.append(at)
            if slot < family.slots:
                columns.append(self._slot(family, at))
        place = c.next_template
        c.ring[place] = Template(family, place, fragments, columns)
        c.next_template = (place + 1) % 4096
        return place

    def _slot(self, family: Family, fragment: int) -> int:
        choice = self.io.symbol(self.c.t["column_choice"][0])
        if choice == 0:
            return family.next_column[fragment]
        if choice == 1:
            at = self.io.uniform(len(family.columns))
        else:
            at = len(family.columns)
            family.columns.append(Column())
            self._apply(family, at)
        family.next_column[fragment] = at
        return at

    def _change_columns(self) -> None:
        at = 0
        for _ in range(self._number("schema", 14)):
            at += self._number("schema", 11)
            self._apply(self.c.families[at], self._number("schema", 15))

    def _apply(self, family: Family, place: int) -> None:
        column = family.columns[place]
        kind = self._number("schema", 2)
        hot = self._number("schema", 3) == 1
        printer: tuple[Any, ...] = ()
        predictor, param, ref = 0, (), -1  # type: tuple[int, tuple[int, ...], int]
        if kind == 2:
            printer = (self._number("schema", 4),)
        elif kind == 0:
            spell = [self._number("schema", 5), self._number("schema", 6)]
            texts = [self.io.piece(0, self._number("schema", 7)) for _ in range(3)]
            printer = (*spell, *texts)
            predictor = self._number("schema", 8)
            if predictor == 7:
                raise OutsideError("siblings")
            if predictor in (4, 5, 6, 8):
                ref = self._number("schema", 10)
            n = {2: 1, 3: 2, 8: 2}.get(predictor, 0)
            param = tuple(self._number("schema", 9) for _ in range(n))
        spelled = (column.kind, column.printer) != (kind, printer)
        predicted = (column.predictor, column.param, column.ref) != (predictor, param, ref)
        column.kind, column.printer, column.predictor = kind, printer, predictor
        column.param, column.ref = param, ref
        if spelled:
            column.texts, column.last, column.recent = [], {}, 0
            if kind == 2:
                column.last_texts = {}
            for source, cell in family.cells.items():
                token = family.instances[source].get(place)
                if token is not None and kind == 2:
                    column.last_texts[cell] = token
                elif token is not None and kind == 0:
                    value = _parsed(column.printer, token)
                    if value is not None:
                        column.last[cell] = value
        if spelled or predicted:
            column.chain, column.aux, column.recent_aux, column.contexts = None, {}, 0, {}
        if column.hot != hot:
            column.hot, family.masks = hot, []

    # ---- 6.1 ----

    def _change_modes(self) -> None:
        at = 0
        for _ in range(self._number("arrivals", 0)):
            at += self._number("arrivals", 1)
            source = self.c.sources[at]
            source.mode = self._number("arrivals", 2)
            if source.mode:
                self.c.period += self._number("arrivals", 3)
                source.period, source.phase, source.gain = self.c.period, 256 * source.last, 1
                source.burst = source.burst_length = 0

    def _arrivals(self, count: int) -> list[tuple[Source, list[int]]]:
        c = self.c
        start = c.last_time
        end = start + self._number("span")
        due = [source for source in c.awake if source.wake <= end]
        both = [_expected(source, start, end) for source in due]
        contexts = {place: table for place, (_, table) in enumerate(both)}
        steps = self.io.residuals(c.counts, contexts, list(range(len(due))))
        entries = []
        for source, (e, _), step in zip(due, both, steps, strict=True):
            assert step is not None
            if e + step:
                source.absent = 0
                entries.append((source, e + step))
            elif not (source.steady and e <= 1):
                source.absent += 1
        out = self._times(entries)
        for _ in range(self._number("arrivals", 4)):
            source = c.sources[self.io.uniform(len(c.sources))]
            source.absent = 0
            out += self._times([(source, 1 + self._number("arrivals", 5))])
        near = end
        for _ in range(self._number("arrivals", 6)):
            source = self._define_source()
            source.mode = self._number("arrivals", 7)
            found = 1 + self._number("arrivals", 8)
            near += self._number("arrivals", 9)
            source.period, source.last, source.phase = c.period, near, 256 * near
            source.gap, source.gap_size = max(0, end - start), 10
            rest = self._times([(source, found - 1)]) if found > 1 else [(source, [])]
            out.append((source, [near, *rest[0][1]]))
        assert sum(len(times) for _, times in out) == count
        c.last_time = end
        for source in c.awake:
            source.awake = source.absent <= 16
        c.awake = [source for source in c.awake if source.awake]
        for source, _ in out:
            if not source.awake and source in c.sources:
                source.awake, source.absent = True, 0
                c.awake.append(source)
        return out

    def _times(self, entries: list[tuple[Source, int]]) -> list[tuple[Source, list[int]]]:
        out: list[tuple[Source, list[int]]] = [(source, []) for source, _ in entries]
        for turn in range(max((count for _, count in entries), default=0)):
            now = [times for times, (_, n) in zip(out, entries, strict=True) if n > turn]
            first = [s for s, _ in now if s.mode == 1 and s.burst >= s.burst_length]
            contexts = {place: source.spread >> 2 for place, source in enumerate(first)}
            steps = self.io.residuals(self.c.phases, contexts, list(range(len(first))))
            known = {id(s): step for s, step in zip(first, steps, strict=True)}
            for source in first:
                r = known[id(source)]
                if r is not None:
                    if source.burst or source.burst_length:
                        source.burst_length, source.burst = min(source.burst, 15), 0
                    time = ((source.phase + source.period + 128) >> 8) + r
                    _note(source, time, r, 1)
                    _arrived(source, time)
            for source, times in now:
                if known.get(id(source)) is None:
                    _arrived(source, self._other(source, missed=id(source) in known))
                times.append(source.last)
        return out

    def _other(self, source: Source, *, missed: bool) -> int:
        gaps = self.c.t["gaps"]
        if not missed and source.mode == 1:
            g = self.io.maybe(gaps[source.gap_size])
            if g is not None:
                source.burst += 1
                source.gap_size = min(g.bit_length(), 21)
                return source.last + g
            missed = True
        if missed:
            m = self._number("multiples", 0)
            if m:
                source.burst_length, source.burst = min(source.burst, 15), 0
                return self._stride(source, m)
            source.burst += 1
        elif source.mode == 2:
            return self._stride(source, self._number("multiples", min(source.multiple, 15)))
        g = self.io.number(gaps[source.gap_size])
        source.gap_size = min(g.bit_length(), 21)
        return source.last + g

    def _stride(self, source: Source, m: int) -> int:
        r = self._number("strides", source.spread >> 2)
        time = ((source.phase + m * source.period + 128) >> 8) + r
        _note(source, time, r, m)
        return time

    # ---- 6.3 ----

    def _order(self, times: list[int]) -> list[int]:
        by_time = sorted(range(len(times)), key=times.__getitem__)
        way = self._number("order", 0)
        if way == 0:
            return by_time
        runs = [by_time]
        if way == 1:
            runs = [[at for at in by_time if times[at] == time] for time in sorted(set(times))]
        out = []
        for left in runs:
            while len(left) > 1:
                out.append(left.pop(self._number("order", way)))
            out += left
        return out

    # ---- 6.2 ----

    def _readings(self, arrivals: list[tuple[Source, list[int]]]) -> tuple[list[int], list[bytes]]:
        cells = [place for place, (_, times) in enumerate(arrivals) for _ in times]
        contexts = {place: source.head for place, (source, _) in enumerate(arrivals)}
        heads = self.io.chain(self.c.heads, contexts, cells, numbers=False)
        for place, (source, _) in enumerate(arrivals):
            source.head = contexts[place]
        flags: list[int] = []
        rows: dict[int, list[Any]] = defaultdict(list)
        parts: list[Any] = []  # raw payloads, and (template, tokens, changes) to be filled in
        turn = iter(heads)
        for source, times in arrivals:
            for time in times:
                template, head = self._head(source, next(turn))
                flags.append(source.flags)
                if template is None:
                    source.length += self._number("lengths")
                    parts.append(self.io.piece(2, source.length))
                    continue
                parts.append(self._row(source, template, head, time, rows))
        for number in sorted(rows):
            self._columns(self.c.families[number], rows[number])
        payloads = []
        for part in parts:
            if not isinstance(part, bytes):
                template, tokens, changes = part
                tokens.update(changes)
                payloads.append(template.payload(tokens))
            else:
                payloads.append(part)
        return flags, payloads

    def _head(self, source: Source, head: int) -> tuple[Template | None, int]:
        io, c = self.io, self.c
        number = source.after.get(source.template, source.template)
        if head == 3:
            choice = io.symbol(c.t["template_choice"][0])
            if choice == 1:
                number = io.uniform(4096)
            elif choice == 2:
                number = self._define_template(c.ring.get(source.template))
            elif choice == 3:
                number = -1
            meta = c.t["meta_choice"][0]
            if io.symbol(meta):
                source.flags = io.uniform(16)
            if source.flags & 8:
                self._block(source, io.symbol(meta))
            head = -1
        if source.template != number or source.after:
            if len(source.after) > 64:
                source.after = {}
            source.after[source.template] = number
            source.template = number
        if head < 0:
            head = io.symbol(c.t["explicit"][0])
        return (c.ring[number] if number >= 0 else None), head

    def _block(self, source: Source, choice: int) -> None:
        if choice == 1:
            source.block = self.c.blocks[self.io.uniform(len(self.c.blocks))]
        elif choice == 2:
            source.block = self.io.text(self.c.m["block"], source.block)
            if len(self.c.blocks) < 255 and len(source.block) <= 512:
                self.c.blocks.append(source.block)

    def _row(
        self, source: Source, template: Template, head: int, time: int, rows: dict[int, list[Any]]
    ) -> Any:
        family = template.family
        cell = family.cells.setdefault(id(source), len(family.cells))
        tokens = family.instances.setdefault(id(source), {})
        changes: dict[int, bytes] = {}
        coded: list[int] = []
        if head == 2:
            place = self.io.symbol(family.mask_table)
            if place:
                coded += family.masks[place - 1]
            else:
                n = self._number("lengths")
                coded += [self.io.uniform(len(family.columns)) for _ in range(n)]
                if len(family.masks) < 63:
                    family.masks.append([*coded])
        for index in template.columns:
            if index not in tokens:
                tokens[index] = b""
                if not family.columns[index].hot:
                    coded.append(index)
        if head != 1:
            rows[self.c.families.index(family)].append((cell, time, template, coded, changes))
        return template, tokens, changes

    # ---- 5 ----

    def _columns(self, family: Family, rows: list[Any]) -> None:
        known: dict[int, dict[int, int | None]] = {}
        for hot in (True, False):
            for index in family.order():
                column = family.columns[index]
                places = [
                    place
                    for place, (_, _, template, coded, _) in enumerate(rows)
                    if index in (template.columns if hot else coded) and column.hot == hot
                ]
                if places:
                    refs = [known.get(column.ref, {}).get(place) for place in places]
                    tokens, numbers = self._column(column, [rows[p] for p in places], refs)
                    if hot:
                        known[index] = dict(zip(places, numbers, strict=False))
                    for place, token in zip(places, tokens, strict=True):
                        rows[place][4][index] = token

    def _column(
        self, column: Column, rows: list[Any], refs: list[int | None]
    ) -> tuple[list[bytes], list[int | None]]:
        io, cells = self.io, [row[0] for row in rows]
        if column.kind == 2:
            tokens = []
            for cell in cells:
                near = column.last_texts.get(cell, b"") or column.recent_text
                token = io.text(column.model, near, column.printer[0])
                column.last_texts[cell] = column.recent_text = token
                tokens.append(token)
            return tokens, []
        if column.kind == 1:
            for _ in range(self._number("lengths")):
                self._new_text(column)
            column.chain = column.chain or Chain([_ENUM] * 32)
            places = io.chain(column.chain, column.contexts, cells, numbers=False)
            known = [*column.texts]
            return [known[p - 1] if p else self._new_text(column) for p in places], []
        column.chain = column.chain or Chain([_residual_prior(n) for n in range(15)])
        steps = io.residuals(column.chain, column.contexts, cells)
        numbers: list[int | None] = []
        for (cell, time, *_), step, ref in zip(rows, steps, refs, strict=True):
            numbers.append(None if step is None else _predicted(column, cell, time, ref, step))
        return [
            self._escaped(column) if number is None else _printed(column.printer, number)
            for number in numbers
        ], numbers

    def _escaped(self, column: Column) -> bytes:
        k = self.io.number(column.escapes)
        if k > 0:
            return column.texts[k - 1]
        if k == 0:
            return self._new_text(column)
        digits = self._number("decimals", 0)
        return _printed((0, digits, b"", b"", b""), self._number("decimals", 1))

    def _new_text(self, column: Column) -> bytes:
        token = self.io.text(self.c.m["spelling"], column.recent_text)
        column.recent_text = token
        if len(token) <= 64 and len(column.texts) < 31:
            column.texts.append(token)
        return token


# ---- 5.2 -----------------------------------------------------------------------------------------


def _printed(printer: tuple[Any, ...], value: int) -> bytes:
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


def _parsed(printer: tuple[Any, ...], token: bytes) -> int | None:
    """Return the value a token is printed from, None if there is none."""
    _, digits, _, prefix, suffix = printer
    core = token[len(prefix) : len(token) - len(suffix)].decode(errors="replace")
    whole, _, fraction = core.partition(".")
    try:
        value = int(whole.lstrip("-") + fraction.ljust(digits, "0")[:digits])
    except ValueError:
        return None
    value = -value if core.startswith("-") else value
    return value if _printed(printer, value) == token and abs(value) < 1 << 61 else None


# ---- 5.3 -----------------------------------------------------------------------------------------


def _predicted(column: Column, cell: int, time: int, ref: int | None, step: int) -> int:
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


def _expected(source: Source, start: int, end: int) -> tuple[int, int]:
    if source.steady:
        n, r = divmod(256 * end - source.phase, source.period)
        if n < 0:
            return 0, 0
        doubt = 1 if r < source.margin else 2 if source.period - r < source.margin else 0
        return min(n, 64) * (source.burst_length + 1), 3 * min(n, 3) + doubt
    window = 8 * max(0, end - max(source.last, start)) // (source.gap + 1)
    return 0, (24 if source.mode else 12) + min(11, window.bit_length())


def _arrived(source: Source, time: int) -> None:
    source.gap += (max(time - source.last, 0) - source.gap) >> 2
    source.last = time


def _note(source: Source, time: int, r: int, m: int) -> None:
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
