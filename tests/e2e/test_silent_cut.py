"""The link is cut without a word: connected, and nothing arrives (PAINS P13).

In a network namespace of its own, so that packets are really dropped and neither end's socket
hears of it. The gateway judges by what is acknowledged, gives the connection up, dials again by
itself, and nothing is lost. Needs Linux with user namespaces, as containers have them.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ALONE = ["unshare", "--user", "--map-root-user", "--net"]
ALONE_AS_ROOT = ["unshare", "--net"]  # other users are there too: PostgreSQL is not root's


def refusal(alone: list[str]) -> str:
    """Return why this machine gives no network namespace; empty when it does."""
    try:
        done = subprocess.run(
            [*alone, "ip", "rule", "show"], capture_output=True, text=True, timeout=20, check=False
        )
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


THERE = "there are network namespaces"


@pytest.mark.skipif(bool(refusal(ALONE)), reason=refusal(ALONE) or THERE)
def test_a_silent_cut_is_noticed_by_what_is_not_acknowledged(tmp_path: Path) -> None:
    order = json.dumps({"folder": str(tmp_path)})
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.kit.silent_cut", order],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "edge.log").read_text()
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["audit"], found["rows"]) == (0, 40), found


@pytest.mark.skipif(bool(refusal(ALONE_AS_ROOT)), reason=refusal(ALONE_AS_ROOT) or THERE)
def test_a_databases_machine_that_goes_without_a_word_is_found_out() -> None:
    """Amid a write, whether what is sent is not taken or what was asked is not answered."""
    done = subprocess.run(
        [*ALONE_AS_ROOT, sys.executable, "-m", "tests.kit.silent_database"],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert [one["rows"] for one in found] == [100, 100], found
