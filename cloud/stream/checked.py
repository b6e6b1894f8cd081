"""What every engine checks of the parts of an append before it stores any of them."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.kernel import count_apart
from cloud.stream.contract import PARTITIONS, Part

__all__ = ["checked_bytes"]

_EPOCH_MAX = (1 << 64) - 1


def checked_bytes(parts: Sequence[Part]) -> int:
    """Return the bytes of the bodies of valid parts, of a shared one their part.

    Raises:
        ValueError: a part that breaks its invariants, or two for one partition and source.
    """
    seen = set()
    size = 0
    for part in parts:
        if not 0 <= part.partition < PARTITIONS:
            raise ValueError(f"partition {part.partition} is not 0 to {PARTITIONS - 1}")
        if not 0 <= part.epoch <= _EPOCH_MAX or not part.gateway:
            raise ValueError("a part without gateway, or an epoch past 64 bits")
        count = count_apart(part.seq_ranges)
        if count < 0:
            raise ValueError(f"seq ranges {part.seq_ranges[:4]}...: they must rise apart")
        if not count or count != part.count:
            raise ValueError(f"{part.count} readings, but ranges of {count}")
        seen.add((part.partition, part.gateway, part.epoch))
        size += part.own_bytes
    if len(seen) != len(parts):
        raise ValueError("two parts of one partition, gateway and epoch")
    return size
