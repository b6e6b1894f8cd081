"""Spans and sizes as people say them."""

from __future__ import annotations

import pytest

from tidegate.words import size, span


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0, "0 s"), (89.4, "89 s"), (90, "2 min"), (7_140, "119 min"), (7_500, "2 h 05 min"),
        (86_400, "24 h 00 min"), (4 * 86_400, "4.0 days"), (729 * 86_400, "729.0 days"),
        (13 * 365 * 86_400, "13 years"),
    ],
)  # fmt: skip
def test_spans(seconds: float, said: str) -> None:
    assert span(seconds) == said


@pytest.mark.parametrize(
    ("count", "said"),
    [(0, "0 B"), (999, "999 B"), (34_600, "34.6 kB"), (4e9, "4.0 GB"), (2e12, "2000.0 GB")],
)
def test_sizes(count: float, said: str) -> None:
    assert size(count) == said
