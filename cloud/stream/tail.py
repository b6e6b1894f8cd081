"""The newest entries of the embedded stream in memory, so that sinks at the tail read no disk.

Invariants: `_bytes` is the sum of the bodies kept, a shared one once, and at most `bytes_max`,
unless the newest entry alone is larger; what is kept of a partition is its newest entries without
a gap.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from itertools import islice

from cloud.stream.contract import Entry

__all__ = ["Tail"]

_ENTRY_OVERHEAD_BYTES = 400  # of the objects around a body


class Tail:
    """A window over the newest entries.

    Args:
        bytes_max: Most bytes of entries kept.
    """

    __slots__ = ("_by_partition", "_bytes", "_bytes_max", "_order")

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._order: deque[Entry] = deque()
        self._by_partition: dict[int, deque[Entry]] = {}

    def add(self, entries: Iterable[Entry]) -> None:
        """Take entries just committed, in their order."""
        for entry in entries:
            self._order.append(entry)
            kept = self._by_partition.setdefault(entry.partition, deque())
            if not kept or kept[-1].body is not entry.body:
                self._bytes += len(entry.body)
            self._bytes += _ENTRY_OVERHEAD_BYTES
            kept.append(entry)
        while self._bytes > self._bytes_max and self._order:
            oldest = self._order.popleft()
            kept = self._by_partition[oldest.partition]
            kept.popleft()
            if not kept or kept[0].body is not oldest.body:
                self._bytes -= len(oldest.body)
            self._bytes -= _ENTRY_OVERHEAD_BYTES

    def read(
        self, partition: int, after: int, entries_max: int, bytes_max: int
    ) -> list[Entry] | None:
        """Return entries past `after` within the bounds, at least one; None when not all here."""
        kept = self._by_partition.get(partition)
        if not kept or kept[0].position > after + 1:
            return None
        entries: list[Entry] = []
        size = 0
        for entry in islice(kept, after + 1 - kept[0].position, None):
            if not entries or entries[-1].body is not entry.body:
                size += len(entry.body)
            if entries and (size > bytes_max or len(entries) >= entries_max):
                break
            entries.append(entry)
        return entries

    def after(self, partition: int, position: int) -> Entry | None:
        """Return the first entry past `position` when it is here."""
        found = self.read(partition, position, 1, 0)
        return found[0] if found else None
