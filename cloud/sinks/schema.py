"""Tables of storage.db, and how identity and payload are written in them (DESIGN section 7).

`epoch` is an unsigned 64-bit number and SQLite's (like PostgreSQL's) integers are signed: it is
stored as the signed number with the same 64 bits, 8 bytes in the key where its text would take 16
to 20. `epoch_to_sql` and `epoch_from_sql` convert; people see it as 16 hex digits (`epoch_text`).

`payload` is TEXT when the bytes are valid UTF-8 without NUL, so that SQLite's JSON functions work
on it, and BLOB otherwise; `payload_from_sql` gives back the very bytes. A NUL is kept out of TEXT
because SQLite's own text functions end there.

`retain` and `properties` go beyond DESIGN's columns: they are part of what the device published
and was promised, so they are not thrown away. Nearly always NULL, they cost a byte a row each.

`readings` has rowids: with WITHOUT ROWID, rows up to 250 B came out even, but rows of 1.6 kB took
2.2 times the space and half the speed (SQLite keeps only a quarter page of such a row in place).
"""

from __future__ import annotations

import re
from typing import Final

from cloud.database import DatabaseKind

__all__ = [
    "READINGS_COLUMNS",
    "STORAGE_KIND",
    "epoch_from_sql",
    "epoch_from_text",
    "epoch_text",
    "epoch_to_sql",
    "payload_from_sql",
    "payload_to_sql",
]

_EPOCH_TEXT: Final = re.compile("[0-9a-fA-F]{1,16}", re.ASCII)

READINGS_COLUMNS = (
    "gateway",
    "epoch",
    "seq",
    "device",
    "topic",
    "time_us",
    "received_us",
    "qos",
    "payload",
    "retain",
    "properties",
)

_SCHEMA = """
CREATE TABLE readings (
    gateway     TEXT    NOT NULL,
    epoch       INTEGER NOT NULL,  -- unsigned 64 bits written as signed
    seq         INTEGER NOT NULL,
    device      TEXT    NOT NULL,
    topic       TEXT    NOT NULL,
    time_us     INTEGER NOT NULL,  -- at the edge, microseconds since 1970 UTC
    received_us INTEGER NOT NULL,  -- when the cloud's stream took it
    qos         INTEGER NOT NULL,
    payload     NOT NULL,          -- TEXT when UTF-8 without NUL, else BLOB
    retain      INTEGER,           -- 1 when published with RETAIN, else NULL
    properties  BLOB,              -- MQTT 5 property block as received, or NULL
    PRIMARY KEY (gateway, epoch, seq)
);
CREATE INDEX readings_device_time ON readings (device, time_us);
CREATE TABLE stored (  -- seq ranges with a row in readings, or had one before retention
    gateway   TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch, first_seq)
) WITHOUT ROWID;
CREATE TABLE expired (  -- seq ranges whose rows retention has deleted
    gateway   TEXT    NOT NULL,
    epoch     INTEGER NOT NULL,
    first_seq INTEGER NOT NULL,
    last_seq  INTEGER NOT NULL,
    PRIMARY KEY (gateway, epoch, first_seq)
) WITHOUT ROWID;
CREATE TABLE cursors (
    partition INTEGER PRIMARY KEY,
    position  INTEGER NOT NULL
);
CREATE TABLE meta (
    key   TEXT PRIMARY KEY,
    value NOT NULL
) WITHOUT ROWID
"""

# what gateways said later of the times of their readings: added to `time_us` already
_ADDITIONS = """
CREATE TABLE IF NOT EXISTS corrections (
    gateway        TEXT    NOT NULL,
    epoch          INTEGER NOT NULL,
    first_seq      INTEGER NOT NULL,
    last_seq       INTEGER NOT NULL,
    delta_us       INTEGER NOT NULL,
    uncertainty_us INTEGER NOT NULL,  -- of the times that result
    PRIMARY KEY (gateway, epoch, first_seq)
) WITHOUT ROWID
"""
STORAGE_KIND = DatabaseKind("a Tidegate storage", 0x54475352, 1, _SCHEMA, _ADDITIONS)  # "TGSR"

_EPOCH_SIGN = 1 << 63
_EPOCH_SPAN = 1 << 64


def epoch_to_sql(epoch: int) -> int:
    """Return an unsigned 64-bit epoch as the signed number with the same bits."""
    return epoch - _EPOCH_SPAN if epoch >= _EPOCH_SIGN else epoch


def epoch_from_sql(value: int) -> int:
    """Return the unsigned epoch for the signed number of a row."""
    return value + _EPOCH_SPAN if value < 0 else value


def epoch_text(epoch: int) -> str:
    """Return the 16 hex digits by which people know an (unsigned) epoch."""
    return f"{epoch:016x}"


def epoch_from_text(text: str) -> int:
    """Return the unsigned epoch for its hex digits.

    Raises:
        ValueError: `text` is not 1 to 16 hex digits.
    """
    if not _EPOCH_TEXT.fullmatch(text):
        raise ValueError(f"an epoch has 1 to 16 hex digits, not {text!r}")
    return int(text, 16)


def payload_to_sql(payload: bytes) -> str | bytes:
    """Return a payload as it is stored: text when it is UTF-8 without NUL, else the bytes."""
    if b"\0" in payload:
        return payload
    try:
        return payload.decode()
    except UnicodeDecodeError:
        return payload


def payload_from_sql(value: str | bytes) -> bytes:
    """Return the bytes that were published, from the column's value."""
    return value.encode() if isinstance(value, str) else value
