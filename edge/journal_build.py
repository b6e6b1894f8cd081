"""Making journal files: new, or from what can be read of a damaged one. Blocking.

A file is built as `journal.db.new`: contents first, without care; then made durable; then the row
of `meta`, which says that the rest is there; then it is put in place. A crash at any point leaves
the old file, or the new one, or a complete `journal.db.new` that the next start puts in place.
"""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from edge.contract import Lane, Tombstone
from edge.database import connect_file
from edge.journal_owner import keep_owner, read_owner
from edge.journal_runs import keep_runs, read_origin, read_runs
from edge.journal_salvage import copy_rows, lost_tombstones
from edge.journal_schema import (
    APPLICATION_ID,
    INSERT_TOMBSTONE,
    PAGE_BYTES,
    ROW_BYTES,
    SCHEMA,
    SCHEMA_VERSION,
    Row,
    is_damage,
    lane_keys,
    table_exists,
    tombstone_row,
)
from edge.journal_state import JournalState

__all__ = [
    "Meta",
    "boot_row",
    "build_empty",
    "build_salvaged",
    "is_complete",
    "keep_unmet",
    "new_path",
    "read_meta",
    "read_unmet",
    "swap_in",
    "sync_path",
]

T = TypeVar("T")

log = structlog.get_logger(component="journal")

BOOTS_KEPT = 1000
DAMAGED_KEPT = 3
SALVAGE_FREE_BYTES_MIN = 64 * 1024 * 1024
# made when it is first needed: a journal of before has none, and reads the same without
_MAKE_UNMET = (
    "CREATE TABLE IF NOT EXISTS unmet (id INTEGER PRIMARY KEY CHECK (id = 1),"
    " after_seq INTEGER NOT NULL, inode INTEGER NOT NULL) STRICT"
)


@dataclass(slots=True)
class Meta:
    """The row of `meta`, with the boot's own name."""

    epoch: int
    created_us: int
    reserved_seq: int
    last_seq: int
    clean: bool
    durability: str
    boot_id: str


def new_path(path: Path) -> Path:
    """Return where the replacement of the journal at `path` is built."""
    return path.with_name(path.name + ".new")


def read_meta(connection: sqlite3.Connection) -> Meta | None:
    """Return the row of `meta`, None when the file was not built to its end."""
    row = connection.execute(
        "SELECT epoch, created_us, reserved_seq, last_seq, clean, durability,"
        " coalesce((SELECT boot_id FROM boots WHERE boots.id = meta.boot), '') FROM meta"
    ).fetchone()
    if row is None:
        return None
    epoch, created_us, reserved_seq, last_seq, clean, durability, boot_id = row
    return Meta(epoch, created_us, reserved_seq, last_seq, bool(clean), durability, boot_id)


def is_complete(new: Path) -> bool:
    """Return True when `new` was built to its end.

    Raises:
        sqlite3.Error: it cannot be read now; it may hold all that was salvaged.
    """
    if not new.exists():
        return False
    try:
        with closing(connect_file(new, "rw")) as connection:
            return read_meta(connection) is not None
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return False


def build_empty(path: Path, meta: Meta) -> None:
    """Build `journal.db.new` without readings."""
    with closing(_begin_new(path)) as new:
        _complete_new(path, new, meta, dict.fromkeys(Lane, 0))


def build_salvaged(
    path: Path, meta: Meta, known: JournalState | None, rows: Sequence[Row], now_us: int
) -> list[Tombstone]:
    """Build `journal.db.new` from what can be read of the journal at `path`.

    Args:
        path: The damaged journal.
        meta: What the new one's `meta` will say; its next seq follows `meta.reserved_seq`.
        known: The state of a journal that was found damaged while in use.
        rows: Rows of that journal that are in memory.
        now_us: Wall clock, for the tombstones.

    Returns:
        What was lost; the new file has it among its tombstones.
    """
    _forget_old_damage(path, DAMAGED_KEPT - 1)
    with closing(connect_file(path, "rw")) as old, closing(_begin_new(path)) as new:
        old.execute("PRAGMA query_only = ON")
        gone = {lane: known.lanes[lane].gone_seq for lane in Lane} if known else _gone(old)
        new.execute("BEGIN")
        done = copy_rows(
            old,
            new,
            rows=rows,
            gone=gone,
            reserved_seq=meta.reserved_seq,
            room=lambda: shutil.disk_usage(path.parent).free > SALVAGE_FREE_BYTES_MIN,
        )
        _copy_small_tables(old, new)
        if owner := _salvaged("owner", partial(read_owner, old)):
            keep_owner(new, owner)
        unmet_seq = known.unmet_seq if known else _salvaged("unmet", partial(read_unmet, old, path))
        if unmet_seq is not None:
            keep_unmet(new, new_path(path), unmet_seq)
        if known:
            keep_runs(new, known.runs, known.origin)
        else:
            runs = _salvaged("runs", partial(read_runs, old)) or ()
            keep_runs(new, runs, _salvaged("origin", partial(read_origin, old)))
        lost = lost_tombstones(new, done, meta.reserved_seq, now_us)
        for tombstone in lost:
            new.execute(INSERT_TOMBSTONE, tombstone_row(tombstone))
        new.execute("COMMIT")
        meta.last_seq = meta.reserved_seq
        meta.clean = True
        _complete_new(path, new, meta, gone)
    log.error("journal_salvaged", path=str(path), rows=done.rows, readings=done.readings)
    return lost


