"""What to do with the journal file that is found at start: one decision, as a table.

Theory of operation. A session marks the file as open when it begins and as clean when it ends. What
is found next time is one of three things: nothing, somebody else's file, or our own. Our own may be
whole; whole, but perhaps without its last commits; or damaged. Never is a seq given out twice: when
commits may be missing, the next seq is past everything the file has ever reserved, and the range
between is recorded as lost. docs/journal-format.md, section 5, has the same table in words.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import Enum

__all__ = ["Action", "Evidence", "Header", "Owner", "decide", "wal_lost_frames"]


class Header(Enum):
    """The first 100 bytes of the file."""

    ABSENT = "absent"  # no file
    BLANK = "blank"  # no bytes, or only zeros: what a power cut makes of a young file
    SQLITE = "sqlite"
    OTHER = "other"  # some other kind of file


class Owner(Enum):
    """Whose database it is, by application id and schema version."""

    OURS = "ours"
    NEWER = "newer"  # ours, of a later version of Tidegate
    FOREIGN = "foreign"


class Action(Enum):
    """What is done at start."""

    CREATE = "create"  # a new journal with a new epoch
    ADOPT = "adopt"  # finish a replacement that was cut short, then look again
    RESUME = "resume"  # go on after the last seq found
    RESUME_PAST_RESERVED = "resume-past-reserved"  # the last commits may be missing
    SALVAGE = "salvage"  # move it aside; what can be read goes in a new file of the same epoch
    START_OVER = "start-over"  # move it aside; new journal, new epoch
    REFUSE_NOT_DATABASE = "refuse-not-database"
    REFUSE_FOREIGN = "refuse-foreign"
    REFUSE_NEWER = "refuse-newer"


@dataclass(slots=True, frozen=True)
class Evidence:
    """All that the decision rests on; fields that a row does not reach keep their defaults."""

    header: Header
    replacement: bool = False  # a complete `journal.db.new` lies beside
    owner: Owner = Owner.OURS
    intact: bool = True  # structure and the rows a crash could have touched check out
    meta: bool = True  # epoch and reserved seq could be read
    clean: bool = True  # the last session ended in order
    synced: bool = True  # it ran with durability "power-loss"
    same_boot: bool = True  # the machine has not started anew since
    wal_whole: bool = True  # the log ends where a crash may end it, not in the middle


def decide(found: Evidence) -> Action:
    """Return what to do with what was found."""
    if found.replacement:
        return Action.ADOPT
    if found.header is Header.ABSENT:
        return Action.CREATE
    if found.header is Header.BLANK:
        return Action.START_OVER
    if found.header is Header.OTHER:
        return Action.REFUSE_NOT_DATABASE
    if found.owner is Owner.FOREIGN:
        return Action.REFUSE_FOREIGN
    if found.owner is Owner.NEWER:
        return Action.REFUSE_NEWER
    if not found.meta:
        return Action.START_OVER
    if not found.intact:
        return Action.SALVAGE
    # A commit is acknowledged only when synced, or, with "process-crash", when the system has it:
    # then only a restart of the machine can have taken it.
    whole = found.wal_whole and (found.clean or found.synced or found.same_boot)
    return Action.RESUME if whole else Action.RESUME_PAST_RESERVED


_WAL_HEADER_BYTES = 32
_FRAME_HEADER_BYTES = 24
_WAL_MAGIC = (b"\x37\x7f\x06\x82", b"\x37\x7f\x06\x83")  # checksums little-, big-endian


def wal_lost_frames(wal: bytes, valid_frames: int, page_bytes: int) -> bool:
    """Tell a torn end of a write-ahead log from damage in its middle.

    A crash leaves at most one transaction incomplete, the last. SQLite reads up to the first frame
    that does not check and ignores the rest, silently. If behind it lies a commit frame of the same
    cycle of the log, and anything after that, then that commit had been synced before its successor
    began: it was whole once, and readings that were acknowledged are gone.

    Args:
        wal: The log as found, before anything is written to it.
        valid_frames: How many frames SQLite took.
        page_bytes: The database's page size.

    Returns:
        True when synced transactions are unreadable.
    """
    size = _FRAME_HEADER_BYTES + page_bytes
    begin = _WAL_HEADER_BYTES + valid_frames * size
    # the salts name the cycle: frames of earlier cycles lie behind the end, and are no loss
    salts = wal[16:24] if _header_checks(wal) else wal[begin + 8 : begin + 16]
    committed = False
    for start in range(begin, len(wal) - _FRAME_HEADER_BYTES + 1, size):
        if wal[start + 8 : start + 16] != salts or not any(salts):
            continue
        if committed:
            return True
        committed = wal[start + 4 : start + 8] != b"\0\0\0\0"
    return False


def _header_checks(wal: bytes) -> bool:
    """Return True when the header of a log carries its own right checksum."""
    if len(wal) < _WAL_HEADER_BYTES or wal[:4] not in _WAL_MAGIC:
        return False
    order = ">" if wal[3] & 1 else "<"
    words = struct.unpack_from(f"{order}6I", wal)
    sum_0 = sum_1 = 0
    for even, odd in zip(words[::2], words[1::2], strict=True):
        sum_0 = (sum_0 + even + sum_1) & 0xFFFFFFFF
        sum_1 = (sum_1 + odd + sum_0) & 0xFFFFFFFF
    return struct.unpack_from(">2I", wal, 24) == (sum_0, sum_1)
