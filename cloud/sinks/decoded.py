"""Entries decoded once, or not at all, for all sinks that read them at about the same time.

Ingest has just had in its hands what it puts in an entry; it hands that over, by the very bytes of
the body and its source, and a sink at the tail of the stream need not decode them. Whoever reads
later decodes.

Invariants: the readings kept of either kind are at most `readings_max`, unless the newest entry
alone has more; what is handed out is exactly what the entry says of itself, or a `BatchError`.
"""

from __future__ import annotations

from collections import OrderedDict

from bridge.columnar import Limits
from bridge.errors import BatchError
from bridge.readings import Readings
from bridge.shared_entry import EntryReader
from cloud.sinks.contract import DecodedEntry
from cloud.stream.contract import Entry, Part

__all__ = ["DecodedEntries"]

_Key = tuple[bytes, str, int]  # body, gateway, epoch


class DecodedEntries:
    """Decodes entries and remembers the latest.

    Attributes:
        decodes: Entries that had to be decoded.

    Args:
        readings_max: Most readings remembered, decoded and handed over each.
        limits: What an entry may hold.
    """

    __slots__ = (
        "_entries",
        "_offered",
        "_offered_readings",
        "_reader",
        "_readings",
        "_readings_max",
        "decodes",
    )

    def __init__(self, readings_max: int, limits: Limits | None = None) -> None:
        self._reader = EntryReader(limits)
        self._entries: OrderedDict[tuple[int, int], DecodedEntry] = OrderedDict()
        self._readings = 0
        self._offered: OrderedDict[_Key, tuple[Part, Readings, bool]] = OrderedDict()
        self._offered_readings = 0
        self._readings_max = readings_max
        self.decodes = 0

    def offer(self, part: Part, readings: Readings, historical: bool) -> None:
        """Take what was encoded into `part` and is about to be appended.

        Args:
            part: As it will be appended.
            readings: Just what decoding its body would give.
            historical: They waited at the edge through an outage.
        """
        key = (part.body, part.gateway, part.epoch)
        if key in self._offered:
            return
        self._offered[key] = (part, readings, historical)
        self._offered_readings += part.count
        while self._offered_readings > self._readings_max and self._offered:
            _, (oldest, _, _) = self._offered.popitem(last=False)
            self._offered_readings -= oldest.count

    def get(self, entry: Entry) -> DecodedEntry:
        """Return `entry` with its readings.

        Raises:
            BatchError: the entry is damaged, or its body is not of the readings it stands for.
        """
        key = (entry.partition, entry.position)
        found = self._entries.get(key)
        if found is not None and found.entry == entry:
            return found
        decoded = self._taken_over(entry) or self._decode(entry)
        self._keep(key, decoded)
        return decoded

    def _taken_over(self, entry: Entry) -> DecodedEntry | None:
        offered = self._offered.pop((entry.body, entry.gateway, entry.epoch), None)
        if offered is None:
            return None
        part, readings, historical = offered
        self._offered_readings -= part.count
        if part.seq_ranges != entry.seq_ranges:
            return None
        return DecodedEntry(entry, readings, historical)

    def _decode(self, entry: Entry) -> DecodedEntry:
        self.decodes += 1
        batch = self._reader.read(entry.body, entry.gateway, entry.epoch)
        if batch.seq_ranges != entry.seq_ranges:
            raise BatchError("identity", "the body is of other readings than its entry")
        return DecodedEntry(entry, batch.readings, batch.historical)

    def _keep(self, key: tuple[int, int], decoded: DecodedEntry) -> None:
        old = self._entries.pop(key, None)
        if old is not None:
            self._readings -= old.entry.count
        self._entries[key] = decoded
        self._readings += decoded.entry.count
        while self._readings > self._readings_max and len(self._entries) > 1:
            _, oldest = self._entries.popitem(last=False)
            self._readings -= oldest.entry.count
