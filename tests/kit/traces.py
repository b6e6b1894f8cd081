"""Find and read the shared traces, or say why a test cannot run without them.

They lie in `../shared/data` beside the checkout, or where TIDEGATE_TRACES says. They are not part
of the project: on a fresh clone elsewhere the tests that need them skip.
"""

from __future__ import annotations

import os
from itertools import islice
from pathlib import Path

import pytest

from device_sim.traces import Record, read_trace

__all__ = ["TRACES", "read_records", "trace_path", "traces_dir"]

TRACES = ("z2m", "tasmota", "aq", "owntracks", "plain")
VARIABLE = "TIDEGATE_TRACES"


def traces_dir() -> Path | None:
    """Return the folder of the traces; None when there is none."""
    named = os.environ.get(VARIABLE)
    checkout = Path(__file__).resolve().parents[2]
    folder = Path(named) if named else checkout.parent / "shared" / "data"
    return folder if folder.is_dir() else None


def trace_path(name: str) -> Path:
    """Return the path of trace `name` (one of TRACES); skips the calling test if it is absent."""
    folder = traces_dir()
    path = folder / f"{name}.cborseq.zst" if folder is not None else None
    if path is None or not path.is_file():
        pytest.skip(f"trace {name} is not on this machine; set {VARIABLE} to the folder of traces")
    return path


def read_records(name: str, limit: int | None = None) -> list[Record]:
    """Return the first `limit` records of trace `name`; skips the calling test if it is absent."""
    return list(islice(read_trace(trace_path(name)), limit))
