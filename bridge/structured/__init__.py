"""The structured mode of the link: payloads as templates and columns (mode 1 of the envelope).

docs/link-format-structured.md. `StructuredEncoder` and `StructuredDecoder` each hold the context
of one connection; they plug into `bridge.batch` as the bodies of mode 1.
"""

from bridge.structured.decoder import Snapshots, StructuredDecoder
from bridge.structured.encoder import StructuredEncoder
from bridge.structured.limits import StructuredLimits
from bridge.structured.snapshot import SnapshotError

__all__ = [
    "SnapshotError",
    "Snapshots",
    "StructuredDecoder",
    "StructuredEncoder",
    "StructuredLimits",
]
