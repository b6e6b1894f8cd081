"""The account of one (gateway, epoch): what each place says of it, and where each seq is then.

Each seq counts once, in the first of the places that has it: storage, dead letters, the stream,
the edge. What no place has is given up by a tombstone, or missing. They are gathered by
cloud/ledger.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from bridge.intervals import IntervalSet, Range
from bridge.runs import Origin
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import GivenUp

__all__ = ["DISCARDED", "Account", "SinkAccount", "SourceBalance", "ranges_text"]

DISCARDED = "discarded"  # reason of a tombstone for a dead letter; its lane is the sink's name
_RANGES_SHOWN = 12
_STONES_SHOWN = 20


@dataclass(slots=True, frozen=True)
class SinkAccount:
    """How far one sink is with what the stream took of a source; all figures are readings."""

    sink: str
    taken: int  # entries up to its cursor; storage: the rows themselves
    waiting: int  # in entries past its cursor
    dead_letters: int


@dataclass(slots=True, frozen=True)
class SourceBalance:
    """The account of one (gateway, epoch); all figures are readings."""

    gateway: str
    epoch: int
    assigned: int
    held: int  # the stream ever took
    stored: int
    given_up: int
    dead_letters: int
    waiting_edge: int  # seen in its journal, or by its word
    waiting_stream: int
    lost: tuple[Range, ...]  # missing, though the stream took them
    absent: tuple[Range, ...]  # missing, and never came
    unexplained: tuple[tuple[Range, int], ...]  # in a tombstone's range, beyond its count
    doubled: tuple[Range, ...]  # in more than one entry of the stream
    unassigned: tuple[Range, ...]  # stored or held, but nobody is known to have assigned them
    tombstones: tuple[GivenUp, ...]
    sinks: tuple[SinkAccount, ...] = ()
    # ranges by place: stored, dead, stream, edge, given-up, missing
    where: tuple[tuple[str, tuple[Range, ...]], ...] = ()
    origin: Origin | None = None  # of an epoch that parted from another

    @property
    def missing(self) -> int:
        """Readings that are nowhere and that nothing accounts for."""
        located = _count(self.lost) + _count(self.absent)
        return located + sum(count for _, count in self.unexplained)

    @property
    def balanced(self) -> bool:
        """True when every assigned seq is accounted for exactly once."""
        return not (self.missing or self.doubled or self.unassigned)

    def lines(self, *, detail: bool = False) -> list[str]:
        """Return the account as text: one line, and one for each thing that is wrong.

        With `detail` also what the stream holds, what each sink took, and every tombstone.
        """
        waiting = self.waiting_edge + self.waiting_stream
        parts = f"{self.stored} stored + {self.given_up} given up"
        if self.dead_letters:
            parts += f" + {self.dead_letters} dead letters"
        if waiting:
            parts += f" + {waiting} waiting ({self.waiting_edge} at the edge,"
            parts += f" {self.waiting_stream} in the stream)"
        if self.missing:
            parts += f" + {self.missing} missing"
        name = f"{self.gateway or '(unknown gateway)'} {epoch_text(self.epoch)}"
        lines = [f"{name}: {self.assigned} assigned = {parts}"]
        for what, ranges in (
            ("lost: acknowledged, but neither stored nor waiting", self.lost),
            ("absent: assigned, but never came and not seen waiting at the edge", self.absent),
            ("doubled: in more than one entry of the stream", self.doubled),
            ("unassigned: here, but nobody is known to have assigned them", self.unassigned),
        ):
            if ranges:
                lines.append(f"  {what}: seq {ranges_text(ranges)}")
        for (first, last), count in self.unexplained:
            lines.append(
                f"  unexplained: {count} more missing in seq {first}-{last} than its tombstones"
                " give up"
            )
        return [*lines, *self._detail_lines()] if detail else lines

    def _detail_lines(self) -> list[str]:
        lines = [f"  held by the stream: {self.held}"]
        for sink in self.sinks:
            dead = f", {sink.dead_letters} dead letters" if sink.dead_letters else ""
            lines.append(f"  sink {sink.sink}: {sink.taken} taken, {sink.waiting} waiting{dead}")
        newest = sorted(self.tombstones, key=lambda stone: -stone.time_us)
        lines += [
            f"  given up: {stone.count} of lane {stone.lane}, "
            f"seq {ranges_text([(stone.first_seq, stone.last_seq)])}: {stone.reason}"
            for stone in newest[:_STONES_SHOWN]
        ]
        if len(newest) > _STONES_SHOWN:
            lines.append(f"  given up: {len(newest) - _STONES_SHOWN} older tombstones")
        return lines


@dataclass(slots=True)
class Account:
    """What is known of one source before it is balanced."""

    assigned: int = 0
    known: int = 0  # assigned as the stream knows it once all has been read
    held: IntervalSet = field(default_factory=IntervalSet)
    stored: IntervalSet = field(default_factory=IntervalSet)
    dead: IntervalSet = field(default_factory=IntervalSet)
    at_edge: IntervalSet = field(default_factory=IntervalSet)
    in_stream: IntervalSet = field(default_factory=IntervalSet)
    tombstones: dict[tuple[str, int, str], GivenUp] = field(default_factory=dict)
    settled: int | None = None  # past it readings may wait at the edge; None: nobody says so
    origin: Origin | None = None  # of an epoch that parted from another: its seqs lie past there
    doubled: tuple[Range, ...] = ()
    sinks: list[SinkAccount] = field(default_factory=list)

    def give_up(self, stones: Iterable[GivenUp]) -> None:
        """Note what was given up."""
        for stone in stones:
            key = (stone.lane, stone.first_seq, stone.reason)
            known = self.tombstones.get(key)
            if known is None or stone.last_seq > known.last_seq:
                self.tombstones[key] = stone

    def close(self, gateway: str, epoch: int, *, with_storage: bool = True) -> SourceBalance:
        """Balance: each seq counts once, in the first of the places that has it."""
        before = self.origin.after_seq if self.origin is not None else 0
        left = IntervalSet([(before + 1, self.assigned)] if self.assigned > before else [])
        unassigned = IntervalSet(self.stored)
        unassigned.update(self.held)
        unassigned.discard(before + 1, max(before, self.assigned, self.known))
        where: dict[str, tuple[Range, ...]] = {}
        stored = _take(left, self.stored, where, "stored")
        dead = _take(left, self.dead, where, "dead")
        in_stream = _take(left, self.in_stream, where, "stream")
        discarded = _take(left, self._discarded("storage"), where, "given-up")
        at_edge = _take(left, self.at_edge, where, "edge")
        lost = left.copy()  # what the stream took is not given up, whatever a tombstone says
        _take(left, self.held)
        _take(lost, left)
        stones = IntervalSet((s.first_seq, s.last_seq) for s in self.tombstones.values())
        where["given-up"] = (*where["given-up"], *_common(left, stones))
        given_up, unexplained, told = self._take_given_up(left)
        if self.settled is not None:  # by its word
            past = IntervalSet([(self.settled + 1, max(self.settled + 1, self.assigned))])
            where["edge"] = (*where["edge"], *_common(left, past))
            told += _take(left, past)
        where["missing"] = (*lost.ranges(), *left.ranges(), *(span for span, _ in unexplained))
        given_up += discarded
        storage = [SinkAccount("storage", stored, in_stream, dead)] if with_storage else []
        return SourceBalance(
            gateway,
            epoch,
            max(0, self.assigned - before),
            self.held.count(),
            stored,
            given_up,
            dead,
            at_edge + told,
            in_stream,
            tuple(lost.ranges()),
            tuple(left.ranges()),
            unexplained,
            self.doubled,
            tuple(unassigned.ranges()),
            tuple(self.tombstones.values()),
            (*storage, *sorted(self.sinks, key=lambda one: one.sink)),
            tuple(where.items()),
            self.origin,
        )

    def take_sink(self, sink: str, waiting: Iterable[Range], dead: IntervalSet) -> None:
        """Note how far a sink without rows is: it took what neither waits nor died."""
        left = self.held.copy()
        waits = _take(left, IntervalSet(waiting))
        died = _take(left, dead)
        _take(left, self._discarded(sink))
        self.sinks.append(SinkAccount(sink, left.count(), waits, died))

    def find_doubled(self, ranges: Sequence[Range]) -> None:
        """Note what is in more than one entry of the stream, whose ranges these are, sorted."""
        self.doubled = _doubled(ranges)

    def _discarded(self, sink: str) -> IntervalSet:
        """Return what somebody decided a sink is never to have: dead letters thrown away."""
        stones = self.tombstones.values()
        return IntervalSet(
            (stone.first_seq, stone.last_seq)
            for stone in stones
            if stone.reason == DISCARDED and stone.lane == sink
        )

    def _take_given_up(self, left: IntervalSet) -> tuple[int, tuple[tuple[Range, int], ...], int]:
        """Take what lies in the ranges of tombstones from `left`.

        A tombstone gives up `count` seqs of its range without saying which: its lane's. Ranges
        that overlap are looked at together.

        Returns:
            How many are given up; how many more are missing in which range; and how many more may
            wait at the edge, by its word.
        """
        given_up = told = 0
        unexplained: list[tuple[Range, int]] = []
        stones = [stone for stone in self.tombstones.values() if stone.reason != DISCARDED]
        for first, last in IntervalSet((s.first_seq, s.last_seq) for s in stones):
            count = sum(s.count for s in stones if first <= s.first_seq <= last)
            gone = sum(b - a + 1 for a, b in _inside(left, first, last))
            given_up += min(gone, count)
            may_wait = 0
            if gone > count and self.settled is not None:
                past = _inside(left, max(first, self.settled + 1), last)
                may_wait = min(gone - count, sum(b - a + 1 for a, b in past))
                told += may_wait
            if gone > count + may_wait:
                unexplained.append(((first, last), gone - count - may_wait))
            left.discard(first, last)
        return given_up, tuple(unexplained), told


def ranges_text(ranges: Sequence[Range], shown: int = _RANGES_SHOWN) -> str:
    """Return ranges as people write them, "3-9, 12", the first few of many."""
    parts = [str(a) if a == b else f"{a}-{b}" for a, b in ranges[:shown]]
    more = len(ranges) - shown
    return ", ".join(parts) + (f" and {more} more ranges" if more > 0 else "")


def _take(
    left: IntervalSet,
    place: IntervalSet,
    where: dict[str, tuple[Range, ...]] | None = None,
    name: str = "",
) -> int:
    """Remove from `left` what is in `place`; return how many that were, and note which."""
    before = left.count()
    if where is not None:
        where[name] = _common(left, place)
    for first, last in place:
        left.discard(first, last)
    return before - left.count()


def _common(left: IntervalSet, place: IntervalSet) -> tuple[Range, ...]:
    """Return what is in both, as ranges."""
    common: list[Range] = []
    for first, last in left:
        at = first
        for gap_first, gap_last in place.missing(first, last):
            if gap_first > at:
                common.append((at, gap_first - 1))
            at = gap_last + 1
        if at <= last:
            common.append((at, last))
    return tuple(common)


def _inside(ranges: IntervalSet, first: int, last: int) -> list[Range]:
    """Return the parts of `ranges` within first..last."""
    return [(max(a, first), min(b, last)) for a, b in ranges if a <= last and b >= first]


def _doubled(ranges: Sequence[Range]) -> tuple[Range, ...]:
    """Return where `ranges`, sorted, overlap."""
    twice = IntervalSet()
    end = 0
    for first, last in ranges:
        if first <= end:
            twice.add(first, min(last, end))
        end = max(end, last)
    return tuple(twice.ranges())


def _count(ranges: Iterable[Range]) -> int:
    return sum(last - first + 1 for first, last in ranges)
