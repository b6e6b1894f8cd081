"""Latest values: the newest reading of every topic of every device, in memory.

Invariants:
- A value never goes back in event time: a reading replaces another only if its
  (time, gateway, epoch, seq) is greater; a time in the future counts as the arrival, so that a
  clock in 2099 does not hold the place for ever. Giving a reading twice changes nothing.
- Memory is bounded by devices, topics a device and payload bytes; what was not updated for
  longest goes first, and is counted.
- Of each topic the last reading that came too old is kept as well, for a while: a correction of its
  gateway's clock may make it the newest.

After a restart `rebuild` reads storage; what the stream holds beyond it comes again by
`receive`, in any order.
"""

from __future__ import annotations

import fnmatch
import re
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from bridge.commands import Correction
from bridge.readings import FLAG_QOS_MASK, Readings
from cloud.latest_changes import Changes
from runtime.metrics import Metrics

__all__ = [
    "REBUILD_DEVICES_AT_ONCE",
    "REBUILD_ROWS_PER_DEVICE",
    "DeviceSummary",
    "Latest",
    "LatestLimits",
    "LatestReading",
    "NewestRows",
]

REBUILD_ROWS_PER_DEVICE = 64
REBUILD_DEVICES_AT_ONCE = 100  # of one question to storage
LATE_MAX = 10_000  # readings kept that may turn out to be the newest
LATE_BYTES_MAX = 4 << 20  # of their payloads


@dataclass(slots=True, frozen=True)
class LatestLimits:
    """Bounds on memory."""

    devices: int = 100_000
    topics_per_device: int = 64
    payload_bytes: int = 65_536  # of one value; a longer payload is kept as its first bytes
    total_payload_bytes: int = 256 << 20


class LatestReading(NamedTuple):
    """The newest reading of one topic of one device, with its identity."""

    device: str
    topic: str
    gateway: str
    epoch: int
    seq: int
    time_us: int  # at the edge
    received_us: int  # at the cloud
    qos: int
    payload: bytes
    payload_bytes: int  # of the whole payload; more than len(payload) when that was cut
    partition: int = 0
    position: int = 0  # in the stream; 0: it was read from storage

    @property
    def order(self) -> tuple[int, str, int, int]:
        """Its place in time."""
        return min(self.time_us, self.received_us), self.gateway, self.epoch, self.seq


class NewestRows(Protocol):
    """A storage that can be asked for the newest rows."""

    def rebuild_turn(self) -> AbstractAsyncContextManager[None]:
        """Give a turn to read everything: of the nodes that share a storage one at a time."""
        ...

    async def newest_rows(
        self, after: str, now_us: int, payload_bytes: int
    ) -> tuple[list[str], list[LatestReading]]:
        """Return the next devices past `after`, and the newest row of each of their topics.

        Args:
            after: A device id; devices come in order, REBUILD_DEVICES_AT_ONCE at most.
            now_us: Rows of a later time are left out.
            payload_bytes: Longer payloads are cut to so many.

        Raises:
            DatabaseError: storage cannot be read.
        """
        ...


@dataclass(slots=True, frozen=True)
class DeviceSummary:
    """One device in a list of them."""

    device: str
    gateway: str  # of its newest reading
    time_us: int  # of its newest reading
    received_us: int
    topics: int


