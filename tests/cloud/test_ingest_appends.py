"""Batches on their way into the stream: what shares an append, in which order, and what fails."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from bridge.batch import Batch, decode_entry
from bridge.envelope import LinkLane, Mode, Tombstone
from bridge.intervals import ranges_of
from bridge.readings import Readings
from cloud.ingest_appends import Appends, Waiting
from cloud.ingest_parts import PartEncoder
from cloud.stream.contract import GivenUp, Part, Source, StreamError
from runtime.clock import ManualClock
from tests.kit.readings import one_per_row, rows


class Held:
    """A stream that answers appends when told to."""

    def __init__(self) -> None:
        self.appends: list[Sequence[Part]] = []
        self.told: list[tuple[Sequence[GivenUp], Mapping[Source, int]]] = []
        self.answers: list[asyncio.Future[None]] = []

    async def append(
        self,
        parts: Sequence[Part],
        given_up: Sequence[GivenUp] = (),
        assigned: Mapping[Source, int] | None = None,
    ) -> None:
        self.appends.append(parts)
        self.told.append((given_up, assigned or {}))
        self.answers.append(asyncio.get_running_loop().create_future())
        await self.answers[-1]

    def seqs(self) -> list[list[int]]:
        """Return the seqs of each append."""
        return [
            sorted(n for part in parts for first, last in part.seq_ranges
                   for n in range(first, last + 1))
            for parts in self.appends
        ]  # fmt: skip


class Lab:
    """Puts batches, and notes how they were answered."""

    def __init__(self) -> None:
        self.stream = Held()
        stream: Any = self.stream  # as much of one as is used
        self.appends = Appends(stream, PartEncoder(), ManualClock())
        self.answers: list[tuple[int, str]] = []

    async def put(
        self, first: int, count: int = 10, *, lane: int = LinkLane.LIVE, epoch: int = 1
    ) -> Waiting:
        """Put a batch of `count` readings; it is known by its first seq."""
        new = one_per_row(count, first_seq=first)
        batch = Batch("gw", epoch, lane, False, new, ranges_of(new.seqs), (),
                      first + count - 1, Mode.COLUMNAR, 1000)  # fmt: skip
        return await self.put_batch(batch, new, first)

    async def put_batch(self, batch: Batch, new: Readings | None, name: int) -> Waiting:
        waiting = Waiting(
            batch, new, lambda error: self.answers.append((name, str(error) if error else "ok"))
        )
        self.appends.put(waiting)
        await turns()
        return waiting

    async def answer(self, number: int, error: Exception | None = None) -> None:
        if error is None:
            self.stream.answers[number].set_result(None)
        else:
            self.stream.answers[number].set_exception(error)
        await turns()


async def turns() -> None:
    for _ in range(30):
        await asyncio.sleep(0)


async def test_what_waits_shares_the_next_append_and_is_answered_by_it() -> None:
    lab = Lab()
    for first in (1, 11, 21):
        await lab.put(first)
    assert lab.stream.seqs() == [list(range(1, 11))]
    await lab.answer(0)
    assert lab.answers == [(1, "ok")]
    assert lab.stream.seqs()[1:] == [list(range(11, 31))]
    assert lab.stream.told[1][1] == {("gw", 1): 30}
    await lab.answer(1)
    assert lab.answers == [(1, "ok"), (11, "ok"), (21, "ok")]
    found = [row for parts in lab.stream.appends for part in parts
             for row in rows(decode_entry(part.body).readings)]  # fmt: skip
    assert sorted(found, key=lambda row: int(str(row[0]))) == [
        row for first in (1, 11, 21) for row in rows(one_per_row(10, first_seq=first))
    ]
    assert lab.appends.entry_bytes == sum(
        len(part.body) for parts in lab.stream.appends for part in parts
    )


async def test_lanes_and_sources_wait_for_none_but_their_own() -> None:
    lab = Lab()
    await lab.put(1)
    await lab.put(11, lane=LinkLane.BACKLOG)
    await lab.put(21)
    await lab.put(31, lane=LinkLane.BACKLOG)
    await lab.put(1, epoch=2)
    ten = list(range(1, 11))
    assert lab.stream.seqs() == [ten, list(range(11, 21)), ten], "live waits for no backlog"
    await lab.answer(0)
    assert lab.stream.seqs()[3:] == [list(range(21, 31))]
    await lab.answer(1)
    assert lab.stream.seqs()[4:] == [list(range(31, 41))]
    assert lab.answers == [(1, "ok"), (11, "ok")]


async def test_an_append_is_bounded_and_its_seqs_rise() -> None:
    lab = Lab()
    await lab.put(1)
    await lab.put(100_000, 7000)
    await lab.put(200_000, 1000)
    await lab.put(300_000, 1000)
    await lab.put(50, 10)
    await lab.answer(0)
    assert len(lab.stream.seqs()[1]) == 8000
    await lab.answer(1)
    assert len(lab.stream.seqs()[2]) == 1000
    await lab.answer(2)
    assert lab.stream.seqs()[3] == list(range(50, 60))
    await lab.answer(3)
    assert [name for name, _ in lab.answers] == [1, 100_000, 200_000, 300_000, 50]


async def test_a_stream_that_fails_fails_all_of_an_append_and_what_was_refused_is_not_begun() -> (
    None
):
    lab = Lab()
    await lab.put(1)
    await lab.put(11)
    behind = await lab.put(21)
    behind.refused = True
    await lab.put(31)
    await lab.answer(0, StreamError("no quorum"))
    assert lab.stream.seqs()[1] == [*range(11, 21), *range(31, 41)]
    await lab.answer(1, StreamError("no quorum"))
    assert lab.answers == [
        (1, "no quorum"),
        (21, "context: a batch before this one was refused"),
        (11, "no quorum"),
        (31, "no quorum"),
    ]


@pytest.mark.parametrize("bad", [11, 21, 31])
async def test_one_that_cannot_be_appended_has_no_other_refused(bad: int) -> None:
    lab = Lab()
    await lab.put(1)
    for first in (11, 21, 31):
        one = await lab.put(first)
        if first == bad:
            assert one.new is not None
            one.new.times_us[0] = 1 << 80
    await lab.answer(0)
    number = 1
    while len(lab.answers) < 4:
        await lab.answer(number)
        number += 1
    assert [name for name, said in lab.answers if said == "ok"] == [
        name for name in (1, 11, 21, 31) if name != bad
    ]
    assert dict(lab.answers)[bad] == "a reading's time is outside what the link carries"


async def test_tombstones_alone_and_settled() -> None:
    lab = Lab()
    stone = Tombstone(1, 3, 4, 2, "evicted-age", 5)
    nothing = Readings(range(0), [], [], [], [], [], [])
    batch = Batch("gw", 1, 1, False, nothing, (), (stone,), 40, Mode.COLUMNAR, 1000)
    await lab.put_batch(batch, None, 7)
    assert lab.stream.appends == [[]]
    (given_up,), assigned = lab.stream.told[0]
    assert (given_up.gateway, given_up.lane, given_up.first_seq) == ("gw", "live", 3)
    assert assigned == {("gw", 1): 40}
    settled = asyncio.ensure_future(lab.appends.settled())
    await turns()
    assert not settled.done()
    await lab.answer(0)
    await settled
    assert lab.answers == [(7, "ok")]
