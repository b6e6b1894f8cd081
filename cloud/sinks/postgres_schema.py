"""The tables in PostgreSQL: made and migrated by the tool, cut into slices of time (DESIGN 7).

`readings` has the columns of storage.db, but PostgreSQL's TEXT holds neither NUL nor other
encodings: a payload that is UTF-8 is in `payload`, any other in `payload_bytes`, and exactly one
of them is not NULL. `payload_json(payload)` is the payload as jsonb, or NULL when it is not JSON.

The table is partitioned by `received_us`, when the stream took the reading: that time never
changes, whereas `time_us` may be corrected. A slice is one partition, made when the first row
for it comes; retention drops whole slices. Where the extension timescaledb is installed in the
database the table is a hypertable, and slices are its chunks.

PostgreSQL wants the column of partitioning in every unique key, so the key does not keep an
identity out by itself: the ranges in `stored` do, changed in the transaction of the rows
(cloud/sinks/postgres.py), and the primary key `(gateway, epoch, seq, received_us)` finds rows.

`stored` and `expired` are sets of seqs a source, in pieces: each write adds a row, and `compact`
makes the rows of a source one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cloud.sinks.postgres_link import NotReachable, PostgresPlace

__all__ = ["COLUMNS", "VERSION", "Slices", "check_columns", "compact", "make_schema"]

VERSION = 1
_TYPES = {
    "gateway": "text", "epoch": "bigint", "seq": "bigint", "device": "text", "topic": "text",
    "time_us": "bigint", "received_us": "bigint", "qos": "smallint", "payload": "text",
    "payload_bytes": "bytea", "retain": "boolean", "properties": "bytea",
}  # fmt: skip
COLUMNS = tuple(_TYPES)
_MAKE_LOCK = 0x54475051  # advisory: one at a time makes tables, slices and drops them

_TABLES = """
CREATE TABLE meta (key text PRIMARY KEY, value bigint NOT NULL);
CREATE TABLE readings (
    gateway       text     COLLATE "C" NOT NULL,
    epoch         bigint   NOT NULL,
    seq           bigint   NOT NULL,
    device        text     COLLATE "C" NOT NULL,
    topic         text     COLLATE "C" NOT NULL,
    time_us       bigint   NOT NULL,
    received_us   bigint   NOT NULL,
    qos           smallint NOT NULL,
    payload       text,
    payload_bytes bytea,
    retain        boolean,
    properties    bytea,
    PRIMARY KEY (gateway, epoch, seq, received_us)
) {partitioning};
CREATE INDEX readings_device_time ON readings (device, time_us);
CREATE TABLE stored (
    gateway text COLLATE "C" NOT NULL, epoch bigint NOT NULL, seqs int8multirange NOT NULL
);
CREATE INDEX stored_source ON stored (gateway, epoch);
CREATE TABLE expired (LIKE stored);
CREATE INDEX expired_source ON expired (gateway, epoch);
CREATE TABLE cursors (
    stream_epoch bigint   NOT NULL,
    partition    smallint NOT NULL,
    position     bigint   NOT NULL,
    token        bigint   NOT NULL,
    PRIMARY KEY (stream_epoch, partition)
) WITH (fillfactor = 50);
CREATE TABLE corrections (
    gateway        text   COLLATE "C" NOT NULL,
    epoch          bigint NOT NULL,
    first_seq      bigint NOT NULL,
    last_seq       bigint NOT NULL,
    delta_us       bigint NOT NULL,
    uncertainty_us bigint NOT NULL,
    PRIMARY KEY (gateway, epoch, first_seq)
);
CREATE TABLE slices (name text PRIMARY KEY, from_us bigint NOT NULL, to_us bigint NOT NULL);
CREATE FUNCTION payload_json(payload text) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE AS
$$ BEGIN RETURN payload::jsonb; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$;
INSERT INTO meta VALUES ('version', 1), ('corrections', 0);
"""


async def make_schema(
    place: PostgresPlace, connection: Any, slice_us: int, *, again: bool = False
) -> bool:
    """Make or migrate the tables; harmless when they are there. Several nodes may do it at once.

    Args:
        place: Where; for messages.
        connection: On which no transaction is open.
        slice_us: Length of a hypertable's chunk, if it becomes one.
        again: They were there before: what has gone since is not made in silence.

    Returns:
        True when `readings` is a hypertable.

    Raises:
        NotReachable: the tables are of a newer version, altered, gone, or not safe from a crash.
    """
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKE_LOCK)
        present = await connection.fetchval("SELECT to_regclass($1)", f"{place.schema}.meta")
        if present is None and again:
            raise NotReachable(
                f"{place}: table meta of schema {place.schema} is gone, perhaps with all that was"
                " stored: put it back, or start this node anew to begin with empty tables"
            )
        timescale = await connection.fetchval(  # its schema, which our search path does not have
            "SELECT quote_ident(nspname) FROM pg_extension"
            " JOIN pg_namespace ON extnamespace = pg_namespace.oid WHERE extname = 'timescaledb'"
        )
        if present is None:
            # asked for: who may make tables in it need not be able to make one
            if await connection.fetchval("SELECT to_regnamespace($1)", place.schema) is None:
                await connection.execute(f"CREATE SCHEMA {place.schema}")
            partitioning = "" if timescale else "PARTITION BY RANGE (received_us)"
            await connection.execute(_TABLES.format(partitioning=partitioning))
            if timescale:
                await connection.execute(
                    f"SELECT {timescale}.create_hypertable('readings'::regclass, 'received_us',"
                    f" chunk_time_interval => {slice_us}::bigint, create_default_indexes => false)"
                )
        version = await connection.fetchval("SELECT value FROM meta WHERE key = 'version'")
        if version is None or version > VERSION:
            raise NotReachable(
                f"{place}: tables of version {version}, this program knows {VERSION}; "
                "use a newer tidegate"
            )
        row = await connection.fetchrow(
            "SELECT (SELECT relkind = 'p' FROM pg_class WHERE oid = 'readings'::regclass) AS plain,"
            " (SELECT string_agg(relname, ', ') FROM pg_class WHERE relpersistence <> 'p'"
            "  AND relkind IN ('r', 'p') AND relnamespace = $1::regnamespace) AS unlogged",
            place.schema,
        )
    if row["unlogged"]:
        raise NotReachable(
            f"{place}: {row['unlogged']}: unlogged, so a crash empties it; "
            "ALTER TABLE .. SET LOGGED"
        )
    await check_columns(place, connection)
    return not row["plain"]


async def check_columns(place: PostgresPlace, connection: Any) -> None:
    """Return when `readings` has the columns that rows are copied into, whatever else it has.

    Raises:
        NotReachable: somebody has altered it, so that what goes wrong is no fault of an entry.
    """
    rows = await connection.fetch(
        "SELECT attname, atttypid::regtype::text FROM pg_attribute"
        " WHERE attrelid = to_regclass('readings') AND attnum > 0 AND NOT attisdropped"
    )
    found = dict(map(tuple, rows))
    if not found:
        raise NotReachable(f"{place}: table readings of schema {place.schema} is gone: put it back")
    for name, wanted in _TYPES.items():
        if found.get(name) != wanted:
            said = f"is {found[name]}, has to be {wanted}" if name in found else "is missing"
            raise NotReachable(f"{place}: table readings was altered: column {name} {said}")


async def compact(connection: Any, table: str) -> None:
    """Make the rows of each source in `stored` or `expired` one; what others write now stays."""
    await connection.execute(
        f"WITH many AS (SELECT gateway, epoch FROM {table} GROUP BY 1, 2 HAVING count(*) > 1),"  # noqa: S608 - a constant of the program
        f" mine AS (SELECT t.ctid FROM {table} t JOIN many USING (gateway, epoch)"
        "  FOR UPDATE OF t SKIP LOCKED),"
        f" gone AS (DELETE FROM {table} WHERE ctid IN (SELECT ctid FROM mine) RETURNING *)"
        f" INSERT INTO {table} SELECT gateway, epoch, range_agg(seqs) FROM gone GROUP BY 1, 2"
    )


@dataclass(slots=True, frozen=True)
class _Slice:
    name: str
    from_us: int
    to_us: int  # exclusive


class Slices:
    """The partitions of `readings` by time.

    Args:
        slice_us: Length of one that is newly made; older ones keep theirs.
        hypertable: The extension makes them.
    """

    __slots__ = ("_hypertable", "_known", "_slice_us")

    def __init__(self, slice_us: int, *, hypertable: bool) -> None:
        self._slice_us = slice_us
        self._hypertable = hypertable
        self._known: list[_Slice] = []

    def forget(self) -> None:
        """Look again what there is: others drop slices too."""
        self._known.clear()

    async def ensure(self, connection: Any, first_us: int, last_us: int) -> None:
        """Make what rows received between two times need; no transaction may be open."""
        if self._hypertable:
            return
        at_us = first_us
        while at_us <= last_us:
            found = next((one for one in self._known if one.from_us <= at_us < one.to_us), None)
            if found is None:
                found = await self._make(connection, at_us)
                self._known.append(found)
            at_us = found.to_us

    async def _make(self, connection: Any, at_us: int) -> _Slice:
        """Make the slice for a time, unless it is there; slices never overlap."""
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKE_LOCK)
            near = await connection.fetchrow(
                "SELECT (SELECT max(to_us) FROM slices WHERE to_us <= $1) AS below,"
                " (SELECT min(from_us) FROM slices WHERE from_us > $1) AS above,"
                " s.* FROM (VALUES (1)) one LEFT JOIN slices s"
                " ON s.from_us <= $1 AND s.to_us > $1",
                at_us,
            )
            if near["name"] is not None:
                return _Slice(near["name"], near["from_us"], near["to_us"])
            from_us = at_us // self._slice_us * self._slice_us
            to_us = from_us + self._slice_us
            if near["below"] is not None:
                from_us = max(from_us, near["below"])
            if near["above"] is not None:
                to_us = min(to_us, near["above"])
            name = f"readings_{from_us}".replace("-", "m")
            # attached, not created as a partition: that would wait for every reader of the table
            await connection.execute(
                f"CREATE TABLE {name} (LIKE readings INCLUDING ALL);"
                f"ALTER TABLE {name} ADD CONSTRAINT {name}_span"
                f" CHECK (received_us >= {from_us} AND received_us < {to_us});"
                f"ALTER TABLE readings ATTACH PARTITION {name}"
                f" FOR VALUES FROM ({from_us}) TO ({to_us});"
                f"ALTER TABLE {name} DROP CONSTRAINT {name}_span"
            )
            await connection.execute("INSERT INTO slices VALUES ($1, $2, $3)", name, from_us, to_us)
            return _Slice(name, from_us, to_us)

    async def oldest(self, connection: Any) -> tuple[str, int] | None:
        """Return the name and the end (exclusive) of the oldest slice, None when there is none."""
        if self._hypertable:
            row = await connection.fetchrow(
                "SELECT format('%I.%I', chunk_schema, chunk_name) AS name,"
                " range_end_integer AS to_us FROM timescaledb_information.chunks"
                " WHERE hypertable_schema = current_schema() AND hypertable_name = 'readings'"
                " ORDER BY range_end_integer LIMIT 1"
            )
        else:
            row = await connection.fetchrow("SELECT name, to_us FROM slices ORDER BY to_us LIMIT 1")
        return None if row is None else (row["name"], row["to_us"])

    async def drop(self, connection: Any, name: str) -> int:
        """Drop a slice, its ranges kept in `expired`; return how many rows it had."""
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _MAKE_LOCK)
            await connection.execute("SET LOCAL lock_timeout = '10s'")
            if await connection.fetchval("SELECT to_regclass($1)", name) is None:
                return 0  # by another node, a moment ago
            await connection.execute(f"LOCK TABLE {name} IN SHARE ROW EXCLUSIVE MODE")
            rows: int = await connection.fetchval(
                f"WITH gone AS (SELECT gateway, epoch, count(*) AS n,"  # noqa: S608 - our own names
                "  range_agg(int8range(seq, seq, '[]')) AS seqs"
                f"  FROM {name} GROUP BY 1, 2),"
                " kept AS (INSERT INTO expired SELECT gateway, epoch, seqs FROM gone)"
                " SELECT coalesce(sum(n), 0)::bigint FROM gone"
            )
            await connection.execute(f"DROP TABLE {name}")
            await connection.execute("DELETE FROM slices WHERE name = $1", name)
        self.forget()
        return rows
