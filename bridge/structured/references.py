"""The integers that columns refer to: of the same row, or of the device's other topic.

docs/link-format-structured.md section 5.3. Families are coded in order, and within a family a
column comes behind the one it refers to, so that both ends know what is referred to by then.
"""

from __future__ import annotations

from bisect import bisect_right

from bridge.structured.context import Column, Context
from bridge.structured.heads import FamilyRows
from bridge.structured.predictors import Maybe, Rows

__all__ = ["Places", "References"]

Places = list[int] | None  # of rows; None: all of them
_Timeline = dict[int, tuple[list[int], list[int]]]  # by cell: times, and the integers then


class References:
    """What the columns of one batch may refer to.

    Attributes:
        here: By column of the family under way, the rows in which it is coded and its integers.
        elsewhere: The same by family and column, with the family's rows.
    """

    __slots__ = ("_context", "_timelines", "elsewhere", "here")

    def __init__(self, context: Context) -> None:
        self._context = context
        self.here: dict[int, tuple[Places, list[Maybe]]] = {}
        self.elsewhere: dict[tuple[int, int], tuple[FamilyRows, Places, list[Maybe]]] = {}
        self._timelines: dict[tuple[int, int], _Timeline] = {}

    def enter(self) -> None:
        """Go on to the next family."""
        self.here = {}

    def keep(self, rows: FamilyRows, column: Column, places: Places, numbers: list[Maybe]) -> None:
        """Keep the integers of a hot column, if another refers to it."""
        family = rows.family
        if not column.hot:
            return
        if column.index in family.referred:
            self.here[column.index] = places, numbers
        if column.index in family.referred_outside:
            self.elsewhere[family.index, column.index] = rows, places, numbers

    def give(self, rows: FamilyRows, column: Column, places: Places, selected: Rows) -> None:
        """Give a column that refers to another the other's integers beside its rows."""
        where, index = column.ref
        if index < 0:
            return
        if where >= 0:
            selected.refs = self.of_siblings(rows, column.ref, places)
            return
        known_places, numbers = self.here.get(index, ([], []))
        if known_places == places:
            selected.refs = numbers
        else:
            known = range(len(rows.cells)) if known_places is None else known_places
            by_place = dict(zip(known, numbers, strict=True))
            wanted = range(len(rows.cells)) if places is None else places
            selected.refs = [by_place.get(place) for place in wanted]

    def of_siblings(self, rows: FamilyRows, ref: tuple[int, int], places: Places) -> list[Maybe]:
        """Return, for each row, the last integer of the device's instance in another family."""
        timeline = self._timeline(ref)
        sources = self._context.sources
        cells = self._context.families[ref[0]].cell_of_device
        out: list[Maybe] = []
        for place in range(len(rows.cells)) if places is None else places:
            device = sources[rows.family.sources[rows.cells[place]]].device
            times, numbers = timeline.get(cells.get(device, -1), ((), ()))
            at = bisect_right(times, rows.times[place])
            out.append(numbers[at - 1] if at else None)
        return out

    def _timeline(self, ref: tuple[int, int]) -> _Timeline:
        found = self._timelines.get(ref)
        if found is None:
            found = self._timelines[ref] = {}
            if ref in self.elsewhere:
                rows, places, numbers = self.elsewhere[ref]
                known = range(len(rows.cells)) if places is None else places
                for place, number in zip(known, numbers, strict=True):
                    times, values = found.setdefault(rows.cells[place], ([], []))
                    time = rows.times[place]
                    if number is not None and (not times or time >= times[-1]):
                        times.append(time)
                        values.append(number)
        return found
