"""What a context may come to weigh, whatever bodies say."""

from __future__ import annotations

from dataclasses import replace
from itertools import count, islice

import pytest

from bridge.errors import BatchError
from bridge.structured import StructuredDecoder, StructuredEncoder, StructuredLimits
from bridge.structured.context import Context
from bridge.structured.weight import weigh
from bridge.structured_bodies import LINK_LIMITS
from tests.kit.columns import START, columns_of, in_batches
from tests.kit.hostile_bodies import ATTACKS, HostileSender, held
from tests.kit.payload_shapes import messages

_HELD = 2 << 20
_TIGHT = replace(LINK_LIMITS, held_bytes=_HELD)
_BODIES_MAX = 100  # each fills the context long before


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_context_never_takes_more_than_it_may(attack: str) -> None:
    sender, decoder = HostileSender(_TIGHT), StructuredDecoder(_TIGHT)
    bodies = ATTACKS[attack](sender)
    last = Context(_TIGHT)

    def send_on() -> None:
        nonlocal last
        for body, readings in islice(bodies, _BODIES_MAX):
            decoder.decode(body, readings)
            (last,) = decoder.contexts

    with pytest.raises(BatchError, match="more memory than allowed"):
        send_on()
    assert not decoder.contexts
    assert _HELD / 8 < held(last) < _HELD  # it is not refused long before it is full either
    assert held(last) < weigh(last) * 1.1


@pytest.mark.parametrize("shape", ["smart-plug", "sparkplug", "opc-ua"])
def test_honest_contexts_are_weighed_about_right(shape: str) -> None:
    encoder = StructuredEncoder()
    for batch in in_batches(messages(shape, 100), 50):
        encoder.encode(batch)
    (context,) = encoder.contexts
    assert held(context) / 1.1 < weigh(context) < held(context) * 2.5


def test_an_encoder_starts_anew_before_a_decoder_refuses() -> None:
    limits = StructuredLimits(held_bytes=3 << 20)
    encoder, decoder = StructuredEncoder(limits), StructuredDecoder(limits)
    starts = 0
    for turn in range(60):
        rows = [(START + n, f"t/{turn}/{n}", b'{"v":"%d %d"}' % (turn, n)) for n in range(40)]
        batch = columns_of(rows)
        body = encoder.encode(batch)
        assert body is not None
        starts += body[0] & 1
        assert list(decoder.decode(body, len(batch)).payloads) == list(batch.payloads)
    assert 2 <= starts <= 6


def test_a_body_has_no_more_readings_than_allowed() -> None:
    limits = StructuredLimits(batch_readings=20)
    batches = [columns_of([(START, f"t/{n}", b"1") for n in range(few)]) for few in (20, 21)]
    body = StructuredEncoder(limits).encode(batches[0])
    assert body is not None
    assert len(StructuredDecoder(limits).decode(body, 20)) == 20
    assert StructuredEncoder(limits).encode(batches[1]) is None
    body = StructuredEncoder().encode(batches[1])
    assert body is not None
    with pytest.raises(BatchError, match="more readings than allowed"):
        StructuredDecoder(limits).decode(body, 21)


def test_a_context_is_weighed_only_when_it_may_have_grown_by_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    weighings = count()
    monkeypatch.setattr(
        "bridge.structured.weight.weigh", lambda context: (next(weighings), weigh(context))[1]
    )
    encoder = StructuredEncoder(LINK_LIMITS)
    for batch in in_batches(messages("smart-plug", 400), 50):
        encoder.encode(batch)
    assert next(weighings) == 0
