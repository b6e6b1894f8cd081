"""Batches on their way into the stream: what shares an append, in which order, and what fails."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pytest

from bridge.batch import Batch, decode_entry
from bridge.envelope import LinkLane, Mode, Tombstone
from bridge.intervals import ranges_of
from bridge.readings import Readings
from bridge.shared_entry import EntryReader
from cloud import ingest_appends
from cloud.ingest_appends import Appends, Waiting
from cloud.ingest_packs import _TURN_READINGS
from cloud.ingest_parts import _STEP_READINGS, PartEncoder
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

    def __init__(self, encoder: PartEncoder | None = None, *, late_s: float = 0) -> None:
        self.stream = Held()
        stream: Any = self.stream  # as much of one as is used
        self.parts: list[tuple[Part, Readings]] = []
        encoder = encoder or PartEncoder(lambda part, found, _: self.parts.append((part, found)))
        self.appends = Appends(stream, encoder, ManualClock(), late_s=late_s)
        self.answers: list[tuple[int, str]] = []

    async def put(
        self,
        first: int,
        count: int = 10,
        *,
        lane: int = LinkLane.LIVE,
        epoch: int = 1,
        gateway: str = "gw",
    ) -> Waiting:
        """Put a batch of `count` readings; it is known by its first seq."""
        waiting = self.offer(first, count, lane=lane, epoch=epoch, gateway=gateway)
        await turns()
        return waiting

    def offer(
        self,
        first: int,
        count: int = 10,
        *,
        lane: int = LinkLane.LIVE,
        epoch: int = 1,
        gateway: str = "gw",
        topic: str = "",
    ) -> Waiting:
        """Put a batch in this turn of the loop."""
        new = one_per_row(count, first_seq=first, devices=1 if topic else 7)
        new.sources = [(topic or name, device) for name, device in new.sources]
        batch = Batch(gateway, epoch, lane, False, new, ranges_of(new.seqs), (),
                      first + count - 1, Mode.COLUMNAR, 1000)  # fmt: skip
        return self._put(batch, new, first)

    async def put_batch(self, batch: Batch, new: Readings | None, name: int) -> Waiting:
        waiting = self._put(batch, new, name)
        await turns()
        return waiting

    def _put(self, batch: Batch, new: Readings | None, name: int) -> Waiting:
        waiting = Waiting(
            batch, new, lambda _, error: self.answers.append((name, str(error) if error else "ok"))
        )
        self.appends.put(waiting)
        return waiting

    def found(self, append: int) -> list[tuple[object, ...]]:
        """Return the readings of an append as they are read from its parts, by seq."""
        reader = EntryReader()
        return sorted(
            (row for part in self.stream.appends[append]
             for row in rows(reader.read(part.body, part.gateway, part.epoch).readings)),
            key=lambda row: int(str(row[0])),
        )  # fmt: skip

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


async def gathering(monkeypatch: pytest.MonkeyPatch) -> tuple[Lab, Waiting]:
    """Return a lab where much backlog was appended, and a batch that came behind it."""
    monkeypatch.setattr(ingest_appends, "_GATHER_S", 3600.0)
    monkeypatch.setattr(ingest_appends, "_GATHER_READINGS", 50)
    lab = Lab()
    await lab.put(1, 50, lane=LinkLane.BACKLOG)
    waiting = await lab.put(51, lane=LinkLane.BACKLOG)
    await lab.answer(0)
    assert lab.answers == [(1, "ok")]
    assert len(lab.stream.appends) == 1
    return lab, waiting


async def test_backlog_that_comes_fast_is_gathered_until_a_full_append(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lab, _ = await gathering(monkeypatch)
    monkeypatch.setattr(ingest_appends, "_READINGS_MAX", 30)
    await lab.put(61, lane=LinkLane.BACKLOG)
    assert len(lab.stream.appends) == 1
    await lab.put(71, lane=LinkLane.BACKLOG)
    assert lab.stream.seqs()[1:] == [list(range(51, 81))]
    await lab.answer(1)
    assert [answer for _, answer in lab.answers] == ["ok"] * 4
    await lab.appends.settled()


async def test_no_live_reading_waits_for_what_is_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    lab, waiting = await gathering(monkeypatch)
    waiting.hurry()  # a live batch lies behind it in its connection
    for first in (1001, 1101, 1201):  # however many there are
        await lab.put(first, 60)
        await lab.answer(len(lab.stream.appends) - 1)
    assert [answer for answer, _ in lab.answers] == [1, 1001, 1101, 1201]


async def test_backlog_is_gathered_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest_appends, "_GATHER_READINGS", 50)
    lab = Lab()
    await lab.put(1, 50, lane=LinkLane.BACKLOG)
    await lab.put(51, lane=LinkLane.BACKLOG)
    await lab.answer(0)
    async with asyncio.timeout(60):
        while len(lab.stream.appends) < 2:
            await asyncio.sleep(0.01)
    assert lab.stream.seqs()[1:] == [list(range(51, 61))]


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


async def test_a_lane_keeps_its_order_where_readings_begin_to_be_historical() -> None:
    """In the middle of a drain: neither share an append, nor does one overtake the other."""
    lab = Lab()
    for first, historical in ((1, True), (11, True), (21, False), (31, False)):
        new = one_per_row(10, first_seq=first)
        batch = Batch("gw", 1, LinkLane.BACKLOG, historical, new, ranges_of(new.seqs), (),
                      first + 9, Mode.COLUMNAR, 1000)  # fmt: skip
        await lab.put_batch(batch, new, first)
    for begun in (1, 2, 3):
        assert len(lab.stream.appends) == begun
        lab.stream.answers[begun - 1].set_result(None)
        await turns()
    await lab.appends.settled()
    assert lab.stream.seqs() == [
        list(range(1, 11)), list(range(11, 21)), list(range(21, 41))
    ]  # fmt: skip
    assert lab.answers == [(1, "ok"), (11, "ok"), (21, "ok"), (31, "ok")]


async def test_readings_are_not_historical_because_a_tombstone_before_them_is() -> None:
    told: list[tuple[list[int], bool]] = []
    lab = Lab(PartEncoder(lambda _, found, historical: told.append((list(found.seqs), historical))))
    await lab.put(1)
    behind = await lab.put(11)
    stone = Tombstone(1, 21, 24, 4, "evicted-age", 5)
    nothing = Readings(range(0), [], [], [], [], [], [])
    batch = Batch("gw", 1, LinkLane.LIVE, True, nothing, (), (stone,), 24, Mode.COLUMNAR, 1000)
    await lab.put_batch(batch, None, 21)
    await lab.put(31, 1)
    behind.refused = True
    await lab.answer(0)
    await lab.answer(1)
    assert told[-1] == ([31], False)
    assert [name for name, said in lab.answers if said == "ok"] == [1, 21, 31]


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


# ---- packs ---------------------------------------------------------------------------------------


async def test_what_is_put_at_the_same_time_shares_bodies_and_is_appended_by_itself() -> None:
    lab = Lab()
    for n in range(5):
        lab.offer(100 * n + 1, gateway=f"gw-{n}")
    lab.offer(600, gateway="gw-0", lane=LinkLane.BACKLOG)
    await turns()
    assert [sorted({part.gateway for part in parts}) for parts in lab.stream.appends] == [
        [f"gw-{n}"] for n in (0, 1, 2, 3, 4, 0)
    ]
    live = lab.stream.appends[:5]
    bodies = [{part.partition: part.body for part in parts} for parts in live]
    assert all(one == bodies[0] for one in bodies), "one body a partition, whoever's it is"
    assert {part.sharers for parts in live for part in parts} == {5}
    assert {part.sharers for part in lab.stream.appends[5]} == {1}, "another lane, another body"
    for n in range(5):
        assert lab.found(n) == rows(one_per_row(10, first_seq=100 * n + 1))
    assert lab.found(5) == rows(one_per_row(10, first_seq=600))
    for part, readings in lab.parts:  # what sinks are handed is what they would read
        batch = EntryReader().read(part.body, part.gateway, part.epoch)
        assert rows(batch.readings) == rows(readings)
        assert batch.readings.sources == readings.sources
        assert batch.seq_ranges == part.seq_ranges
    for number in (5, 0, 1, 2, 3, 4):
        await lab.answer(number, StreamError("void") if number == 2 else None)
    assert sorted(lab.answers) == [
        (1, "ok"), (101, "ok"), (201, "void"), (301, "ok"), (401, "ok"), (600, "ok"),
    ]  # fmt: skip
    shared = sum(len(body) for body in bodies[0].values())
    alone = sum(len(part.body) for part in lab.stream.appends[5])
    assert shared * 4 / 5 + alone - 40 < lab.appends.entry_bytes <= shared * 4 / 5 + alone


async def test_one_that_cannot_be_encoded_leaves_the_others_of_its_pack_alone() -> None:
    lab = Lab()
    for n in range(4):
        one = lab.offer(100 * n + 1, gateway=f"gw-{n}")
        if n == 2:
            assert one.new is not None
            one.new.times_us[3] = 1 << 80
    await turns()
    assert len(lab.stream.appends) == 3
    for number in range(3):
        await lab.answer(number)
    assert dict(lab.answers) == {
        1: "ok", 101: "ok", 301: "ok",
        201: "a reading's time is outside what the link carries",
    }  # fmt: skip
    assert [lab.found(n) for n in range(3)] == [
        rows(one_per_row(10, first_seq=first)) for first in (1, 101, 301)
    ]


async def test_readings_that_unpack_to_much_share_no_body_with_those_of_others() -> None:
    lab = Lab()
    for n in range(6):
        count, topic = (300, "x" * 60_000) if n % 2 else (10, "")
        lab.offer(1000 * n + 1, count, gateway=f"gw-{n}", topic=topic)
    await turns()
    for number in range(6):
        await lab.answer(number)
    assert [name for name, said in lab.answers if said == "ok"] == [1000 * n + 1 for n in range(6)]
    for n in range(6):
        found = lab.found(n)
        assert [row[0] for row in found] == [1000 * n + 1 + k for k in range(300 if n % 2 else 10)]


async def test_a_pack_waits_for_the_one_before_it_but_not_for_ever_and_a_full_one_not_at_all() -> (
    None
):
    lab = Lab(late_s=3600)
    await lab.put(1, gateway="gw-1")
    await lab.put(101, gateway="gw-2")
    await lab.put(201, gateway="gw-3")
    assert lab.stream.seqs() == [list(range(1, 11))]
    await lab.put(10_001, 7000, gateway="gw-4")
    assert len(lab.stream.appends) == 1
    lab.stream.answers[0].set_result(None)
    async with asyncio.timeout(60):  # those answered have a moment to send more
        while len(lab.stream.appends) < 4:
            await asyncio.sleep(0)
    for n in range(5, 9):
        await lab.put(100_000 * n, 7000, gateway=f"gw-{n}")
    assert len(lab.stream.appends) == 4, "28,000 readings wait"
    await lab.put(2_000_001, 7000, gateway="gw-9")
    async with asyncio.timeout(60):
        while len(lab.stream.appends) < 8:
            await asyncio.sleep(0)
    late = Lab(late_s=0.001)
    await late.put(1, gateway="gw-1")
    await late.put(101, gateway="gw-2")
    async with asyncio.timeout(60):
        while len(late.stream.appends) < 2:
            await asyncio.sleep(0)
    assert late.answers == []
    for answer in (*lab.stream.answers[1:], *late.stream.answers):
        answer.set_result(None)
    await turns()
    assert len(late.answers) == 2


async def test_what_is_refused_while_it_waits_for_a_pack_is_in_none() -> None:
    lab = Lab(late_s=3600)
    await lab.put(1, gateway="gw-1")
    behind = await lab.put(101, gateway="gw-2")
    await lab.put(201, gateway="gw-3")
    behind.refused = True
    await lab.answer(0)
    async with asyncio.timeout(60):
        while len(lab.stream.appends) < 2:
            await asyncio.sleep(0)
    assert lab.stream.seqs()[1] == list(range(201, 211))
    assert (101, "context: a batch before this one was refused") in lab.answers
    await lab.answer(1)
    async with asyncio.timeout(60):
        await lab.appends.settled()


class Counting(PartEncoder):
    """Notes how many readings it joined or encoded, by turn of the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.worked: list[int] = []

    def parts(self, *args: Any, **more: Any) -> Iterator[list[tuple[int, Part]]]:
        for found in super().parts(*args, **more):
            self.worked[-1] += sum(part.count for _, part in found) or _STEP_READINGS
            yield found


async def test_what_many_gateways_send_at_once_is_joined_and_encoded_in_small_pieces() -> None:
    encoder = Counting()
    lab = Lab(encoder)
    for gateway in range(60):
        lab.offer(1, 200, gateway=f"gw{gateway}")
    while len(lab.stream.appends) < 60:
        encoder.worked.append(0)
        await asyncio.sleep(0)
    assert sum(encoder.worked) == 12_000 + 2 * _STEP_READINGS  # before the last step
    assert max(encoder.worked) <= max(_STEP_READINGS, _TURN_READINGS + 12_000 // 7 + 60)
