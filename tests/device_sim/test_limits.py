"""The limit on open files: raised when it may be, told when it may not."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

import pytest

from device_sim.config import SimError
from device_sim.limits import allow_connections


@pytest.fixture
def limits() -> Iterator[tuple[int, int]]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_the_soft_limit_is_raised_as_far_as_needed(limits: tuple[int, int]) -> None:
    _, hard = limits
    open_files = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - other tests' may be among them
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 256, hard))
    allow_connections(open_files + 500)
    soft, after = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft > open_files + 500
    assert after == hard


def test_a_limit_that_suffices_is_left_alone(limits: tuple[int, int]) -> None:
    _, hard = limits
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    allow_connections(10)
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == (512, hard)


def test_more_than_the_hard_limit_is_told_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _which: (1024, 4096))
    with pytest.raises(SimError, match=r"10000 connections need .* hard limit is 4096.*--connect"):
        allow_connections(10_000)
