"""The ledger of a system at work: whatever happens between two looks, it shows no gap.

A model of one gateway, the stream and storage moves on by steps that Hypothesis chooses before each
question that the balance asks. Nothing in it is ever lost, so every gap would be a false one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.intervals import IntervalSet, Range
from cloud.ledger import SLICE_ACCOUNTS, Balance, JournalState, StorageState, balance
from cloud.ledger_account import DISCARDED, Account, SourceBalance
from cloud.stream.contract import (
    DeadLetter,
    Entry,
    GivenUp,
    Source,
    SourceLedger,
    settled_stone,
)

SOURCE = ("gw", 7)
PARTITION = 1


def ranges(seqs: set[int]) -> tuple[Range, ...]:
    found = IntervalSet()
    found.update((seq, seq) for seq in sorted(seqs))
    return tuple(found.ranges())


@dataclass
class StreamSide:
    """What the cloud's stream holds."""

    assigned: int = 0
    held: set[int] = field(default_factory=set)
    stones: list[GivenUp] = field(default_factory=list)
    entries: dict[int, set[int]] = field(default_factory=dict)  # by position
    end: int = 0
    settled: int = 0


class World:
    """A system in which each reading is always somewhere.

    Args:
        steps: What happens before each question, an index into `acts` each.
        lagging: The node that is asked follows a stream that others write: it sees a past of it.
    """

    epoch = 1

    def __init__(self, steps: list[list[int]], *, lagging: bool) -> None:
        self.last_seq = 0
        self.waiting: set[int] = set()
        self.untold: list[GivenUp] = []  # tombstones that the cloud has not acknowledged
        self.in_flight: list[tuple[set[int], int]] = []  # durable, the gateway does not know yet
        self.stream = StreamSide()
        self.seen = StreamSide()
        self.cursor = 0
        self.stored: set[int] = set()
        self.dead: dict[int, set[int]] = {}
        self.halfway: Callable[[], None] | None = None  # the rest of an act of two steps
        self._steps = steps
        self._lagging = lagging
        self.acts: list[Callable[[], None]] = [
            self.assign, self.send_oldest, self.send_newest, self.acknowledge, self.evict,
            self.store, self.store, self.set_aside, self.trim, self.redrive, self.discard,
            self.look,
        ]  # fmt: skip

    def go_on(self) -> None:
        """Let some time pass."""
        for number in self._steps.pop(0) if self._steps else ():
            self.acts[number % len(self.acts)]()
            if not self._lagging:
                self.look()

    # ---- the gateway -----------------------------------------------------------------------------

    def assign(self) -> None:
        self.waiting |= {self.last_seq + 1, self.last_seq + 2, self.last_seq + 3}
        self.last_seq += 3

    def send_oldest(self) -> None:
        self._send(set(sorted(self.waiting - self.stream.held)[:4]))

    def send_newest(self) -> None:
        self._send(set(sorted(self.waiting - self.stream.held)[-2:]))

    def _send(self, seqs: set[int]) -> None:
        stream = self.stream
        stream.assigned = self.last_seq
        stream.stones += [stone for stone in self.untold if stone not in stream.stones]
        stream.held |= seqs
        if seqs:
            stream.end += 1
            stream.entries[stream.end] = seqs
        if not self.untold:
            settled = min(self.waiting, default=self.last_seq + 1) - 1
            stream.settled = max(stream.settled, settled)
        self.in_flight.append((seqs, len(self.untold)))

    def acknowledge(self) -> None:
        if self.in_flight:
            seqs, stones = self.in_flight.pop(0)
            self.waiting -= seqs
            del self.untold[:stones]
            self.in_flight = [(some, max(0, left - stones)) for some, left in self.in_flight]

    def evict(self) -> None:
        gone = set(sorted(self.waiting - self.stream.held)[:2])
        for seq in gone:
            self.waiting.discard(seq)
            self.untold.append(GivenUp(*SOURCE, "live", seq, seq, 1, "evicted-age", 5))

    # ---- the cloud -------------------------------------------------------------------------------

    def _next(self) -> tuple[int, set[int]] | None:
        left = [position for position in self.stream.entries if position > self.cursor]
        return (min(left), self.stream.entries[min(left)]) if left else None

    def store(self) -> None:
        if found := self._next():
            self.cursor = found[0]
            self.stored |= found[1]

    def set_aside(self) -> None:
        if found := self._next():
            position, seqs = found
            if position in self.dead:
                self.cursor = position
            self.dead[position] = seqs  # before the cursor passes it

    def trim(self) -> None:
        for position in [one for one in self.stream.entries if one <= self.cursor]:
            del self.stream.entries[position]

    def _decided(self) -> int | None:
        done = [position for position in self.dead if position <= self.cursor]
        return min(done, default=None)

    def redrive(self) -> None:
        position = self._decided()
        if position is None:
            return
        if self.dead[position] <= self.stored:
            del self.dead[position]
        else:
            self.stored |= self.dead[position]

    def discard(self) -> None:
        position = self._decided()
        if position is None or self.dead[position] <= self.stored:
            return
        stones = [
            GivenUp(*SOURCE, "storage", first, last, last - first + 1, DISCARDED, 5)
            for first, last in ranges(self.dead[position])
        ]
        if stones[0] in self.stream.stones:
            del self.dead[position]
        else:
            self.stream.stones += stones

    def look(self) -> None:
        """Have the node that is asked see the stream as it is."""
        self.seen = deepcopy(self.stream)

    # ---- what the balance asks -------------------------------------------------------------------

    async def catch_up(self) -> None:
        self.go_on()
        self.look()

    async def ledger(self) -> list[SourceLedger]:
        self.go_on()
        seen = self.seen
        if not seen.assigned:
            return []
        stones = [*seen.stones, settled_stone(SOURCE, seen.settled, 5)]
        return [SourceLedger.of(SOURCE, seen.assigned, ranges(seen.held), stones)]

    async def ranges_after(self, positions: dict[int, int]) -> dict[Source, list[Range]]:
        self.go_on()
        after = positions.get(PARTITION, 0)
        waiting = {seq for at, seqs in self.seen.entries.items() if at > after for seq in seqs}
        return {SOURCE: list(ranges(waiting))} if waiting else {}

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        self.go_on()
        return [
            DeadLetter(
                str(sink), Entry(PARTITION, at, *SOURCE, ranges(seqs), len(seqs), 5, b""), "x", 3, 5
            )
            for at, seqs in self.dead.items()
        ]


