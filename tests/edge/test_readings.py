"""Commits become readings: sources, devices, flags, times and blocks from the frames themselves."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.devices import DeviceIds
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN
from edge.contract import Commit, Lane
from edge.readings import CommitError, ReadingsBuffer, packet_bytes
from edge.segments import Segment, pack_segment
from mqtt.frames import encode_publish
from tests.kit.journals import readings_in
from tests.kit.readings import rows

NEVER_LATE = -(1 << 62)


def segment(
    payloads: list[bytes],
    *,
    topic: str = "devices/d1/v",
    client_id: str = "c1",
    version: int = 4,
    time_us: int = 1000,
    first_byte: int = 0x32,
    block: bytes = b"",
) -> bytes:
    frames = b"".join(
        encode_publish(first_byte, topic.encode(), 7, block, payload, version)
        for payload in payloads
    )
    return pack_segment(Segment(version, client_id, time_us, len(payloads), frames))


def commit(first_seq: int, count: int, *segments: bytes) -> Commit:
    return Commit(Lane.LIVE, first_seq, count, 5, b"".join(segments))


def test_each_publish_is_a_reading_with_its_own_source_and_time() -> None:
    first = commit(
        10,
        4,
        segment([b"1", b"2"], time_us=100),
        segment([b"on"], topic="plain", client_id="plug", time_us=200),
        segment([b"3"], topic="devices/d2/v", client_id="c9", time_us=300),
    )
    second = commit(20, 1, segment([b"4"], topic="plain", client_id="lamp", time_us=50))
    assert rows(readings_in([first, second], DeviceIds())) == [
        (10, "devices/d1/v", "d1", 100, 1, b"1", b""),
        (11, "devices/d1/v", "d1", 100, 1, b"2", b""),
        (12, "plain", "plug", 200, 1, b"on", b""),
        (13, "devices/d2/v", "d2", 300, 1, b"3", b""),
        (20, "plain", "lamp", 50, 1, b"4", b""),
    ]


@pytest.mark.parametrize(
    ("first_byte", "flags"),
    [
        (0x30, 0),
        (0x32, 1),
        (0x34, 2),
        (0x31, FLAG_RETAIN),
        (0x3B, 1 | FLAG_RETAIN),  # DUP is of the hop, not of the reading
        (0x3C, 2),
    ],
)
def test_flags_are_qos_and_retain(first_byte: int, flags: int) -> None:
    readings = readings_in([commit(1, 1, segment([b"x"], first_byte=first_byte))], DeviceIds())
    assert readings.flags == [flags]


def test_v5_property_blocks_are_kept_and_flagged() -> None:
    block = b"\x03\x00\x04json"
    body = commit(
        1,
        3,
        segment([b"x"], version=5, block=block),
        segment([b"y"], version=5),
        segment([b"z"]),
    )
    readings = readings_in([body], DeviceIds())
    assert readings.properties == [block, b"", b""]
    assert readings.flags == [1 | FLAG_PROPERTIES, 1, 1]


def test_what_was_had_before_is_skipped() -> None:
    buffer = ReadingsBuffer(DeviceIds())
    buffer.fill(commit(10, 5, segment([b"%d" % n for n in range(5)])), 12)
    buffer.fill(commit(15, 1, segment([b"5"])), 12)
    taken = buffer.take(10, 1 << 20, NEVER_LATE)
    assert taken is not None
    assert (list(taken.seqs), taken.payloads) == ([13, 14, 15], [b"3", b"4", b"5"])


@given(
    st.lists(st.integers(1, 30), min_size=1, max_size=10),
    st.lists(st.tuples(st.integers(1, 40), st.integers(1, 400)), min_size=1, max_size=60),
)
def test_takes_of_any_size_give_everything_once_in_order(
    counts: list[int], takes: list[tuple[int, int]]
) -> None:
    commits, seq = [], 1
    for count in counts:
        payloads = [b"x" * (n % 17) for n in range(seq, seq + count)]
        commits.append(commit(seq, count, segment(payloads, topic=f"t/{seq % 3}")))
        seq += count + 1  # the other lane has one in between
    whole = rows(readings_in(commits, DeviceIds()))
    buffer = ReadingsBuffer(DeviceIds())
    given_out: list[tuple[object, ...]] = []
    left = list(commits)
    for readings_max, bytes_max in takes:
        if left and len(buffer) < readings_max:
            buffer.fill(left.pop(0), 0)
        taken = buffer.take(readings_max, bytes_max, NEVER_LATE)
        if taken is None:
            continue
        assert len(taken) <= readings_max
        size = sum(len(str(row[1])) + len(bytes(row[5])) for row in rows(taken))  # type: ignore[call-overload]
        assert size <= bytes_max or len(taken) == 1
        given_out += rows(taken)
    assert given_out == whole[: len(given_out)]


def test_late_and_timely_readings_are_never_taken_together() -> None:
    buffer = ReadingsBuffer(DeviceIds())
    times = [5, 5, 20, 20, 5]
    segments = [segment([b"x"], time_us=time_us) for time_us in times]
    buffer.fill(commit(1, 5, *segments), 0)
    taken = [buffer.take(10, 1 << 20, 10) for _ in range(4)]
    assert [one.times_us if one else None for one in taken] == [[5, 5], [20, 20], [5], None]


@pytest.mark.parametrize(
    ("body", "cause"),
    [
        (b"\x09", "cut short"),
        (segment([b"x"]), "1 publishes where 3"),
        (segment([b"x", b"y", b"z"])[:-1], "not all there"),
        (pack_segment(Segment(4, "c", 1, 3, b"\x30\xff\xff\xff\xff\xff")), "malformed"),
        (pack_segment(Segment(4, "c", 1, 3, b"\x30\x04\x00\x02\xff\xfe" * 3)), "utf-8"),
    ],
)
def test_a_body_that_holds_no_publishes_is_named_and_leaves_nothing(
    body: bytes, cause: str
) -> None:
    buffer = ReadingsBuffer(DeviceIds())
    buffer.fill(commit(1, 1, segment([b"before"])), 0)
    with pytest.raises(CommitError, match=cause) as caught:
        buffer.fill(Commit(Lane.LIVE, 2, 3, 5, body), 0)
    assert caught.value.commit.first_seq == 2
    buffer.fill(commit(5, 1, segment([b"after"])), 0)
    taken = buffer.take(10, 1 << 20, NEVER_LATE)
    assert taken is not None
    assert taken.payloads == [b"before", b"after"]


def test_the_source_table_begins_anew_before_it_grows_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("edge.readings._SOURCES_MAX", 20)
    buffer = ReadingsBuffer(DeviceIds())
    for n in range(100):
        buffer.fill(commit(n + 1, 1, segment([b"x"], topic=f"devices/{n}/v")), 0)
        taken = buffer.take(1, 100, NEVER_LATE)
        assert taken is not None
        assert taken.sources[taken.source_index[0]] == (f"devices/{n}/v", str(n))
        assert len(taken.sources) <= 22


def test_packet_bytes_is_what_the_publishes_took() -> None:
    body = segment([b"x" * 200, b"", b"hello"], topic="a/b")
    readings = readings_in([commit(1, 3, body)], DeviceIds())
    frames = sum(
        len(encode_publish(0x32, b"a/b", 1, b"", payload, 4)) for payload in readings.payloads
    )
    assert abs(packet_bytes(readings) - frames) <= 3
