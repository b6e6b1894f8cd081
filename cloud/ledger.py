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

Invariant: the event loop is held for `SLICE_ACCOUNTS` accounts at most, however many there are.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from bridge.intervals import IntervalSet, Range
from bridge.runs import Origin
from cloud.ledger_account import Account, SourceBalance
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import DeadLetter, GivenUp, Source, SourceLedger
from runtime.slices import in_slices

__all__ = [
    "SLICE_ACCOUNTS",
    "Balance",
    "JournalLedger",
    "JournalState",
    "StorageLedger",
    "StorageState",
    "StreamView",
    "balance",
    "may_still_send",
]

SLICE_ACCOUNTS = 8  # about 1 ms of some ranges each


@dataclass(slots=True, frozen=True)
class JournalState:
    """What one edge's journal says."""

    epoch: int
    last_seq: int  # the highest it assigned
    waiting: tuple[Range, ...]  # readings the cloud has not acknowledged
    given_up: tuple[GivenUp, ...]  # tombstones the cloud has not acknowledged; gateway is ""
    origin: Origin | None = None  # of an epoch that parted from another


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
        twice = [
            f"{source.gateway or '(unknown gateway)'}: {epoch_text(source.epoch)} parted from"
            f" {epoch_text(source.origin.epoch)} at seq {source.origin.after_seq}: two gateways of"
            " this name went on from one journal; if both still run, give one another id and folder"
            for source in self.sources
            if source.origin is not None
        ]
        return twice + [
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
    accounts = await _accounts(sources, before, edges, stored)
    for letter in dead:
        source = (letter.entry.gateway, letter.entry.epoch)
        accounts.setdefault(source, Account()).dead.update(letter.entry.seq_ranges)
    async for source, ranges in in_slices(in_stream.items(), SLICE_ACCOUNTS):
        accounts.setdefault(source, Account()).in_stream.update(ranges)
    for name, reached in (sinks or {}).items():
        await _take_sink(accounts, stream, name, reached)
    async for source, ranges in in_slices(entries.items(), SLICE_ACCOUNTS):
        accounts.setdefault(source, Account()).find_doubled(ranges)
    found = await _closed(accounts, with_storage=storage is not None)
    if not all(source.balanced for source in found):
        await stream.catch_up()
        async for line in in_slices(await stream.ledger(), SLICE_ACCOUNTS):
            if account := accounts.get((line.gateway, line.epoch)):
                account.known = line.assigned
                account.give_up(line.given_up)
        found = await _closed(accounts, with_storage=storage is not None)
    return Balance(found, tuple(said))


async def _closed(
    accounts: Mapping[Source, Account], *, with_storage: bool
) -> tuple[SourceBalance, ...]:
    found = [
        accounts[source].close(*source, with_storage=with_storage)
        async for source in in_slices(sorted(accounts), SLICE_ACCOUNTS)
    ]
    return tuple(found)


async def _take_sink(
    accounts: Mapping[Source, Account], stream: StreamView, name: str, reached: Mapping[int, int]
) -> None:
    """Note how far a sink without rows is: what waits, what died; it took all the rest."""
    waiting = await stream.ranges_after(reached)
    dead: dict[Source, IntervalSet] = {}
    for letter in await stream.dead_letters(name):
        source = (letter.entry.gateway, letter.entry.epoch)
        dead.setdefault(source, IntervalSet()).update(letter.entry.seq_ranges)
    async for source, account in in_slices(accounts.items(), SLICE_ACCOUNTS):
        account.take_sink(name, waiting.get(source, ()), dead.get(source, IntervalSet()))


def _assigned(sources: Iterable[SourceLedger]) -> dict[Source, int]:
    return {(line.gateway, line.epoch): line.assigned for line in sources}


async def _accounts(
    sources: Sequence[SourceLedger],
    before: Mapping[Source, int],
    edges: Sequence[JournalState],
    stored: Mapping[Source, tuple[Range, ...]],
) -> dict[Source, Account]:
    """Return the accounts with what stream, journals and storage say of each source."""
    accounts: dict[Source, Account] = {}
    newest = may_still_send(sources)
    async for line in in_slices(sources, SLICE_ACCOUNTS):
        account = accounts.setdefault((line.gateway, line.epoch), Account())
        account.assigned = line.assigned
        if (line.gateway, line.epoch) in newest:
            account.settled = line.settled
        account.origin = line.origin
        account.held.update(line.held)
        account.give_up(line.given_up)
    async for source, ranges in in_slices(stored.items(), SLICE_ACCOUNTS):
        accounts.setdefault(source, Account()).stored.update(ranges)
    for edge in edges:
        # a journal does not name its gateway; epochs are random, so one is enough to know it by
        gateway = next((name for name, epoch in accounts if epoch == edge.epoch), "")
        if not edge.last_seq and (gateway, edge.epoch) not in accounts:
            continue
        account = accounts.setdefault((gateway, edge.epoch), Account())
        account.assigned = max(before.get((gateway, edge.epoch), 0), edge.last_seq)
        account.settled = None  # the journal itself says what waits
        account.origin = account.origin or edge.origin
        account.at_edge.update(edge.waiting)
        account.give_up(edge.given_up)
    return accounts


def may_still_send(sources: Sequence[SourceLedger]) -> set[Source]:
    """Return the journals of which more may come: by gateway that which said something last.

    Epochs that parted are of several gateways with one name: the others of its family may as well.
    """
    parents = {
        (line.gateway, line.epoch): (line.gateway, line.origin.epoch)
        for line in sources
        if line.origin is not None
    }
    families: dict[Source, Source] = {}
    newest: dict[str, tuple[int, set[Source]]] = {}
    for line in sources:
        family = source = (line.gateway, line.epoch)
        for _ in range(len(parents)):  # a stream altered by hand may have a circle
            if family not in parents:
                break
            family = parents[family]
        families[source] = family
        said_us, chosen = newest.get(line.gateway, (0, set()))
        if line.settled_us > said_us:
            newest[line.gateway] = (line.settled_us, {family})
        elif line.settled_us == said_us:
            newest[line.gateway] = (said_us, chosen | {family})
    return {source for source, family in families.items() if family in newest[source[0]][1]}
