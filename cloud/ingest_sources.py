"""What the stream holds of each (gateway, epoch), in memory, for dropping what comes again.

Invariants: `held` of a source is never more than what the stream has committed; `under_way` are
the seqs of its appends not yet answered, which never overlap `held` nor one another. A reading
that is under way is neither dropped nor appended again: who brings it waits for the answer, so
nothing is acknowledged on the word of an append that may still fail.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence

from bridge.intervals import IntervalSet, Range
from bridge.runs import RUNS_MAX, Run
from cloud.stream.contract import Source, Stream

__all__ = ["HeldSeqs", "SourceState"]


class SourceState:
    """One (gateway, epoch)."""

    __slots__ = (
        "admitting",
        "answered",
        "asking",
        "assigned",
        "held",
        "runs",
        "runs_count",
        "under_way",
        "users",
    )

    def __init__(self) -> None:
        self.held: IntervalSet | None = None  # None: ask the stream
        self.under_way = IntervalSet()
        self.runs: tuple[Run, ...] = ()  # whose word was taken, known with `held`; the newest
        self.runs_count = 0  # of all
        self.admitting = 0  # runs that are being made known: nothing is taken meanwhile
        self.assigned = 0  # highest the stream was told of
        self.asking = asyncio.Lock()  # a later question must not outdate the answer in use
        self.users = 0  # calls that rely on this object being the only one of its source
        self.answered: asyncio.Future[None] | None = None  # resolved at the next answer

    def begin(self, ranges: Sequence[Range]) -> None:
        """Note that an append of `ranges` is under way."""
        self.under_way.update(ranges)
        self.users += 1

    def end(self, ranges: Sequence[Range], *, stored: bool) -> None:
        """Note the answer to an append; when it failed, what is held is asked anew."""
        self.users -= 1
        for first, last in ranges:
            self.under_way.discard(first, last)
        if not stored:
            self.held = None
        elif self.held is not None:
            self.held.update(ranges)
        if self.answered is not None and not self.answered.done():
            self.answered.set_result(None)
        self.answered = None

    def took_runs(self, runs: Sequence[Run]) -> None:
        """Note that the stream knows more runs."""
        known = {one.run for one in self.runs}  # it may have been asked in between
        new = [one for one in runs if one.run not in known]
        self.runs = (*self.runs, *new)[-RUNS_MAX:]
        self.runs_count += len(new)

    async def wait_for_answer(self) -> None:
        """Return after the next `end`."""
        if self.answered is None:
            self.answered = asyncio.get_running_loop().create_future()
        await asyncio.shield(self.answered)


class HeldSeqs:
    """The sources lately heard of.

    Args:
        stream: Knows what it holds.
        sources_max: Most sources kept; those with appends under way always are.
    """

    def __init__(self, stream: Stream, *, sources_max: int = 4096) -> None:
        self._stream = stream
        self._sources: OrderedDict[Source, SourceState] = OrderedDict()
        self._sources_max = sources_max

    async def settled(self, source: Source, ranges: Sequence[Range]) -> SourceState:
        """Return a source none of whose `ranges` is under way, with `held` known.

        The caller must go on to `begin` without awaiting anything in between.

        Raises:
            StreamError: the stream cannot say what it holds.
        """
        state = self._get(source)
        state.users += 1
        try:
            while True:
                if state.held is None:
                    await self._ask(source, state)
                elif any(state.under_way.overlaps(first, last) for first, last in ranges):
                    await state.wait_for_answer()
                else:
                    return state
        finally:
            state.users -= 1

    async def asked(self, source: Source) -> SourceState:
        """Return a source as the stream knows it now, whatever was known here.

        Raises:
            StreamError: the stream cannot say what it holds.
        """
        self._get(source).held = None
        return await self.settled(source, ())

    async def _ask(self, source: Source, state: SourceState) -> None:
        async with state.asking:
            while state.under_way:  # an answer that comes meanwhile might be missed
                await state.wait_for_answer()
            if state.held is None:  # nobody was quicker
                held = await self._stream.held(*source)
                state.runs_count, state.runs = await self._stream.runs(*source)
                state.held = IntervalSet(held)

    def _get(self, source: Source) -> SourceState:
        state = self._sources.get(source)
        if state is not None:
            self._sources.move_to_end(source)
            return state
        if len(self._sources) >= self._sources_max:
            self._drop_one()
        state = self._sources[source] = SourceState()
        return state

    def _drop_one(self) -> None:
        for source, state in self._sources.items():
            if not state.users:
                del self._sources[source]
                return
