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


def refusal() -> str:
    """Return why this machine gives no network namespace; empty when it does."""
    try:
        done = subprocess.run(
            [*ALONE, "ip", "rule", "show"], capture_output=True, text=True, timeout=20, check=False
        )
    except OSError as error:
        return str(error)
    return done.stderr.strip() if done.returncode else ""


@pytest.mark.skipif(bool(refusal()), reason=refusal() or "there are network namespaces")
def test_a_silent_cut_is_noticed_by_what_is_not_acknowledged(tmp_path: Path) -> None:
    order = json.dumps({"folder": str(tmp_path)})
    done = subprocess.run(
        [*ALONE, sys.executable, "-m", "tests.kit.silent_cut", order],
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr + (tmp_path / "edge.log").read_text()
    found = json.loads(done.stdout.splitlines()[-1])
    assert (found["audit"], found["rows"]) == (0, 40), found
