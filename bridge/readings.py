"""Readings as columns: the shape in which they travel from the journal to the sinks.

One row is one reading, whose identity is (gateway, epoch, seq): `epoch` is a random 64-bit id made
with the journal file, `seq` rises by one a reading (DESIGN section 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

__all__ = ["FLAG_PROPERTIES", "FLAG_QOS_MASK", "FLAG_RETAIN", "Readings", "Source"]

FLAG_QOS_MASK = 0x03
FLAG_RETAIN = 0x04
FLAG_PROPERTIES = 0x08  # an MQTT 5 property block came with the publish

Source = tuple[str, str]  # (topic name, device id)


@dataclass(slots=True)
class Readings:
    """`len(seqs)` readings in rising seq order, as parallel columns.

    Invariants: all columns have the same length; every `source_index` is a valid index of
    `sources`; `properties[i]` is b"" exactly when flag FLAG_PROPERTIES is clear.
    """

    seqs: Sequence[int]  # strictly rising; a range when without gaps
    sources: list[Source]
    source_index: list[int]
    times_us: list[int]  # wall clock at the edge, microseconds since 1970 UTC
    flags: list[int]
    payloads: list[bytes]
    # the v5 property block as received, without its length, without topic alias
    properties: list[bytes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.seqs)
