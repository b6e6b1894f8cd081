"""What both ends of a connection know: sources, families of templates, columns, statistics.

docs/link-format-structured.md section 1. A *source* is a (topic, device). A *template* is the
constant text of a payload with *slots* between; its *family* holds the *columns* its slots belong
to, so that templates which share fields share what was learned of them. An *instance* is a source
within a family, a *cell* an instance's place in a column.

Invariant: after the same bodies the contexts of encoder and decoder are equal (`snapshot.digest`).
Nothing that only an encoder knows is kept here. Objects hold no behaviour that codes anything.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import chain

from bridge.structured.coder import refuse
from bridge.structured.frames import Measured, Step, assemble, check_marks
from bridge.structured.kernel import native
from bridge.structured.limits import ENUM_VALUES, FOLLOWERS, TEMPLATE_RING, StructuredLimits
from bridge.structured.predictors import CellState, PredictorKind
from bridge.structured.printers import Printer
from bridge.structured.symbols import (
    CONTEXT_NEW,
    ENUM_PRIOR,
    UNKNOWN_PRIOR,
    Prior,
    residual_priors,
)
from bridge.structured.tables import Chain, Table

__all__ = [
    "RAW",
    "Column",
    "ColumnKind",
    "Context",
    "Family",
    "ModelTables",
    "Source",
    "Template",
    "TextModel",
    "TimeMode",
]

SCHEMA_FIELDS = 20
_PRINTERS_MAX = 1024  # at hand; those in use are with their columns
# By how much one more makes a context heavier, at most (`weight`).
_SOURCE_GROWS, _FAMILY_GROWS, _CELL_GROWS, _LITERAL_GROWS = 1_200, 3_000, 200, 20
RAW = -1  # in place of a template's number: the payload as it is


class ColumnKind:
    """What a column's tokens are taken for; the numbers are those of the format."""

    NUMBER = 0
    ENUM = 1
    TEXT = 2


class TimeMode:
    """How a source's times are predicted; the numbers are those of the format."""

    GAP = 0  # from the last reading
    PERIODIC = 1  # from a phase and a period that are followed
    TICK = 2  # from a phase and multiples of a fixed period


_HEAD_PRIOR = Prior([2048, 128, 128, 128])
_MASK_PRIOR = Prior([16] * 64)
_FOLLOWER_PRIOR = Prior([64] + [16] * (FOLLOWERS - 1) + [16, 16])
_CHOICE_PRIOR = Prior([64, 32, 32, 32])


def _numbers() -> Table:
    return Table(UNKNOWN_PRIOR)


@dataclass(slots=True)
class TextModel:
    """Statistics of texts that are written as what differs from another text."""

    prefix: Table = field(default_factory=_numbers)
    suffix: Table = field(default_factory=_numbers)
    length: Table = field(default_factory=_numbers)
    last_prefix: int = 0
    last_suffix: int = 0
    last_length: int = 0


@dataclass(slots=True, eq=False)
class Source:
    """A (topic, device) and what is known of its readings.

    Times are in the link's units; `phase` and `period` in 256ths of them.
    """

    topic: str
    device: str
    index: int  # in the context, -1 when it is remembered for one batch only
    # arrival
    mode: int = TimeMode.GAP
    last: int = 0
    gap: int = 0  # moving average between readings
    gap_size: int = 0  # size of the last gap
    phase: int = 0
    period: int = 0
    gain: int = 1  # readings the phase was learned from
    strayed: int = 0  # consecutive readings far off
    spread: int = 24  # moving average of the residual's size, in quarters
    multiple: int = 1  # periods the last reading advanced by
    burst: int = 0  # readings behind the first in the burst under way
    burst_length: int = 0  # and in the one before
    wake: int = 0  # not expected before this time
    absent: int = 0  # batches in which it was expected and did not come
    awake: bool = False
    margin: int = 0  # how far off its forecast a reading may well be, in 256ths
    steady: bool = False  # it has lately kept its period
    # content
    head: int = 0
    template: int = RAW
    after: dict[int, int] = field(default_factory=dict)  # template -> the one that came next
    flags: int = 0
    block: bytes = b""  # the property block of the last reading that had one
    length: int = 0  # of the last raw payload
    instances: dict[int, int] = field(default_factory=dict)  # by family