class Edge:
    def __init__(self, world: World) -> None:
        self.world = world

    async def state(self) -> JournalState:
        world = self.world
        world.go_on()
        return JournalState(SOURCE[1], world.last_seq, ranges(world.waiting), tuple(world.untold))


class Storage:
    def __init__(self, world: World) -> None:
        self.world = world

    async def state(self, *, count_rows: bool) -> StorageState:
        world = self.world
        world.go_on()
        stored = {SOURCE: ranges(world.stored)} if world.stored else {}
        return StorageState(stored, {PARTITION: world.cursor} if world.cursor else {}, world.epoch)


STEPS = st.lists(st.lists(st.integers(0, 11), max_size=16), min_size=9, max_size=9)


def looked_at(world: World, *, remote: bool = False, thorough: bool = False) -> Balance:
    journals = [] if remote else [Edge(world)]
    return asyncio.run(balance(world, Storage(world), journals, thorough=thorough))


@settings(max_examples=600)
@given(STEPS, st.booleans(), st.booleans(), st.booleans())
def test_no_interleaving_of_looks_and_work_shows_a_gap(
    steps: list[list[int]], lagging: bool, remote: bool, thorough: bool
) -> None:
    """Neither where the journal is in sight nor where only its gateway's word is."""
    world = World(steps, lagging=lagging)
    world.go_on()
    report = looked_at(world, remote=remote, thorough=thorough)
    assert report.balanced, report.lines()


@given(STEPS, st.booleans())
def test_a_reading_that_a_gateway_out_of_sight_lost_is_shown_once_it_says_nothing_waits(
    steps: list[list[int]], lagging: bool
) -> None:
    first = [0, 0, 2, 3]  # six assigned, the newest two sent, acknowledged
    world = World([[*first]], lagging=lagging)
    world.go_on()
    world.look()
    report = looked_at(world, remote=True)
    assert (report.balanced, report.waiting) == (True, 6)  # four at the gateway, it says
    world.waiting.discard(2)  # without a tombstone
    world._steps = [[1, 3, 1, 3, 2, 3, *steps[0]], *steps[1:]]
    world.go_on()
    report = looked_at(world, remote=True)
    (source,) = report.sources
    assert source.absent == ((2, 2),), source.lines()


@given(STEPS, st.booleans())
def test_a_reading_that_is_really_gone_is_shown_whatever_happens_meanwhile(
    steps: list[list[int]], lagging: bool
) -> None:
    """One that was stored before the first look, and whose row is deleted: it stays missing."""
    first = [0, 1, 5, 3, 8, *steps[0]]  # assigned, sent, stored, acknowledged, trimmed
    world = World([first, *steps[1:]], lagging=lagging)
    world.go_on()
    world.look()
    gone = world.stored & {1}
    world.stored -= gone
    world.cursor = max(world.cursor, 1)
    report = looked_at(world)
    assert sum(source.missing for source in report.sources) >= len(gone) == 1
    assert not report.balanced


async def test_a_balance_of_many_gateways_lets_others_work_after_every_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    n = 200
    held = {(f"gw{number}", 7): [(1, 10)] for number in range(n)}
    closed = [0]  # accounts by turn of the loop
    close = Account.close

    def counted(self: Account, gateway: str, epoch: int, *, with_storage: bool) -> SourceBalance:
        closed[-1] += 1
        return close(self, gateway, epoch, with_storage=with_storage)

    class Many:
        epoch = 1

        async def catch_up(self) -> None:
            """It always is."""

        async def ledger(self) -> list[SourceLedger]:
            return [SourceLedger.of(source, 10, ranges, ()) for source, ranges in held.items()]

        async def ranges_after(self, _: Mapping[int, int]) -> dict[Source, list[Range]]:
            return held

        async def dead_letters(self, _: str | None = None) -> list[DeadLetter]:
            return []

    monkeypatch.setattr(Account, "close", counted)
    balancing = asyncio.create_task(balance(Many(), None, sinks={"live": {}}))
    while not balancing.done():
        closed.append(0)
        await asyncio.sleep(0)
    found = balancing.result()
    assert found.balanced
    assert len(found.sources) == n
    assert max(closed) == SLICE_ACCOUNTS
    # a pause after every few in each other pass as well: accounts, entries, and a sink's
    assert len(closed) >= 4 * n // SLICE_ACCOUNTS
