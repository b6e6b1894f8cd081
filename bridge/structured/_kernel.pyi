from collections.abc import Sequence
from typing import Protocol

from bridge.structured.context import Source

class Kernel(Protocol):
    VERSION: int
    def expect_all(
        self, sources: list[Source], start: int, end: int, /
    ) -> tuple[list[int], list[int]] | None: ...
    def frequencies(
        self, prior: list[int], counts: list[int], gain: int, /
    ) -> tuple[list[tuple[int, int]], list[int]]: ...
    def integers_of(
        self, symbols: list[int], plain: str, end: int, /
    ) -> tuple[list[int | None], int]: ...
    def note_expected(self, source: Source, time: int, residual: int, /) -> bool: ...
    def pack_symbols(self, spans: list[tuple[int, int]], /) -> bytes: ...
    def parse_all(
        self,
        tokens: Sequence[bytes],
        kind: int,
        digits: int,
        text: bytes,
        prefix: bytes,
        suffix: bytes,
        /,
    ) -> list[int | None]: ...
    def predict(
        self,
        kind: int,
        last: list[int | None],
        aux: list[int | None],
        cells: list[int],
        times: Sequence[int],
        refs: Sequence[int | None],
        xs: list[int | None],
        num: int,
        den: int,
        recent: int,
        recent_aux: int,
        fwd: bool,
        /,
    ) -> tuple[list[int | None], int, int] | None: ...
    def read_symbols(
        self,
        out: list[int],
        words: list[int],
        at: int,
        state: int,
        starts: list[list[int]],
        spans: list[list[tuple[int, int]]],
        logs: list[list[int]],
        contexts: list[int],
        cells: list[int],
        after: list[int],
        start: int,
        end: int,
        /,
    ) -> tuple[int, int]: ...
    def show_all(
        self,
        values: list[int],
        kind: int,
        digits: int,
        text: bytes,
        prefix: bytes,
        suffix: bytes,
        /,
    ) -> list[bytes]: ...
    def symbols_of(self, steps: list[int | None], plain: list[str], /) -> list[int]: ...
    def write_symbols(
        self,
        put: list[tuple[int, int]],
        spans: list[list[tuple[int, int]]],
        logs: list[list[int]],
        contexts: list[int],
        cells: list[int],
        symbols: list[int],
        after: list[int],
        start: int,
        end: int,
        /,
    ) -> None: ...

VERSION: int
