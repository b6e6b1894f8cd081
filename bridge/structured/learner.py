"""How a column is best coded: kind, heat, spelling and predictor. An encoder's affair.

A decoder follows what is defined in band, so everything here may change without a new version of
the format. Choices are made from series: the last tokens of some sources of the family, with
their times. The measure is an estimate of the bits that an adaptive coder would spend.

Nothing here knows the name of a field or of a software.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import gcd, log2
from operator import sub

from bridge.structured.context import Column, ColumnKind
from bridge.structured.kernel import Kernel, native
from bridge.structured.limits import ENUM_VALUES
from bridge.structured.predictors import CellState, Maybe, PredictorKind, Rows, residuals
from bridge.structured.printers import Printer, PrinterKey, PrinterKind
from bridge.structured.schema import ColumnSpec
from bridge.structured.spelling import ESCAPE_BITS, printer_for, printer_like, share_spelled
from bridge.structured.texts import ALPHABETS, shared_ends

__all__ = ["Neighbour", "Numbers", "Series", "bits_of", "choose_spec", "is_constant"]

Series = list[list[tuple[int, bytes]]]  # by source, (time, token) in order
Numbers = list[list[tuple[int, Maybe]]]  # by source, (time, integer) in order
Param = tuple[int, int]
NO_PARAM: Param = (0, 0)
NO_REF = (-1, -1)
_Rows = list[tuple[int, int, int, int]]  # value and the one before, and those of another column
_FROM_NEIGHBOUR = (PredictorKind.DIFFERENCE, PredictorKind.RATIO, PredictorKind.BEFORE)

_HOT, _COOL = 0.12, 0.05  # share of changes from which on, and down to which, a column is hot
_GAIN = 0.97  # a new predictor's bits must be below this share of the old one's,
_REF_GAIN = 0.9  # or below this one's: of many references some seem good by chance
_SPELLING_GAIN = 0.02  # the share of tokens a new printer must spell beyond the old one
_ENUM_DISTINCT_MAX = 12  # numbers that take more values than this are never an enumeration
_ALPHABET_SHARE = 0.9  # of the middles an alphabet must fit
_WORTH_BITS = 0.4  # a value: a column that takes less has nothing to gain
_SIGNS = b"-:._/ +="
_TEXT_BYTES_MAX = 48  # longer texts are no enumeration


@dataclass(slots=True, frozen=True)
class Neighbour:
    """A column that may be referred to, with its values beside those of the column in question."""

    place: int
    values: list[list[Maybe]]


@dataclass(slots=True, order=True)
class _Option:
    bits: float
    kind: int
    param: Param = NO_PARAM
    ref: tuple[int, int] = NO_REF


def is_constant(series: Series) -> bool:
    """Return True when no source's token ever changed."""
    return all(source[0][1] == token for source in series for _, token in source)


# ---- measures ------------------------------------------------------------------------------------


def bits_of(steps: list[int], escapes: int = 0) -> float:
    """Return about how many bits an adaptive coder spends on residuals."""
    bits = native.step_bits(steps) if native is not None else None
    return (_bits(steps) if bits is None else bits) + ESCAPE_BITS * escapes


def _bits(steps: Iterable[int]) -> float:
    """Return the same without escapes."""
    sizes = Counter([min(step.bit_length(), 64) for step in steps])
    plain = sum(size * count for size, count in sizes.items())  # sign, and the bits but the first
    return _entropy(sizes.values()) + plain


def _entropy(counts: Iterable[int]) -> float:
    known = [count for count in counts if count]
    total = sum(known)
    bits = 0.0
    for count in known:  # one by one, as the kernel does: `sum` may be more exact
        bits += count * log2(total / count)
    return bits


def _enum_bits(series: Series) -> float:
    by_last: dict[bytes, Counter[bytes]] = {}
    for tokens in series:
        last = b""
        for _, token in tokens:
            by_last.setdefault(last, Counter())[token] += 1
            last = token
    learned = sum(map(len, by_last.values()))
    return sum(_entropy(counter.values()) for counter in by_last.values()) + 5 * learned


def _change_share(series: Series) -> float | None:
    """Return how often a token differs from its source's last; None if no source has two."""
    steps = changes = 0
    for source in series:
        steps += len(source) - 1
        changes += sum([a[1] != b[1] for a, b in pairwise(source)])
    return changes / steps if steps else None


# ---- predictors ----------------------------------------------------------------------------------


