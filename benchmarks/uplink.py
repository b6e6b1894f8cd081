"""The uplink draining a real journal: readings a second, bytes, memory, and how it holds the loop.

A child process takes the batches and acknowledges each at once, so what is measured is the gateway:
journal, frames, columns, zstd, MQTT. A *slice* is what happens between two turns of the event
loop; its time is that of this thread, so that other programs do not count. It has to stay under
5 ms: that long the broker's clients wait.

    python -m benchmarks.uplink --readings 200000
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import multiprocessing
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.payloads import sensor_json
from bridge.devices import DeviceIds
from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.segments import Segment, pack_segment
from edge.uplink import Uplink
from edge.uplink_config import UplinkConfig
from edge.uplink_reader import LaneReader
from mqtt.frames import encode_publish, parse_publishes, split
from runtime.clock import SystemClock
from runtime.service import run

__all__ = ["main"]

_COMMIT = 50  # readings of one group commit


# ---- the other end -------------------------------------------------------------------------------


async def _acknowledge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    data = b""
    while chunk := await reader.read(1 << 20):
        data += chunk
        answers = bytearray()
        while (found := split(data)) is not None and found[2] <= len(data):
            first, _, end = found
            packet, data = data[:end], data[end:]
            if first >> 4 == 1:
                answers += b"\x20\x06\x00\x00\x03\x22\x00\x0a"
            elif first >> 4 == 3:
                answers += b"\x40\x02" + parse_publishes(packet, 5)[0][2].to_bytes(2, "big")
        writer.write(answers)
    writer.close()


def _cloud(port_to: Connection) -> None:
    async def serve() -> int:
        server = await asyncio.start_server(_acknowledge, "127.0.0.1", 0)
        port_to.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()
        return 0

    run(serve())


@contextmanager
def _cloud_process() -> Iterator[int]:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_cloud, args=(theirs,), daemon=True)
    process.start()
    try:
        yield ours.recv()
    finally:
        process.terminate()
        process.join()


# ---- the journal ---------------------------------------------------------------------------------


async def _fill(journal: Journal, readings: int, devices: int) -> None:
    """Commit readings of many devices: JSON of about 120 bytes, seeded."""
    rng = random.Random(1)
    for first in range(0, readings, _COMMIT):
        segments = []
        for n in range(first, min(first + _COMMIT, readings)):
            payload = sensor_json(rng, n)
            topic = b"devices/sensor-%d/state" % rng.randrange(devices)
            frame = encode_publish(0x32, topic, 1, b"", payload, 4)
            wall_us = 1_700_000_000_000_000 + n * 1000
            segments.append(pack_segment(Segment(4, f"c{n % devices}", wall_us, 1, frame)))
        await journal.append([(Lane.LIVE, len(segments), b"".join(segments))])


# ---- measuring -----------------------------------------------------------------------------------


def _timed(cls: type, name: str, slices_ms: list[float]) -> None:
    """Have every call of a method add its thread time."""
    method: Callable[..., Any] = getattr(cls, name)

    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            slices_ms.append((time.thread_time() - began) * 1000)

    setattr(cls, name, timed)


def _watch_slices(slices_ms: list[float]) -> None:
    """Have every turn of the loop add the thread time since the one before."""
    loop = asyncio.get_running_loop()
    last_s = time.thread_time()

    def turn() -> None:
        nonlocal last_s
        slices_ms.append((time.thread_time() - last_s) * 1000)
        loop.call_soon(turn)
        last_s = time.thread_time()

    turn()


def _rss_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6


async def _measure(folder: Path, port: int, options: argparse.Namespace) -> int:
    clock = SystemClock()
    config = JournalConfig(durability="process-crash", disk_reserve_bytes=0)
    journal = await Journal.open(folder / "journal.db", config, clock)
    before_mb = _rss_mb()
    await _fill(journal, options.readings, options.devices)
    filled_mb = _rss_mb()
    fills_ms: list[float] = []
    encodes_ms: list[float] = []
    _timed(LaneReader, "_fill", fills_ms)
    _timed(Uplink, "_encode", encodes_ms)
    uplink = Uplink(
        UplinkConfig(
            endpoints=(f"mqtt://127.0.0.1:{port}",), batch_readings=options.batch, mode=options.mode
        ),
        "bench",
        journal,
        DeviceIds(),
        clock,
    )
    slices_ms: list[float] = []
    gc.collect()
    gc.freeze()  # as a running gateway does
    if options.slices:
        _watch_slices(slices_ms)
    began_s, began_cpu_s = time.perf_counter(), time.process_time()
    await uplink.start()
    most_mb = filled_mb
    while uplink.status().readings_sent < options.readings:
        await asyncio.sleep(0.02)
        most_mb = max(most_mb, _rss_mb())
    took_s, cpu_s = time.perf_counter() - began_s, time.process_time() - began_cpu_s
    status = uplink.status()
    await uplink.stop()
    await journal.close()
    n = options.readings
    print(f"{n} readings in {took_s:.2f} s: {n / took_s:,.0f}/s, {cpu_s / n * 1e6:.1f} us of CPU")
    print(f"bytes a reading on the wire {status.bytes_out / n:.1f}, as MQTT "
          f"{status.packet_bytes / n:.1f}, batches {status.batches_sent}")  # fmt: skip
    timings = [("frames to columns", fills_ms), ("batch from columns", encodes_ms)]
    if slices_ms:
        timings.append(("a turn of the loop", slices_ms))
    for name, values in timings:
        p99 = statistics.quantiles(values, n=100)[98]
        print(f"slice, {name}: median {statistics.median(values):.2f} ms, "
              f"p99 {p99:.2f}, most {max(values):.2f}")  # fmt: skip
    print(f"memory: {before_mb:.0f} MB empty, {filled_mb:.0f} with the backlog, "
          f"{most_mb:.0f} at most while draining")  # fmt: skip
    return 0


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readings", type=int, default=200_000)
    parser.add_argument("--devices", type=int, default=200)
    parser.add_argument("--batch", type=int, default=500)
    parser.add_argument("--mode", default="auto", help="as uplink.mode")
    parser.add_argument("--slices", action="store_true", help="time turns of the loop; it spins")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, _cloud_process() as port:
        run(_measure(Path(folder), port, options))


if __name__ == "__main__":
    main()
