"""Drain of a backlog over a link, live readings meanwhile, against a mosquitto bridge.

The same readings lie at the gateway when the far side appears: ours in the journal of `tidegate
edge`, theirs in mosquitto's memory. The clock runs until the far side has all of them: ours durable
in the stream of `tidegate cloud`, theirs at a subscriber. Live readings are published all the
while; each says when it was, and a subscriber at the far side says when it came.

    python -m benchmarks.drain                              100,000 readings, 10 Mbit/s, 40 ms
    python -m benchmarks.drain --readings 1000000           the full form
    python -m benchmarks.drain --mbit 0                     loopback, no limit
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.payloads import sensor_json
from benchmarks.slow_link import Link
from benchmarks.wire import connect_frame, cpu_s_of, frame_of
from tidegate.nats_servers import free_ports

__all__ = ["listening", "main", "rss_mb", "running"]

_CONNECTIONS = 20
_BACKLOG_TOPIC = "devices/sensor-%d/state"
_LIVE_TOPIC = "devices/live/value"
_LIVE_EVERY_S = 0.05
_HISTORICAL_S = 5  # a live reading that waits for longer is one of the backlog, and its last

_EDGE = """
data = "{data}"
gateway = "bench"
host = "127.0.0.1"
port = {port}
[http]
port = {http}
[uplink]
endpoints = ["mqtt://127.0.0.1:{uplink}"]
mode = "{mode}"
historical_s = {historical_s}
backoff_min_s = 0.1
backoff_max_s = 0.2
[journal]
disk_reserve_bytes = 0
"""
_CLOUD = """
data = "{data}"
port = {port}
[http]
port = {http}
[stream]
disk_reserve_bytes = 0
"""
_NEAR = """
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 1000
max_queued_messages 0
log_type none
connection up
address 127.0.0.1:{uplink}
topic devices/# out 1
bridge_protocol_version mqttv50
cleansession false
restart_timeout 1
"""
_FAR = """
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
log_type none
"""


@dataclass
class Drained:
    """What one drain took."""

    name: str
    seconds: float
    bytes_up: int
    memory_mb: tuple[float, float]  # of the gateway: with the backlog, most while draining
    latencies_ms: list[float] = field(default_factory=list)
    cpu_s: dict[str, float] = field(default_factory=dict)  # by process, while draining

    def line(self, readings: int) -> str:
        """Return the figures on one line."""
        late = sorted(self.latencies_ms)
        p50, p99 = (late[int(len(late) * q)] for q in (0.5, 0.99)) if late else (0.0, 0.0)
        return (
            f"{self.name:10} {self.seconds:8.2f} s  {readings / self.seconds:10,.0f}/s  "
            f"{self.bytes_up / readings:6.1f} bytes a reading  live p50 {p50:7.0f} ms, "
            f"p99 {p99:7.0f} ms of {len(late)}  memory {self.memory_mb[0]:.0f} MB, "
            f"most {self.memory_mb[1]:.0f} MB"
            + "".join(
                f"  {name} {cpu_s / readings * 1e6:.0f} us" for name, cpu_s in self.cpu_s.items()
            )
        )


# ---- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def running(arguments: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program, its output in a file, and end it."""
    with log.open("ab") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=output)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)


async def listening(port: int) -> None:
    """Return once something accepts connections on loopback at `port`."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", port)
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                return


def rss_mb(pid: int) -> float:
    """Return the memory of a process."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1000
    return 0.0


def _cpu_s(edge: int, cloud: int) -> dict[str, float]:
    """Return the processor seconds of a gateway, a cloud node and the codecs beside them."""
    used = {}
    for name, pid, child in (("edge", edge, "encoder"), ("cloud", cloud, "decoder")):
        used[name] = cpu_s_of(pid)
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):  # a thread that has just ended
                for each in (task / "children").read_text().split():
                    used[child] = used.get(child, 0.0) + cpu_s_of(int(each))
    return used


