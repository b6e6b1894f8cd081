"""PostgreSQL as what reads storage sees it (cloud/storage.py), on read-only connections.

Invariants: what a question keeps in memory is bounded as in cloud/query.py; a question that takes
longer than it may is ended at the server too.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import asyncpg

from bridge.intervals import IntervalSet
from cloud.fields import MISSING, FieldPath
from cloud.latest import REBUILD_DEVICES_AT_ONCE, REBUILD_ROWS_PER_DEVICE, LatestReading
from cloud.ledger import StorageState
from cloud.query import (
    QueryError,
    QueryResult,
    ReadingRow,
    ReadingsQuery,
    Steps,
    parse_position,
    too_late,
)
from cloud.sinks.postgres_link import LINK_ERRORS, NotReachable, PostgresPlace, connect, translated
from cloud.sinks.schema import epoch_from_sql, epoch_to_sql
from cloud.stream.contract import Source
from cloud.trace import Row

__all__ = ["StoragePostgres"]

_PREFETCH = 1_000
_TURN_LOOK_S = 0.25
_REBUILD_LOCK = 0x5447524C  # advisory: one node at a time rebuilds its latest values
_PAYLOAD = "coalesce(payload_bytes, convert_to(payload, 'UTF8')) AS payload"
_ROW = f"device, topic, gateway, epoch, seq, time_us, received_us, qos, {_PAYLOAD}"
_NEWEST_ROWS = f"""
WITH RECURSIVE names(device, n) AS (
    (SELECT device, 1 FROM readings WHERE device > $1 ORDER BY device LIMIT 1)
    UNION ALL
    SELECT (SELECT r.device FROM readings r WHERE r.device > names.device ORDER BY 1 LIMIT 1), n + 1
    FROM names WHERE names.device IS NOT NULL AND n < {REBUILD_DEVICES_AT_ONCE}
)
SELECT names.device AS name, newest.* FROM names LEFT JOIN LATERAL (
    SELECT {_ROW} FROM readings r WHERE r.device = names.device AND r.time_us <= $2
    ORDER BY r.time_us DESC LIMIT {REBUILD_ROWS_PER_DEVICE}
) newest ON true WHERE names.device IS NOT NULL
"""  # noqa: S608 - constants


class StoragePostgres:
    """The tables of a PostgreSQL storage.

    Args:
        place: Where they are.
    """

    def __init__(self, place: PostgresPlace) -> None:
        self.place = place
        self._connection: Any = None

    def exists(self) -> bool:
        """Return True: only the server knows."""
        return True

    async def open(self) -> None:
        """Connect.

        Raises:
            DatabaseError: nobody answers, or there are no tables.
        """
        if self._connection is None:
            self._connection = await self._open()

    async def close(self) -> None:
        """Hang up; harmless when closed already."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def _open(self) -> Any:
        connection = await connect(self.place, "reader", read_only=True)
        try:
            async with self._explained():
                found = await connection.fetchval("SELECT to_regclass('readings')")
        except BaseException:
            connection.terminate()
            raise
        if found is None:
            connection.terminate()
            raise NotReachable(f"{self.place}: nothing was stored there yet")
        return connection

    @asynccontextmanager
    async def _explained(self) -> AsyncIterator[None]:
        try:
            yield
        except LINK_ERRORS as error:
            raise translated(self.place, error) from None

    async def _fetch(self, sql: str, *values: object) -> list[Any]:
        assert self._connection is not None
        async with self._explained():
            rows: list[Any] = await self._connection.fetch(sql, *values)
            return rows

    # ---- the ledger, the cursors, single rows ----------------------------------------------------

    async def state(self, *, count_rows: bool) -> StorageState:
        """Return what is stored and where storage stands, as of one moment.

        With `count_rows` the rows themselves are counted: a scan of their key.
        """
        ranges = (
            "SELECT gateway, epoch, range_agg(int8range(seq, seq, '[]')) FROM readings"
            " GROUP BY 1, 2 UNION ALL SELECT gateway, epoch, range_agg(seqs) FROM expired"
            " GROUP BY 1, 2"
            if count_rows
            else "SELECT gateway, epoch, range_agg(seqs) FROM stored GROUP BY 1, 2"
        )
        assert self._connection is not None
        async with (
            self._explained(),
            self._connection.transaction(isolation="repeatable_read", readonly=True),
        ):
            epoch_value = await self._connection.fetchval(
                "SELECT value FROM meta WHERE key = 'stream_epoch'"
            )
            cursors = await self._connection.fetch(
                "SELECT partition, position FROM cursors WHERE stream_epoch = $1", epoch_value
            )
            rows = await self._connection.fetch(ranges, timeout=None)
        stored: dict[Source, IntervalSet] = {}
        for gateway, epoch, seqs in rows:
            of_source = stored.setdefault((gateway, epoch_from_sql(epoch)), IntervalSet())
            of_source.update((one.lower, one.upper - 1) for one in seqs)
        return StorageState(
            {source: tuple(seqs) for source, seqs in stored.items()},
            {row["partition"]: row["position"] for row in cursors},
            None if epoch_value is None else epoch_from_sql(epoch_value),
        )

    async def positions(self, stream_epoch: int) -> dict[int, int]:
        """Return the cursors of one stream."""
        rows = await self._fetch(
            "SELECT partition, position FROM cursors WHERE stream_epoch = $1",
            epoch_to_sql(stream_epoch),
        )
        return {row["partition"]: row["position"] for row in rows}

    async def row(self, gateway: str, epoch: int, seq: int) -> Row | None:
        """Return a row."""
        rows = await self._fetch(
            "SELECT device, topic, time_us, received_us, qos,"
            " octet_length(coalesce(payload_bytes, convert_to(payload, 'UTF8')))"
            " FROM readings WHERE gateway = $1 AND epoch = $2 AND seq = $3",
            gateway, epoch_to_sql(epoch), seq,
        )  # fmt: skip
        return Row(*rows[0]) if rows else None

    async def expired(self, gateway: str, epoch: int, seq: int) -> bool:
        """Return True when retention has deleted the row."""
        rows = await self._fetch(
            "SELECT FROM expired WHERE gateway = $1 AND epoch = $2 AND seqs @> $3::bigint LIMIT 1",
            gateway, epoch_to_sql(epoch), seq,
        )  # fmt: skip
        return bool(rows)

    async def newest(self, device: str, time_us: int) -> tuple[str, int, int] | None:
        """Return the identity of a device's newest reading at a time or before."""
        rows = await self._fetch(
            "SELECT gateway, epoch, seq FROM readings WHERE device = $1 AND time_us <= $2"
            " ORDER BY time_us DESC, received_us DESC, seq DESC LIMIT 1",
            device, time_us,
        )  # fmt: skip
        return (rows[0][0], epoch_from_sql(rows[0][1]), rows[0][2]) if rows else None

    @asynccontextmanager
    async def rebuild_turn(self) -> AsyncIterator[None]:
        """Wait for a turn: of the nodes that start at once one reads everything at a time.

        It ends with the connection, so a node that dies holds up nobody.
        """
        while not (  # noqa: ASYNC110 - nobody tells
            await self._fetch("SELECT pg_try_advisory_lock($1)", _REBUILD_LOCK)
        )[0][0]:
            await asyncio.sleep(_TURN_LOOK_S)
        try:
            yield
        finally:
            if self._connection is not None and not self._connection.is_closed():
                await self._fetch("SELECT pg_advisory_unlock($1)", _REBUILD_LOCK)

    async def newest_rows(
        self, after: str, now_us: int, payload_bytes: int
    ) -> tuple[list[str], list[LatestReading]]:
        """Return the next devices past `after`, and the newest row of each of their topics."""
        names: dict[str, dict[str, LatestReading]] = {}
        for row in await self._fetch(_NEWEST_ROWS, after, now_us):
            topics = names.setdefault(row["name"], {})
            if row["topic"] is None:
                continue
            payload = row["payload"]
            reading = LatestReading(
                row["name"], row["topic"], row["gateway"], epoch_from_sql(row["epoch"]),
                row["seq"], row["time_us"], row["received_us"], row["qos"],
                payload[:payload_bytes], len(payload),
            )  # fmt: skip
            best = topics.get(reading.topic)
            if best is None or reading.order > best.order:
                topics[reading.topic] = reading
        return sorted(names), [one for topics in names.values() for one in topics.values()]

    # ---- questions -------------------------------------------------------------------------------

    async def ask(self, query: ReadingsQuery, *, timeout_s: float = 60.0) -> QueryResult:
        """Answer a question on a connection of its own."""
        connection = await self._open()
        try:
            async with self._explained(), connection.transaction(readonly=True):
                limit_ms = max(1, round(timeout_s * 1000))
                await connection.execute(f"SET LOCAL statement_timeout = {limit_ms}")
                try:
                    if query.every_us is not None:
                        return await _steps(connection, query)
                    return await _rows(connection, query)
                except (asyncpg.QueryCanceledError, TimeoutError):
                    raise QueryError(too_late(timeout_s)) from None
        finally:
            connection.terminate()


