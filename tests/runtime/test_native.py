"""Helpers in C: used where they are and fit, told of once where not."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType
from typing import Any

import pytest

from runtime import native

MODULE = "tests.no_such_helper"


class Log:
    def __init__(self) -> None:
        self.told: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **values: Any) -> None:
        self.told.append((event, values))


@pytest.fixture(autouse=True)
def forgetful(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_absent", set())
    monkeypatch.setattr(native, "_told", set())


def test_one_that_fits_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    made = ModuleType(MODULE)
    made.VERSION = 3  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, MODULE, made)
    assert native.library(MODULE, 3, "off") is made
    assert native.absent() == []
    assert native.library(MODULE, 4, "off") is None  # left of an older install
    assert native.absent() == [MODULE]


def test_one_that_is_absent_is_told_of_once() -> None:
    log = Log()
    native.tell_absent(log)
    assert log.told == []
    assert native.library(MODULE, 1, "off") is None
    for _ in range(2):
        native.tell_absent(log)
    ((event, values),) = log.told
    assert (event, values["libraries"]) == ("c_helpers_absent", [MODULE])


def test_an_option_turns_one_off() -> None:
    program = "import bridge.kernel, runtime.native; print(*runtime.native.absent())"
    off = [sys.executable, "-X", "no-batch-kernel", "-c", program]
    assert (
        "bridge._kernel" in subprocess.run(off, check=True, capture_output=True, text=True).stdout
    )
