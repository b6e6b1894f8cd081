"""Appends under way at one node, in the order of the calls for each source.

An append passes three stages: its bodies are stored, it is committed when everything before it of
the same sources was given to be committed, and it is answered when the ledger was read that far.

Invariants:
- Appends of a source are committed in the order of the calls.
- When one fails, those of its sources behind it fail too: a gap is never filled by what came after.
- The version an append claims is that of what its caller knew: when another node took readings of
  the source in between, or made a run of it known, the append is void, and the caller asks anew
  what is held.
- Of a source whose caller asks, nothing is begun after a failure before it has asked again: what
  it made meanwhile stands on an answer that may be too old.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

from bridge.intervals import IntervalSet, Range
from bridge.kernel import merged
from cloud.stream.contract import RUN, GivenUp, Part, Source, StreamError
from cloud.stream.jetstream.bodies import Body, BodyWriter
from cloud.stream.jetstream.commits import Commits
from cloud.stream.jetstream.records import (
    AppendRecord,
    SourceRecord,
    Version,
    pack_ranges,
)
from cloud.stream.jetstream.state import LedgerState

__all__ = ["Lines"]


@dataclass(slots=True)
class _Line:
    """What is under way of one source."""

    version: Version  # that the next append claims
    pending: IntervalSet = field(default_factory=IntervalSet)  # seqs of appends under way
    waiting: deque[_Append] = field(default_factory=deque)  # not yet given to be committed
    committing: int = 0
    failed: bool = False  # takes nothing until all that is under way was answered


@dataclass(slots=True, eq=False)
class _Append:
    """One call."""

    future: asyncio.Future[None]
    parts: Sequence[Part]  # those to be stored
    lines: dict[Source, _Line]  # of every source the call had parts of
    given_up: Sequence[GivenUp]
    assigned: Mapping[Source, int]
    seqs: Mapping[Source, list[Range]] = field(default_factory=dict)  # of the parts
    bodies: list[Body] = field(default_factory=list)
    floors: Sequence[int] = ()  # of the parts' partitions, before the bodies were written
    left: int = 0  # bodies that are not stored
    told: Callable[[Body], None] | None = None  # what they tell, while any is left
    versions: dict[Source, Version] = field(default_factory=dict)  # once it counts


class Lines:
    """All appends under way.

    Args:
        state: What the ledger adds up to now.
        bodies: Stores bodies.
        commits: Writes the ledger.

    Attributes:
        conflicts: Appends given up because another node had served the gateway.
    """

    def __init__(
        self, state: Callable[[], LedgerState], bodies: BodyWriter, commits: Commits
    ) -> None:
        self.conflicts = 0
        self._state = state
        self._bodies = bodies
        self._commits = commits
        self._number = 0
        self._lines: dict[Source, _Line] = {}
        self._views: dict[Source, Version] = {}  # version as the callers know it
        self._asking: set[Source] = set()  # whose callers ask what is held
        self._stale: set[Source] = set()  # those that have to, before anything is begun
        self._under_way: set[asyncio.Future[None]] = set()

    def looked(self, source: Source) -> None:
        """Note that a caller has just been told what is held of a source."""
        if source not in self._lines:
            self._views[source] = self._state().version(source)
            self._asking.add(source)
            self._stale.discard(source)

    def begin(
        self, parts: Sequence[Part], given_up: Sequence[GivenUp], assigned: Mapping[Source, int]
    ) -> asyncio.Future[None]:
        """Begin an append of valid parts; the future may be waited for, never cancelled.

        Raises:
            StreamError: another node took readings of a source meanwhile, or made a run of it
                known, or an append before this one has just failed.
        """
        runs: dict[Source, list[Range]] = {
            (one.gateway, one.epoch): [] for one in given_up if one.reason == RUN
        }
        seqs = {**runs, **_seqs(parts)}
        for source in seqs:
            self._check(source)
        lines = {source: self._line(source) for source in seqs}
        new = parts
        if any(self._any_of(source, lines[source], ranges) for source, ranges in seqs.items()):
            new = [part for part in parts if not self._has(lines[part.gateway, part.epoch], part)]
            seqs = {**runs, **_seqs(new)}
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        append = _Append(future, new, lines, given_up, assigned)
        for line in lines.values():
            line.waiting.append(append)
        append.seqs = seqs
        for source, ranges in seqs.items():
            lines[source].pending.update(ranges)
        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        if new:
            told = append.told = partial(self._stored, append)
            append.left = len(new)
            append.floors = [self._state().floor(part.partition) for part in new]
            append.bodies = [self._bodies.write(part.partition, part.body, told) for part in new]
        else:
            asyncio.get_running_loop().call_soon(self._advance, append)
        return future

    async def settled(self) -> None:
        """Return when every append under way at the call was answered."""
        if self._under_way:
            await asyncio.wait(set(self._under_way))

    # ---- stages ----------------------------------------------------------------------------------

    def _check(self, source: Source) -> None:
        line = self._lines.get(source)
        if line is not None:
            if line.failed:
                raise StreamError(f"gateway {source[0]}: an append before this one failed")
            return
        if source in self._stale:
            raise _foreign(source)
        view = self._views.get(source)
        if view is not None and view != self._state().version(source):
            self._conflict(source)
            raise _foreign(source)

    def _conflict(self, source: Source) -> None:
        self.conflicts += 1
        self._outdate(source)

    def _outdate(self, source: Source) -> None:
        self._views.pop(source, None)
        if source in self._asking:
            self._stale.add(source)

    def _line(self, source: Source) -> _Line:
        line = self._lines.get(source)
        if line is None:
            line = self._lines[source] = _Line(self._state().version(source))
        return line

    def _any_of(self, source: Source, line: _Line, ranges: Sequence[Range]) -> bool:
        """Return whether any of the seqs of a source is held or under way."""
        held = self._state().held(source)
        return any(
            held.overlaps(first, last) or line.pending.overlaps(first, last)
            for first, last in ranges
        )

    def _has(self, line: _Line, part: Part) -> bool:
        """Return whether all of a part is held or under way."""
        held = self._state().held((part.gateway, part.epoch))
        for first, last in part.seq_ranges:
            for gap in held.missing(first, last):
                if not line.pending.covers(*gap):
                    return False
        return True

    def _stored(self, append: _Append, body: Body) -> None:
        """Note what became of a body; the last one is followed by the commit."""
        if append.told is None:
            return  # it failed with another body
        if body.failure is not None:
            self._fail(append, body.failure)
            return
        append.left -= 1
        if not append.left:
            append.told = None
            self._advance(append)

    def _advance(self, append: _Append) -> None:
        """Give to be committed what is at the head of all its lines, in order."""
        ready = deque([append])
        while ready:
            one = ready.popleft()
            lines = one.lines.values()
            if one.left or one.future.done() or not all(_leads(one, line) for line in lines):
                continue
            if out_of_place := self._out_of_place(one):
                self._fail(one, out_of_place)
                continue
            for line in lines:
                line.waiting.popleft()
            self._commit(one)
            ready.extend(line.waiting[0] for line in lines if line.waiting)

    def _out_of_place(self, append: _Append) -> StreamError | None:
        """Return what is wrong with bodies in places that were trimmed before they were written.

        The append would be void, as would any other. Places that were trimmed since are in order:
        others were quicker, and what is written again gets new ones.
        """
        for part, body, floor in zip(append.parts, append.bodies, append.floors, strict=True):
            seq = min(body.extents[::3])
            if seq <= floor:
                return self._bodies.went_back(part.partition, seq, floor)
        return None

    def _commit(self, append: _Append) -> None:
        self._number += 1
        record = _record(append, self._number)
        for source in append.seqs:
            append.lines[source].version = (self._commits.writer, self._number)
        for source, line in append.lines.items():
            append.versions[source] = line.version
            line.committing += 1
        committed = self._commits.append(record)
        committed.add_done_callback(lambda future: self._answer(append, future))

    def _answer(self, append: _Append, committed: asyncio.Future[bool]) -> None:
        failure: StreamError | None = None
        if committed.cancelled():
            failure = StreamError("closed while it was under way")
        elif isinstance(committed.exception(), StreamError):
            known = committed.exception()
            assert isinstance(known, StreamError)
            failure = type(known)(str(known))
        elif not committed.result():
            source = next(iter(append.lines), ("", 0))
            self._conflict(source)
            failure = _foreign(source)
        for line in append.lines.values():
            line.committing -= 1
        if failure is not None:
            self._fail(append, failure)
            return
        self._views.update(append.versions)
        self._forget(append)
        if not append.future.done():
            append.future.set_result(None)

    def _fail(self, append: _Append, error: StreamError) -> None:
        """Fail an append and all behind it that are not yet given to be committed."""
        failing = [append]
        while failing:
            one = failing.pop()
            if one.told is not None:
                for body in one.bodies:
                    if one.told in body.told:
                        body.told.remove(one.told)
                one.told = None
            for source, line in one.lines.items():
                self._outdate(source)
                line.failed = True
                if one in line.waiting:
                    line.waiting.remove(one)
                failing += line.waiting
                line.waiting.clear()
            self._forget(one)
            if not one.future.done():
                one.future.set_exception(type(error)(str(error)))
                one.future.exception()  # its caller may have gone

    def _forget(self, append: _Append) -> None:
        for source, ranges in append.seqs.items():
            for first, last in ranges:
                append.lines[source].pending.discard(first, last)
        for source, line in append.lines.items():
            if not line.waiting and not line.committing and self._lines.get(source) is line:
                del self._lines[source]


def _seqs(parts: Sequence[Part]) -> dict[Source, list[Range]]:
    """Return what parts bring by source, joined: parts of a batch interleave."""
    found: dict[Source, list[tuple[Range, ...]]] = {}
    for part in parts:
        found.setdefault((part.gateway, part.epoch), []).append(part.seq_ranges)
    return {source: merged(ranges) for source, ranges in found.items()}


def _leads(append: _Append, line: _Line) -> bool:
    return bool(line.waiting) and line.waiting[0] is append


def _record(append: _Append, number: int) -> AppendRecord:
    sources = dict.fromkeys(append.lines)
    sources.update(dict.fromkeys(append.assigned))
    sources.update(dict.fromkeys((stone.gateway, stone.epoch) for stone in append.given_up))
    places = {source: place for place, source in enumerate(sources)}
    parts = tuple(
        (
            places[part.gateway, part.epoch],
            part.partition,
            part.count,
            part.packed or pack_ranges(part.seq_ranges),
            body.extents,
        )
        for part, body in zip(append.parts, append.bodies, strict=True)
    )
    return AppendRecord(
        number,
        tuple(
            SourceRecord(
                source,
                append.lines[source].version if source in append.lines else None,
                append.assigned.get(source, 0),
                tuple(append.seqs.get(source, ())),
            )
            for source in sources
        ),
        parts,
        tuple(append.given_up),
    )


def _foreign(source: Source) -> StreamError:
    return StreamError(
        f"gateway {source[0]}: another node took readings of it meanwhile, or may have; what is"
        " held is asked anew"
    )
