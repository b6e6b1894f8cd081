"""Stores: where the judge reads what arrived. A `storage.db` read-only, or the HTTP API.

Invariants: `begin()` is called before the run and notes what is already stored, so that only rows
from after it are judged; `feed()` gives rows gateway by gateway in rising seq order, which within
one device is the order of storage.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

__all__ = ["Observe", "SqliteStore", "Store", "VerifyError", "open_store"]

Observe = Callable[[str, bytes, int], None]  # topic, payload, received_us
_COLUMNS = {"gateway", "epoch", "seq", "topic", "received_us", "payload"}


class VerifyError(Exception):
    """A store that cannot be checked; `str()` is one line: where, what, what to do."""


class Store(Protocol):
    """What arrived, from one place."""

    def canonical(self, payload: bytes) -> bytes:
        """Return a payload as `feed` gives it: its bytes, unless the place keeps only values."""
        ...

    async def begin(self) -> None:
        """Check that the store can be read and note what it holds; raises VerifyError."""
        ...

    async def count(self) -> int:
        """Return how many readings were stored since `begin`; cheap."""
        ...

    async def feed(self, observe: Observe) -> None:
        """Give every row stored since `begin` to `observe`, in the order of storage."""
        ...


def open_store(url: str) -> Store:
    """Return the store that `--verify` names: a path, a file: URL or an http(s): URL.

    Raises:
        VerifyError: it is none of these, or its folder does not exist.
    """
    parts = urlsplit(url)
    if parts.scheme in {"http", "https"}:
        from device_sim.http_store import HttpStore  # noqa: PLC0415 - httpx only when asked for

        return HttpStore(url)
    if parts.scheme == "file":
        return SqliteStore(Path(unquote(parts.path)))
    if parts.scheme:
        raise VerifyError(
            f"{url}: not known; use the path of storage.db, file:PATH or http://host:port"
        )
    return SqliteStore(Path(url).expanduser())


class SqliteStore:
    """The table `readings` of a storage.db, which may still be written by another process."""

    def __init__(self, path: Path) -> None:
        if path.is_dir():
            path /= "storage.db"
        if not path.parent.is_dir():
            raise VerifyError(f"{path}: no such folder; give the path of storage.db")
        self._path = path
        self._before: dict[tuple[str, object], int] = {}  # highest seq by (gateway, epoch)
        self._count_before = 0

    def canonical(self, payload: bytes) -> bytes:
        return payload

    async def begin(self) -> None:
        await asyncio.to_thread(self._begin)

    async def count(self) -> int:
        return await asyncio.to_thread(self._count)

    async def feed(self, observe: Observe) -> None:
        await asyncio.to_thread(self._feed, observe)

    def _begin(self) -> None:
        if not self._path.exists():  # the cloud will make it with the first reading
            return
        with _reading(self._path) as database:
            rows = database.execute(
                "SELECT gateway, epoch, max(seq) FROM readings GROUP BY gateway, epoch"
            )
            self._before = {(gateway, epoch): seq for gateway, epoch, seq in rows}
            self._count_before = database.execute("SELECT count(*) FROM readings").fetchone()[0]

    def _count(self) -> int:
        if not self._path.exists():
            return 0
        with _reading(self._path) as database:
            count: int = database.execute("SELECT count(*) FROM readings").fetchone()[0]
        return count - self._count_before

    def _feed(self, observe: Observe) -> None:
        with _reading(self._path) as database:
            sources = database.execute(
                "SELECT gateway, epoch FROM readings GROUP BY gateway, epoch"
                " ORDER BY min(received_us)"
            ).fetchall()
            for gateway, epoch in sources:
                rows = database.execute(
                    "SELECT topic, payload, received_us FROM readings"
                    " WHERE gateway = ? AND epoch = ? AND seq > ? ORDER BY seq",
                    (gateway, epoch, self._before.get((gateway, epoch), -1)),
                )
                for topic, payload, received_us in rows:
                    data = payload.encode() if isinstance(payload, str) else payload
                    observe(topic, data, received_us or 0)


@contextmanager
def _reading(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a storage.db read-only and close it; every fault becomes a VerifyError."""
    if not path.exists():
        raise VerifyError(f"{path}: no such file; did the cloud store anything?")
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            names = {row[1] for row in database.execute("PRAGMA table_info(readings)")}
            if not names >= _COLUMNS:
                raise VerifyError(f"{path}: has no table 'readings'; give a storage.db")
            yield database
    except sqlite3.Error as error:
        raise VerifyError(f"{path}: cannot be read: {error}") from None
