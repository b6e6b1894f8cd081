"""A context as bytes, named by its hash: to compare both ends, and to start a connection warm.

docs/link-format-structured.md section 9. A snapshot is the CBOR of nested arrays, compressed. What
follows from the rest (frequencies, indices, sorted slots) is left out and made anew.

Invariant: `restore(dump(c))` behaves as `c` does, for ever; equal contexts have equal digests.
"""

from __future__ import annotations

from dataclasses import fields
from hashlib import blake2b
from typing import Any

import cbor2
import zstandard

from bridge.structured.context import Column, Context, Family, Source, Template, TextModel
from bridge.structured.forecasts import settle
from bridge.structured.limits import TEMPLATE_RING, StructuredLimits
from bridge.structured.symbols import UNKNOWN_PRIOR
from bridge.structured.tables import Chain, Table

__all__ = ["SnapshotError", "digest", "dump", "restore"]

_VERSION = 1
_SIZE_MAX = 64 << 20
_SOURCE_NUMBERS = (
    "mode",
    "last",
    "gap",
    "gap_size",
    "phase",
    "period",
    "gain",
    "strayed",
    "spread",
    "multiple",
    "burst",
    "burst_length",
    "absent",
    "awake",
    "head",
    "template",
    "flags",
    "length",
)
_CONTEXT_NUMBERS = (
    "next_template",
    "last_time",
    "period",
    "columns",
    "cells",
    "literal_bytes",
)


class SnapshotError(Exception):
    """Bytes that are not a snapshot of this version."""


def digest(context: Context) -> bytes:
    """Return 16 bytes that are equal exactly for equal contexts."""
    return blake2b(_plain(context), digest_size=16).digest()


def dump(context: Context) -> tuple[bytes, bytes]:
    """Return a context's name, which is its digest, and its snapshot."""
    plain = _plain(context)
    name = blake2b(plain, digest_size=16).digest()
    return name, zstandard.ZstdCompressor(level=3).compress(plain)


def restore(name: bytes, data: bytes, limits: StructuredLimits | None = None) -> Context:
    """Return the context of a snapshot.

    Raises:
        SnapshotError: the bytes are not the snapshot of that name.
    """
    try:
        if zstandard.frame_content_size(data) not in range(_SIZE_MAX):
            raise SnapshotError("the snapshot is larger than allowed")
        plain = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
        if blake2b(plain, digest_size=16).digest() != name:
            raise SnapshotError("the snapshot is not the one of that name")
        return _context(cbor2.loads(plain), limits or StructuredLimits())
    except (zstandard.ZstdError, cbor2.CBORError, LookupError, TypeError, ValueError) as error:
        raise SnapshotError(f"not a snapshot: {error}") from error


# ---- out -----------------------------------------------------------------------------------------


def _plain(context: Context) -> bytes:
    return cbor2.dumps(
        [
            _VERSION,
            [getattr(context, name) for name in _CONTEXT_NUMBERS],
            [_put_source(source) for source in context.sources],
            [source.index for source in context.awake],
            [_put_family(family) for family in context.families],
            [_put_template(template) for template in context.templates if template is not None],
            context.blocks,
            context.history,
            [_put_any(getattr(context.tables, item.name)) for item in fields(context.tables)],
        ]
    )


def _put_any(value: Table | Chain | TextModel | list[Table]) -> Any:
    if isinstance(value, Table):
        return _put_table(value)
    if isinstance(value, Chain):
        return _put_chain(value)
    if isinstance(value, TextModel):
        return _put_model(value)
    return [_put_table(table) for table in value]


def _put_table(table: Table) -> list[Any]:
    return [table.counts, table.log]


def _put_chain(chain: Chain) -> list[Any]:
    return [[_put_table(table) for table in chain.tables], chain.noted]


def _put_model(model: TextModel) -> list[Any]:
    tables = [_put_table(table) for table in (model.prefix, model.suffix, model.length)]
    return [*tables, model.last_prefix, model.last_suffix, model.last_length]


def _put_source(source: Source) -> list[Any]:
    return [
        source.topic,
        source.device,
        [int(getattr(source, name)) for name in _SOURCE_NUMBERS],
        sorted(source.after.items()),
        source.block,
        sorted(source.instances.items()),
    ]


def _put_family(family: Family) -> list[Any]:
    return [
        [_put_column(column) for column in family.columns],
        family.tokens,
        family.sources,
        family.fragments,
        sorted(family.followers.items()),
        sorted(family.repeated),
        sorted(family.next_column.items()),
        family.slots,
        family.masks,
        _put_table(family.mask_table),
    ]


def _put_template(template: Template) -> list[Any]:
    return [
        template.index,
        template.family.index,
        template.fragments,
        template.columns,
        template.framed,
    ]


def _put_column(column: Column) -> list[Any]:
    cells = column.cells
    return [
        [column.kind, column.hot, column.predictor, column.alphabet],
        column.printer.key if column.printer else None,
        column.param,
        column.ref,
        [cells.last, cells.aux, cells.recent, cells.recent_aux],
        column.contexts,
        _put_chain(column.chain) if column.chain else None,
        column.texts,
        _put_table(column.escapes) if column.escapes else None,
        _put_model(column.model) if column.model else None,
        column.recent,
        column.last_texts,
    ]


