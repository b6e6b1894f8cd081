"""Storage files made by hand: what a cloud would have written, or should not have."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from contextlib import closing
from pathlib import Path

__all__ = ["add_rows", "make_storage"]

# The columns that DESIGN section 7 promises, nothing of how the cloud makes them.
_SCHEMA = """
CREATE TABLE readings (
    gateway TEXT, epoch INTEGER, seq INTEGER, device TEXT, topic TEXT, time_us INTEGER,
    received_us INTEGER, qos INTEGER, payload, PRIMARY KEY (gateway, epoch, seq)
)
"""


def make_storage(path: Path, rows: Iterable[tuple[str, bytes]] = ()) -> Path:
    """Make a storage.db with `(topic, payload)` rows of one gateway, in the order given."""
    with closing(sqlite3.connect(path)) as database:
        # as the cloud's: whoever reads meanwhile never keeps the writer out
        database.execute("PRAGMA journal_mode = WAL")
        database.execute(_SCHEMA)
    add_rows(path, list(rows))
    return path


def add_rows(
    path: Path,
    rows: Sequence[tuple[str, bytes]],
    *,
    gateway: str = "gw",
    epoch: int = 7,
    first_seq: int = 1,
    received_us: int = 1_790_000_000_000_000,
) -> None:
    """Add rows with rising seq."""
    with closing(sqlite3.connect(path)) as database, database:
        database.executemany(
            "INSERT INTO readings (gateway, epoch, seq, device, topic, time_us, received_us, qos,"
            " payload) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    gateway,
                    epoch,
                    first_seq + n,
                    topic.split("/")[0],
                    topic,
                    received_us,
                    received_us,
                    1,
                    _column(payload),
                )
                for n, (topic, payload) in enumerate(rows)
            ],
        )


def _column(payload: bytes) -> str | bytes:
    """Return a payload as storage has it: text when it is UTF-8, so that JSON can be queried."""
    try:
        return payload.decode() if b"\0" not in payload else payload
    except UnicodeDecodeError:
        return payload
