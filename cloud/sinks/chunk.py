"""What goes into one write of a sink: entries, within bounds of readings and bytes."""

from __future__ import annotations

from cloud.sinks.contract import DecodedEntry, WriteBounds

__all__ = ["Chunk"]

_PAYLOAD_BYTES_MAX = 32 << 20
_SHARE_MAX = 512
_SLICE_READINGS = 1_000  # decoded between two turns of the event loop: about 3 ms


class Chunk:
    """The entries of one write, within bounds."""

    __slots__ = (
        "_payload_bytes",
        "_readings",
        "_readings_max",
        "_slice",
        "bytes_left",
        "entries",
        "full",
    )

    def __init__(self, bounds: WriteBounds) -> None:
        self.entries: list[DecodedEntry] = []
        self.bytes_left = bounds.bytes_max
        self._readings_max = bounds.readings_max
        self.full = False
        self._readings = 0
        self._payload_bytes = 0
        self._slice = 0

    def share_of(self, partitions: int) -> int:
        """Return how many such entries of each of so many partitions make up a write, up to 512."""
        entries = self._readings_max * len(self.entries) // max(1, self._readings * partitions)
        return max(1, min(_SHARE_MAX, entries))

    def add(self, decoded: DecodedEntry) -> bool:
        """Take an entry; return True when it is time to let others have the event loop."""
        body = decoded.entry.body
        if not self.entries or self.entries[-1].entry.body != body:  # else they share it
            self.bytes_left -= len(body)
        self.entries.append(decoded)
        self._readings += decoded.entry.count
        self._payload_bytes += decoded.payload_bytes
        self.full = (
            self.bytes_left <= 0
            or self._readings >= self._readings_max
            or self._payload_bytes >= _PAYLOAD_BYTES_MAX
        )
        self._slice += decoded.entry.count
        if self._slice < _SLICE_READINGS:
            return False
        self._slice = 0
        return True
