"""Whose readings a journal holds: the gateway's id, kept in the journal itself.

A reading's identity is (gateway, epoch, seq). A gateway that went on under another id would send
again, as other readings, what the cloud has under the first, and what was stored before would be
missing of the second. So a journal stays with the id it has given seqs under; one that has given
out none takes any. docs/journal-format.md section 2, `owner`.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path

from edge.journal_schema import JournalError, table_exists

__all__ = ["claim", "keep_owner", "read_owner"]

# made when it is first needed: a journal of before has none, and takes the id it is next opened by
_MAKE_OWNER = (
    "CREATE TABLE IF NOT EXISTS owner (id INTEGER PRIMARY KEY CHECK (id = 1),"
    " gateway TEXT NOT NULL) STRICT"
)


def claim(connection: sqlite3.Connection, path: Path, gateway: str, *, used: bool) -> None:
    """Note in the journal at `path` that it is `gateway`'s, or find that it is.

    Args:
        connection: To the journal, in a transaction.
        path: For the error.
        gateway: The gateway's id.
        used: The journal has given out seqs.

    Raises:
        JournalError: kind "foreign": it holds readings of another gateway.
        sqlite3.Error: whose it is cannot be read, or not be noted.
    """
    owner = read_owner(connection)
    if owner == gateway:
        return
    if owner and used:
        hint = (
            f"has readings of gateway '{owner}', and this is '{gateway}': set gateway = '{owner}', "
            f"or give '{gateway}' a --data of its own"
        )
        raise JournalError(path, 0, hint, "foreign")
    keep_owner(connection, gateway)


def read_owner(connection: sqlite3.Connection) -> str:
    """Return the id of the gateway whose journal this is; empty when it does not say.

    Raises:
        sqlite3.Error: it cannot be read: it may be anybody's.
    """
    if not table_exists(connection, "owner"):
        return ""
    row = connection.execute("SELECT gateway FROM owner").fetchone()
    return "" if row is None else str(row[0])


def keep_owner(connection: sqlite3.Connection, gateway: str) -> None:
    """Note whose journal this is."""
    connection.execute(_MAKE_OWNER)
    connection.execute("INSERT OR REPLACE INTO owner VALUES (1, ?)", (gateway,))
