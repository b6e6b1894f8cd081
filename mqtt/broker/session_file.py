"""The file of a session store: tables, opening, reading, and what is done when it is damaged.

A damaged file is never written to again: what can be read of it goes into a new one, built as
`sessions.db.new` and put in place once it is whole and synced; the old one is moved aside as
`sessions.db.damaged-<time>` with its log, of which the newest three are kept. A crash in between is
finished at the next opening. Blocking; runs on the database's thread.

Invariants:
- the file is this program's (`application_id`) and of this version or an older one
  (`user_version`), or opening fails and touches nothing, as it does for what has not even the size
  of a database;
- `application_id` is written last: a `sessions.db.new` that has it is whole.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from mqtt.broker.changes import (
    DeliverySaved,
    InboundRecovered,
    InboundSaved,
    Marked,
    MessageSaved,
    OfferSaved,
    RetainedSaved,
    SessionSaved,
    StoredState,
    SubscriptionSaved,
)

__all__ = ["Salvage", "is_damage", "load", "open_file", "salvage"]

_APPLICATION_ID: Final = 0x7469_6473  # "tids"
_VERSION: Final = 3
_DAMAGED_KEPT: Final = 3
_PAGE_BYTES: Final = 4096
# Not damage of this file: the disk, the lock or the rights say no.
_NO_DAMAGE: Final = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    )
)

# What version 3 has and version 2 had not.
_SCHEMA_3: Final = """
CREATE TABLE offers (
    token TEXT PRIMARY KEY, client_id TEXT NOT NULL, packet_id INTEGER NOT NULL,
    taken INTEGER NOT NULL) WITHOUT ROWID;
"""
# What version 2 has and version 1 had not.
_SCHEMA_2: Final = """
CREATE TABLE recovered (
    client_id TEXT NOT NULL, packet_id INTEGER NOT NULL, crc32 INTEGER NOT NULL,
    PRIMARY KEY (client_id, packet_id)) WITHOUT ROWID;
CREATE TABLE mark (
    id INTEGER PRIMARY KEY CHECK (id = 1), epoch INTEGER NOT NULL, seq INTEGER NOT NULL);
"""
_SCHEMA: Final = (
    """
