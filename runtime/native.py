"""Helpers in C: in use where they were built when Tidegate was installed.

Each has twins in Python that do the same, so none of them is needed: where there is no compiler, or
under `python -X OPTION`, the twins run.

Invariant: a library of another version than the file's that asks for it is not used, since one may
be left of an older install.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from importlib import import_module
from typing import Any

__all__ = ["absent", "library", "tell_absent"]

_absent: set[str] = set()
_told: set[str] = set()


def library(module: str, version: int, option: str) -> Any:
    """Return a library in C, or None where its twins are to run.

    Args:
        module: Its full name.
        version: What its `VERSION` must be.
        option: Of `python -X`, which turns it off.
    """
    found = None
    if option not in sys._xoptions:  # noqa: SLF001 - documented for reading
        with suppress(ImportError):
            found = import_module(module)
    if found is None or version != found.VERSION:
        _absent.add(module)
        return None
    return found


def absent() -> list[str]:
    """Return the libraries this process has asked for and does without."""
    return sorted(_absent)


def tell_absent(log: Any) -> None:
    """Log, once a process, which libraries it does without."""
    untold = sorted(_absent - _told)
    _told.update(untold)
    if untold:
        log.warning(
            "c_helpers_absent",
            libraries=untold,
            hint="Python does their work, slower; install again where there is a C compiler",
        )
