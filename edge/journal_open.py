"""Opening the journal: look, decide, and create, resume or salvage. Blocking; runs in a thread.

Invariants:
- `journal.db` is absent or whole from the first (journal_build.py).
- A damaged file is only read: once its replacement is complete, it is renamed with its log to
  `journal.db.damaged-<time>`. A crash in between is finished at the next start (Action.ADOPT).
- Somebody else's file is refused and not touched.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import sqlite3
import struct
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from bridge.runs import Run
from edge.contract import Lane, Tombstone
from edge.database import connect_file
from edge.journal_build import (
    Meta,
    boot_row,
    build_empty,
    build_salvaged,
    is_complete,
    keep_unmet,
    new_path,
    read_meta,
    read_unmet,
    swap_in,
    sync_path,
)
from edge.journal_high import read_high, read_mark, write_high
from edge.journal_owner import claim
from edge.journal_recovery import Action, Evidence, Header, Owner, decide, wal_lost_frames
from edge.journal_runs import begin_run, read_origin, read_runs
from edge.journal_schema import (
    APPLICATION_ID,
    INSERT_TOMBSTONE,
    KEEP_DAMAGED_ROW,
    PAGE_BYTES,
    ROW_BYTES,
    SCHEMA_VERSION,
    JournalError,
    Row,
    error_of,
    is_damage,
    key_of,
    lane_keys,
    row_crc32,
    tombstone_row,
)
from edge.journal_state import Head, JournalState, LaneState
from runtime.clock import Clock

__all__ = ["Opened", "lock_journal", "open_journal", "read_head"]

log = structlog.get_logger(component="journal")

CHECK_BYTES_MAX = 64 * 1024 * 1024  # larger files are checked as they are read: a bounded start
RESERVE_SEQS = 4096
SQLITE_LEAST = (3, 37, 0)  # STRICT tables
UNKNOWN_BOOT = "unknown"  # runtime.clock's word: then every start counts as one of the machine
_HEADER_BYTES = 100


@dataclass(slots=True)
class Opened:
    """A journal ready to be used."""

    state: JournalState
    actions: list[Action]  # what was done, in order; the last is a RESUME
    moved_to: Path | None = None  # where a damaged file went
    lost: list[Tombstone] = field(default_factory=list)  # what this opening found missing


def lock_journal(path: Path) -> int:
    """Take the lock beside the journal; return the descriptor that holds it while it is open.

    Raises:
        JournalError: another process has it, or the folder cannot be written.
    """
    lock = path.with_suffix(".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for folder in path.absolute().parents[:2]:  # new names survive a power cut as well
            sync_path(folder)
        held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.ftruncate(held, 0)
        os.write(held, f"{os.getpid()}\n".encode())
    except BlockingIOError:
        owner = os.read(held, 32).decode("ascii", "replace").strip()
        os.close(held)
        hint = f"in use by process {owner or '?'}; stop it, or give this gateway its own --data"
        raise JournalError(path, 0, hint, "in-use") from None
    except OSError as error:
        os.close(held)
        raise _unwritable(path, error) from None
    return held


def open_journal(
    path: Path,
    durability: str,
    clock: Clock,
    *,
    gateway: str = "",
    known: JournalState | None = None,
    rows: Sequence[Row] = (),
    new_epoch: Callable[[], int] = lambda: secrets.randbits(63) or 1,
) -> Opened:
    """Make the journal at `path` ready; the caller holds its lock.

    Args:
        path: `journal.db`.
        durability: "power-loss" or "process-crash", for the session that begins.
        clock: For times and the boot id.
        gateway: Whose journal it is to be; empty leaves that as it is.
        known: The state of a journal that was found damaged while in use; it is salvaged.
        rows: Rows of that journal that are in memory.
        new_epoch: Gives the id of a new journal; 63 random bits, so that SQLite can store it.

    Raises:
        JournalError: the file is not ours to use, or cannot be written.
    """
    if sqlite3.sqlite_version_info < SQLITE_LEAST:
        hint = f"SQLite {sqlite3.sqlite_version} is too old; 3.37 or later is needed"
        raise JournalError(path, 0, hint, "unwritable")
    opened = Opened(JournalState(0, 1, 0, 0, 0), [])
    damaged = known is not None
    try:
        while True:
            found = _inspect(path, clock, damaged=damaged)
            action = decide(found.evidence)
            opened.actions.append(action)
            if action in _REFUSALS:
                raise _refusal(path, action)
            if found.meta is not None and action in _RESUMING:
                try:
                    _resume(path, found.meta, durability, clock, opened, gateway, known)
                except sqlite3.DatabaseError as error:
                    if damaged or not is_damage(error) or opened.moved_to is not None:
                        raise
                    damaged = True  # where the check of a large file did not look
                    continue
                _report(path, opened)
                return opened
            now_us = clock.wall_us()
            fresh = Meta(new_epoch(), now_us, 0, 0, True, durability, clock.boot_id())
            if action is Action.ADOPT:
                pass
            elif known is not None and damaged:
                fresh.epoch, fresh.reserved_seq = known.epoch, known.last_seq
                opened.lost = build_salvaged(path, fresh, known, rows, now_us)
            elif found.meta is not None and action is Action.SALVAGE:
                opened.lost = build_salvaged(path, found.meta, None, (), now_us)
            else:
                build_empty(path, fresh)
            opened.moved_to = swap_in(path, now_us) or opened.moved_to
            damaged = False
    except sqlite3.Error as error:
        raise error_of(path, 0, error) from error
    except OSError as error:
        raise _unwritable(path, error) from error


# --- looking -------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Found:
    """The evidence, and what had to be read to have it."""

    evidence: Evidence
    meta: Meta | None = None


def _inspect(path: Path, clock: Clock, *, damaged: bool) -> _Found:
    """Gather the evidence; writes nothing but what SQLite itself recovers."""
    if is_complete(new_path(path)):
        return _Found(Evidence(Header.ABSENT, replacement=True))
    header = _header(path)
    if header is not Header.SQLITE:
        return _Found(Evidence(header))
    owner = _owner(path)
    if owner is not Owner.OURS:
        return _Found(Evidence(header, owner=owner))
    wal_path = Path(f"{path}-wal")
    wal = wal_path.read_bytes() if wal_path.exists() else b""
    meta: Meta | None = None
    wal_whole = True
    try:
        with closing(connect_file(path, "rw")) as connection:
            frames = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()[1]
            wal_whole = not wal_lost_frames(wal, max(0, frames), PAGE_BYTES)
            meta = read_meta(connection)
            intact = not damaged and _intact(connection, path)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        intact = False
    if meta is None and not intact:
        meta = _meta_by_mark(path, clock)
    if meta is None:
        return _Found(Evidence(header, meta=False, intact=intact))
    evidence = Evidence(
        header,
        intact=intact,
        clean=meta.clean,
        synced=meta.durability == "power-loss",
        same_boot=meta.boot_id == clock.boot_id() != UNKNOWN_BOOT,
        wal_whole=wal_whole,
    )
    return _Found(evidence, meta)


def _header(path: Path) -> Header:
    try:
        with path.open("rb") as file:
            head = file.read(_HEADER_BYTES)
    except FileNotFoundError:
        return Header.ABSENT
    if not any(head):
        return Header.BLANK
    return Header.SQLITE if head.startswith(b"SQLite format 3\0") else Header.OTHER


def _owner(path: Path) -> Owner:
    """Read application id and schema version from the file's header: they never change."""
    with path.open("rb") as file:
        head = file.read(_HEADER_BYTES).ljust(_HEADER_BYTES, b"\0")
    (version,) = struct.unpack_from(">I", head, 60)
    (application,) = struct.unpack_from(">I", head, 68)
    if application != APPLICATION_ID:
        return Owner.FOREIGN
    return Owner.NEWER if version > SCHEMA_VERSION else Owner.OURS


