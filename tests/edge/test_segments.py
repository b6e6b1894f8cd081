"""The body of a commit, docs/journal-format.md section 3."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge.journal_schema import row_crc32
from edge.segments import Segment, SegmentError, pack_runs, pack_segment, unpack_body
from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.frames import parse_publishes

DOC = Path(__file__).resolve().parents[2] / "docs" / "journal-format.md"

EXAMPLE = [
    Segment(
        4,
        "th-1",
        1_700_000_000_000_000,
        1,
        bytes.fromhex("3216000e") + b"devices/th-1/t\0\x0721.5",
    ),
    Segment(
        5,
        "th-2",
        1_700_000_000_000_500,
        2,
        bytes.fromhex("3013000e")
        + b"devices/th-2/t\x0020"
        + bytes.fromhex("3015000e")
        + b"devices/th-2/t\x0020.1",
    ),
]


def example_of_the_page() -> tuple[bytes, str]:
    """Return the worked example's body and what follows it."""
    section = DOC.read_text("utf-8").split("### 3.1 Example", 1)[1].split("\n## ", 1)[0]
    _, block, text = section.split("```")
    return bytes.fromhex(block), text


def test_the_pages_example_is_what_the_code_writes_and_reads() -> None:
    body, _ = example_of_the_page()
    assert b"".join(map(pack_segment, EXAMPLE)) == body
    assert unpack_body(body) == EXAMPLE
    payloads = [p[4] for s in EXAMPLE for p in parse_publishes(s.frames, s.version)]
    assert payloads == [b"21.5", b"20", b"20.1"]


def test_the_pages_row_checks() -> None:
    body, text = example_of_the_page()
    found = re.search(r"key (\d+), count (\d+), bytes (\d+), time_us (\d+), crc32 (\d+)", text)
    assert found is not None
    key, count, size, time_us, crc32 = map(int, found.groups())
    assert size == len(body)
    assert row_crc32(key, count, time_us, body) == crc32
    assert row_crc32(key + 1, count, time_us, body) != crc32


runs = st.lists(
    st.builds(
        lambda client_id, version, frames, count, time_us: PublishRun(
            ClientInfo(client_id, version), 1, frames, count, time_us, lambda run, code: None
        ),
        st.text(max_size=40),
        st.sampled_from((4, 5)),
        st.binary(max_size=200),
        st.integers(0, 2**32 - 1),
        st.integers(-(2**63), 2**63 - 1),
    ),
    max_size=8,
)


@given(runs)
def test_a_body_gives_back_what_was_packed(runs: list[PublishRun]) -> None:
    count, body = pack_runs(runs)
    assert count == sum(run.count for run in runs)
    assert unpack_body(body) == [
        Segment(r.client.protocol_version, r.client.client_id, r.time_us, r.count, r.frames)
        for r in runs
    ]


@given(runs)
def test_runs_and_segments_pack_alike(runs: list[PublishRun]) -> None:
    assert pack_runs(runs)[1] == b"".join(map(pack_segment, unpack_body(pack_runs(runs)[1])))


def test_a_connection_packs_its_name_once_and_its_own() -> None:
    one, other = ClientInfo("one", 4), ClientInfo("other", 5)
    runs = [
        PublishRun(client, 1, b"f", 1, 0, lambda run, code: None) for client in (one, other, one)
    ]
    assert [s.client_id for s in unpack_body(pack_runs(runs)[1])] == ["one", "other", "one"]


def test_every_strict_prefix_is_refused_or_a_whole_number_of_segments() -> None:
    body, _ = example_of_the_page()
    whole = {0, len(pack_segment(EXAMPLE[0]))}
    for cut in range(len(body)):
        if cut in whole:
            assert len(unpack_body(body[:cut])) == (1 if cut else 0)
        else:
            with pytest.raises(SegmentError, match="segment at byte"):
                unpack_body(body[:cut])


@given(st.binary(max_size=300))
def test_random_bytes_give_segments_or_a_typed_error(body: bytes) -> None:
    try:
        segments = unpack_body(body)
    except SegmentError:
        return
    assert sum(19 + len(s.frames) for s in segments) <= len(body)


def test_an_unknown_version_is_refused() -> None:
    with pytest.raises(SegmentError, match="unknown version 6"):
        unpack_body(b"\x06\0\0")