# ---- in ------------------------------------------------------------------------------------------


def _context(data: list[Any], limits: StructuredLimits) -> Context:
    version, numbers, sources, awake, families, templates, blocks, history, tables = data
    if version != _VERSION:
        raise SnapshotError(f"a snapshot of version {version}")
    context = Context(limits, blocks=blocks, history=history)
    context.grown = limits.held_bytes  # it is to be weighed
    for name, number in zip(_CONTEXT_NUMBERS, numbers, strict=True):
        setattr(context, name, number)
    context.block_index = {block: place for place, block in enumerate(blocks)}
    context.sources = [_get_source(index, item) for index, item in enumerate(sources)]
    context.awake = [context.sources[index] for index in awake]
    context.families = [_get_family(context, i, item) for i, item in enumerate(families)]
    for family in context.families:
        for cell, source in enumerate(family.sources):
            family.cell_of_device.setdefault(context.sources[source].device, cell)
        for column in family.columns:
            if column.ref[0] >= 0:
                context.families[column.ref[0]].referred_outside.add(column.ref[1])
    for index, family_index, fragments, columns, framed in templates:
        if not 0 <= index < TEMPLATE_RING:
            raise SnapshotError("a template outside the ring")
        family = context.families[family_index]
        template = Template(index, family, tuple(fragments), tuple(columns), framed)
        template.fill([family.fragments[fragment] for fragment in fragments])
        context.templates[index] = template
    for item, table in zip(fields(context.tables), tables, strict=True):
        _get_any(getattr(context.tables, item.name), table)
    return context


def _get_any(value: Table | Chain | TextModel | list[Table], data: list[Any]) -> None:
    if isinstance(value, Table):
        _get_table(value, data)
    elif isinstance(value, Chain):
        _get_chain(value, data)
    elif isinstance(value, TextModel):
        _get_model(value, data)
    else:
        for table, item in zip(value, data, strict=True):
            _get_table(table, item)


def _get_table(table: Table, data: list[Any]) -> Table:
    counts, log = data
    if counts is not None:
        if len(counts) != len(table.prior.freqs):
            raise SnapshotError("a table of another size")
        table.restore(counts)
    table.log = log
    return table


def _get_chain(chain: Chain, data: list[Any]) -> None:
    for table, item in zip(chain.tables, data[0], strict=True):
        _get_table(table, item)
    chain.noted = data[1]
    chain.refresh()


def _get_model(model: TextModel, data: list[Any]) -> TextModel:
    for table, item in zip((model.prefix, model.suffix, model.length), data[:3], strict=True):
        _get_table(table, item)
    model.last_prefix, model.last_suffix, model.last_length = data[3:]
    return model


def _get_source(index: int, data: list[Any]) -> Source:
    topic, device, numbers, after, block, instances = data
    source = Source(topic, device, index)
    for name, number in zip(_SOURCE_NUMBERS, numbers, strict=True):
        setattr(source, name, number)
    source.awake = bool(source.awake)
    settle(source)
    source.after = {a: b for a, b in after}  # noqa: C416 - pairs come as lists
    source.block = block
    source.instances = {a: b for a, b in instances}  # noqa: C416
    return source


def _get_family(context: Context, index: int, data: list[Any]) -> Family:
    columns, tokens, sources, fragments, followers, repeated = data[:6]
    next_column, slots, masks, table = data[6:]
    family = Family(index, tokens=tokens, sources=sources, fragments=fragments, slots=slots)
    family.columns = [_get_column(context, i, item) for i, item in enumerate(columns)]
    family.fragment_index = {text: place for place, text in enumerate(fragments)}
    family.followers = {a: b for a, b in followers}  # noqa: C416
    family.repeated = set(repeated)
    family.next_column = {a: b for a, b in next_column}  # noqa: C416
    family.masks = [tuple(mask) for mask in masks]
    family.mask_index = {mask: place for place, mask in enumerate(family.masks, 1)}
    _get_table(family.mask_table, table)
    return family


def _get_column(context: Context, index: int, data: list[Any]) -> Column:
    numbers, key, param, ref, cells, contexts, chain, texts, escapes, model, recent, last = data
    column = Column(index, param=tuple(param), ref=tuple(ref), contexts=contexts, texts=texts)
    column.kind, column.hot, column.predictor, column.alphabet = numbers
    if key is not None:
        column.printer = context.printer((key[0], key[1], key[2], key[3], key[4]))
    state = column.cells
    state.last, state.aux, state.recent, state.recent_aux = cells
    if chain is not None:
        _get_chain(column.prepare(), chain)
    column.text_index = {text: place for place, text in enumerate(texts, 1)}
    if escapes is not None:
        column.escapes = _get_table(Table(UNKNOWN_PRIOR), escapes)
    if model is not None:
        column.model = _get_model(TextModel(), model)
    column.recent, column.last_texts = recent, last
    return column