def _intact(connection: sqlite3.Connection, path: Path) -> bool:
    if path.stat().st_size > CHECK_BYTES_MAX:
        return True
    rows = connection.execute("PRAGMA quick_check(1)").fetchall()
    return bool(rows == [("ok",)])


def _meta_by_mark(path: Path, clock: Clock) -> Meta | None:
    """Return of a journal whose `meta` is damaged what `journal.high` says, if that is of it.

    It is when the run that set the mark is among the journal's own, and the epoch is not the one
    that it has parted from since.
    """
    mark = read_mark(path)
    if mark is None or mark.run is None:
        return None
    try:
        with closing(connect_file(path, "ro")) as connection:
            runs, origin = read_runs(connection), read_origin(connection)
    except sqlite3.DatabaseError as error:
        if not is_damage(error):
            raise
        return None
    if mark.run not in runs or (origin is not None and origin.epoch == mark.epoch):
        return None
    now_us = clock.wall_us()
    return Meta(mark.epoch, now_us, mark.reserved_seq, 0, False, "", clock.boot_id())


# --- going on ------------------------------------------------------------------------------------


def _resume(
    path: Path,
    meta: Meta,
    durability: str,
    clock: Clock,
    opened: Opened,
    gateway: str,
    known: JournalState | None,
) -> None:
    """Take over an intact journal and mark it as open; `known`: it was just made of one in use."""
    now_us = clock.wall_us()
    past_reserved = opened.actions[-1] is Action.RESUME_PAST_RESERVED
    with closing(connect_file(path, "rw")) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute("BEGIN IMMEDIATE")
        lost: list[Tombstone] = []
        lanes = {lane: _resume_lane(connection, lane, now_us, lost) for lane in Lane}
        last_seq = max(meta.last_seq, *(lane.last_seq for lane in lanes.values()))
        last_seq = max(last_seq, *(tombstone.last_seq for tombstone in lost), 0)
        if past_reserved and last_seq < meta.reserved_seq:
            count = meta.reserved_seq - last_seq
            lost.append(
                Tombstone(Lane.LIVE, last_seq + 1, meta.reserved_seq, count, "damaged", now_us)
            )
            last_seq = meta.reserved_seq
        unmet_seq = read_unmet(connection, path)
        missed: Run | None = None
        if known is None:
            high_seq, missed = read_high(path, meta.epoch)
            found_seq = last_seq
            last_seq = _past_backup(high_seq, meta, last_seq, now_us, lost)
            if unmet_seq is None or last_seq != found_seq:  # what a copy has is as it was copied
                unmet_seq = last_seq
                keep_unmet(connection, path, unmet_seq)
            if last_seq == found_seq:
                missed = None
        if gateway:
            claim(connection, path, gateway, used=last_seq > 0)
        for tombstone in lost:
            connection.execute(INSERT_TOMBSTONE, tombstone_row(tombstone))
        # one more at each opening: a copy made in an earlier session has reserved less than `high`
        reserved_seq = max(meta.reserved_seq + 1, last_seq + RESERVE_SEQS)
        boot = boot_row(connection, clock.boot_id(), now_us)
        connection.execute(
            "UPDATE meta SET reserved_seq = ?, last_seq = ?, clean = 0, durability = ?, boot = ?",
            (reserved_seq, last_seq, durability, boot),
        )
        tombstones = _read_tombstones(connection)
        runs = read_runs(connection) if known else ()
        runs = runs or begin_run(connection, last_seq, missed)
        origin = read_origin(connection)
        connection.execute("COMMIT")
    write_high(path, meta.epoch, reserved_seq, runs[-1])
    opened.lost += lost
    opened.state = JournalState(
        epoch=meta.epoch,
        next_seq=last_seq + 1,
        reserved_seq=reserved_seq,
        last_seq=last_seq,
        boot=boot,
        unmet_seq=unmet_seq,
        lanes=lanes,
        tombstones=tombstones,
        runs=runs,
        origin=origin,
    )


