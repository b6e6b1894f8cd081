"""Documentation under test: the generated pages are those the declarations make."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime.config import keys
from tidegate.commands.docs import pages
from tidegate.configs import CONFIGS

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("name", sorted(pages()))
def test_generated_page_is_up_to_date(name: str) -> None:
    assert (DOCS / name).read_text("utf-8") == pages()[name], "run 'tidegate docs'"


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_every_key_says_what_it_means(command: str) -> None:
    for key in keys(CONFIGS[command]()):
        assert len(key.metadata["help"]) > 10, key.name


@pytest.mark.parametrize("command", sorted(CONFIGS))
def test_a_number_with_a_unit_names_it_last(command: str) -> None:
    for key in keys(CONFIGS[command]()):
        unit = key.metadata.get("unit", "")
        if unit and not key.name.endswith(("_max", "_min", "_port")):
            assert key.name.rsplit("_", 1)[-1] == unit or unit not in {"ms", "s", "bytes"}, key.name
