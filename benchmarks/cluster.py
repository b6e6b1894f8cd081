"""Cluster: durable readings/s of one cloud node's ingest on NATS at R3, against one by one.

Three NATS servers with `sync_interval: always`, streams R3, and the node's ingest share this
machine. The peer publishes each reading as a JetStream message of its own, 256 of them on their
way, by the leanest client there is (no future a message). Ours takes batches of gateways as they
come off the wire, decodes them, splits them by partition, and answers when the ledger has them.
Rounds alternate; medians are told, with the processor time of client, decoders of the structured
mode and servers a reading, and where the client's goes (--profile).

    tidegate bench cluster
    tidegate bench cluster -- --rounds 5 --gateways 50 --batch 200 --profile columnar
    tidegate bench cluster -- --quick --json
"""

from __future__ import annotations

import argparse
import asyncio
import cProfile
import gc
import json
import pstats
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain, islice
from pathlib import Path

import nats
from nats.aio.client import Client

from benchmarks.wire import cpu_s_of
from bridge.batch import Encoder
from bridge.envelope import Mode
from bridge.readings import Readings
from bridge.structured import StructuredEncoder, kernel
from bridge.structured_bodies import LINK_LIMITS
from cloud.cluster.applying import apply, stream_epoch
from cloud.cluster.connection import Connection
from cloud.cluster.layout import Layout
from cloud.config import IngestConfig
from cloud.ingest import UP_LANE, CloudCapture
from cloud.ingest_batches import UP_PREFIX
from cloud.stream.jetstream.engine import JetStreamStream
from mqtt.broker.seams import ClientInfo, PublishRun
from mqtt.frames import encode_publish
from runtime.clock import SystemClock
from runtime.service import run as run_loop
from tests.kit.payload_shapes import messages
from tidegate.nats_servers import NatsServers

__all__ = ["main"]

_WINDOW = 256
_EPOCH = 7
_CONNECTING = 50  # gateways at once


@dataclass(frozen=True, slots=True)
class Result:
    """One round of one way."""

    readings: int
    seconds: float
    client_cpu_s: float
    servers_cpu_s: float
    decoders_cpu_s: float = 0.0
    gateways_cpu_s: float = 0.0  # of the simulated gateways, not in the client's

    @property
    def rate(self) -> float:
        return self.readings / self.seconds


@dataclass(slots=True)
class Load:
    """What every way has to bring in, the same readings."""

    readings: list[list[Readings]]  # by gateway, batch after batch
    count: int


def load_of(shape: str, gateways: int, batches: int, batch: int, devices: int) -> Load:
    """Return batches of seeded payloads; each gateway has devices and payloads of its own."""
    texts = _texts(shape, gateways * batches * batch)
    found = []
    for gateway in range(gateways):
        mine = texts[gateway * batches * batch : (gateway + 1) * batches * batch]
        sources = [(f"devices/g{gateway}d{n}/state", f"g{gateway}d{n}") for n in range(devices)]
        found.append(
            [
                Readings(
                    range(number * batch + 1, (number + 1) * batch + 1),
                    sources,
                    [n % devices for n in range(batch)],
                    [1_700_000_000_000_000 + (number * batch + n) * 10_000 for n in range(batch)],
                    [1] * batch,
                    mine[number * batch : (number + 1) * batch],
                    [b""] * batch,
                )
                for number in range(batches)
            ]
        )
    return Load(found, gateways * batches * batch)


@lru_cache(maxsize=1)  # rounds have the same
def _texts(shape: str, count: int) -> list[bytes]:
    return [bytes(payload) for _, _, payload, *_ in messages(shape, count)]


async def one_by_one(nc: Client, layout: Layout, load: Load) -> None:
    """Publish each reading, at most `_WINDOW` not yet acknowledged."""
    inbox = nc.new_inbox()
    room = asyncio.Semaphore(_WINDOW)
    left = load.count
    done = asyncio.Event()

    async def acked(message: object) -> None:
        nonlocal left
        if b'"seq"' not in message.data:  # type: ignore[attr-defined]
            raise RuntimeError(message.data)  # type: ignore[attr-defined]
        room.release()
        left -= 1
        if not left:
            done.set()

    subscription = await nc.subscribe(inbox, cb=acked)
    for gateway in load.readings:
        for readings in gateway:
            for index, payload in enumerate(readings.payloads):
                topic, _ = readings.sources[readings.source_index[index]]
                await room.acquire()
                await nc.publish(
                    layout.raw_subject(index % 64), topic.encode() + b"\0" + payload, inbox
                )
    await done.wait()
    await subscription.unsubscribe()


