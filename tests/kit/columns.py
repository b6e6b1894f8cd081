"""Batches for codec tests: columns made by hand, payloads made by Hypothesis, both compared."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from functools import cache

from hypothesis import strategies as st

from bridge.columnar import Columns
from bridge.readings import FLAG_PROPERTIES

__all__ = [
    "batches",
    "columns_of",
    "in_batches",
    "json_payloads",
    "payloads",
    "same_columns",
]

START = 1_700_000_000_000  # milliseconds

Row = tuple[int, str, bytes]  # time, topic, payload


def columns_of(
    rows: Sequence[Row], *, flags: int = 1, properties: Sequence[bytes] | None = None
) -> Columns:
    """Return a batch of rows; the device is the topic's second level, or the topic."""
    sources: dict[tuple[str, str], int] = {}
    index = []
    for _, topic, _ in rows:
        levels = topic.split("/")
        key = (topic, levels[1] if len(levels) > 1 and levels[1] else topic)
        index.append(sources.setdefault(key, len(sources)))
    blocks = list(properties) if properties is not None else [b""] * len(rows)
    return Columns(
        list(sources),
        index,
        [time for time, _, _ in rows],
        [flags | (FLAG_PROPERTIES if block else 0) for block in blocks],
        [payload for _, _, payload in rows],
        blocks,
    )


def in_batches(rows: Sequence[Row], size: int) -> list[Columns]:
    """Return rows as batches of `size`."""
    return [columns_of(rows[at : at + size]) for at in range(0, len(rows), size)]


def same_columns(found: Columns, expected: Columns) -> None:
    """Assert that two batches hold the same readings in the same order."""
    assert list(found.payloads) == list(expected.payloads)
    assert list(found.times) == list(expected.times)
    assert list(found.flags) == list(expected.flags)
    assert [found.sources[i] for i in found.source_index] == [
        expected.sources[i] for i in expected.source_index
    ]
    assert list(found.properties) == list(expected.properties)


# ---- strategies ----------------------------------------------------------------------------------

_NUMBERS = st.one_of(
    st.integers(-(10**20), 10**20).map(str),
    st.integers(-300, 300).map(str),
    st.floats(allow_nan=False, allow_infinity=False).map(repr),
    st.decimals(-1000, 1000, places=2).map(str),
    st.sampled_from(
        ["-0", "1.0", "1.50", "1e3", "1E+03", "-1.5e-07", "007", "+5", "0x1F", "NaN", "1_0", ".5"]
    ),
)
_WORDS = st.one_of(
    st.sampled_from(
        [
            '"on"',
            '"off"',
            "true",
            "false",
            "null",
            '""',
            '"a\\"b"',
            '"\\u00e9\\n"',
            '"2025-10-09T08:53:20"',
            '"2025-10-09T08:53:20.123Z"',
            '"1T02:03:04"',
            '"12.50 V"',
            '"CA:82:EC:4D:F4:7C"',
            '"01HG4NYZXP3GS9V3BVD4MXD4RG"',
        ]
    ),
    st.text(max_size=8).map(json.dumps),
    st.text(max_size=8).map(lambda text: json.dumps(text, ensure_ascii=False)),
)
_SPACES = st.sampled_from(["", "", "", " ", "  ", "\n\t"])
_KEYS = st.sampled_from(["a", "b", "temp", 'k\\"ey', "", "t s", "x1"])
_KINDS, _LEAVES, _SIZES = st.integers(0, 5), st.integers(0, 1), st.integers(0, 4)


@st.composite
def _json(draw: st.DrawFn, depth: int) -> str:
    """Return JSON spelled in any way: spacing, order, duplicates, number forms."""
    space = draw(_SPACES)
    kind = draw(_KINDS if depth else _LEAVES)
    if kind == 0:
        return space + draw(_NUMBERS) + space
    if kind == 1:
        return space + draw(_WORDS) + space
    size, inner = draw(_SIZES), _JSON[depth - 1]
    if kind == 2:
        items = [draw(inner) for _ in range(size)]
        return "[" + f"{space},".join(items) + "]"
    members = [f'"{draw(_KEYS)}"{space}:{draw(inner)}' for _ in range(size)]
    return "{" + f",{space}".join(members) + space + "}"


_JSON = [_json(depth) for depth in range(4)]  # made once: making strategies costs more than drawing


@cache
def json_payloads() -> st.SearchStrategy[bytes]:
    """Return JSON of any nesting and spelling, sometimes damaged."""
    whole = _JSON[3].map(lambda text: text.encode("utf-8", "surrogatepass"))
    cut = st.tuples(whole, st.integers(0, 200)).map(lambda pair: pair[0][: pair[1]])
    return st.one_of(whole, whole, whole, cut)


@cache
def payloads() -> st.SearchStrategy[bytes]:
    """Return payloads of all kinds."""
    return st.one_of(
        json_payloads(),
        st.binary(max_size=40),
        st.text(max_size=20).map(lambda text: text.encode("utf-8", "surrogatepass")),
        st.integers(-1000, 1000).map(lambda n: b"%d" % n),
        st.integers(-1000, 1000).map(lambda n: b"%.2f" % (n / 100)),
        st.integers(0, 9).map(lambda n: b"T=%d.5C,H=%d%%;2024-01-0%dT00:00:00Z" % (n, n, n)),
    )


_TOPICS = st.sampled_from(["a/d1/x", "a/d2/x", "plain", "b/d1/é", "/", "a/d1/y"])
_POOLS = st.lists(payloads(), min_size=1, max_size=4)
_SEEDS, _STARTS = st.integers(0, 2**32), st.integers(0, 10**7)
_PAUSES = st.sampled_from([0, 0, 1, 17, 1000, 60_000, -5000, 10**9])
_BLOCKS = st.sampled_from([b"", b"", b"\x01\x01", b"\x02\0\0\0\x09"])
_FLAGS = st.sampled_from([0, 1, 2, 5])


@st.composite
def batches(draw: st.DrawFn, *, most: int = 12) -> Columns:
    """Return a batch: few topics, times that mostly rise, shapes that come again."""
    count = draw(st.integers(1, most))
    pool = draw(_POOLS)
    any_payload = st.one_of(st.sampled_from(pool), payloads())
    rng = random.Random(draw(_SEEDS))
    rows: list[Row] = []
    time = START + draw(_STARTS)
    for _ in range(count):
        time += draw(_PAUSES)
        payload = draw(any_payload)
        if rng.random() < 0.5:
            payload = _with_other_digits(payload, rng)
        rows.append((time, draw(_TOPICS), payload))
    blocks = [draw(_BLOCKS) for _ in rows]
    return columns_of(rows, flags=draw(_FLAGS), properties=blocks)


def _with_other_digits(payload: bytes, rng: random.Random) -> bytes:
    """Return a payload of the same shape with other numbers."""
    digits = bytes(rng.randrange(48, 58) if 48 <= byte <= 57 else byte for byte in payload)
    return digits if len(payload) < 500 else payload
