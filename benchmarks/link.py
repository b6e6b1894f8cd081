"""Bytes of the link a reading: gateway and cloud against a mosquitto bridge, at the TCP level.

Both sides carry the same readings, QoS 1, over TLS through a proxy that reads the kernel's counts
(benchmarks/counting_proxy.py): payload of TCP and 52 bytes a segment, both ways, acknowledgements
included, with segments of 1,388 bytes. Ours is the real journal and uplink at the trace's times and
`tidegate cloud` as a process of its own, cold start of the context included, one batch in flight at
a time. Theirs is mosquitto to mosquitto: once a reading at a time, as devices that report now and
then have it ("live"), and once as fast as it goes, where segments are full ("busy"). Connecting is
left out on both sides.

    python -m benchmarks.link                           traces of ../shared/data, 10,000 readings
    python -m benchmarks.link --data FOLDER --readings 50000
    python -m benchmarks.link --corpus z2m --mode columnar
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import getpass
import logging
import math
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

import structlog

from benchmarks.counting_proxy import CountingProxy, Wire
from benchmarks.drain import listening, running
from benchmarks.wire import connect_frame
from bridge.devices import DeviceIds
from device_sim.traces import Record, read_trace
from edge.config import JournalConfig
from edge.contract import Lane
from edge.journal import Journal
from edge.segments import Segment, pack_segment
from edge.uplink import Uplink
from edge.uplink_config import UplinkConfig
from mqtt.frames import encode_publish, split
from mqtt.packets import PUBLISH
from mqtt.properties import encode_property_block
from runtime.clock import SystemClock
from runtime.service import run
from tests.kit.certificates import Certificates, make_certificates
from tidegate.nats_servers import free_ports

__all__ = ["main"]

_BATCHES = (50, 500)
_TARGETS = {50: 20, 500: 40}  # times fewer bytes than the bridge, geometric mean
_BRIDGE_READINGS = 3_000  # enough for the bridge: it has nothing to learn
_FOR_EVER_S = 1e9
_CLOUD = """
data = "{data}"
host = ""
[[listeners]]
transport = "tls"
host = "127.0.0.1"
port = {port}
tls_cert_file = "{cert}"
tls_key_file = "{key}"
[http]
port = {http}
[stream]
disk_reserve_bytes = 0
"""
_NEAR = """
user {user}
listener {port} 127.0.0.1
allow_anonymous true
persistence false
max_inflight_messages 1000
max_queued_messages 0
set_tcp_nodelay true
log_type none
connection up
address 127.0.0.1:{uplink}
topic # out 1
bridge_cafile {ca}
bridge_insecure true
bridge_protocol_version mqttv50
cleansession false
restart_timeout 1
"""
_FAR = """
user {user}
listener {port} 127.0.0.1
listener {tls} 127.0.0.1
certfile {cert}
keyfile {key}
allow_anonymous true
persistence false
max_inflight_messages 0
max_queued_messages 0
set_tcp_nodelay true
log_type none
"""


@dataclass(slots=True)
class Corpus:
    """One trace's figures, bytes a reading on the wire."""

    name: str
    live: float
    busy: float
    ours: dict[int, float]


# ---- ours ----------------------------------------------------------------------------------------


async def _ours(folder: Path, records: list[Record], batch: int, mode: str) -> Wire:
    """Return what `records` cost in batches of `batch`."""
    folder.mkdir()
    certificates = make_certificates(folder)
    port, http = free_ports(2)
    config = folder / "cloud.toml"
    config.write_text(
        _CLOUD.format(
            data=folder, port=port, http=http,
            cert=certificates.server, key=certificates.server_key,
        )
    )  # fmt: skip
    command = [sys.executable, "-m", "tidegate", "cloud", "-c", str(config)]
    with running(command, folder / "log"):
        await listening(port)
        async with CountingProxy(port) as proxy:
            return await _drain(folder, records, batch, mode, proxy, certificates)


async def _drain(
    folder: Path,
    records: list[Record],
    batch: int,
    mode: str,
    proxy: CountingProxy,
    tls: Certificates,
) -> Wire:
    clock = SystemClock()
    journal = await Journal.open(
        folder / "journal.db",
        JournalConfig(durability="process-crash", disk_reserve_bytes=0),
        clock,
    )
    uplink = Uplink(
        UplinkConfig(
            endpoints=(f"mqtts://localhost:{proxy.port}",),
            tls_ca_file=tls.ca,
            batch_readings=batch,
            batch_bytes=8 << 20,
            linger_ms=0,
            historical_s=_FOR_EVER_S,
            mode=mode,
        ),
        "bench",
        journal,
        DeviceIds(),
        clock,
    )
    await uplink.start()
    try:
        while uplink.status().link != "online":
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)  # subscriptions and the first credit
        before = proxy.wire()
        for first in range(0, len(records), batch):
            some = records[first : first + batch]
            body = b"".join(_segment(one) for one in some)
            await journal.append([(Lane.LIVE, len(some), body)])
            while uplink.status().readings_sent < first + len(some):
                await asyncio.sleep(0.002)
        return proxy.wire() - before
    finally:
        await uplink.stop()
        await journal.close()


def _segment(record: Record) -> bytes:
    return pack_segment(Segment(5, "bench", record.time_ms * 1000, 1, _frame(record, 1)))


def _frame(record: Record, packet_id: int) -> bytes:
    """Return a reading as the device publishes it, QoS 1, MQTT 5."""
    block = encode_property_block(record.properties, PUBLISH) if record.properties else b""
    return encode_publish(0x32, record.topic.encode(), packet_id, block, record.payload, 5)


