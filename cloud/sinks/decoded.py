"""Entries decoded once for all sinks that read them at about the same time.

Invariants: the readings kept are at most `readings_max`, unless the newest entry alone has more;
what is handed out is exactly what the entry says of itself, or a `BatchError`.
"""

from __future__ import annotations

from collections import OrderedDict

from bridge.batch import Decoder
from bridge.columnar import Limits
from bridge.errors import BatchError
from cloud.sinks.contract import DecodedEntry
from cloud.stream.contract import Entry

__all__ = ["DecodedEntries"]


class DecodedEntries:
    """Decodes entries and remembers the latest.

    Args:
        readings_max: Most readings remembered.
        limits: What an entry may hold.
    """

    __slots__ = ("_decoder", "_entries", "_readings", "_readings_max")

    def __init__(self, readings_max: int, limits: Limits | None = None) -> None:
        self._decoder = Decoder(None, limits=limits)
        self._entries: OrderedDict[tuple[int, int], DecodedEntry] = OrderedDict()
        self._readings = 0
        self._readings_max = readings_max

    def get(self, entry: Entry) -> DecodedEntry:
        """Return `entry` with its readings.

        Raises:
            BatchError: the entry is damaged, or its body is not of the readings it stands for.
        """
        key = (entry.partition, entry.position)
        found = self._entries.get(key)
        if found is not None and found.entry == entry:
            return found
        batch = self._decoder.decode(entry.body)
        if (batch.gateway, batch.epoch) != (entry.gateway, entry.epoch) or (
            batch.seq_ranges != entry.seq_ranges
        ):
            raise BatchError("identity", "the body is of other readings than its entry")
        decoded = DecodedEntry(entry, batch.readings, batch.historical)
        self._keep(key, decoded)
        return decoded

    def _keep(self, key: tuple[int, int], decoded: DecodedEntry) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self._readings -= old.entry.count
        self._entries[key] = decoded
        self._readings += decoded.entry.count
        while self._readings > self._readings_max and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._readings -= oldest.entry.count
