"""The head of a reading: its template, flags and properties, and which cold columns changed.

docs/link-format-structured.md section 6.2. Almost every head is one symbol that says: as expected.
Both ends run these functions; an encoder gives what it wants coded.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from bridge.readings import FLAG_PROPERTIES
from bridge.structured.coder import Coder, refuse
from bridge.structured.context import RAW, Column, Context, Family, Source, Template
from bridge.structured.kernel import native
from bridge.structured.limits import MASKS, PROPERTY_BLOCKS
from bridge.structured.predictors import Rows
from bridge.structured.schema import TemplatePlan, define_template
from bridge.structured.texts import RAW_POOL, code_text

__all__ = [
    "EXPLICIT",
    "MASKED",
    "PLAIN",
    "SAME",
    "FamilyRows",
    "Row",
    "code_mask",
    "code_meta",
    "code_raw",
    "code_template",
    "gather",
    "note_template",
    "scatter",
]

# A reading as an encoder wants it coded: flags, property block, payload, and template and tokens,
# or None to send the payload raw.
Row = tuple[int, bytes, bytes, Template | TemplatePlan | None, tuple[bytes, ...]]

PLAIN, SAME, MASKED, EXPLICIT = range(4)
_EXPECTED, _KNOWN, _NEW, _AS_IT_IS = range(4)
_FLAGS_ALLOWED = 16
_BLOCK_BYTES_MAX = 1 << 20


@dataclass(slots=True)
class FamilyRows:
    """The rows of one family in a batch that are not repetitions, in canonical order.

    `hot` holds per row the tokens of its template's hot columns; `extra` by cold column the rows in
    which it is coded, and their tokens; `changes` by row the cold columns coded in it and their
    tokens (for a decoder).
    """

    family: Family
    cells: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    templates: list[Template] = field(default_factory=list)
    hot: list[tuple[bytes, ...]] = field(default_factory=list)
    layouts: dict[tuple[int, ...], None] = field(default_factory=dict)  # distinct hot columns
    extra: dict[int, tuple[list[int], list[bytes]]] = field(default_factory=dict)
    changes: dict[int, list[tuple[int, bytes]]] = field(default_factory=dict)

    def add(self, template: Template, cell: int, time: int) -> int:
        """Note a row; returns its number."""
        number = len(self.cells)
        if not number or template is not self.templates[-1]:
            self.layouts[template.hot_columns] = None
        self.cells.append(cell)
        self.times.append(time)
        self.templates.append(template)
        return number

    def add_extra(self, row: int, column: int, token: bytes = b"") -> None:
        """Note that a cold column is coded in `row`."""
        rows, tokens = self.extra.setdefault(column, ([], []))
        rows.append(row)
        tokens.append(token)

    def hot_columns(self) -> list[Column]:
        """Return the hot columns coded in some row, in the order in which they are coded."""
        wanted = {column for layout in self.layouts for column in layout}
        columns = self.family.columns
        return [columns[index] for index in self.family.ordered() if index in wanted]

    def changed_columns(self) -> list[Column]:
        """Return the cold columns coded in some row, in the order in which they are coded."""
        if not self.extra:
            return []
        columns = self.family.columns
        return [columns[index] for index in self.family.ordered() if index in self.extra]

    def coded(self) -> int:
        """Return how many tokens of these rows are coded."""
        cold = sum([len(rows) for rows, _ in self.extra.values()])
        return sum(map(len, self.hot)) + cold

    def select(self, rows: list[int] | None) -> Rows:
        """Return what a predictor needs to know of `rows`, None being all."""
        if rows is None:
            return Rows(self.cells, self.times)
        cells, times = self.cells, self.times
        return Rows([cells[row] for row in rows], [times[row] for row in rows])


def _gather(
    templates: list[Template], hot: list[tuple[bytes, ...]]
) -> dict[int, tuple[list[int], list[bytes]]]:
    """Return by hot column the rows whose templates have it, and its tokens if `hot` has them."""
    found: dict[int, tuple[list[int], list[bytes]]] = {}
    for row, template in enumerate(templates):
        for place, index in enumerate(template.hot_columns):
            rows, tokens = found.setdefault(index, ([], []))
            rows.append(row)
            if hot:
                tokens.append(hot[row][place])
    return found


def _scatter(templates: list[Template], tokens: dict[int, list[bytes]]) -> list[tuple[bytes, ...]]:
    """Return the rows that `tokens`, by hot column in order of rows, belong to."""
    rest = {index: iter(some) for index, some in tokens.items()}
    return [tuple([next(rest[index]) for index in template.hot_columns]) for template in templates]


gather = native.gather if native else _gather
scatter = native.scatter if native else _scatter


def note_template(source: Source, number: int) -> None:
    """Remember the template a source's reading had, and what followed which."""
    if source.template != number or source.after:
        if len(source.after) > 64:
            source.after.clear()
        source.after[source.template] = number
        source.template = number


