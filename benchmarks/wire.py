"""The MQTT packets that load generators send, and what a process used: shared by benchmarks.

Encoded here and not by the project's codec, so that a generator shares no code with a broker.
"""

from __future__ import annotations

import socket
import ssl
from pathlib import Path

__all__ = [
    "PINGREQ",
    "connect_frame",
    "connected",
    "cpu_s_of",
    "frame_of",
    "memory_bytes_of",
    "receive_exactly",
    "subscribe",
]

PINGREQ = b"\xc0\x00"
_CLOCK_TICKS_S = 100


def frame_of(
    topic: str,
    payload: bytes,
    qos: int,
    packet_id: int = 0,
    protocol_version: int = 4,
    *,
    retain: bool = False,
) -> bytes:
    """Return one PUBLISH."""
    name = topic.encode()
    body = len(name).to_bytes(2, "big") + name
    if qos:
        body += packet_id.to_bytes(2, "big")
    if protocol_version == 5:
        body += b"\x00"
    body += payload
    return bytes([0x30 | qos << 1 | retain]) + _variable_length(len(body)) + body


def connect_frame(client_id: str, protocol_version: int = 4, keep_alive: int = 0) -> bytes:
    """Return a CONNECT with a clean start."""
    name = client_id.encode()
    body = b"\x00\x04MQTT" + bytes([protocol_version, 0x02]) + keep_alive.to_bytes(2, "big")
    if protocol_version == 5:
        body += b"\x00"
    body += len(name).to_bytes(2, "big") + name
    return b"\x10" + _variable_length(len(body)) + body


def connected(
    port: int,
    client_id: str,
    *,
    host: str = "127.0.0.1",
    protocol_version: int = 4,
    keep_alive: int = 0,
    tls: ssl.SSLContext | None = None,
) -> socket.socket:
    """Return a blocking socket that is past CONNACK, over TLS if a context is given.

    Raises:
        ConnectionError: the broker refuses, or closes.
    """
    sock = socket.create_connection((host, port), timeout=30)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if tls is not None:
            sock = tls.wrap_socket(sock)
        sock.sendall(connect_frame(client_id, protocol_version, keep_alive))
        head = receive_exactly(sock, 2)
        connack = receive_exactly(sock, head[1])
        if head[0] != 0x20 or connack[1] != 0:
            raise ConnectionError(f"CONNECT refused: {(head + connack).hex()}")  # noqa: TRY301
    except BaseException:
        sock.close()
        raise
    return sock


def subscribe(sock: socket.socket, topic_filters: list[str], qos: int) -> None:
    """Subscribe a 3.1.1 client by SUBSCRIBE packets of 100 filters, and read the answers.

    Raises:
        ConnectionError: the broker refuses one, or closes.
    """
    for first in range(0, len(topic_filters), 100):
        some = topic_filters[first : first + 100]
        body = b"\x00\x01"
        for each in some:
            name = each.encode()
            body += len(name).to_bytes(2, "big") + name + bytes([qos])
        sock.sendall(b"\x82" + _variable_length(len(body)) + body)
        head = receive_exactly(sock, 2)
        if head[0] != 0x90:
            raise ConnectionError(f"not a SUBACK: {head.hex()}")
        codes = receive_exactly(sock, head[1])[2:]
        if codes != bytes([qos]) * len(some):
            raise ConnectionError(f"SUBSCRIBE refused: {codes.hex()}")


def receive_exactly(sock: socket.socket, count: int) -> bytes:
    """Return so many bytes. Raises ConnectionError when the broker closes first."""
    data = b""
    while len(data) < count:
        part = sock.recv(count - len(data))
        if not part:
            raise ConnectionError("closed by the broker")
        data += part
    return data


def cpu_s_of(pid: int) -> float:
    """Return the processor seconds, user and system, that process `pid` has used; 0.0 if gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _CLOCK_TICKS_S


def memory_bytes_of(pid: int) -> int:
    """Return what process `pid` holds: its proportional set size, each shared page by its share."""
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"no Pss for process {pid}")


def _variable_length(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
