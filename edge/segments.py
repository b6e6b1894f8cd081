"""The body of a commit: segments, each what one read of one connection brought.

A segment keeps its PUBLISH packets exactly as received, so that capturing costs nothing per message
and nothing is lost that a later reader might want. Format: docs/journal-format.md, section 3.

Invariants:
- `unpack_body(pack_runs(runs)[1])` gives back client id, version, time, count and frames of each
  run, in order.
- A body ends where its last segment ends; there is no padding and no length in front.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

from mqtt.broker.seams import ClientInfo, PublishRun

__all__ = ["Segment", "SegmentError", "pack_runs", "pack_segment", "unpack_body"]

CLIENT_ID_BYTES_MAX = 65_535
VERSIONS = (4, 5)

_WHO = struct.Struct(">BH")  # version, length of the client id that follows
_WHAT = struct.Struct(">qII")  # time_us, count, length of the frames that follow
_STATE_KEY = "journal.who"  # where a connection's packed _WHO + client id is kept


class SegmentError(Exception):
    """A body that is not a row of segments; `str()` says at which byte and why."""


@dataclass(slots=True)
class Segment:
    """Consecutive PUBLISH packets of one connection."""

    version: int  # MQTT protocol version of the packets: 4 = 3.1.1, 5 = 5.0
    client_id: str
    time_us: int  # wall clock at the read
    count: int
    frames: bytes  # `count` whole PUBLISH packets: mqtt.frames.parse_publishes(frames, version)


def pack_runs(runs: Sequence[PublishRun]) -> tuple[int, bytes]:
    """Pack runs as one body.

    Returns:
        How many publishes there are in all, and the body.
    """
    # benchmarks/journal.py pays for the cached prefix and the locals: this runs once a run
    pack = _WHAT.pack
    parts: list[bytes] = []
    total = 0
    for run in runs:
        state = run.client.state
        frames = run.frames
        count = run.count
        total += count
        parts += (
            state[_STATE_KEY] if _STATE_KEY in state else _who(run.client),
            pack(run.time_us, count, len(frames)),
            frames,
        )
    return total, b"".join(parts)


def pack_segment(segment: Segment) -> bytes:
    """Pack one segment."""
    client_id = segment.client_id.encode("utf-8")[:CLIENT_ID_BYTES_MAX]
    what = _WHAT.pack(segment.time_us, segment.count, len(segment.frames))
    return _WHO.pack(segment.version, len(client_id)) + client_id + what + segment.frames


def unpack_body(body: bytes) -> list[Segment]:
    """Take a body apart.

    Raises:
        SegmentError: a length runs past the end, or a version is not known; the crc32 of the row
            was right, so another program wrote this.
    """
    segments: list[Segment] = []
    who_size, what_size = _WHO.size, _WHAT.size
    names: dict[bytes, str] = {}
    end = len(body)
    pos = 0
    while pos < end:
        start = pos
        if start + who_size > end:
            raise SegmentError(f"segment at byte {start}: cut short in its head")
        version, name_size = _WHO.unpack_from(body, start)
        if version not in VERSIONS:
            raise SegmentError(f"segment at byte {start}: unknown version {version}")
        pos = start + who_size + name_size
        if pos + what_size > end:
            raise SegmentError(f"segment at byte {start}: cut short in its head")
        name = body[start + who_size : pos]
        client_id = names.get(name)
        if client_id is None:
            client_id = names[name] = name.decode("utf-8", "replace")
        time_us, count, size = _WHAT.unpack_from(body, pos)
        pos += what_size
        if pos + size > end:
            raise SegmentError(f"segment at byte {start}: {size} bytes of packets, not all there")
        segments.append(Segment(version, client_id, time_us, count, body[pos : pos + size]))
        pos += size
    return segments


def _who(client: ClientInfo) -> bytes:
    """Pack what is the same in every segment of a connection, and keep it with the connection."""
    client_id = client.client_id.encode("utf-8")[:CLIENT_ID_BYTES_MAX]
    packed = _WHO.pack(client.protocol_version, len(client_id)) + client_id
    client.state[_STATE_KEY] = packed
    return packed
