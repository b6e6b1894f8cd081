"""The ledger's sources as files, opened read-only, beside the processes that write them or alone.

`DIR/cloud/stream.db`, and `DIR/edge/journal.db` when it is there; storage is read through
cloud/storage.py. The journal belongs to another package; what is read of it is in
docs/journal-format.md section 2.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from bridge.envelope import LinkLane
from bridge.intervals import IntervalSet, Range
from bridge.runs import Origin
from cloud.alerts.store import KIND as ALERTS_KIND
from cloud.config import StorageConfig
from cloud.database import DatabaseError, DatabaseKind
from cloud.database_file import DatabaseFile
from cloud.ledger import Balance, JournalState, StorageLedger, balance
from cloud.ledger_picture import CELLS, marks, picture
from cloud.sinks.schema import epoch_from_sql, epoch_from_text
from cloud.storage import StorageReader, storage_reader
from cloud.storage_file import StorageFile
from cloud.stream import arrivals, queries
from cloud.stream.contract import Arrival, DeadLetter, Entry, GivenUp, Source, SourceLedger
from cloud.stream.tables import STREAM_KIND

__all__ = [
    "AlertsFile",
    "JournalFile",
    "StreamFile",
    "balance_files",
    "picture_files",
]

T = TypeVar("T")

_JOURNAL_KIND = DatabaseKind("a Tidegate journal", 0x54444A4C, 1, "")  # "TDJL"


class StreamFile(DatabaseFile):
    """An embedded stream's file, as the ledger sees a stream."""

    kind = STREAM_KIND
    epoch = 0

    async def open(self) -> None:
        await super().open()
        sql = "SELECT value FROM meta WHERE key = 'epoch'"
        row = await self.ask_file(lambda connection: connection.execute(sql).fetchone())
        if row is None:
            await self.close()
            raise DatabaseError(f"{self.path}: a stream that was never opened for writing")
        self.epoch = epoch_from_sql(row[0])

    async def catch_up(self) -> None:
        """Do nothing: whatever was acknowledged is in the file."""

    async def ledger(self) -> list[SourceLedger]:
        return await self.ask_file(queries.ledger)

    async def ranges_after(self, positions: Mapping[int, int]) -> dict[Source, list[Range]]:
        return await self.ask_file(lambda connection: queries.ranges_after(connection, positions))

    async def dead_letters(self, sink: str | None = None) -> list[DeadLetter]:
        return await self.ask_file(lambda connection: queries.dead_letters(connection, sink))

    async def arrival(self, gateway: str, epoch: int, seq: int) -> Arrival | None:
        return await self.ask_file(
            lambda connection: arrivals.find(connection, gateway, epoch, seq)
        )

    async def first_since(self, since_us: int) -> dict[Source, int]:
        """Return the lowest seq of each source among the batches that came since a time."""
        return await self.ask_file(lambda connection: arrivals.first_since(connection, since_us))

    async def came_at(self, source: Source, seqs: Sequence[int]) -> dict[int, int]:
        """Return when the batches with some seqs of a source came."""
        return await self.ask_file(lambda connection: arrivals.came_at(connection, source, seqs))

    async def heard(self) -> dict[Source, tuple[int, int]]:
        """Return when the first and the last known batch of each source came."""
        return await self.ask_file(arrivals.heard)

    async def read(
        self, partition: int, after: int, *, entries_max: int, bytes_max: int
    ) -> list[Entry]:
        return await self.ask_file(
            lambda connection: queries.read(connection, partition, after, entries_max, bytes_max)
        )

    async def sinks(self) -> dict[str, dict[int, int]]:
        """Return the positions of the sinks whose cursors the stream keeps."""
        return await self.ask_file(queries.all_cursors)


class AlertsFile(DatabaseFile):
    """The alerts' file, as the ledger sees a sink with cursors of its own."""

    kind = ALERTS_KIND

    async def positions(self, stream_epoch: int) -> dict[int, int]:
        """Return its positions; none when they are of another stream."""
        return await self.ask_file(lambda connection: _alerts_positions(connection, stream_epoch))


class JournalFile(DatabaseFile):
    """An edge's journal file, as the ledger sees a journal."""

    kind = _JOURNAL_KIND

    async def state(self) -> JournalState:
        return await self.ask_file(_journal_state)


