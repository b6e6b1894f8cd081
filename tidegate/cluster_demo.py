"""`tidegate cluster demo`: a whole cluster on one machine, to be broken by hand.

Three NATS servers, three cloud nodes that share their streams, a gateway for each node with all
three as endpoints, and simulated devices at the gateways. Every process is told with its id, so
that any of them can be killed; one that ended is started again after a few seconds. Ctrl-C ends it
in the order in which readings go: the devices; then all waits until every gateway is empty and the
sinks have everything; the ledger is balanced; gateways, nodes and servers end. A second Ctrl-C ends
everything at once.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cloud.cluster.applying import apply
from cloud.cluster.connection import ClusterError, Connection
from cloud.config import StreamConfig
from cloud.stream.opening import layout_of
from runtime.service import StartError, stop_on_signals
from tidegate.nats_servers import NatsServer, NatsServers, free_ports
from tidegate.node_api import ask_service

__all__ = ["ClusterProcesses", "TidegateProcess", "add_demo_arguments", "run_demo"]

_RESTART_S = 3.0
_REPORT_S = 5.0
_READY_S = 180.0
_SETTLE_S = 90


class TidegateProcess:
    """A `tidegate` command of the demonstration in a process of its own.

    Attributes:
        name: What it is, for people.
        log: Where it writes what it says.
    """

    def __init__(self, name: str, arguments: Sequence[str], folder: Path) -> None:
        self.name = name
        self.log = folder / f"{name}.log"
        self._arguments = list(arguments)
        self._child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, again on the same data."""
        with self.log.open("ab") as output:
            self._child = subprocess.Popen(  # noqa: S603 - our own command
                [sys.executable, "-m", "tidegate", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end it in order
            )

    @property
    def pid(self) -> int:
        """The process id of the present run; 0 before the first."""
        return self._child.pid if self._child is not None else 0

    @property
    def running(self) -> bool:
        """True while it lives."""
        return self._child is not None and self._child.poll() is None

    def kill(self) -> None:
        """SIGKILL it."""
        if self._child is not None and self._child.poll() is None:
            self._child.kill()
            self._child.wait()

    def ask_to_stop(self) -> None:
        """SIGTERM it."""
        if self.running and self._child is not None:
            self._child.send_signal(signal.SIGTERM)

    def wait(self, timeout_s: float = 30.0) -> None:
        """Return when it has ended; it is killed when that takes too long."""
        if self._child is None:
            return
        try:
            self._child.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()


class ClusterProcesses:
    """Servers, nodes and gateways of one cluster on this machine.

    Args:
        folder: All state.
        nodes: How many cloud nodes.
        gateways: How many gateways; each has all nodes as endpoints, another one first.
        cluster: The cluster's name.
        node_flags: More flags for every node.
        gateway_flags: More flags for every gateway.

    Attributes:
        servers: The NATS servers.
        nodes: The cloud nodes.
        gateways: The gateways.
    """

    def __init__(
        self,
        folder: Path,
        *,
        nodes: int = 3,
        gateways: int = 3,
        cluster: str = "demo",
        node_flags: Sequence[str] = (),
        gateway_flags: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        self.layout = layout_of(StreamConfig(cluster=cluster))  # `tidegate cluster plan` has it so
        # a limit, nothing that is taken
        disk_bytes_max = sum(int(spec.config["max_bytes"]) for spec in self.layout.specs())
        self.servers = NatsServers(folder / "nats", 3, disk_bytes_max=disk_bytes_max)
        ports = free_ports(2 * nodes + 2 * gateways)
        self.mqtt_ports = ports[:nodes]
        self.http_ports = ports[nodes : 2 * nodes]
        self.edge_ports = ports[2 * nodes : 2 * nodes + gateways]
        self.edge_http_ports = ports[2 * nodes + gateways :]
        self.nodes = [
            TidegateProcess(
                f"node-{n}",
                [
                    "cloud", "--data", str(folder / f"node-{n}"), "--node-id", f"node-{n}",
                    "--port", str(self.mqtt_ports[n]), "--http-port", str(self.http_ports[n]),
                    "--stream", self.servers.url, "--stream-cluster", cluster,
                    "--stream-monitors", ",".join(self.servers.monitors),
                    *node_flags,
                ],
                folder,
            )
            for n in range(nodes)
        ]  # fmt: skip
        self.gateways = [
            TidegateProcess(
                f"gateway-{n}",
                [
                    "edge", "--data", str(folder / f"gateway-{n}"), "--gateway", f"gateway-{n}",
                    "--port", str(self.edge_ports[n]), "--http-port", str(self.edge_http_ports[n]),
                    "--uplink-endpoints", ",".join(self._endpoints(n)),
                    *gateway_flags,
                ],
                folder,
            )
            for n in range(gateways)
        ]  # fmt: skip

    def _endpoints(self, first: int) -> list[str]:
        first %= len(self.mqtt_ports)
        ports = self.mqtt_ports[first:] + self.mqtt_ports[:first]
        return [f"mqtt://127.0.0.1:{port}" for port in ports]

    @property
    def processes(self) -> list[NatsServer | TidegateProcess]:
        """Everything that may be killed."""
        return [*self.servers.servers, *self.nodes, *self.gateways]

    @property
    def urls(self) -> list[str]:
        """The nodes' HTTP addresses."""
        return [f"http://127.0.0.1:{port}" for port in self.http_ports]

    async def start(self) -> None:
        """Start servers, make the layout, start nodes and gateways, wait until nodes are ready.

        Raises:
            StartError, ClusterError: something did not come up.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        await asyncio.to_thread(self.servers.start)
        await self.apply()
        for process in (*self.nodes, *self.gateways):
            process.start()
        await asyncio.gather(*(self.ready(n) for n in range(len(self.nodes))))

    async def drained(self, *, timeout_s: float) -> None:
        """Return once no gateway has readings that the cloud has not acknowledged.

        Raises:
            StartError: one still has some, in that time.
        """
        deadline = time.monotonic() + timeout_s
        for gateway, port in zip(self.gateways, self.edge_http_ports, strict=True):
            waiting = -1
            while waiting:
                if time.monotonic() > deadline:
                    left = f"{waiting} readings" if waiting > 0 else "no answer"
                    raise StartError(f"{gateway.name}: {left} after {timeout_s:g} s")
                await asyncio.sleep(0.1)
                with contextlib.suppress(StartError):
                    waiting = await asyncio.to_thread(_waiting_at, f"http://127.0.0.1:{port}")

    async def apply(self) -> None:
        """Make the layout."""
        connection = await Connection.open(self.servers.url, name="demo")
        try:
            await apply(connection, self.layout)
        finally:
            await connection.close()

    async def ready(self, number: int) -> None:
        """Return when a node takes gateways.

        Raises:
            StartError: it does not, in three minutes, or has ended.
        """
        node = self.nodes[number]
        deadline = time.monotonic() + _READY_S
        while time.monotonic() < deadline:
            if not node.running:
                said_last = node.log.read_text("utf-8", "replace").splitlines()[-1:]
                raise StartError(f"{node.name} has ended: {''.join(said_last)}")
            with contextlib.suppress(StartError):
                said = await asyncio.to_thread(
                    partial(ask_service, self.urls[number], "readyz", also=503)
                )
                if said.get("ok"):
                    return
            await asyncio.sleep(0.1)
        raise StartError(f"{node.name} is not ready in {_READY_S:g} s; see {node.log}")

    def stop(self) -> None:
        """End gateways, then nodes, then servers, in order; harmless when not started."""
        for group in (self.gateways, self.nodes):
            for process in group:
                process.ask_to_stop()
            for process in group:
                process.wait()
        self.servers.kill()

    def kill(self) -> None:
        """End everything at once."""
        for process in (*self.gateways, *self.nodes):
            process.kill()
        self.servers.kill()


def add_demo_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the demonstration's flags."""
    parser.add_argument("--devices", type=int, default=60, metavar="N", help="devices [60]")
    parser.add_argument(
        "--rate", type=float, default=600.0, metavar="R", help="readings a second of all [600]"
    )
    parser.add_argument(
        "--duration", type=float, default=0.0, metavar="S", help="end by itself [at Ctrl-C]"
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="keep all state here [a folder that is removed]"
    )


def run_demo(options: argparse.Namespace) -> int:
    """Run the demonstration; 0 when everything balances at the end."""
    if options.data is not None:
        return asyncio.run(_Demo(options, options.data.absolute()).run())
    with tempfile.TemporaryDirectory(prefix="tidegate-cluster-") as folder:
        return asyncio.run(_Demo(options, Path(folder)).run())


class _Demo:
    """One run."""

    def __init__(self, options: argparse.Namespace, folder: Path) -> None:
        self._options = options
        self._cluster = ClusterProcesses(folder)
        self._sims: list[TidegateProcess] = []
        self._stop = asyncio.Event()

    async def run(self) -> int:
        self._stop = stop_on_signals()
        cluster = self._cluster
        try:
            try:
                await cluster.start()
            except (ClusterError, RuntimeError, FileNotFoundError) as error:
                raise StartError(str(error)) from None
            self._start_devices()
            self._explain()
            await self._first_readings()
            await self._watch()
            return await self._finish()
        finally:
            for sim in self._sims:
                sim.kill()
            await asyncio.to_thread(cluster.stop)

    def _start_devices(self) -> None:
        count = len(self._cluster.gateways)
        for n, port in enumerate(self._cluster.edge_ports):
            sim = TidegateProcess(
                f"devices-{n}",
                [
                    "sim", "--broker", f"mqtt://127.0.0.1:{port}",
                    "--devices", str(max(1, self._options.devices // count)),
                    "--rate", str(self._options.rate / count), "--seed", str(n + 1),
                    "--client-prefix", f"d{n}-",
                    "--duration", "0", "--quiet",
                ],
                self._cluster.folder,
            )  # fmt: skip
            sim.start()
            self._sims.append(sim)

    async def _first_readings(self) -> None:
        """Return once each gateway has some: the time that was asked for begins then."""
        waiting = list(self._cluster.edge_http_ports)
        deadline = time.monotonic() + _SETTLE_S
        while waiting and not self._stop.is_set() and time.monotonic() < deadline:
            with contextlib.suppress(StartError):
                said = await asyncio.to_thread(
                    ask_service, f"http://127.0.0.1:{waiting[0]}", "status"
                )
                if said["journal"]["last_seq"]:
                    del waiting[0]
                    continue
            await asyncio.sleep(0.1)

    def _explain(self) -> None:
        cluster = self._cluster
        print("Look:")
        for node, url in zip(cluster.nodes, cluster.urls, strict=True):
            print(f"  {node.name:10} {url}   metrics {url}/metrics")
        print("Kill any of them; it is started again after a few seconds:")
        for server in cluster.servers.servers:
            print(f"  kill -9 {server.pid:<8} NATS server {server.name}")
        for process in (*cluster.nodes, *cluster.gateways):
            print(f"  kill -9 {process.pid:<8} {process.name}")
        flags = f"--stream {cluster.servers.url} --stream-cluster {cluster.layout.cluster}"
        print("Ask, or have a node hand its work over:")
        print(f"  tidegate status --partitions --url {cluster.urls[0]}")
        print(f"  tidegate cluster plan {flags}")
        print(f"  tidegate cluster drain node-1 {flags}")
        print(f"Logs and data: {cluster.folder}")
        print("Ctrl-C ends it with the balance.", flush=True)

    async def _watch(self) -> None:
        """Start what ended again and say how things stand, until it is time to stop."""
        began = time.monotonic()
        down: dict[str, float] = {}
        report_at = began + _REPORT_S
        limit = self._options.duration or float("inf")
        while not self._stop.is_set() and time.monotonic() - began < limit:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.5):
                    await self._stop.wait()
            now = time.monotonic()
            cluster = self._cluster
            for process in cluster.processes:
                if process.running:
                    continue
                if process.name not in down:
                    down[process.name] = now
                    print(f"{process.name} ended", flush=True)
                elif now - down[process.name] >= _RESTART_S:
                    del down[process.name]
                    _start_again(process)
                    print(f"{process.name} started again as {process.pid}", flush=True)
            if now >= report_at:
                report_at = now + _REPORT_S
                await self._report(now - began)

    async def _report(self, at_s: float) -> None:
        parts = []
        for node, url in zip(self._cluster.nodes, self._cluster.urls, strict=True):
            try:
                status = await asyncio.to_thread(ask_service, url, "status")
                parts.append(f"{node.name} took {_taken(status)}")
            except StartError:
                parts.append(f"{node.name} silent")
        print(f"{at_s:5.0f} s  " + ", ".join(parts), flush=True)

    async def _finish(self) -> int:
        """Stop the devices, wait until nothing is under way, and balance."""
        print("Stopping the devices; waiting until nothing is under way.", flush=True)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end_at_once)
        for sim in self._sims:
            sim.ask_to_stop()
        for sim in self._sims:
            await asyncio.to_thread(sim.wait)
        command = [sys.executable, "-m", "tidegate", "audit", "--url", self._cluster.urls[0],
                   "--settled", str(_SETTLE_S)]  # fmt: skip
        for process in self._cluster.processes:
            if not process.running:
                _start_again(process)
        for index in range(len(self._cluster.nodes)):
            await self._cluster.ready(index)
        await self._cluster.drained(timeout_s=_SETTLE_S)
        done = await asyncio.to_thread(
            subprocess.run, command, capture_output=True, text=True, check=False, env=os.environ
        )
        lines = (done.stdout + done.stderr).strip().splitlines()
        print("\n".join(line for line in lines if not line.startswith("  ")), flush=True)
        return done.returncode

    def _end_at_once(self) -> None:
        """Leave nothing behind: asked twice, the operator will not wait."""
        for sim in self._sims:
            sim.kill()
        self._cluster.kill()
        if self._options.data is None:
            shutil.rmtree(self._cluster.folder, ignore_errors=True)
        sys.stderr.write("tidegate: stopped at once\n")
        os._exit(130)


def _waiting_at(url: str) -> int:
    """Return how many readings a gateway has that the cloud has not acknowledged."""
    said = ask_service(url, "status")
    return int(said["uplink"]["backlog_readings"])


def _start_again(process: NatsServer | TidegateProcess) -> None:
    if isinstance(process, NatsServer):
        process.start(wait=False)
    else:
        process.start()


def _taken(status: Any) -> int:
    return int(status.get("readings_taken", 0)) if isinstance(status, dict) else 0
