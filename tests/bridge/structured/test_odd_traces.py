"""Traces of software the codec was not made for: never worse than mode 0, mostly far better."""

from __future__ import annotations

import random

import pytest

from bridge.batch import compressor
from bridge.columnar import Columns, pack
from bridge.envelope import Mode
from bridge.kernel import varint
from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.protobuf import Repeated, protobuf_shape
from bridge.structured_bodies import LINK_LIMITS, BodyChoice
from tests.bridge.structured.test_connection import carry
from tests.kit.columns import START, columns_of, in_batches, same_columns
from tests.kit.odd_payloads import ODD, STRUCTURELESS, odd_rows
from tests.kit.payload_shapes import messages

_WORSE = 1.01
_LEARNING = 0.5  # of a batch of mode 0


def sizes(batches: list[Columns]) -> tuple[int, int, int]:
    """Return the bytes of all bodies as chosen, those of mode 0, and those of one batch of it."""
    choice, decoder = BodyChoice(1000), StructuredDecoder(LINK_LIMITS)
    chosen = plain = largest = reference = 0
    for batch in batches:
        mode, body = choice.encode(batch, reference)
        if mode == Mode.STRUCTURED:
            same_columns(decoder.decode(body, len(batch)), batch)
        content = pack(batch, reference)
        size = min(len(content), len(compressor(3).compress(content)))
        chosen, plain, largest = chosen + len(body), plain + size, max(largest, size)
        reference = batch.times[-1]
    return chosen, plain, largest


@pytest.mark.parametrize("kind", sorted(ODD))
def test_an_odd_trace_takes_at_most_one_per_cent_more_than_in_mode_0(kind: str) -> None:
    chosen, plain, largest = sizes(in_batches(odd_rows(kind, 60), 50))
    assert chosen <= _WORSE * plain + _LEARNING * largest
    if kind not in STRUCTURELESS:
        assert chosen < 0.75 * plain, "there is structure in it"


def test_bytes_in_hexadecimal_are_packed_where_they_are_no_frame() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    taken = [
        (len(carry(encoder, decoder, batch)), sum(map(len, batch.payloads)))
        for batch in in_batches(messages("hexadecimal", 1000), 50)
    ]
    sizes = [sum(column) for column in zip(*taken[10:], strict=True)]
    assert sizes[0] < 0.55 * sizes[1], "two signs a byte, and little else"


@pytest.mark.parametrize(("shape", "most"), [("message-pack", 5.5), ("registers", 11)])
def test_frames_are_cut_into_the_numbers_they_hold(shape: str, most: float) -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    sizes = [
        len(carry(encoder, decoder, batch)) / len(batch)
        for batch in in_batches(messages(shape, 800), 50)
    ]
    assert sum(sizes[-4:]) / 4 < most, "doubles of few decimals; registers beside still ones"


def test_kinds_that_take_turns_do_no_harm() -> None:
    rng = random.Random(9)
    batches = [batch for kind in sorted(ODD) for batch in in_batches(odd_rows(kind, 17), 50)]
    rng.shuffle(batches)
    chosen, plain, largest = sizes(batches)
    assert chosen <= _WORSE * plain + _LEARNING * largest


def test_a_mixed_gateway_comes_back_and_takes_less() -> None:
    rows = [row for kind in sorted(ODD) for row in odd_rows(kind, 16)]
    rows.sort(key=lambda row: row[0])
    chosen, plain, _ = sizes(in_batches(rows, 250))
    assert chosen < 0.9 * plain


def test_a_source_that_stands_in_the_table_twice_is_one() -> None:
    batch = columns_of([(START + n, "plant/a", b'{"n":%d}' % n) for n in range(6)])
    twice = Columns(
        [batch.sources[0], ("plant/none", "x"), batch.sources[0]],
        [0, 2, 2, 0, 2, 0],
        batch.times, batch.flags, batch.payloads, batch.properties,
    )  # fmt: skip
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for _ in range(3):
        carry(encoder, decoder, twice)
    assert len(encoder.contexts[0].sources) == 1


def test_a_device_that_makes_up_fields_is_not_remembered_for_ever() -> None:
    repeated: Repeated = set()
    for turn in range(40):
        numbers = range(1000 + 500 * turn, 1500 + 500 * turn)
        parts = [varint(number << 3 | 2) + b"\x02\x08\x01" for number in numbers]
        payload = b"".join(part * 2 for part in parts) + b"\x08\x01"
        assert protobuf_shape(payload, repeated) is not None
        assert 0 < len(repeated) < 5000
