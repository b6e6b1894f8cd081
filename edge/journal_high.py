"""`journal.high`: how far the journal beside it has ever reserved seqs, so that an old copy shows.

A journal put back from a backup does not know what was given out after the backup was made. This
file does: it is written, and synced, before any seq past the mark is used, and each opening
reserves at least one seq more. A journal whose own reservation is below the mark was put back.
Losing this file does no harm but to that knowledge. docs/journal-format.md section 1.

    offset  size  field
    0       4     "TDJH"
    4       8     epoch, unsigned, big-endian
    12      8     reserved seq, unsigned, big-endian
    20      4     CRC-32 of the 20 bytes before
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

__all__ = ["high_path", "read_high", "write_high"]

_MARK = struct.Struct(">4sQQ")
_CHECK = struct.Struct(">I")
_MAGIC = b"TDJH"


def high_path(journal: Path) -> Path:
    """Return where the mark of the journal at `journal` is kept."""
    return journal.with_suffix(".high")


def read_high(journal: Path, epoch: int) -> int:
    """Return the highest seq ever reserved in an epoch, 0 when nothing is known of it."""
    try:
        data = high_path(journal).read_bytes()
    except OSError:
        return 0
    if len(data) != _MARK.size + _CHECK.size:
        return 0
    magic, of_epoch, reserved_seq = _MARK.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, _MARK.size)
    whole = magic == _MAGIC and zlib.crc32(data[: _MARK.size]) == check
    return int(reserved_seq) if whole and of_epoch == epoch else 0


def write_high(journal: Path, epoch: int, reserved_seq: int) -> None:
    """Set the mark: on the disk when this returns. Blocking.

    Raises:
        OSError: it cannot be written.
    """
    mark = _MARK.pack(_MAGIC, epoch, reserved_seq)
    descriptor = os.open(high_path(journal), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, mark + _CHECK.pack(zlib.crc32(mark)), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
