"""PROXY protocol version 2: the client's address, told by the load balancer before.

HAProxy's specification, section 2.2: a signature of 12 bytes, version and command, family and
transport, the length of what follows, addresses, and values of no concern here. Version 1, a line
of text, is refused.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from typing import Final

__all__ = [
    "HEADER_BYTES_MAX",
    "NO_ADDRESS",
    "ProxyError",
    "parse_proxy_header",
    "read_proxy_header",
]

SIGNATURE: Final = b"\r\n\r\n\0\r\nQUIT\n"
HEADER_BYTES_MAX: Final = 2048  # after the first 16; addresses take 36, real values some hundred
NO_ADDRESS: Final = ("unknown", 0)  # of a client that a balancer cannot or will not tell
_ADDRESS_BYTES: Final = {1: 4, 2: 16}  # AF_INET, AF_INET6


class ProxyError(Exception):
    """What came first is no PROXY protocol header; `str()` is one line."""


def parse_proxy_header(head: bytes, body: bytes) -> tuple[str, int] | None:
    """Return the client's address and port.

    Args:
        head: The first 16 bytes.
        body: As many bytes as the head says.

    Returns:
        None when the balancer speaks for itself (a health check); NO_ADDRESS when its client has
        no Internet address.

    Raises:
        ProxyError: it is not a header of version 2.
    """
    if body_length(head) != len(body):
        raise ProxyError("PROXY header ends too early")
    command, family = head[12] & 0x0F, head[13] >> 4
    if command == 0:
        return None
    if command != 1:
        raise ProxyError(f"PROXY command {command} is unknown")
    size = _ADDRESS_BYTES.get(family)
    if size is None:
        return NO_ADDRESS
    if len(body) < 2 * size + 4:
        raise ProxyError("PROXY header has no room for its addresses")
    address = ipaddress.ip_address(body[:size])
    return str(address), int.from_bytes(body[2 * size : 2 * size + 2], "big")


def body_length(head: bytes) -> int:
    """Return how many bytes follow a header's first 16; raises ProxyError."""
    if len(head) < 16 or not head.startswith(SIGNATURE):
        raise ProxyError("no PROXY protocol version 2 header")
    if head[12] >> 4 != 2:
        raise ProxyError(f"PROXY protocol version {head[12] >> 4} is not spoken")
    length = int.from_bytes(head[14:16], "big")
    if length > HEADER_BYTES_MAX:
        raise ProxyError(f"PROXY header of {length} bytes")
    return length


async def read_proxy_header(sock: socket.socket) -> tuple[str, int] | None:
    """Read a header and not a byte more, so that TLS can follow; see `parse_proxy_header`.

    Raises:
        ProxyError: it is not a header of version 2.
        OSError: the connection failed.
    """
    head = await _read_exactly(sock, 16)
    return parse_proxy_header(head, await _read_exactly(sock, body_length(head)))


async def _read_exactly(sock: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        more = await loop.sock_recv(sock, size - len(data))
        if not more:
            raise ProxyError("connection ended inside the PROXY header")
        data += more
        # What cannot become a signature is not waited for.
        if not SIGNATURE.startswith(data[:12]) and size == 16:
            raise ProxyError("no PROXY protocol version 2 header")
    return data
