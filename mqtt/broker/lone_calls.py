"""Finds what `_lone.c` makes of lone publishes: in use where it was built, else None.

`find` and `settle` there do what their twins in `lone.py` and `settling.py` do;
`python -X no-native-lone` runs the twins (tests/mqtt/test_lone.py compares them).

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.native import library

if TYPE_CHECKING:
    from mqtt.broker._lone import Library
else:
    Library = object

__all__ = ["VERSION", "Library", "native"]

VERSION: Final = 2  # rises with every change of a function's arguments or meaning

native: Library | None = library("mqtt.broker._lone", VERSION, "no-native-lone")
