"""The partition of a device: FNV-1a 32 of its id, modulo 64 (DESIGN section 1).

The same function as the `partition()` subject mapping of NATS, so that a mapping there and the
code here put a device in the same place. Fixed for the life of a cluster.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from bridge.readings import Source

__all__ = ["PARTITIONS", "fnv1a_32", "partition_of", "partitions_of"]

PARTITIONS = 64


def fnv1a_32(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash of `data` (draft-eastlake-fnv)."""
    value = 0x811C9DC5
    for byte in data:
        value = ((value ^ byte) * 0x01000193) & 0xFFFFFFFF
    return value


@lru_cache(maxsize=65536)
def partition_of(device: str) -> int:
    """Return the partition, 0 to 63, that holds every reading of `device`."""
    return fnv1a_32(device.encode()) % PARTITIONS


def partitions_of(sources: Sequence[Source]) -> list[int]:
    """Return the partition of each source of a table, in the table's order."""
    return [partition_of(device) for _, device in sources]
