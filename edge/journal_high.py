"""`journal.high`: how far the journal beside it has ever reserved seqs, so that an old copy shows.

A journal put back from a backup does not know what was given out after the backup was made. This
file does: it is written, and synced, before any seq past the mark is used, and each opening
reserves at least one seq more. A journal whose own reservation is below the mark was put back; the
run that set the mark is then one of its own, though the copy does not have it.
Losing this file does no harm but to that knowledge. docs/journal-format.md section 1.

    offset  size  field
    0       4     "TDJI"
    4       8     epoch, unsigned, big-endian
    12      8     reserved seq, unsigned, big-endian
    20      8     run that reserved it, unsigned, big-endian
    28      8     seq that the run begins after, unsigned, big-endian
    36      4     CRC-32 of the 36 bytes before

A mark of before runs were kept is "TDJH", without the two fields of the run.
"""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

from bridge.runs import Run

__all__ = ["Mark", "high_path", "read_high", "read_mark", "write_high"]

_MARK = struct.Struct(">4sQQQQ")
_MARK_BEFORE = struct.Struct(">4sQQ")
_CHECK = struct.Struct(">I")
_MAGIC, _MAGIC_BEFORE = b"TDJI", b"TDJH"


class Mark(NamedTuple):
    """What `journal.high` says."""

    epoch: int
    reserved_seq: int  # the highest ever
    run: Run | None  # that reserved it; None: the mark is from before runs were kept


def high_path(journal: Path) -> Path:
    """Return where the mark of the journal at `journal` is kept."""
    return journal.with_suffix(".high")


def read_high(journal: Path, epoch: int) -> tuple[int, Run | None]:
    """Return the highest seq ever reserved in an epoch, and by which run.

    0 when nothing is known of it; None when the mark is from before runs were kept.

    Raises:
        OSError: there is a mark, and it cannot be read now.
    """
    mark = read_mark(journal)
    return (mark.reserved_seq, mark.run) if mark and mark.epoch == epoch else (0, None)


def read_mark(journal: Path) -> Mark | None:
    """Return the mark beside the journal at `journal`; None when there is none, or it is torn.

    Raises:
        OSError: there is one, and it cannot be read now.
    """
    try:
        data = high_path(journal).read_bytes()
    except FileNotFoundError:
        return None
    kind = _MARK if data.startswith(_MAGIC) else _MARK_BEFORE
    if len(data) < kind.size + _CHECK.size:
        return None
    magic, epoch, reserved_seq, *run = kind.unpack_from(data)
    (check,) = _CHECK.unpack_from(data, kind.size)
    if magic not in (_MAGIC, _MAGIC_BEFORE) or zlib.crc32(data[: kind.size]) != check:
        return None
    return Mark(epoch, reserved_seq, Run(*run) if run else None)


def write_high(journal: Path, epoch: int, reserved_seq: int, run: Run) -> None:
    """Set the mark: on the disk when this returns. Blocking.

    Raises:
        OSError: it cannot be written.
    """
    mark = _MARK.pack(_MAGIC, epoch, reserved_seq, *run)
    descriptor = os.open(high_path(journal), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.pwrite(descriptor, mark + _CHECK.pack(zlib.crc32(mark)), 0)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
