"""The Parquet sink: readings as files of columns, a folder a day, exactly once by the files' names.

    DIR/day=2026-11-21/{stream}-p07-{after}.parquet

A file holds the entries of one partition that follow position `after`; which one is its last it
says in its own metadata. So the files of a partition are a chain, each begins where the one before
it ends, and the newest tells how far the sink is: the cursor is the files themselves.

Invariants:
- A file appears whole or not at all: it is written under `.tmp/`, synced, linked to its name, and
  the folder synced. What a crash leaves under `.tmp/` is deleted by the next start.
- A name is given once (`link` refuses one that is there): of two writers that go on from the same
  position, a stalled holder of a lease and its successor, one gets the name and the other nothing.
  Both would use the same folder too: the day is that of the first entry past the position.
  So no token is needed; in a cluster the folder has to be one that all nodes share.

Times are as they came: a clock that is put right later does not change files. The day is that of
arrival in UTC. Anything that reads Parquet can read it: `SELECT .. FROM 'DIR/*/*.parquet'`.
"""

from __future__ import annotations

import asyncio
import errno
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from bridge.readings import FLAG_QOS_MASK, FLAG_RETAIN
from cloud.config import ParquetConfig
from cloud.database import DatabaseError
from cloud.sinks.contract import DecodedEntry, SinkFenced, SinkUnavailable, WriteBounds
from cloud.sinks.postgres_rows import payload_columns
from cloud.stream.contract import Entry

__all__ = ["ParquetSink", "ParquetStats"]

T = TypeVar("T")

_LAST = b"tidegate.last_position"
_DAY_US = 86_400_000_000
_WRITE_BYTES_MAX = 16 << 20
_TEXT = pa.dictionary(pa.int32(), pa.string())
_SCHEMA = pa.schema(
    [
        ("gateway", _TEXT),
        ("epoch", pa.uint64()),
        ("seq", pa.int64()),
        ("device", _TEXT),
        ("topic", _TEXT),
        ("time_us", pa.int64()),
        ("received_us", pa.int64()),
        ("qos", pa.int8()),
        ("payload", pa.string()),  # when it is UTF-8 without NUL
        ("payload_bytes", pa.binary()),  # when it is not
        ("retain", pa.bool_()),
        ("properties", pa.binary()),
    ]
)


@dataclass(slots=True, frozen=True)
class ParquetStats:
    """What the sink did since it was opened."""

    rows: int = 0
    files: int = 0
    file_bytes: int = 0


