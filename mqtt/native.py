"""Helpers in C: in use where they were built when Tidegate was installed.

Each has twins in Python that do the same, so none of them is needed: where there is no compiler, or
under `python -X OPTION`, the twins run.

Invariant: a library of another version than the file's that asks for it is not used, since one may
be left of an older install.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

__all__ = ["library"]


def library(module: str, version: int, option: str) -> Any:
    """Return a library in C, or None where its twins are to run.

    Args:
        module: Its full name.
        version: What its `VERSION` must be.
        option: Of `python -X`, which turns it off.
    """
    if option in sys._xoptions:  # noqa: SLF001 - documented for reading
        return None
    try:
        found = import_module(module)
    except ImportError:
        return None
    return found if version == found.VERSION else None
