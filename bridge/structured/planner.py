"""What an encoder wants to say of a batch: its readings by source, each with template and tokens.

Planning reads the context and changes nothing of it; only the writing of the body does. All that
an encoder knows and a decoder does not lives here and in `review`: which shapes belong to which
template, compiled matchers, samples of each family's readings.

Invariants: a plan keeps the context within its limits, whatever the payloads; a payload that finds
no room, or whose shape was never seen and is unlikely to be seen again, travels raw.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TypeVar
from zlib import crc32

from bridge.columnar import Columns
from bridge.readings import FLAG_PROPERTIES
from bridge.structured.binary import BinaryKinds
from bridge.structured.context import Column, Context, Source, Template, TimeMode
from bridge.structured.frames import Step, assemble, check_marks
from bridge.structured.heads import Row
from bridge.structured.kernel import native
from bridge.structured.learner import choose_spec
from bridge.structured.printers import PrinterKind
from bridge.structured.review import VARYING, FamilyView, SourceView
from bridge.structured.room import Room
from bridge.structured.schema import EPHEMERAL, ColumnPlan, ColumnSpec, FamilyPlan, TemplatePlan
from bridge.structured.shapes import Matcher, Path, Shape, matcher, shape_of
from bridge.structured.timing import Arrivals

__all__ = ["BatchPlan", "Planner"]

_CREDIT_MAX = 512.0
_CREDIT_PER_HIT = 0.125
_COMPILE_AFTER = 4  # uses of a template before its matcher is compiled, which takes ms,
_COMPILE_BYTES = 8  # and a use for so many bytes of it: only then will it have paid
_COMPILES_PER_BATCH = 4
_FIRST_ROWS = 128  # of a new shape, from which its columns' coding is chosen
_FIRST_READINGS = 16
_SHAPES_MAX = 16_384
_SEEN_MAX = 16_384

_T = TypeVar("_T")
Places = list[tuple[SourceView, list[int]]]  # of each source's readings in a batch


@dataclass(slots=True, eq=False)
class KnownShape:
    """A shape an encoder has a template for, or is about to define one for."""

    shape: Shape
    family: FamilyView
    columns: list[ColumnPlan]
    plan: TemplatePlan
    uses: int = 0
    match: Matcher | None = None
    pieces: object = False  # for the kernel: the fragments, once there is a matcher, or None
    json: bool = False
    slots: dict[ColumnPlan, int] = field(default_factory=dict)
    frames: list[list[Step]] = field(default_factory=list)  # of a framed shape
    compile_after: int = 0  # uses
    fresh: bool = True  # of this batch: its columns' coding is to be chosen from `first`
    first: list[tuple[SourceView, int, tuple[bytes, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.slots = {column: slot for slot, column in enumerate(self.columns)}
        size = sum(map(len, self.shape.fragments))
        self.compile_after = max(_COMPILE_AFTER, size // _COMPILE_BYTES)
        self.json = self.shape.kind == "json"
        if self.shape.kind == "scalar":
            self.pieces = None  # there are none to be compared

    def template(self, context: Context) -> Template | TemplatePlan:
        """Return the template as it stands in the ring, or the plan to define it (again)."""
        template = self.plan.template
        if template is None:
            return self.plan
        if context.templates[template.index] is template:
            return template
        self.plan = TemplatePlan.of(template)
        return self.plan


@dataclass(slots=True)
class BatchPlan:
    """A batch, ready to be written."""

    arrivals: Arrivals = field(default_factory=list)
    rows: dict[Source, list[Row]] = field(default_factory=dict)
    order: list[list[int]] = field(default_factory=list)  # beside arrivals: the readings' places
    views: list[SourceView] = field(default_factory=list)  # sources whose times want a review

    def placed(self) -> Iterable[tuple[tuple[Source, list[int]], list[int]]]:
        """Return the arrivals with the readings' places in the batch."""
        return zip(self.arrivals, self.order, strict=True)