class ParquetSink:
    """Readings as Parquet files.

    Args:
        folder: Where the folders of the days are; made when it is absent.
        config: Bounds and pauses.
        node: Whose left-overs a start may delete.
    """

    name = "parquet"

    def __init__(self, folder: Path, config: ParquetConfig, node: str) -> None:
        self.folder = folder
        self.linger_s = config.linger_s
        self.bounds = WriteBounds(config.rows_max, _WRITE_BYTES_MAX)
        self.stats = ParquetStats()
        self._node = node
        self._stream = ""
        self._ends: dict[int, int] = {}
        self._day_folder: Path | None = None  # durable, as far as it was used last

    async def open(self, stream_epoch: int) -> None:
        """Make the folder and delete what a crash has left.

        Raises:
            DatabaseError: the folder cannot be written.
        """
        self._stream = f"{stream_epoch:016x}"
        try:
            await asyncio.to_thread(self._prepare)
        except OSError as error:
            raise DatabaseError(
                f"{self.folder}: cannot be written ({error.strerror}); check it and its permissions"
            ) from None

    def _prepare(self) -> None:
        made = [path for path in (self.folder, *self.folder.parents) if not path.exists()]
        self._temporary.mkdir(parents=True, exist_ok=True)
        for path in made:  # with the folder the power would take every cursor
            _sync_folder(path.parent)
        for left in self._temporary.glob(f"{self._node}-*"):
            left.unlink(missing_ok=True)

    async def cursors(self) -> Mapping[int, int]:
        """Return the positions that the newest file of each partition ends with."""
        self._ends = await self._run(self._read_ends)
        return dict(self._ends)

    async def claim(self, tokens: Mapping[int, int]) -> Mapping[int, int]:
        """Look anew how far partitions are: their holder before this one may have gone on."""
        ends = await self._run(self._read_ends)
        for partition in tokens:
            self._ends[partition] = ends.get(partition, 0)
        return {partition: self._ends[partition] for partition in tokens}

    async def write(self, entries: Sequence[DecodedEntry], cursors: Mapping[int, int]) -> None:
        """Make files of `entries`: one for each partition and day.

        Raises:
            SinkFenced: another writer has gone on from the same position.
            SinkUnavailable: the folder cannot be written now.
        """
        if not cursors:
            for one in entries:  # a dead letter that is tried again: behind the chain
                await self._run(self._write_again, one)
            return
        by_partition: dict[int, list[DecodedEntry]] = {}
        for one in entries:
            by_partition.setdefault(one.entry.partition, []).append(one)
        for partition, some in by_partition.items():
            # files that a failed write has made already are not made again
            done = self._ends.get(partition, 0)
            for day, group in _days([one for one in some if one.entry.position > done]):
                await self._append(partition, day, group, group[-1].entry.position)

    async def pass_over(self, entry: Entry) -> None:
        """Move the cursor past an entry without its data: by a file without rows.

        It lies where a file that begins with the entry would: of a holder that passes it over and
        one that writes it, one gets the name.
        """
        if entry.position > self._ends.get(entry.partition, 0):
            await self._append(entry.partition, _day(entry.appended_us), [], entry.position)

    async def close(self) -> None:
        """Do nothing: every file is closed."""

    # ---- files -----------------------------------------------------------------------------------

    async def _append(
        self, partition: int, day: str, group: Sequence[DecodedEntry], last: int
    ) -> None:
        """Make the next file of a partition's chain."""
        after = self._ends.get(partition, 0)
        path = self.folder / day / f"{self._stream}-p{partition:02}-{after:020}.parquet"
        made = await self._run(self._write_file, path, group, last)
        if not made:
            self._ends.pop(partition, None)
            raise SinkFenced(frozenset((partition,)))
        self._ends[partition] = last

    def _write_again(self, one: DecodedEntry) -> None:
        entry = one.entry
        name = f"{self._stream}-r{entry.partition:02}-{entry.position:020}.parquet"
        self._write_file(self.folder / _day(entry.appended_us) / name, [one], entry.position)

    def _write_file(self, path: Path, group: Sequence[DecodedEntry], last: int) -> bool:
        """Write a file and give it its name; False when somebody has that name already."""
        table = _table(group).replace_schema_metadata({_LAST: str(last).encode()})
        temporary = self._temporary / f"{self._node}-{secrets.token_hex(8)}"
        try:
            with temporary.open("wb") as file:
                pq.write_table(table, file, compression="zstd")
                file.flush()
                os.fsync(file.fileno())
                size = file.tell()
            if path.parent != self._day_folder:  # perhaps another made it, and has not synced yet
                path.parent.mkdir(exist_ok=True)
                _sync_folder(self.folder)
                self._day_folder = path.parent
            try:
                os.link(temporary, path)
            except FileExistsError:
                return False
            _sync_folder(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
        self.stats = replace(
            self.stats,
            rows=self.stats.rows + table.num_rows,
            files=self.stats.files + 1,
            file_bytes=self.stats.file_bytes + size,
        )
        return True

    def _read_ends(self) -> dict[int, int]:
        """Return the position that the newest file of each partition ends with."""
        newest: dict[int, tuple[int, Path]] = {}
        for path in self.folder.glob(f"day=*/{self._stream}-p*.parquet"):
            _, partition, after = path.stem.split("-")
            number, position = int(partition[1:]), int(after)
            if number not in newest or position > newest[number][0]:
                newest[number] = (position, path)
        return {number: _last_of(path) for number, (_, path) in newest.items()}

    @property
    def _temporary(self) -> Path:
        return self.folder / ".tmp"

    async def _run(self, work: Callable[..., T], *arguments: Any) -> T:
        try:
            return await asyncio.to_thread(work, *arguments)
        except OSError as error:
            reason = errno.errorcode.get(error.errno or 0, "")
            text = error.strerror or str(error)
            raise SinkUnavailable(f"{self.folder}: {text} {reason}".rstrip()) from None


def _last_of(path: Path) -> int:
    metadata = pq.read_schema(path).metadata or {}
    return int(metadata[_LAST])


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _day(time_us: int) -> str:
    return f"day={datetime.fromtimestamp(time_us // 1_000_000, UTC):%Y-%m-%d}"


def _days(entries: Sequence[DecodedEntry]) -> list[tuple[str, list[DecodedEntry]]]:
    """Return runs of entries of one day, in their order: clocks of nodes may go back a little."""
    runs: list[tuple[int, list[DecodedEntry]]] = []
    for one in entries:
        day = one.entry.appended_us // _DAY_US
        if not runs or runs[-1][0] != day:
            runs.append((day, []))
        runs[-1][1].append(one)
    return [(_day(day * _DAY_US), run) for day, run in runs]


def _table(group: Sequence[DecodedEntry]) -> Any:
    """Return entries as an Arrow table."""
    columns: list[list[Any]] = [[] for _ in _SCHEMA]
    for one in group:
        entry, readings = one.entry, one.readings
        count = len(readings)
        sources = readings.sources
        texts, others = payload_columns(readings.payloads)
        parts: list[Sequence[Any]] = [
            [entry.gateway] * count,
            [entry.epoch] * count,
            readings.seqs,
            [sources[index][1] for index in readings.source_index],
            [sources[index][0] for index in readings.source_index],
            readings.times_us,
            [entry.appended_us] * count,
            [flags & FLAG_QOS_MASK for flags in readings.flags],
            texts,
            others,
            [bool(flags & FLAG_RETAIN) for flags in readings.flags],
            [block or None for block in readings.properties] or [None] * count,
        ]
        for column, values in zip(columns, parts, strict=True):
            column.extend(values)
    arrays = [pa.array(column, field.type) for column, field in zip(columns, _SCHEMA, strict=True)]
    return pa.Table.from_arrays(arrays, schema=_SCHEMA)
