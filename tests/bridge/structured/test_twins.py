"""With the kernel and without it the same bodies are made, and the same contexts left."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.structured_prints import prints


def test_bodies_and_contexts_are_those_of_the_python_twins() -> None:
    done = subprocess.run(
        [sys.executable, "-X", "no-structured-kernel", "-m", "tests.kit.structured_prints"],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loops, *lines = done.stdout.splitlines()
    assert loops == "Python"
    assert dict(line.split("\t") for line in lines) == prints()
