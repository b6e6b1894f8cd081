"""Definitions in band: sources, templates with their families and columns, and later changes.

docs/link-format-structured.md section 4. Each function here is run by both ends: an encoder gives
what it wants to define and its writer codes it, a decoder gives None or an empty object and its
reader fills it in. Both end with the context changed in the same way.

Invariant: a body cannot make a context pass its limits: every definition is charged first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bridge.structured.coder import Coder, refuse
from bridge.structured.context import (
    Column,
    ColumnKind,
    Context,
    Family,
    ModelTables,
    Source,
    Template,
)
from bridge.structured.kernel import native
from bridge.structured.limits import FOLLOWERS, TEMPLATE_RING
from bridge.structured.predictors import USES_COLUMN, PredictorKind
from bridge.structured.printers import DIGITS_MAX, Printer, PrinterKey, PrinterKind
from bridge.structured.texts import ALPHABETS, code_text

__all__ = [
    "EPHEMERAL",
    "ColumnPlan",
    "ColumnSpec",
    "FamilyPlan",
    "TemplatePlan",
    "add_instance",
    "apply_spec",
    "define_column",
    "define_source",
    "define_template",
    "update_columns",
]

EPHEMERAL = -2  # in place of a source's index: it is not remembered
_UPDATES_MAX = 1024
_FAMILY_COLUMNS_MAX = 1024
_TOPIC_BYTES_MAX = 0xFFFF
_AFFIX_BYTES_MAX = 64
_KNOWN_FRAGMENT, _NEW_FRAGMENT = FOLLOWERS, FOLLOWERS + 1
_LEVELS_MAX = 255
# bytes by which what is defined makes a context heavier, at most (`weight`)
_COLUMN_GROWS, _NUMBER_GROWS, _TEMPLATE_GROWS, _SLOT_GROWS = 8_200, 40, 1_000, 130
(
    _REMEMBERED,
    _LEVEL,
    _KIND,
    _HOT,
    _ALPHABET,
    _PRINTER,
    _DIGITS,
    _AFFIX,
    _PREDICTOR,
    _PARAM,
    _REF,
    _FAMILY,
    _SLOTS,
    _FRAMED,
    _UPDATES,
    _PLACE,
) = range(16)


@dataclass(slots=True, frozen=True)
class ColumnSpec:
    """How a column is to be coded: all that a definition says of it."""

    kind: int = ColumnKind.TEXT
    hot: bool = False
    printer: tuple[int, int, bytes, bytes, bytes] | None = None
    predictor: int = PredictorKind.LAST
    param: tuple[int, int] = (0, 0)
    ref: tuple[int, int] = (-1, -1)
    alphabet: int = 0


@dataclass(slots=True, eq=False)
class FamilyPlan:
    """A family as an encoder plans it; `family` is None until it is defined."""

    family: Family | None = None


@dataclass(slots=True, eq=False)
class ColumnPlan:
    """A column as an encoder plans it; `column` is None until it is defined.

    `hint` tells how a binary field is spelled.
    """

    spec: ColumnSpec
    column: Column | None = None
    hint: PrinterKey | None = None


@dataclass(slots=True, eq=False)
class TemplatePlan:
    """A template as an encoder plans it; several may share a family and columns."""

    family: FamilyPlan
    fragments: tuple[bytes, ...]
    columns: list[ColumnPlan]
    framed: bool = False
    template: Template | None = None  # once it is defined

    @classmethod
    def of(cls, template: Template) -> TemplatePlan:
        """Return the plan that defines a known template again."""
        family = template.family
        fragments = tuple(family.fragments[fragment] for fragment in template.fragments)
        columns = [family.columns[column] for column in template.columns]
        plans = [ColumnPlan(ColumnSpec(), column) for column in columns]
        return cls(FamilyPlan(family), fragments, plans, template.framed)


# ---- sources -------------------------------------------------------------------------------------


def define_source(io: Coder, context: Context, source: Source | None = None) -> Source:
    """Code a new source; it joins the context's, or lives for one batch if its index is -1."""
    tables = context.tables
    known = context.sources
    near = known[-1].topic.encode() if known else b""
    near_device = known[-1].device.encode() if known else b""
    topic = source.topic.encode() if source else b""
    kept = not io.number(
        tables.schema[_REMEMBERED], int(source is not None and source.index == EPHEMERAL)
    )
    topic = code_text(io, tables.topic, near, _TOPIC_BYTES_MAX, topic)
    name = _text(topic)
    if not topic or "+" in name or "#" in name or "\0" in name:
        refuse("a topic that is empty or holds a wildcard", "malformed")
    levels = name.split("/", _LEVELS_MAX)[:_LEVELS_MAX]
    level = 0
    if source is not None and source.device in levels:
        level = levels.index(source.device) + 1
    level = io.number(tables.schema[_LEVEL], level)
    if not 0 <= level <= len(levels):
        refuse("a device level past the topic's last")
    if level:
        device = levels[level - 1]
    else:
        device = _text(
            code_text(
                io,
                tables.device,
                near_device,
                _TOPIC_BYTES_MAX,
                source.device.encode() if source else b"",
            )
        )
    if not device or "\0" in device:
        refuse("an empty device", "malformed")
    if source is None:
        source = Source(name, device, -1)
    if kept:
        context.charge(sources=1, literal_bytes=len(topic) + len(device))
        source.index = len(known)
        known.append(source)
    return source