class _Steps:
    """Pairs of consecutive integers of one source, flat, for quick trials of predictors."""

    def __init__(self, numbers: Numbers) -> None:
        self.now: list[int] = []
        self.before: list[int] = []
        self.places: list[tuple[int, int]] = []  # series, and place in it
        self.escapes = 0
        for number, series in enumerate(numbers):
            last: Maybe = None
            for place, (_, value) in enumerate(series):
                if value is None:
                    self.escapes += 1
                    continue
                if last is not None:
                    self.now.append(value)
                    self.before.append(last)
                    self.places.append((number, place))
                last = value

    def try_neighbour(
        self, neighbour: Neighbour, kernel: Kernel | None = native
    ) -> Iterable[_Option]:
        """Return what predictions from another column would cost."""
        found = kernel and kernel.pair_up(self.places, self.now, self.before, neighbour.values)
        rows, alone, *sums = found or self._pair_up(neighbour.values)
        if 2 * len(alone) > len(self.now) - len(alone):
            return
        ways = [(PredictorKind.LINE, slope) for slope in _slopes(*sums)]
        ways += [(kind, NO_PARAM) for kind in _FROM_NEIGHBOUR]
        for kind, param in ways:
            if isinstance(rows, list):
                bits = _bits([*_off(rows, kind, *param), *alone])
            else:
                assert kernel is not None
                bits = kernel.bits_beside(rows, alone, kind, *param)
            bits += ESCAPE_BITS * self.escapes
            yield _Option(bits, kind, param, (-1, neighbour.place))

    def _pair_up(self, values: list[list[Maybe]]) -> tuple[_Rows, list[int], int, int, int]:
        """Return the steps beside another column's.

        Returns:
            The rows in which it has a value, now and before; the steps in the other rows; and of
            the former, the sums of its steps squared, both multiplied, these steps squared.
        """
        rows: _Rows = []
        alone: list[int] = []
        for (number, place), now, before in zip(self.places, self.now, self.before, strict=True):
            ref, ref_before = values[number][place], values[number][place - 1]
            if ref is None or ref_before is None:
                alone.append(now - before)
            else:
                rows.append((now, before, ref, ref_before))
        square = sum((ref - last) ** 2 for _, _, ref, last in rows)
        product = sum((now - before) * (ref - last) for now, before, ref, last in rows)
        own = sum((now - before) ** 2 for now, before, _, _ in rows)
        return rows, alone, square, product, own


def _slopes(square: int, product: int, own: int) -> list[Param]:
    """Return simple slopes by which a column may follow another: that of their steps, rounded."""
    if not square or product * product < 0.5 * square * own:
        return []
    found = {_nearest(product, square, most) for most in (1, 5, 10, 64)}
    return sorted((num, den) for num, den in found if num and num != den)


def _nearest(num: int, den: int, most: int) -> Param:
    """Return the fraction nearest to num / den, in lowest terms, with a denominator up to `most`.

    The last convergent of the continued fraction that is not past `most`, or the one between it and
    the next that is.
    """
    before, last, rest = (0, 1), (1, 0), (num, den)
    while rest[1]:
        whole = rest[0] // rest[1]
        following = whole * last[1] + before[1]
        if following > most:
            break
        before, last = last, (whole * last[0] + before[0], following)
        rest = rest[1], rest[0] - whole * rest[1]
    else:
        return last
    turns = (most - before[1]) // last[1]
    between = before[0] + turns * last[0], before[1] + turns * last[1]
    # the distances, each times den and its own denominator
    near, far = abs(last[0] * den - num * last[1]), abs(between[0] * den - num * between[1])
    return last if near * between[1] <= far * last[1] else between


def _off(rows: _Rows, kind: int, num: int, den: int) -> list[int]:
    """Return how far each value is from what the other column makes it out to be."""
    if kind == PredictorKind.LINE:
        half = den >> 1
        return [
            now - (ref * num + before * den + half - last * num) // den
            for now, before, ref, last in rows
        ]
    if kind == PredictorKind.DIFFERENCE:
        return [now - before - ref + last for now, before, ref, last in rows]
    if kind == PredictorKind.RATIO:
        return [
            now - (2 * before * ref + last) // (2 * last) if last else now - before
            for now, before, ref, last in rows
        ]
    return [now - last for now, _, _, last in rows]


def _try(kind: int, numbers: Numbers, param: Param = NO_PARAM) -> _Option:
    """Return what a predictor costs on all series, each starting anew."""
    state = CellState([None] * len(numbers), [None] * len(numbers))
    rows = Rows(
        [cell for cell, series in enumerate(numbers) for _ in series],
        [time for series in numbers for time, _ in series],
    )
    steps = residuals(kind, state, rows, [value for one in numbers for _, value in one], param)
    # the first residual of a series only says how much sources differ
    firsts = set(accumulate(map(len, numbers), initial=0))
    later = [step for place, step in enumerate(steps) if place not in firsts]
    known = [step for step in later if step is not None]
    return _Option(bits_of(known, len(later) - len(known)), kind, param)


