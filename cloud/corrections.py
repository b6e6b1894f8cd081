"""DIR/cloud/corrections.db: what gateways said of clocks that were wrong (docs/ledger.md, Clocks).

The nodes of a cluster share theirs (cloud/cluster/corrections.py).

A gateway forgets a correction once it is acknowledged, and a storage that is put back from a backup
lacks those since: so they are kept here too, and given to storage at every start. Storage takes
each once, so giving it all of them does no harm.

Invariant: a correction is here before its gateway is acknowledged.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol, TypeVar

from bridge.commands import Correction
from cloud.database import (
    DatabaseError,
    DatabaseKind,
    transaction,
)
from cloud.database_file import OwnedDatabaseFile
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql

__all__ = ["Corrected", "CorrectionKeeper", "CorrectionLog"]

T = TypeVar("T")

# told of a gateway's correction
Corrected = Callable[[str, Correction], None]
KEPT: Final = 100_000  # the newest; a wrong clock makes one every ten seconds while it is wrong
_SCHEMA = """
CREATE TABLE corrections (
    id             INTEGER PRIMARY KEY,
    gateway        TEXT    NOT NULL,
    epoch          INTEGER NOT NULL,
    first_seq      INTEGER NOT NULL,
    last_seq       INTEGER NOT NULL,
    delta_us       INTEGER NOT NULL,
    uncertainty_us INTEGER NOT NULL,
    UNIQUE (gateway, epoch, first_seq)
);
"""
_KIND = DatabaseKind("a Tidegate log of clock corrections", 0x5447434C, 1, _SCHEMA)  # "TGCL"


class CorrectionKeeper(Protocol):
    """Where corrections last; raises DatabaseError."""

    async def open(self) -> None:
        """Make ready."""
        ...

    async def close(self) -> None:
        """Release everything; harmless when closed already."""
        ...

    async def add(self, gateway: str, correction: Correction) -> None:
        """Keep a correction; durable on return. One that is known changes nothing."""
        ...

    async def all(self, heard: Corrected) -> list[tuple[str, Correction]]:
        """Return gateway and correction, oldest first; what others add after that is `heard`."""
        ...


class CorrectionLog:
    """The file of a node that is alone."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = OwnedDatabaseFile(path, _KIND)

    async def open(self) -> None:
        """Open the file, making it when it is new.

        Raises:
            DatabaseError: it is in use, foreign, newer, damaged or cannot be written.
        """
        await self._file.open()

    async def close(self) -> None:
        """Release the file; harmless when closed already."""
        await self._file.close()

    async def add(self, gateway: str, correction: Correction) -> None:
        """Keep a correction; durable on return. One that is known changes nothing.

        Raises:
            DatabaseError: the file cannot be written.
        """

        def work(connection: sqlite3.Connection) -> None:
            values = (
                gateway,
                epoch_to_sql(correction.epoch),
                correction.first_seq,
                correction.last_seq,
                correction.delta_us,
                correction.uncertainty_us,
            )
            with transaction(connection):
                connection.execute(
                    "INSERT INTO corrections (gateway, epoch, first_seq, last_seq, delta_us,"
                    " uncertainty_us) VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                    values,
                )
                connection.execute(
                    "DELETE FROM corrections WHERE id <= (SELECT max(id) FROM corrections) - ?",
                    (KEPT,),
                )

        await self._run(work)

    async def all(
        self,
        heard: Corrected | None = None,  # noqa: ARG002 - nobody else adds any
    ) -> list[tuple[str, Correction]]:
        """Return gateway and correction, oldest first; raises DatabaseError."""

        def work(connection: sqlite3.Connection) -> list[tuple[str, Correction]]:
            sql = (
                "SELECT gateway, epoch, first_seq, last_seq, delta_us, uncertainty_us"
                " FROM corrections ORDER BY id"
            )
            return [
                (gateway, Correction(epoch_from_sql(epoch), *rest))
                for gateway, epoch, *rest in connection.execute(sql)
            ]

        return await self._run(work)

    async def _run(self, work: Callable[[sqlite3.Connection], T]) -> T:
        try:
            return await self._file.run(work)
        except sqlite3.Error as error:
            raise DatabaseError(f"{self.path}: {error}") from error
