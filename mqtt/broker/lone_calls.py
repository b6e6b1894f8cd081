"""Finds what `_lone.c` makes of lone publishes: in use where it was built, else None.

`find` and `settle` there do what their twins in `lone.py` and `settling.py` do;
`python -X no-native-lone` runs the twins (tests/mqtt/test_lone.py compares them).

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from mqtt.broker._lone import Library
else:
    Library = object

__all__ = ["VERSION", "Library", "native"]

VERSION: Final = 1  # rises with every change of a function's arguments or meaning


def _load() -> Library | None:
    if "no-native-lone" in sys._xoptions:  # noqa: SLF001 - documented for reading
        return None
    try:
        from mqtt.broker import _lone  # noqa: PLC0415 - may not be there
    except ImportError:
        return None
    return _lone if _lone.VERSION == VERSION else None  # type: ignore[return-value] # its stub names what it has


native = _load()