def _past_backup(
    high_seq: int, meta: Meta, last_seq: int, now_us: int, lost: list[Tombstone]
) -> int:
    """Return the last seq to go on after: past all that was given out, if this is an old copy.

    What was given out after the copy was made may have reached the cloud: no seq may be used twice.
    How many readings that were is not known, so the tombstone's count is an upper bound.
    """
    if high_seq <= max(meta.reserved_seq, last_seq):
        return last_seq
    count = high_seq - last_seq
    lost.append(Tombstone(Lane.LIVE, last_seq + 1, high_seq, count, "restored", now_us))
    return high_seq


def _resume_lane(
    connection: sqlite3.Connection, lane: Lane, now_us: int, lost: list[Tombstone]
) -> LaneState:
    """Take a lane's totals, and add the rows written since they were kept, each checked."""
    sql = "SELECT gone_seq, counted_seq, readings, bytes FROM lanes WHERE lane = ?"
    gone_seq, counted_seq, readings, size = connection.execute(sql, (lane,)).fetchone()
    state = LaneState(gone_seq, gone_seq, readings, size)
    low, high = lane_keys(lane)
    bad: list[Tombstone] = []
    for key, count, time_us, crc32, body in connection.execute(
        "SELECT key, count, time_us, crc32, body FROM commits WHERE key BETWEEN ? AND ?"
        " ORDER BY key",
        (key_of(lane, counted_seq + 1), high),
    ):
        if crc32 == row_crc32(key, count, time_us, body):
            state.readings += count
            state.bytes += len(body) + ROW_BYTES
        else:
            seq = key - low
            count = max(1, count)  # noqa: PLW2901 - of a damaged row
            bad.append(Tombstone(lane, seq, seq + count - 1, count, "damaged", now_us))
    for tombstone in bad:
        key = low + tombstone.first_seq
        connection.execute(KEEP_DAMAGED_ROW, (*tombstone_row(tombstone)[:3], now_us, key))
        connection.execute("DELETE FROM commits WHERE key = ?", (key,))
    lost += bad
    newest = connection.execute(
        "SELECT key, count FROM commits WHERE key BETWEEN ? AND ? ORDER BY key DESC LIMIT 1",
        (low, high),
    ).fetchone()
    if newest is not None:
        state.last_seq = max(gone_seq, newest[0] - low + newest[1] - 1)
    state.head = read_head(connection, lane)
    return state


