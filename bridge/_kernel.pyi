from typing import Any, Protocol

from bridge.intervals import Range

class Kernel(Protocol):
    VERSION: int
    def cbor(self, value: Any, /) -> bytes: ...
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
    def sections(
        self, rows: list[int], used: list[int], first_rows: list[int], first_sources: list[int], /
    ) -> list[tuple[int, int, int, int, int]]: ...
    def seq_runs(
        self, seqs: list[int], first: int, end: int, /
    ) -> tuple[tuple[Range, ...], bytes]: ...
    def split(self, index: list[int], partitions: list[int], /) -> dict[int, list[int]]: ...
    def untrack(self, *lists: list[Any]) -> None: ...
    def written(
        self,
        table: list[bytes],
        index: list[int],
        times: list[int],
        flags: list[int],
        middle: bytes,
        payloads: list[bytes],
        bytes_max: int,
        /,
    ) -> bytes: ...

VERSION: int
