"""The inner loops in C and in Python do the same, to the bit."""

from __future__ import annotations

import json
import random
import struct
from collections import Counter
from contextlib import suppress
from copy import deepcopy
from fractions import Fraction
from math import log2
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.structured import forecasts, kernel, learner, predictors, shapes, texts, timing
from bridge.structured.coder import Reader, Writer
from bridge.structured.context import Source, TimeMode
from bridge.structured.predictors import CellState, PredictorKind, Rows
from bridge.structured.printers import Printer, PrinterKind
from bridge.structured.symbols import ESCAPE, RESIDUALS, UNKNOWN_PRIOR, residual_priors
from bridge.structured.tables import Chain, Table

# Where nothing was built, Python is compared with itself: the tests still say what is right.
NATIVE: Any = kernel.native

_INTEGERS = st.one_of(
    st.integers(-20, 20),
    st.integers(-(1 << 21), 1 << 21),
    st.integers(-(1 << 61), 1 << 61),
    st.sampled_from([1 - (1 << 63), (1 << 63) - 1, 0, 255, -256, 511, 512, 1 << 20]),
)
_MAYBE = st.lists(st.one_of(st.none(), _INTEGERS), max_size=40)


def twin(name: str) -> Any:
    return getattr(NATIVE, name) if NATIVE else getattr(kernel, f"_{name}")


@given(_MAYBE)
def test_integers_become_the_same_symbols_and_bits_and_come_back(steps: list[int | None]) -> None:
    plain, bits = bytearray(), bytearray()
    symbols = kernel._symbols_of(steps, plain)
    assert twin("symbols_of")(steps, bits) == symbols
    assert bits == plain
    text = "0" * 32 + plain[::-1].decode()
    for integers_of in (kernel._integers_of, twin("integers_of")):
        assert integers_of(symbols, text, len(text)) == (steps, 32)


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63), 1 << 70])
def test_an_integer_of_more_than_63_bits_is_an_error(value: int) -> None:
    for symbols_of in (kernel._symbols_of, twin("symbols_of")):
        with pytest.raises(ValueError, match="bits"):
            symbols_of([value], bytearray())


@given(st.lists(st.integers(0, RESIDUALS - 1), max_size=20), st.text("01", max_size=90))
def test_any_symbols_and_bits_give_the_same_integers_or_error(
    symbols: list[int], bits: str
) -> None:
    text = "0" * 32 + bits
    results = []
    for integers_of in (kernel._integers_of, twin("integers_of")):
        try:
            results.append(integers_of(symbols, text, len(text)))
        except (EOFError, ValueError) as error:
            results.append(type(error))
    assert results[0] == results[1]


def statistics(chain: Chain) -> Any:
    tables = [(table.counts, table.total, table.due, table.spans) for table in chain.tables]
    return tables, chain.logs, chain.spans, chain.noted


