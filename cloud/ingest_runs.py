"""Which run of a gateway has an epoch: asked at each hello, and looked at with each batch.

A gateway says its runs before its first batch (bridge/runs.py). A run that goes on where the one
before it ended is made known to the stream, and from then on only that one's readings are taken
past where it began; until the stream has it, nobody's are. One that does not is told to part:
readings that two gateways captured under the same seqs never meet in one epoch.

Invariants:
- What a run sends is taken only up to where the next one that is known began.
- Whoever appends at another node knows of a run before the first of its readings is there: the
  stream takes nothing from who has not heard of it (docs/adr/0017-runs.md).
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

import structlog

from bridge.batch import Batch
from bridge.commands import Hello
from bridge.envelope import SEQ_MAX
from bridge.runs import Fork, judge, may_send_through
from cloud.ingest_sources import HeldSeqs, SourceState
from cloud.sinks.schema import epoch_text
from cloud.stream.contract import Source, Stream, StreamError, origin_stone, run_stones
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Greeting", "RunKeeper"]

log = structlog.get_logger(component="ingest")

_ALL = ((1, SEQ_MAX),)
_TRIES = 3  # when another node is as quick
_FORKS_MAX = 4096  # whose next batch is refused once when they are more, and its hello asked for
_LOG_EVERY_S = 60.0


@dataclass(slots=True, frozen=True)
class Greeting:
    """What a gateway is told of its journal."""

    highest_seq: int  # that is held of it
    run: int = 0  # that may go on, or has to part; 0: runs are not told apart
    fork: Fork | None = None


class RunKeeper:
    """The runs of all gateways that come to one node.

    Args:
        stream: Where they are kept.
        held: What is known of each source.
        clock: Wall clock.

    Attributes:
        forks: Hellos of runs that had to part, since the start.
    """

    def __init__(self, stream: Stream, held: HeldSeqs, clock: Clock) -> None:
        self.forks = 0
        self._stream = stream
        self._held = held
        self._clock = clock
        self._parted: OrderedDict[tuple[Source, int], int] = OrderedDict()  # through which seq

    async def greet(self, gateway: str, hello: Hello) -> Greeting:
        """Return what a gateway is answered; a run that may go on is known once this returns.

        Raises:
            StreamError: the stream cannot say, or take it, now.
        """
        source = (gateway, hello.epoch)
        if not hello.runs or not self._stream.keeps_runs:
            return Greeting(await self._stream.highest_seq(*source))
        for left in reversed(range(_TRIES)):
            state = await self._held.settled(source, ())
            verdict = judge(hello.epoch, state.runs, hello.runs, _highest(state))
            if isinstance(verdict, Fork):  # its runs of late may be known at another node alone
                state = await self._held.asked(source)
                verdict = judge(hello.epoch, state.runs, hello.runs, _highest(state))
            if verdict and not isinstance(verdict, Fork):
                try:
                    return await self._admit(source, state, hello)
                except StreamError:
                    if not left:
                        raise
                    continue
            run = hello.runs[-1].run
            if isinstance(verdict, Fork):
                self._part(source, run, verdict)
                return Greeting(_highest(state), run, verdict)
            highest_seq = _highest(state)
            # else its journal is older, and the answer that said so may have been lost
            return Greeting(highest_seq, run if highest_seq <= hello.last_seq else 0)
        raise AssertionError("it returned, or raised")

    def may_send(self, state: SourceState, batch: Batch) -> bool:
        """Return True when a batch tells of nothing that is another run's to give out."""
        if not batch.run:
            return True
        if state.admitting:
            return False
        if not state.runs:
            return True
        through = may_send_through(state.runs, batch.run)
        if through == 0:
            through = self._parted.get(((batch.gateway, batch.epoch), batch.run), 0)
        told = max((stone.last_seq for stone in batch.tombstones), default=0)
        return through is None or max(told, batch.assigned) <= through

    async def _admit(self, source: Source, state: SourceState, hello: Hello) -> Greeting:
        """Make the runs of a gateway known, when nothing of its epoch is under way."""
        state.admitting += 1
        state.users += 1
        try:
            await self._held.settled(source, _ALL)
            known = state.runs
            highest_seq = _highest(state)
            verdict = judge(hello.epoch, known, hello.runs, highest_seq)
            if isinstance(verdict, Fork) or not verdict:
                raise StreamError(f"gateway {source[0]}: another run of it was quicker")
            stones = run_stones(source, state.runs_count, verdict)
            if hello.origin is not None and not known:
                stones.append(origin_stone(source, hello.origin, self._clock.wall_us()))
            state.begin(())
            stored = False
            try:
                await self._stream.append((), stones)
                stored = True
            finally:
                state.end((), stored=stored)
            state.took_runs(verdict)
        finally:
            state.users -= 1
            state.admitting -= 1
        # of an epoch from before runs were told, its journal says itself whether it is older
        told = known or highest_seq <= hello.runs[-1].after_seq
        return Greeting(highest_seq, hello.runs[-1].run if told else 0)

    def _part(self, source: Source, run: int, fork: Fork) -> None:
        self.forks += 1
        self._parted[source, run] = fork.after_seq
        self._parted.move_to_end((source, run))
        while len(self._parted) > _FORKS_MAX:
            self._parted.popitem(last=False)
        limited(log, ("twice", source[0]), _LOG_EVERY_S).error(
            "gateway_runs_twice", gateway=source[0], epoch=epoch_text(source[1]),
            after_seq=fork.after_seq, new_epoch=epoch_text(fork.epoch),
            hint="two gateways of this name go on from one journal, a clone or a card put back"
            " from a copy: each has an account of its own; once one has sent all, give it another"
            " id and an empty data folder",
        )  # fmt: skip


def _highest(state: SourceState) -> int:
    ranges = state.held.ranges() if state.held is not None else ()
    return ranges[-1][1] if ranges else 0
