"""Memory of an idle gateway broker, and of each idle connection with its session.

Ours runs with the edge's journal and session store; both brokers are asked what the system says
they hold (resident set) before and after the connections, which have come to rest.

    python -m benchmarks.idle_connections --connections 5000
"""

from __future__ import annotations

import argparse
import json
import resource
import socket
import tempfile
import time
from pathlib import Path

from benchmarks.brokers import RunningBroker, mosquitto, ours
from benchmarks.load import connect_frame

__all__ = ["main"]

_PAGE = resource.getpagesize()
_TARGET_BYTES = 3000  # an idle connection with its session, DESIGN section 8


def _resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE


def _measure(broker: RunningBroker, connections: int) -> dict[str, object]:
    before = _resident_bytes(broker.pid)
    sockets = []
    try:
        for index in range(connections):
            one = socket.create_connection(("127.0.0.1", broker.port), timeout=30)
            one.sendall(connect_frame(f"idle-{index:06d}", 4, keep_alive=60))
            sockets.append(one)
            if one.recv(4)[:2] != b"\x20\x02":
                raise ConnectionError(f"{broker.name} refused connection {index}")
        time.sleep(1)  # for the system's figure, not for the broker
        after = _resident_bytes(broker.pid)
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
    parser = argparse.ArgumentParser(description="memory of idle connections")
    parser.add_argument("--connections", type=int, default=5000)
    parser.add_argument("--json", action="store_true", help="print only JSON")
    options = parser.parse_args()
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.connections + 100
    limit = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))  # the brokers inherit it
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