@given(st.randoms(use_true_random=False), st.integers(0, 400))
def test_a_chain_is_written_and_read_alike(rng: random.Random, n: int) -> None:
    priors = residual_priors[:4]
    after = [rng.randrange(4) for _ in priors[0].freqs]
    cells = [rng.randrange(5) for _ in range(n)]
    symbols = [rng.choice([0, 0, 1, 2, rng.randrange(RESIDUALS)]) for _ in range(n)]
    written = []
    for write in (kernel._write_chain, twin("write_chain")):
        writer, chain, contexts = Writer(), Chain(priors), [0] * 5
        write(writer.spans, chain, contexts, cells, symbols, after)
        written.append((writer.spans, statistics(chain), contexts))
    assert written[0] == written[1]
    packed = kernel._pack_symbols(written[0][0])
    assert twin("pack_symbols")(written[0][0]) == packed
    for read in (kernel._read_chain, twin("read_chain")):
        reader, chain, contexts = Reader(packed, [b""] * 3), Chain(priors), [0] * 5
        assert read(reader, chain, contexts, cells, after) == symbols
        assert (statistics(chain), contexts) == written[0][1:]
        assert (reader.state, reader.at) == (1 << 16, (len(packed) - 4) // 2)


def test_symbols_that_end_too_early_are_an_error() -> None:
    for read in (kernel._read_chain, twin("read_chain")):
        reader = Reader((1 << 16).to_bytes(4, "little"), [b""] * 3)
        with pytest.raises(EOFError):
            read(reader, Chain([UNKNOWN_PRIOR]), [0], [0] * 99, [0] * RESIDUALS)


@given(st.lists(_INTEGERS, max_size=60), st.booleans())
def test_integers_and_symbols_one_by_one_are_written_and_read_alike(
    values: list[int], escapes: bool
) -> None:
    sections, tables = [], []
    for write, put in ((kernel._write_integer, kernel._write_symbol),
                       (twin("write_integer"), twin("write_symbol"))):  # fmt: skip
        writer, table = Writer(), Table(UNKNOWN_PRIOR)
        for value in values:
            write(writer.spans, writer.plain, table, value)
        if escapes:
            put(writer.spans, table, ESCAPE)
        sections.append(writer.section())
        tables.append((table.log, table.counts, table.total, table.due, table.spans))
    assert sections[0] == sections[1]
    assert tables[0] == tables[1]
    for read in (kernel._read_integer, twin("read_integer")):
        reader, table = Reader(sections[0], [b""] * 3), Table(UNKNOWN_PRIOR)
        assert [read(reader, table) for _ in values] == values
        assert not escapes or read(reader, table) is None
        reader.close()
        assert (table.log, table.counts) == tables[0][:2]


@given(st.binary(min_size=4, max_size=40), st.integers(1, 12))
def test_any_bytes_read_as_the_same_integers_or_error(section: bytes, n: int) -> None:
    section = section[:2] + bytes((section[2] | 1,)) + section[3:]  # a state within its range
    results = []
    for read in (kernel._read_integer, twin("read_integer")):
        reader, table = Reader(section, [b""] * 3), Table(UNKNOWN_PRIOR)
        found: list[Any] = []
        try:
            for _ in range(n):
                found.append(read(reader, table))
        except (EOFError, ValueError) as error:
            found.append(type(error))
        results.append((found, reader.state, reader.at))
    assert results[0] == results[1]


@given(st.lists(st.one_of(_INTEGERS, st.integers(-(1 << 80), 1 << 80)), max_size=30))
def test_bits_are_counted_alike(steps: list[int]) -> None:
    found = NATIVE.step_bits(steps) if NATIVE else None
    if found is not None:
        assert found == learner._bits(steps)
    elif NATIVE:
        assert max(map(abs, steps)) >= 1 << 63
    expected = Counter(map(int.bit_length, steps))
    entropy = sum(count * log2(len(steps) / count) for count in expected.values())
    plain = sum(min(size, 64) * count for size, count in expected.items())
    if max(expected, default=0) <= 64:
        assert learner.bits_of(steps) == pytest.approx(entropy + plain)


@given(st.integers(-(10**9), 10**9), st.integers(1, 10**9))
def test_simple_fractions_are_the_nearest(num: int, den: int) -> None:
    for most in (1, 5, 10, 64):
        nearest = Fraction(num, den).limit_denominator(most)
        assert learner._nearest(num, den, most) == nearest.as_integer_ratio()


@given(st.lists(st.tuples(_INTEGERS, st.one_of(st.none(), _INTEGERS)), min_size=2, max_size=30))
def test_a_column_is_tried_beside_another_alike(pairs: list[tuple[int, int | None]]) -> None:
    steps = learner._Steps([[(0, value) for value, _ in pairs]])
    neighbour = learner.Neighbour(3, [[value for _, value in pairs]])
    assert list(steps.try_neighbour(neighbour)) == list(steps.try_neighbour(neighbour, None))


_NEAR = st.text("ab", max_size=9).map(str.encode)


@given(_NEAR, _NEAR)
def test_what_texts_begin_and_end_with_is_found_alike(a: bytes, b: bytes) -> None:
    start, end = texts.shared_ends(a, b)
    assert (start, end) == texts._shared_ends(a, b)
    assert a[:start] == b[:start]
    assert a[len(a) - end :] == b[len(b) - end :]


@given(st.lists(st.integers(0, 1100), min_size=RESIDUALS, max_size=RESIDUALS))
def test_frequencies_are_the_same(counts: list[int]) -> None:
    freqs = UNKNOWN_PRIOR.freqs
    assert twin("frequencies")(freqs, counts, 2048) == kernel._frequencies(freqs, counts, 2048)


@st.composite
def columns_to_predict(draw: st.DrawFn) -> tuple[int, CellState, Rows, list[int | None], Any]:
    kind = draw(st.sampled_from(list(PredictorKind)))
    size = st.sampled_from([8, 40, 62])
    numbers = draw(size.map(lambda bits: st.integers(-(1 << bits) + 1, (1 << bits) - 1)))
    maybe = st.one_of(st.none(), numbers)
    n = draw(st.integers(1, 12))
    many = {"min_size": n, "max_size": n}
    state = CellState(
        draw(st.lists(maybe, min_size=4, max_size=4)),
        draw(st.lists(maybe, min_size=4, max_size=4)),
        draw(numbers),
        draw(numbers),
    )
    rows = Rows(
        draw(st.lists(st.integers(0, 3), **many)),
        draw(st.lists(st.integers(-(1 << 50), 1 << 50), **many)),
        draw(st.lists(maybe, **many)),
    )
    param = (draw(st.integers(1, 6)), 0)
    if kind in (PredictorKind.TIME, PredictorKind.LINE):
        big = draw(st.sampled_from([9, 1000, (1 << 63) - 1]))
        param = (draw(st.integers(1, big)), draw(st.integers(1, big)))
    return kind, state, rows, draw(st.lists(maybe, **many)), param


@settings(max_examples=150)
@given(columns_to_predict(), st.booleans())
def test_predictions_are_the_same(case: Any, fwd: bool) -> None:
    kind, state, rows, given_, param = case
    other = deepcopy(state)
    expected = predictors.predict(kind, state, rows, given_, param, fwd=fwd, kernel=None)
    found = predictors.predict(kind, other, rows, given_, param, fwd=fwd, kernel=NATIVE)
    assert (found, other) == (expected, state)


_TOKENS = st.one_of(
    st.from_regex(rb"-?[0-9]{1,20}(\.[0-9]{1,19})?", fullmatch=True),
    st.from_regex(
        rb"[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-6][0-9](\.[0-9]{1,8})?",
        fullmatch=True,
    ),
    st.from_regex(rb"([0-9]{1,4}T)?[0-9]{1,4}:[0-5][0-9]:[0-5][0-9]", fullmatch=True),
    st.binary(max_size=11),
)  # fmt: skip
_FLOATS = {PrinterKind.FLOAT_LITTLE: "<", PrinterKind.FLOAT_BIG: ">"}
_KINDS = [kind for kind in PrinterKind if kind not in _FLOATS]


@settings(max_examples=150)
@given(
    st.sampled_from(_KINDS), st.integers(0, 18), st.lists(_TOKENS, max_size=8),
    st.sampled_from([(b"", b""), (b"a", b""), (b"", b"Z"), (b"<", b"%")]),
)  # fmt: skip
def test_tokens_are_parsed_alike(
    kind: int, digits: int, tokens: list[bytes], affixes: tuple[bytes, bytes]
) -> None:
    prefix, suffix = affixes
    tokens += [prefix + token + suffix for token in tokens]
    printer = Printer(kind, digits, b"T", prefix, suffix)
    values = printer.parse_all(tokens)
    assert values == [printer.parse(token) for token in tokens]
    for token, value in zip(tokens, values, strict=True):
        assert value is None or printer.show_all([value]) == [token]


@settings(max_examples=150)
@given(
    st.sampled_from(_KINDS), st.integers(0, 18), st.sampled_from([b"T", b" "]),
    st.lists(st.one_of(_INTEGERS, st.integers(0, 4_102_444_800_000)), min_size=1, max_size=6),
)  # fmt: skip
def test_integers_are_shown_alike(kind: int, digits: int, text: bytes, values: list[int]) -> None:
    printer = Printer(kind, digits, text, b"<", b">")
    one_by_one, at_once = [], []
    for value in values:
        for out, show in ((one_by_one, printer.show),
                          (at_once, lambda v: printer.show_all([v])[0])):  # fmt: skip
            try:
                out.append(show(value))
            except ValueError:
                out.append(b"none")
    assert at_once == one_by_one


_NUMBERS = st.one_of(
    st.floats(), st.decimals(-(10**6), 10**6, places=3).map(float), st.integers(-99, 99).map(float)
)


@given(
    st.sampled_from(list(_FLOATS)), st.integers(0, 18), st.sampled_from("fd"),
    st.lists(_NUMBERS, max_size=8), st.lists(_INTEGERS, max_size=8),
)  # fmt: skip
def test_floats_are_spelled_alike(
    kind: PrinterKind, digits: int, width: str, numbers: list[float], values: list[int]
) -> None:
    tokens = [b"", b"123", bytes(8)]
    for number in numbers:
        with suppress(OverflowError):
            tokens.append(struct.pack(_FLOATS[kind] + width, number))
    printer = Printer(kind, digits, b"4" if width == "f" else b"8", b"", b"")
    parsed = printer.parse_all(tokens)
    assert parsed == [printer.parse(token) for token in tokens]
    for value in (*values, *(value for value in parsed if value is not None)):
        try:
            shown = [printer.show(value)]
        except ValueError:
            with pytest.raises(ValueError, match="cannot spell"):
                printer.show_all([value])
        else:
            assert printer.show_all([value]) == shown


@st.composite
def sources(draw: st.DrawFn) -> Source:
    source = Source("t", "d", 0, mode=draw(st.sampled_from([0, 1, 2])))
    source.last = draw(st.integers(-(1 << 40), 1 << 40))
    source.phase = (source.last + draw(st.integers(-5000, 5000))) * 256
    source.period = draw(st.one_of(st.integers(256, 1 << 24), st.integers(256, 1 << 54)))
    source.gap = draw(st.integers(0, 1 << 20))
    source.spread = draw(st.integers(0, 56))
    source.gain = draw(st.integers(1, 16))
    source.strayed = draw(st.integers(0, 2))
    source.burst = draw(st.integers(0, 20))
    source.burst_length = draw(st.integers(0, 15))
    source.steady = source.mode == TimeMode.PERIODIC and draw(st.booleans())
    source.margin = draw(st.integers(0, source.period >> 1))
    return source


def attributes(source: Source) -> list[Any]:
    return [getattr(source, name) for name in Source.__slots__]


@settings(max_examples=150)
@given(st.lists(st.tuples(sources(), st.integers(-60_000, 60_000)), min_size=1, max_size=5))
def test_a_round_of_times_is_forecast_and_noted_alike(given_: list[tuple[Source, int]]) -> None:
    many = [source for source, _ in given_]
    others = deepcopy(many)
    times = [(source.phase + source.period + 128 >> 8) + off for source, off in given_]
    for wanted in (times, []):
        found = forecasts.forecast_round(many, wanted)
        assert found == forecasts._forecast_round(others, wanted)
    places, expected, _, steps = forecasts._forecast_round(others, times)
    noted: list[int | None] = [None] * len(many)
    forecasts.note_round(many, places, expected, steps, noted)
    for at, place in enumerate(places):
        if (step := steps[at]) is not None:
            assert noted[place] == expected[at] + step == times[place]
            forecasts._note_expected(others[place], times[place], step)
        else:
            assert noted[place] is None
    assert list(map(attributes, many)) == list(map(attributes, others))


@settings(max_examples=150)
@given(sources(), st.one_of(st.integers(-(1 << 20), 1 << 20), st.integers(-(1 << 61), 1 << 61)))
def test_a_gap_is_coded_and_noted_alike(source: Source, gap: int) -> None:
    time = max(1 - (1 << 61), min((1 << 61) - 1, source.last + gap))
    gaps = [Table(UNKNOWN_PRIOR) for _ in range(22)]
    others, read = deepcopy(source), deepcopy(source)
    writer, other = Writer(), Writer()
    assert timing.code_gap(writer, gaps, source, time) == time
    assert timing._code_and_note_gap(other, deepcopy(gaps), others, time) == time
    assert writer.section() == other.section()
    reader = Reader(writer.section(), [b""] * 3)
    gaps = [Table(UNKNOWN_PRIOR) for _ in range(22)]
    assert timing.code_gap(reader, gaps, read, 0) == time
    assert attributes(source) == attributes(others) == attributes(read)


@given(st.lists(st.tuples(sources(), st.integers(0, 3), st.one_of(st.none(), st.integers(-4, 4))),
                max_size=6))  # fmt: skip
def test_counts_of_those_due_are_taken_alike(given_: list[tuple[Source, int, int | None]]) -> None:
    due, expected = [source for source, _, _ in given_], [count for _, count, _ in given_]
    steps = [step for _, _, step in given_]
    others = deepcopy(due)
    results = []
    for take, of in ((timing._take_due, others), (timing.take_due, due)):
        try:
            results.append(take(of, expected, steps))
        except ValueError as error:
            results.append((str(error),))
    assert results[0] == results[1]
    assert list(map(attributes, due)) == list(map(attributes, others))
    wanted = {source: [0] * (place % 3) for place, source in enumerate(due) if place % 2}
    assert timing.off_counts(due, expected, wanted) == timing._off_counts(due, expected, wanted)


@given(st.lists(sources(), max_size=6), st.integers(-(1 << 41), 1 << 41), st.integers(0, 1 << 45))
def test_expectations_are_the_same(many: list[Source], start: int, span: int) -> None:
    assert forecasts.expect_all(many, start, start + span) == forecasts._expect_all(
        many, start, start + span
    )


# ---- payloads ------------------------------------------------------------------------------------

_SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-99, 10**6),
    st.floats(0, 9),
    st.text('a\\" :{é', max_size=5),
)
_DOCUMENTS = st.recursive(
    _SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.text('ab": ', max_size=3), inner, max_size=4),
    ),
    max_leaves=10,
)


