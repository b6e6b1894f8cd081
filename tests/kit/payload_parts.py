"""What generators of seeded payloads are made of: arrivals, random walks, spellings."""

from __future__ import annotations

import json
import math
import random

__all__ = [
    "Message",
    "arrivals",
    "compact",
    "iso",
    "protobuf_number",
    "protobuf_part",
    "walk",
]

Message = tuple[int, str, bytes]  # time in ms, topic, payload
_START_MS = 1_761_000_000_000


def arrivals(
    rng: random.Random, devices: int, period_ms: int, count: int, jitter_ms: float = 25
) -> list[tuple[int, int]]:
    """Return `count` (time, device): each device keeps a period, with jitter."""
    times = []
    for device in range(devices):
        phase = rng.random() * period_ms
        for turn in range(count // devices + 2):
            jitter = rng.lognormvariate(math.log(jitter_ms), 0.6)
            times.append((int(_START_MS + phase + turn * period_ms + jitter), device))
    return sorted(times)[:count]


def walk(
    rng: random.Random, value: float, step: float, low: float = -1e9, high: float = 1e9, n: int = 1
) -> float:
    """Return `value` a random step on, within bounds, rounded to `n` decimals."""
    return max(low, min(high, round(value + rng.gauss(0, step), n)))


def iso(rng: random.Random, time_ms: int) -> str:
    """Return a time of one day with microseconds, of which the last three are random."""
    s = time_ms // 1000
    clock = f"{s // 3600 % 24:02}:{s // 60 % 60:02}:{s % 60:02}"
    return f"2025-10-20T{clock}.{time_ms % 1000:03}{rng.randrange(1000):03}+00:00"


def compact(value: object) -> bytes:
    """Return JSON without spaces."""
    return json.dumps(value, separators=(",", ":")).encode()


def _varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))


def protobuf_number(field: int, value: int) -> bytes:
    """Return a varint field."""
    return _varint(field << 3) + _varint(value % 2**64)


def protobuf_part(field: int, data: bytes) -> bytes:
    """Return a field of a length and bytes."""
    return _varint(field << 3 | 2) + _varint(len(data)) + data
