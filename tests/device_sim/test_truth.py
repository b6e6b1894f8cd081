"""Truth: compact, in the order of the wire, and exact."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from device_sim.truth import DeviceTruth, Truth, counter_of, key_of

keys = st.lists(st.builds(key_of, st.integers(0, 3), st.integers(0, 20)), max_size=60)


@given(keys)
def test_wire_is_what_was_sent_in_order(sent: list[int]) -> None:
    device = DeviceTruth()
    for key in sent:
        device.on_sent(key)
    assert list(device.wire()) == sent
    assert device.readings() == max((counter_of(key) + 1 for key in sent), default=0)


def test_a_long_run_takes_no_more_room_than_a_short_one() -> None:
    device = DeviceTruth()
    for counter in range(10_000):
        device.on_sent(key_of(0, counter))
        device.on_acked(key_of(0, counter))
    assert len(device.sent) == 2
    assert len(device.acked.ranges()) == 1


def test_sums_count_attempts_and_acknowledgements() -> None:
    truth = Truth("r", stamped=True, devices=[DeviceTruth(), DeviceTruth()])
    first = truth.devices[0]
    for key in (key_of(0, 0), key_of(0, 1), key_of(1, 1), key_of(1, 2)):
        first.on_sent(key)
    first.on_acked(key_of(0, 0))
    first.on_acked(key_of(1, 1))
    assert truth.publishes() == 4
    assert truth.acked() == 2
