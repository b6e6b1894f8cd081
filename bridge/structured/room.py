"""How much room a context has left for what a batch would add. An encoder's affair.

Planning comes before writing, so what one batch plans is counted here until it is written.

Invariant: what was granted fits within the limits, whatever part of it is written.
"""

from __future__ import annotations

from bridge.structured.context import Context, Source
from bridge.structured.limits import TEMPLATE_RING
from bridge.structured.review import FamilyView
from bridge.structured.shapes import Shape

__all__ = ["Room"]

_FAMILY_COLUMNS_MAX = 1024


class Room:
    """What is left of the context's limits, as far as this batch has not planned it away.

    Attributes:
        batch_cells: Slots times readings that the batch may still have.
    """

    __slots__ = (
        "_cells",
        "_columns",
        "_families",
        "_literals",
        "_shapes",
        "_sources",
        "batch_cells",
    )

    def __init__(self, context: Context, readings: int) -> None:
        limits = context.limits
        self._sources = limits.sources - len(context.sources)
        self._families = limits.families - len(context.families)
        self._columns = limits.columns - context.columns
        self._cells = limits.cells - context.cells
        self._literals = limits.literal_bytes - context.literal_bytes
        self.batch_cells = limits.batch_cells
        self._shapes = min(TEMPLATE_RING // 2, max(256, readings))

    def take_source(self, size: int) -> bool:
        """Take room for a source whose names have `size` characters."""
        size *= 4
        if self._sources < 1 or self._literals < size:
            return False
        self._sources -= 1
        self._literals -= size
        return True

    def take_shape(self, family: FamilyView, columns: int, shape: Shape) -> bool:
        """Take room for a template that adds `columns` to `family`."""
        new = family.plan.family is None and not family.columns
        size = sum(map(len, shape.fragments)) + 16 * len(shape.fragments)
        cells = columns * (len(family.members) + 1)
        if (
            self._shapes < 1
            or self._families < new
            or self._columns < columns
            or self._literals < size
            or self._cells < cells
            or len(family.columns) + columns > _FAMILY_COLUMNS_MAX
        ):
            return False
        self._shapes -= 1
        self._families -= new
        self._columns -= columns
        self._literals -= size
        self._cells -= cells
        return True

    def take_rows(self, source: Source, family: FamilyView, tokens: int) -> bool:
        """Take room for readings of so many tokens, and for their source's instance if new."""
        if self.batch_cells < tokens:
            return False
        if source not in family.members:
            cells = len(family.columns)
            if self._cells < cells:
                return False
            self._cells -= cells
            family.members.add(source)
        self.batch_cells -= tokens
        return True