class Planner:
    """Plans the batches of one context.

    Args:
        context: The context, which the planner only reads.
        resolution_us: The link's time unit.
    """

    def __init__(self, context: Context, resolution_us: int) -> None:
        self._context = context
        self._resolution_us = resolution_us
        self._token_bytes = context.limits.token_bytes
        self._payload_bytes = context.limits.payload_bytes
        self._sources: dict[tuple[str, str], SourceView] = {}
        self._shapes: dict[object, KnownShape] = {}
        self._families: list[FamilyView] = []
        self._by_path: dict[Path, list[FamilyView]] = {}
        self._seen: dict[int, None] = {}
        self._credit = _CREDIT_MAX
        self._new: list[KnownShape] = []  # of this batch
        self._binary = BinaryKinds()
        self._compiles = 0
        self._room: Room = Room(context, 0)
        self.refused = 0  # readings that travelled raw for want of room
        self._adopt()

    @property
    def families(self) -> list[FamilyView]:
        """All families, in the order in which they were planned."""
        return self._families

    @property
    def sources(self) -> dict[tuple[str, str], SourceView]:
        """All sources known, by topic and device."""
        return self._sources

    def plan(self, columns: Columns) -> BatchPlan:
        """Return the plan of a batch of one or more readings."""
        self._compiles = _COMPILES_PER_BATCH
        self._new = []
        self._room = Room(self._context, len(columns))
        batch = BatchPlan()
        by_source: list[list[int]] = [[] for _ in columns.sources]
        for place, source in enumerate(columns.source_index):
            by_source[source].append(place)
        known: Places = []
        fresh: Places = []
        for key, places in zip(columns.sources, by_source, strict=True):
            if not places:
                continue
            view = self._sources.get(key)
            if view is None:
                fresh.append((self._new_source(key), places))
            else:
                known.append((view, places))
        self._plan_known(batch, columns, known)
        for view, places in fresh:
            self._plan_source(batch, view, columns, places)
        self._choose_first_specs()
        return batch

    def _plan_known(self, batch: BatchPlan, columns: Columns, sources: Places) -> None:
        """Plan the readings of known sources; the kernel does those without anything new."""
        if native is None:
            for view, places in sources:
                self._plan_source(batch, view, columns, places)
            return

        def one(view: SourceView, places: list[int], planned: int) -> None:
            self._earn(planned)
            self._plan_source(batch, view, columns, places)

        readings = (
            _listed(columns.times),
            _listed(columns.flags),
            _listed(columns.payloads),
            _listed(columns.properties),
        )
        self._earn(
            native.plan_sources(
                sources,
                readings,
                self._context.templates,
                self._room,
                batch,
                (self._token_bytes, self._payload_bytes),
                FLAG_PROPERTIES,
                one,
            )
        )

    def _earn(self, readings: int) -> None:
        self._credit = min(_CREDIT_MAX, self._credit + _CREDIT_PER_HIT * readings)

    def _choose_first_specs(self) -> None:
        """Decide how the columns that this batch defines are to be coded."""
        samples: dict[ColumnPlan, dict[SourceView, list[tuple[int, bytes]]]] = {}
        for known in self._new:
            for view, time, tokens in known.first:
                for column, token in zip(known.columns, tokens, strict=True):
                    if column.column is None:
                        sample = samples.setdefault(column, {}).setdefault(view, [])
                        if len(sample) < _FIRST_READINGS:
                            sample.append((time, token))
            known.first.clear()
            known.fresh = False
        for column, by_source in samples.items():
            series = list(by_source.values())
            column.spec = choose_spec(None, series, self._resolution_us, hint=column.hint)

    def _new_source(self, key: tuple[str, str]) -> SourceView:
        room = self._room.take_source(len(key[0]) + len(key[1]))
        source = Source(*key, -1 if room else EPHEMERAL)
        source.mode = self._usual_mode()
        view = SourceView(source)
        if room:
            self._sources[key] = view
        else:
            self.refused += 1
        return view

    def _usual_mode(self) -> int:
        """Return how most sources known arrive, if a new one can be taken to be alike."""
        views = list(self._sources.values())[-32:]
        period = self._context.period
        alike = sum(view.source.mode == TimeMode.PERIODIC for view in views)
        return TimeMode.PERIODIC if period and 2 * alike > len(views) else TimeMode.GAP

    def _plan_source(
        self, batch: BatchPlan, view: SourceView, columns: Columns, places: list[int]
    ) -> None:
        source = view.source
        times = [columns.times[place] for place in places]
        if not source.steady:
            view.times.extend(times)
            view.readings += len(times)
            if source.index >= 0:
                batch.views.append(view)
        elif view.times:
            view.times.clear()
        rows: list[Row] = []
        if view.known is not None and not self._take_up(view, view.known, len(places)):
            view.known = None
        known = view.known
        match = known.match if known is not None else None
        flags, payloads = columns.flags, columns.payloads
        for place, time in zip(places, times, strict=True):
            payload = payloads[place]
            tokens: tuple[bytes, ...] | None = None
            if match is not None and len(payload) <= self._payload_bytes:
                tokens = match(payload)
                if tokens is not None and not self._has_room(payload, tokens):
                    tokens = None
            if tokens is None and source.index != EPHEMERAL:
                tokens = self._tokens_of(view, payload, len(places))
                known = view.known
                match = known.match if known is not None else None
            flag = flags[place]
            block = columns.properties[place] if flag & FLAG_PROPERTIES else b""
            if tokens is None or known is None:
                rows.append((flag, block, payload, None, ()))
                continue
            rows.append((flag, block, payload, view.wanted, tokens))
            family = known.family
            if view in family.samples or family.wants_sample:
                family.keep_sample(view, (time, known.slots, tokens))
            if known.fresh and len(known.first) < _FIRST_ROWS:
                known.first.append((view, time, tokens))
        if known is not None:
            known.uses += len(rows)
            known.family.readings += len(rows)
            self._earn(len(rows))
        batch.arrivals.append((source, times))
        batch.rows[source] = rows
        batch.order.append(places)

    # ---- a context that is not new ---------------------------------------------------------------

    def _adopt(self) -> None:
        """Learn the shapes and fields of a restored context from its templates."""
        context = self._context
        for family in context.families:
            self._families.append(FamilyView.of(family))
        plans = [
            [ColumnPlan(ColumnSpec(), column) for column in family.columns]
            for family in context.families
        ]
        for template in context.templates:
            if template is None:
                continue
            family = template.family
            view = self._families[family.index]
            columns = [plans[family.index][column] for column in template.columns]
            plan = TemplatePlan.of(template)
            plan.template, plan.columns = template, columns
            spelled = _spelled(family.columns[template.columns[0]]) if _is_slot(plan) else None
            shape = Shape.of(plan.fragments, framed=template.framed)
            if shape is None:
                continue
            known = KnownShape(shape, view, columns, plan, fresh=False)
            self._shapes[shape.key, spelled] = known
            view.fragments.update(plan.fragments)
            for path, column in zip(shape.paths(spelled), columns, strict=True):
                if path not in view.columns:
                    view.columns[path] = column
                    self._by_path.setdefault(path, []).append(view)
        for source in context.sources:
            self._sources[source.topic, source.device] = SourceView(source)
            for index in source.instances:
                self._families[index].members.add(source)

    # ---- payloads --------------------------------------------------------------------------------

    def _take_up(self, view: SourceView, known: KnownShape, readings: int) -> bool:
        """Let a source's payloads be tried with a shape first, if there is room for so many."""
        if not self._room.take_rows(view.source, known.family, len(known.columns) * readings):
            self.refused += readings
            return False
        view.known = known
        view.wanted = known.template(self._context)
        view.fits = None
        if known.shape.kind == "scalar":
            column = known.columns[0].column
            if column is not None and column.printer is not None:
                view.fits = column.printer.resembles
            elif column is not None:
                view.fits = column.text_index.__contains__
        return True

    def _tokens_of(
        self, view: SourceView, payload: bytes, readings: int
    ) -> tuple[bytes, ...] | None:
        """Return the tokens of a payload, `view.wanted` being its template; None to send it raw."""
        known = view.known
        if known is not None and view.fits is not None and view.fits(payload):
            tokens: tuple[bytes, ...] = (payload,)
        else:
            found = self._find_shape(view, payload)
            if found is None:
                view.known = None
                return None
            known, tokens = found
            if known is not view.known and not self._take_up(view, known, readings):
                view.known = None
                return None
        return tokens if self._has_room(payload, tokens) else None

    def _has_room(self, payload: bytes, tokens: tuple[bytes, ...]) -> bool:
        """Return True when no token is longer than allowed."""
        most = self._token_bytes
        return len(payload) <= most or max(map(len, tokens), default=0) <= most

    def _find_shape(
        self, view: SourceView, payload: bytes
    ) -> tuple[KnownShape, tuple[bytes, ...]] | None:
        if len(payload) > self._payload_bytes:
            return None
        shape = shape_of(payload)
        if shape is None:
            shape = self._binary.shape_of(view.source.topic, payload)
        if shape is None or len(shape.tokens) > self._context.limits.slots:
            return None
        spelled = view.spelling_of(payload) if shape.kind == "scalar" else None
        key = (shape.key, spelled)
        known = self._shapes.get(key)
        frames: list[list[Step]] = []
        if shape.framed:
            frames = known.frames if known is not None else check_marks(shape.fragments)
            if assemble(frames, shape.tokens) != payload:
                return None
        if known is None:
            known = self._new_shape(view, shape, key, spelled)
            if known is None:
                return None
            known.frames = frames
        elif self._compiles and known.match is None and known.uses >= known.compile_after:
            known.match = self._compile(shape)
            if known.match is not None:
                known.pieces = shape.fragments
        return known, shape.tokens

    def _compile(self, shape: Shape) -> Matcher | None:
        if shape.kind not in ("json", "text"):
            return None
        self._compiles -= 1
        return matcher(shape)

    def _new_shape(
        self, view: SourceView, shape: Shape, key: object, spelled: object
    ) -> KnownShape | None:
        """Plan a template for a shape, if it is worth one and there is room."""
        paths = shape.paths(spelled)
        family = self._family_for(view, paths)
        if not self._is_promising(family, shape):
            return None
        plan = FamilyView(FamilyPlan()) if family is None else family
        columns: list[ColumnPlan] = []
        fresh: list[tuple[Path, ColumnPlan]] = []
        for slot, found in enumerate(map(plan.columns.get, paths)):
            column = found or ColumnPlan(ColumnSpec(), hint=shape.printer_of(slot))
            if found is None:
                fresh.append((paths[slot], column))
            columns.append(column)
        if not self._room.take_shape(plan, len(fresh), shape):
            self.refused += 1
            return None
        if family is None:
            self._families.append(plan)
        for path, column in fresh:
            plan.columns[path] = column
            self._by_path.setdefault(path, []).append(plan)
        known = KnownShape(
            shape,
            plan,
            columns,
            TemplatePlan(plan.plan, shape.fragments, columns, shape.framed),
        )
        if len(self._shapes) >= _SHAPES_MAX:
            self._shapes.clear()
        self._shapes[key] = known
        plan.fragments.update(shape.fragments)
        self._new.append(known)
        return known

    def _is_promising(self, family: FamilyView | None, shape: Shape) -> bool:
        """Return True when a shape deserves a template: it was seen before, or there is credit."""
        if family is not None:
            unknown = set(shape.fragments) - family.fragments
            if 8 * len(unknown) <= len(shape.fragments):
                return True
        mark = crc32(b"\0".join(shape.fragments))
        if mark in self._seen:
            return True
        if len(self._seen) >= _SEEN_MAX:
            self._seen.clear()
        self._seen[mark] = None
        if self._credit < 1:
            return False
        self._credit -= 1
        return True

    def _family_for(self, view: SourceView, paths: list[Path]) -> FamilyView | None:
        """Return the family that shares most fields with `paths`, if it shares enough."""
        usual = view.known.family if view.known is not None else None
        if usual is not None and all(map(usual.columns.__contains__, paths)):
            return usual
        shared: Counter[int] = Counter()
        views: dict[int, FamilyView] = {}
        for path in paths:
            for family in self._by_path.get(path, ()):
                shared[id(family)] += 1
                views[id(family)] = family
        if not shared:
            return None
        best = max(views.values(), key=lambda family: shared[id(family)])
        common = shared[id(best)]
        alike = (
            usual is best or 3 * common >= len(best.columns) or 10 * common >= 9 * len(paths) >= 36
        )
        return best if alike and common >= 0.6 * len(paths) else None


def _listed(some: Sequence[_T]) -> list[_T]:
    return some if isinstance(some, list) else list(some)


def _is_slot(plan: TemplatePlan) -> bool:
    return plan.fragments == (b"", b"")


def _spelled(column: Column) -> object:
    """Return what sets apart the column of payloads that are a slot alone."""
    if column.printer is None:
        return "text"
    kind, digits, *_ = column.printer.key
    return digits if kind == PrinterKind.FIXED else VARYING