CREATE TABLE sessions (
    client_id TEXT PRIMARY KEY, version INTEGER NOT NULL, expiry_s INTEGER NOT NULL,
    away_since_us INTEGER NOT NULL, will_topic BLOB, will_payload BLOB NOT NULL,
    will_properties BLOB NOT NULL, will_flags INTEGER NOT NULL, will_delay_s INTEGER NOT NULL,
    will_expiry_s INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE subscriptions (
    client_id TEXT NOT NULL, topic_filter TEXT NOT NULL, options INTEGER NOT NULL,
    identifier INTEGER NOT NULL, PRIMARY KEY (client_id, topic_filter)) WITHOUT ROWID;
CREATE TABLE messages (
    message_id INTEGER PRIMARY KEY, topic BLOB NOT NULL, payload BLOB NOT NULL,
    properties BLOB NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    expires_us INTEGER NOT NULL, publisher TEXT);
CREATE TABLE deliveries (
    position INTEGER PRIMARY KEY, client_id TEXT NOT NULL, packet_id INTEGER NOT NULL,
    message_id INTEGER NOT NULL, qos INTEGER NOT NULL, retain INTEGER NOT NULL,
    identifiers BLOB NOT NULL, share TEXT NOT NULL, released INTEGER NOT NULL,
    UNIQUE (client_id, packet_id));
CREATE TABLE inbound (
    client_id TEXT NOT NULL, packet_id INTEGER NOT NULL,
    PRIMARY KEY (client_id, packet_id)) WITHOUT ROWID;
CREATE TABLE retained (
    topic BLOB PRIMARY KEY, payload BLOB NOT NULL, properties BLOB NOT NULL,
    qos INTEGER NOT NULL, expires_us INTEGER NOT NULL, publisher TEXT) WITHOUT ROWID;
"""
    + _SCHEMA_2
    + _SCHEMA_3
)
_NEWER: Final = {1: _SCHEMA_2 + _SCHEMA_3, 2: _SCHEMA_3}  # what an older version lacks

_SEAL: Final = f"PRAGMA user_version = {_VERSION}; PRAGMA application_id = {_APPLICATION_ID};"

# Table, what orders its rows, and the types of its columns: S text, B bytes, I integer; a small
# letter for what may be NULL.
_TABLES: Final = (
    ("sessions", "client_id", "SIIIbBBIII"),
    ("subscriptions", "client_id, topic_filter", "SSII"),
    ("messages", "message_id", "IBBBIIIs"),
    ("deliveries", "position", "ISIIIIBSI"),
    ("inbound", "client_id, packet_id", "SI"),
    ("recovered", "client_id, packet_id", "SII"),
    ("retained", "topic", "BBBIIs"),
    ("mark", "id", "III"),
    ("offers", "token", "SSII"),
)
_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "S": (str,),
    "B": (bytes,),
    "I": (int,),
    "s": (str, type(None)),
    "b": (bytes, type(None)),
}


@dataclass(slots=True, frozen=True)
class Salvage:
    """What became of a damaged file."""

    moved_to: Path
    rows: int  # that could be read, and are kept
    incomplete: tuple[str, ...]  # tables of which rows are missing; how many nobody can tell


def is_damage(error: sqlite3.Error) -> bool:
    """Return True when an error says that the file itself is damaged."""
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.InterfaceError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return code is not None and code & 0xFF not in _NO_DAMAGE


def open_file(path: Path) -> sqlite3.Connection:
    """Open the store's file, or make it.

    Raises:
        sqlite3.Error: it cannot be used; `is_damage` says whether it can be salvaged.
    """
    _finish_replacement(path)
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    connection.text_factory = _text
    try:
        empty = not connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        version = _check_owner(connection, empty=empty)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        # Debian builds SQLite to overwrite what is deleted with zeros: writes that nobody asked for
        connection.execute("PRAGMA secure_delete = OFF")
        if empty:
            connection.executescript(f"BEGIN; {_SCHEMA} {_SEAL} COMMIT;")
        elif version < _VERSION:
            connection.executescript(f"BEGIN; {_NEWER[version]} {_SEAL} COMMIT;")
    except sqlite3.DatabaseError as error:
        connection.close()
        if getattr(error, "sqlite_errorcode", 0) == sqlite3.SQLITE_NOTADB and not _has_pages(path):
            raise sqlite3.DatabaseError("no database") from error  # without a code: not damage
        raise
    except BaseException:
        connection.close()
        raise
    return connection


def load(connection: sqlite3.Connection) -> StoredState:
    """Return what the file holds.

    Raises:
        sqlite3.Error: it cannot be read, or a row is not what this program writes.
    """
    # Rows whose other half was not written by an earlier release, or lost by hand.
    connection.execute(
        "DELETE FROM messages WHERE message_id NOT IN (SELECT message_id FROM deliveries)"
    )
    # What went before its delivery was written, and no more.
    connection.execute(
        "DELETE FROM offers WHERE taken = 0 AND NOT EXISTS (SELECT 1 FROM deliveries AS one"
        " WHERE one.client_id = offers.client_id AND one.packet_id = offers.packet_id)"
    )
    rows = {name: list(_sound_rows(connection, name, by, kinds)) for name, by, kinds in _TABLES}
    return StoredState(
        [SessionSaved(*row) for row in rows["sessions"]],
        [SubscriptionSaved(*row) for row in rows["subscriptions"]],
        [MessageSaved(*row) for row in rows["messages"]],
        [DeliverySaved(*row[1:]) for row in rows["deliveries"]],
        [InboundSaved(*row) for row in rows["inbound"]],
        [RetainedSaved(*row) for row in rows["retained"]],
        [InboundRecovered(*row) for row in rows["recovered"]],
        next((Marked(*row[1:]) for row in rows["mark"]), None),
        [OfferSaved(*row) for row in rows["offers"]],
    )


def salvage(path: Path, now_us: int) -> Salvage:
    """Replace a damaged file by one with what can be read of it, and move it aside.

    Args:
        path: The file; nobody has it open.
        now_us: Wall clock, for the name it is moved to.

    Raises:
        sqlite3.Error, OSError: the new file cannot be written; the old one is untouched.
    """
    new = _new_path(path)
    _remove(new)
    rows = 0
    incomplete: list[str] = []
    with closing(sqlite3.connect(new, isolation_level=None)) as target:
        target.execute("PRAGMA synchronous = FULL")
        target.executescript(f"BEGIN; {_SCHEMA}")
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source:
            source.text_factory = _text
            for name, by, kinds in _TABLES:
                if not _copy(source, target, name, by, kinds):
                    incomplete.append(name)
                rows += target.execute(f"SELECT count(*) FROM {name}").fetchone()[0]  # noqa: S608 - a name of _TABLES
        target.execute("COMMIT")
        target.executescript(_SEAL)
    return Salvage(_swap_in(path, now_us), rows, tuple(incomplete))


# --- rows ------------------------------------------------------------------------------------


def _copy(
    source: sqlite3.Connection, target: sqlite3.Connection, name: str, by: str, kinds: str
) -> bool:
    """Copy the rows of a table that can be read; True when that was all of them.

    What lies behind a damaged page is read from the other end.
    """
    places = ",".join("?" * len(kinds))
    insert = f"INSERT OR IGNORE INTO {name} VALUES ({places})"  # noqa: S608 - a name of _TABLES
    for descending in (False, True):
        order = ", ".join(f"{column} DESC" for column in by.split(", ")) if descending else by
        try:
            for row in _rows(source, name, order):
                if _is_sound(row, kinds):
                    target.execute(insert, row)
        except sqlite3.Error as error:
            if target.in_transaction and is_damage(error):
                continue
            raise
        return not descending and _all_sound(source, name, by, kinds)
    return False


def _all_sound(connection: sqlite3.Connection, name: str, by: str, kinds: str) -> bool:
    return all(_is_sound(row, kinds) for row in _rows(connection, name, by))


def _sound_rows(
    connection: sqlite3.Connection, name: str, by: str, kinds: str
) -> list[tuple[Any, ...]]:
    rows = list(_rows(connection, name, by))
    if not all(_is_sound(row, kinds) for row in rows):
        error = sqlite3.DatabaseError(f"a row of {name} is damaged")
        error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise error
    return rows


def _rows(connection: sqlite3.Connection, name: str, order: str) -> sqlite3.Cursor:
    return connection.execute(f"SELECT * FROM {name} ORDER BY {order}")  # noqa: S608 - of _TABLES


def _text(data: bytes) -> str | None:
    """Decode a text; None, which no column with one has, where that is not possible."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return None


def _is_sound(row: tuple[Any, ...], kinds: str) -> bool:
    return len(row) == len(kinds) and all(
        type(value) in _TYPES[kind] for value, kind in zip(row, kinds, strict=True)
    )


# --- files -----------------------------------------------------------------------------------


def _check_owner(connection: sqlite3.Connection, *, empty: bool) -> int:
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    owner = connection.execute("PRAGMA application_id").fetchone()[0]
    if not (empty and not owner) and not (
        owner == _APPLICATION_ID and version in (*_NEWER, _VERSION)
    ):
        # without an error code: nothing to be salvaged
        raise sqlite3.DatabaseError(f"no session store, or one of another release: {version}")
    return version


def _has_pages(path: Path) -> bool:
    """Return True when a file has the size of a database: its first page may be damaged."""
    size = path.stat().st_size
    return size >= 2 * _PAGE_BYTES and size % _PAGE_BYTES == 0


def _new_path(path: Path) -> Path:
    return path.with_name(path.name + ".new")


def _finish_replacement(path: Path) -> None:
    """Put a replacement in place that a crash has left complete; forget one that is not."""
    new = _new_path(path)
    if not new.exists():
        return
    complete = False
    with suppress(sqlite3.Error), closing(sqlite3.connect(new)) as connection:
        complete = connection.execute("PRAGMA application_id").fetchone()[0] == _APPLICATION_ID
    if complete:
        _swap_in(path, new.stat().st_mtime_ns // 1000)
    else:
        _remove(new)


def _swap_in(path: Path, now_us: int) -> Path:
    """Move the file aside and its replacement in; the log goes first, or it would be played into
    another database."""
    aside = path.with_name(f"{path.name}.damaged-{now_us}")
    _sync(_new_path(path))
    Path(f"{path}-shm").unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        Path(f"{path}-wal").rename(f"{aside}-wal")
    with suppress(FileNotFoundError):
        path.rename(aside)
    _new_path(path).rename(path)
    _sync(path.parent)
    old = sorted(path.parent.glob(f"{path.name}.damaged-*[0-9]"))
    for each in old[:-_DAMAGED_KEPT]:
        _remove(each)
    return aside


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm", "-journal"):
        Path(f"{path}{suffix}").unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