# ---- what is published ---------------------------------------------------------------------------


async def _fill(port: int, readings: int) -> None:
    """Publish the backlog with QoS 1 and wait for every acknowledgement."""

    async def publish(index: int) -> None:
        rng = random.Random(index)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(connect_frame(f"fill-{index}", 4))
        await reader.readexactly(4)
        mine = range(index, readings, _CONNECTIONS)
        for start in range(0, len(mine), 500):
            some = mine[start : start + 500]
            writer.write(
                b"".join(
                    frame_of(_BACKLOG_TOPIC % (n % 200), sensor_json(rng, n), 1, n % 60_000 + 1, 4)
                    for n in some
                )
            )
            await reader.readexactly(4 * len(some))
        writer.close()

    await asyncio.gather(*(publish(index) for index in range(_CONNECTIONS)))


@contextlib.asynccontextmanager
async def _live(near: int, far: int, drained: Drained) -> AsyncIterator[None]:
    """Publish a stamp now and then at the gateway; note when each comes out at the far side."""

    async def publish() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", near)
        writer.write(connect_frame("live", 4))
        await reader.readexactly(4)
        for n in range(1 << 30):
            stamp = b"%d" % time.monotonic_ns()
            writer.write(frame_of(_LIVE_TOPIC, stamp, 1, n % 60_000 + 1, 4))
            await reader.readexactly(4)
            await asyncio.sleep(_LIVE_EVERY_S)

    reader, writer = await asyncio.open_connection("127.0.0.1", far)
    writer.write(connect_frame("live-listener", 4))
    await reader.readexactly(4)
    name = _LIVE_TOPIC.encode()
    body = b"\x00\x01" + len(name).to_bytes(2, "big") + name + b"\x00"
    writer.write(b"\x82" + bytes([len(body)]) + body)
    await reader.readexactly(5)

    async def listen() -> None:
        while True:
            head = await reader.readexactly(2)
            packet = await reader.readexactly(head[1])
            stamp = packet[2 + len(name) :]
            drained.latencies_ms.append((time.monotonic_ns() - int(stamp)) / 1e6)

    tasks = [asyncio.create_task(publish()), asyncio.create_task(listen())]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        writer.close()


async def _until(
    left: Callable[[], Awaitable[int]], pid: int, filled_mb: float
) -> tuple[float, float]:
    """Wait until nothing is left, looking the more often the nearer that is: looks cost both."""
    most_mb = filled_mb
    began_s = time.monotonic()
    first = readings = await left()
    while readings > 0:
        done = first - readings
        left_s = readings * (time.monotonic() - began_s) / done if done else 0.0
        await asyncio.sleep(min(0.5, max(0.02, left_s / 4)))
        most_mb = max(most_mb, rss_mb(pid))
        readings = await left()
    return filled_mb, most_mb


# ---- the two sides -------------------------------------------------------------------------------


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


async def _ours(folder: Path, options: argparse.Namespace) -> Drained:
    edge, edge_http, cloud, cloud_http = free_ports(4)
    tidegate = [sys.executable, "-m", "tidegate"]
    (folder / "cloud.toml").write_text(_CLOUD.format(data=folder, port=cloud, http=cloud_http))
    async with Link(cloud, options.mbit * 125_000, options.rtt_ms / 2000) as link:
        (folder / "edge.toml").write_text(
            _EDGE.format(
                data=folder,
                port=edge,
                http=edge_http,
                uplink=link.port,
                mode=options.mode,
                historical_s=_HISTORICAL_S,
            )
        )
        with running([*tidegate, "edge", "-c", str(folder / "edge.toml")], folder / "log") as one:
            await listening(edge)
            await _fill(edge, options.readings)
            await asyncio.sleep(_HISTORICAL_S + 0.1)
            filled_mb = rss_mb(one.pid)
            drained = Drained("tidegate", 0.0, 0, (0.0, 0.0))
            config = str(folder / "cloud.toml")
            with running([*tidegate, "cloud", "-c", config], folder / "log") as far:
                await listening(cloud)
                began_s = time.monotonic()
                before = _cpu_s(one.pid, far.pid)

                async def left() -> int:
                    status = await asyncio.to_thread(_get, f"http://127.0.0.1:{edge_http}/status")
                    return int(options.readings - status["uplink"]["readings_sent"])

                async with _live(edge, cloud, drained):
                    drained.memory_mb = await _until(left, one.pid, filled_mb)
                    drained.seconds = time.monotonic() - began_s
                    drained.bytes_up = link.bytes_up
                    after = _cpu_s(one.pid, far.pid)
                    drained.cpu_s = {who: after[who] - before.get(who, 0.0) for who in after}
    return drained


