"""Thinning as such: which readings are kept, and what an aggregate says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.contract import Lane
from edge.journal_schema import ROW_BYTES, Row, key_of, row_crc32
from edge.segments import Segment, pack_segment, unpack_body
from edge.thinning import MARK, Thinned, Thinner, ThinRule
from mqtt.frames import parse_publishes
from mqtt.packets import Publish
from mqtt.properties import USER_PROPERTY, encode_properties
from tests.kit.journals import publish_frame

MINUTE_US = 60_000_000
ONE_OF_3 = ThinRule(keep_one_of=3)
A_MINUTE = ThinRule(interval_us=MINUTE_US)


def row_of(first_seq: int, segments: Sequence[tuple[str, str, int, Sequence[bytes]]]) -> Row:
    """Return a row of the live lane; segments are (client, topic, time_us, payloads)."""
    body = b"".join(
        pack_segment(
            Segment(4, client, time_us, len(payloads),
                    b"".join(publish_frame(topic, payload) for payload in payloads))
        )
        for client, topic, time_us, payloads in segments
    )  # fmt: skip
    count = sum(len(payloads) for *_, payloads in segments)
    key = key_of(Lane.LIVE, first_seq)
    return (key, count, len(body), 7, 1, 5, row_crc32(key, count, 7, body), body)


def numbers(first_seq: int, count: int, *, time_us: int = 0, topic: str = "t") -> Row:
    payloads = [b"%d" % (first_seq + n) for n in range(count)]
    return row_of(first_seq, [("c", topic, time_us, payloads)])


def readings_in(rows: Sequence[Row]) -> list[tuple[int, str, bytes]]:
    """Return (seq, topic, payload) of all readings, after a look at the rows' checks."""
    found = []
    for key, count, size, time_us, _, _, crc32, body in rows:
        assert (size, crc32) == (len(body), row_crc32(key, count, time_us, body))
        seq = key - key_of(Lane.LIVE, 0)
        for segment in unpack_body(body):
            for _, topic, _, _, payload in parse_publishes(segment.frames, segment.version):
                found.append((seq, topic.decode(), payload))
                seq += 1
        assert seq == key - key_of(Lane.LIVE, 0) + count
    return found


def document_of(done: Thinned) -> dict[str, Any]:
    """Return the payload of the only reading that is left."""
    [(_, _, payload)] = readings_in(done.rows)
    document: dict[str, Any] = json.loads(payload)
    return document


# ---- one of N ------------------------------------------------------------------------------------


def test_one_of_n_is_kept_as_it_was_under_its_own_seq() -> None:
    rows = [numbers(1, 4), numbers(5, 4)]
    done = Thinner(ONE_OF_3).thin(rows)
    assert readings_in(done.rows) == [(1, "t", b"1"), (4, "t", b"4"), (7, "t", b"7")]
    assert done.dropped == [2, 3, 5, 6, 8]
    assert done.gone == [row[0] for row in rows]
    before = sum(row[2] + ROW_BYTES for row in rows)
    assert done.freed_bytes == before - sum(row[2] + ROW_BYTES for row in done.rows)


def test_each_client_and_topic_is_counted_for_itself_from_pass_to_pass() -> None:
    thinner = Thinner(ONE_OF_3)
    kept = []
    for first in range(1, 13, 2):
        row = row_of(first, [("c", "a", 0, [b"x"]), ("d", "a", 0, [b"y"])])
        done = thinner.thin([row])
        kept += [seq for seq, _, _ in readings_in(done.rows if done.gone else [row])]
    assert kept == [1, 2, 7, 8]


def test_time_and_boot_of_a_row_stay() -> None:
    done = Thinner(ONE_OF_3).thin([numbers(1, 3, time_us=99)])
    assert [row[3:6] for row in done.rows] == [(7, 1, 5)]
    assert [s.time_us for row in done.rows for s in unpack_body(row[7])] == [99]


def test_rows_that_do_not_check_or_are_no_publishes_are_left_alone() -> None:
    damaged = (*numbers(1, 9)[:6], 1, numbers(1, 9)[7])
    key = key_of(Lane.LIVE, 10)
    foreign = (key, 9, 3, 7, 1, 5, row_crc32(key, 9, 7, b"abc"), b"abc")
    short = list(numbers(20, 9))
    short[1] = 8
    short[6] = row_crc32(short[0], 8, 7, short[7])
    done = Thinner(ONE_OF_3).thin([damaged, foreign, tuple(short)])
    assert (done.rows, done.gone, done.dropped) == ([], [], [])


