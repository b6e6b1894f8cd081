"""What lies under an uplink's MQTT: the TCP connection, TLS on it, and the kernel's counts.

All of it runs on the event loop and holds it nowhere. On Linux, TCP_INFO tells what a connection
really costs, headers and retransmissions included, and whether its bytes still move.
"""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import struct
import sys
from dataclasses import dataclass
from typing import Any

from bridge.errors import LinkError
from edge.uplink_config import UplinkConfig

__all__ = ["LinkBytes", "reason_of", "tls_context", "tls_handshake"]

_TCP_INFO = struct.Struct("8x24I4Q6I4Q2I2Q")  # Linux 4.19, up to tcpi_bytes_retrans
_TCP_HEADER_BYTES = 32  # with timestamps
_IP_HEADER_BYTES = {socket.AF_INET: 20, socket.AF_INET6: 40}


@dataclass(slots=True)
class LinkBytes:
    """What a connection has moved.

    On Linux these are the kernel's own counts, TLS, TCP/IP headers and retransmissions included;
    elsewhere the bytes of MQTT packets as far as they are known.
    """

    out: int = 0
    into: int = 0
    acked: int = 0  # bytes of the stream the peer's TCP has acknowledged
    outstanding: bool = False  # something is written and not acknowledged by the peer's TCP
    rtt_ms: float = 0.0
    gone_out: int = 0  # of `out`: on sockets that were given up
    gone_into: int = 0

    def sample(self, sock: Any) -> None:
        """Take the kernel's counts of a socket; what it does not tell stays as it was."""
        if sock is None or sys.platform != "linux":
            return
        try:
            raw = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO.size)
            info = _TCP_INFO.unpack(raw)
        except (OSError, struct.error):
            return
        unacked, rtt_us = info[4], info[15]
        acked, received, segments_out, segments_in, not_sent = info[26:31]
        header = _TCP_HEADER_BYTES + _IP_HEADER_BYTES.get(sock.family, 0)
        self.out = self.gone_out + info[40] + segments_out * header
        self.into = self.gone_into + received + segments_in * header
        self.acked = acked
        self.outstanding = bool(unacked or not_sent)
        self.rtt_ms = rtt_us / 1000

    def gone(self, sock: Any) -> None:
        """Take the counts of a socket that is given up; those of another come on top."""
        self.sample(sock)
        self.gone_out, self.gone_into = self.out, self.into


async def tls_handshake(
    sock: socket.socket, context: ssl.SSLContext, name: str, counts: LinkBytes
) -> ssl.SSLSocket:
    """Return `sock` with TLS on it, the server's certificate and name checked.

    Args:
        sock: Connected, not blocking; closed when it fails.
        context: What is trusted and shown.
        name: What the certificate must be for.
        counts: Told what a failure has cost: a dial that fails is paid for as well.

    Raises:
        ssl.SSLError: the peer is not to be trusted, or speaks no TLS.
        OSError: the connection broke.
    """
    tls = context.wrap_socket(sock, server_hostname=name, do_handshake_on_connect=False)
    loop, fd = asyncio.get_running_loop(), tls.fileno()
    try:
        while True:
            ready = loop.create_future()
            try:
                tls.do_handshake()
            except ssl.SSLWantReadError:
                loop.add_reader(fd, _resolve, ready)
                try:
                    await ready
                finally:
                    loop.remove_reader(fd)
            except ssl.SSLWantWriteError:
                loop.add_writer(fd, _resolve, ready)
                try:
                    await ready
                finally:
                    loop.remove_writer(fd)
            else:
                return tls
    except BaseException:
        counts.sample(tls)
        tls.close()
        raise


def tls_context(config: UplinkConfig) -> ssl.SSLContext:
    """Return the context for mqtts.

    Raises:
        LinkError: a file cannot be used.
    """
    try:
        context = ssl.create_default_context(
            cafile=str(config.tls_ca_file) if config.tls_ca_file else None
        )
        if config.tls_cert_file is not None:
            key = str(config.tls_key_file) if config.tls_key_file else None
            context.load_cert_chain(str(config.tls_cert_file), key)
    except OSError as error:  # ssl.SSLError is one, and neither names the file
        files = (config.tls_ca_file, config.tls_cert_file, config.tls_key_file)
        named = ", ".join(str(file) for file in files if file)
        detail = error.strerror or error
        raise LinkError(f"certificate files {named} cannot be used: {detail}") from None
    return context


def reason_of(error: BaseException) -> str:
    """Return in a few words what went wrong with a socket."""
    if isinstance(error, ConnectionError) and error.errno:
        return os.strerror(error.errno)  # asyncio's own text hides what happened
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