# ---- theirs --------------------------------------------------------------------------------------


async def _theirs(folder: Path, records: list[Record], *, window: int) -> Wire:
    """Return what `records` cost over a bridge with so many readings on their way at most."""
    program = shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin:/usr/bin:/usr/local/bin")
    if program is None:
        raise FileNotFoundError("mosquitto is not installed")
    folder.mkdir()
    certificates = make_certificates(folder)
    near, far, tls = free_ports(3)
    (folder / "far.conf").write_text(
        _FAR.format(
            port=far,
            tls=tls,
            cert=certificates.server,
            key=certificates.server_key,
            user=getpass.getuser(),  # root's mosquitto would read no key of root's
        )
    )
    async with CountingProxy(tls) as proxy:
        (folder / "near.conf").write_text(
            _NEAR.format(port=near, uplink=proxy.port, ca=certificates.ca, user=getpass.getuser())
        )
        with running([program, "-c", str(folder / "far.conf")], folder / "log"):
            await listening(far)
            with running([program, "-c", str(folder / "near.conf")], folder / "log"):
                await listening(near)
                async with _subscribed(far) as came, _published(near) as publish:
                    await publish(Record(0, "ready", b""))
                    await came(1)
                    before = proxy.wire()
                    for n, record in enumerate(records, 2):
                        await publish(record)
                        await came(n - window + 1)
                    await came(len(records) + 1)
                    await asyncio.sleep(0.3)  # the last acknowledgements
                    return proxy.wire() - before


@contextlib.asynccontextmanager
async def _subscribed(port: int) -> AsyncIterator[Callable[[int], Awaitable[None]]]:
    """Subscribe to everything; gives a way to wait until so many messages have come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(connect_frame("counter", 4))
    await reader.readexactly(4)
    writer.write(b"\x82\x06\x00\x01\x00\x01#\x00")
    await reader.readexactly(5)
    count, news = 0, asyncio.Event()

    async def listen() -> None:
        nonlocal count
        data = b""
        while chunk := await reader.read(1 << 16):
            data += chunk
            while (found := split(data)) is not None and found[2] <= len(data):
                data = data[found[2] :]
                count += 1
            news.set()

    async def came(wanted: int) -> None:
        async with asyncio.timeout(60):
            while count < wanted:
                news.clear()
                await news.wait()

    task = asyncio.create_task(listen())
    try:
        yield came
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


@contextlib.asynccontextmanager
async def _published(port: int) -> AsyncIterator[Callable[[Record], Awaitable[None]]]:
    """Connect as a device; gives a way to publish."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(connect_frame("device", 5))
    await reader.read(1 << 10)
    packet_ids = cycle(range(1, 60_000))

    async def read_answers() -> None:
        while await reader.read(1 << 16):
            pass

    async def publish(record: Record) -> None:
        writer.write(_frame(record, next(packet_ids)))
        await writer.drain()

    task = asyncio.create_task(read_answers())
    try:
        yield publish
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        writer.close()


# ---- the table -----------------------------------------------------------------------------------


async def _measure(path: Path, folder: Path, options: argparse.Namespace) -> Corpus:
    records = list(islice(read_trace(path), options.readings))
    some = records[:_BRIDGE_READINGS]
    sizes = {}
    for batch in _BATCHES:
        wire = await _ours(folder / f"ours-{batch}", records, batch, options.mode)
        sizes[batch] = wire.total / len(records)
    live = await _theirs(folder / "live", some, window=1)
    busy = await _theirs(folder / "busy", some, window=500)
    name = path.name.partition(".")[0]
    return Corpus(name, live.total / len(some), busy.total / len(some), sizes)


async def _run(options: argparse.Namespace) -> int:
    paths = [
        path
        for path in sorted(options.data.glob("*.cborseq*"))
        if not options.corpus or path.name.partition(".")[0] in options.corpus
    ]
    if not paths:
        print(f"no traces (*.cborseq, *.cborseq.zst) in {options.data}", file=sys.stderr)
        return 2
    print(f"bytes a reading on the wire; {options.readings:,} readings in mode {options.mode}; "
          "in brackets: how many times fewer than the bridge, live / busy")  # fmt: skip
    corpora = []
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            corpus = await _measure(path, Path(folder), options)
        print(_row(corpus), flush=True)
        corpora.append(corpus)
    for batch in _BATCHES:
        live = _geometric([one.live / one.ours[batch] for one in corpora])
        busy = _geometric([one.busy / one.ours[batch] for one in corpora])
        print(
            f"batches of {batch}: {live:.1f} times fewer (geometric mean; target"
            f" {_TARGETS[batch]}), busy {busy:.1f}"
        )
    return 0


def _row(corpus: Corpus) -> str:
    columns = [f"{corpus.name:12} bridge {corpus.live:6.1f} / {corpus.busy:6.1f}"]
    for batch, size in corpus.ours.items():
        ratios = f"({corpus.live / size:.1f} / {corpus.busy / size:.1f})"
        columns.append(f"batches of {batch}: {size:6.2f} {ratios:15}")
    return "   ".join(columns)


def _geometric(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values))


def main() -> int:
    """Run the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--corpus", action="append", help="only this one; may be repeated")
    parser.add_argument("--readings", type=int, default=10_000)
    parser.add_argument("--mode", default="structured", help="as uplink.mode")
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    return run(_run(parser.parse_args()))


if __name__ == "__main__":
    raise SystemExit(main())
