"""The format stands still: bodies made once are read the same for ever."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.limits import StructuredLimits
from tests.bridge.structured.test_connection import Kept
from tests.kit.columns import columns_of
from tests.kit.structured_vectors import FOLDER, content_mark, contexts_mark, vectors

SPECIFICATION = Path(__file__).parents[3] / "docs" / "link-format-structured.md"


def example() -> bytes:
    """Return the body of the specification's worked example."""
    found = re.search(r"```hex structured-1\n(.*?)```", SPECIFICATION.read_text(), re.DOTALL)
    assert found is not None
    lines = [re.split(r"\s{2,}", line)[0] for line in found.group(1).splitlines()]
    return bytes.fromhex("".join(lines))


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.txt")), ids=lambda path: path.stem)
def test_a_vector_is_read_as_it_was_made(path: Path) -> None:
    store = Kept()
    decoder = StructuredDecoder(snapshots=store)
    for line in path.read_text().splitlines():
        if line == "cut":
            decoder = StructuredDecoder(snapshots=store)
            continue
        count, body, content, contexts = line.split()
        columns = decoder.decode(bytes.fromhex(body), int(count))
        assert content_mark(columns) == content
        assert contexts_mark(decoder.contexts) == contexts


def test_every_vector_has_its_file() -> None:
    assert {path.stem for path in FOLDER.glob("*.txt")} == set(vectors())


def test_the_specifications_example_is_read_as_it_says() -> None:
    columns = StructuredDecoder().decode(example(), 2)
    assert columns.sources == [("devices/t1/temp", "t1")]
    assert list(columns.times) == [1_700_000_000_000, 1_700_000_001_000]
    assert (list(columns.flags), list(columns.payloads)) == ([1, 1], [b"21.5", b"21.7"])


def test_this_encoder_makes_the_specifications_example() -> None:
    batch = columns_of(
        [
            (1_700_000_000_000, "devices/t1/temp", b"21.5"),
            (1_700_000_001_000, "devices/t1/temp", b"21.7"),
        ]
    )
    assert batch.sources == [("devices/t1/temp", "t1")]
    assert StructuredEncoder().encode(batch) == example()


def test_the_specification_names_the_limits_in_use() -> None:
    text = SPECIFICATION.read_text()
    limits = StructuredLimits()
    for number in (limits.sources, limits.families, limits.slots, limits.token_bytes):
        assert f"{number:,}" in text