async def _rows(connection: Any, query: ReadingsQuery) -> QueryResult:
    path = FieldPath.parse(query.field) if query.field is not None else None
    conditions, values = _conditions(query)
    direction, past = ("DESC", "<") if query.newest_first else ("ASC", ">")
    if query.after:
        time_us, epoch, seq, gateway = parse_position(query.after)
        at = len(values)
        conditions.append(
            f"(time_us, epoch, seq, gateway) {past} (${at + 1}, ${at + 2}, ${at + 3}, ${at + 4})"
        )
        values += [time_us, epoch, seq, gateway]
    order = ", ".join(f"{name} {direction}" for name in ("time_us", "epoch", "seq", "gateway"))
    # without a field every row counts, so no more need be sorted than the page and one
    limit = f"LIMIT {query.limit + 1}" if path is None else ""
    sql = (
        f"SELECT {_ROW} FROM readings WHERE {' AND '.join(conditions)} "  # noqa: S608 - own words
        f"ORDER BY {order} {limit}"
    )
    rows: list[ReadingRow] = []
    position = ""
    async for row in connection.cursor(sql, *values, prefetch=_PREFETCH):
        payload: bytes = row["payload"]
        value = path.find(payload) if path is not None else MISSING
        if path is not None and value is MISSING:
            continue
        if len(rows) == query.limit:
            return QueryResult(query, rows, [], position)
        rows.append(
            ReadingRow(
                row["device"],
                row["topic"],
                row["gateway"],
                epoch_from_sql(row["epoch"]),
                row["seq"],
                row["time_us"],
                row["received_us"],
                row["qos"],
                payload,
                value,
            )
        )
        position = f"{row['time_us']}.{row['epoch']}.{row['seq']}.{row['gateway']}"
    return QueryResult(query, rows, [], "")