class Latest:
    """The table of latest values.

    Attributes:
        evicted: Values dropped because a bound was reached.
        complete: False while values are still being read from storage.
        changes: Who hears of new values.
    """

    def __init__(self, limits: LatestLimits | None = None) -> None:
        self.evicted = 0
        self.complete = True
        self.changes = Changes()
        self._limits = limits or LatestLimits()
        # the device updated longest ago comes first
        self._devices: OrderedDict[str, dict[str, LatestReading]] = OrderedDict()
        self._late: OrderedDict[tuple[str, str], LatestReading] = OrderedDict()
        self._late_bytes = 0
        self._payload_bytes = 0
        self._sorted: list[str] | None = []  # device ids; None = to be made again

    def __len__(self) -> int:
        return len(self._devices)

    # ---- taking readings -------------------------------------------------------------------------

    def receive(
        self,
        gateway: str,
        epoch: int,
        received_us: int,
        readings: Readings,
        *,
        times_us: Sequence[int] | None = None,
        place: tuple[int, int] = (0, 0),
    ) -> None:
        """Take the readings of one stream entry.

        Args:
            gateway: Theirs.
            epoch: Theirs.
            received_us: When the entry was appended.
            readings: Decoded.
            times_us: Corrected times, in place of those they bear.
            place: Partition and position of the entry.
        """
        true_us = times = readings.times_us if times_us is None else times_us
        if times and max(times) > received_us:
            times = [min(time_us, received_us) for time_us in times]
        # the later of equals is newer: seq rises
        rows: Sequence[int] = range(len(times))
        if sorted(times) != times:
            rows = sorted(rows, key=times.__getitem__)
        newest = dict(zip(map(readings.source_index.__getitem__, rows), rows, strict=True))
        for source, index in sorted(newest.items()):
            topic, device = readings.sources[source]
            payload = readings.payloads[index]
            self._take(
                LatestReading(
                    device,
                    topic,
                    gateway,
                    epoch,
                    readings.seqs[index],
                    true_us[index],
                    received_us,
                    readings.flags[index] & FLAG_QOS_MASK,
                    payload[: self._limits.payload_bytes],
                    len(payload),
                    *place,
                )
            )

    def _take(self, reading: LatestReading) -> None:
        topics = self._devices.get(reading.device)
        if topics is None:
            topics = self._devices[reading.device] = {}
            self._sorted = None
        old = topics.get(reading.topic)
        if old is not None:
            if reading.order <= old.order:
                self._keep_late(reading)
                return
            self._payload_bytes -= len(old.payload)
        topics[reading.topic] = reading
        self._payload_bytes += len(reading.payload)
        self._devices.move_to_end(reading.device)
        self._tell(reading)
        if len(topics) > self._limits.topics_per_device:
            oldest = min(topics.values(), key=lambda one: one.order)
            del topics[oldest.topic]
            self._payload_bytes -= len(oldest.payload)
            self.evicted += 1
        while len(self._devices) > 1 and (
            len(self._devices) > self._limits.devices
            or self._payload_bytes > self._limits.total_payload_bytes
        ):
            self._evict()

    def _tell(self, reading: LatestReading) -> None:
        for hearer in self.changes.hearers:
            hearer.take(reading)

    def _keep_late(self, reading: LatestReading) -> None:
        """Keep the last that came too old: its clock may have been wrong."""
        self._forget_late((reading.device, reading.topic))
        self._late[reading.device, reading.topic] = reading
        self._late_bytes += len(reading.payload)
        while len(self._late) > LATE_MAX or self._late_bytes > LATE_BYTES_MAX:
            self._forget_late(next(iter(self._late)))

    def _forget_late(self, key: tuple[str, str]) -> LatestReading | None:
        late = self._late.pop(key, None)
        self._late_bytes -= len(late.payload) if late is not None else 0
        return late

    def _evict(self) -> None:
        _, topics = self._devices.popitem(last=False)
        self._payload_bytes -= sum(len(one.payload) for one in topics.values())
        self.evicted += len(topics)
        self._sorted = None

    # ---- answers ---------------------------------------------------------------------------------

    def device(self, device: str) -> list[LatestReading]:
        """Return the newest reading of each topic of a device, by topic; empty if unknown."""
        topics = self._devices.get(device, {})
        return [topics[topic] for topic in sorted(topics)]

    def devices(self, *, match: str = "*", after: str = "", limit: int) -> list[DeviceSummary]:
        """Return devices by id.

        Args:
            match: A glob of ids.
            after: Only ids greater than this; "" is all.
            limit: At most so many.
        """
        if self._sorted is None:
            self._sorted = sorted(self._devices)
        wanted = re.compile(fnmatch.translate(match)).match if match != "*" else None
        found: list[DeviceSummary] = []
        for device in self._sorted:
            if device > after and (wanted is None or wanted(device)):
                found.append(_summary(device, self._devices[device]))
                if len(found) >= limit:
                    break
        return found

    def register(self, metrics: Metrics) -> None:
        """Show figures of this part."""
        metrics.gauge(
            "tidegate_latest_complete",
            "0 while latest values are being read from storage.",
            lambda: float(self.complete),
        )
        metrics.gauge("tidegate_latest_devices", "Devices with latest values.", lambda: len(self))
        metrics.gauge(
            "tidegate_latest_payload_bytes",
            "Bytes of their payloads.",
            lambda: self._payload_bytes,
        )
        metrics.counter(
            "tidegate_latest_evicted_values",
            "Latest values dropped because a bound was reached.",
            lambda: self.evicted,
        )

    # ---- after a restart -------------------------------------------------------------------------

    async def rebuild(self, storage: NewestRows, now_us: int) -> int:
        """Take the newest rows of every device from storage; return how many devices it has.

        Of each device the newest 64 rows are looked at: a topic that is silent for longer than
        those comes back with its next reading. Rows in the future are left out.

        Raises:
            DatabaseError: storage cannot be read.
        """
        devices, after = 0, ""
        async with storage.rebuild_turn():
            while True:
                names, rows = await storage.newest_rows(after, now_us, self._limits.payload_bytes)
                if not names:
                    return devices
                self._take_all(rows)
                devices += len(names)
                after = names[-1]

    def correct(self, gateway: str, correction: Correction) -> None:
        """Take the times that a gateway's readings really bear; some are the newest only now."""

        def concerns(one: LatestReading) -> bool:
            return (one.gateway, one.epoch) == (gateway, correction.epoch) and (
                correction.first_seq <= one.seq <= correction.last_seq
            )

        def corrected(one: LatestReading) -> LatestReading:
            return one._replace(time_us=one.time_us + correction.delta_us)

        for topics in self._devices.values():  # first: a wrong time must not win over a right one
            right = {t: corrected(one) for t, one in topics.items() if concerns(one)}
            topics.update(right)
            for reading in right.values():
                self._tell(reading)
        for key in [key for key, one in self._late.items() if concerns(one)]:
            late = self._forget_late(key)
            assert late is not None
            self._take(corrected(late))

    def _take_all(self, readings: Iterable[LatestReading]) -> None:
        for reading in readings:
            self._take(reading)


def _summary(device: str, topics: Mapping[str, LatestReading]) -> DeviceSummary:
    newest = max(topics.values(), key=lambda one: one.order)
    return DeviceSummary(device, newest.gateway, newest.time_us, newest.received_us, len(topics))
