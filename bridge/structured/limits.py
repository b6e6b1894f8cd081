"""Bounds of the structured mode: what one context may hold and what one body may ask for.

The numbers of the first group are part of the format: both ends act on them, so they cannot be
configured. Those of `StructuredLimits` only say how much an end is willing to hold; the encoder
keeps within its own, the decoder refuses a body that passes its own (docs/link-format-structured.md
section 8).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = [
    "CHUNK_ROWS",
    "ENUM_VALUES",
    "FOLLOWERS",
    "HISTORY_BYTES",
    "INTEGER_BITS",
    "KEEP_BODIES_MAX",
    "MASKS",
    "PROPERTY_BLOCKS",
    "TEMPLATE_RING",
    "VALUE_BITS",
    "StructuredLimits",
]

CHUNK_ROWS = 128  # tables of a column are rebuilt between chunks only
FOLLOWERS = 12  # fragments remembered to have followed a fragment
ENUM_VALUES = 31  # texts an enumeration remembers
HISTORY_BYTES = 32 << 10  # text both ends keep as a dictionary for the next bodies
KEEP_BODIES_MAX = 64  # bodies between two snapshots, 1 at first and then each time twice as many
INTEGER_BITS = 63  # integers of the format are within +-2^63,
VALUE_BITS = 61  # and those of tokens within +-2^61, so that differences of them fit
MASKS = 63  # sets of changed columns a family remembers
PROPERTY_BLOCKS = 255  # MQTT 5 property blocks a context remembers
TEMPLATE_RING = 4096  # templates a context remembers, the oldest overwritten


@dataclass(slots=True, frozen=True)
class StructuredLimits:
    """How much one context may hold and one body may ask for."""

    sources: int = 16_384
    families: int = 1_024
    columns: int = 16_384  # over all families
    cells: int = 1_000_000  # remembered tokens: instances x columns, over all families
    literal_bytes: int = 1 << 20  # template fragments, enumerations, properties, topics
    slots: int = 256  # of one template
    token_bytes: int = 512  # a payload with a longer token travels raw
    payload_bytes: int = 16 << 10  # a longer payload travels raw
    batch_cells: int = 1 << 20  # slots times readings of one batch
    batch_readings: int = 1 << 17  # of one batch
    batch_bytes: int = 32 << 20  # payloads of one batch, reconstructed
    held_bytes: int = 64 << 20  # what a context takes of memory (`weight`)

    def halved(self) -> StructuredLimits:
        """Return the limits of a second context."""
        return replace(
            self,
            sources=self.sources // 2,
            families=self.families // 2,
            columns=self.columns // 2,
            cells=self.cells // 2,
            literal_bytes=self.literal_bytes // 2,
            held_bytes=self.held_bytes // 2,
        )
