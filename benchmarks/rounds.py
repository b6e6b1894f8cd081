"""Rounds of lone messages: our broker's CPU a message, least of many rounds, on a busy machine too.

Broker and clients are one process. In a round every client sends one message; what is timed is the
processor time from there until all of them are answered, without the clients' own. A round is a
few milliseconds, so that the least of many is one that nothing else on the machine has disturbed:
fit to compare two states of the source, and no measure of a rate. `python -X no-native-sockets -m
benchmarks.rounds` measures without the helper in C.

    tidegate bench rounds
    tidegate bench rounds -- --rounds 300 --cases pairs
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import structlog

from benchmarks.compare import raise_descriptor_limit
from benchmarks.wire import connected, frame_of, receive_exactly, subscribe
from edge.capture import Capture
from edge.config import CaptureConfig, JournalConfig
from edge.journal import Journal
from mqtt.broker.broker import Broker
from mqtt.broker.config import BrokerConfig
from mqtt.broker.net.config import ListenerConfig
from mqtt.broker.session_store import SqliteSessionStore
from runtime.clock import SystemClock
from runtime.service import run

__all__ = ["main"]

_LOOK_S = 0.0004  # how often it is looked whether a round is over
_PAYLOAD = b"0123456789" * 10


class _Clients:
    """Publishers, and for pairs a subscriber for each, on blocking sockets."""

    def __init__(self, port: int, count: int, *, pairs: bool) -> None:
        topic = "bench/{}/t" if pairs else "devices/{}/bench"
        self.frames = [
            frame_of(topic.format(f"{number:05d}"), _PAYLOAD, 1, 1, 4) for number in range(count)
        ]
        self.publishers = [connected(port, f"publisher-{number}") for number in range(count)]
        self.subscribers: list[socket.socket] = []
        for number in range(count if pairs else 0):
            self.subscribers.append(connected(port, f"subscriber-{number}"))
            subscribe(self.subscribers[-1], [f"bench/{number:05d}/#"], 1)

    def publish(self) -> None:
        """Send a message each."""
        for sock, frame in zip(self.publishers, self.frames, strict=True):
            sock.sendall(frame)

    def acknowledge(self) -> None:
        """Take what has come for the subscribers and acknowledge it."""
        size = len(self.frames[0])
        answers = []
        for sock in self.subscribers:
            frame = receive_exactly(sock, size)
            id_at = size - len(_PAYLOAD) - 2
            answers.append((sock, b"\x40\x02" + frame[id_at : id_at + 2]))
        for sock, answer in answers:
            sock.sendall(answer)

    def take_answers(self) -> None:
        """Take every publisher's PUBACK."""
        for sock in self.publishers:
            receive_exactly(sock, 4)

    def close(self) -> None:
        """Close every socket."""
        for sock in [*self.publishers, *self.subscribers]:
            sock.close()


async def _timed(done: Callable[[], bool]) -> float:
    """Return the processor time until something is so and the loop has come to rest, in µs."""
    start_s = time.process_time()
    while not done():
        await asyncio.sleep(_LOOK_S)
    await asyncio.sleep(_LOOK_S)
    return 1e6 * (time.process_time() - start_s)


async def _rounds(
    broker: Broker, port: int, count: int, rounds: int, capture: Capture | None
) -> list[float]:
    clients = await asyncio.to_thread(_Clients, port, count, pairs=capture is None)

    policy = broker._core.policy  # noqa: SLF001 - `stats()` looks at every connection

    def settled(number: int) -> Callable[[], bool]:
        if capture is not None:
            return lambda: capture.stats.readings >= count * number
        return lambda: policy.sent[1] >= count * number

    figures = []
    gc.collect()
    gc.freeze()
    for number in range(1, rounds + 1):
        clients.publish()
        spent_us = await _timed(settled(number))
        if capture is None:
            clients.acknowledge()
            spent_us += await _timed(lambda: policy.queued_bytes == 0)
        clients.take_answers()
        figures.append(spent_us / count)
    clients.close()
    return figures


async def _measure(folder: Path, count: int, rounds: int, *, captured: bool) -> list[float]:
    clock = SystemClock()
    config = JournalConfig()
    journal = await Journal.open(folder / "journal.db", config, clock)
    capture = Capture(journal, CaptureConfig(), config, clock) if captured else None
    store = SqliteSessionStore(folder / "sessions.db")
    broker = Broker(BrokerConfig(), capture=capture, store=store)
    await broker.start()
    port = await broker.open_listener(ListenerConfig(port=0))
    try:
        return await _rounds(broker, port, count, rounds, capture)
    finally:
        await broker.stop()
        if capture is not None:
            await capture.close()
        await journal.close()


async def _run(options: argparse.Namespace) -> int:
    rows = []
    for case in options.cases.split(","):
        with tempfile.TemporaryDirectory(prefix="rounds-") as folder:
            captured = case == "fan-in"
            figures = await _measure(
                Path(folder), options.connections, options.rounds, captured=captured
            )
        row = {"case": case, "least_us": min(figures), "median_us": statistics.median(figures)}
        rows.append({key: round(v, 2) if isinstance(v, float) else v for key, v in row.items()})
        if not options.json:
            print(f"{case:8} us a message: least {min(figures):.2f}, median {row['median_us']:.2f}")
    print(json.dumps(rows))
    return 0


def main() -> None:
    """Measure each case; print a line each, then all as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--cases", default="fan-in,pairs", help="of fan-in and pairs [both]")
    parser.add_argument("--connections", type=int, default=500, help="publishers [500]")
    parser.add_argument("--rounds", type=int, default=200, help="[200]")
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--quick", action="store_true", help="few: does it run at all")
    options = parser.parse_args()
    if options.quick:
        options.connections, options.rounds = 5, 3
    raise_descriptor_limit(4 * options.connections)
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sys.exit(run(_run(options)))


if __name__ == "__main__":
    main()
