"""100,000 retained messages: set with QoS 1, then delivered to a subscriber of `#` below them.

Ours has each on disk before its PUBACK; mosquitto keeps them in memory. 20 connections with a
window of 100 set them; one client reads all of them, at QoS 0 and at QoS 1.

    tidegate bench retained
"""

from __future__ import annotations

import time
from functools import partial

from benchmarks.brokers import RunningBroker
from benchmarks.compare import Figure, Row, alternate, figure_of, parser_of, report, routing_starts
from benchmarks.load import LoadSpec, spawn_load
from benchmarks.wire import connected, cpu_s_of, frame_of, memory_bytes_of, receive_exactly

__all__ = ["main"]

_CONNECTIONS = 20
_TOPIC = "retained/{client}/{n:06d}"
_PAYLOAD_BYTES = 100


def _measure(broker: RunningBroker, count: int) -> dict[str, Figure]:
    before = memory_bytes_of(broker.pid)
    load = spawn_load(
        LoadSpec(
            port=broker.port,
            pid=broker.pid,
            connections=_CONNECTIONS,
            window=100,
            count=count,
            topic=_TOPIC,
            topics=count // _CONNECTIONS,
            retain=True,
            payload_bytes=_PAYLOAD_BYTES,
            client_prefix="setter",
            client_digits=2,
        )
    )
    cores = load.broker_core_share, load.generator_core_share
    return {
        "set": figure_of(load.messages_per_s, *cores),
        "memory": Figure((memory_bytes_of(broker.pid) - before) / count),
        "QoS 0": _deliver(broker, count, 0),
        "QoS 1": _deliver(broker, count, 1),
    }


def _deliver(broker: RunningBroker, count: int, qos: int) -> Figure:
    """Read all that is retained. Raises ConnectionError when the broker sends something else."""
    topic = _TOPIC.format(client="setter-00", n=0)
    frame = frame_of(topic, bytes(_PAYLOAD_BYTES), qos, 1, retain=True)
    size, id_at = len(frame), len(frame) - _PAYLOAD_BYTES - 2
    left = size * count
    sock = connected(broker.port, "reader")
    cpu, broker_cpu, start = time.process_time(), cpu_s_of(broker.pid), time.monotonic()
    try:
        sock.sendall(b"\x82\x0f\x00\x01\x00\x0aretained/#" + bytes([qos]))
        if receive_exactly(sock, 5) != b"\x90\x03\x00\x01" + bytes([qos]):
            raise ConnectionError("SUBSCRIBE refused")
        carry = b""
        while left:
            data = sock.recv(262_144)
            if not data:
                raise ConnectionError("closed by the broker")
            left -= len(data)
            data = carry + data
            whole = len(data) - len(data) % size
            carry = data[whole:]
            if data[:whole:size].strip(frame[:1]):
                raise ConnectionError(f"not a retained PUBLISH: {data[:40].hex()}")
            if qos and whole:
                acks = bytearray(b"\x40\x02\0\0" * (whole // size))
                acks[2::4] = data[id_at:whole:size]
                acks[3::4] = data[id_at + 1 : whole : size]
                sock.sendall(acks)
        seconds = time.monotonic() - start
    finally:
        sock.close()
    broker_share = (cpu_s_of(broker.pid) - broker_cpu) / seconds
    return figure_of(count / seconds, broker_share, (time.process_time() - cpu) / seconds)


def main() -> None:
    """Measure both brokers; print a table, then the same as JSON."""
    parser = parser_of(__doc__, runs=3, routing=True)
    parser.add_argument("--count", type=int, default=100_000, help="messages [100000]")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.count = 1, 2000
    options.count -= options.count % _CONNECTIONS
    found = alternate(partial(_measure, count=options.count), options.runs, routing_starts(options))
    name = f"{options.count:,} retained"
    report(
        [
            Row(f"{name}: set, QoS 1", "message/s", found["set"], 1.0),
            Row(f"{name}: memory each", "bytes", found["memory"], 0.0, lower_is_better=True),
            Row(f"{name}: delivered, QoS 0", "message/s", found["QoS 0"], 1.0),
            Row(f"{name}: delivered, QoS 1", "message/s", found["QoS 1"], 1.0),
        ],
        only_json=options.json,
    )


if __name__ == "__main__":
    main()