async def balance_files(
    data: Path, *, thorough: bool = True, config: StorageConfig | None = None
) -> Balance:
    """Balance the files below a data folder (DESIGN section 7).

    Args:
        data: What `--data` names.
        thorough: Count storage row by row.
        config: Where storage is; None: in the data folder.

    Raises:
        DatabaseError: there is no stream, or a file cannot be read.
    """
    notes: list[str] = []
    async with _Opened() as opened:
        journal = await opened.maybe(JournalFile(data / "edge" / "journal.db"), notes)
        stream = StreamFile(data / "cloud" / "stream.db")
        await opened.add(stream)
        reader = storage_reader(data, config or StorageConfig())
        storage: StorageLedger | None = reader
        if isinstance(reader, StorageFile):
            storage = await opened.maybe(reader, notes)
        else:
            await opened.add(reader)
        sinks = await stream.sinks()
        alerts = AlertsFile(data / "cloud" / "alerts.db")
        if alerts.path.exists():
            await opened.add(alerts)
            sinks["alerts"] = await alerts.positions(stream.epoch)
        return await balance(
            stream,
            storage,
            [journal] if journal else [],
            sinks=sinks,
            thorough=thorough,
            notes=notes,
        )


async def picture_files(
    data: Path, report: Balance, since_us: int, *, cells: int = CELLS
) -> list[str]:
    """Return the picture of a balance (cloud/ledger_picture.py).

    Where the stream is no file, a cluster's, nobody knows what came when: all of it is drawn.

    Raises:
        DatabaseError: the stream cannot be read.
    """
    stream = StreamFile(data / "cloud" / "stream.db")
    if not stream.path.exists():
        everything = {(one.gateway, one.epoch): 1 for one in report.sources}
        return picture(report, everything, 0, cells=cells)
    await stream.open()
    try:
        since = await stream.first_since(since_us)
        came = {
            (source, seq): time_us
            for source, seqs in marks(report, since, cells).items()
            for seq, time_us in (await stream.came_at(source, seqs)).items()
        }
        return picture(report, since, since_us, came=came, cells=cells)
    finally:
        await stream.close()


class _Opened:
    """Files to be closed together."""

    def __init__(self) -> None:
        self._files: list[DatabaseFile | StorageReader] = []

    async def add(self, file: DatabaseFile | StorageReader) -> None:
        await file.open()
        self._files.append(file)

    async def maybe(self, file: FileT, notes: list[str]) -> FileT | None:
        """Open a file if there is one, else note its absence."""
        if not file.path.exists():
            notes.append(f"{file.path}: no such file, so nothing is counted there")
            return None
        await self.add(file)
        return file

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files:
            await file.close()


FileT = TypeVar("FileT", bound=DatabaseFile)


# ---- questions -----------------------------------------------------------------------------------


def _alerts_positions(connection: sqlite3.Connection, stream_epoch: int) -> dict[int, int]:
    row = connection.execute("SELECT value FROM meta WHERE key = 'stream_epoch'").fetchone()
    if row is None or epoch_from_text(str(row[0])) != stream_epoch:
        return {}
    return dict(connection.execute("SELECT partition, position FROM cursors").fetchall())


def _journal_origin(connection: sqlite3.Connection) -> Origin | None:
    """Return where a journal's epoch parted from another; None if it did not, or cannot say."""
    sql = "SELECT count(*) FROM sqlite_master WHERE name = 'origin'"
    if not connection.execute(sql).fetchone()[0]:
        return None
    row = connection.execute("SELECT after_seq, epoch FROM origin").fetchone()
    return None if row is None else Origin(*row)


def _journal_state(connection: sqlite3.Connection) -> JournalState:
    """Return what a journal holds: rows past what the cloud acknowledged, and tombstones."""
    connection.execute("BEGIN")
    try:
        origin = _journal_origin(connection)
        epoch, last_seq = connection.execute("SELECT epoch, last_seq FROM meta").fetchone()
        gone = dict(connection.execute("SELECT lane, gone_seq FROM lanes").fetchall())
        waiting = IntervalSet()
        for lane, first, count in connection.execute("SELECT lane, first_seq, count FROM journal"):
            last = first + count - 1
            last_seq = max(last_seq, last)
            first = max(first, gone.get(lane, 0) + 1)  # noqa: PLW2901 - its rest is acknowledged
            if first <= last:
                waiting.add(first, last)
        given_up = tuple(
            GivenUp("", epoch, LinkLane(lane).name.lower(), first, last, count, reason, time_us)
            for lane, first, last, count, reason, time_us in connection.execute(
                "SELECT lane, first_seq, last_seq, count, reason, time_us FROM tombstones"
            )
        )
    finally:
        connection.execute("COMMIT")
    # what was acknowledged or given up was assigned, though no row is left of it
    last_seq = max([last_seq, *gone.values(), *(stone.last_seq for stone in given_up)])
    return JournalState(epoch, last_seq, tuple(waiting), given_up, origin)
