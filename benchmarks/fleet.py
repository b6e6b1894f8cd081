"""A fleet that comes back at once: every gateway dials in the same moment with a backlog.

A real `tidegate cloud` takes it; the gateways are simulated, with batches encoded beforehand, a
window of two, and the credits of the cloud kept to. Each also sends a live reading now and then.
Reported: how long it takes, what the cloud needs, how long live readings wait for their PUBACK, and
how fair it was: Jain's index over what each gateway had drained when half of all was through (1 =
all the same, 1/n = one had everything), and the least that any had of the average.

    python -m benchmarks.fleet                                1,000 gateways, 1,000 readings each
    python -m benchmarks.fleet --gateways 100 --readings 500   in short
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import sys
import tempfile
import time
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.drain import listening, rss_mb, running
from bridge.batch import Encoder
from bridge.endpoint_rotation import RETRY_AFTER_SPREAD
from bridge.envelope import LinkLane
from bridge.link_pacing import (
    DOWN_ALL,
    DOWN_PREFIX,
    UPLINK_CLIENT_PREFIX,
    Pace,
    decode_credit,
    retry_after,
)
from bridge.readings import Readings
from mqtt.decoding import decode
from mqtt.frames import encode_publish, parse_publishes, split
from mqtt.packets import Connack
from mqtt.properties import USER_PROPERTY
from tidegate.nats_servers import free_ports

__all__ = ["Fleet", "FleetReport", "jain", "main"]

_BATCH = 100
_WINDOW = 2
_LIVE_EVERY_S = 2.0
_CLOUD = """
data = "{data}"
port = {port}
[http]
port = {http}
[stream]
disk_reserve_bytes = 0
[live]
enabled = false
{more}
"""


@dataclass
class FleetReport:
    """What a run came to."""

    gateways: int
    readings: int
    seconds: float
    fairness: float  # Jain's index at half time
    least_share: float  # of the average, at half time
    live_p50_ms: float
    live_p99_ms: float
    redials: int
    told: int  # times a gateway was told when to dial again
    limited: int  # gateways that were ever told a limit
    cloud_mb: float
    stored: int

    def line(self) -> str:
        """Return the figures as text."""
        return (
            f"{self.gateways} gateways, {self.readings} readings each: {self.seconds:.1f} s, "
            f"{self.gateways * self.readings / self.seconds:,.0f} readings/s acknowledged\n"
            f"fairness {self.fairness:.3f} (least {self.least_share:.2f} of the average); "
            f"live PUBACK p50 {self.live_p50_ms:.0f} ms, p99 {self.live_p99_ms:.0f} ms; "
            f"{self.told} told when to come, {self.redials} redials; {self.limited} limited; "
            f"cloud {self.cloud_mb:.0f} MB; {self.stored} stored"
        )


def jain(values: list[int]) -> float:
    """Return Jain's fairness index (Jain, Chiu and Hawe, 1984)."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


