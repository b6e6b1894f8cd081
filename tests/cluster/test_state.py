"""The fold of the ledger: what counts, what is void, and that a checkpoint is the same state."""

from __future__ import annotations

import random

import cbor2
import pytest

from bridge.intervals import ranges_of
from cloud.stream.contract import GivenUp, StreamStats
from cloud.stream.jetstream.records import (
    NEVER,
    AppendRecord,
    PartRow,
    Record,
    RecordError,
    SourceRecord,
    Version,
    decode,
    encode,
    pack_ranges,
)
from cloud.stream.jetstream.saved import load, steps
from cloud.stream.jetstream.state import LedgerState

SOURCE = ("gw", 7)


def append(
    number: int, claim: Version | None, seqs: range, *, raw_seq: int = 1, partition: int = 3
) -> AppendRecord:
    ranges = ranges_of(seqs)
    place: PartRow = (0, partition, len(seqs), pack_ranges(ranges), (raw_seq, 0, 10))
    return AppendRecord(number, (SourceRecord(SOURCE, claim, seqs[-1], ranges),), (place,))


def saved(state: LedgerState) -> bytes:
    return b"".join(steps(state))


def record(*appends: AppendRecord, writer: str = "a", **more: object) -> Record:
    return Record(writer, 1, 1_000, appends, **more)  # type: ignore[arg-type]


def test_of_two_that_claim_a_version_the_first_counts() -> None:
    state = LedgerState(10)
    assert state.take(1, record(append(1, NEVER, range(1, 6)))).counted == (True,)
    other = record(append(1, NEVER, range(3, 9)), writer="b")
    assert state.take(2, other).counted == (False,)
    other = record(append(2, ("a", 1), range(6, 9)), writer="b")
    assert state.take(3, other).counted == (True,)
    assert state.held(SOURCE).ranges() == [(1, 8)]
    assert (state.appends, state.void) == (2, 1)
    assert state.version(SOURCE) == ("b", 2)


def test_what_builds_on_a_void_append_is_void() -> None:
    """Whatever the other node has done meanwhile, and however often."""
    for foreign in range(1, 5):
        state = LedgerState(10)
        claim = NEVER
        for number in range(1, foreign + 1):
            first = 100 * number
            state.take(number, record(append(number, claim, range(first, first + 9)), writer="b"))
            claim = ("b", number)
        chain = record(
            append(1, NEVER, range(1, 6)),
            append(2, ("a", 1), range(6, 8)),
            append(3, ("a", 2), range(8, 9)),
        )
        assert state.take(9, decode(encode(chain))).counted == (False, False, False)


def test_a_record_that_stands_twice_counts_once() -> None:
    state = LedgerState(10)
    twice = record(append(1, NEVER, range(1, 6)), append(2, ("a", 1), range(6, 9)))
    assert state.take(1, twice).counted == (True, True)
    assert state.take(2, twice).counted == (False, False)
    assert state.stats().readings == 8


def test_a_body_that_may_have_been_purged_is_void() -> None:
    state = LedgerState(10)
    state.take(1, record(append(1, NEVER, range(1, 6), raw_seq=8)))
    position = state.stats().last_positions[3]
    state.take(2, record(trims={3: position}))
    assert state.floor(3) == 8
    assert state.take(3, record(append(2, ("a", 1), range(6, 9), raw_seq=7))).counted == (False,)
    assert state.take(4, record(append(3, ("a", 1), range(6, 9), raw_seq=9))).counted == (True,)


def test_a_trim_spares_the_body_of_an_entry_that_was_committed_later() -> None:
    state = LedgerState(10)
    state.take(1, record(append(1, NEVER, range(1, 6), raw_seq=8)))
    first = state.stats().last_positions[3]
    state.take(2, record(append(2, ("a", 1), range(6, 9), raw_seq=5)))
    state.take(3, record(trims={3: first}))
    assert state.floor(3) == 4
    assert [entry.extents[0][0] for entry in state.entries(3, 0)] == [5]


def test_a_checkpoint_is_the_same_state() -> None:
    rng = random.Random(3)
    state, seq = LedgerState(50), 1
    claim: Version = NEVER
    for number in range(1, 200):
        first = seq
        seq += rng.randrange(1, 9)
        good = rng.random() < 0.9
        one = append(
            number,
            claim if good else ("other", number),
            range(first, seq),
            raw_seq=number,
            partition=rng.randrange(4),
        )
        stone = GivenUp(*SOURCE, "live", first, seq, 1, "evicted-age", number)
        whole = AppendRecord(number, one.sources, one.parts, (stone,) if rng.random() < 0.2 else ())
        trims = {}
        if rng.random() < 0.2:
            partition = rng.randrange(4)
            trims = {partition: state.stats().last_positions.get(partition, 0)}
        said = Record("n", number, number, (whole,), {"live": {1: number}}, trims)
        taken = state.take(number, decode(encode(said)))
        claim = ("n", number) if taken.counted[0] else claim
    twin = load(saved(state), 50)
    assert saved(twin) == saved(state)
    assert (twin.stats(), list(twin.ledger())) == (state.stats(), list(state.ledger()))
    assert twin.version(SOURCE) == claim
    for partition in range(4):
        assert list(twin.entries(partition, 0)) == list(state.entries(partition, 0))
    assert twin.backlog({0: 0, 1: 0}) == state.backlog({0: 0, 1: 0})
    assert twin.arrival(SOURCE, seq - 1) == state.arrival(SOURCE, seq - 1)


