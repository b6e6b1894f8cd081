"""The integers that columns refer to: of the same row, or of the device's other topic.

docs/link-format-structured.md section 5.3. Families are coded in order, and within a family a
column comes behind the one it refers to, so that both ends know what is referred to by then.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from bridge.structured.context import Column, Context
from bridge.structured.heads import FamilyRows
from bridge.structured.predictors import Maybe, Rows

__all__ = ["References"]

_Timeline = dict[int, tuple[list[int], list[int]]]  # by cell: times, and the integers then


class References:
    """What the columns of one batch may refer to."""

    __slots__ = ("_context", "_elsewhere", "_here", "_timelines")

    def __init__(self, context: Context) -> None:
        self._context = context
        self._here: dict[int, tuple[Sequence[int], list[Maybe]]] = {}  # of the family under way
        self._elsewhere: dict[tuple[int, int], tuple[FamilyRows, Sequence[int], list[Maybe]]] = {}
        self._timelines: dict[tuple[int, int], _Timeline] = {}

    def enter(self) -> None:
        """Go on to the next family."""
        self._here = {}

    def keep(
        self, rows: FamilyRows, column: Column, places: Sequence[int], numbers: list[Maybe]
    ) -> None:
        """Keep the integers of a column, if another refers to it."""
        family = rows.family
        if column.index in family.referred:
            self._here[column.index] = places, numbers
        if column.index in family.referred_outside:
            self._elsewhere[family.index, column.index] = rows, places, numbers

    def give(self, rows: FamilyRows, column: Column, places: Sequence[int], selected: Rows) -> None:
        """Give a column that refers to another the other's integers beside its rows."""
        where, index = column.ref
        if index < 0:
            return
        if where >= 0:
            selected.refs = self._of_siblings(rows, (where, index), places)
            return
        known_places, numbers = self._here.get(index, ((), []))
        if known_places == places and numbers:
            selected.refs = numbers
        else:
            by_place = dict(zip(known_places, numbers, strict=False))
            selected.refs = [by_place.get(place) for place in places]

    def _of_siblings(
        self, rows: FamilyRows, ref: tuple[int, int], places: Sequence[int]
    ) -> list[Maybe]:
        """Return, for each row, the last integer of the device's instance in another family."""
        timeline = self._timeline(ref)
        sources = self._context.sources
        cells = self._context.families[ref[0]].cell_of_device
        out: list[Maybe] = []
        for place in places:
            device = sources[rows.family.sources[rows.cells[place]]].device
            times, numbers = timeline.get(cells.get(device, -1), ((), ()))
            at = bisect_right(times, rows.times[place])
            out.append(numbers[at - 1] if at else None)
        return out

    def _timeline(self, ref: tuple[int, int]) -> _Timeline:
        found = self._timelines.get(ref)
        if found is None:
            found = self._timelines[ref] = {}
            if ref in self._elsewhere:
                rows, places, numbers = self._elsewhere[ref]
                for place, number in zip(places, numbers, strict=True):
                    times, values = found.setdefault(rows.cells[place], ([], []))
                    time = rows.times[place]
                    if number is not None and (not times or time >= times[-1]):
                        times.append(time)
                        values.append(number)
        return found
