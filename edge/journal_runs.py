"""The runs of a journal: each opening of its file, with the seq after which it captured.

A run has a random id, made with the opening, and durable in the transaction that makes the journal
ready, before anything is captured or said. So of two gateways that go on from one copy each has
what the other has not, and the cloud tells them apart (bridge/runs.py). An epoch that parted from
another keeps where. docs/journal-format.md section 5. Blocking.

Invariants: runs lie in the order of their openings, `after_seq` never falls; `origin` is there only
in an epoch that is a fork.
"""

from __future__ import annotations

import secrets
import sqlite3
from collections.abc import Iterable

from bridge.runs import RUNS_MAX, Origin, Run
from edge.database import Statement
from edge.journal_schema import table_exists

__all__ = [
    "begin_run",
    "history_statements",
    "keep_runs",
    "met_statements",
    "read_origin",
    "read_runs",
]

_MET_KEPT = 8  # of the runs before one that the cloud knows: its ledger may be an older copy
# made when they are first needed: a journal of before has none
_MAKE_RUNS = (
    "CREATE TABLE IF NOT EXISTS runs"
    " (id INTEGER PRIMARY KEY, run INTEGER NOT NULL, after_seq INTEGER NOT NULL)"
    " STRICT"
)
_MAKE_ORIGIN = (
    "CREATE TABLE IF NOT EXISTS origin (id INTEGER PRIMARY KEY CHECK (id = 1),"
    " after_seq INTEGER NOT NULL, epoch INTEGER NOT NULL) STRICT"
)
_ADD_RUN = "INSERT INTO runs (run, after_seq) VALUES (?, ?)"
_FORGET_RUNS = "DELETE FROM runs WHERE id NOT IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?)"
# the oldest are those that the cloud knows: without them it could not tell where the line goes on
_FORGET_BETWEEN = (
    "DELETE FROM runs WHERE id NOT IN (SELECT id FROM runs ORDER BY id DESC LIMIT ?)"
    " AND id NOT IN (SELECT id FROM runs ORDER BY id LIMIT ?)"
)


def read_runs(connection: sqlite3.Connection) -> tuple[Run, ...]:
    """Return the runs of a journal, oldest first; none of one from before there were any.

    Raises:
        sqlite3.Error: they cannot be read.
    """
    if not table_exists(connection, "runs"):
        return ()
    rows = connection.execute("SELECT run, after_seq FROM runs ORDER BY id")
    return tuple(Run(run, after_seq) for run, after_seq in rows)


def read_origin(connection: sqlite3.Connection) -> Origin | None:
    """Return where the journal's epoch parted from another, None if it did not.

    Raises:
        sqlite3.Error: it cannot be read.
    """
    if not table_exists(connection, "origin"):
        return None
    row = connection.execute("SELECT after_seq, epoch FROM origin").fetchone()
    return None if row is None else Origin(*row)


def begin_run(
    connection: sqlite3.Connection, after_seq: int, missed: Run | None = None
) -> tuple[Run, ...]:
    """Add a run to the open transaction; return all.

    Args:
        connection: To the journal's file.
        after_seq: The last seq given out.
        missed: The run before it, which a copy that was put back may not have.
    """
    connection.execute(_MAKE_RUNS)
    known = read_runs(connection)
    in_order = missed is not None and (not known or known[-1].after_seq <= missed.after_seq)
    if missed is not None and in_order and missed not in known:
        connection.execute(_ADD_RUN, missed)
    connection.execute(_ADD_RUN, (secrets.randbits(63) or 1, after_seq))
    connection.execute(_FORGET_BETWEEN, (RUNS_MAX - _MET_KEPT, _MET_KEPT))
    return read_runs(connection)


def keep_runs(connection: sqlite3.Connection, runs: Iterable[Run], origin: Origin | None) -> None:
    """Give a journal that is being made what another one had."""
    for sql, values in history_statements(runs, origin):
        connection.execute(sql, values)


def history_statements(runs: Iterable[Run], origin: Origin | None) -> list[Statement]:
    """Return what replaces the runs of a journal and its origin."""
    statements: list[Statement] = [
        (_MAKE_RUNS, ()),
        ("DELETE FROM runs", ()),
        *((_ADD_RUN, tuple(one)) for one in runs),
    ]
    if origin is not None:
        statements += [
            (_MAKE_ORIGIN, ()),
            ("INSERT OR REPLACE INTO origin VALUES (1, ?, ?)", (origin.after_seq, origin.epoch)),
        ]
    return statements


def met_statements() -> list[Statement]:
    """Return what is forgotten once the cloud knows the newest run."""
    return [("DELETE FROM unmet", ()), (_FORGET_RUNS, (_MET_KEPT,))]
