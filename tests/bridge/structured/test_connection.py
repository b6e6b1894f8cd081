"""A connection in the structured mode: every payload comes back, both contexts stay equal."""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.columnar import Columns
from bridge.errors import BatchError
from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.snapshot import digest
from tests.kit.columns import START, batches, columns_of, in_batches, same_columns


def carry(encoder: StructuredEncoder, decoder: StructuredDecoder, batch: Columns) -> bytes:
    """Take a batch across and check that it arrives; returns its body."""
    body = encoder.encode(batch)
    assert body is not None
    same_columns(decoder.decode(body, len(batch)), batch)
    return body


class Kept:
    """Snapshots in memory."""

    def __init__(self, known: dict[bytes, bytes] | None = None) -> None:
        self.known = dict(known or {})

    def get(self, name: bytes) -> bytes | None:
        return self.known.get(name)

    def put(self, name: bytes, data: bytes) -> None:
        self.known[name] = data


def assert_equal_contexts(encoder: StructuredEncoder, decoder: StructuredDecoder) -> None:
    assert list(map(digest, encoder.contexts)) == list(map(digest, decoder.contexts))


@settings(max_examples=300, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=5))
def test_any_batches_come_back_and_leave_equal_contexts(several: list[Columns]) -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for batch in several:
        carry(encoder, decoder, batch)
        assert_equal_contexts(encoder, decoder)


def test_long_payloads_of_a_known_shape_come_back() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    sizes = [9] * 40 + [12, 700, 11, 90, 400, 9]  # of each of 60 tokens: 512 is a token's limit,
    rows = []  # and 16 KiB a template's
    for n, size in enumerate(sizes):
        fields = b",".join(b'"k%d":"%s"' % (k, b"%0*d" % (size, n * k)) for k in range(60))
        rows.append((START + 1000 * n, "plant/long", b"{%s}" % fields))
    taken = [len(carry(encoder, decoder, batch)) for batch in in_batches(rows, 2)]
    assert_equal_contexts(encoder, decoder)
    assert max(taken[10:20]) < 250, "of some 1000 bytes, most of it known"


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(batches(most=6), st.sampled_from("okok?ok?lx")), max_size=8))
def test_contexts_are_equal_after_any_losses_and_refusals(
    steps: list[tuple[Columns, str]],
) -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for batch, fate in steps:
        if fate == "l":  # encoded, never sent: the encoder must start anew
            encoder.encode(batch)
            encoder.reset()
        elif fate == "x":  # arrives damaged: refused, both start anew
            body = encoder.encode(batch)
            assert body is not None
            try:
                found = decoder.decode(body[:-1], len(batch))
            except BatchError:
                assert not decoder.contexts
            else:  # an integer's plain bits may say another length that fits: not what was sent,
                with pytest.raises(AssertionError):  # which the batch's check finds
                    same_columns(found, batch)
                decoder.reset()
            encoder.reset()
        else:
            carry(encoder, decoder, batch)
            assert_equal_contexts(encoder, decoder)


def test_a_body_without_its_end_is_refused_and_ends_the_context() -> None:
    rows = telemetry(devices=5, rounds=8)
    batches = [columns_of(rows[at : at + 10]) for at in range(0, 40, 10)]
    for cut in range(4):  # in which of four batches
        encoder, decoder = StructuredEncoder(), StructuredDecoder()
        for batch in batches[:cut]:
            carry(encoder, decoder, batch)
        body = encoder.encode(batches[cut])
        assert body is not None
        with pytest.raises(BatchError):
            decoder.decode(body[: len(body) // 2], len(batches[cut]))
        assert not decoder.contexts
        encoder.reset()
        carry(encoder, decoder, batches[cut])
        assert_equal_contexts(encoder, decoder)


def test_a_body_of_a_context_that_is_gone_is_refused() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    batch = columns_of([(START, "t/d", b"1")])
    carry(encoder, decoder, batch)
    decoder.reset()
    body = encoder.encode(batch)
    assert body is not None
    with pytest.raises(BatchError, match="context"):
        decoder.decode(body, 1)


def telemetry(devices: int, rounds: int, seed: int = 7) -> list[tuple[int, str, bytes]]:
    """Return JSON of devices that report once a minute with jitter."""
    rng = random.Random(seed)
    rows = []
    for n in range(rounds):
        for device in range(devices):
            time = START + n * 60_000 + device * 700 + int(rng.lognormvariate(3, 0.6))
            volt = 230 + rng.randrange(-3, 4)
            rows.append(
                (
                    time,
                    f"home/plug{device}/state",
                    b'{"power":%d,"volt":%d,"energy":%.3f,"on":true}'
                    % (rng.randrange(100), volt, n * 0.017 + device),
                )
            )
    return rows


def test_telemetry_takes_a_few_bytes_a_reading() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    sizes = [len(carry(encoder, decoder, b)) for b in in_batches(telemetry(20, 60), 100)]
    assert sum(sizes[6:]) / len(sizes[6:]) < 100 * 6
    assert_equal_contexts(encoder, decoder)


def test_a_snapshot_goes_on_as_the_context_would_have() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    several = in_batches(telemetry(12, 40), 60)
    for batch in several[:4]:
        carry(encoder, decoder, batch)
    name, data = encoder.snapshot()
    warm_encoder, warm_decoder = (
        StructuredEncoder(),
        StructuredDecoder(snapshots=Kept({name: data})),
    )
    warm_encoder.restore(name, data)
    assert warm_encoder.snapshot()[0] == name
    cold = StructuredEncoder()
    for batch in several[4:]:
        warm = carry(warm_encoder, warm_decoder, batch)
        first = cold.encode(batch)
        assert first is not None
        assert len(warm) < len(first)
        cold.reset()
    assert_equal_contexts(warm_encoder, warm_decoder)


@settings(max_examples=40, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=3), st.lists(batches(), min_size=1, max_size=3))
def test_any_context_can_be_restored(before: list[Columns], after: list[Columns]) -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for batch in before:
        carry(encoder, decoder, batch)
    name, data = encoder.snapshot()
    warm_encoder, warm_decoder = (
        StructuredEncoder(),
        StructuredDecoder(snapshots=Kept({name: data})),
    )
    warm_encoder.restore(name, data)
    for batch in after:
        carry(warm_encoder, warm_decoder, batch)
    assert_equal_contexts(warm_encoder, warm_decoder)


def test_backlog_between_live_batches_keeps_a_context_of_its_own() -> None:
    live = in_batches(telemetry(20, 60), 100)
    late = in_batches([(time - 10**8, *rest) for time, *rest in telemetry(20, 60, seed=8)], 100)
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    sizes = []
    for turn in range(len(live)):
        sizes.append(len(carry(encoder, decoder, live[turn])))
        carry(encoder, decoder, late[turn])
        assert_equal_contexts(encoder, decoder)
    assert len(encoder.contexts) == 2
    alone = StructuredEncoder()
    assert sizes == [len(alone.encode(batch) or b"") for batch in live]


def test_times_thousands_of_years_apart_come_back() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    for turn in range(12):
        carry(encoder, decoder, columns_of([(START + turn * 10**15, "site/a/b", b"%d" % turn)]))
    assert_equal_contexts(encoder, decoder)
