"""Many sockets accepted, read or written by one call: in C where it was built, else in Python.

`accept`, `receive` and `send` of `_sockets.c` do what their twins here do, without the
interpreter's lock and without a Python call a socket; `python -X no-native-sockets` runs the twins
(tests/mqtt/test_socket_calls.py compares them, docs/adr/0013-own-sockets.md has the figures).

Invariant: a library of another version than this file's is not used.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from mmap import mmap
from typing import TYPE_CHECKING, Any, Final

from runtime.native import library

if TYPE_CHECKING:
    from mqtt.broker.net._sockets import Library
else:
    Library = object

Buffer = bytearray | mmap

__all__ = [
    "ACCEPT_MAX",
    "EVENTS_MAX",
    "VERSION",
    "WRITABLE",
    "Library",
    "accept",
    "native",
    "receive",
    "send",
]

VERSION: Final = 3  # rises with every change of a function's arguments or meaning
EVENTS_MAX: Final = 128  # sockets a call; the others come first in the next
ACCEPT_MAX: Final = 64  # likewise
WRITABLE: Final = int(select.EPOLLOUT)

native: Library | None = library("mqtt.broker.net._sockets", VERSION, "no-native-sockets")


def _accept(listening: socket.socket, wanted: int) -> list[int | tuple[Any, ...] | None]:
    """Accept those who wait, without waiting for any.

    Args:
        listening: Not blocking.
        wanted: Accept at most so many, and ACCEPT_MAX.

    Returns:
        `[descriptor, address, descriptor, address, ...]`: each not blocking and the caller's; the
        address as `socket.accept` has it, None of a Unix socket. None when nobody waits.

    Raises:
        OSError: nobody could be accepted; no descriptor is left, most of all.
    """
    accepted: list[int | tuple[Any, ...] | None] = []
    for _ in range(min(wanted, ACCEPT_MAX)):
        try:
            sock, address = listening.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            break
        except OSError:
            if accepted:
                break
            raise
        sock.setblocking(False)
        accepted += (sock.detach(), address if isinstance(address, tuple) else None)
    return accepted


def _receive(epoll: select.epoll, buffer: Buffer, read_bytes: int) -> list[int | bytes]:
    """Read every socket that is ready, without waiting for any.

    Args:
        epoll: Level-triggered; what is not read in this call is in the next one.
        buffer: Bounds what is read in all. Each socket has its share of what is left, so that those
            that send without end starve nobody; it has to have EVENTS_MAX bytes or more.
        read_bytes: Read at most so much of one socket.

    Returns:
        `[descriptor, what, descriptor, what, ...]`, where `what` is the bytes that were read, none
        at the end of the stream; or a negative `errno`; or WRITABLE for a socket that is watched
        for it, after what was read of it.

    Raises:
        OSError: the epoll cannot be asked.
        ValueError: the buffer is too small.
    """
    found: list[int | bytes] = []
    left = len(buffer)
    if left < EVENTS_MAX or read_bytes <= 0:
        raise ValueError("a byte for each event is needed")
    ready = epoll.poll(0, EVENTS_MAX)
    for index, (descriptor, events) in enumerate(ready):
        if events & ~WRITABLE:
            found.append(descriptor)
            share = left // (len(ready) - index)
            try:
                data = os.read(descriptor, min(read_bytes, share))
            except OSError as error:
                found.append(-(error.errno or errno.EIO))
            else:
                left -= len(data)
                found.append(data)
        if events & WRITABLE:
            found += (descriptor, WRITABLE)
    return found


def _send(outgoing: dict[int, bytes]) -> list[int] | None:
    """Write to many sockets, without waiting for any.

    Args:
        outgoing: What to write, by descriptor.

    Returns:
        None when all of it was taken. Else `[descriptor, sent, descriptor, sent, ...]` of those
        that took less: how many bytes, or a negative `errno`.
    """
    rest: list[int] = []
    for descriptor, data in outgoing.items():
        try:
            sent = os.write(descriptor, data)
        except OSError as error:
            sent = -(error.errno or errno.EIO)
        if sent != len(data):
            rest += (descriptor, sent)
    return rest or None


accept = native.accept if native else _accept
receive = native.receive if native else _receive
send = native.send if native else _send
