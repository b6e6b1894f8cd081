"""Small batches of few fields, encoded on the loop: what that takes is told before it is done.

Nearly all of what a batch takes to encode is learning: a payload of a shape that was not there yet
takes some 100 µs a field, bytes that are no text tens of ms once their layout is looked for, and a
reading like those before it 10 to 100 µs. So a batch's *work* is counted in fields, and what one
takes is measured once, on this machine, in CPU time. Batches whose work is more than `_HOLD_S`, or
that hold something else than text, are for the encoder's process (edge/uplink_bodies.py).

Importing the codec takes far longer than any batch: an object of this module's class is made in a
thread (`asyncio.to_thread`).
"""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf

from bridge.columnar import Columns
from bridge.structured import StructuredEncoder
from bridge.structured.shapes import shape_of
from bridge.structured_bodies import LINK_LIMITS, BodyChoice

__all__ = ["InlineBodies"]

_HOLD_S = 0.003  # of 5 ms that the loop may be held in all
_HELD_BYTES = 4 << 20  # of a context, which is weighed in a ms then
_FIELD_BYTES = 256  # of payloads like those before take as long as a field
_SHAPES_MAX = 1024  # remembered
_TRIALS = 3
_KNOWN = b'{"a":1.5,"b":20,"c":"x","d":-3,"e":0.25,"f":true,"g":7,"h":"2026-01-01T00:00:00Z"}'
_KNOWN_FIELDS = 8


class InlineBodies:
    """Bodies of one connection's small batches.

    Args:
        resolution_us: The link's time unit.
        level: zstd level of mode 0.
        field_s: CPU time a field takes to learn, in seconds; None: it is measured.
    """

    def __init__(self, resolution_us: int, level: int, field_s: float | None = None) -> None:
        limits = replace(LINK_LIMITS, held_bytes=_HELD_BYTES)
        encoder = StructuredEncoder(limits, resolution_us=resolution_us)
        self._choice = BodyChoice(resolution_us, level=level, encoder=encoder)
        self._shapes: set[object] = set()  # that were learned
        self._new: dict[object, int] = {}  # fields of the others, of the batch looked at
        self._field_s = _measured(resolution_us) if field_s is None else field_s

    def reset(self) -> None:
        """Start a new context."""
        self._choice.reset()
        self._shapes.clear()

    def fits(self, columns: Columns) -> bool:
        """Return True for a batch that does not hold the loop for long."""
        return self.work(columns) * self._field_s <= _HOLD_S

    def work(self, columns: Columns) -> float:
        """Return the work of a batch, in fields to be learned."""
        self._new = {}
        for payload in filter(None, columns.payloads):
            shape = shape_of(payload)
            if shape is None:
                return inf
            if shape.key not in self._shapes:
                self._new[shape.key] = len(shape.tokens)
        known = sum(map(len, columns.payloads)) / _FIELD_BYTES
        return sum(self._new.values()) + len(columns) + known

    def encode(self, columns: Columns, reference: int) -> tuple[int, bytes]:
        """Return the mode and the body of the batch that was asked about last, and fits."""
        if len(self._shapes) >= _SHAPES_MAX:
            self._shapes.clear()
        self._shapes.update(self._new)
        return self._choice.encode(columns, reference)


def _measured(resolution_us: int) -> float:
    """Return what a field takes this machine to learn, in seconds of CPU time."""
    one = Columns([("t/a", "a")], [0], [0], [1], [_KNOWN], [b""])
    took: list[float] = []
    for _ in range(_TRIALS):
        encoder = StructuredEncoder(LINK_LIMITS, resolution_us=resolution_us)
        began_s = time.thread_time()
        encoder.encode(one)
        took.append(time.thread_time() - began_s)
    return min(took) / _KNOWN_FIELDS