class Ingest:
    """One way of bringing batches in: their packets made before the clock starts.

    Args:
        load: What is brought in.
        structured: In the structured mode.
        name: Its gateways' names begin so.
        window: Batches under way, of all gateways together.
        contexts_max: Gateways that may be in the structured mode.
    """

    def __init__(
        self, load: Load, *, structured: bool, name: str, window: int, contexts_max: int = 256
    ) -> None:
        self._window = window
        self._contexts_max = contexts_max
        self._gateways = [f"{name}-{number}" for number in range(len(load.readings))]
        self._packets: list[list[bytes]] = []
        self.link_bytes = 0
        for gateway, batches in zip(self._gateways, load.readings, strict=True):
            bodies = {Mode.STRUCTURED: StructuredEncoder(LINK_LIMITS)} if structured else {}
            encoder = Encoder(gateway, _EPOCH, bodies=bodies)
            mode = Mode.STRUCTURED if structured else Mode.COLUMNAR
            made = [encoder.encode(one, mode=mode, assigned=one.seqs[-1]) for one in batches]
            self.link_bytes += sum(map(len, made))
            topic = f"{UP_PREFIX}{gateway}".encode()
            self._packets.append([encode_publish(0x32, topic, 1, b"", one, 5) for one in made])

    async def connect(self, stream: JetStreamStream) -> None:
        """Have every gateway's first batch taken: contexts and processes are there then."""
        self._capture = CloudCapture(
            stream, IngestConfig(contexts_max=self._contexts_max), "bench", SystemClock()
        )
        await self._capture.start()
        clients = [ClientInfo(name, 5) for name in self._gateways]
        rounds = list(zip(*self._packets, strict=True))  # a batch of each gateway in turn
        runs = [list(zip(clients, one, strict=True)) for one in rounds]
        self._offers = Offers(self._capture, list(chain.from_iterable(runs[1:])), self._window)
        await Offers(self._capture, runs[0], _CONNECTING).answered()

    async def run(self) -> None:
        """Offer the rest as fast as it is taken."""
        await self._offers.answered()

    @property
    def gateways_cpu_s(self) -> float:
        """Processor time of `run` that was the simulated gateways' own."""
        return self._offers.cpu_s

    @property
    def decoders(self) -> list[int]:
        """The processes that decode the structured mode."""
        return self._capture.batches.structured.pids

    async def close(self) -> None:
        """End the capture."""
        await self._capture.close()


class Offers:
    """Gateways without a network, which do nothing but offer packets that were made before.

    Args:
        capture: Takes them.
        packets: One batch each, with whose it is, in the order in which they are offered.
        window: So many are under way.

    Attributes:
        cpu_s: What this took.
    """

    def __init__(
        self, capture: CloudCapture, packets: Sequence[tuple[ClientInfo, bytes]], window: int
    ) -> None:
        self.cpu_s = 0.0
        self._capture = capture
        self._packets = iter(packets)
        self._left = len(packets)
        self._room = window
        self._sending = False
        self._done: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def answered(self) -> None:
        """Offer all and return when they are answered; RuntimeError when one was refused."""
        self._send()
        async with asyncio.timeout(300):
            await self._done

    def _send(self) -> None:
        began_s = time.thread_time()
        self._sending = False
        runs = [
            PublishRun(client, UP_LANE, packet, 1, 0, self._settled)
            for client, packet in islice(self._packets, self._room)
        ]
        self._room -= len(runs)
        self.cpu_s += time.thread_time() - began_s
        for run in runs:
            self._capture.take(run)

    def _settled(self, _run: PublishRun, codes: int | Sequence[int]) -> None:
        began_s = time.thread_time()
        self._left -= 1
        self._room += 1
        if self._done.done():
            pass  # one was refused
        elif codes:
            self._done.set_exception(RuntimeError(f"refused: {codes}"))
        elif not self._left:
            self._done.set_result(None)
        elif not self._sending:  # what is answered in this turn is followed together
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)
        self.cpu_s += time.thread_time() - began_s


async def measured(
    work: Callable[[], Awaitable[None]],
    count: int,
    pids: Sequence[int],
    ingest: Ingest | None = None,
) -> Result:
    """Run one round, by `ingest` or otherwise, and return what it took."""
    gc.collect()
    decoders = ingest.decoders if ingest is not None else ()
    servers, decoding = sum(map(cpu_s_of, pids)), sum(map(cpu_s_of, decoders))
    cpu, began = time.process_time(), time.perf_counter()
    await work()
    seconds, cpu_s = time.perf_counter() - began, time.process_time() - cpu
    gateways_cpu_s = ingest.gateways_cpu_s if ingest is not None else 0.0
    return Result(
        count,
        seconds,
        cpu_s - gateways_cpu_s,
        sum(map(cpu_s_of, pids)) - servers,
        sum(map(cpu_s_of, decoders)) - decoding,
        gateways_cpu_s,
    )