def _time_units(numbers: Numbers, digits: int | None, resolution_us: int) -> Iterable[Param]:
    """Return the units (numerator, denominator) in which the numbers may be times."""
    slopes: list[float] = []
    for series in numbers:
        known = [(time, value) for time, value in series if value is not None]
        if len(known) > 2 and known[-1][0] > known[0][0]:
            slopes.append((known[-1][1] - known[0][1]) / (known[-1][0] - known[0][0]))
    if not slopes:
        return
    slope = sorted(slopes)[len(slopes) // 2]
    for exponent in [0, 1, 3, 6, 9] if digits is None else [digits]:
        num, den = resolution_us * 10**exponent, 1_000_000
        if 0.8 < slope * den / num < 1.25:
            common = gcd(num, den)
            yield num // common, den // common


def _predict(
    column: Column | None,
    numbers: Numbers,
    digits: int | None,
    resolution_us: int,
    neighbours: Callable[[], Iterable[Neighbour]],
) -> _Option:
    """Return the cheapest prediction; the one in use has a small advantage."""
    steps = _Steps(numbers)
    last = _Option(bits_of(list(map(sub, steps.now, steps.before)), steps.escapes), 0)
    options = [last]
    if last.bits > _WORTH_BITS * len(steps.now):
        options.append(_try(PredictorKind.LINEAR, numbers))
        options += [_try(PredictorKind.MEAN, numbers, (shift, 0)) for shift in (2, 4)]
        units = _time_units(numbers, digits, resolution_us)
        options += [_try(PredictorKind.TIME, numbers, unit) for unit in units]
        for neighbour in neighbours():
            options += steps.try_neighbour(neighbour)
    for option in options:
        kept = column is not None and (option.kind, option.param, option.ref) == (
            column.predictor,
            column.param,
            column.ref,
        )
        if not kept and option is not last:
            option.bits = option.bits / (_GAIN if option.ref == NO_REF else _REF_GAIN) + 4
    return min(options)


# ---- choices -------------------------------------------------------------------------------------


def choose_spec(
    column: Column | None,
    series: Series,
    resolution_us: int,
    neighbours: Callable[[], Iterable[Neighbour]] = tuple,
    hint: PrinterKey | None = None,
) -> ColumnSpec:
    """Return how a column is best coded.

    Args:
        column: The column as it is, None for a new one.
        series: Its last tokens by source.
        resolution_us: The link's time unit.
        neighbours: Returns columns that may be referred to.
        hint: How a binary field is spelled.
    """
    tokens = [token for source in series for _, token in source]
    share = _change_share(series)
    printer = _printer(column, tokens, hint)
    if share is None:
        hot = printer is not None and len(set(tokens)) > 1
    else:
        hot = share > (_COOL if column is not None and column.hot else _HOT)
    if printer is None:
        return _text_spec(column, series, tokens, hot=hot)
    if not share:
        return ColumnSpec(ColumnKind.NUMBER, hot, printer)
    values = iter(Printer(*printer).parse_all(tokens))
    numbers = [[(time, next(values)) for time, _ in source] for source in series]
    digits = _second_digits(printer)
    best = _predict(column, numbers, digits, resolution_us, neighbours)
    few = 1 < len(set(tokens)) <= _ENUM_DISTINCT_MAX
    if few and hot and _enum_bits(series) < 0.9 * best.bits:
        return ColumnSpec(ColumnKind.ENUM, hot)
    return ColumnSpec(ColumnKind.NUMBER, hot, printer, best.kind, best.param, best.ref)


def _printer(
    column: Column | None, tokens: Sequence[bytes], hint: PrinterKey | None
) -> PrinterKey | None:
    """Return the spelling of the tokens: the old one unless another spells clearly more."""
    old = column.printer.key if column is not None and column.printer is not None else None
    old_share = share_spelled(old, tokens) if old is not None else 0.0
    if old_share >= 1 - _SPELLING_GAIN:
        return old
    found = printer_like(hint, tokens) if hint is not None else printer_for(tokens)
    if old is None or found is None or found == old:
        return found
    return found if share_spelled(found, tokens) > old_share + _SPELLING_GAIN else old


def _second_digits(printer: PrinterKey) -> int | None:
    """Return how many decimals of a second a time has; None for what is not known as one."""
    kind, digits, *_ = printer
    if kind in (PrinterKind.STAMP, PrinterKind.STAMP_TRIMMED):
        return digits
    return 0 if kind == PrinterKind.CLOCK else None


def _text_spec(
    column: Column | None, series: Series, tokens: Sequence[bytes], *, hot: bool
) -> ColumnSpec:
    distinct = set(tokens)
    few = len(distinct) <= min(ENUM_VALUES - 7, max(4, len(tokens) // 3))
    short = max(map(len, distinct)) <= _TEXT_BYTES_MAX
    if short and (few or (column is None and len(tokens) < 3)):
        return ColumnSpec(ColumnKind.ENUM, hot)
    middles = [middle for middle in _middles(series) if middle]
    for number, alphabet in enumerate(ALPHABETS):
        if alphabet is not None and middles:
            fitting = sum(not middle.translate(None, alphabet.members) for middle in middles)
            if fitting >= _ALPHABET_SHARE * len(middles):
                return ColumnSpec(ColumnKind.TEXT, hot, alphabet=number)
    return ColumnSpec(ColumnKind.TEXT, hot)


def _middles(series: Series) -> Iterable[bytes]:
    """Return of each token what differs from the one before it, without signs both have."""
    last = b""
    for source in series:
        for _, token in source:
            start, end = shared_ends(token, last)
            middle, other = token[start : len(token) - end], last[start : len(last) - end]
            if len(middle) == len(other):
                middle = bytes(
                    [a for a, b in zip(middle, other, strict=True) if a != b or a not in _SIGNS]
                )
            if last:
                yield middle
            last = token
