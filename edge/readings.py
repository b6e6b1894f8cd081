"""Commits of the journal as readings: frames taken apart, sources and devices found.

One `ReadingsBuffer` serves one lane. It holds readings between the journal, whose commits may be
of any size, and the batches, which have theirs. Nothing is made per reading but its payload.

Invariant: `seqs`, and with it every column, rises; what was taken is never given again.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, compress
from operator import add
from typing import Any

from bridge.devices import DeviceIds
from bridge.intervals import IntervalSet
from bridge.readings import FLAG_PROPERTIES, FLAG_RETAIN, Readings, Source
from edge.contract import Commit
from edge.segments import Segment, SegmentError, unpack_body
from mqtt.errors import MqttError
from mqtt.frames import parse_publishes

__all__ = ["CommitError", "ReadingsBuffer", "packet_bytes"]

_SOURCES_MAX = 16_384  # past it a new table begins
_FEW = 6  # publishes of a segment from which on columns at a time beat one at a time
# flags of a reading by the first byte of its PUBLISH: QoS and RETAIN, without DUP
_FLAGS = [
    ((first >> 1) & 3) | (FLAG_RETAIN if first & 1 else 0) for first in range(256)
]  # fmt: skip


class CommitError(Exception):
    """A commit whose body cannot be read as publishes.

    Attributes:
        commit: It, whole.
    """

    def __init__(self, commit: Commit, cause: str) -> None:
        super().__init__(f"readings {commit.first_seq} and {commit.count - 1} after it: {cause}")
        self.commit = commit


class ReadingsBuffer:
    """Readings of one lane, in order, filled by commits and taken by batches."""

    __slots__ = (
        "_by_client",
        "_bytes",
        "_device_ids",
        "_flags",
        "_index",
        "_payloads",
        "_properties",
        "_seqs",
        "_sources",
        "_start",
        "_times_us",
    )

    def __init__(self, device_ids: DeviceIds) -> None:
        self._device_ids = device_ids
        self._sources: list[Source] = []
        self._by_client: dict[str, dict[bytes, int]] = {}
        self.clear()

    def __len__(self) -> int:
        return len(self._seqs) - self._start

    @property
    def body_bytes(self) -> int:
        """About how many bytes of commits the readings here came from."""
        return self._bytes * len(self) // len(self._seqs) if self._seqs else 0

    def clear(self) -> None:
        """Forget all readings."""
        self._start = 0
        self._bytes = 0
        self._seqs: list[int] = []
        self._index: list[int] = []
        self._times_us: list[int] = []
        self._flags: list[int] = []
        self._payloads: list[bytes] = []
        self._properties: list[bytes] = []

    def fill(self, commit: Commit, after_seq: int, settled: IntervalSet | None = None) -> None:
        """Add a commit's readings past `after_seq` that are not `settled`.

        Raises:
            CommitError: its body is no row of publishes, or not as many as it says.
        """
        if not len(self):
            self.clear()
            if len(self._sources) > _SOURCES_MAX:
                self._sources = []
                self._by_client.clear()
        elif self._start:
            self._bytes = self.body_bytes
            self._drop(0, self._start)
            self._start = 0
        before = len(self._seqs)
        try:
            for segment in unpack_body(commit.body):
                self._fill_segment(segment)
        except (SegmentError, MqttError, UnicodeDecodeError) as error:
            self._cut(before)
            raise CommitError(commit, str(error)) from error
        self._bytes += len(commit.body)
        found = len(self._payloads) - before
        if found != commit.count:
            self._cut(before)
            raise CommitError(commit, f"{found} publishes where {commit.count} were committed")
        self._seqs += range(commit.first_seq, commit.first_seq + commit.count)
        skip = after_seq - commit.first_seq + 1
        if skip > 0:
            self._drop(before, before + skip)
        if settled:
            self._drop_settled(before, settled)

    def _drop_settled(self, before: int, settled: IntervalSet) -> None:
        """Leave out, of the readings from `before` on, those the cloud has."""
        seqs = self._seqs[before:]
        if not seqs or not settled.overlaps(seqs[0], seqs[-1]):
            return
        wanted = [seq not in settled for seq in seqs]
        for column in self._columns():
            column[before:] = compress(column[before:], wanted)

    def _fill_segment(self, segment: Segment) -> None:
        parts = parse_publishes(segment.frames, segment.version)
        by_topic = self._by_client.get(segment.client_id)
        if by_topic is None:
            by_topic = self._by_client[segment.client_id] = {}
        if len(parts) < _FEW:  # benchmarks/uplink.py: most clients send one publish at a time
            for first, topic, _, block, payload in parts:
                if topic not in by_topic:
                    self._add_source(by_topic, topic, segment.client_id)
                self._index.append(by_topic[topic])
                self._times_us.append(segment.time_us)
                self._flags.append(_FLAGS[first] | (FLAG_PROPERTIES if block else 0))
                self._properties.append(block)
                self._payloads.append(payload)
            return
        firsts, topics, _, blocks, payloads = zip(*parts, strict=True)
        for topic in topics:
            if topic not in by_topic:
                self._add_source(by_topic, topic, segment.client_id)
        self._index += map(by_topic.__getitem__, topics)
        self._times_us += [segment.time_us] * len(parts)
        flags = list(map(_FLAGS.__getitem__, firsts))
        if any(blocks):
            flags = [
                flag | FLAG_PROPERTIES if block else flag
                for flag, block in zip(flags, blocks, strict=True)
            ]
        self._flags += flags
        self._properties += blocks
        self._payloads += payloads

    def _add_source(self, by_topic: dict[bytes, int], topic: bytes, client_id: str) -> None:
        name = topic.decode()
        by_topic[topic] = len(self._sources)
        self._sources.append((name, self._device_ids.device(name, client_id)))

    def _columns(self) -> tuple[list[Any], ...]:
        return (
            self._seqs,
            self._index,
            self._times_us,
            self._flags,
            self._payloads,
            self._properties,
        )

    def _cut(self, length: int) -> None:
        for column in self._columns():
            del column[length:]

    def _drop(self, first: int, end: int) -> None:
        for column in self._columns():
            del column[first:end]

    def take(self, readings_max: int, bytes_max: int, late_us: int) -> Readings | None:
        """Return the next readings, None when there are none.

        Args:
            readings_max: At most so many.
            bytes_max: Of topics and payloads at most so many, but one reading at least.
            late_us: Readings from before this time and others are never given together.
        """
        start = self._start
        end = min(start + readings_max, len(self._seqs))
        if start == end:
            return None
        late = [time_us < late_us for time_us in self._times_us[start:end]]
        if (not late[0]) in late:
            end = start + late.index(not late[0])
        payloads = self._payloads[start:end]
        index = self._index[start:end]
        sizes = list(accumulate(_sizes(self._sources, index, payloads)))
        if sizes[-1] > bytes_max:
            n = max(1, sum(size <= bytes_max for size in sizes))
            end = start + n
            payloads, index = payloads[:n], index[:n]
        self._start = end
        return Readings(
            self._seqs[start:end],
            self._sources,
            index,
            self._times_us[start:end],
            self._flags[start:end],
            payloads,
            self._properties[start:end],
        )


def packet_bytes(readings: Readings) -> int:
    """Return what the readings took as MQTT packets of their own, QoS 1 without properties.

    A header of 2 to 4 bytes counts as 3; with topic length and packet id that makes 7 beside
    topic, payload and property block: what a bridge would send before TLS and TCP.
    """
    sizes = sum(_sizes(readings.sources, readings.source_index, readings.payloads))
    return sizes + 7 * len(readings) + sum(map(len, readings.properties))


def _sizes(sources: Sequence[Source], index: Sequence[int], payloads: Sequence[bytes]) -> list[int]:
    """Return bytes of topic and payload a reading; topics count as characters, near enough."""
    topics = {place: len(sources[place][0]) for place in set(index)}
    return list(map(add, map(topics.__getitem__, index), map(len, payloads)))
