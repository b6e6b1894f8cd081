"""A load generator in a process of its own, so that it does not share an interpreter with what it
measures: `python -m MODULE --spec JSON` prints its report as one line of JSON."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

__all__ = ["spawn"]


def spawn(module: str, spec: DataclassInstance, timeout_s: float) -> dict[str, Any]:
    """Run a generator to its end and return the fields of its report.

    Raises:
        RuntimeError: it failed; the end of what it said is in the message.
        subprocess.TimeoutExpired: it took longer.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, "--spec", json.dumps(asdict(spec))],
        cwd=Path(__file__).parent.parent,
        check=False,
        capture_output=True,
        text=True,
        timeout=timeout_s,
    )
    if done.returncode:
        raise RuntimeError(f"load generator failed: {done.stderr.strip()[-400:]}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report
