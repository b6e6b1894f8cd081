"""The loss ledger: per (gateway, epoch), where every seq that was ever assigned is now.

    assigned = stored + given up + dead letters + waiting (at the edge, in the stream) + missing

`missing` and what was counted twice are exact ranges; the ledger balances when there are none.
Stored is counted in storage itself, never taken from the stream's word. What is waiting is shown
to be there: in the edge's journal, or in an entry past storage's cursor. Of a journal that is not
in sight the gateway's word stands, which it gives with its batches: up to which seq nothing waits.
What is past it may come, as long as the gateway has not begun another journal.

What must be somewhere is what was assigned before the first look. The sources are then read in the
way a reading goes, journal, stream, storage, so that one that moves on meanwhile is seen at least
once: a busy system never shows a gap it does not have. Where something seems wrong then, the stream
is asked once more, for what was assigned and given up while the others were read. A stream that
several nodes follow is read as far as anybody was acknowledged.
DESIGN section 3, Ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from bridge.intervals import IntervalSet, Range
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import DeadLetter, GivenUp, Source, SourceLedger

__all__ = [
    "DISCARDED",
    "Balance",
    "JournalLedger",
    "JournalState",
    "SinkAccount",
    "SourceBalance",
    "StorageLedger",
    "StorageState",
    "StreamView",
    "balance",
    "ranges_text",
]

DISCARDED = "discarded"  # reason of a tombstone for a dead letter; its lane is the sink's name
_RANGES_SHOWN = 12
_STONES_SHOWN = 20


@dataclass(slots=True, frozen=True)
class JournalState:
    """What one edge's journal says."""

    epoch: int
    last_seq: int  # the highest it assigned
    waiting: tuple[Range, ...]  # readings the cloud has not acknowledged
    given_up: tuple[GivenUp, ...]  # tombstones the cloud has not acknowledged; gateway is ""


@dataclass(slots=True, frozen=True)
class StorageState:
    """What storage holds at one moment."""

    stored: Mapping[Source, tuple[Range, ...]]
    positions: Mapping[int, int]  # of the stream with `stream_epoch`
    stream_epoch: int | None  # None: it never saw a stream


class JournalLedger(Protocol):
    """A journal that can be asked."""

    async def state(self) -> JournalState:
        """Return what it holds now."""
        ...


class StorageLedger(Protocol):
    """A storage that can be asked."""

    async def state(self, *, count_rows: bool) -> StorageState:
        """Return what is stored: counted row by row, or as the ranges kept along with the rows."""
        ...


class StreamView(Protocol):
    """The part of a stream the ledger reads; a `Stream` is one."""

    @property
    def epoch(self) -> int:
        """The id of the stream."""
        ...

    async def catch_up(self) -> None:
        """Return once this view has all that was acknowledged before the call."""
        ...

    async def ledger(self) -> list[SourceLedger]:
        """Return every source."""
        ...

    async def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        """Return the seqs of entries past `positions`."""
        ...

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        """Return the dead letters of a sink."""
        ...


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


@dataclass(slots=True, frozen=True)
class Balance:
    """All accounts."""

    sources: tuple[SourceBalance, ...]
    notes: tuple[str, ...] = ()  # what could not be read, and hence not proved

    @property
    def balanced(self) -> bool:
        """True when every account balances."""
        return all(source.balanced for source in self.sources)

    @property
    def waiting(self) -> int:
        """Readings under way: at an edge, or in the stream before storage."""
        return sum(source.waiting_edge + source.waiting_stream for source in self.sources)

    def lines(self, *, detail: bool = False) -> list[str]:
        """Return the report as text, one finding a line, the verdict last."""
        lines = [line for source in self.sources for line in source.lines(detail=detail)]
        lines += self._epoch_lines() if detail else []
        lines += [f"note: {note}" for note in self.notes]
        bad = sum(not source.balanced for source in self.sources)
        if bad:
            verdict = f"does not balance: {bad} of {len(self.sources)} accounts"
        else:
            verdict = f"balances: {len(self.sources)} accounts"
        return [*lines, verdict]

    def _epoch_lines(self) -> list[str]:
        """Say which gateways had more than one journal: each is an account of its own."""
        epochs: dict[str, list[str]] = {}
        for source in self.sources:
            epochs.setdefault(source.gateway, []).append(epoch_text(source.epoch))
        return [
            f"{gateway or '(unknown gateway)'}: {len(names)} journals, each with an epoch and an"
            f" account of its own: {', '.join(names)}"
            for gateway, names in epochs.items()
            if len(names) > 1
        ]


