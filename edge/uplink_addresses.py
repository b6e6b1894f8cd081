"""Which address of a cloud node is dialled: a name may have several, and one of them be dead.

A host that is gone, or IPv6 that leads nowhere, does not refuse: it says nothing. So addresses are
dialled one after the other without waiting for the one before to fail (RFC 8305 section 5), and
those that came to nothing last time go last: a node may take connections and answer nothing on
them. What every attempt costs is counted.
"""

from __future__ import annotations

import asyncio
import errno
import socket
from collections import deque
from collections.abc import Hashable, Sequence
from typing import Any, TypeAlias

from edge.uplink_config import Endpoint
from edge.uplink_socket import LinkBytes

__all__ = ["Addresses", "open_socket"]

_NEXT_AFTER_S = 1.0  # between two attempts at most: RFC 8305 has 0.1 to 2, and each costs bytes

_Info: TypeAlias = tuple[Any, Any, int, str, Any]  # as of getaddrinfo


class Addresses:
    """How dialling the addresses of one endpoint went."""

    __slots__ = ("_failures",)

    def __init__(self) -> None:
        self._failures: dict[Hashable, int] = {}  # in a row, by address

    def order(self, infos: Sequence[_Info]) -> list[_Info]:
        """Return addresses in the order to dial them: families in turns, what failed last."""
        known = {info[4] for info in infos}
        self._failures = {one: count for one, count in self._failures.items() if one in known}
        places: dict[Any, int] = {}
        turns = []
        for info in infos:
            turn = places[info[0]] = places.get(info[0], -1) + 1
            turns.append((turn, info))
        turns.sort(key=lambda pair: (self._failures.get(pair[1][4], 0), pair[0]))
        return [info for _, info in turns]

    def dialled(self, address: Hashable) -> None:
        """Note that an address is tried: that failed, until `answered`."""
        self._failures[address] = self._failures.get(address, 0) + 1

    def answered(self, address: Hashable) -> None:
        """Note that the server at an address does what it should."""
        self._failures.pop(address, None)


async def open_socket(
    endpoint: Endpoint, addresses: Addresses, timeout_s: float, counts: LinkBytes
) -> socket.socket:
    """Connect to the first address of the endpoint that accepts.

    Args:
        endpoint: Where to.
        addresses: What is known of its addresses; told of every attempt.
        timeout_s: The caller's for all of it, in which each address is to have its turn.
        counts: Told what attempts that failed have cost.

    Raises:
        OSError: none does; of the last one tried.
    """
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM)
    left = deque(addresses.order(found))
    next_after_s = min(_NEXT_AFTER_S, timeout_s / (len(left) + 1))
    failure: BaseException = OSError(errno.EADDRNOTAVAIL, "the name has no address")
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while left or attempts:
            if left:
                info = left.popleft()
                addresses.dialled(info[4])
                attempts.add(asyncio.create_task(_connect(info, counts)))
            done, attempts = await asyncio.wait(
                attempts,
                timeout=next_after_s if left else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in done:
                error = attempt.exception()
                if error is None:
                    attempts |= done - {attempt}
                    return attempt.result()
                failure = error
    finally:
        await _give_up(attempts, counts)
    raise failure


async def _connect(info: _Info, counts: LinkBytes) -> socket.socket:
    family, kind, protocol, _, address = info
    sock = socket.socket(family, kind, protocol)
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        counts.gone(sock)
        sock.close()
        raise
    return sock


async def _give_up(attempts: set[asyncio.Task[socket.socket]], counts: LinkBytes) -> None:
    """End attempts that are not needed, those that were accepted at the last moment too."""
    for attempt in attempts:
        attempt.cancel()
    for found in await asyncio.gather(*attempts, return_exceptions=True):
        if isinstance(found, socket.socket):
            counts.gone(found)
            found.close()
