"""Capture and journal alone: runs settled a second, and bytes written to the disk a reading.

    tidegate bench journal -- --seconds 5

No broker and no network: runs are offered as a broker offers them and offered again once settled,
so that a fixed number is always under way. Every commit is synced. The second part offers 1,000
readings a second, trims them as an uplink that keeps up does, and reads what the kernel counted as
written by this process (/proc/self/io, the file system's own journal not included).
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from edge.capture import Capture
from edge.config import CaptureConfig, JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.frames import encode_publish
from runtime.clock import SystemClock
from runtime.service import run as run_loop

__all__ = ["main"]

PAYLOAD = (
    b'{"battery":87,"humidity":41.32,"linkquality":120,"pressure":1013.2,"temperature":21.57,"v":1}'
)
FRAME = encode_publish(0x32, b"zigbee2mqtt/0x00158d0001a2b3c4", 7, b"", PAYLOAD, 4)


@dataclass
class Load:
    """Runs under way at once."""

    clients: int
    window: int  # runs of one client
    per_run: int  # publishes a run


LOADS = (Load(500, 4, 20), Load(50, 1, 20), Load(500, 1, 1), Load(50, 20, 1))


class Rig:
    """A journal and a capture in a folder that goes away."""

    def __init__(self, folder: str, window_ms: float) -> None:
        self.config = JournalConfig(commit_window_ms=window_ms, disk_reserve_bytes=0)
        self.path = Path(folder) / "journal.db"
        self.clock = SystemClock()

    async def __aenter__(self) -> Self:
        self.journal = await Journal.open(self.path, self.config, self.clock)
        self.capture = Capture(self.journal, CaptureConfig(), self.config, self.clock)
        return self

    async def __aexit__(self, *fault: object) -> None:
        await self.capture.close()
        await self.journal.close()


async def throughput(load: Load, seconds: float, window_ms: float, folder: str) -> None:
    """Keep `load` under way for some seconds and print what got through."""
    frames = FRAME * load.per_run
    async with Rig(folder, window_ms) as rig:
        done = 0
        free = [ClientInfo(f"device-{at:04d}", 4) for at in range(load.clients)] * load.window
        answered = asyncio.Event()

        def settled(run: PublishRun, code: int | Sequence[int]) -> None:
            nonlocal done
            assert code == 0
            done += 1
            if not free:
                answered.set()
            free.append(run.client)

        take, live, per_run = rig.capture.take, int(Lane.LIVE), load.per_run
        offering_s = 0.0
        began, loop_s, all_s = time.perf_counter(), time.thread_time(), time.process_time()
        while time.perf_counter() - began < seconds:
            some, free[:] = free[:], []
            answered.clear()
            now_us = time.time_ns() // 1000
            start = time.perf_counter()
            for client in some:
                take(PublishRun(client, live, frames, per_run, now_us, settled))
            offering_s += time.perf_counter() - start
            await answered.wait()
            await rig.journal.trim(Lane.LIVE, rig.journal.last_seq)
        took = time.perf_counter() - began
        loop_us = (time.thread_time() - loop_s) / done * 1e6
        all_us = (time.process_time() - all_s) / done * 1e6
        commits = rig.journal.stats().commits / took
    print(
        f"{load.clients:4} clients x {load.window:2} runs of {per_run:2}: "
        f"{done * per_run / took:9,.0f} readings/s {done / took:9,.0f} runs/s "
        f"{commits:6,.0f} commits/s; CPU a run {loop_us:5.2f} us on the loop "
        f"({offering_s / done * 1e6:4.2f} offering), {all_us:5.2f} in all"
    )


async def wear(window_ms: float, seconds: float, folder: str, rate: int = 1000) -> None:
    """Offer `rate` readings a second one by one and print what that wrote."""
    async with Rig(folder, window_ms) as rig:
        clients = [ClientInfo(f"device-{at:04d}", 4) for at in range(100)]
        offered = settled = 0

        def on_settled(_: PublishRun, code: int | Sequence[int]) -> None:
            nonlocal settled
            assert code == 0
            settled += 1

        written = written_bytes()
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < seconds:
            while offered < passed * rate:
                client = clients[offered % len(clients)]
                now_us = time.time_ns() // 1000
                rig.capture.take(PublishRun(client, int(Lane.LIVE), FRAME, 1, now_us, on_settled))
                offered += 1
            await asyncio.sleep(1 / rate)
            await rig.journal.trim(Lane.LIVE, rig.journal.last_seq)
        took = time.perf_counter() - began
        commits = rig.journal.stats().commits
        each = (written_bytes() - written) / settled
    print(
        f"window {window_ms:5.0f} ms: {settled / took:6.0f} readings/s in {commits / took:5.1f} "
        f"commits/s: {each:6.0f} bytes written a reading of {len(FRAME)} bytes"
    )


def written_bytes() -> int:
    """Return the bytes this process has caused to be written to the disk."""
    for line in Path("/proc/self/io").read_text("ascii").splitlines():
        if line.startswith("write_bytes:"):
            return int(line.split()[1])
    raise RuntimeError("/proc/self/io does not say what was written")


async def main(options: argparse.Namespace) -> int:
    """Run both parts."""
    print(f"commit window {options.window_ms:g} ms, each commit synced, {options.seconds:g} s each")
    for load in LOADS:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            await throughput(load, options.seconds, options.window_ms, folder)
    for window_ms in (2, 20, 200) if options.wear_seconds else ():
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            await wear(window_ms, options.wear_seconds, folder)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="tidegate bench journal --")
    parser.add_argument("--seconds", type=float, default=3, help="of each load [3]")
    parser.add_argument("--wear-seconds", type=float, default=12, help="of each window [12]")
    parser.add_argument("--window-ms", type=float, default=2, help="commit window [2]")
    parser.add_argument("--switch-ms", type=float, default=5, help="switch interval [5]")
    parser.add_argument("--folder", default=".", help="where to write: the disk to measure [.]")
    arguments = parser.parse_args()
    sys.setswitchinterval(arguments.switch_ms / 1000)
    sys.exit(run_loop(main(arguments)))
