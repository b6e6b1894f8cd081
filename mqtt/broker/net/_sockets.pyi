import select
from mmap import mmap
from typing import Protocol

class Library(Protocol):
    VERSION: int

    def receive(
        self, epoll: select.epoll, buffer: bytearray | mmap, read_bytes: int, /
    ) -> list[int | bytes]: ...
    def send(self, outgoing: dict[int, bytes], /) -> list[int] | None: ...

VERSION: int

def receive(
    epoll: select.epoll, buffer: bytearray | mmap, read_bytes: int, /
) -> list[int | bytes]: ...
def send(outgoing: dict[int, bytes], /) -> list[int] | None: ...
