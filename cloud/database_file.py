"""A database file open for reading only, beside the process that writes it or alone."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cloud.database import Database, DatabaseError, DatabaseKind, open_read_only

__all__ = ["DatabaseFile"]

T = TypeVar("T")


class DatabaseFile:
    """A database file open for reading; an async context manager."""

    kind: DatabaseKind

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database: Database | None = None

    async def ask_file(self, question: Callable[[sqlite3.Connection], T]) -> T:
        """Return `question(connection)`, run on the file's thread.

        Raises:
            DatabaseError: the file cannot be read.
        """
        assert self._database is not None
        try:
            return await self._database.run(question)
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error

    async def open(self) -> None:
        """Open it.

        Raises:
            DatabaseError: it is absent, something else, newer or damaged.
        """
        self._database = await open_read_only(self.path, self.kind)

    async def close(self) -> None:
        """Close it; harmless when closed already."""
        if self._database is not None:
            await self._database.close()
            self._database = None
