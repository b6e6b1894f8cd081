"""PUBLISH packets that come together, taken apart in C where that was built (`_publishes.c`).

`publishes(template, data, pos, version, size_max, count_max)` returns `[message, packet_id, after,
message, ...]` of the whole, plain PUBLISH packets from `pos` on: QoS 0 or 1, not sent again, no
properties, nothing wrong with them but what only their topic can tell. `after` is where each ends,
a message is `template` with its own topic, payload, QoS and RETAIN. What is not plain ends the
list; `ServerConnection` takes that, or all of it where nothing was built and under `python -X
no-native-publishes` (tests/mqtt/test_publish_calls.py compares; benchmarks/retained.py pays).

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from runtime.native import library

if TYPE_CHECKING:
    from mqtt._publishes import Library
else:
    Library = object

__all__ = ["VERSION", "native"]

VERSION: Final = 1  # rises with every change of a function's arguments or meaning

native: Library | None = library("mqtt._publishes", VERSION, "no-native-publishes")
