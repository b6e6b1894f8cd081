"""What the structured mode makes of seeded readings, as marks: to compare two builds of it.

    python -m tests.kit.structured_prints                              with the kernel, if built
    python -X no-structured-kernel -m tests.kit.structured_prints      with its Python twins

A line a kind of payload: what the loops are in, the kind, and marks of its bodies and contexts.
Payloads are of the seeded shapes, of odd software, and mutated ones of both.
"""

from __future__ import annotations

import hashlib
import random
import sys
from collections.abc import Iterable

from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.kernel import native
from tests.kit.columns import Row, in_batches
from tests.kit.foreign_payloads import FOREIGN
from tests.kit.odd_payloads import ODD, odd_rows
from tests.kit.payload_shapes import SHAPES, messages
from tests.kit.structured_vectors import contexts_mark

__all__ = ["main", "prints"]

_READINGS = 80
_FOREIGN_READINGS = 24  # which are larger
_BATCHES = ((4, 32), (40, 400))  # their size, and the readings at most of a kind


def prints() -> dict[str, str]:
    """Return the mark of each kind's bodies and contexts; what comes back changed is an error."""
    kinds: list[tuple[str, list[Row]]] = [
        (name, messages(name, _FOREIGN_READINGS if name in FOREIGN else _READINGS))
        for name in SHAPES
    ]
    kinds += [(f"odd {name}", odd_rows(name, _READINGS // 12)) for name in ODD]
    kinds.append(("mutated", list(_mutated([row for _, rows in kinds for row in rows[:8]]))))
    return {
        f"{name} {size}": _mark(rows[:most], size)
        for name, rows in kinds
        for size, most in _BATCHES
    }


def _mark(rows: list[Row], size: int) -> str:
    encoder, decoder = StructuredEncoder(), StructuredDecoder()
    mark = hashlib.sha256()
    for batch in in_batches(rows, size):
        body = encoder.encode(batch)
        if body is None:
            raise AssertionError("a batch past the limits")
        if list(decoder.decode(body, len(batch)).payloads) != list(batch.payloads):
            raise AssertionError("a batch came back changed")
        mark.update(body)
    if contexts_mark(encoder.contexts) != contexts_mark(decoder.contexts):
        raise AssertionError("contexts that differ")
    mark.update(contexts_mark(encoder.contexts).encode())
    return mark.hexdigest()[:16]


def _mutated(rows: list[Row]) -> Iterable[Row]:
    """Return the rows with a byte changed, taken out or put in, in many of them."""
    rng = random.Random(7)
    for time, topic, payload in sorted(rows, key=lambda row: row[0]):
        data = bytearray(payload)
        if data and rng.random() < 0.5:
            at = rng.randrange(len(data))
            data[at : at + rng.randrange(2)] = rng.choice([b"", b'"', b"0", b"\\", b"\xff", b","])
        yield time, topic, bytes(data)


def main() -> None:
    """Print the marks."""
    sys.stdout.write(f"{'C' if native else 'Python'}\n")
    for kind, mark in prints().items():
        sys.stdout.write(f"{kind}\t{mark}\n")


if __name__ == "__main__":
    main()
