"""A whole site on loopback: a gateway and a cloud node, each a real process that can be killed.

Between them may stand a `tests.kit.proxy.Proxy`. What is checked afterwards is read straight from
the files with plain sqlite3, so that none of our own code judges itself.
"""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.kit.processes import Process, free_ports, get_json, wait_for

__all__ = ["Site"]

_EDGE = """\
data = "{data}"
gateway = "{gateway}"
host = "127.0.0.1"
port = {port}
{devices}
[http]
port = {http}
[uplink]
endpoints = ["mqtt://127.0.0.1:{uplink}"]
backoff_min_s = 0.05
backoff_max_s = 0.3
ack_timeout_s = 5
{uplink_more}
[journal]
disk_reserve_bytes = 0
{journal_more}
"""

_CLOUD = """\
data = "{data}"
host = "127.0.0.1"
port = {port}
[http]
port = {http}
[stream]
disk_reserve_bytes = 0
{more}
"""


class Site:
    """One gateway and one cloud node under `folder`.

    Attributes:
        edge: The gateway's process; MQTT on `edge_port`, HTTP on `edge_http`.
        cloud: The cloud node's; MQTT on `cloud_port`, HTTP on `cloud_http`.
    """

    def __init__(
        self,
        folder: Path,
        *,
        devices: tuple[str, ...] = (),
        uplink: str = "",
        journal: str = "",
        cloud: str = "",
    ) -> None:
        self.folder = folder
        self.gateway = "gw-1"
        self.edge_port, self.edge_http, self.cloud_port, self.cloud_http = free_ports(4)
        self._edge_keys = {
            "devices": "devices = [" + ", ".join(f'"{one}"' for one in devices) + "]"
            if devices
            else "",
            "uplink_more": uplink,
            "journal_more": journal,
        }
        self.route_uplink(self.cloud_port)
        self._write(
            "cloud.toml",
            _CLOUD.format(data=folder, port=self.cloud_port, http=self.cloud_http, more=cloud),
        )
        self.edge = Process(
            ["edge", "-c", str(folder / "edge.toml")], folder / "edge.log", port=self.edge_port
        )
        self.cloud = Process(
            ["cloud", "-c", str(folder / "cloud.toml")], folder / "cloud.log", port=self.cloud_port
        )

    def route_uplink(self, port: int) -> None:
        """Let the gateway's uplink dial `port` (a proxy's, say) from its next start."""
        self._write_edge("edge", self.folder, self.edge_port, self.edge_http, port)

    def clone(self, name: str) -> Process:
        """Copy the gateway's folder as it lies there; return a gateway on the copy, not started."""
        folder = self.folder / name
        kept_out = shutil.ignore_patterns("*.lock", "process.json")
        shutil.copytree(self.folder / "edge", folder / "edge", ignore=kept_out)
        port, http = free_ports(2)
        self._write_edge(name, folder, port, http, self.cloud_port)
        arguments = ["edge", "-c", str(self.folder / f"{name}.toml")]
        return Process(arguments, self.folder / f"{name}.log", port=port)

    def _write_edge(self, name: str, folder: Path, port: int, http: int, uplink: int) -> None:
        self._write(
            f"{name}.toml",
            _EDGE.format(
                data=folder,
                gateway=self.gateway,
                port=port,
                http=http,
                uplink=uplink,
                **self._edge_keys,
            ),
        )

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)

    @property
    def storage(self) -> Path:
        """The storage sink's database."""
        return self.folder / "cloud" / "storage.db"

    def rows(self, columns: str, *, where: str = "1") -> list[tuple[object, ...]]:
        """Return rows of `readings` in the order of their identity."""
        uri = f"file:{self.storage}?mode=ro"
        connection = sqlite3.connect(uri, uri=True, timeout=10)
        try:
            return connection.execute(
                f"SELECT {columns} FROM readings WHERE {where} ORDER BY gateway, epoch, seq"
            ).fetchall()
        finally:
            connection.close()

    def count(self) -> int:
        """Return how many readings are stored; 0 while there is no database."""
        try:
            return int(str(self.rows("count(*)")[0][0]))
        except sqlite3.OperationalError:
            return 0

    def wait_stored(self, count: int, *, timeout_s: float = 60.0) -> None:
        """Return once at least `count` readings are stored; `timeout_s` may pass without one."""
        wait_for(
            f"{count} readings stored",
            lambda: self.count() >= count,
            timeout_s=timeout_s,
            progress=self.count,
        )

    def wait_drained(self, *, timeout_s: float = 60.0) -> None:
        """Return once the gateway has nothing left that the cloud has not acknowledged.

        Args:
            timeout_s: So long may pass without fewer waiting: the rest is the machine's affair.
        """
        least = float("inf")

        def drained() -> bool:
            nonlocal least
            status = get_json(f"http://127.0.0.1:{self.edge_http}/status")
            if status:
                least = min(least, status["uplink"]["backlog_readings"])
            return least == 0

        wait_for("backlog drained", drained, timeout_s=timeout_s, progress=lambda: least)

    def audit(self) -> subprocess.CompletedProcess[str]:
        """Run `tidegate audit` on the site's files."""
        return subprocess.run(
            [sys.executable, "-m", "tidegate", "audit", "--data", str(self.folder)],
            capture_output=True,
            text=True,
            timeout=300,  # a hang; how fast it reads is the machine's affair
            check=False,
        )

    def up(self) -> Self:
        """Start the cloud node, then the gateway."""
        self.cloud.start()
        self.edge.start()
        return self

    def processes(self) -> Iterator[Process]:
        """The site's processes, the gateway first."""
        yield self.edge
        yield self.cloud

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self.processes():
            process.__exit__()
