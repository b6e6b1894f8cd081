"""What of taking a SUBSCRIBE is in C where that was built (`_filters.c`): loops over its filters.

| in C | does what |
|---|---|
| `subscriptions` | `mqtt.decoding` does for plain filters in ASCII, with a QoS alone |
| `are_within` | says that no limit of the broker, and no `$`, is to be looked at (`requests.py`) |
| `first_levels` | tells with which levels filters begin (`NameTree.may_match`) |
| `entries` | `Subscribed(session, subscription, identifiers)` does, for each |
| `add_filters` | `FilterTable.add` does, for each |

Where there is no compiler, and under `python -X no-native-filters`, these do it
(tests/mqtt/test_filter_calls.py compares them; benchmarks/subscriptions.py pays for it).

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.native import library

if TYPE_CHECKING:
    from mqtt._filters import Library
else:
    Library = object

__all__ = ["VERSION", "native"]

VERSION: Final = 1  # rises with every change of a function's arguments or meaning

native: Library | None = library("mqtt._filters", VERSION, "no-native-filters")