def read_head(connection: sqlite3.Connection, lane: Lane) -> Head | None:
    """Return the oldest row of a lane."""
    low, high = lane_keys(lane)
    row = connection.execute(
        "SELECT key, count, time_us, boot, boot_us FROM commits WHERE key BETWEEN ? AND ?"
        " ORDER BY key LIMIT 1",
        (low, high),
    ).fetchone()
    return None if row is None else Head(row[0] - low, *row[1:])


def _read_tombstones(connection: sqlite3.Connection) -> list[Tombstone]:
    rows = connection.execute(
        "SELECT lane, first_seq, last_seq, count, reason, time_us FROM tombstones ORDER BY id"
    )
    return [Tombstone(Lane(row[0]), *row[1:]) for row in rows]


# --- saying --------------------------------------------------------------------------------------

_RESUMING = (Action.RESUME, Action.RESUME_PAST_RESERVED)
_REFUSALS = {
    Action.REFUSE_NOT_DATABASE: ("foreign", "is not an SQLite database; move it away"),
    Action.REFUSE_FOREIGN: ("foreign", "is the database of another program; move it away"),
    Action.REFUSE_NEWER: ("newer", "was written by a later Tidegate; install that or move it away"),
}


def _refusal(path: Path, action: Action) -> JournalError:
    kind, hint = _REFUSALS[action]
    return JournalError(path, 0, hint, kind)


def _unwritable(path: Path, error: OSError) -> JournalError:
    hint = f"{error.strerror or error}; check owner, mode and mount of the folder"
    return JournalError(path, 0, hint, "unwritable")


def _report(path: Path, opened: Opened) -> None:
    state = opened.state
    did = [action.value for action in opened.actions]
    log.info("journal_open", path=str(path), did=did, epoch=state.epoch, next_seq=state.next_seq)
    if opened.moved_to is not None:
        log.error("journal_damaged", path=str(path), moved_to=str(opened.moved_to))
    for lost in opened.lost:
        log.error(
            "readings_lost",
            lane=lost.lane.name.lower(),
            first_seq=lost.first_seq,
            last_seq=lost.last_seq,
            count_max=lost.count,
            reason=lost.reason,
        )