async def _steps(connection: Any, query: ReadingsQuery) -> QueryResult:
    steps = Steps(query)
    conditions, values = _conditions(query)
    sql = (
        f"SELECT device, topic, time_us, {_PAYLOAD} FROM readings"  # noqa: S608 - own words
        f" WHERE {' AND '.join(conditions)} ORDER BY device, time_us, epoch, seq"
    )
    async for row in connection.cursor(sql, *values, prefetch=_PREFETCH):
        steps.add(*row)
    return steps.result()


def _conditions(query: ReadingsQuery) -> tuple[list[str], list[object]]:
    conditions, values = ["true"], list[object]()

    def value(one: object) -> str:
        values.append(one)
        return f"${len(values)}"

    if query.devices:
        exact = [_literal(device) for device in query.devices if _literal(device) is not None]
        globs = [device for device in query.devices if _literal(device) is None]
        each = [f"device = ANY({value(exact)}::text[])"] if exact else []
        for device in globs:
            each.append(f"device ~ {value(_regex_of_glob(device))}")
            prefix = re.match(r"[^*?\[]*", device)
            if prefix is not None and prefix[0]:  # the part an index can be asked for
                each[-1] += f" AND starts_with(device, {value(prefix[0])})"
        conditions.append("(" + " OR ".join(f"({one})" for one in each) + ")")
    for moment, comparison in ((query.start_us, ">="), (query.end_us, "<")):
        if moment is not None:
            bounded = max(min(moment, (1 << 63) - 1), -(1 << 63))
            conditions.append(f"time_us {comparison} {value(bounded)}")
    if query.topic != "#":
        if "+" in query.topic or query.topic.endswith("#"):
            conditions.append(f"topic ~ {value(_regex_of_filter(query.topic))}")
        else:
            conditions.append(f"topic = {value(query.topic)}")
    return conditions, values


def _literal(device: str) -> str | None:
    """Return the one id that a glob without wildcards, or with all of them escaped, means."""
    plain = re.sub(r"\[([*?\[])\]", "\\1", device)
    rest = re.sub(r"\[[*?\[]\]", "", device)
    return None if re.search(r"[*?\[]", rest) else plain


def _regex_of_glob(glob: str) -> str:
    """Return a glob as a regular expression of PostgreSQL."""
    parts = ["^"]
    for part in re.findall(r"\[!?\]?[^\]]*\]|.", glob, re.DOTALL):
        if part == "*":
            parts.append(".*")
        elif part == "?":
            parts.append(".")
        elif part.startswith("[") and part.endswith("]") and len(part) > 2:
            inside = part[1:-1].replace("\\", "\\\\")
            parts.append("[^" + inside[1:] + "]" if inside.startswith("!") else "[" + inside + "]")
        else:
            parts.append(re.sub(r"(\W)", r"\\\1", part) if part.isascii() else part)
    return "".join(parts) + "$"


def _regex_of_filter(topic_filter: str) -> str:
    """Return a topic filter as a regular expression; '#' is not alone here."""
    levels = topic_filter.split("/")
    # a wildcard at the front does not match topics that begin with '$' [MQTT-4.7.2-1]
    parts = ["(?!\\$)"] if levels[0] in ("+", "#") else []
    for number, level in enumerate(levels):
        slash = "/" if number else ""
        if level == "#":
            parts.append(f"({slash}.*)?")
        elif level == "+":
            parts.append(f"{slash}[^/]*")
        else:
            parts.append(slash + re.sub(r"([^\w/])", r"\\\1", level, flags=re.ASCII))
    return "^" + "".join(parts) + "$"
