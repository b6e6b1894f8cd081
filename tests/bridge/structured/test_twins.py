"""With the kernel and without it the same bodies are made, the same contexts left, and of damaged
bodies the same readings come or none."""

from __future__ import annotations

import subprocess
import sys

from tests.kit.structured_damage import fates
from tests.kit.structured_prints import prints


def said_by_twins(module: str) -> dict[str, str]:
    """Return what a module says of each kind of payload with the Python twins."""
    done = subprocess.run(
        [sys.executable, "-X", "no-structured-kernel", "-m", module],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    loops, *lines = done.stdout.splitlines()
    assert loops == "Python"
    return dict(line.split("\t") for line in lines)


def test_bodies_and_contexts_are_those_of_the_python_twins() -> None:
    assert said_by_twins("tests.kit.structured_prints") == prints()


def test_a_damaged_body_has_the_same_fate_with_the_python_twins() -> None:
    found = fates()
    assert said_by_twins("tests.kit.structured_damage") == found
    several = [fate.split() for fate in found.values()]
    # symbols guard themselves by the coder's end state; a byte of a pool that is stored as it is
    # only makes another reading, which the check of link-format.md section 2.3 finds: about a
    # seventh of the bodies. Far more of them means that an end went unproved
    assert sum(one.count("refused") for one in several) > 0.8 * sum(map(len, several))
    assert any(set(one) > {"refused"} for one in several), "some decode: to what is compared"