@st.composite
def texts_like_json(draw: st.DrawFn) -> bytes:
    separators = draw(st.sampled_from([(",", ":"), (", ", " : "), (",\n\t", ":\r")]))
    text = json.dumps(draw(_DOCUMENTS), separators=separators).encode()
    for _ in range(draw(st.integers(0, 2))):  # and then damaged
        at = draw(st.integers(0, len(text)))
        cut = draw(st.integers(0, 2))
        text = (
            text[:at]
            + draw(st.sampled_from([b"", b'"', b"\\", b"\0", b"{", b":"]))
            + text[at + cut :]
        )
    return text


@settings(max_examples=300)
@given(texts_like_json())
def test_json_is_split_alike(payload: bytes) -> None:
    found = shapes._split_json(payload)
    if NATIVE is not None and (done := NATIVE.split_json(payload)) is not None:
        assert done == found
        assert b"".join([*map(b"".join, zip(*done, strict=False)), done[0][-1]]) == payload
    shape = shapes._json_shape(payload)
    assert (None if shape is None else (shape.fragments, shape.tokens)) == found


@settings(max_examples=200)
@given(texts_like_json(), texts_like_json())
def test_json_of_a_known_shape_is_matched_alike(payload: bytes, other: bytes) -> None:
    shape = shapes.shape_of(payload)
    if shape is not None and shape.kind == "json":
        match, expected = shapes.matcher(shape), shapes._matcher(shape)
        found = match(payload)  # none where what is damaged does not end a string
        assert found == expected(payload)
        assert found in (None, shape.tokens)
        for some in (other, payload + b" ", payload[:-1], payload.replace(b"1", b"")):
            assert match(some) == expected(some)


_VALUES = st.one_of(
    st.from_regex(rb"[-+]?[0-9]{1,5}(\.[0-9]{0,3})?([eE][-+]?[0-9]{0,2})?", fullmatch=True),
    st.from_regex(rb"[0-9]{4}-[0-9]{2}-[0-9]{2}[T ][0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{0,3})?",
                  fullmatch=True),
    st.from_regex(rb"[0-9]{1,3}:[0-9]{1,2}:[0-9]{1,2}", fullmatch=True),
)  # fmt: skip


@settings(max_examples=200)
@given(st.lists(_VALUES, min_size=2, max_size=5), st.lists(_VALUES, min_size=2, max_size=5),
       st.sampled_from([b",", b" a=", b";", b".", b":"]))  # fmt: skip
def test_text_of_a_known_shape_is_matched_alike(
    values: list[bytes], others: list[bytes], between: bytes
) -> None:
    payload, other = b"x" + between.join(values), b"x" + between.join(others)
    shape = shapes.shape_of(payload)
    if shape is not None and shape.kind == "text":
        match, expected = shapes.matcher(shape), shapes._matcher(shape)
        for some in (payload, other, payload + between):
            assert match(some) == expected(some)
