"""Questions about stored readings: which, of which devices, when, what value, in what steps.

    query = ReadingsQuery(devices=("boiler-*",), start_us=..., field="temp", every_us=60_000_000)
    result = await ask(Path("storage.db"), query)

storage.db is opened read-only, beside the process that writes it; cloud/storage_postgres.py has the
same for PostgreSQL. The same question is behind `tidegate query` and
`GET /api/v1/devices/{id}/readings`.

Invariants: memory is bounded by `limit` (or by GROUPS_MAX steps), however many rows there are; a
question that takes longer than `timeout_s` is given up.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path

from cloud.database import DatabaseError, open_read_only
from cloud.fields import MISSING, FieldError, FieldPath, number
from cloud.sinks.schema import STORAGE_KIND, epoch_from_sql, payload_from_sql
from mqtt.topics import matches, topic_filter_fault
from runtime.clock import Clock, SystemClock

__all__ = [
    "AGGREGATES",
    "QueryError",
    "QueryResult",
    "ReadingRow",
    "ReadingsQuery",
    "Step",
    "Steps",
    "answer",
    "ask",
    "parse_position",
    "too_late",
]

AGGREGATES = ("mean", "min", "max", "last", "count")
GROUPS_MAX = 200_000  # steps held at once while aggregating
DEVICES_MAX = 100
_GLOB = re.compile(r"[*?\[]")
_PROGRESS_STEPS = 10_000  # of SQLite's machine between two looks at the clock: under 1 ms
_CHECK_ROWS = 1_000
_COLUMNS = "device, topic, gateway, epoch, seq, time_us, received_us, qos, payload"


class QueryError(Exception):
    """A question that cannot be answered; `str()` is one line: what, and what to do."""


@dataclass(slots=True, frozen=True)
class ReadingsQuery:
    """What is asked.

    `__post_init__` raises QueryError for what makes no sense.
    """

    devices: tuple[str, ...] = ()  # globs; empty = all
    topic: str = "#"  # MQTT topic filter
    start_us: int | None = None  # inclusive
    end_us: int | None = None  # exclusive
    field: str | None = None  # only readings with this field; "" = the whole payload
    every_us: int | None = None  # aggregate in steps of this length, aligned to 1970
    aggregate: str = "mean"
    newest_first: bool = True
    limit: int = 1_000
    after: str = ""  # `QueryResult.next` of the page before

    def __post_init__(self) -> None:
        fault = topic_filter_fault(self.topic, shared=False)
        if fault is not None:
            raise QueryError(f"topic: {fault.detail}")
        if self.aggregate not in AGGREGATES:
            raise QueryError(f"agg: '{self.aggregate}' is none of {', '.join(AGGREGATES)}")
        if self.limit < 1:
            raise QueryError(f"limit: expected 1 or more, got {self.limit}")
        if len(self.devices) > DEVICES_MAX:
            raise QueryError(f"devices: at most {DEVICES_MAX}, got {len(self.devices)}; use a glob")
        if self.start_us is not None and self.end_us is not None and self.start_us >= self.end_us:
            raise QueryError("until: is not after since, so nothing lies between")
        try:
            FieldPath.parse(self.field or "")
        except FieldError as error:
            raise QueryError(f"field: {error}") from None
        if self.after:
            parse_position(self.after)
            if self.every_us is not None:
                raise QueryError("after: steps have no pages; ask for a shorter time instead")


@dataclass(slots=True, frozen=True)
class ReadingRow:
    """One reading with its identity; `value` is the field's as JSON has it, or MISSING."""

    device: str
    topic: str
    gateway: str
    epoch: int
    seq: int
    time_us: int
    received_us: int
    qos: int
    payload: bytes
    value: object


@dataclass(slots=True, frozen=True)
class Step:
    """One step of one topic of a device: its beginning, aggregate, and how many values it had."""

    device: str
    topic: str
    time_us: int
    value: float
    count: int


@dataclass(slots=True, frozen=True)
class QueryResult:
    """The answer: rows, or steps when the question had `every_us`."""

    query: ReadingsQuery
    rows: list[ReadingRow]
    steps: list[Step]
    next: str  # for `after`; "" = there is no more


