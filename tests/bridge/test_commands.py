"""Control messages: what is sealed is opened again, whatever else comes is refused by a word."""

from __future__ import annotations

from contextlib import suppress

import cbor2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bridge.commands import (
    DELIVERED,
    EXPIRED,
    HELD,
    MESSAGE_BYTES_MAX,
    NO_DEVICE,
    NO_EXPIRY,
    RECALLED,
    Command,
    Correction,
    Hello,
    HoldsCommands,
    Message,
    Outcome,
    Recall,
    Welcome,
    open_message,
    seal_message,
)
from bridge.errors import BatchError
from bridge.link_pacing import decode_credit

IDS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30)
EPOCHS = st.integers(0, (1 << 64) - 1)
SEQS = st.integers(0, (1 << 63) - 1)
TIMES = st.integers(-(1 << 59), 1 << 59)
MESSAGES: st.SearchStrategy[Message] = st.one_of(
    st.builds(Command, IDS, IDS, IDS, st.binary(max_size=50), st.integers(1, 2),
              st.binary(max_size=20), st.integers(0, NO_EXPIRY)),
    st.builds(Recall, IDS),
    st.builds(Welcome, EPOCHS, SEQS, st.integers(0, 1 << 60)),
    st.builds(Hello, EPOCHS, SEQS),
    st.builds(HoldsCommands, st.lists(IDS, min_size=1, max_size=9).map(tuple)),
    st.builds(Outcome, IDS, st.sampled_from([HELD, DELIVERED, EXPIRED, NO_DEVICE, RECALLED]),
              st.text(st.characters(exclude_categories=("Cs",)), max_size=30), SEQS),
    st.builds(lambda epoch, first, more, delta, doubt: Correction(epoch, first, first + more,
              delta, doubt), EPOCHS, st.integers(1, 1 << 62), st.integers(0, 1 << 61), TIMES,
              st.integers(0, 1 << 60)),
)  # fmt: skip


@given(MESSAGES)
def test_what_is_sealed_is_opened(message: Message) -> None:
    assert open_message(seal_message(message)) == message


@given(MESSAGES)
def test_a_gateway_that_knows_only_credits_passes_over_them(message: Message) -> None:
    sealed = seal_message(message)
    if len(sealed) <= 4096:
        assert decode_credit(sealed) is None


@given(st.binary(max_size=80))
def test_any_bytes_are_a_message_or_refused(data: bytes) -> None:
    with suppress(BatchError):
        assert seal_message(open_message(data))


@pytest.mark.parametrize(
    ("fields", "word"),
    [
        ({0: 99}, "extension"),
        ({}, "malformed"),
        ({0: 16, 1: "x"}, "malformed"),
        ({0: 17, 1: ""}, "bounds"),
        ({0: 17, 1: "x" * 129}, "bounds"),
        ({0: 22, 1: "x"}, "malformed"),
        ({0: 22, 1: [7]}, "malformed"),
        ({0: 22, 1: []}, "bounds"),
        ({0: 22, 1: ["x"] * 257}, "bounds"),
        ({0: 20, 1: "x", 2: 9, 3: "", 4: 0}, "bounds"),
        ({0: 21, 1: 1, 2: 5, 3: 4, 4: 0, 5: 0}, "bounds"),
        ({0: 21, 1: 1, 2: 0, 3: 4, 4: 0, 5: 0}, "bounds"),
    ],
)
def test_what_breaks_a_rule_is_named(fields: dict[int, object], word: str) -> None:
    with pytest.raises(BatchError) as caught:
        open_message(cbor2.dumps(fields))
    assert caught.value.reason == word


def test_a_message_that_is_too_long_is_not_looked_at() -> None:
    with pytest.raises(BatchError) as caught:
        open_message(b"\xa1" * (MESSAGE_BYTES_MAX + 1))
    assert caught.value.reason == "too-large"
