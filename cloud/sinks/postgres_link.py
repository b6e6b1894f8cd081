"""Connections to PostgreSQL: opened with every check, and what their errors mean.

Invariants: a connection handed out is of a server that syncs what it commits; nothing shown or
logged contains a password; every wait is bounded.

Addresses are `postgresql://[user[:password]@]host[:port][,host[:port]...]/database`; of several
servers the one that is the primary is used. A password is better kept in PGPASSWORD or in a
password file (PGPASSFILE), where asyncpg looks by itself.
"""

from __future__ import annotations

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import asyncpg

from cloud.database import DatabaseError

__all__ = [
    "LINK_ERRORS",
    "NotReachable",
    "PostgresPlace",
    "blames_entry",
    "connect",
    "copy_rows",
    "translated",
]

_CONNECT_TIMEOUT_S = 10.0
_COMMAND_TIMEOUT_S = 120.0
# a machine that is gone without a word is found out in 8 s, by silence or by what it does not take
_LINE_OPTIONS = {
    "TCP_KEEPIDLE": 2, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3, "TCP_USER_TIMEOUT": 8_000,
}  # fmt: skip
_PRIMARY = "primary"
_NO_POOLER = "a pooler in between drops settings: give storage.url the server's own address"
_BROKE = "the line broke amid a COPY"
_VERSION_MIN = 150_000  # range_agg over multiranges
_SCHEMA_NAME = re.compile(r"[a-z_][a-z0-9_]{0,62}")
# classes of SQLSTATE that speak of values: data, program limits (a key too long); integrity is
# that of constraints which somebody has added: what ours ask for is looked up beforehand
_BLAMED_CLASSES = ("22", "54")
# the internal one: a server that was killed amid an answer leaves the driver's state confused
LINK_ERRORS = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError,
               TimeoutError, asyncio.IncompleteReadError)  # fmt: skip


class NotReachable(DatabaseError):  # noqa: N818 - a state of the server
    """The database cannot be used now; `str()` is one line without secrets."""


@dataclass(slots=True, frozen=True)
class PostgresPlace:
    """Where the tables are.

    Raises:
        DatabaseError: the URL or the schema's name is malformed.
    """

    url: str
    schema: str = "tidegate"

    def __post_init__(self) -> None:
        try:
            parts = urlsplit(self.url)
            valid = parts.scheme in ("postgresql", "postgres") and len(parts.path) > 1
            self.servers()
        except ValueError:
            valid = False
        if not valid:
            raise DatabaseError(
                "storage.url: expected postgresql://[user@]host[:port][,host[:port]...]/database"
            )
        if not _SCHEMA_NAME.fullmatch(self.schema):
            raise DatabaseError(
                f"storage.schema: '{self.schema}': lower-case letters, digits and _ only"
            )

    def __str__(self) -> str:
        """Return what may be shown: host, port, database, schema."""
        hosts = ",".join(f"{host}:{port or 5432}" for host, port in self.servers())
        return f"postgresql://{hosts}{urlsplit(self.url).path}"

    def servers(self) -> list[tuple[str, int | None]]:
        """Return host and port of each server; None: the usual one.

        Raises:
            ValueError: a port is none.
        """
        places = urlsplit(self.url).netloc.rpartition("@")[2].split(",")
        parts = [urlsplit(f"//{place}") for place in places]
        return [(one.hostname or "localhost", one.port) for one in parts]

    def __repr__(self) -> str:
        return f"PostgresPlace({self}, schema={self.schema!r})"


async def connect(place: PostgresPlace, purpose: str, *, read_only: bool = False) -> Any:
    """Open a connection whose search path is the schema.

    Args:
        place: Where.
        purpose: Shown to the database's operator as application name.
        read_only: Without the checks of one that writes.

    Raises:
        NotReachable: nobody answers, or the server says no.
    """
    settings = {
        "application_name": f"tidegate {purpose}",
        "search_path": place.schema,
        # of a node that was stopped short, or hangs, nothing is held for long
        "idle_in_transaction_session_timeout": "10000",
        # ours (`_COMMAND_TIMEOUT_S`): what somebody has set for people would end large writes
        "statement_timeout": "0",
        "lock_timeout": "0",
        "idle_session_timeout": "0",
        "tcp_keepalives_idle": "10",
        "tcp_keepalives_interval": "5",
        "tcp_keepalives_count": "3",
    }
    if read_only:
        settings["default_transaction_read_only"] = "on"
    try:
        connection = await _dialled(
            place, command_timeout=_COMMAND_TIMEOUT_S, server_settings=settings
        )
    except (*LINK_ERRORS, ValueError) as error:
        raise translated(place, error) from None
    _watch_line(connection)
    try:
        await _check_settings(place, connection)
        if not read_only:
            await _check(place, connection)
    except BaseException:
        connection.terminate()
        raise
    return connection