async def ask(path: Path, query: ReadingsQuery, *, timeout_s: float = 60.0) -> QueryResult:
    """Answer a question from storage.db.

    Args:
        path: The file.
        query: The question.
        timeout_s: How long it may take.

    Raises:
        QueryError: it took too long, or has too many steps; one line.
        DatabaseError: the file is absent, foreign or damaged; one line.
    """
    database = await open_read_only(path, STORAGE_KIND)
    try:
        return await database.run(partial(answer, query=query, timeout_s=timeout_s))
    except sqlite3.Error as error:
        raise DatabaseError(f"{path}: {error}") from error
    finally:
        await database.close()


def answer(
    connection: sqlite3.Connection,
    *,
    query: ReadingsQuery,
    timeout_s: float,
    clock: Clock | None = None,
) -> QueryResult:
    """Answer a question on an open connection; errors as for `ask`."""
    monotonic_s = (clock or SystemClock()).monotonic_s
    deadline_s = monotonic_s() + timeout_s

    def overdue() -> bool:
        return monotonic_s() > deadline_s

    connection.set_progress_handler(overdue, _PROGRESS_STEPS)
    try:
        if query.every_us is not None:
            return _steps(connection, query, overdue)
        return _rows(connection, query, overdue)
    except (sqlite3.OperationalError, TimeoutError) as error:
        if isinstance(error, TimeoutError) or overdue():
            raise QueryError(too_late(timeout_s)) from None
        raise
    finally:
        connection.set_progress_handler(None, 0)


def too_late(timeout_s: float) -> str:
    """Return what a QueryError says of a question that took too long."""
    return f"took longer than {timeout_s:g} s; ask for fewer devices or a shorter time"


# ---- rows ----------------------------------------------------------------------------------------


def _rows(
    connection: sqlite3.Connection, query: ReadingsQuery, overdue: Callable[[], bool]
) -> QueryResult:
    rows: list[ReadingRow] = []
    path = FieldPath.parse(query.field) if query.field is not None else None
    position = ""
    # the keys alone are sorted: a row's payload is read only if it is wanted
    for looked_at, (rowid,) in enumerate(_keys(connection, query)):
        if looked_at % _CHECK_ROWS == 0 and overdue():
            raise TimeoutError
        (row,) = connection.execute(
            f"SELECT {_COLUMNS} FROM readings WHERE rowid = ?",  # noqa: S608 - a constant
            (rowid,),
        )
        device, topic, gateway, epoch, seq, time_us, received_us, qos, stored = row
        payload = payload_from_sql(stored)
        value = path.find(payload) if path is not None else MISSING
        if path is not None and value is MISSING:
            continue
        if len(rows) == query.limit:
            return QueryResult(query, rows, [], position)
        rows.append(
            ReadingRow(device, topic, gateway, epoch_from_sql(epoch), seq, time_us, received_us,
                       qos, payload, value)
        )  # fmt: skip
        position = f"{time_us}.{rowid}"
    return QueryResult(query, rows, [], "")


def _keys(connection: sqlite3.Connection, query: ReadingsQuery) -> Iterator[tuple[int]]:
    conditions, parameters = _conditions(connection, query)
    order = "DESC" if query.newest_first else "ASC"
    if query.after:
        conditions.append(f"(time_us, rowid) {'<' if query.newest_first else '>'} (?, ?)")
        parameters += parse_position(query.after)[:2]
    # without a field every row counts, so SQLite need not sort more than the page and one
    limit = query.limit + 1 if query.field is None else -1
    sql = (
        f"SELECT rowid FROM readings WHERE {' AND '.join(conditions)} "  # noqa: S608 - own words
        f"ORDER BY time_us {order}, rowid {order} LIMIT ?"
    )
    return iter(connection.execute(sql, (*parameters, limit)))


def parse_position(after: str) -> tuple[int, int, int, str]:
    """Return the parts of a page's position: time, and what tells rows of one time apart.

    SQLite: rowid, 0, "". PostgreSQL: epoch as it is stored, seq, gateway.

    Raises:
        QueryError: it is not the `next` of a page.
    """
    parts = after.split(".", 3)
    try:
        if len(after) < 1_000 and 2 <= len(parts) != 3:
            numbers = [int(part) for part in parts[:3]]
            if all(-(1 << 63) <= number < 1 << 63 for number in numbers):
                time_us, tie, more = (*numbers, 0)[:3]
                return time_us, tie, more, "".join(parts[3:])
    except ValueError:
        pass
    raise QueryError(f"after: '{after[:40]}' is not the 'next' of a page")


