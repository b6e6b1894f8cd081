"""The journal's file: tables, keys, checks and the errors it is reported with.

docs/journal-format.md, section 2, is the specification; `SCHEMA` is that section as SQL.

Invariants:
- `key = lane * LANE_KEYS + first_seq`: the rows of a lane lie together and in seq order, so that
  one B-tree serves both lanes and a commit of one lane touches one place.
- `crc32` covers key, count, time and body, so that a row with a damaged identity is found out too.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any, Final, TypeAlias

from edge.contract import Tombstone

__all__ = [
    "APPLICATION_ID",
    "INSERT_TOMBSTONE",
    "KEEP_DAMAGED_ROW",
    "LANE_KEYS",
    "PAGE_BYTES",
    "ROW_BYTES",
    "SCHEMA",
    "SCHEMA_VERSION",
    "JournalError",
    "Row",
    "error_of",
    "is_damage",
    "key_of",
    "lane_keys",
    "primary_code",
    "row_crc32",
    "table_exists",
    "tombstone_row",
]

APPLICATION_ID: Final = 0x54444A4C  # "TDJL"
SCHEMA_VERSION: Final = 1
PAGE_BYTES: Final = 4096
LANE_KEYS: Final = 10**18  # decimal, so that a person sees lane and seq in a key
ROW_BYTES: Final = 64  # what a row takes beside its body, for accounting

SCHEMA: Final = (
    """CREATE TABLE meta (
        id INTEGER PRIMARY KEY CHECK (id = 1),
        epoch INTEGER NOT NULL,
        created_us INTEGER NOT NULL,
        reserved_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        clean INTEGER NOT NULL,
        durability TEXT NOT NULL,
        boot INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE lanes (
        lane INTEGER PRIMARY KEY,
        gone_seq INTEGER NOT NULL,
        counted_seq INTEGER NOT NULL,
        readings INTEGER NOT NULL,
        bytes INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE boots (
        id INTEGER PRIMARY KEY,
        boot_id TEXT NOT NULL UNIQUE,
        first_us INTEGER NOT NULL
    ) STRICT""",
    """CREATE TABLE commits (
        key INTEGER PRIMARY KEY,
        count INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        time_us INTEGER NOT NULL,
        boot INTEGER NOT NULL,
        boot_us INTEGER NOT NULL,
        crc32 INTEGER NOT NULL,
        body BLOB NOT NULL
    ) STRICT""",
    """CREATE TABLE tombstones (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        lane INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        count INTEGER NOT NULL,
        reason TEXT NOT NULL,
        time_us INTEGER NOT NULL,
        UNIQUE (lane, first_seq, reason)
    ) STRICT""",
    """CREATE TABLE dead_letters (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        lane INTEGER NOT NULL,
        first_seq INTEGER NOT NULL,
        last_seq INTEGER NOT NULL,
        cause TEXT NOT NULL,
        time_us INTEGER NOT NULL,
        body BLOB NOT NULL,
        UNIQUE (lane, first_seq)
    ) STRICT""",
    """CREATE VIEW journal AS SELECT
        key / 1000000000000000000 AS lane,
        key % 1000000000000000000 AS first_seq,
        count, bytes, time_us, boot, boot_us, crc32, body
    FROM commits""",
)

INSERT_TOMBSTONE: Final = (
    "INSERT OR REPLACE INTO tombstones (lane, first_seq, last_seq, count, reason, time_us)"
    " VALUES (?, ?, ?, ?, ?, ?)"
)
# a row that does not check goes to the dead letters as it is
KEEP_DAMAGED_ROW: Final = (
    "INSERT OR REPLACE INTO dead_letters (lane, first_seq, last_seq, cause, time_us, body)"
    " SELECT ?, ?, ?, 'damaged', ?, body FROM commits WHERE key = ?"
)

Row: TypeAlias = tuple[
    Any, ...
]  # of `commits`: key, count, bytes, time_us, boot, boot_us, crc32, body

_CHECKED = struct.Struct(">QIq")  # key, count, time_us


def key_of(lane: int, seq: int) -> int:
    """Return the key of a row of `lane` that begins at `seq`."""
    return lane * LANE_KEYS + seq


def lane_keys(lane: int) -> tuple[int, int]:
    """Return the least and the greatest key a row of `lane` can have."""
    return lane * LANE_KEYS, (lane + 1) * LANE_KEYS - 1


def row_crc32(key: int, count: int, time_us: int, body: bytes) -> int:
    """Return the check of a row of `commits`."""
    return zlib.crc32(body, zlib.crc32(_CHECKED.pack(key, count, time_us)))


def tombstone_row(tombstone: Tombstone) -> Row:
    """Return the parameters of INSERT_TOMBSTONE."""
    return (
        int(tombstone.lane),
        tombstone.first_seq,
        tombstone.last_seq,
        tombstone.count,
        tombstone.reason,
        tombstone.time_us,
    )


class JournalError(Exception):
    """The journal did not do what it was asked; `str()` is one line for an operator.

    Attributes:
        path: The journal's file.
        seq: The seq it was about to write or read, 0 when none.
        hint: What is wrong and what to do.
        kind: "full", "io", "damaged", "busy", "unwritable", "foreign", "newer", "in-use", "closed".
    """

    def __init__(self, path: Path, seq: int, hint: str, kind: str = "io") -> None:
        self.path = path
        self.seq = seq
        self.hint = hint
        self.kind = kind
        super().__init__(f"{path}: {hint}" + (f" (at seq {seq})" if seq else ""))


_KINDS: Final = {
    sqlite3.SQLITE_FULL: ("full", "the disk is full; free space on it"),
    sqlite3.SQLITE_IOERR: ("io", "the disk reports an error; see the system's log"),
    sqlite3.SQLITE_CORRUPT: ("damaged", "the file is damaged"),
    sqlite3.SQLITE_NOTADB: ("damaged", "the file is damaged"),
    sqlite3.SQLITE_BUSY: ("busy", "another program holds it; close that program"),
    sqlite3.SQLITE_LOCKED: ("busy", "another program holds it; close that program"),
    sqlite3.SQLITE_READONLY: ("unwritable", "cannot be written; check owner, mode and mount"),
    sqlite3.SQLITE_CANTOPEN: ("unwritable", "cannot be opened; check owner, mode and mount"),
    sqlite3.SQLITE_PERM: ("unwritable", "cannot be opened; check owner, mode and mount"),
}

# "no such table" in a file of ours is damage too
_DAMAGE_CODES: Final = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR)


def primary_code(error: sqlite3.Error) -> int:
    """Return SQLite's primary result code of an error, SQLITE_ERROR when it has none."""
    code = getattr(error, "sqlite_errorcode", None)
    return sqlite3.SQLITE_ERROR if code is None else int(code) & 0xFF


def is_damage(error: sqlite3.Error) -> bool:
    """Return True for what a file of ours that is damaged answers; not for a disk that fails."""
    return primary_code(error) in _DAMAGE_CODES


def table_exists(connection: sqlite3.Connection, name: str) -> bool:
    """Return whether the file has a table that is made when it is first needed.

    Raises:
        sqlite3.Error: it cannot be read, which is not the same as having none.
    """
    sql = "SELECT 1 FROM sqlite_schema WHERE type = 'table' AND name = ?"
    return connection.execute(sql, (name,)).fetchone() is not None


def error_of(path: Path, seq: int, error: sqlite3.Error) -> JournalError:
    """Say what an SQLite error means for the journal."""
    kind, hint = _KINDS.get(primary_code(error), ("io", "SQLite refused"))
    name = getattr(error, "sqlite_errorname", None) or type(error).__name__
    return JournalError(path, seq, f"{hint} ({name}: {error})", kind)