async def measure(options: argparse.Namespace, servers: NatsServers) -> list[dict[str, object]]:
    """Run all rounds and return a row a way."""
    layout = Layout("bench", raw_bytes_max=2 << 30, ledger_bytes_max=64 << 20,
                    bucket_bytes_max=8 << 20)  # fmt: skip
    connection = await Connection.open(servers.url, name="bench")
    await apply(connection, layout)
    stream = await JetStreamStream.open(
        connection, layout, await stream_epoch(connection, layout), SystemClock(),
        durability="r3-fsync", tail_bytes_max=16 << 20, arrivals_max=1000,
    )  # fmt: skip
    batches = options.batches + 1  # the first is not measured
    load = load_of(options.shape, options.gateways, batches, options.batch, options.devices)
    count = options.gateways * options.batches * options.batch
    small = load_of(options.shape, 1, 1, options.one_by_one, options.devices)
    pids = [server.pid for server in servers.servers]
    results: dict[str, list[Result]] = {"one by one": [], "columnar": [], "structured": []}
    profile = cProfile.Profile() if options.profile else None
    try:
        for number in range(options.rounds):
            peer = await nats.connect(servers.servers[0].url, pending_size=16 << 20)
            work = partial(one_by_one, peer, layout, small)
            results["one by one"].append(await measured(work, small.count, pids))
            await peer.close()
            for name in ("columnar", "structured"):
                ingest = Ingest(
                    load,
                    structured=name == "structured",
                    name=f"{name}{number}",
                    window=options.window * options.gateways,
                )
                await ingest.connect(stream)
                if profile is not None and name == options.profile:
                    profile.enable()
                results[name].append(await measured(ingest.run, count, pids, ingest))
                if profile is not None:
                    profile.disable()
                await ingest.close()
            await stream.trim((await stream.stats()).last_positions)
    finally:
        await stream.close()
    if profile is not None:
        pstats.Stats(profile, stream=sys.stdout).sort_stats("tottime").print_stats(18)
    base = statistics.median(one.rate for one in results["one by one"])
    return [_row(name, found, base) for name, found in results.items()]


def _row(name: str, found: Sequence[Result], base: float) -> dict[str, object]:
    rate = statistics.median(one.rate for one in found)
    client = statistics.median(one.client_cpu_s / one.readings * 1e6 for one in found)
    servers = statistics.median(one.servers_cpu_s / one.readings * 1e6 for one in found)
    decoders = statistics.median(one.decoders_cpu_s / one.readings * 1e6 for one in found)
    return {
        "case": name,
        "readings_per_s": round(rate),
        "ratio": round(rate / base, 2),
        "client_us_a_reading": round(client, 2),
        "decoders_us_a_reading": round(decoders, 2),
        "servers_us_a_reading": round(servers, 2),
    }


def main(argv: Sequence[str] | None = None) -> int:
    """Run it and print a table, or rows as JSON."""
    parser = argparse.ArgumentParser(
        prog="tidegate bench cluster",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rounds", type=int, default=5, help="of each way [5]")
    parser.add_argument("--gateways", type=int, default=20, help="at once [20]")
    parser.add_argument("--batches", type=int, default=10, help="of each gateway a round [10]")
    parser.add_argument("--batch", type=int, default=500, help="readings a batch [500]")
    parser.add_argument("--devices", type=int, default=10, help="of each gateway [10]")
    parser.add_argument("--one-by-one", type=int, default=20_000, help="readings a round [20000]")
    parser.add_argument("--shape", default="smart-plug", help="of the payloads [smart-plug]")
    parser.add_argument("--window", type=int, default=4, help="batches a gateway under way [4]")
    parser.add_argument(
        "--profile", choices=("columnar", "structured"), help="where the node's time goes"
    )
    parser.add_argument("--quick", action="store_true", help="one small round")
    parser.add_argument("--json", action="store_true", help="rows as JSON on the last line")
    options = parser.parse_args(argv)
    if options.quick:
        options.rounds, options.gateways, options.batches, options.one_by_one = 1, 4, 2, 1000
    rows: list[dict[str, object]] = []
    with (
        tempfile.TemporaryDirectory() as folder,
        NatsServers(Path(folder), 3, disk_bytes_max=8 << 30) as servers,
    ):

        async def work() -> int:
            rows.extend(await measure(options, servers))
            return 0

        run_loop(work())
    for row in rows:
        print(
            f"{row['case']:12} {row['readings_per_s']:>10,} readings/s  {row['ratio']:>6}x  "
            f"client {row['client_us_a_reading']} us, decoders {row['decoders_us_a_reading']} us, "
            f"servers {row['servers_us_a_reading']} us of a core a reading"
        )
    if kernel.native is None:
        print("the structured mode's kernel is not built here: decoding takes twice as long")
    if options.json:
        print(json.dumps(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
