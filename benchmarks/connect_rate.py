"""Connect rate: clients that connect, are answered, disconnect, and are followed by the next.

50 at a time by default, from one process: TCP connect, CONNECT, CONNACK, DISCONNECT, and the
broker's close. The broker's processor time a connection says more than the rate, of which the
generator takes its part.

    tidegate bench connect-rate
"""

from __future__ import annotations

import select
import socket
import time
from functools import partial

from benchmarks.brokers import RunningBroker
from benchmarks.compare import Figure, Row, alternate, figure_of, parser_of, report
from benchmarks.wire import connect_frame, cpu_s_of

__all__ = ["main"]

_CONNACK = b"\x20\x02\x00\x00"
_DISCONNECT = b"\xe0\x00"


def _connecting(port: int, number: int) -> socket.socket:
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.send(connect_frame(f"connect-{number}"))
    return sock


def _measure(broker: RunningBroker, at_once: int, duration_s: float) -> dict[str, Figure]:
    """Connect and disconnect for so long. Raises ConnectionError when the broker refuses one."""
    poller = select.epoll()
    sockets: dict[int, socket.socket] = {}
    begun = done = 0
    cpu, broker_cpu, start = time.process_time(), cpu_s_of(broker.pid), time.monotonic()
    try:
        while (now := time.monotonic()) < start + duration_s or sockets:
            if now > start + duration_s + 10:
                raise ConnectionError("a connection was not closed within 10 s")
            while len(sockets) < at_once and now < start + duration_s:
                sock = _connecting(broker.port, begun)
                begun += 1
                sockets[sock.fileno()] = sock
                poller.register(sock.fileno(), select.EPOLLIN)
            for fd, _ in poller.poll(0.1):
                sock = sockets[fd]
                data = sock.recv(16)
                if data == _CONNACK:
                    sock.send(_DISCONNECT)
                elif not data:
                    poller.unregister(fd)
                    del sockets[fd]
                    sock.close()
                    done += 1
                else:
                    raise ConnectionError(f"CONNECT refused: {data.hex()}")
        seconds = time.monotonic() - start
        shares = (
            (cpu_s_of(broker.pid) - broker_cpu) / seconds,
            (time.process_time() - cpu) / seconds,
        )
        return {"rate": figure_of(done / seconds, *shares)}
    finally:
        poller.close()
        for sock in sockets.values():
            sock.close()


def main() -> None:
    """Measure both brokers; print a table, then the same as JSON."""
    parser = parser_of(__doc__)
    parser.add_argument("--at-once", type=int, default=50, help="connections open [50]")
    options = parser.parse_args()
    if options.quick:
        options.runs, options.duration_s = 1, 0.2
    measure = partial(_measure, at_once=options.at_once, duration_s=options.duration_s)
    found = alternate(measure, options.runs)
    rows = [
        Row(f"connect and disconnect, {options.at_once} at once", "a second", found["rate"], 1.0)
    ]
    report(rows, only_json=options.json)


if __name__ == "__main__":
    main()
