"""Paths into payloads, and what counts as a number: the same for alerts and queries."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloud.fields import MISSING, FieldError, FieldPath, number

DOCUMENT = json.dumps(
    {"a": {"b": [1, {"c": 2.5}]}, "x.y": {"v": 3}, "0": "zero", 'q"': 4, "n": None, " s p ": 5}
).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("a.b[1].c", 2.5),
        ("$.a.b[-1].c", 2.5),
        ("$", json.loads(DOCUMENT)),
        ("a.b.0", 1),
        ("0", "zero"),
        ('["x.y"].v', 3),
        ('["q\\""]', 4),
        ("n", None),
        ('[" s p "]', 5),
        ("a.b[2]", MISSING),
        ("a.b.c", MISSING),
        ("a.b[0].c", MISSING),
        ("missing", MISSING),
    ],
)
def test_finds_the_value(path: str, value: object) -> None:
    assert FieldPath.parse(path).find(DOCUMENT) == value


@pytest.mark.parametrize(
    "path", ["a..b", ".a", "a[", "a]", "a[x]", '["a', "a.[0]", "a" + ".b" * 40]
)
def test_bad_path_is_one_line(path: str) -> None:
    with pytest.raises(FieldError) as raised:
        FieldPath.parse(path)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 120


@pytest.mark.parametrize(
    ("payload", "value", "as_number"),
    [
        (b"23.5", 23.5, 23.5),
        (b" 23.5\n", 23.5, 23.5),
        (b"+7", "+7", 7.0),
        (b".5", ".5", 0.5),
        (b"true", True, 1.0),
        (b'"12"', "12", 12.0),
        (b"ON", "ON", None),
        (b"", "", None),
        (b"\xff\x00", MISSING, None),
        (b"1e999", float("inf"), None),
        (b"9" * 5_000, "9" * 5_000, None),
        (b"1_000", "1_000", None),
        (b"0x10", "0x10", None),
        (b"nan", "nan", None),
    ],
)
def test_whole_payload(payload: bytes, value: object, as_number: float | None) -> None:
    found = FieldPath.parse("").find(payload)
    assert found == value
    assert number(found) == as_number


@given(st.binary(max_size=64) | st.text(max_size=64).map(str.encode))
def test_any_payload_gives_a_value_or_nothing(payload: bytes) -> None:
    for path in ("", "a", "[0]"):
        found = FieldPath.parse(path).find(payload)
        result = number(found)
        assert result is None or abs(result) < float("inf")


@given(st.lists(st.text(min_size=1, max_size=8) | st.integers(-9, 9), min_size=1, max_size=6))
def test_any_key_can_be_written(steps: list[str | int]) -> None:
    path = "".join(
        f"[{step}]" if isinstance(step, int) else f"[{json.dumps(step)}]" for step in steps
    )
    document: object = 42
    for step in reversed(steps):
        document = {str(step): document}
    assert FieldPath.parse(path).of(document) == 42
