"""Stamps: they come off again to the bit, and nothing else is taken for one."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from device_sim.stamps import Stamp, stamp, stampable, unstamp

numbers = st.integers(0, 2**53)
objects = st.dictionaries(st.text(), st.integers() | st.text() | st.none())
layouts = st.sampled_from([(",", ":"), (", ", ": ")])


@given(objects, layouts, numbers, numbers, numbers, numbers)
def test_a_stamp_comes_off_to_the_bit(
    body: dict[str, object], layout: tuple[str, str], device: int, n: int, attempt: int, us: int
) -> None:
    payload = json.dumps(body, separators=layout).encode()
    assert stampable(payload)

    stamped = stamp(payload, "r1", device, n, attempt, us)

    assert unstamp(stamped) == (Stamp("r1", device, n, attempt, us), payload)
    told = json.loads(stamped)
    assert told.pop("_sim") == f"r1.{device}.{n}.{attempt}.{us}"
    body.pop("_sim", None)
    assert told == body


@given(st.binary() | st.binary().map(lambda data: b"{" + data + b"}"))
def test_any_stampable_bytes_come_back(payload: bytes) -> None:
    if stampable(payload):
        found = unstamp(stamp(payload, "r", 1, 2, 3, 4))
        assert found == (Stamp("r", 1, 2, 3, 4), payload)


@given(st.binary())
def test_other_bytes_hold_no_stamp(payload: bytes) -> None:
    assert unstamp(payload) is None or b'"_sim"' in payload


def test_a_stamp_in_a_stamped_payload_is_that_payloads_own() -> None:
    inner = stamp(b'{"a":1}', "r", 1, 1, 1, 1)
    assert unstamp(stamp(inner, "s", 2, 2, 2, 2)) == (Stamp("s", 2, 2, 2, 2), inner)


def test_plain_values_cannot_carry_a_stamp() -> None:
    assert not any(stampable(payload) for payload in (b"", b"{", b"21.5", b"[1]", b'{"a":1}\n'))
