"""Which sockets are ready, of those that somebody else reads and writes: an epoll of our own.

OpenSSL reads and writes its sockets itself, so they are only to be told of. The event loop watches
the epoll and not each socket, which costs it nothing then: a handle of uvloop's is half a kilobyte
and five system calls (docs/adr/0014-tls-transport.md).

Invariants:
- a socket is in the epoll exactly while something is wanted of it, so that one that nobody reads
  from does not wake the loop over and over because it has ended;
- nobody is told of a socket after `forget`, not even in the same turn.
"""

from __future__ import annotations

import asyncio
import select
from typing import Final, Protocol

__all__ = ["READABLE", "WRITABLE", "Readiness", "Watcher"]

READABLE: Final = int(select.EPOLLIN)
WRITABLE: Final = int(select.EPOLLOUT)
_AT_ONCE: Final = 64  # sockets a turn: a handshake in each takes 20 ms before others have theirs


class Watcher(Protocol):
    """Who is told of a socket."""

    def on_ready(self, events: int) -> None:
        """READABLE, WRITABLE, or what epoll tells of an end or an error: any of them."""
        ...

    def abort(self) -> None:
        """Nobody watches any more: end at once."""
        ...


class Readiness:
    """Watches sockets of one event loop for others."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._epoll = select.epoll()
        self._watchers: dict[int, Watcher] = {}  # by descriptor
        loop.add_reader(self._epoll.fileno(), self._tell)

    def watch(self, descriptor: int, watcher: Watcher) -> None:
        """Tell of a socket when it is readable. Raises OSError when it cannot be watched."""
        self._epoll.register(descriptor, READABLE)
        self._watchers[descriptor] = watcher

    def hand_over(self, descriptor: int, watcher: Watcher) -> None:
        """Tell somebody else of a socket from now on."""
        self._watchers[descriptor] = watcher

    def change(self, descriptor: int, before: int, wanted: int) -> None:
        """Tell of other events than before; 0 is none."""
        if not wanted:
            self._epoll.unregister(descriptor)
        elif before:
            self._epoll.modify(descriptor, wanted)
        else:
            self._epoll.register(descriptor, wanted)

    def forget(self, descriptor: int, before: int) -> None:
        """Tell no more of a socket, which is about to be closed."""
        del self._watchers[descriptor]
        if before:
            self._epoll.unregister(descriptor)

    def close(self) -> None:
        """End whoever is left, and watch nothing more."""
        for watcher in list(self._watchers.values()):
            watcher.abort()
        if not self._epoll.closed:
            self.loop.remove_reader(self._epoll.fileno())
            self._epoll.close()

    def _tell(self) -> None:
        watchers = self._watchers
        for descriptor, events in self._epoll.poll(0, _AT_ONCE):
            watcher = watchers.get(descriptor)
            if watcher is not None:
                try:
                    watcher.on_ready(events)
                except Exception as error:  # noqa: BLE001 - a callback's root: the others go on
                    self.loop.call_exception_handler(
                        {"message": "a TLS connection failed", "exception": error}
                    )
                    watcher.abort()