@pytest.mark.parametrize("data", [b"", b"\x80", b"\x81\x02", b"nonsense", encode(record())[:-1]])
def test_bytes_that_are_no_record_are_an_error(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(data)


def test_a_record_is_the_same_after_it_was_read() -> None:
    """A node does not read what it wrote itself: it knows the record by these bytes."""
    stone = GivenUp("other", 1 << 63, "live", 6, 7, 2, "evicted-age", 5)
    sources = (
        SourceRecord(SOURCE, ("b", 8), 12, ((1, 5), (8, 12))),
        SourceRecord(("other", 1 << 63), NEVER, 3, ((1, 3),)),
        SourceRecord(("third", 0), None, 9),
    )
    parts: tuple[PartRow, ...] = (
        (0, 3, 10, pack_ranges(((1, 5), (8, 12))), (9, 0, 1000, 10, 0, 7)),
        (1, 63, 3, pack_ranges(((1, 3),)), (1 << 40, 17, 100)),
    )
    both = AppendRecord(1, sources, parts, (stone,))
    whole = record(both, append(2, ("a", 1), range(20, 22)), cursors={"live": {3: 9}}, trims={4: 5})
    assert decode(encode(whole)) == whole


@pytest.mark.parametrize(
    "part", [(1, 3, 1, b"", (9, 0, 1)), (-1, 3, 1, b"", (9, 0, 1)), (0, 3, 1, b"", ()),
             (0, 3, 1, b"", (9, 0))]
)  # fmt: skip
def test_a_part_of_no_source_or_place_is_an_error(part: PartRow) -> None:
    with pytest.raises(RecordError):
        decode(encode(record(AppendRecord(1, (SourceRecord(SOURCE, NEVER, 1),), (part,)))))


def test_a_checkpoint_of_the_version_before_is_read() -> None:
    empty = [0, 0, 0, []]
    partitions = [empty] * 64
    partitions[3] = [8192, 9, 8, [[8192, 0, pack_ranges(((8, 11),)), 4, 1000, [9, 0, 10], 9]]]
    big = [8193, 0, pack_ranges(((12, 12),)), 1, 1000, [10, 0, 1000, 11, 0, 7], 1]
    partitions[5] = [8193, 1, 0, [big]]
    stone = ["live", 6, 7, 2, "evicted-age", 5]
    arrivals = [[[1, 5], 5, 1000, [3, 4096]], [[8, 12], 5, 1000, [3, 8192, 5, 8193]]]
    source = [*SOURCE, ["a", 2], 12, [1, 5, 8, 12], [stone], arrivals]
    state = load(cbor2.dumps([1, 3, [source], partitions, {"live": {3: 9}}, [0, 0]]), 10)
    assert state.seq == 3
    assert state.version(SOURCE) == ("a", 2)
    assert state.held(SOURCE).ranges() == [(1, 5), (8, 12)]
    assert [one.seq_ranges for one in state.entries(3, 0)] == [((8, 11),)]
    assert [one.extents for one in state.entries(5, 0)] == [((10, 0, 1000), (11, 0, 7))]
    assert state.stats() == StreamStats(5, 2, 1017, {3: 8192, 5: 8193})
    assert (state.floor(3), state.cursors("live")) == (8, {3: 9})
    assert next(state.ledger()).given_up == (GivenUp(*SOURCE, *stone),)
    arrival = state.arrival(SOURCE, 9)
    assert arrival is not None
    assert arrival.places == ((3, 8192), (5, 8193))
    again = load(saved(state), 10)
    assert (again.stats(), list(again.ledger())) == (state.stats(), list(state.ledger()))


def test_what_is_taken_while_a_checkpoint_is_made_is_not_in_it() -> None:
    state = LedgerState(10)
    state.take(1, record(append(1, NEVER, range(1, 6))))
    before = saved(state)
    making = steps(state)
    pieces = [next(making)]
    position = state.stats().last_positions[3]
    state.take(2, record(append(2, ("a", 1), range(6, 9)), append(1, NEVER, range(1, 2))))
    state.take(3, record(trims={3: position}, cursors={"live": {3: position}}))
    pieces += making
    assert b"".join(pieces) == before


def test_a_checkpoint_of_a_version_to_come_is_refused() -> None:
    with pytest.raises(ValueError, match="version 3"):
        load(cbor2.dumps([3]), 10)


def test_who_reads_all_entries_bears_that_others_are_taken_and_trimmed_meanwhile() -> None:
    state = LedgerState(10)
    claim: Version = NEVER
    for number in range(1, 700):
        claim = ("a", number - 1) if number > 1 else NEVER
        state.take(number, record(append(number, claim, range(number, number + 1))))
    reading = state.entries_after({3: next(state.entries(3, 0)).position})
    found = [next(reading).seq_ranges[0][0] for _ in range(300)]
    last = ("a", 699)
    state.take(700, record(trims={3: list(state.entries(3, 0))[99].position}))
    state.take(701, record(append(700, last, range(700, 701))))
    found += [entry.seq_ranges[0][0] for entry in reading]
    assert found == list(range(2, 701))