async def _theirs(folder: Path, options: argparse.Namespace) -> Drained:
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise FileNotFoundError("mosquitto is not installed")
    near, far = free_ports(2)
    (folder / "far.conf").write_text(_FAR.format(port=far))
    async with Link(far, options.mbit * 125_000, options.rtt_ms / 2000) as link:
        (folder / "near.conf").write_text(_NEAR.format(port=near, uplink=link.port))
        near_arguments = [program, "-c", str(folder / "near.conf")]
        with running(near_arguments, folder / "log") as one:
            await listening(near)
            await _fill(near, options.readings)
            filled_mb = rss_mb(one.pid)
            drained = Drained("mosquitto", 0.0, 0, (0.0, 0.0))
            with running([program, "-c", str(folder / "far.conf")], folder / "log"):
                await listening(far)
                began_s = time.monotonic()

                async def left() -> int:
                    return int(options.readings - counted[0])

                async with _counting(far) as counted, _live(near, far, drained):
                    drained.memory_mb = await _until(left, one.pid, filled_mb)
                    drained.seconds = time.monotonic() - began_s
                    drained.bytes_up = link.bytes_up
    return drained


@contextlib.asynccontextmanager
async def _counting(far: int) -> AsyncIterator[list[int]]:
    """Count what a subscriber of the far broker gets: messages of the backlog."""
    counted = [0]
    reader, writer = await asyncio.open_connection("127.0.0.1", far)
    writer.write(connect_frame("counter", 4))
    await reader.readexactly(4)
    name = b"devices/+/state"
    body = b"\x00\x01" + len(name).to_bytes(2, "big") + name + b"\x00"
    writer.write(b"\x82" + bytes([len(body)]) + body)
    await reader.readexactly(5)

    async def count() -> None:
        data = b""
        while chunk := await reader.read(1 << 18):
            data += chunk
            at = 0
            while at + 3 <= len(data):
                size, width = data[at + 1], 2
                if size & 0x80:
                    size, width = (size & 0x7F) | data[at + 2] << 7, 3
                if at + width + size > len(data):
                    break
                at += width + size
                counted[0] += 1
            data = data[at:]

    task = asyncio.create_task(count())
    try:
        yield counted
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


async def _measure(options: argparse.Namespace) -> None:
    results = []
    for side in (_ours, _theirs):
        if side is _theirs and options.only_ours:
            continue
        with tempfile.TemporaryDirectory() as folder:
            drained = await side(Path(folder), options)
        print(drained.line(options.readings), flush=True)
        results.append(drained)
    if len(results) == 2:
        print(f"{results[1].seconds / results[0].seconds:.1f} times as fast")


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=100_000)
    parser.add_argument("--mbit", type=float, default=10.0, help="0 = no limit")
    parser.add_argument("--rtt-ms", type=float, default=40.0)
    parser.add_argument("--only-ours", action="store_true")
    parser.add_argument("--mode", default="auto", help="uplink.mode of ours")
    asyncio.run(_measure(parser.parse_args()))


if __name__ == "__main__":
    main()