@given(
    st.lists(st.integers(1, 6), min_size=1, max_size=8),
    st.sampled_from([ONE_OF_3, A_MINUTE, ThinRule(interval_us=1), ThinRule(keep_one_of=2)]),
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3 * MINUTE_US)), min_size=8),
)
def test_every_seq_is_either_kept_or_dropped_and_order_stays(
    counts: list[int], rule: ThinRule, wheres: list[tuple[str, int]]
) -> None:
    rows, seq = [], 1
    for count, (topic, time_us) in zip(counts, wheres, strict=False):
        rows.append(numbers(seq, count, topic=topic, time_us=time_us))
        seq += count + 2  # the other lane has some in between
    done = Thinner(rule).thin(rows)
    untouched = [row for row in rows if row[0] not in done.gone]
    kept = [one for one, _, _ in readings_in(sorted([*done.rows, *untouched]))]
    before = {one: topic for one, topic, _ in readings_in(rows)}
    assert sorted([*kept, *done.dropped]) == sorted(before)
    assert kept == sorted(kept)
    assert done.dropped == sorted(done.dropped)
    assert all(before[one] == topic for one, topic, _ in readings_in(done.rows))


# ---- aggregates ----------------------------------------------------------------------------------


def test_plain_numbers_become_one_with_mean_least_and_greatest() -> None:
    row = row_of(4, [("c", "t", at, [value]) for at, value in ((5, b"1"), (6, b"2.5"), (7, b"4"))])
    done = Thinner(A_MINUTE).thin([row])
    assert done.dropped == [4, 5]
    assert document_of(done) == {
        "value": 2.5,
        "tidegate_thinned": {
            "count": 3, "first_us": 5, "last_us": 7, "min": {"value": 1}, "max": {"value": 4},
        },
    }  # fmt: skip


def test_fields_of_an_object_keep_their_place_and_what_is_no_number_is_the_lasts() -> None:
    payloads = [
        b'{"t": 20, "on": true, "deep": {"p": 1, "s": "a"}, "gone": 5}',
        b'{"t": 21, "on": true, "deep": {"p": 2, "s": "b"}, "list": [1]}',
        b'{"t": "out", "on": false, "deep": {"p": 3, "s": "c"}, "list": [2]}',
        b'{"t": 25, "on": false, "deep": {"p": 6, "s": "d"}, "list": [3]}',
    ]
    document = document_of(Thinner(A_MINUTE).thin([row_of(1, [("c", "t", 1, payloads)])]))
    summary = document.pop("tidegate_thinned")
    assert document == {"t": 22, "on": False, "deep": {"p": 3, "s": "d"}, "list": [3]}
    assert summary["min"] == {"t": 20, "deep": {"p": 1}}
    assert summary["max"] == {"t": 25, "deep": {"p": 6}}


def test_an_aggregate_is_marked_and_never_part_of_another() -> None:
    thinner = Thinner(A_MINUTE)
    first = thinner.thin([numbers(1, 5)])
    [segment] = unpack_body(first.rows[0][7])
    [(_, _, _, block, _)] = parse_publishes(segment.frames, segment.version)
    mark = encode_properties({USER_PROPERTY: [(MARK, "5")]}, Publish.packet_type)
    assert (segment.version, bytes([len(block)]) + block) == (5, mark)
    again = thinner.thin([*first.rows, numbers(6, 2)])
    assert [seq for seq, _, _ in readings_in(again.rows)] == [7]
    assert again.gone == [key_of(Lane.LIVE, 6)]


def test_intervals_clients_and_topics_are_apart_and_one_alone_stays_as_it_was() -> None:
    rows = [
        row_of(1, [("c", "t", 1, [b"1"]), ("c", "t", MINUTE_US, [b"2"])]),
        row_of(3, [("d", "t", 2, [b"3"]), ("c", "u", 2, [b"4"])]),
    ]
    done = Thinner(A_MINUTE).thin(rows)
    assert (done.rows, done.gone) == ([], [])


@pytest.mark.parametrize(
    "payload",
    [b"\xff\x00", b"on", b'"text"', b"[1, 2]", b"NaN", b"1e999", b'{"s": "x"}', b"true", b"",
     b'{"n": 1' + b"0" * 400 + b"}", b"[" * 5000, b'{"a":' * 5000],
)  # fmt: skip
def test_of_what_has_no_numbers_the_last_is_kept_as_it_was(payload: bytes) -> None:
    row = row_of(1, [("c", "t", 1, [b"5", b'{"n": 3}', payload])])
    done = Thinner(A_MINUTE).thin([row])
    assert readings_in(done.rows) == [(3, "t", payload)]


def test_equal_whole_numbers_stay_whole() -> None:
    document = document_of(Thinner(A_MINUTE).thin([row_of(1, [("c", "t", 1, [b"7", b"7"])])]))
    assert repr(document["value"]) == "7"
