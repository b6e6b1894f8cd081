"""Values that a device says twice, in two of its topics. An encoder's affair.

Looked for in what both ends know: where the last integers of two columns are the same for most
devices that have both, and not the same for all devices.
"""

from __future__ import annotations

from itertools import islice

from bridge.structured.context import Column, ColumnKind, Context, Family

__all__ = ["sibling_of"]

_DEVICES = 24
_DEVICES_MIN = 3
_SHARE = 0.6  # of the devices whose integers must be the same
_FAMILIES_MAX = 32  # looked at, the latest first


def sibling_of(context: Context, family: Family, column: Column) -> tuple[int, int] | None:
    """Return the family and column that say the same of the same devices earlier, or None."""
    pairs: dict[int, list[tuple[int, int]]] = {}
    for cell, source_index in islice(enumerate(family.sources), _DEVICES):
        source = context.sources[source_index]
        for other in context.families[max(0, family.index - _FAMILIES_MAX) : family.index]:
            other_cell = other.cell_of_device.get(source.device)
            if other_cell is not None and other.sources[other_cell] != source_index:
                pairs.setdefault(other.index, []).append((cell, other_cell))
    for index in sorted(pairs, reverse=True):
        if len(pairs[index]) < _DEVICES_MIN:
            continue
        for other_column in context.families[index].columns:
            if _say_the_same(column, other_column, pairs[index]):
                return index, other_column.index
    return None


def _say_the_same(column: Column, other: Column, pairs: list[tuple[int, int]]) -> bool:
    if other.kind != ColumnKind.NUMBER or not other.hot:
        return False
    if column.printer is None or other.printer is None:
        return False
    if column.printer.key[1] != other.printer.key[1]:
        return False
    mine = [column.cells.last[cell] for cell, _ in pairs]
    theirs = [other.cells.last[cell] for _, cell in pairs]
    same = sum(a == b is not None for a, b in zip(mine, theirs, strict=True))
    return same >= _SHARE * len(pairs) and len(set(mine)) > len(mine) // 2
