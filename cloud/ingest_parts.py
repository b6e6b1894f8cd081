"""Readings made into parts of an append: split by partition, each encoded to be read alone.

What goes into a part is handed to the sinks as well, who then need not decode it again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bridge.batch import EntryEncoder
from bridge.columnar import used_sources
from bridge.envelope import LinkLane
from bridge.intervals import ranges_of
from bridge.readings import Readings
from bridge.select import split_by_partition
from cloud.stream.contract import Part

__all__ = ["Encoded", "PartEncoder"]

# a part about to be appended, its readings, whether they waited through an outage
Encoded = Callable[[Part, Readings, bool], None]


class PartEncoder:
    """Encodes parts, one a partition.

    Args:
        encoded: Told of each part; None when nobody wants to know.
    """

    __slots__ = ("_encoded", "_encoder")

    def __init__(self, encoded: Encoded | None = None) -> None:
        self._encoder = EntryEncoder()
        self._encoded = encoded

    def parts(
        self,
        gateway: str,
        epoch: int,
        readings: Readings,
        *,
        lane: int = LinkLane.LIVE,
        historical: bool = False,
    ) -> Iterator[Part]:
        """Yield the parts of one or more readings of one source."""
        # the link's resolution is not in a batch; without need, microseconds cost 1-2 B a reading
        resolution_us = 1 if any(time_us % 1000 for time_us in readings.times_us) else 1000
        for partition, mixed in split_by_partition(readings).items():
            sources, index = used_sources(mixed.sources, mixed.source_index)
            some = Readings(
                mixed.seqs,
                list(sources),
                list(index),
                mixed.times_us,
                mixed.flags,
                mixed.payloads,
                mixed.properties,
            )
            ranges = ranges_of(some.seqs)
            body = self._encoder.encode(
                gateway,
                epoch,
                some,
                lane=lane,
                historical=historical,
                resolution_us=resolution_us,
                ranges=ranges,
            )
            part = Part(partition, gateway, epoch, ranges, len(some), body)
            if self._encoded is not None:
                self._encoded(part, some, historical)
            yield part