def read_unmet(connection: sqlite3.Connection, path: Path) -> int | None:
    """Return past which seq nothing in the file at `path` was compared with the cloud.

    None when all was, or when the file is a copy of the one in which this was noted, or too old
    to say.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    if not table_exists(connection, "unmet"):
        return None
    row = connection.execute("SELECT after_seq, inode FROM unmet").fetchone()
    return int(row[0]) if row is not None and row[1] == _inode_of(path) else None


def keep_unmet(connection: sqlite3.Connection, path: Path, seq: int) -> None:
    """Note past which seq nothing in the file at `path` was compared with the cloud."""
    connection.execute(_MAKE_UNMET)
    connection.execute("INSERT OR REPLACE INTO unmet VALUES (1, ?, ?)", (seq, _inode_of(path)))


def _inode_of(path: Path) -> int:
    """Return what tells a file from a copy of it, as far as anything does."""
    return path.stat().st_ino & (1 << 63) - 1


def _gone(old: sqlite3.Connection) -> dict[Lane, int]:
    """Return up to where each lane had been given up; at worst up to its first readable row."""
    gone = dict.fromkeys(Lane, 0)
    try:
        gone |= {Lane(lane): seq for lane, seq in old.execute("SELECT lane, gone_seq FROM lanes")}
    except (sqlite3.DatabaseError, ValueError):
        for lane in Lane:
            with suppress(sqlite3.DatabaseError):
                low, high = lane_keys(lane)
                sql = "SELECT min(key) FROM commits WHERE key BETWEEN ? AND ?"
                (first,) = old.execute(sql, (low, high)).fetchone()
                gone[lane] = (first or low + 1) - low - 1
    return gone


def _copy_small_tables(old: sqlite3.Connection, new: sqlite3.Connection) -> None:
    for table, columns in (
        ("boots", "id, boot_id, first_us"),
        ("tombstones", "id, lane, first_seq, last_seq, count, reason, time_us"),
        ("dead_letters", "id, lane, first_seq, last_seq, cause, time_us, body"),
    ):
        _salvaged(table, partial(_copy_table, old, new, table, columns))


def _copy_table(old: sqlite3.Connection, new: sqlite3.Connection, table: str, columns: str) -> None:
    marks = ", ".join("?" * len(columns.split(",")))
    for row in old.execute(f"SELECT {columns} FROM {table}"):  # noqa: S608 - the caller's names
        new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)  # noqa: S608


def _salvaged(table: str, read: Callable[[], T]) -> T | None:
    """Return what `read` does; None if the damaged file, which is kept aside, cannot say."""
    try:
        return read()
    except sqlite3.DatabaseError as error:
        log.exception("journal_table_lost", table=table, error=str(error))
        return None


def _begin_new(path: Path) -> sqlite3.Connection:
    """Start `journal.db.new`, without the care that `_complete_new` makes up for."""
    target = new_path(path)
    for suffix in ("", "-journal", "-wal", "-shm"):
        Path(f"{target}{suffix}").unlink(missing_ok=True)
    new = connect_file(target, "rwc")
    new.execute(f"PRAGMA page_size = {PAGE_BYTES}")
    new.execute("PRAGMA journal_mode = OFF")
    new.execute("PRAGMA synchronous = OFF")
    new.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    new.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")
    for statement in SCHEMA:
        new.execute(statement)
    return new


def _complete_new(
    path: Path, new: sqlite3.Connection, meta: Meta, gone: Mapping[Lane, int]
) -> None:
    """Make all of it durable, and only then write the row that says so."""
    for lane in Lane:
        new.execute(
            "INSERT INTO lanes SELECT ?, ?, ?, coalesce(sum(count), 0),"
            " coalesce(sum(bytes), 0) + count(*) * ? FROM commits WHERE key BETWEEN ? AND ?",
            (lane, gone[lane], meta.last_seq, ROW_BYTES, *lane_keys(lane)),
        )
    boot = boot_row(new, meta.boot_id, meta.created_us)
    sync_path(new_path(path))
    new.execute("PRAGMA journal_mode = DELETE")
    new.execute("PRAGMA synchronous = FULL")
    new.execute(
        "INSERT INTO meta VALUES (1, ?, ?, ?, ?, ?, ?, ?)",
        (
            meta.epoch,
            meta.created_us,
            meta.reserved_seq,
            meta.last_seq,
            meta.clean,
            meta.durability,
            boot,
        ),
    )


def swap_in(path: Path, now_us: int) -> Path | None:
    """Put `journal.db.new` in the place of `journal.db`; return where that went, if it was there.

    The log goes first: a log left beside another database would be played into it.
    """
    aside: Path | None = None
    if path.exists():
        aside = path.with_name(f"{path.name}.damaged-{now_us}")
        wal = Path(f"{path}-wal")
        if wal.exists():
            wal.rename(f"{aside}-wal")
        path.rename(aside)
    for suffix in ("-wal", "-shm"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)
    new_path(path).rename(path)
    sync_path(path.parent)
    return aside


def _forget_old_damage(path: Path, kept: int) -> None:
    """Delete all but the newest damaged files, so that they cannot fill the disk."""
    files = [
        file for file in path.parent.glob(f"{path.name}.damaged-*") if file.suffix[-4:] != "-wal"
    ]
    for file in sorted(files)[: max(0, len(files) - kept)]:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{file}{suffix}").unlink(missing_ok=True)


def boot_row(connection: sqlite3.Connection, boot_id: str, now_us: int) -> int:
    """Return the row id of a boot, made if need be."""
    connection.execute(
        "INSERT OR IGNORE INTO boots (boot_id, first_us) VALUES (?, ?)", (boot_id, now_us)
    )
    (boot,) = connection.execute("SELECT id FROM boots WHERE boot_id = ?", (boot_id,)).fetchone()
    connection.execute("DELETE FROM boots WHERE id < ?", (boot - BOOTS_KEPT,))
    return int(boot)


def sync_path(path: Path) -> None:
    """Make a file's contents, or the names in a folder, durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
