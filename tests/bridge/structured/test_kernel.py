"""The inner loops in C and in Python do the same, to the bit."""

from __future__ import annotations

import random
from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bridge.structured import kernel, predictors, timing
from bridge.structured.context import Source, TimeMode
from bridge.structured.predictors import CellState, PredictorKind, Rows
from bridge.structured.printers import Printer, PrinterKind
from bridge.structured.symbols import RESIDUALS, UNKNOWN_PRIOR, residual_priors

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
    plain: list[str] = []
    symbols = kernel._symbols_of(steps, plain)
    bits: list[str] = []
    assert twin("symbols_of")(steps, bits) == symbols
    assert bits == plain
    text = "0" * 32 + "".join(reversed(plain))
    for integers_of in (kernel._integers_of, twin("integers_of")):
        assert integers_of(symbols, text, len(text)) == (steps, 32)


@pytest.mark.parametrize("value", [1 << 63, -(1 << 63), 1 << 70])
def test_an_integer_of_more_than_63_bits_is_an_error(value: int) -> None:
    for symbols_of in (kernel._symbols_of, twin("symbols_of")):
        with pytest.raises(ValueError, match="bits"):
            symbols_of([value], [])


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


@given(st.randoms(use_true_random=False), st.integers(0, 200))
def test_a_chain_is_written_and_read_alike(rng: random.Random, n: int) -> None:
    priors = residual_priors[:4]
    after = [rng.randrange(4) for _ in priors[0].freqs]
    cells = [rng.randrange(5) for _ in range(n)]
    symbols = [rng.choice([0, 0, 1, 2, rng.randrange(RESIDUALS)]) for _ in range(n)]
    written = []
    for write in (kernel._write_symbols, twin("write_symbols")):
        spans: list[tuple[int, int]] = []
        logs: list[list[int]] = [[] for _ in priors]
        contexts = [0] * 5
        tables = [prior.spans for prior in priors]
        write(spans, tables, logs, contexts, cells, symbols, after, 0, n)
        written.append((spans, logs, contexts))
    assert written[0] == written[1]
    packed = kernel._pack_symbols(written[0][0])
    assert twin("pack_symbols")(written[0][0]) == packed
    state = int.from_bytes(packed[:4], "little")
    words = [int.from_bytes(packed[at : at + 2], "little") for at in range(4, len(packed), 2)]
    for read in (kernel._read_symbols, twin("read_symbols")):
        out: list[int] = []
        logs, contexts = [[] for _ in priors], [0] * 5
        starts = [prior.starts for prior in priors]
        end = read(out, words, 0, state, starts, tables, logs, contexts, cells, after, 0, n)
        assert (out, logs, contexts, end) == (symbols, *written[0][1:], (1 << 16, len(words)))


def test_symbols_that_end_too_early_are_an_error() -> None:
    tables, starts = [UNKNOWN_PRIOR.spans], [UNKNOWN_PRIOR.starts]
    for read in (kernel._read_symbols, twin("read_symbols")):
        with pytest.raises(EOFError):
            read([], [], 0, 1 << 16, starts, tables, [[]], [0], [0] * 99, [0] * RESIDUALS, 0, 99)


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
_KINDS = [
    kind for kind in PrinterKind if kind not in (PrinterKind.FLOAT_LITTLE, PrinterKind.FLOAT_BIG)
]


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


@settings(max_examples=150)
@given(sources(), st.integers(-60_000, 60_000))
def test_a_reading_that_was_expected_is_noted_alike(source: Source, residual: int) -> None:
    source.mode = TimeMode.PERIODIC
    other = deepcopy(source)
    time = ((source.phase + source.period + 128) >> 8) + residual
    timing.note_expected(source, time, residual)
    timing._note_expected(other, time, residual)
    assert [getattr(source, name) for name in Source.__slots__] == [
        getattr(other, name) for name in Source.__slots__
    ]


@given(st.lists(sources(), max_size=6), st.integers(-(1 << 41), 1 << 41), st.integers(0, 1 << 45))
def test_expectations_are_the_same(many: list[Source], start: int, span: int) -> None:
    assert timing.expect_all(many, start, start + span) == timing._expect_all(
        many, start, start + span
    )
