"""Storage as the rest of a node sees it, whatever keeps it: SQLite or PostgreSQL.

What writes it is a sink, made by `make_storage`; what reads it (query, API, audit, trace, latest
values) is a `StorageReader`, made by `storage_reader`. Nothing else knows which of the two it is.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from bridge.commands import Correction
from cloud.config import ParquetConfig, StorageConfig
from cloud.database import DatabaseError
from cloud.latest import NewestRows
from cloud.ledger import StorageLedger
from cloud.query import QueryResult, ReadingsQuery
from cloud.sinks.contract import Sink
from cloud.sinks.storage import StorageSink, StorageStats
from cloud.storage_file import StorageFile
from cloud.trace import StorageTrace
from runtime.clock import Clock

__all__ = ["Storage", "StorageReader", "make_parquet", "make_storage", "storage_reader"]


class Storage(Sink, Protocol):
    """The storage sink.

    Attributes:
        on_went_back: Called when it has lost what was committed, corrections perhaps among it.
    """

    on_went_back: Callable[[], None]

    @property
    def stats(self) -> StorageStats:
        """What it did since it was opened."""
        ...

    async def correct(self, gateway: str, correction: Correction) -> int:
        """Correct the times of a gateway's readings, those that come later as well; once.

        Returns:
            How many rows were there already; 0 when the correction was known.

        Raises:
            SinkUnavailable: it cannot be written now.
        """
        ...


class StorageReader(StorageLedger, StorageTrace, NewestRows, Protocol):
    """Storage, read only; everything but `ask` and `exists` between `open` and `close`.

    Each method raises DatabaseError, one line, when storage cannot be read.
    """

    def exists(self) -> bool:
        """Return False when there is certainly nothing to open."""
        ...

    async def open(self) -> None:
        """Make ready to be asked."""
        ...

    async def close(self) -> None:
        """Release everything; harmless when closed already."""
        ...

    async def ask(self, query: ReadingsQuery, *, timeout_s: float = 60.0) -> QueryResult:
        """Answer a question about readings.

        Raises:
            QueryError: it took too long, or has too many steps; one line.
        """
        ...

    async def positions(self, stream_epoch: int) -> dict[int, int]:
        """Return storage's cursors by partition, of one stream."""
        ...

    async def newest(self, device: str, time_us: int) -> tuple[str, int, int] | None:
        """Return gateway, epoch and seq of a device's newest reading at a time or before."""
        ...


def make_storage(data: Path, config: StorageConfig, clock: Clock) -> Storage:
    """Return the storage sink that the configuration asks for.

    Raises:
        DatabaseError: its address is malformed, or what it needs is not installed.
    """
    if not config.url:
        return StorageSink(_file(data), config, clock)
    _need_asyncpg()
    from cloud.sinks.postgres import PostgresSink  # noqa: PLC0415 - an extra, not installed by all
    from cloud.sinks.postgres_link import PostgresPlace  # noqa: PLC0415

    return PostgresSink(PostgresPlace(config.url, config.schema), config, clock)


def make_parquet(data: Path, config: ParquetConfig, node: str) -> Sink:
    """Return the Parquet sink.

    Raises:
        DatabaseError: what it needs is not installed.
    """
    try:
        from cloud.sinks.parquet import ParquetSink  # noqa: PLC0415 - an extra
    except ImportError:
        raise DatabaseError("parquet: needs pyarrow; install tidegate[parquet]") from None
    folder = Path(config.folder) if config.folder else data / "cloud" / "parquet"
    return ParquetSink(folder, config, node)


def storage_reader(data: Path, config: StorageConfig) -> StorageReader:
    """Return what reads the storage that the configuration names.

    Raises:
        DatabaseError: its address is malformed, or what it needs is not installed.
    """
    if not config.url:
        return StorageFile(_file(data))
    _need_asyncpg()
    from cloud.sinks.postgres_link import PostgresPlace  # noqa: PLC0415 - an extra
    from cloud.storage_postgres import StoragePostgres  # noqa: PLC0415

    return StoragePostgres(PostgresPlace(config.url, config.schema))


def _file(data: Path) -> Path:
    return data / "cloud" / "storage.db"


def _need_asyncpg() -> None:
    try:
        import asyncpg  # noqa: F401, PLC0415 - an extra
    except ImportError:
        raise DatabaseError(
            "storage.url: PostgreSQL needs asyncpg; install tidegate[postgres]"
        ) from None
