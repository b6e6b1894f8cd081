"""A disk of its own that is small enough to be filled to the last byte."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.kit.processes import wait_for
from tests.kit.programs import program

__all__ = ["small_disk", "take_all_space"]


@contextmanager
def small_disk(path: Path, size: str) -> Iterator[Path]:
    """Mount a disk of a given size; skips where mounting is not permitted."""
    path.mkdir()
    mount = program("mount", "mount")
    command = [mount, "-t", "tmpfs", "-o", f"size={size}", "tidegate-test", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not permitted: {done.stderr.strip()}")
    try:
        yield path
    finally:
        wait_for("unmounted", lambda: _unmounted(path))  # children of who was killed may linger


def _unmounted(path: Path) -> bool:
    return not subprocess.run(["umount", str(path)], capture_output=True, check=False).returncode


def take_all_space(path: Path) -> None:
    """Write a file until the disk has not a byte left."""
    with suppress(OSError), path.open("wb", 0) as file:
        while True:
            file.write(bytes(4096))
