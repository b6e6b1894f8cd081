"""Bodies that no encoder made: one typed error, or readings within the limits."""

import random
import tracemalloc

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.columnar import Columns, Limits, check_columns
from bridge.errors import BatchError
from bridge.structured import StructuredDecoder, StructuredEncoder, StructuredLimits
from bridge.structured.coder import Writer
from bridge.structured.context import Column, ColumnKind, Context, Family, Template
from bridge.structured.heads import code_mask
from bridge.structured.schema import ColumnSpec, update_columns
from tests.kit.columns import START, batches, columns_of, same_columns
from tests.kit.structured_damage import damaged


@settings(max_examples=60, deadline=None)
@given(st.lists(batches(), min_size=1, max_size=3), st.integers(0, 2**32))
def test_a_changed_body_is_refused_or_fails_the_check(several: list[Columns], seed: int) -> None:
    rng = random.Random(seed)
    encoder = StructuredEncoder()
    bodies = [encoder.encode(batch) for batch in several]
    whole = bodies[-1]
    assert whole is not None
    for _ in range(8):
        body = damaged(whole, rng)
        if body == whole:
            continue
        decoder = StructuredDecoder()
        for batch, sound in zip(several[:-1], bodies, strict=False):
            assert sound is not None
            decoder.decode(sound, len(batch))
        try:
            found = decoder.decode(body, len(several[-1]))
        except BatchError:
            assert not decoder.contexts
        else:
            # what the coder's own end state lets through is for the envelope's check to refuse
            if check_columns(found, 0) == check_columns(several[-1], 0):
                same_columns(found, several[-1])


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300), st.integers(-1, 10**6))
def test_any_bytes_give_readings_or_one_error(data: bytes, count: int) -> None:
    for body in (data, b"\x01" + data, b"\x03" + data):
        decoder = StructuredDecoder()
        try:
            found = decoder.decode(body, count)
        except BatchError:
            assert not decoder.contexts
        else:
            assert len(found) == count


def test_a_small_body_cannot_unpack_to_more_than_allowed() -> None:
    encoder = StructuredEncoder()
    wide = b'{"text":"' + b"x" * 500 + b'"}'
    body = encoder.encode(columns_of([(START + n, "t/d", wide) for n in range(1000)]))
    assert body is not None
    decoder = StructuredDecoder(StructuredLimits(batch_bytes=100_000))
    with pytest.raises(BatchError, match="bounds"):
        decoder.decode(body, 1000)


def test_more_readings_than_allowed_are_refused_before_any_memory_is_taken() -> None:
    decoder = StructuredDecoder()
    tracemalloc.start()
    with pytest.raises(BatchError, match="bounds"):
        decoder.decode(b"\x01" + b"\0\0\x01\0" + bytes(100), 1 << 40)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_pool_that_states_too_great_a_size_is_refused() -> None:
    encoder = StructuredEncoder()
    batch = columns_of([(START, "t/d", b"\xff" + b"ab" * 5000)])
    body = encoder.encode(batch)
    assert body is not None
    with pytest.raises(BatchError, match="bounds"):
        StructuredDecoder().decode(body, 1, limits=Limits(content_bytes=5000))


@pytest.mark.parametrize(
    "tight",
    [
        {"sources": 3},
        {"families": 1},
        {"columns": 4},
        {"cells": 10},
        {"literal_bytes": 200},
        {"slots": 2},
        {"token_bytes": 3},
        {"payload_bytes": 12},
        {"batch_cells": 20},
    ],
    ids=str,
)
def test_an_encoder_keeps_within_limits_that_a_decoder_holds_it_to(
    tight: dict[str, int],
) -> None:
    limits = StructuredLimits(**tight)
    rng = random.Random(3)
    encoder, decoder = StructuredEncoder(limits), StructuredDecoder(limits)
    for turn in range(6):
        rows = []
        for n in range(15):
            keys = rng.sample(["a", "bb", "ccc", "d"], 3)
            fields = b",".join(b'"%s":%d' % (key.encode(), rng.randrange(99999)) for key in keys)
            rows.append((START + turn * 1000 + n, f"t/d{rng.randrange(6)}", b"{" + fields + b"}"))
        batch = columns_of(rows)
        body = encoder.encode(batch)
        assert body is not None
        assert list(decoder.decode(body, len(batch)).payloads) == list(batch.payloads)


