"""A second decoder of the structured body, written from docs/link-format-structured.md alone.

It checks that text, not bodies: no limits, no refusals, and only a part of the format (no framed
templates, printers above 3, SIBLING or snapshots: `OutsideError`). It shares no code with
`bridge/structured/`. Section numbers are the specification's.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import zstandard

from tests.kit.spec_model import (
    ENUM,
    Chain,
    Column,
    Context,
    Family,
    OutsideError,
    Reading,
    Section,
    Source,
    Template,
    expect_arrivals,
    note_arrival,
    note_residual,
    parse_value,
    predict,
    print_value,
    residual_prior,
)

__all__ = ["OutsideError", "Reading", "SpecDecoder"]


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
                    value = parse_value(column.printer, token)
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
        both = [expect_arrivals(source, start, end) for source in due]
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
                    note_residual(source, time, r, 1)
                    note_arrival(source, time)
            for source, times in now:
                if known.get(id(source)) is None:
                    note_arrival(source, self._other(source, missed=id(source) in known))
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
        note_residual(source, time, r, m)
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
            column.chain = column.chain or Chain([ENUM] * 32)
            places = io.chain(column.chain, column.contexts, cells, numbers=False)
            known = [*column.texts]
            return [known[p - 1] if p else self._new_text(column) for p in places], []
        column.chain = column.chain or Chain([residual_prior(n) for n in range(15)])
        steps = io.residuals(column.chain, column.contexts, cells)
        numbers: list[int | None] = []
        for (cell, time, *_), step, ref in zip(rows, steps, refs, strict=True):
            numbers.append(None if step is None else predict(column, cell, time, ref, step))
        return [
            self._escaped(column) if number is None else print_value(column.printer, number)
            for number in numbers
        ], numbers

    def _escaped(self, column: Column) -> bytes:
        k = self.io.number(column.escapes)
        if k > 0:
            return column.texts[k - 1]
        if k == 0:
            return self._new_text(column)
        digits = self._number("decimals", 0)
        return print_value((0, digits, b"", b"", b""), self._number("decimals", 1))

    def _new_text(self, column: Column) -> bytes:
        token = self.io.text(self.c.m["spelling"], column.recent_text)
        column.recent_text = token
        if len(token) <= 64 and len(column.texts) < 31:
            column.texts.append(token)
        return token
