from typing import Protocol

from bridge.intervals import Range

class Kernel(Protocol):
    VERSION: int
    def count_apart(self, ranges: tuple[Range, ...], /) -> int: ...
    def merged(self, several: list[tuple[Range, ...]], /) -> list[Range] | None: ...
    def pack(
        self,
        head: bytes,
        index: list[int],
        times: list[int],
        flags: list[int],
        middle: bytes,
        payloads: list[bytes],
        reference: int,
        /,
    ) -> bytes: ...
    def packed_ranges(self, ranges: tuple[Range, ...], /) -> bytes: ...
    def seq_runs(
        self, seqs: list[int], first: int, end: int, /
    ) -> tuple[tuple[Range, ...], bytes]: ...
    def split(self, index: list[int], partitions: list[int], /) -> dict[int, list[int]]: ...

VERSION: int
