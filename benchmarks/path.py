"""The whole way: readings a second from device to row, with uplink, cloud and storage running.

A gateway and a cloud node, each a process as an operator starts it, on one machine with the load;
nothing is turned off. The load publishes a fixed number of QoS 1 readings as fast as the window
allows; the clock stops when the last of them is a row. Reported beside the rate: how much faster
the gateway acknowledged, and the share of a core each process took, so that a reader sees what
binds. With `--profile` py-spy (if it is installed) tells where gateway and node spend their time.

    python -m benchmarks.path --readings 300000 --runs 5
"""

from __future__ import annotations

import argparse
import json
import shutil
import socket
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.load import LoadSpec, spawn_load
from benchmarks.wire import cpu_s_of
from tidegate.nats_servers import free_ports

__all__ = ["main"]

_ROOT = Path(__file__).parent.parent


@dataclass(slots=True, frozen=True)
class PathReport:
    """One run."""

    readings: int
    acknowledged_per_s: float  # by the gateway, journal committed
    stored_per_s: float  # rows, from the first publish to the last row
    gateway_cores: float
    cloud_cores: float


@contextmanager
def _tidegate(arguments: list[str], port: int) -> Iterator[int]:
    """Run a command until the block ends; yields its process id once `port` answers."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tidegate", *arguments],
        cwd=_ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            if process.poll() is not None:
                raise RuntimeError(f"tidegate {arguments[0]} ended with {process.returncode}")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            if time.monotonic() > deadline:
                raise RuntimeError(f"tidegate {arguments[0]} does not listen")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait(30)


def _rows(storage: Path) -> int:
    """Return the highest rowid, which is the count: rows are only added here."""
    try:
        with sqlite3.connect(f"file:{storage}?mode=ro", uri=True) as connection:
            return int(connection.execute("SELECT max(rowid) FROM readings").fetchone()[0] or 0)
    except sqlite3.OperationalError:
        return 0


def _run(options: argparse.Namespace, folder: Path, *, profile: bool) -> PathReport:
    edge_port, edge_http, cloud_port, cloud_http = free_ports(4)
    cloud = ["cloud", "--data", str(folder), "--port", str(cloud_port)]
    edge = ["edge", "--data", str(folder), "--host", "127.0.0.1", "--port", str(edge_port)]
    edge += ["--http-port", str(edge_http), "--gateway", "bench"]
    edge += ["--uplink-endpoints", f"mqtt://127.0.0.1:{cloud_port}"]
    storage = folder / "cloud" / "storage.db"
    with (
        _tidegate([*cloud, "--http-port", str(cloud_http)], cloud_port) as cloud_pid,
        _tidegate(edge, edge_port) as edge_pid,
    ):
        spec = LoadSpec(
            port=edge_port,
            connections=options.connections,
            window=options.window,
            payload_bytes=options.payload_bytes,
            count=options.readings,
        )
        spies = [_spy(pid, folder / name) for name, pid in _named(edge_pid, cloud_pid, profile)]
        cpu = cpu_s_of(edge_pid), cpu_s_of(cloud_pid)
        began = time.monotonic()
        load = spawn_load(spec)
        while _rows(storage) < load.messages:
            if time.monotonic() - began > 600:
                raise RuntimeError(f"only {_rows(storage)} of {load.messages} readings stored")
            time.sleep(0.02)
        seconds = time.monotonic() - began
        cpu = cpu_s_of(edge_pid) - cpu[0], cpu_s_of(cloud_pid) - cpu[1]
        for spy in spies:
            spy.wait(60)
    return PathReport(
        readings=load.messages,
        acknowledged_per_s=load.messages_per_s,
        stored_per_s=load.messages / seconds,
        gateway_cores=cpu[0] / seconds,
        cloud_cores=cpu[1] / seconds,
    )


def _named(edge_pid: int, cloud_pid: int, profile: bool) -> list[tuple[str, int]]:
    return [("gateway.txt", edge_pid), ("cloud.txt", cloud_pid)] if profile else []


def _spy(pid: int, path: Path) -> subprocess.Popen[bytes]:
    program = shutil.which("py-spy", path=str(Path(sys.executable).parent))
    if program is None:
        raise RuntimeError("--profile needs py-spy: pip install py-spy")
    return subprocess.Popen(
        [
            program,
            "record",
            "-p",
            str(pid),
            "-d",
            "3",
            "-f",
            "raw",
            "-o",
            str(path),
            "-r",
            "200",
            "--gil",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _shares(path: Path, most: int = 18) -> list[str]:
    """Return the functions that hold the GIL most, from py-spy's raw stacks."""
    own: dict[str, int] = {}
    for line in path.read_text().splitlines():
        stack, _, count = line.rpartition(" ")
        leaf = stack.rpartition(";")[2]
        own[leaf] = own.get(leaf, 0) + int(count)
    total = sum(own.values()) or 1
    ranked = sorted(own.items(), key=lambda item: -item[1])[:most]
    return [f"{count / total:6.1%}  {name}" for name, count in ranked]


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--readings", type=int, default=300_000)
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--connections", type=int, default=50)
    parser.add_argument("--window", type=int, default=20)
    parser.add_argument("--payload-bytes", type=int, default=100)
    parser.add_argument("--profile", action="store_true", help="one more run under py-spy")
    options = parser.parse_args()
    reports = []
    for _ in range(options.runs):
        with tempfile.TemporaryDirectory() as name:
            reports.append(_run(options, Path(name), profile=False))
        print(json.dumps(asdict(reports[-1])), flush=True)
    for key in asdict(reports[0]):
        values = [asdict(report)[key] for report in reports]
        print(f"median {key:24} {statistics.median(values):,.2f}")
    if options.profile:
        with tempfile.TemporaryDirectory() as name:
            _run(options, Path(name), profile=True)
            for part in ("gateway.txt", "cloud.txt"):
                print(f"\n{part[:-4]}: share of the time it holds the GIL")
                print("\n".join(_shares(Path(name) / part)))


if __name__ == "__main__":
    main()
