"""Thinning: fewer readings in place of many, before a lane has to drop its oldest. Pure.

Two ways. *One of N* keeps, of the readings of each client and topic, every N-th as it was taken.
*Aggregate* makes one reading of those that a client sent to a topic within an interval: it is the
last of them, with its seq, time, topic, QoS and properties, and its numbers are means; what is no
number is as in the last. docs/journal-format.md section 7.

Invariants:
- A seq that is kept stays the seq of the same client, topic and time; none is made up.
- Rows and readings stay in the order of their seqs, so a device's order stays.
- An aggregate bears the user property `tidegate-thinned`, and is never part of another one.
- What cannot be read is left as it is.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import is_
from typing import Any, Final

from edge.contract import Lane
from edge.journal_schema import LANE_KEYS, ROW_BYTES, Row, row_crc32
from edge.segments import Segment, SegmentError, pack_segment, unpack_body
from mqtt.errors import MqttError
from mqtt.frames import PublishParts, encode_publish, parse_publishes
from mqtt.packets import Publish
from mqtt.properties import USER_PROPERTY, encode_property_block

__all__ = ["MARK", "ThinRule", "Thinned", "Thinner"]

MARK: Final = "tidegate-thinned"  # user property of an aggregate: how many readings it stands for
SUMMARY: Final = "tidegate_thinned"  # key of an aggregate's payload
_SOURCES_MAX = 65_536  # counted one by one; past it counting begins anew
_DIGITS = 15  # significant ones of a mean that is no whole number
_VERSION = 5  # an aggregate needs a property


@dataclass(slots=True, frozen=True)
class ThinRule:
    """How to thin: one of the two is above 0."""

    keep_one_of: int = 0
    interval_us: int = 0


@dataclass(slots=True)
class _Reading:
    """One reading of a row."""

    row: int  # its place among the rows
    seq: int
    version: int
    client_id: str
    time_us: int
    parts: PublishParts


@dataclass(slots=True)
class Thinned:
    """Some rows before and after."""

    rows: list[Row]  # to be written
    gone: list[int]  # keys of the rows they replace
    dropped: list[int]  # seqs that are no more, rising
    freed_bytes: int  # of bodies and ROW_BYTES; may be negative


@dataclass(slots=True)
class Thinner:
    """Thins the rows of one lane, a stretch at a time, oldest first."""

    rule: ThinRule
    _counts: dict[tuple[str, bytes], int] = field(default_factory=dict)

    def thin(self, rows: Sequence[Row]) -> Thinned:
        """Return what becomes of consecutive rows of a lane."""
        by_row = [_readings(at, row) for at, row in enumerate(rows)]
        readings = [reading for some in by_row for reading in some]
        if self.rule.keep_one_of:
            kept = [reading for reading in readings if self._counted(reading)]
        else:
            kept = _aggregated(readings, self.rule.interval_us)
        left: list[list[_Reading]] = [[] for _ in rows]
        for reading in kept:
            left[reading.row].append(reading)
        done = Thinned([], [], [], 0)
        for row, before, after in zip(rows, by_row, left, strict=True):
            if len(after) == len(before) and all(map(is_, after, before)):
                continue
            seqs = {reading.seq for reading in after}
            done.gone.append(row[0])
            done.dropped += [one.seq for one in before if one.seq not in seqs]
            made = _rows(row, after)
            done.rows += made
            done.freed_bytes += row[2] + ROW_BYTES - sum(one[2] + ROW_BYTES for one in made)
        return done

    def _counted(self, reading: _Reading) -> bool:
        """Return True for the first of every N readings of a client and topic."""
        key = (reading.client_id, reading.parts[1])
        if len(self._counts) > _SOURCES_MAX:
            self._counts.clear()
        count = self._counts.get(key, 0)
        self._counts[key] = (count + 1) % self.rule.keep_one_of
        return count == 0


def _readings(at: int, row: Row) -> list[_Reading]:
    """Take a row apart; none of it when it does not check or holds something else."""
    key, count, _, time_us, _, _, crc32, body = row
    if crc32 != row_crc32(key, count, time_us, body):
        return []
    seq = key % LANE_KEYS
    found: list[_Reading] = []
    try:
        for segment in unpack_body(body):
            for parts in parse_publishes(segment.frames, segment.version):
                found.append(
                    _Reading(at, seq + len(found), segment.version, segment.client_id,
                             segment.time_us, parts)
                )  # fmt: skip
    except (SegmentError, MqttError):
        return []
    return found if len(found) == count else []


def _rows(row: Row, readings: Sequence[_Reading]) -> list[Row]:
    """Return the rows that hold what is left of one: one for each run of consecutive seqs."""
    lane = Lane(row[0] // LANE_KEYS)
    time_us, boot, boot_us = row[3:6]
    runs: list[list[_Reading]] = []
    for reading in readings:
        if runs and runs[-1][-1].seq == reading.seq - 1:
            runs[-1].append(reading)
        else:
            runs.append([reading])
    made: list[Row] = []
    for run in runs:
        body = b"".join(map(_packed, run))
        key = lane * LANE_KEYS + run[0].seq
        crc32 = row_crc32(key, len(run), time_us, body)
        made.append((key, len(run), len(body), time_us, boot, boot_us, crc32, body))
    return made


def _packed(reading: _Reading) -> bytes:
    frame = encode_publish(*reading.parts, reading.version)
    return pack_segment(Segment(reading.version, reading.client_id, reading.time_us, 1, frame))


# ---- aggregates ----------------------------------------------------------------------------------


def _aggregated(readings: Sequence[_Reading], interval_us: int) -> list[_Reading]:
    """Return one reading for each client, topic and interval, at the place of its last."""
    groups: dict[tuple[str, bytes, int], list[_Reading]] = {}
    kept: list[_Reading] = []
    for reading in readings:
        if _is_aggregate(reading):
            kept.append(reading)
            continue
        key = (reading.client_id, reading.parts[1], reading.time_us // interval_us)
        groups.setdefault(key, []).append(reading)
    kept += [_one_of(group) for group in groups.values()]
    return sorted(kept, key=lambda reading: reading.seq)


def _is_aggregate(reading: _Reading) -> bool:
    return MARK.encode() in reading.parts[3]


def _one_of(group: Sequence[_Reading]) -> _Reading:
    last = group[-1]
    if len(group) == 1:
        return last
    first_byte, topic, packet_id, block, _ = last.parts
    payload = _summary(group)
    if payload is None:  # no numbers: the last says most
        return last
    block += encode_property_block({USER_PROPERTY: [(MARK, str(len(group)))]}, Publish.packet_type)
    parts = (first_byte, topic, packet_id, block, payload)
    return _Reading(last.row, last.seq, _VERSION, last.client_id, last.time_us, parts)


def _summary(group: Sequence[_Reading]) -> bytes | None:
    """Return the payload of an aggregate; None when the last payload has no numbers."""
    documents = [document for one in group if (document := _document(one.parts[4])) is not None]
    last = _document(group[-1].parts[4])
    if last is None or SUMMARY in last:
        return None
    try:
        means, least, most = _folded(last, documents)
    except (OverflowError, RecursionError):  # beyond what a float holds, or nested too deeply
        return None
    if least is None:
        return None
    summary = {
        "count": len(group),
        "first_us": group[0].time_us,
        "last_us": group[-1].time_us,
        "min": least,
        "max": most,
    }
    return json.dumps({**means, SUMMARY: summary}, separators=(",", ":")).encode()


def _document(payload: bytes) -> dict[str, Any] | None:
    """Return a payload as an object, a plain number as {"value": number}; None for all else."""
    try:
        document = json.loads(payload.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError):
        return None
    if _is_number(document):
        return {"value": document}
    return document if isinstance(document, dict) else None


def _no_number(name: str) -> object:
    raise ValueError(f"{name} is no number")


def _is_number(value: object) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    return isinstance(value, int) and not isinstance(value, bool)


def _folded(last: dict[str, Any], documents: Sequence[Any]) -> tuple[dict[str, Any], Any, Any]:
    """Return `last` with means in place of its numbers, and the numbers' least and greatest.

    The latter two have the keys of `last` that lead to numbers; None when there are none.
    """
    means: dict[str, Any] = {}
    least: dict[str, Any] = {}
    most: dict[str, Any] = {}
    for key, value in last.items():
        values = [document[key] for document in documents if key in document]
        means[key] = value
        if isinstance(value, dict):
            inner = [one for one in values if isinstance(one, dict)]
            means[key], below, above = _folded(value, inner)
        elif _is_number(value):
            numbers = [one for one in values if _is_number(one)]
            means[key], below, above = _mean(numbers), min(numbers), max(numbers)
        else:
            continue
        if below is not None:
            least[key], most[key] = below, above
    return means, least or None, most or None


def _mean(numbers: Sequence[float]) -> float:
    if min(numbers) == max(numbers):
        return numbers[-1]
    mean = math.fsum(numbers) / len(numbers)
    return float(f"{mean:.{_DIGITS}g}")
