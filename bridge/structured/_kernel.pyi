from collections.abc import Callable, Sequence
from typing import Protocol

from bridge.structured.assembly import Budget, Decoded, Placed
from bridge.structured.coder import Coder, Reader, Writer
from bridge.structured.columns import ReadColumn, WrittenColumn
from bridge.structured.context import Column, Family, ModelTables, Source, Template, TextModel
from bridge.structured.frames import Step
from bridge.structured.heads import FamilyRows, Row
from bridge.structured.planner import BatchPlan
from bridge.structured.protobuf import Repeated
from bridge.structured.references import Places, References
from bridge.structured.review import SourceView
from bridge.structured.room import Room
from bridge.structured.schema import ColumnPlan
from bridge.structured.shapes import Path
from bridge.structured.symbols import Spans
from bridge.structured.tables import Chain, Table
from bridge.structured.texts import Alphabet
from bridge.structured.timing import Arrivals

class Kernel(Protocol):
    VERSION: int
    def assemble(self, frames: list[list[Step]], tokens: tuple[bytes, ...], /) -> bytes: ...
    def bits_beside(
        self, rows: bytes, alone: list[int], kind: int, num: int, den: int, /
    ) -> float: ...
    def code_slots(
        self,
        io: Coder,
        tables: ModelTables,
        family: Family,
        slots: int,
        texts: tuple[bytes, ...] | None,
        plans: list[ColumnPlan] | None,
        new_fragment: Callable[[int, bytes | None], int],
        new_column: Callable[[ColumnPlan | None], int],
        /,
    ) -> tuple[tuple[int, ...], tuple[int, ...]]: ...
    def code_text(
        self,
        io: Coder,
        model: TextModel,
        reference: bytes,
        most: int,
        value: bytes | None,  # of a writer
        packing: Alphabet | None,
        /,
    ) -> bytes: ...
    def code_texts(
        self,
        io: Coder,
        model: TextModel,
        column: Column,
        cells: list[int],
        tokens: Sequence[bytes] | None,  # of a writer
        most: int,
        packing: Alphabet | None,
        /,
    ) -> list[bytes]: ...
    def expect_all(
        self, sources: list[Source], start: int, end: int, /
    ) -> tuple[list[int], list[int]] | None: ...
    def forecasts(
        self, sources: list[Source], given: list[int], /
    ) -> tuple[list[int], list[int], list[int], list[int | None]] | None: ...
    def frequencies(self, prior: list[int], counts: list[int], gain: int, /) -> Spans: ...
    def gather(
        self, templates: list[Template], hot: list[tuple[bytes, ...]], /
    ) -> dict[int, tuple[list[int], list[bytes]]]: ...
    def integers_of(
        self, symbols: list[int], plain: str, end: int, /
    ) -> tuple[list[int | None], int]: ...
    def match_shape(
        self, fragments: tuple[bytes, ...], json: bool, payload: bytes, /
    ) -> tuple[bytes, ...] | None: ...
    def note_changes(
        self,
        gathered: dict[int, FamilyRows],
        template: Template,
        cell: int,
        time: int,
        tokens: tuple[bytes, ...],
        /,
    ) -> tuple[int, tuple[int, ...]]: ...
    def note_round(
        self,
        sources: list[Source],
        places: list[int],
        forecasts: list[int],
        steps: list[int | None],
        times: list[int | None],
        /,
    ) -> list[int]: ...
    def note_rows(
        self,
        writer: Writer,
        lengths: Table,
        templates: list[Template | None],
        arrivals: Arrivals,
        plans: list[list[Row]],
        gathered: dict[int, FamilyRows],
        flag_properties: int,
        one: Callable[[Source, int, Row], int],
        /,
    ) -> list[int]: ...
    def place_rows(
        self,
        reader: Reader,
        lengths: Table,
        templates: list[Template | None],
        arrivals: Arrivals,
        heads: list[int],
        gathered: dict[int, FamilyRows],
        flag_properties: int,
        out: Decoded,
        placed: list[Placed],
        budget: Budget,
        one: Callable[[Source, int, int], None],
        /,
    ) -> None: ...
    def plan_sources(
        self,
        sources: list[tuple[SourceView, list[int]]],
        readings: tuple[list[int], list[int], list[bytes], list[bytes]],
        templates: list[Template | None],
        room: Room,
        batch: BatchPlan,
        most: tuple[int, int],  # bytes of a token, and of a payload
        flag_properties: int,
        one: Callable[[SourceView, list[int], int], None],
        /,
    ) -> int: ...
    def put_together(
        self,
        payloads: list[bytes],
        placed: list[Placed],
        budget: Budget,
        payload_of: Callable[[Template, list[bytes]], bytes],
        /,
    ) -> None: ...
    def off_counts(
        self, due: list[Source], expected: list[int], wanted: dict[Source, list[int]], /
    ) -> list[int | None]: ...
    def pack_symbols(self, spans: Spans, /) -> bytes: ...
    def pair_up(
        self,
        places: list[tuple[int, int]],
        now: list[int],
        before: list[int],
        values: list[list[int | None]],
        /,
    ) -> tuple[bytes, list[int], int, int, int] | None: ...
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
    def read_chain(
        self,
        reader: Reader,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        after: list[int],
        /,
    ) -> list[int]: ...
    def read_columns(
        self,
        reader: Reader,
        rows: FamilyRows,
        items: list[ReadColumn],
        references: References,
        after: list[int],
        one: Callable[[Column, Places], list[bytes]],
        rest: Callable[[Column, Places, list[int | None]], list[bytes]],
        escape: Callable[[Column], bytes],
        /,
    ) -> list[list[bytes]]: ...
    def read_gap(
        self, reader: Reader, gaps: list[Table], source: Source, /
    ) -> int | tuple[int | None] | None: ...
    def read_integer(self, reader: Reader, table: Table, /) -> int | None: ...
    def read_symbol(self, reader: Reader, table: Table, /) -> int: ...
    def rebuild(self, table: Table, /) -> None: ...
    def scatter(
        self, templates: list[Template], tokens: dict[int, list[bytes]], /
    ) -> list[tuple[bytes, ...]]: ...
    def shared_ends(self, a: bytes, b: bytes, /) -> tuple[int, int]: ...
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
    def sort_slots(
        self, slots: tuple[int, ...], columns: list[Column], /
    ) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...], tuple[int, ...]]: ...
    def split_json(
        self, payload: bytes, /
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...]] | None: ...
    def split_protobuf(
        self, payload: bytes, repeated: Repeated, /
    ) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[Path, ...]] | None: ...
    def step_bits(self, steps: list[int], /) -> float | None: ...
    def symbols_of(self, steps: list[int | None], plain: bytearray, /) -> list[int]: ...
    def take_due(
        self, due: list[Source], expected: list[int], steps: list[int | None], /
    ) -> tuple[list[int], list[int]]: ...
    def write_chain(
        self,
        put: Spans,
        chain: Chain,
        contexts: list[int],
        cells: list[int],
        symbols: list[int],
        after: list[int],
        /,
    ) -> None: ...
    def write_columns(
        self,
        writer: Writer,
        rows: FamilyRows,
        items: list[WrittenColumn],
        references: References,
        tables: ModelTables,
        after: tuple[list[int], list[int]],
        one: Callable[[Column, Places, Sequence[bytes]], None],
        escape: Callable[[Column, bytes], bytes],
        /,
    ) -> None: ...
    def write_gap(
        self,
        put: Spans,
        plain: bytearray,
        gaps: list[Table],
        source: Source,
        time: int,
        /,
    ) -> bool: ...
    def write_integer(self, put: Spans, plain: bytearray, table: Table, value: int, /) -> None: ...
    def write_symbol(self, put: Spans, table: Table, symbol: int, /) -> None: ...

VERSION: int
