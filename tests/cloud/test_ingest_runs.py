"""Which run of a gateway has an epoch: what hellos are answered, and which batches are taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bridge.batch import Batch
from bridge.commands import Hello
from bridge.readings import Readings
from bridge.runs import Fork, Origin, Run
from cloud.config import StreamConfig
from cloud.ingest_runs import Greeting, RunKeeper
from cloud.ingest_sources import HeldSeqs, SourceState
from cloud.stream.contract import GivenUp, StreamError
from cloud.stream.embedded import EmbeddedStream
from runtime.clock import ManualClock
from tests.cloud.stream_contract import EPOCH, part

SOURCE = ("gw", EPOCH)
FIRST, ORIGINAL, CLONE = Run(1, 0), Run(2, 5), Run(3, 5)


class Ingest:
    """As much of a node as asks about runs."""

    def __init__(self, stream: EmbeddedStream) -> None:
        self.stream = stream
        self.held = HeldSeqs(stream)
        self.runs = RunKeeper(stream, self.held, ManualClock())

    async def greet(self, *runs: Run, last_seq: int = 5, origin: Origin | None = None) -> Greeting:
        return await self.runs.greet("gw", Hello(EPOCH, last_seq, runs, origin))

    async def takes(self, run: int, *seqs: int) -> bool:
        ranges = tuple((seq, seq) for seq in seqs)
        state = await self.held.settled(SOURCE, ranges)
        nothing = Readings([], [], [], [], [], [])
        batch = Batch("gw", EPOCH, 1, False, nothing, ranges, (), seqs[-1], 0, 1000, None, run)
        return self.runs.may_send(state, batch)


async def stream_at(path: Path) -> EmbeddedStream:
    return await EmbeddedStream.open(path / "stream.db", StreamConfig(), ManualClock())


@pytest.fixture
async def ingest(tmp_path: Path) -> AsyncIterator[Ingest]:
    stream = await stream_at(tmp_path)
    yield Ingest(stream)
    await stream.close()


async def test_a_gateway_that_says_no_runs_is_answered_as_ever(ingest: Ingest) -> None:
    await ingest.stream.append([part(1, [1, 2])])
    assert await ingest.greet() == Greeting(2)
    assert await ingest.takes(0, 3)


async def test_the_line_goes_on_and_who_was_left_behind_parts(ingest: Ingest) -> None:
    assert await ingest.greet(FIRST) == Greeting(0, FIRST.run)
    assert await ingest.greet(FIRST, ORIGINAL) == Greeting(0, ORIGINAL.run)
    assert await ingest.takes(ORIGINAL.run, 6)
    parted = await ingest.greet(FIRST, CLONE)
    assert isinstance(parted.fork, Fork)
    assert (parted.run, parted.fork.after_seq, ingest.runs.forks) == (CLONE.run, 5, 1)
    assert await ingest.takes(CLONE.run, 4, 5)
    assert not await ingest.takes(CLONE.run, 5, 6)
    assert not await ingest.takes(FIRST.run, 6)
    assert await ingest.takes(FIRST.run, 5)
    assert not await ingest.takes(99, 1)  # it has not said hello


async def test_what_is_known_lasts(ingest: Ingest, tmp_path: Path) -> None:
    await ingest.greet(FIRST, ORIGINAL)
    await ingest.stream.close()
    again = Ingest(await stream_at(tmp_path))
    try:
        assert (await again.greet(FIRST, CLONE)).fork is not None
        assert (await again.greet(FIRST, ORIGINAL)).fork is None
    finally:
        await again.stream.close()


async def test_a_copy_of_a_gateway_that_went_on_parts_and_that_one_keeps_its_epoch(
    ingest: Ingest,
) -> None:
    await ingest.greet(FIRST)
    state = await ingest.held.settled(SOURCE, ())
    state.begin([(1, 6)])
    await ingest.stream.append([part(1, range(1, 7))])
    state.end([(1, 6)], stored=True)
    assert (await ingest.greet(FIRST, CLONE)).fork is not None
    assert (await ingest.greet(FIRST, last_seq=6)) == Greeting(6, FIRST.run)


async def test_a_run_waits_for_what_is_under_way_and_nothing_new_is_taken_meanwhile(
    ingest: Ingest,
) -> None:
    """What the original has under way may be past where the clone began: then that one parts."""
    await ingest.greet(FIRST)
    state = await ingest.held.settled(SOURCE, ())
    state.begin([(6, 6)])
    greeting = asyncio.create_task(ingest.greet(FIRST, CLONE))
    while not state.admitting:
        await asyncio.sleep(0)
    assert not await ingest.takes(FIRST.run, 7)
    await ingest.stream.append([part(1, [6])])
    state.end([(6, 6)], stored=True)
    assert (await greeting).fork is not None
    assert await ingest.takes(FIRST.run, 7)


async def test_of_a_journal_of_before_runs_were_told_it_says_itself_whether_it_is_older(
    ingest: Ingest,
) -> None:
    await ingest.stream.append([part(1, range(1, 9))])
    for _ in range(2):  # the first answer may be lost
        assert await ingest.greet(ORIGINAL) == Greeting(8)
    assert await ingest.greet(ORIGINAL, last_seq=8) == Greeting(8, ORIGINAL.run)


async def test_where_an_epoch_parted_is_kept(ingest: Ingest) -> None:
    origin = Origin(5, EPOCH - 1)
    await ingest.greet(Run(3, 5), origin=origin)
    (line,) = await ingest.stream.ledger()
    assert line.origin == origin


async def test_a_stream_that_takes_nothing_is_said(ingest: Ingest) -> None:
    await ingest.greet(FIRST)
    await ingest.stream.close()
    with pytest.raises(StreamError):
        await ingest.greet(FIRST, ORIGINAL)


async def test_a_node_that_knows_the_line_of_long_ago_asks_before_it_has_anybody_part(
    ingest: Ingest,
) -> None:
    """A gateway met another node at its starts of late; what it says has none of before."""
    other = Ingest(ingest.stream)
    line = [FIRST, *(Run(number, 5) for number in range(10, 30))]
    await ingest.greet(FIRST)
    for end in range(1, len(line) + 1):
        await other.greet(*line[max(0, end - 8) : end])
    assert await ingest.greet(*line[-8:]) == Greeting(0, line[-1].run)
    assert ingest.runs.forks == 0


def test_a_run_that_was_heard_of_meanwhile_is_not_noted_twice() -> None:
    state = SourceState()
    state.took_runs((FIRST, ORIGINAL))
    state.took_runs((ORIGINAL, CLONE))
    assert (state.runs, state.runs_count) == ((FIRST, ORIGINAL, CLONE), 3)


@pytest.mark.parametrize("reason", ["origin", "run", "settled"])
async def test_what_a_gateway_gives_up_is_no_statement_whatever_its_reason(
    ingest: Ingest, reason: str
) -> None:
    stone = GivenUp("gw", EPOCH, "live", 3, 4, 2, reason, 1)
    await ingest.stream.append((), [stone])
    (line,) = await ingest.stream.ledger()
    assert (line.given_up, line.settled, line.origin) == ((stone,), None, None)