@dataclass(slots=True, eq=False)
class Column:
    """One field of a family: how its tokens are spelled, predicted and distributed."""

    index: int
    kind: int = ColumnKind.TEXT
    hot: bool = False  # coded in every row; a cold column only where it changed
    printer: Printer | None = None
    predictor: int = PredictorKind.LAST
    param: tuple[int, int] = (0, 0)
    ref: tuple[int, int] = (-1, -1)  # family (-1: this one) and column referred to
    alphabet: int = 0
    cells: CellState = field(default_factory=CellState)
    contexts: list[int] = field(default_factory=list)  # by instance: the table of its next symbol
    chain: Chain | None = None
    texts: list[bytes] = field(default_factory=list)  # enumeration, or spellings of what escaped
    text_index: dict[bytes, int] = field(default_factory=dict)
    escapes: Table | None = None
    model: TextModel | None = None
    recent: bytes = b""  # the last token that was written as text
    last_texts: list[bytes] = field(default_factory=list)  # by instance, of a TEXT column

    def prepare(self) -> Chain:
        """Return the tables a NUMBER or ENUM column codes with, made if they are not there."""
        if self.chain is None:
            number = self.kind == ColumnKind.NUMBER
            self.chain = Chain(residual_priors if number else [ENUM_PRIOR] * (ENUM_VALUES + 1))
        return self.chain

    def add_cell(self) -> None:
        """Make room for one more instance."""
        self.cells.last.append(None)
        self.cells.aux.append(None)
        self.contexts.append(CONTEXT_NEW if self.kind == ColumnKind.NUMBER else 0)
        self.last_texts.append(b"")

    def forget_statistics(self) -> None:
        """Drop tables and what the predictor keeps; last values stay."""
        self.chain = None
        instances = len(self.contexts)
        self.cells.aux = [None] * instances
        self.cells.recent_aux = 0
        self.contexts = [CONTEXT_NEW if self.kind == ColumnKind.NUMBER else 0] * instances

    def respell(self, tokens: list[bytes | None]) -> None:
        """Take the cells' last tokens for what the column's kind now takes them for."""
        self.texts, self.text_index = [], {}
        self.cells.last = [None] * len(tokens)
        self.cells.recent = 0
        if self.kind == ColumnKind.TEXT:
            self.last_texts = [token or b"" for token in tokens]
        elif self.printer is not None:
            parse = self.printer.parse
            self.cells.last = [None if token is None else parse(token) for token in tokens]


@dataclass(slots=True, eq=False)
class Family:
    """Templates that share fields, and the columns of those fields."""

    index: int
    columns: list[Column] = field(default_factory=list)
    order: list[int] = field(default_factory=list)  # see `ordered`; empty when it is to be found
    tokens: list[list[bytes | None]] = field(default_factory=list)  # by instance, by column
    sources: list[int] = field(default_factory=list)  # by instance
    fragments: list[bytes] = field(default_factory=list)
    fragment_index: dict[bytes, int] = field(default_factory=dict)
    measured: dict[bytes, Measured] = field(default_factory=dict)  # fragments of framed templates
    followers: dict[int, list[int]] = field(default_factory=dict)  # fragments, the last one first
    repeated: set[int] = field(default_factory=set)  # fragments that came twice in a template
    next_column: dict[int, int] = field(default_factory=dict)  # by fragment
    slots: int = 0  # of the template defined last
    masks: list[tuple[int, ...]] = field(default_factory=list)
    mask_index: dict[tuple[int, ...], int] = field(default_factory=dict)
    mask_table: Table = field(default_factory=lambda: Table(_MASK_PRIOR))
    version: int = 0  # rises when `hot` of a column changes, and with every new column
    referred: set[int] = field(default_factory=set)  # columns that others refer to
    referred_outside: set[int] = field(default_factory=set)  # from other families
    cell_of_device: dict[str, int] = field(default_factory=dict)  # a device's first instance
    hot_orders: dict[tuple[int, ...], list[tuple[Column, int]]] = field(default_factory=dict)

    def disorder(self) -> None:
        """Note that a column was defined or changed: what is said of all of them is to be anew."""
        self.order = []

    def ordered(self) -> list[int]:
        """Return the columns in an order in which each comes behind the one it refers to.

        They come in passes over all that are left, in rising number: a column is in the pass of the
        one it refers to if that has a lower number, in the next one else.
        """
        if self.order:
            return self.order
        columns = self.columns
        passes: dict[int, int] = {}
        for index in range(len(columns)):
            path: list[int] = []
            at = index
            while at >= 0 and at not in passes:
                if len(path) > len(columns):
                    refuse("columns that refer to one another in a ring")
                path.append(at)
                where, place = columns[at].ref
                at = place if where < 0 else -1
            turn = passes.get(at, 0)
            for column in reversed(path):
                turn += at > column
                passes[column] = turn
                at = column
        self.order = sorted(passes, key=lambda index: (passes[index], index))
        self.referred = {column.ref[1] for column in columns if column.ref[0] < 0}
        self.hot_orders = {}
        return self.order

    def hot_order(self, layout: tuple[int, ...]) -> list[tuple[Column, int]]:
        """Return the hot columns of `layout` as they are coded, with their places in it."""
        order = self.ordered()
        found = self.hot_orders.get(layout)
        if found is None:
            places = {index: place for place, index in enumerate(layout)}
            found = [(self.columns[index], places[index]) for index in order if index in places]
            if len(self.hot_orders) > 64:
                self.hot_orders.clear()
            self.hot_orders[layout] = found
        return found


