"""What nodes say to one another about sessions: read back as it was, the head alone too."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.cluster.mqtt_wire import (
    Inflight,
    Record,
    WireError,
    decode_record,
    encode_record,
)
from mqtt.broker.changes import DeliverySaved, MessageSaved, SessionSaved

POSITIONS = st.integers(0, (1 << 63) - 1)
INFLIGHT = st.builds(
    Inflight,
    packet_id=st.integers(1, 0xFFFF),
    position=POSITIONS,
    qos=st.integers(1, 2),
    progress=st.integers(0, 2),
    retain=st.integers(0, 1),
    identifiers=st.binary(max_size=4),
    share=st.sampled_from(["", "$share/g/a"]),
)
RECORDS = st.builds(
    Record,
    owner=st.text(max_size=8),
    saved=st.just(SessionSaved("c", 5, 3600, 0, b"t", b"p", b"", 1, 0, -1)),
    subscriptions=st.dictionaries(
        st.text(max_size=5), st.tuples(st.integers(0, 63), st.integers(0, 9), POSITIONS), max_size=3
    ),
    cursor=POSITIONS,
    done=st.lists(POSITIONS, max_size=5, unique=True).map(sorted),
    inflight=st.lists(INFLIGHT, max_size=6, unique_by=lambda one: one.position).map(
        lambda found: sorted(found, key=lambda one: one.position)
    ),
    inbound=st.lists(st.integers(1, 0xFFFF), max_size=3),
    messages=st.just([MessageSaved(7, b"t", b"p", b"", 1, 0, 0, "p")]),
    deliveries=st.just([DeliverySaved("c", 3, 7, 1, 0, b"", "")]),
    next_packet_id=st.integers(1, 0xFFFF),
    stamp=st.text(max_size=5),
    will_id=st.text(max_size=5),
)


@given(RECORDS)
def test_a_record_is_read_back_as_it_was(record: Record) -> None:
    data = encode_record(record)
    assert decode_record(data) == record
    head = replace(record, done=[], inflight=[], inbound=[], messages=[], deliveries=[])
    assert decode_record(data, head=True) == head


@given(RECORDS, st.data())
def test_foreign_or_torn_bytes_are_told(record: Record, data: st.DataObject) -> None:
    whole = encode_record(record)
    torn = whole[: data.draw(st.integers(0, len(whole) - 1))]
    for head in (True, False):
        with pytest.raises(WireError):
            decode_record(torn, head=head)
    for foreign in (data.draw(st.binary(max_size=50)), b"\x82\x01\x80"):
        with pytest.raises(WireError):
            decode_record(foreign)
