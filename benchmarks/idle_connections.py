"""Memory of an idle gateway broker, and of each idle connection with its session.

Ours runs with the edge's journal and session store; both brokers are asked what the system says
they hold (proportional set size) before and after the connections, which have come to rest.

    tidegate bench idle-connections -- --connections 5000
"""

from __future__ import annotations

import argparse
import json
import socket
import tempfile
import time
from pathlib import Path

from benchmarks.brokers import RunningBroker, mosquitto, ours
from benchmarks.compare import raise_descriptor_limit
from benchmarks.wire import connected, memory_bytes_of

__all__ = ["main"]

_TARGET_BYTES = 3000  # an idle connection with its session, DESIGN section 8


def _measure(broker: RunningBroker, connections: int) -> dict[str, object]:
    before = memory_bytes_of(broker.pid)
    sockets: list[socket.socket] = []
    try:
        sockets += (
            connected(broker.port, f"idle-{index:06d}", keep_alive=60)
            for index in range(connections)
        )
        time.sleep(1)  # for the system's figure, not for the broker
        after = memory_bytes_of(broker.pid)
    finally:
        for one in sockets:
            one.close()
    return {
        "broker": broker.name,
        "connections": connections,
        "idle_bytes": before,
        "bytes_a_connection": round((after - before) / connections),
        "target_bytes_a_connection": _TARGET_BYTES,
    }


def main() -> None:
    """Measure both brokers; print a table, then the same as JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    parser.add_argument("--quick", action="store_true", help="50 connections: does it run at all")
    options = parser.parse_args()
    if options.quick:
        options.connections = 50
    raise_descriptor_limit(options.connections)
    rows = []
    with tempfile.TemporaryDirectory(prefix="idle-") as folder:
        for start in (ours, mosquitto):
            with start(Path(folder) / start.__name__) as broker:
                rows.append(_measure(broker, options.connections))
    if not options.json:
        print(f"{'broker':10} {'idle MB':>8} {'bytes a connection':>19} {'target':>7}")
        for row in rows:
            print(
                f"{row['broker']:10} {int(str(row['idle_bytes'])) / 1e6:>8.1f} "
                f"{row['bytes_a_connection']:>19} {row['target_bytes_a_connection']:>7}"
            )
    print(json.dumps(rows))


if __name__ == "__main__":
    main()