async def _dialled(place: PostgresPlace, **options: Any) -> Any:
    """Return a connection to the server, of several to the first that is the primary."""
    servers = place.servers()
    if len(servers) == 1:
        return await asyncpg.connect(place.url, timeout=_CONNECT_TIMEOUT_S, **options)
    failure: Exception | None = None
    for host, port in servers:
        try:
            # asyncpg has one time for all: a first one whose machine is gone would use it up
            return await asyncpg.connect(
                place.url, host=host, port=port, target_session_attrs=_PRIMARY,
                timeout=_CONNECT_TIMEOUT_S / len(servers), **options,
            )  # fmt: skip
        except asyncpg.TargetServerAttributeNotMatched as error:
            failure = failure or error
        except (OSError, asyncpg.CannotConnectNowError) as error:
            failure = error
    assert failure is not None
    raise failure


def _watch_line(connection: Any) -> None:
    """Have the system find out when the other end's machine is gone; asyncpg has no way to."""
    line = connection._transport.get_extra_info("socket")  # noqa: SLF001
    if line is None or line.family not in (socket.AF_INET, socket.AF_INET6):
        return
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _LINE_OPTIONS.items():
        if hasattr(socket, name):  # not every system has all of them
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _check_settings(place: PostgresPlace, connection: Any) -> None:
    """Refuse a connection without what it asked for: tables would be made somewhere else."""
    try:
        found = await connection.fetchval("SELECT current_setting('search_path')")
    except LINK_ERRORS as error:
        raise translated(place, error) from None
    if found != place.schema:
        raise NotReachable(f"{place}: search_path is {found}, not {place.schema}; {_NO_POOLER}")


async def _check(place: PostgresPlace, connection: Any) -> None:
    """Refuse a server that would lose what it committed, or could not hold what is written."""
    try:
        row = await connection.fetchrow(
            "SELECT current_setting('server_version_num')::int AS version,"
            " current_setting('server_encoding') AS encoding,"
            " current_setting('synchronous_commit') AS synchronous_commit,"
            " current_setting('fsync') AS fsync,"
            " current_setting('full_page_writes') AS full_page_writes"
        )
    except LINK_ERRORS as error:
        raise translated(place, error) from None
    if row["version"] < _VERSION_MIN:
        raise NotReachable(f"{place}: PostgreSQL 15 or newer is needed")
    if row["encoding"] != "UTF8":
        raise NotReachable(
            f"{place}: its encoding is {row['encoding']}; make a database with ENCODING 'UTF8'"
        )
    for name in ("synchronous_commit", "fsync", "full_page_writes"):
        if row[name] == "off":
            raise NotReachable(
                f"{place}: {name} is off, so committed rows can be lost; switch it on"
            )


async def copy_rows(
    connection: Any, table: str, records: AsyncIterator[Any], columns: Sequence[str]
) -> int:
    """Copy rows into a table; return how many.

    asyncpg waits without end for room in its buffer once a server takes no more: neither a line
    that breaks then nor its own time limit wakes it.

    Raises:
        TimeoutError: it took too long.
        asyncpg.ConnectionDoesNotExistError: the line broke while it waited.
        Exception: whatever else the driver raises.
    """
    lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def line_broke(_connection: Any) -> None:
        if not lost.done():
            lost.set_result(None)

    connection.add_termination_listener(line_broke)
    copying: asyncio.Task[str] = asyncio.create_task(
        connection.copy_records_to_table(table, records=records, columns=columns)
    )
    try:
        await asyncio.wait(
            (copying, lost), timeout=_COMMAND_TIMEOUT_S, return_when=asyncio.FIRST_COMPLETED
        )
        if copying.done():
            return int(copying.result().rpartition(" ")[2])
        if lost.done():
            raise asyncpg.ConnectionDoesNotExistError(_BROKE)
        raise TimeoutError
    except RuntimeError:  # uvloop: written to a line that has just broken
        if not connection.is_closed():
            raise
        raise asyncpg.ConnectionDoesNotExistError(_BROKE) from None
    finally:
        connection.remove_termination_listener(line_broke)
        copying.cancel()
        await asyncio.gather(copying, return_exceptions=True)


def blames_entry(error: Exception) -> bool:
    """Return True when an error speaks of the values written, not of the server."""
    if isinstance(error, asyncpg.PostgresError):
        return str(error.sqlstate or "")[:2] in _BLAMED_CLASSES
    # raised by the driver while it encodes: also an InterfaceError
    return isinstance(error, (ValueError, OverflowError, TypeError))


def translated(place: PostgresPlace, error: Exception) -> NotReachable:
    """Return an error of driver or server as one line."""
    if isinstance(error, TimeoutError):
        text = "no answer in time"
    elif isinstance(error, OSError):
        text = error.strerror or str(error) or type(error).__name__
        if isinstance(error, ConnectionRefusedError):
            text = "nobody listens there"
    else:
        text = str(error) or type(error).__name__
    if isinstance(error, asyncpg.InsufficientPrivilegeError):
        text = f"{text.splitlines()[0]}; the role has to own schema {place.schema}, or may make it"
    elif "unsupported startup parameter" in text:
        text = f"{text.splitlines()[0]}; {_NO_POOLER}"
    return NotReachable(f"{place}: {text.splitlines()[0]}")