def code_template(
    io: Coder,
    context: Context,
    source: Source,
    expected: int,
    wanted: Template | TemplatePlan | None,
) -> int:
    """Code the template of a reading whose head is explicit; returns its number."""
    number, choice = RAW, _AS_IT_IS
    if isinstance(wanted, TemplatePlan):
        choice = _NEW
    elif wanted is not None:
        number, choice = wanted.index, _KNOWN
    if number == expected and choice != _NEW:
        choice = _EXPECTED
    choice = io.symbol(context.tables.template_choice, choice)
    if choice == _EXPECTED:
        return expected
    if choice == _KNOWN:
        number = io.below(len(context.templates), number)
        if context.templates[number] is None:
            refuse("a template that does not exist")
        return number
    if choice == _AS_IT_IS:
        return RAW
    last = context.templates[source.template] if source.template != RAW else None
    near = last.family if last else None
    spec = wanted if isinstance(wanted, TemplatePlan) else None
    return define_template(io, context, near, spec).index


def code_meta(
    io: Coder, context: Context, source: Source, flags: int, block: bytes
) -> tuple[int, bytes]:
    """Code flags and property block of a reading whose head is explicit."""
    table = context.tables.meta_choice
    if io.symbol(table, int(flags != source.flags)):
        flags = io.below(_FLAGS_ALLOWED, flags)
        if flags & 3 == 3:
            refuse("a QoS that does not exist", "malformed")
    else:
        flags = source.flags
    source.flags = flags
    if not flags & FLAG_PROPERTIES:
        return flags, b""
    known = context.block_index.get(block, -1)
    choice = _EXPECTED if block == source.block else _KNOWN if known >= 0 else _NEW
    choice = io.symbol(table, choice)
    if choice == _EXPECTED:
        block = source.block
    elif choice == _KNOWN:
        if not context.blocks:
            refuse("a property block where there is none")
        block = context.blocks[io.below(len(context.blocks), known)]
    else:
        block = code_text(io, context.tables.block, source.block, _BLOCK_BYTES_MAX, block)
        if len(context.blocks) < PROPERTY_BLOCKS and len(block) <= 512:
            context.block_index[block] = len(context.blocks)
            context.blocks.append(block)
    if not block:
        refuse("an empty property block", "malformed")
    source.block = block
    return flags, block


def code_mask(
    io: Coder, context: Context, family: Family, mask: tuple[int, ...]
) -> tuple[int, ...]:
    """Code which cold columns changed in a row."""
    place = family.mask_index.get(mask, 0)
    place = io.symbol(family.mask_table, place)
    if place:
        if place > len(family.masks):
            refuse("a mask that was never used")
        return family.masks[place - 1]
    lengths = context.tables.lengths
    count = io.number(lengths, len(mask))
    if not 0 < count <= len(family.columns):
        refuse("a mask of no columns")
    given = iter(mask)
    coded = tuple([io.below(len(family.columns), next(given, 0)) for _ in range(count)])
    if any(b <= a for a, b in pairwise(coded)):
        refuse("a mask whose columns do not rise")
    if len(family.masks) < MASKS:
        family.masks.append(coded)
        family.mask_index[coded] = len(family.masks)
    return coded


def code_raw(io: Coder, context: Context, source: Source, payload: bytes) -> bytes:
    length = source.length + io.number(context.tables.lengths, len(payload) - source.length)
    if length < 0:
        refuse("a payload of negative length")
    source.length = length
    return io.piece(RAW_POOL, length, payload)
