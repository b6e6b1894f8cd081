import select
import socket
from mmap import mmap
from typing import Any, Protocol

class Library(Protocol):
    VERSION: int

    def accept(
        self, listening: socket.socket, wanted: int, /
    ) -> list[int | tuple[Any, ...] | None]: ...
    def receive(
        self, epoll: select.epoll, buffer: bytearray | mmap, read_bytes: int, /
    ) -> list[int | bytes]: ...
    def send(self, outgoing: dict[int, bytes], /) -> list[int] | None: ...

VERSION: int

def accept(listening: socket.socket, wanted: int, /) -> list[int | tuple[Any, ...] | None]: ...
def receive(
    epoll: select.epoll, buffer: bytearray | mmap, read_bytes: int, /
) -> list[int | bytes]: ...
def send(outgoing: dict[int, bytes], /) -> list[int] | None: ...