@dataclass(slots=True, eq=False)
class Template:
    """Constant text with slots: fragment, slot, fragment, slot, …, fragment.

    `hot` and `cold` are the slots by the heat of their columns, in rising order of columns, as of
    the family's `version`.
    """

    index: int  # place in the ring
    family: Family
    fragments: tuple[int, ...]  # numbers within the family; one more than columns
    columns: tuple[int, ...]
    framed: bool = False  # protobuf: fragments hold marks where lengths belong
    literal_bytes: int = 0
    literals: list[bytes] = field(default_factory=list)  # piece by piece
    frames: list[list[Step]] = field(default_factory=list)  # in their place when framed
    version: int = -1
    hot: tuple[int, ...] = ()
    hot_columns: tuple[int, ...] = ()
    cold: tuple[int, ...] = ()
    cold_columns: tuple[int, ...] = ()

    def fill(self, literals: list[bytes]) -> None:
        """Take the constant text, one piece more than there are slots."""
        if self.framed:
            self.frames = check_marks(literals, self.family.measured)
        else:
            self.literals = literals
        self.literal_bytes = sum(map(len, literals))

    def payload(self, tokens: tuple[bytes, ...]) -> bytes:
        """Return the payload with `tokens` in the slots."""
        if self.framed:
            return assemble(self.frames, tokens)
        return b"".join(chain.from_iterable(zip(self.literals, (*tokens, b""), strict=True)))

    def prepare(self) -> None:
        """Sort the slots by heat, if that changed since."""
        if self.version == self.family.version:
            return
        columns = self.family.columns
        self.hot, self.hot_columns, self.cold, self.cold_columns = sort_slots(self.columns, columns)
        self.version = self.family.version


_Places = tuple[int, ...]


def _sort_slots(slots: _Places, columns: list[Column]) -> tuple[_Places, _Places, _Places, _Places]:
    """Return the slots of hot columns and these columns, then those of cold ones, all by column."""
    places = sorted(range(len(slots)), key=slots.__getitem__)
    hot = tuple([slot for slot in places if columns[slots[slot]].hot])
    cold = tuple([slot for slot in places if not columns[slots[slot]].hot])
    return hot, tuple([slots[slot] for slot in hot]), cold, tuple([slots[slot] for slot in cold])


sort_slots = native.sort_slots if native else _sort_slots


