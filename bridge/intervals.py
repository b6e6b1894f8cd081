"""Sets of integers as inclusive ranges: which seqs were seen, held, stored or given up.

Invariants: `_firsts` and `_lasts` have equal length; ranges rise and neither overlap nor touch
(first[i + 1] > last[i] + 1). The common case, a range that continues the last one, is O(1);
anything else costs a binary search plus the ranges it swallows.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, compress, repeat
from operator import ne, sub

__all__ = ["IntervalSet", "Range", "ranges_of"]

Range = tuple[int, int]  # inclusive (first, last)


def ranges_of(seqs: Sequence[int]) -> tuple[Range, ...]:
    """Return strictly rising `seqs` as inclusive ranges that rise and do not touch."""
    if not len(seqs):
        return ()
    first, last = seqs[0], seqs[-1]
    if last - first == len(seqs) - 1:
        return ((first, last),)
    breaks = list(map(ne, map(sub, seqs[1:], seqs), repeat(1)))
    firsts = compress(seqs, chain((True,), breaks))
    return tuple(zip(firsts, compress(seqs, chain(breaks, (True,))), strict=True))


class IntervalSet:
    """A mutable set of integers kept as ranges."""

    __slots__ = ("_firsts", "_lasts")

    def __init__(self, ranges: Iterable[Range] = ()) -> None:
        self._firsts: list[int] = []
        self._lasts: list[int] = []
        for first, last in ranges:
            self.add(first, last)

    def add(self, first: int, last: int) -> None:
        """Add every integer from `first` to `last`, both included.

        Raises:
            ValueError: `last` is less than `first`.
        """
        if last < first:
            raise ValueError(f"range ends before it begins: {first}..{last}")
        firsts, lasts = self._firsts, self._lasts
        if not lasts or first > lasts[-1] + 1:
            firsts.append(first)
            lasts.append(last)
            return
        if first == lasts[-1] + 1:
            lasts[-1] = last
            return
        low = bisect_left(lasts, first - 1)  # the first range that reaches or touches ours
        high = bisect_right(firsts, last + 1)  # past the last one that does
        if low < high:
            first = min(first, firsts[low])
            last = max(last, lasts[high - 1])
        firsts[low:high] = [first]
        lasts[low:high] = [last]

    def update(self, ranges: Iterable[Range]) -> None:
        """Add each of `ranges`."""
        for first, last in ranges:
            self.add(first, last)

    def discard(self, first: int, last: int) -> None:
        """Remove every integer from `first` to `last`; absent ones are no error."""
        firsts, lasts = self._firsts, self._lasts
        low = bisect_left(lasts, first)
        high = bisect_right(firsts, last)
        if low >= high:
            return
        left = [(firsts[low], first - 1)] if firsts[low] < first else []
        right = [(last + 1, lasts[high - 1])] if lasts[high - 1] > last else []
        kept = left + right
        firsts[low:high] = [r[0] for r in kept]
        lasts[low:high] = [r[1] for r in kept]

    def missing(self, first: int, last: int) -> list[Range]:
        """Return the parts of `first`..`last` that are not in the set, rising."""
        firsts, lasts = self._firsts, self._lasts
        if not lasts or first > lasts[-1]:
            return [(first, last)] if first <= last else []
        gaps: list[Range] = []
        index = bisect_left(lasts, first)
        while first <= last:
            if index == len(firsts) or firsts[index] > last:
                gaps.append((first, last))
                break
            if firsts[index] > first:
                gaps.append((first, firsts[index] - 1))
            first = lasts[index] + 1
            index += 1
        return gaps

    def touching(self, first: int, last: int) -> list[Range]:
        """Return the ranges that `first`..`last` overlaps or continues: those `add` would join."""
        low = bisect_left(self._lasts, first - 1)
        high = bisect_right(self._firsts, last + 1)
        return list(zip(self._firsts[low:high], self._lasts[low:high], strict=True))

    def covers(self, first: int, last: int) -> bool:
        """Return True when every integer from `first` to `last` is in the set."""
        index = bisect_left(self._lasts, first)
        return (
            index < len(self._firsts)
            and self._firsts[index] <= first <= last <= (self._lasts[index])
        )

    def overlaps(self, first: int, last: int) -> bool:
        """Return True when any integer from `first` to `last` is in the set."""
        index = bisect_left(self._lasts, first)
        return index < len(self._firsts) and self._firsts[index] <= last

    def __contains__(self, value: int) -> bool:
        index = bisect_left(self._lasts, value)
        return index < len(self._firsts) and self._firsts[index] <= value

    def __bool__(self) -> bool:
        return bool(self._firsts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IntervalSet):
            return NotImplemented
        return self._firsts == other._firsts and self._lasts == other._lasts

    __hash__ = None  # type: ignore[assignment]  # mutable, like set

    def __repr__(self) -> str:
        return f"IntervalSet({self.ranges()})"

    def count(self) -> int:
        """Return how many integers the set holds."""
        return sum(self._lasts) - sum(self._firsts) + len(self._firsts)

    @property
    def last(self) -> int | None:
        """The greatest integer of the set; None when it is empty."""
        return self._lasts[-1] if self._lasts else None

    def ranges(self) -> list[Range]:
        """Return the inclusive ranges, rising and not touching."""
        return list(zip(self._firsts, self._lasts, strict=True))

    def __iter__(self) -> Iterator[Range]:
        return iter(self.ranges())

    def copy(self) -> IntervalSet:
        """Return an independent set with the same members."""
        twin = IntervalSet()
        twin._firsts = self._firsts.copy()
        twin._lasts = self._lasts.copy()
        return twin
