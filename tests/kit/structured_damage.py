"""Damaged bodies of the structured mode, and what becomes of them: to compare two builds of it.

    python -m tests.kit.structured_damage                              with the kernel, if built
    python -X no-structured-kernel -m tests.kit.structured_damage      with its Python twins

A line a kind of payload: the kind, and for each damaged body a mark of the readings it decodes to,
or that it is refused. Damage is seeded: bits, bytes, cuts, swaps, growth, several at once.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator

from bridge.columnar import Columns
from bridge.errors import BatchError
from bridge.structured import StructuredDecoder, StructuredEncoder
from bridge.structured.kernel import native
from tests.kit.columns import in_batches
from tests.kit.odd_payloads import ODD, odd_rows
from tests.kit.payload_shapes import SHAPES, messages
from tests.kit.structured_vectors import content_mark

__all__ = ["damaged", "fates", "main"]

_READINGS = 24
_BATCH = 12
_OF_FIRST = 12  # damaged bodies of the first batch, which defines most,
_OF_LAST = 3  # and of the last, which relies on it
_TOGETHER = 3

Mutation = Callable[[bytearray, random.Random], bytearray]


def _flip(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return data


def _overwrite(data: bytearray, rng: random.Random) -> bytearray:
    data[rng.randrange(len(data))] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
    return data


def _cut(data: bytearray, rng: random.Random) -> bytearray:
    return data[: rng.randrange(len(data))]


def _swap(data: bytearray, rng: random.Random) -> bytearray:
    at = rng.randrange(max(1, len(data) - 4))
    data[at : at + 4] = data[at : at + 4][::-1]
    return data


def _grow(data: bytearray, rng: random.Random) -> bytearray:
    return data + rng.randbytes(rng.randrange(1, 5))


_MUTATIONS: list[Mutation] = [_flip, _flip, _overwrite, _cut, _swap, _grow]


def damaged(body: bytes, rng: random.Random) -> bytes:
    """Return a body with one to three things changed; it may come out as it was."""
    data = bytearray(body)
    for _ in range(rng.randrange(1, _TOGETHER + 1)):
        if data:
            data = rng.choice(_MUTATIONS)(data, rng)
    return bytes(data)


def fates() -> dict[str, str]:
    """Return by kind of payload what became of each damaged body, in order."""
    kinds = [(name, messages(name, _READINGS)) for name in SHAPES]
    kinds += [(f"odd {name}", odd_rows(name, _READINGS // 12)) for name in ODD]
    return {name: " ".join(_fates(name, in_batches(rows, _BATCH))) for name, rows in kinds}


def _fates(name: str, batches: list[Columns]) -> Iterator[str]:
    rng = random.Random(name)
    encoder = StructuredEncoder()
    bodies = [encoder.encode(batch) or b"" for batch in batches]
    for last, count in ((0, _OF_FIRST), (len(bodies) - 1, _OF_LAST)):
        for _ in range(count):
            yield _fate(batches[: last + 1], bodies[:last], damaged(bodies[last], rng))


def _fate(batches: list[Columns], before: list[bytes], body: bytes) -> str:
    decoder = StructuredDecoder()
    for batch, whole in zip(batches, before, strict=False):
        decoder.decode(whole, len(batch))
    try:
        return content_mark(decoder.decode(body, len(batches[-1])))
    except BatchError:
        return "refused"


def main() -> None:
    """Print what became of them."""
    sys.stdout.write(f"{'C' if native else 'Python'}\n")
    for kind, fate in fates().items():
        sys.stdout.write(f"{kind}\t{fate}\n")


if __name__ == "__main__":
    main()
