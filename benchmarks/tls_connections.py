"""5,000 TLS connections: how fast they come, what each costs in memory and processor time.

TLS 1.3, an ECDSA P-256 certificate, each client a full handshake, 16 at a time from threads of one
process; then all stay idle. The clients' side of a handshake costs about as much as the broker's,
so the rate is shared between both; the broker's processor time is its own.

    tidegate bench tls-connections
"""

from __future__ import annotations

import ssl
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from benchmarks.brokers import RunningBroker, ServerKey, mosquitto, ours
from benchmarks.compare import (
    Figure,
    Row,
    Start,
    alternate,
    figure_of,
    parser_of,
    raise_descriptor_limit,
    report,
)
from benchmarks.wire import connected, cpu_s_of, memory_bytes_of
from tidegate.certificates import Authority

__all__ = ["main"]

_THREADS = 16


def _measure(broker: RunningBroker, connections: int) -> dict[str, Figure]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # the clients' work is not what is measured
    before = memory_bytes_of(broker.pid)
    cpu, broker_cpu, start = time.process_time(), cpu_s_of(broker.pid), time.monotonic()
    with ThreadPoolExecutor(_THREADS) as pool:
        sockets = list(
            pool.map(
                lambda number: connected(broker.port, f"tls-{number}", keep_alive=600, tls=context),
                range(connections),
            )
        )
    seconds = time.monotonic() - start
    shares = (
        (cpu_s_of(broker.pid) - broker_cpu) / seconds,
        (time.process_time() - cpu) / seconds,
    )
    try:
        time.sleep(0.5)  # for the system's figure, not for the broker
        memory = (memory_bytes_of(broker.pid) - before) / connections
    finally:
        for sock in sockets:
            sock.close()
    return {"rate": figure_of(connections / seconds, *shares), "memory": Figure(memory)}


def main() -> None:
    """Measure both brokers; print a table, then the same as JSON."""
    parser = parser_of(__doc__, runs=3)
    parser.add_argument("--connections", type=int, default=5000, help="how many [5000]")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.connections = 1, 20
    raise_descriptor_limit(options.connections)
    with tempfile.TemporaryDirectory(prefix="bench-tls-") as folder:
        authority = Authority(Path(folder))
        authority.create("benchmark")
        certificate, key = authority.server("broker", ["127.0.0.1"], 2)[:2]
        files = ServerKey(certificate, key)
        measure = partial(_measure, connections=options.connections)
        starts: list[Start] = [partial(ours, tls=files), partial(mosquitto, tls=files)]
        found = alternate(measure, options.runs, starts)
    name = f"{options.connections:,} TLS connections"
    report(
        [
            Row(f"{name}: handshakes", "a second", found["rate"], 1.0),
            Row(f"{name}: memory each", "bytes", found["memory"], 0.0, lower_is_better=True),
        ],
        only_json=options.json,
    )


if __name__ == "__main__":
    main()