# ---- steps ---------------------------------------------------------------------------------------


class Steps:
    """Aggregates rows, which come in order of time for each device and topic, into steps."""

    def __init__(self, query: ReadingsQuery) -> None:
        assert query.every_us is not None
        self._query = query
        self._every_us = query.every_us
        self._path = FieldPath.parse(query.field or "")
        self._groups: dict[tuple[int, str, str], _Group] = {}

    def add(self, device: str, topic: str, time_us: int, payload: str | bytes) -> None:
        """Take a row.

        Raises:
            QueryError: there are too many steps.
        """
        value = number(self._path.find(payload))
        if value is None:
            return
        key = (time_us // self._every_us * self._every_us, device, topic)
        group = self._groups.get(key)
        if group is None:
            if len(self._groups) >= GROUPS_MAX:
                raise QueryError(f"every: more than {GROUPS_MAX} steps; make them longer")
            group = self._groups[key] = _Group()
        group.add(value)

    def result(self) -> QueryResult:
        """Return the steps."""
        groups, query = self._groups, self._query
        ordered = sorted(groups)
        if query.newest_first:
            ordered.sort(key=lambda key: -key[0])
        steps = [
            Step(device, topic, at_us, groups[at_us, device, topic].result(query.aggregate),
                 groups[at_us, device, topic].count)
            for at_us, device, topic in ordered[: query.limit]
        ]  # fmt: skip
        return QueryResult(query, [], steps, "")


class _Group:
    """What one step has seen; rows come in order of time."""

    __slots__ = ("count", "greatest", "last", "least", "total")

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.least = float("inf")
        self.greatest = float("-inf")
        self.last = 0.0

    def add(self, value: float) -> None:
        self.count += 1
        self.total += value
        self.least = min(self.least, value)
        self.greatest = max(self.greatest, value)
        self.last = value

    def result(self, aggregate: str) -> float:
        return {
            "mean": self.total / self.count,
            "min": self.least,
            "max": self.greatest,
            "last": self.last,
            "count": float(self.count),
        }[aggregate]


def _steps(
    connection: sqlite3.Connection, query: ReadingsQuery, overdue: Callable[[], bool]
) -> QueryResult:
    steps = Steps(query)
    conditions, parameters = _conditions(connection, query)
    # the order of the index: nothing is sorted, and the last value of a step is its newest
    rows = connection.execute(
        "SELECT device, topic, time_us, payload FROM readings "  # noqa: S608 - own words
        f"WHERE {' AND '.join(conditions)} ORDER BY device, time_us, rowid",
        parameters,
    )
    for looked_at, row in enumerate(rows):
        if looked_at % _CHECK_ROWS == 0 and overdue():
            raise TimeoutError
        steps.add(*row)
    return steps.result()


# ---- which rows ----------------------------------------------------------------------------------


def _conditions(
    connection: sqlite3.Connection, query: ReadingsQuery
) -> tuple[list[str], list[object]]:
    conditions, parameters = ["1"], list[object]()
    if query.devices:
        each = []
        for device in query.devices:
            is_glob = _GLOB.search(device) is not None
            each.append("device GLOB ?" if is_glob else "device = ?")
            parameters.append(device.replace("[!", "[^") if is_glob else device)
        conditions.append(f"({' OR '.join(each)})")
    for moment, comparison in ((query.start_us, ">="), (query.end_us, "<")):
        if moment is not None:
            conditions.append(f"time_us {comparison} ?")
            parameters.append(max(min(moment, (1 << 63) - 1), -(1 << 63)))
    if query.topic != "#":
        if "+" in query.topic or query.topic.endswith("#"):
            wanted = lru_cache(maxsize=4096)(partial(matches, query.topic))
            connection.create_function("topic_matches", 1, wanted, deterministic=True)
            conditions.append("topic_matches(topic)")
        else:
            conditions.append("topic = ?")
            parameters.append(query.topic)
    return conditions, parameters
