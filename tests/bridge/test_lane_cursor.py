"""One lane's place in the journal, and what is tried of what was refused."""

from __future__ import annotations

from bridge.envelope import Mode, Tombstone
from bridge.lane_cursor import LaneCursor, Step
from bridge.uplink_events import Durable, Sent

LIVE = 1
STONE = Tombstone(LIVE, 5, 6, 2, "evicted-age", 7)


def batch(after_seq: int, count: int, *stones: Tombstone) -> Sent:
    last_seq = after_seq + count
    return Sent(
        LIVE, after_seq, after_seq + 1, last_seq, count, 10, Mode.COLUMNAR, 0, tombstones=stones
    )


def sending(*counts: int) -> tuple[LaneCursor, list[Sent]]:
    cursor = LaneCursor()
    batches = []
    for count in counts:
        batches.append(batch(cursor.sent_seq, count))
        cursor.sent(batches[-1])
    return cursor, batches


def test_it_moves_past_what_was_taken_once_all_before_it_was() -> None:
    cursor, (first, second, _) = sending(10, 20, 30)
    second.durable = True
    assert cursor.advance(LIVE) is None
    first.durable = True
    assert cursor.advance(LIVE) == Durable(LIVE, 30, 30, [])
    assert (cursor.acked_seq, cursor.sent_seq) == (30, 60)


def test_tombstones_alone_are_durable_and_move_nothing() -> None:
    cursor = LaneCursor(acked_seq=7, sent_seq=7)
    told = batch(7, 0, STONE)
    cursor.sent(told)
    told.durable = True
    assert cursor.advance(LIVE) == Durable(LIVE, 7, 0, [STONE], 7)


def test_after_a_rewind_what_was_not_acknowledged_is_sent_again() -> None:
    cursor, (first, _) = sending(10, 20)
    first.durable = True
    cursor.advance(LIVE)
    cursor.rewind()
    assert (cursor.acked_seq, cursor.sent_seq, len(cursor.chain)) == (10, 10, 0)


def test_a_refused_range_is_tried_fresh_then_plain_then_in_halves_down_to_one() -> None:
    cursor = LaneCursor()
    tried = []
    for count in (8, 8, 8, 4, 2):
        assert not cursor.refused(batch(0, count), too_large=False)
        assert cursor.suspect is not None
        tried.append((cursor.suspect.step, cursor.suspect.readings_max))
    assert tried == [
        (Step.FRESH, 8), (Step.PLAIN, 8), (Step.HALVES, 4), (Step.HALVES, 2), (Step.HALVES, 1),
    ]  # fmt: skip
    assert cursor.refused(batch(0, 1), too_large=False), "nothing smaller is left"


def test_what_is_too_large_is_halved_at_once() -> None:
    cursor = LaneCursor()
    assert not cursor.refused(batch(0, 8), too_large=True)
    assert cursor.suspect is not None
    assert (cursor.suspect.step, cursor.suspect.readings_max) == (Step.HALVES, 4)


def test_a_suspect_is_cleared_with_its_last_reading_and_grows_with_each_part() -> None:
    cursor = LaneCursor()
    cursor.refused(batch(0, 8), too_large=True)
    for count, left in ((4, 8), (4, None)):
        part = batch(cursor.sent_seq, count)
        cursor.sent(part)
        part.durable = True
        cursor.advance(LIVE)
        assert (cursor.suspect and cursor.suspect.readings_max) == left


def test_past_what_was_set_aside_nothing_is_suspect() -> None:
    cursor = LaneCursor()
    cursor.refused(batch(0, 1), too_large=True)
    cursor.set_aside(1)
    assert (cursor.acked_seq, cursor.sent_seq, cursor.suspect) == (1, 1, None)
