"""Contexts that go on from a snapshot: fewer bytes, and never another reading."""

from __future__ import annotations

import pytest

from bridge.columnar import Columns
from bridge.errors import BatchError
from bridge.structured import SnapshotError, StructuredDecoder, StructuredEncoder
from bridge.structured_bodies import LINK_LIMITS, BodyChoice
from tests.bridge.structured.test_connection import (
    Kept,
    assert_equal_contexts,
    carry,
    telemetry,
)
from tests.kit.columns import in_batches


def batches(devices: int = 20, readings: int = 60) -> list[Columns]:
    return in_batches(telemetry(devices, readings), 100)


def kept_after(several: list[Columns], store: Kept) -> StructuredEncoder:
    """Return an encoder after these batches, the last of which asked for a snapshot."""
    encoder, decoder = StructuredEncoder(), StructuredDecoder(snapshots=store)
    for batch in several[:-1]:
        carry(encoder, decoder, batch)
    body = encoder.encode(several[-1], keep=True)
    assert body is not None
    decoder.decode(body, len(several[-1]))
    assert_equal_contexts(encoder, decoder)
    return encoder


def test_both_ends_name_what_they_keep_alike() -> None:
    store = Kept()
    encoder = kept_after(batches()[:4], store)
    assert store.known == dict([encoder.snapshot()])


def test_a_connection_that_starts_warm_takes_fewer_bytes_and_gives_the_same() -> None:
    several, store = batches(), Kept()
    name, data = kept_after(several[:4], store).snapshot()
    warm, decoder = StructuredEncoder(), StructuredDecoder(snapshots=store)
    warm.restore(name, data)
    cold, other = StructuredEncoder(), StructuredDecoder()
    sizes = [(len(carry(warm, decoder, b)), len(carry(cold, other, b))) for b in several[4:8]]
    assert_equal_contexts(warm, decoder)
    assert sizes[0][0] < 0.6 * sizes[0][1]
    assert sum(size for size, _ in sizes) < sum(size for _, size in sizes)


def test_a_decoder_without_the_snapshot_refuses_with_a_word_of_its_own() -> None:
    several, store = batches(), Kept()
    name, data = kept_after(several[:4], store).snapshot()
    for decoder in (StructuredDecoder(), StructuredDecoder(snapshots=Kept())):
        encoder = StructuredEncoder()
        encoder.restore(name, data)
        body = encoder.encode(several[4])
        assert body is not None
        with pytest.raises(BatchError) as error:
            decoder.decode(body, len(several[4]))
        assert error.value.reason == "snapshot"
        encoder.reset()
        carry(encoder, decoder, several[4])


@pytest.mark.parametrize("at", [0, 5, 9, 40, -1])
def test_a_damaged_snapshot_is_refused_at_both_ends(at: int) -> None:
    several, store = batches(), Kept()
    name, data = kept_after(several[:4], store).snapshot()
    damaged = bytearray(data)
    damaged[at] ^= 0x10
    encoder = StructuredEncoder()
    with pytest.raises(SnapshotError):
        encoder.restore(name, bytes(damaged))
    encoder.restore(name, data)
    body = encoder.encode(several[4])
    assert body is not None
    decoder = StructuredDecoder(snapshots=Kept({name: bytes(damaged)}))
    with pytest.raises(BatchError) as error:
        decoder.decode(body, len(several[4]))
    assert error.value.reason == "snapshot"


def test_a_snapshot_of_another_moment_is_not_mistaken_for_it() -> None:
    several, store = batches(), Kept()
    name, data = kept_after(several[:4], store).snapshot()
    newer, newer_data = kept_after(several[:6], Kept()).snapshot()
    assert newer != name
    encoder, decoder = StructuredEncoder(), StructuredDecoder(snapshots=Kept({newer: data}))
    encoder.restore(newer, newer_data)
    body = encoder.encode(several[6])
    assert body is not None
    with pytest.raises(BatchError) as error:
        decoder.decode(body, len(several[6]))
    assert error.value.reason == "snapshot"


def test_backlog_first_on_a_warm_connection_names_the_snapshot_too() -> None:
    several, store = batches(), Kept()
    name, data = kept_after(several[:4], store).snapshot()
    late = in_batches([(time - 10**8, *rest) for time, *rest in telemetry(20, 10, seed=8)], 100)
    warm, decoder = StructuredEncoder(), StructuredDecoder(snapshots=store)
    warm.restore(name, data)
    for batch in (late[0], several[4], late[1], several[5]):
        carry(warm, decoder, batch)
        assert_equal_contexts(warm, decoder)


@pytest.mark.parametrize("body", [b"\x20", b"\x20" + bytes(15), b"\x21" + bytes(16), b"\x80"])
def test_a_head_that_makes_no_sense_is_refused(body: bytes) -> None:
    with pytest.raises(BatchError):
        StructuredDecoder(snapshots=Kept()).decode(body, 1)


def test_bodies_ask_for_a_snapshot_now_and_then_and_a_reset_goes_on_from_one() -> None:
    several, store = batches(readings=120), Kept()
    choice, decoder = BodyChoice(1000, keeps=True), StructuredDecoder(LINK_LIMITS, store)
    asked = []
    for turn, batch in enumerate(several[:12]):
        _, body = choice.encode(batch, 0)
        decoder.decode(body, len(batch))
        if choice.kept is not None:
            asked.append(turn)
            snapshot = choice.kept
    assert asked == [1, 3, 7]
    assert store.known[snapshot[0]] == snapshot[1]
    decoder = StructuredDecoder(LINK_LIMITS, store)
    choice.reset(snapshot)
    _, warm = choice.encode(several[12], 0)
    assert list(decoder.decode(warm, len(several[12])).payloads) == list(several[12].payloads)
    choice.reset((snapshot[0], snapshot[1][:-1]))
    _, cold = choice.encode(several[13], 0)
    assert len(cold) > len(warm), "what is damaged is ignored"
