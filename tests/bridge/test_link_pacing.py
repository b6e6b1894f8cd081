"""Credits on the control topic, and the gateway that keeps to them."""

from __future__ import annotations

import random

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.errors import BatchError
from bridge.link_pacing import Credit, Pace, decode_credit, encode_credit, retry_after


class Least:
    """A generator that always draws the least."""

    def uniform(self, a: float, b: float, /) -> float:
        return a


def sent_in(pace: Pace, seconds: float, *, batch: int = 100, begin_s: float = 0.0) -> int:
    """Send batches as fast as is allowed; return how many readings went."""
    now_s, total = begin_s, 0
    while now_s < begin_s + seconds:
        wait_s = pace.wait_s(now_s)
        if wait_s > 0:
            now_s += wait_s
            continue
        pace.sent(batch)
        total += batch
    return total


# ---- on the wire ---------------------------------------------------------------------------------


@given(st.none() | st.integers(0, 1 << 32), st.integers(0, 86_400), st.integers(0, 86_400))
def test_what_is_encoded_is_decoded(readings_s: int | None, hold_s: int, valid_s: int) -> None:
    credit = Credit(readings_s, hold_s, valid_s)
    assert decode_credit(encode_credit(credit)) == credit


def test_the_example_of_the_format() -> None:
    payload = bytes.fromhex("a4 00 01 01 19 03e8 02 05 03 18 1e")
    assert encode_credit(Credit(1000, 5, 30)) == payload


def test_another_version_says_nothing_this_end_must_do() -> None:
    assert decode_credit(cbor2.dumps({0: 2, 1: 5})) is None


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xff", cbor2.dumps({0: 1, 1: "x"}), cbor2.dumps({0: 1, 1: 1 << 40}), b"\xa0" * 5000],
)
def test_anything_else_is_refused(payload: bytes) -> None:
    with pytest.raises(BatchError):
        decode_credit(payload)


@given(st.binary(max_size=40))
def test_any_bytes_give_a_credit_nothing_or_an_error(payload: bytes) -> None:
    try:
        credit = decode_credit(payload)
    except BatchError:
        return
    assert credit is None or 0 <= credit.hold_s <= 86_400


@pytest.mark.parametrize(
    ("said", "seconds"),
    [("5", 5.0), ("0.25", 0.25), ("99999", 99_999.0), ("", 0), ("-1", 0), ("nan", 0), ("1e9", 0),
     ("123456", 0), ("5 s", 0), ("\u0665", 0)],
)  # fmt: skip
def test_only_decimal_seconds_are_taken_for_when_to_come_again(said: str, seconds: float) -> None:
    assert retry_after([("other", "1"), ("retry-after", said)]) == seconds


def test_a_fleet_begins_anywhere_in_the_time_of_its_first_batch() -> None:
    begin_s = []
    for seed in range(500):
        pace = Pace(random.Random(seed), 100)
        pace.take(Credit(20, 0, 60), 0.0)
        begin_s.append(pace.wait_s(0.0))
    assert max(begin_s) <= 5.1, "of 100 readings at 20 a second"
    assert sum(begin_s) / 500 == pytest.approx(2.5, rel=0.1)


# ---- keeping to it -------------------------------------------------------------------------------


def test_without_a_word_of_the_cloud_there_is_no_limit() -> None:
    pace = Pace(Least())
    pace.sent(5000)
    assert pace.wait_s(5.0) == 0


@pytest.mark.parametrize("batch", [1, 100, 1000])
def test_a_rate_is_kept_whatever_the_batches(batch: int) -> None:
    pace = Pace(Least())
    pace.take(Credit(200, 0, 1000), 0.0)
    assert sent_in(pace, 500.0, batch=batch) == pytest.approx(200 * 500, rel=0.02)


def test_a_renewed_credit_is_no_new_burst() -> None:
    pace = Pace(Least())
    total = 0
    for second in range(50):
        pace.take(Credit(200, 0, 30), float(second))
        total += sent_in(pace, 1.0, begin_s=float(second))
    assert 200 * 45 <= total <= 200 * 53


def test_a_credit_ends_when_the_cloud_falls_silent() -> None:
    pace = Pace(Least())
    pace.take(Credit(0, 0, 30), 0.0)
    assert pace.wait_s(1.0) == pytest.approx(29.0)
    assert pace.wait_s(30.0) == 0
    assert pace.readings_s(30.0) is None


def test_a_hold_keeps_backlog_back_and_repeating_it_does_not_lengthen_it() -> None:
    pace = Pace(Least())
    for second in range(5):
        pace.take(Credit(100, 10, 60), float(second))
    assert pace.wait_s(5.0) == pytest.approx(5.0)
    assert pace.wait_s(10.0) == 0


def test_a_credit_without_hold_ends_one() -> None:
    pace = Pace(Least())
    pace.take(Credit(100, 60, 60), 0.0)
    pace.take(Credit(100, 0, 60), 1.0)
    assert pace.wait_s(1.1) == 0


def test_what_is_said_to_all_counts_until_a_gateway_is_told_its_own() -> None:
    pace = Pace(Least())
    pace.take(Credit(1, 60, 60), 0.0, own=False)
    assert pace.wait_s(0.0) == pytest.approx(60.0)
    pace.take(Credit(), 1.0)
    pace.take(Credit(1, 60, 60), 2.0, own=False)
    assert pace.wait_s(2.0) == 0
    pace.reset()
    pace.take(Credit(1, 60, 60), 3.0, own=False)
    assert pace.wait_s(3.0) > 0


def test_another_connection_begins_without_limits() -> None:
    pace = Pace(Least())
    pace.take(Credit(1, 60, 60), 0.0)
    pace.reset()
    assert pace.wait_s(0.0) == 0