async def balance(
    stream: StreamView,
    storage: StorageLedger | None,
    journals: Sequence[JournalLedger] = (),
    *,
    sinks: Mapping[str, Mapping[int, int]] | None = None,
    thorough: bool = False,
    notes: Iterable[str] = (),
) -> Balance:
    """Balance what was assigned against where it is.

    Args:
        stream: The stream, open or a file.
        storage: Storage; None when there is no file: then nothing is stored.
        journals: Those of the edges that can be read here.
        sinks: Positions by partition of the sinks besides storage.
        thorough: Count storage row by row and look for seqs in two entries of the stream;
            takes seconds a million readings.
        notes: What the caller could not read.

    Raises:
        StreamError, DatabaseError: a source cannot be read.
    """
    before = _assigned(await stream.ledger()) if journals else {}  # see the module's text
    edges = [await journal.state() for journal in journals]
    await stream.catch_up()
    sources = await stream.ledger()
    said = list(notes)
    positions: Mapping[int, int] = {}
    if storage is not None:
        cursor = await storage.state(count_rows=False)
        if cursor.stream_epoch in (None, stream.epoch):
            positions = cursor.positions
        else:
            said.append("storage's cursors are of another stream: all entries count as waiting")
    in_stream = await stream.ranges_after(positions)
    entries = await stream.ranges_after({}) if thorough else {}
    dead = await stream.dead_letters("storage")
    stored: Mapping[Source, tuple[Range, ...]] = {}
    if storage is not None:  # last: what has passed the cursor since then is here
        stored = (await storage.state(count_rows=thorough)).stored
    accounts = _accounts(sources, before, edges, stored)
    for letter in dead:
        source = (letter.entry.gateway, letter.entry.epoch)
        accounts.setdefault(source, _Account()).dead.update(letter.entry.seq_ranges)
    for source, ranges in in_stream.items():
        accounts.setdefault(source, _Account()).in_stream.update(ranges)
    for name, reached in (sinks or {}).items():
        await _take_sink(accounts, stream, name, reached)
    for source, ranges in entries.items():
        accounts.setdefault(source, _Account()).doubled = _doubled(ranges)
    found = _closed(accounts, with_storage=storage is not None)
    if not all(source.balanced for source in found):
        await stream.catch_up()
        for line in await stream.ledger():
            if account := accounts.get((line.gateway, line.epoch)):
                account.known = line.assigned
                account.give_up(line.given_up)
        found = _closed(accounts, with_storage=storage is not None)
    return Balance(found, tuple(said))


def _closed(
    accounts: Mapping[Source, _Account], *, with_storage: bool
) -> tuple[SourceBalance, ...]:
    return tuple(
        accounts[source].close(*source, with_storage=with_storage) for source in sorted(accounts)
    )


async def _take_sink(
    accounts: dict[Source, _Account], stream: StreamView, name: str, reached: Mapping[int, int]
) -> None:
    """Note how far a sink without rows is: what waits, what died; it took all the rest."""
    waiting = await stream.ranges_after(reached)
    dead: dict[Source, IntervalSet] = {}
    for letter in await stream.dead_letters(name):
        source = (letter.entry.gateway, letter.entry.epoch)
        dead.setdefault(source, IntervalSet()).update(letter.entry.seq_ranges)
    for source, account in accounts.items():
        left = account.held.copy()
        waits = _take(left, IntervalSet(waiting.get(source, ())))
        died = _take(left, dead.get(source, IntervalSet()))
        _take(left, account.discarded(name))
        account.sinks.append(SinkAccount(name, left.count(), waits, died))


@dataclass(slots=True)
class _Account:
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
    doubled: tuple[Range, ...] = ()
    sinks: list[SinkAccount] = field(default_factory=list)

    def give_up(self, stones: Iterable[GivenUp]) -> None:
        for stone in stones:
            key = (stone.lane, stone.first_seq, stone.reason)
            known = self.tombstones.get(key)
            if known is None or stone.last_seq > known.last_seq:
                self.tombstones[key] = stone

    def close(self, gateway: str, epoch: int, *, with_storage: bool = True) -> SourceBalance:
        """Balance: each seq counts once, in the first of the places that has it."""
        left = IntervalSet([(1, self.assigned)] if self.assigned else [])
        unassigned = IntervalSet(self.stored)
        unassigned.update(self.held)
        unassigned.discard(1, max(self.assigned, self.known))
        where: dict[str, tuple[Range, ...]] = {}
        stored = _take(left, self.stored, where, "stored")
        dead = _take(left, self.dead, where, "dead")
        in_stream = _take(left, self.in_stream, where, "stream")
        discarded = _take(left, self.discarded("storage"), where, "given-up")
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
            self.assigned,
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
        )

    def discarded(self, sink: str) -> IntervalSet:
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


def _assigned(sources: Iterable[SourceLedger]) -> dict[Source, int]:
    return {(line.gateway, line.epoch): line.assigned for line in sources}


def _accounts(
    sources: Sequence[SourceLedger],
    before: Mapping[Source, int],
    edges: Sequence[JournalState],
    stored: Mapping[Source, tuple[Range, ...]],
) -> dict[Source, _Account]:
    """Return the accounts with what stream, journals and storage say of each source."""
    accounts: dict[Source, _Account] = {}
    newest_us: dict[str, int] = {}  # of a gateway's journals the last that said something
    for line in sources:
        newest_us[line.gateway] = max(line.settled_us, newest_us.get(line.gateway, 0))
    for line in sources:
        account = accounts.setdefault((line.gateway, line.epoch), _Account())
        account.assigned = line.assigned
        if line.settled_us == newest_us[line.gateway]:
            account.settled = line.settled
        account.held.update(line.held)
        account.give_up(line.given_up)
    for source, ranges in stored.items():
        accounts.setdefault(source, _Account()).stored.update(ranges)
    for edge in edges:
        # a journal does not name its gateway; epochs are random, so one is enough to know it by
        gateway = next((name for name, epoch in accounts if epoch == edge.epoch), "")
        if not edge.last_seq and (gateway, edge.epoch) not in accounts:
            continue
        account = accounts.setdefault((gateway, edge.epoch), _Account())
        account.assigned = max(before.get((gateway, edge.epoch), 0), edge.last_seq)
        account.settled = None  # the journal itself says what waits
        account.at_edge.update(edge.waiting)
        account.give_up(edge.given_up)
    return accounts


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