class _Gateway:
    """One simulated gateway: its batches, its connection, what is acknowledged."""

    def __init__(self, name: str, readings: int, seed: int) -> None:
        self.name = name
        self.rng = random.Random(seed)
        self.left = readings  # backlog not acknowledged
        self.acked = 0
        self.limited = False
        self.redials = 0
        self.told = 0
        self.live_ms: list[float] = []
        self._readings = readings
        self._epoch = self.rng.getrandbits(63) | 1
        self._live_seq = readings

    def _rows(self, first: int, count: int) -> Readings:
        now_us = time.time_ns() // 1000
        sources = [(f"devices/{self.name}-{n}/t", f"{self.name}-{n}") for n in range(5)]
        payloads = [b'{"t":%.2f}' % self.rng.gauss(20, 2) for _ in range(count)]
        return Readings(
            range(first, first + count),
            sources,
            [n % 5 for n in range(count)],
            [now_us] * count,
            [1] * count,
            payloads,
            [b""] * count,
        )

    async def run(self, port: int) -> None:
        """Dial until all is acknowledged."""
        while self.left:
            try:
                told_s = await self._converse(port)
                if told_s:
                    self.told += 1
                    await asyncio.sleep(self.rng.uniform(told_s, told_s * RETRY_AFTER_SPREAD))
            except (OSError, asyncio.IncompleteReadError):
                self.redials += 1
                await asyncio.sleep(self.rng.uniform(0.2, 1.0))

    async def _converse(self, port: int) -> float:
        """Send all that is not acknowledged; or return after how long to dial again."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(_connect(f"{UPLINK_CLIENT_PREFIX}{self.name}"))
            told_s = await _connack(reader)
            if told_s:
                return told_s
            writer.write(_subscribe(DOWN_ALL, DOWN_PREFIX + self.name))
            await _Line(self, reader, writer).carry()
        finally:
            writer.close()
        return 0.0

    def encoder(self) -> Encoder:
        """Return an encoder of a new connection."""
        return Encoder(self.name, self._epoch)

    def backlog_batch(self, encoder: Encoder, sent: int, count: int) -> bytes:
        """Return a batch of the backlog past `sent` readings."""
        rows = self._rows(sent + 1, count)
        return encoder.encode(rows, lane=LinkLane.BACKLOG, historical=True, assigned=self._live_seq)

    def live_batch(self, encoder: Encoder) -> bytes:
        """Return a batch of one live reading."""
        self._live_seq += 1
        return encoder.encode(self._rows(self._live_seq, 1), lane=LinkLane.LIVE)

    @property
    def total(self) -> int:
        """Backlog readings in all."""
        return self._readings


@dataclass
class _Line:
    """One connection of a gateway."""

    gateway: _Gateway
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    in_flight: dict[int, tuple[int, float]] = field(default_factory=dict)

    async def carry(self) -> None:
        """Send what is not acknowledged; return when all is."""
        gateway, loop = self.gateway, asyncio.get_running_loop()
        encoder = gateway.encoder()
        pace = Pace(gateway.rng, _BATCH)
        topic = f"tidegate/v1/up/{gateway.name}".encode()
        packet_id, sent, live_at_s = 0, gateway.acked, loop.time() + gateway.rng.uniform(0, 2)
        receiving = asyncio.create_task(self._receive(pace))
        try:
            while gateway.left:
                now_s = loop.time()
                backlog = sum(1 for count, _ in self.in_flight.values() if count)
                batch = b""
                count = 0
                if now_s >= live_at_s:
                    live_at_s = now_s + _LIVE_EVERY_S
                    batch = gateway.live_batch(encoder)
                elif backlog < _WINDOW and sent < gateway.total and not pace.wait_s(now_s):
                    count = min(_BATCH, gateway.total - sent)
                    batch = gateway.backlog_batch(encoder, sent, count)
                    pace.sent(count)
                    sent += count
                if batch:
                    packet_id = packet_id % 60_000 + 1
                    self.in_flight[packet_id] = (count, now_s)
                    self.writer.write(encode_publish(0x32, topic, packet_id, b"", batch, 5))
                    await self.writer.drain()
                    continue
                if receiving.done():
                    receiving.result()
                    raise ConnectionResetError("the cloud has gone")
                self.news.clear()
                wait_s = live_at_s - now_s
                if backlog < _WINDOW and sent < gateway.total:
                    wait_s = min(wait_s, pace.wait_s(now_s))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(max(0.001, wait_s)):
                        await self.news.wait()
        finally:
            receiving.cancel()

    def __post_init__(self) -> None:
        self.news = asyncio.Event()

    async def _receive(self, pace: Pace) -> None:
        gateway, loop = self.gateway, asyncio.get_running_loop()
        data = b""
        try:
            while chunk := await self.reader.read(65_536):
                data += chunk
                while (found := split(data)) is not None and found[2] <= len(data):
                    first, start, end = found
                    packet, data = data[:end], data[end:]
                    if first >> 4 == 3:
                        ((_, topic, _, _, payload),) = parse_publishes(packet, 5)
                        credit = decode_credit(payload) if payload else None
                        if credit is not None:
                            gateway.limited |= credit.readings_s is not None
                            pace.take(credit, loop.time(), own=topic != DOWN_ALL.encode())
                    elif first >> 4 == 4:
                        self._acknowledged(packet[start:], loop.time())
                self.news.set()
        finally:
            self.news.set()

    def _acknowledged(self, body: bytes, now_s: float) -> None:
        count, sent_s = self.in_flight.pop(int.from_bytes(body[:2], "big"))
        if len(body) > 2 and body[2] >= 0x80:
            raise ConnectionResetError(f"refused: 0x{body[2]:02x}")
        if count:
            self.gateway.acked += count
            self.gateway.left -= count
        else:
            self.gateway.live_ms.append((now_s - sent_s) * 1000)


def _connect(client_id: str) -> bytes:
    name = client_id.encode()
    body = b"\x00\x04MQTT\x05\x02\x00\x00\x00" + len(name).to_bytes(2, "big") + name
    return b"\x10" + bytes([len(body)]) + body


async def _connack(reader: asyncio.StreamReader) -> float:
    """Return 0 once connected, or the seconds after which to come again."""
    data = b""
    while (found := split(data)) is None or found[2] > len(data):
        more = await reader.read(1)  # nothing behind it is to be read here
        if not more:
            raise ConnectionResetError("closed before CONNACK")
        data += more
    first, start, end = found
    connack = decode(first, data[start:end], 5)
    assert isinstance(connack, Connack)
    if not connack.reason_code:
        return 0.0
    told_s = retry_after(connack.properties.get(USER_PROPERTY, ()))
    if not told_s:
        raise ConnectionResetError(f"refused: 0x{connack.reason_code:02x}")
    return told_s


def _subscribe(*topics: str) -> bytes:
    body = b"\x00\x01\x00"
    for topic in topics:
        body += len(topic).to_bytes(2, "big") + topic.encode() + b"\x00"
    return b"\x82" + bytes([len(body)]) + body


class Fleet:
    """Gateways against a cloud of their own in `folder`.

    Args:
        folder: For the cloud's files.
        gateways: How many.
        readings: Of backlog, each.
        cloud: More of the cloud's configuration, as TOML.
    """

    def __init__(self, folder: Path, gateways: int, readings: int, *, cloud: str = "") -> None:
        self._folder = folder
        self._readings = readings
        self._cloud = cloud
        self._gateways = [_Gateway(f"gw-{n}", readings, n) for n in range(gateways)]

    async def run(self, *, timeout_s: float = 600.0) -> FleetReport:
        """Let all of them come back at once; return when all is acknowledged and stored."""
        port, http = free_ports(2)
        config = self._folder / "cloud.toml"
        config.write_text(_CLOUD.format(data=self._folder, port=port, http=http, more=self._cloud))
        command = [sys.executable, "-m", "tidegate", "cloud", "-c", str(config)]
        with running(command, self._folder / "cloud.log") as process:
            await listening(port)
            began_s = time.monotonic()
            async with asyncio.timeout(timeout_s):
                half = asyncio.create_task(self._at_half_time())
                await asyncio.gather(*(gateway.run(port) for gateway in self._gateways))
                seconds = time.monotonic() - began_s
                shares = await half
                stored = await self._until_stored(http)
            return self._report(seconds, shares, rss_mb(process.pid), stored)

    async def _at_half_time(self) -> list[int]:
        whole = self._readings * len(self._gateways)
        while sum(gateway.acked for gateway in self._gateways) < whole / 2:
            await asyncio.sleep(0.01)
        return [gateway.acked for gateway in self._gateways]

    async def _until_stored(self, http: int) -> int:
        wanted = sum(gateway.acked for gateway in self._gateways)
        while True:
            status: Any = await asyncio.to_thread(_get, f"http://127.0.0.1:{http}/status")
            if status["readings_stored"] >= wanted:
                return int(status["readings_stored"])
            await asyncio.sleep(0.1)

    def _report(
        self, seconds: float, shares: list[int], cloud_mb: float, stored: int
    ) -> FleetReport:
        live = sorted(ms for gateway in self._gateways for ms in gateway.live_ms) or [0.0]
        return FleetReport(
            len(self._gateways),
            self._readings,
            seconds,
            jain(shares),
            min(shares) / (sum(shares) / len(shares)),
            live[len(live) // 2],
            live[int(len(live) * 0.99)],
            sum(gateway.redials for gateway in self._gateways),
            sum(gateway.told for gateway in self._gateways),
            sum(gateway.limited for gateway in self._gateways),
            cloud_mb,
            stored,
        )


def _get(url: str) -> Any:
    with urllib.request.urlopen(url, timeout=10) as answer:
        return json.load(answer)


def main() -> None:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gateways", type=int, default=1000)
    parser.add_argument("--readings", type=int, default=1000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fleet = Fleet(Path(folder), options.gateways, options.readings)
        print(asyncio.run(fleet.run()).line())


if __name__ == "__main__":
    main()