@dataclass(slots=True)
class ModelTables:
    """Statistics that belong to no column."""

    header: Table = field(default_factory=_numbers)
    span: Table = field(default_factory=_numbers)
    schema: list[Table] = field(default_factory=lambda: [_numbers() for _ in range(SCHEMA_FIELDS)])
    counts: Chain = field(default_factory=lambda: Chain([UNKNOWN_PRIOR] * 36))
    arrivals: list[Table] = field(default_factory=lambda: [_numbers() for _ in range(10)])
    gaps: list[Table] = field(default_factory=lambda: _by_size(22))
    phases: Chain = field(default_factory=lambda: Chain(_size_priors(16)))
    strides: list[Table] = field(default_factory=lambda: _by_size(16))
    multiples: list[Table] = field(default_factory=lambda: [_numbers() for _ in range(16)])
    order: list[Table] = field(default_factory=lambda: [_numbers() for _ in range(4)])
    heads: Chain = field(default_factory=lambda: Chain([_HEAD_PRIOR] * 4))
    explicit: Table = field(default_factory=lambda: Table(_HEAD_PRIOR))
    template_choice: Table = field(default_factory=lambda: Table(_CHOICE_PRIOR))
    meta_choice: Table = field(default_factory=lambda: Table(_CHOICE_PRIOR))
    lengths: Table = field(default_factory=_numbers)
    decimals: list[Table] = field(default_factory=lambda: [_numbers() for _ in range(2)])
    family_choice: Table = field(default_factory=lambda: Table(_CHOICE_PRIOR))
    fragment_choice: list[Table] = field(
        default_factory=lambda: [Table(_FOLLOWER_PRIOR) for _ in range(FOLLOWERS + 1)]
    )
    column_choice: Table = field(default_factory=lambda: Table(_CHOICE_PRIOR))
    topic: TextModel = field(default_factory=TextModel)
    device: TextModel = field(default_factory=TextModel)
    literal: TextModel = field(default_factory=TextModel)
    block: TextModel = field(default_factory=TextModel)
    spelling: TextModel = field(default_factory=TextModel)


def _by_size(count: int) -> list[Table]:
    """Return tables for residuals whose last size is the table's place."""
    return [Table(prior) for prior in _size_priors(count)]


def _size_priors(count: int) -> list[Prior]:
    return [residual_priors[min(size, 12)] for size in range(count)]


@dataclass(slots=True)
class Context:
    """Everything both ends know."""

    limits: StructuredLimits
    sources: list[Source] = field(default_factory=list)
    awake: list[Source] = field(default_factory=list)
    families: list[Family] = field(default_factory=list)
    templates: list[Template | None] = field(default_factory=lambda: [None] * TEMPLATE_RING)
    next_template: int = 0
    blocks: list[bytes] = field(default_factory=list)
    block_index: dict[bytes, int] = field(default_factory=dict)
    history: bytes = b""
    last_time: int = 0  # the greatest time of the last batch
    period: int = 0  # the one set last, in 256ths of a unit
    # what the bounds are about
    columns: int = 0
    cells: int = 0
    literal_bytes: int = 0
    weight: int = 0  # when it was weighed last (`weight`), and
    grown: int = 0  # how much heavier it may be by now
    tables: ModelTables = field(default_factory=ModelTables)
    printers: dict[tuple[int, int, bytes, bytes, bytes], Printer] = field(default_factory=dict)

    def charge(
        self,
        *,
        sources: int = 0,
        families: int = 0,
        columns: int = 0,
        cells: int = 0,
        literal_bytes: int = 0,
    ) -> None:
        """Count what is about to be added; refuses what would pass a limit."""
        limits = self.limits
        self.columns += columns
        self.cells += cells
        self.literal_bytes += literal_bytes
        self.grown += sources * _SOURCE_GROWS + families * _FAMILY_GROWS
        self.grown += cells * _CELL_GROWS + literal_bytes * _LITERAL_GROWS
        if (
            len(self.sources) + sources > limits.sources
            or len(self.families) + families > limits.families
            or self.columns > limits.columns
            or self.cells > limits.cells
            or self.literal_bytes > limits.literal_bytes
        ):
            refuse("the context would pass its limits")

    def printer(self, key: tuple[int, int, bytes, bytes, bytes]) -> Printer:
        """Return the printer of `key`, mostly shared by all columns that spell alike."""
        found = self.printers.get(key)
        if found is None:
            if len(self.printers) >= _PRINTERS_MAX:
                self.printers.clear()
            found = self.printers[key] = Printer(*key)
        return found
