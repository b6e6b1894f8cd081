"""What the commands share: where a configuration comes from."""

from __future__ import annotations

import argparse

import pytest

from device_sim.config import SimConfig
from tidegate import options


def test_a_misspelt_variable_is_told_of_once_without_its_value(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(options, "_told", set())
    monkeypatch.setenv("TIDEGATE_RATE_PER_SS", "7")
    given = argparse.Namespace(config=None)
    for _ in range(2):  # as at a start and a reload
        assert options.config_of(given, SimConfig) == SimConfig()
    assert capsys.readouterr().err == (
        "tidegate: TIDEGATE_RATE_PER_SS in the environment is no setting of this command and does"
        " nothing; did you mean TIDEGATE_RATE_PER_S?\n"
    )
