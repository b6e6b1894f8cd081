"""The configuration files in deploy/ can be used as they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from tidegate.main import main

DEPLOY = Path(__file__).resolve().parents[2] / "deploy"


@pytest.mark.parametrize("path", sorted(DEPLOY.rglob("*.toml")), ids=lambda path: path.stem)
def test_configuration_is_good(path: Path) -> None:
    assert main(["check", "-c", str(path)]) == 0