@pytest.mark.parametrize("what", ["block", "topic", "token"])
def test_texts_that_are_nearly_the_same_are_counted_as_they_are_made(what: str) -> None:
    rows, blocks = [], []
    for n in range(300):
        topic = f"t/d{n}/{'x' * 8000}" if what == "topic" else "t/d"
        token = b"x" * 400 if what == "token" else b""
        rows.append((START + n, topic, b'{"text":"%05d%s"}' % (n, token)))
        blocks.append(b"%05d%s" % (n, b"x" * 8000) if what == "block" else b"")
    limits = StructuredLimits(sources=4, literal_bytes=40_000)
    batch = columns_of(rows, properties=blocks)
    body = StructuredEncoder(limits).encode(batch)
    assert body is not None
    assert len(body) < 20_000
    same_columns(StructuredDecoder(limits).decode(body, len(batch)), batch)
    with pytest.raises(BatchError):
        StructuredDecoder(limits).decode(body, len(batch), limits=Limits(content_bytes=60_000))


def test_a_fragment_of_framed_templates_is_held_once() -> None:
    family = Family(0)
    frames = []
    for place in range(3):
        template = Template(place, family, (0,) * 200, tuple(range(199)), framed=True)
        template.fill([b"\x01\x02" * 4000] * 200)
        frames += template.frames
    assert all(steps is frames[0] for steps in frames)


def test_spellings_that_are_never_used_again_are_not_kept_for_ever() -> None:
    context = Context(StructuredLimits())
    for n in range(5000):
        context.printer((0, 0, b"", b"%d " % n, b""))
    assert len(context.printers) <= 1024


# ---- work ----------------------------------------------------------------------------------------


def test_columns_that_refer_to_one_another_are_ordered_in_passes() -> None:
    rng = random.Random(4)
    for _ in range(50):
        columns = [Column(index) for index in range(rng.randrange(1, 12))]
        for column in columns[1:]:
            if rng.random() < 0.7:
                column.ref = (-1, rng.randrange(len(columns)))
        expected = _ordered_in_passes(columns)
        family = Family(0, columns=columns)
        if expected is None:
            with pytest.raises(BatchError, match="ring"):
                family.ordered()
        else:
            assert family.ordered() == expected


def _ordered_in_passes(columns: list[Column]) -> list[int] | None:
    """Return the order as docs/link-format-structured.md section 4.3 words it."""
    order: list[int] = []
    waiting = [column.index for column in columns]
    while waiting:
        left = []
        for index in waiting:
            (order if columns[index].ref[1] in (-1, *order) else left).append(index)
        if left == waiting:
            return None
        waiting = left
    return order


def test_a_long_chain_of_references_is_ordered_in_one_go() -> None:
    columns = [Column(index, ref=(-1, index + 1)) for index in range(20_000)]
    columns[-1].ref = (-1, -1)
    assert Family(0, columns=columns).ordered() == list(range(20_000))[::-1]


def test_a_mask_names_each_column_once() -> None:
    context = Context(StructuredLimits())
    family = Family(0, columns=[Column(index) for index in range(4)])
    for mask in ((1, 1), (2, 1), (0, 3, 3)):
        with pytest.raises(BatchError, match="rise"):
            code_mask(Writer(), context, family, mask)
    assert code_mask(Writer(), context, family, (0, 2)) == (0, 2)


def test_a_column_is_changed_once_a_body() -> None:
    context = Context(StructuredLimits())
    family = Family(0, columns=[Column(0), Column(1)], tokens=[])
    context.families.append(family)
    spec = ColumnSpec(ColumnKind.ENUM)
    for pair in ((0, 0), (1, 0)):
        changes = [(family, family.columns[at], spec) for at in pair]
        with pytest.raises(BatchError, match="changed before"):
            update_columns(Writer(), context, changes)


def test_snapshots_are_made_no_more_often_than_encoders_ask() -> None:
    class Counted:
        made = 0

        def get(self, name: bytes) -> bytes | None:
            return None

        def put(self, name: bytes, data: bytes) -> None:
            self.made += 1

    counted = Counted()
    encoder, decoder = StructuredEncoder(), StructuredDecoder(snapshots=counted)
    for turn in range(130):
        batch = columns_of([(START + turn, "t/d", b"%d" % turn)])
        body = encoder.encode(batch, keep=True)
        assert body is not None
        decoder.decode(body, 1)
    assert counted.made == 8  # at 1, 2, 4, … 128


def test_a_snapshot_is_named_by_the_first_body_only() -> None:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    batch = columns_of([(START, "t/d", b"1")])
    body = encoder.encode(batch)
    assert body is not None
    decoder.decode(body, 1)
    with pytest.raises(BatchError, match="behind other bodies"):
        decoder.decode(b"\x20" + bytes(16) + body[1:], 1)