def _text(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        refuse("a topic or device that is not UTF-8", "malformed")


# ---- columns -------------------------------------------------------------------------------------


def define_column(
    io: Coder, context: Context, family: Family, spec: ColumnSpec | None = None
) -> Column:
    """Code a new column of `family` and add it, with a cell for every instance."""
    context.charge(columns=1, cells=len(family.tokens))
    if len(family.columns) >= _FAMILY_COLUMNS_MAX:
        refuse("a family of too many columns")
    spec = _code_spec(io, context, family, len(family.columns), spec or ColumnSpec())
    column = Column(len(family.columns))
    family.columns.append(column)
    family.version += 1
    for tokens in family.tokens:
        tokens.append(None)
        column.add_cell()
    apply_spec(context, family, column, spec)
    return column


def update_columns(
    io: Coder, context: Context, updates: list[tuple[Family, Column, ColumnSpec]]
) -> None:
    """Code changes of known columns, in rising order; none are given by a decoder."""
    tables = context.tables
    count = io.number(tables.schema[_UPDATES], len(updates))
    if not 0 <= count <= _UPDATES_MAX:
        refuse("a count of changes that cannot be")
    at, before = 0, -1
    for turn in range(count):
        wanted = updates[turn] if updates else None
        step = wanted[0].index - at if wanted else 0
        step = io.number(tables.schema[_FAMILY], step)
        at += step
        if step < 0 or at >= len(context.families):
            refuse("a family that does not exist, or was changed before")
        before = -1 if step else before
        family = context.families[at]
        place = io.number(tables.schema[_PLACE], wanted[1].index if wanted else 0)
        if not before < place < len(family.columns):
            refuse("a column that does not exist, or was changed before")
        before = place
        spec = _code_spec(io, context, family, place, wanted[2] if wanted else ColumnSpec())
        apply_spec(context, family, family.columns[place], spec)


def _code_spec(
    io: Coder, context: Context, family: Family, index: int, spec: ColumnSpec
) -> ColumnSpec:
    fields = context.tables.schema
    kind = io.number(fields[_KIND], spec.kind)
    hot = io.number(fields[_HOT], int(spec.hot))
    if kind == ColumnKind.ENUM:
        return ColumnSpec(kind, hot == 1)
    if kind == ColumnKind.TEXT:
        alphabet = io.number(fields[_ALPHABET], spec.alphabet)
        if not 0 <= alphabet < len(ALPHABETS):
            refuse("an alphabet that does not exist")
        return ColumnSpec(kind, hot == 1, alphabet=alphabet)
    if kind != ColumnKind.NUMBER:
        refuse("a kind of column that does not exist")
    printer = _code_printer(io, context, spec.printer)
    predictor = io.number(fields[_PREDICTOR], spec.predictor)
    param, ref = (0, 0), (-1, -1)
    if predictor == PredictorKind.MEAN:
        param = io.number(fields[_PARAM], spec.param[0]), 0
        if not 1 <= param[0] <= 6:
            refuse("a moving average of no such weight")
    elif predictor == PredictorKind.TIME:
        param = io.number(fields[_PARAM], spec.param[0]), io.number(fields[_PARAM], spec.param[1])
        if min(param) < 1:
            refuse("a time of no such unit")
    elif predictor in USES_COLUMN:
        ref = _code_ref(io, context, family, index, predictor, spec.ref)
        if predictor == PredictorKind.LINE:
            param = (
                io.number(fields[_PARAM], spec.param[0]),
                io.number(fields[_PARAM], spec.param[1]),
            )
            if param[1] < 1:
                refuse("a line of no such slope")
    elif predictor not in (PredictorKind.LAST, PredictorKind.LINEAR):
        refuse("a predictor that does not exist")
    return ColumnSpec(kind, hot == 1, printer, predictor, param, ref)


def _code_ref(
    io: Coder, context: Context, family: Family, index: int, predictor: int, ref: tuple[int, int]
) -> tuple[int, int]:
    table = context.tables.schema[_REF]
    where, columns = -1, family.columns
    if predictor == PredictorKind.SIBLING:
        where = io.number(table, ref[0])
        if not 0 <= where < family.index:
            refuse("a sibling in a family that is not before")
        columns = context.families[where].columns
    place = io.number(table, ref[1])
    if not 0 <= place < len(columns) or (where < 0 and place == index):
        refuse("a reference to a column that does not exist")
    return where, place


def _code_printer(
    io: Coder, context: Context, key: tuple[int, int, bytes, bytes, bytes] | None
) -> tuple[int, int, bytes, bytes, bytes]:
    fields = context.tables.schema
    kind, digits, *affixes = key or (0, 0, b"", b"", b"")
    kind = io.number(fields[_PRINTER], kind)
    digits = io.number(fields[_DIGITS], digits)
    texts: list[bytes] = []
    for affix in affixes:
        length = io.number(fields[_AFFIX], len(affix))
        if not 0 <= length <= _AFFIX_BYTES_MAX:
            refuse("an affix longer than allowed")
        texts.append(io.piece(0, length, affix))
    text = texts[0]
    sound = 0 <= digits <= DIGITS_MAX and 0 <= kind <= max(PrinterKind)
    if kind in (PrinterKind.FLOAT_LITTLE, PrinterKind.FLOAT_BIG):
        sound = sound and text in (b"4", b"8")
    elif kind in (PrinterKind.STAMP, PrinterKind.STAMP_TRIMMED):
        sound = sound and len(text) == 1
    if not sound:
        refuse("a spelling that does not exist")
    return kind, digits, text, texts[1], texts[2]


def apply_spec(context: Context, family: Family, column: Column, spec: ColumnSpec) -> None:
    """Let `column` be coded as `spec` says from now on."""
    printer: Printer | None = None
    if spec.printer is not None:
        old = column.printer
        same = old is not None and old.key == spec.printer
        printer = old if same else context.printer(spec.printer)
    spelled = (column.kind, column.printer, column.alphabet)
    predicted = (column.predictor, column.param, column.ref)
    column.kind, column.printer, column.alphabet = spec.kind, printer, spec.alphabet
    column.predictor, column.param, column.ref = spec.predictor, spec.param, spec.ref
    context.grown += _COLUMN_GROWS + _NUMBER_GROWS * len(family.tokens)
    if spelled != (spec.kind, printer, spec.alphabet):
        column.respell([tokens[column.index] for tokens in family.tokens])
        column.forget_statistics()
    elif predicted != (spec.predictor, spec.param, spec.ref):
        column.forget_statistics()
    if column.hot != spec.hot:
        column.hot = spec.hot
        family.version += 1
        family.masks, family.mask_index = [], {}
    if spec.ref[0] >= 0:
        context.families[spec.ref[0]].referred_outside.add(spec.ref[1])
    family.disorder()


# ---- templates -----------------------------------------------------------------------------------


def define_template(
    io: Coder, context: Context, near: Family | None, plan: TemplatePlan | None = None
) -> Template:
    """Code a new template and put it into the ring.

    Args:
        io: A `Writer` or `Reader`.
        context: The context.
        near: The family of the source's last template, likely this one's as well.
        plan: What to define, for an encoder; its family and columns are defined as needed.
    """
    fields = context.tables.schema
    family = _code_family(io, context, near, plan.family if plan else None)
    slots = len(plan.columns) if plan else 0
    slots = family.slots + io.number(fields[_SLOTS], slots - family.slots)
    if not 0 <= slots <= context.limits.slots:
        refuse("a template of too many slots")
    framed = io.number(fields[_FRAMED], int(plan is not None and plan.framed)) == 1
    texts, plans = (plan.fragments, plan.columns) if plan else (None, None)

    def new_fragment(before: int, text: bytes | None) -> int:
        return _define_fragment(io, context, family, before, text)

    def new_column(column: ColumnPlan | None) -> int:
        found = define_column(io, context, family, column.spec if column else None)
        if column is not None:
            column.column = found
        return found.index

    fragments, columns = code_slots(
        io, context.tables, family, slots, texts, plans, new_fragment, new_column
    )
    family.slots = slots
    context.grown += _TEMPLATE_GROWS + _SLOT_GROWS * slots
    literals = [family.fragments[fragment] for fragment in fragments]
    template = Template(context.next_template, family, fragments, columns, framed)
    template.fill(literals)
    context.templates[template.index] = template
    context.next_template = (template.index + 1) % TEMPLATE_RING
    if plan is not None:
        plan.template = template
    return template


def _code_family(
    io: Coder, context: Context, near: Family | None, plan: FamilyPlan | None
) -> Family:
    table = context.tables.family_choice
    wanted = plan.family if plan else None
    choice = 2 if wanted is None else 0 if wanted is near else 1
    choice = io.symbol(table, choice)
    if choice == 0:
        if near is None:
            refuse("the family of no template")
        return near
    if choice == 1:
        if not context.families:
            refuse("a family where there is none")
        return context.families[io.below(len(context.families), wanted.index if wanted else 0)]
    context.charge(families=1)
    family = Family(len(context.families))
    context.families.append(family)
    if plan is not None:
        plan.family = family
    return family


def _define_fragment(
    io: Coder, context: Context, family: Family, before: int, text: bytes | None
) -> int:
    """Code a fragment the family does not have; returns its number."""
    fragments = family.fragments
    near = fragments[before] if before >= 0 else b""
    literal = context.tables.literal
    text = code_text(io, literal, near, context.limits.payload_bytes, text or b"")
    context.charge(literal_bytes=len(text) + 16)
    at = len(fragments)
    if family.fragment_index.setdefault(text, at) != at:
        refuse("a fragment defined twice")
    fragments.append(text)
    return at


def _code_slots(
    io: Coder,
    tables: ModelTables,
    family: Family,
    slots: int,
    texts: tuple[bytes, ...] | None,
    plans: list[ColumnPlan] | None,
    new_fragment: Callable[[int, bytes | None], int],
    new_column: Callable[[ColumnPlan | None], int],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Code the fragments of a template and the columns of the slots between; returns both.

    Args:
        io: A `Writer`, which is given `texts` and `plans`, or a `Reader`.
        tables: The context's.
        family: The template's.
        slots: How many there are.
        texts: The fragments, one more than slots.
        plans: The columns.
        new_fragment: Codes one that the family does not have, behind another; returns its number.
        new_column: The same of a column.
    """
    fragments: list[int] = []
    columns: dict[int, None] = {}
    used: set[int] = set()
    before = -1
    for slot in range(slots + 1):
        text = texts[slot] if texts else None
        before = _code_fragment(io, tables, family, before, used, text, new_fragment)
        fragments.append(before)
        if slot < slots:
            plan = plans[slot] if plans else None
            column = _code_slot(io, tables, family, before, plan, new_column)
            if column in columns:
                refuse("a column twice in one template")
            columns[column] = None
    return tuple(fragments), tuple(columns)


code_slots = native.code_slots if native else _code_slots


def _code_fragment(
    io: Coder,
    tables: ModelTables,
    family: Family,
    before: int,
    used: set[int],
    text: bytes | None,
    define: Callable[[int, bytes | None], int],
) -> int:
    """Return the number of the fragment behind `before`, `used` being those so far; joins them.

    It is one of those that followed the last one before; what was used already, and never came
    twice in a template, is not counted among them: so keys in random order cost what they must.
    """
    fragments = family.fragments
    followers = family.followers.setdefault(before, [])
    repeated = family.repeated
    likely = [at for at in followers if at not in used or at in repeated]
    choice, at = _NEW_FRAGMENT, 0
    if text is not None and text in family.fragment_index:
        at = family.fragment_index[text]
        choice = likely.index(at) if at in likely else _KNOWN_FRAGMENT
    choice = io.symbol(tables.fragment_choice[len(likely)], choice)
    if choice < _KNOWN_FRAGMENT:
        if choice >= len(likely):
            refuse("a fragment that never followed")
        at = likely[choice]
    elif choice == _KNOWN_FRAGMENT:
        if not fragments:
            refuse("a fragment where there is none")
        at = io.below(len(fragments), at)
    else:
        at = define(before, text)
    if at in followers:
        followers.remove(at)
    followers.insert(0, at)
    del followers[FOLLOWERS:]
    if at in used:
        repeated.add(at)
    used.add(at)
    return at


def _code_slot(
    io: Coder,
    tables: ModelTables,
    family: Family,
    fragment: int,
    plan: ColumnPlan | None,
    define: Callable[[ColumnPlan | None], int],
) -> int:
    """Return the number of the column of a slot behind `fragment`."""
    expected = family.next_column.get(fragment, -1)
    choice = at = 0
    if plan is not None and plan.column is not None:
        at = plan.column.index
        choice = 0 if at == expected else 1
    elif plan is not None:
        choice = 2
    choice = io.symbol(tables.column_choice, choice)
    if choice == 0:
        if expected < 0:
            refuse("a column that never followed")
        return expected
    if choice == 1:
        if not family.columns:
            refuse("a column where there is none")
        at = io.below(len(family.columns), at)
    else:
        at = define(plan)
    family.next_column[fragment] = at
    return at


# ---- instances -----------------------------------------------------------------------------------


def add_instance(context: Context, family: Family, source: Source) -> int:
    """Return the number of the source's instance in `family`, made if it is new."""
    found = source.instances.get(family.index)
    if found is not None:
        return found
    context.charge(cells=len(family.columns))
    cell = len(family.tokens)
    source.instances[family.index] = cell
    family.tokens.append([None] * len(family.columns))
    family.sources.append(source.index)
    family.cell_of_device.setdefault(source.device, cell)
    for column in family.columns:
        column.add_cell()
    return cell
