"""Capture: the broker's publishes become readings of the journal, and are settled once durable.

Theory of operation. Runs gather in an open commit. When none is under way the open one is closed
and written: at once after a pause, else once `commit_window_ms` have passed since the last one
began, or EARLY_BYTES have gathered; meanwhile the next gathers (group commit). Everything here is
per run or per commit, nothing per message. A commit that fails refuses its runs; the journal is
then tried with small writes, with growing pauses, until it works again.

Invariants:
- `run.settled` is called exactly once for a run that `take` took, never for one it refused.
- `settled(run, 0)` is called only after `Journal.append` returned for the commit with that run.
- Runs of one lane are committed in the order they were taken.
- `waiting_bytes` is what gathered and is not settled; `saturated` bounds it to about twice
  `waiting_bytes_max`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import structlog

from edge.config import CaptureConfig, JournalConfig
from edge.contract import Lane
from edge.journal_schema import JournalError
from edge.segments import pack_runs
from mqtt.broker.seams import PublishRun
from mqtt.reason_codes import ReasonCode
from mqtt.topics import matches
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Capture", "CaptureStats", "Committer"]

log = structlog.get_logger(component="capture")

COMMIT_BYTES = 1024 * 1024  # more than this goes in the next commit: bounds one body, and its delay
EARLY_BYTES = 64 * 1024  # a commit this large wears the disk no less by waiting for the window
RUN_BYTES = 128  # what a run may add to the body beside its packets, and holds of memory
MARK_BYTES = 8 * 1024 * 1024
RETRY_MIN_S, RETRY_MAX_S = 0.1, 5.0
RELIEF_BYTES = 256 * 1024  # room a lane must have again before clients are asked back
NEVER = 1 << 62
_DURABILITY = {"power-loss": "journal-fsync", "process-crash": "process-crash"}
LOG_EVERY_S = 10.0
LATELY_S = 10.0  # for so long a refusal counts as trouble
_FULL_WHY = (
    "the {} lane has no room: journal.file_bytes_max is used, or the disk has no more free than"
    " journal.disk_reserve_bytes"
)
FULL = int(ReasonCode.QUOTA_EXCEEDED)
BROKEN = int(ReasonCode.IMPLEMENTATION_SPECIFIC_ERROR)


class Committer(Protocol):
    """What capture needs of the journal."""

    async def append(self, parts: list[tuple[Lane, int, bytes]]) -> None:
        """Commit; durable on return, nothing happened when it raises JournalError."""
        ...

    def lane_room(self, lane: Lane) -> int:
        """Return how many bytes a lane takes before it refuses."""
        ...

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call back whenever `lane_room` may have risen."""
        ...

    def look_again(self) -> None:
        """Measure the room anew soon."""
        ...

    async def probe(self) -> None:
        """Write something small; raises JournalError while the journal cannot be written."""
        ...


@dataclass(slots=True)
class CaptureStats:
    """Figures since the start."""

    runs: int = 0
    readings: int = 0
    refused_full: int = 0  # runs refused because a limit is reached
    refused_broken: int = 0  # runs refused because the journal could not be written
    waiting_bytes: int = 0


class Capture:
    """mqtt.broker.seams.Capture on a journal."""

    def __init__(
        self, journal: Committer, capture: CaptureConfig, config: JournalConfig, clock: Clock
    ) -> None:
        """Begin to take runs; needs the running loop.

        Args:
            journal: Where readings become durable.
            capture: Which topics are captured, and in which lane.
            config: Commit window and bound of what may wait.
            clock: For the commit window.
        """
        self.stats = CaptureStats()
        self._journal = journal
        self._topics = capture
        self._clock = clock
        self._durability = _DURABILITY[config.durability]
        self._window_s = config.commit_window_ms / 1000
        self._waiting_bytes_max = config.waiting_bytes_max
        self._loop = asyncio.get_running_loop()
        self._gathered: list[list[PublishRun]] = [[] for _ in Lane]
        self._gathered_bytes = 0
        self._committing_bytes = 0
        self._committing = [0 for _ in Lane]  # the same by lane
        self._room = [0 for _ in Lane]  # what each lane still takes; below 0 while failing
        self._granted = [0 for _ in Lane]  # `_room` when last set: the difference was taken since
        self._waiting = [0 for _ in Lane]  # bytes by lane taken before that and not settled
        self._wanted = [0 for _ in Lane]  # the largest run refused since the last relief
        self._saturated = False  # since the last relief somebody was told to stop reading
        self._refused_s = -LATELY_S  # when a run was refused last, ...
        self._refused_why = ""  # ... and why
        self._failing = 0  # the reason code while the journal cannot be written, else 0
        self._retry_s = 0.0
        self._began_s = -self._window_s  # when the last commit began
        self._wake_at = NEVER  # gathered bytes that end the present wait
        self._signal: asyncio.Future[None] = self._loop.create_future()
        self._callbacks: list[Callable[[], None]] = []
        self._closing = False
        self._unmarked_bytes = 0
        self.on_much: Callable[[], None] = lambda: None  # called whenever MARK_BYTES were captured
        journal.on_room(self._measure)
        self._measure()
        self._task = self._loop.create_task(self._drive(), name="capture")

    # --- the broker's side -----------------------------------------------------------------------

    @property
    def durability(self) -> str:
        """What an acknowledged reading survives: `journal-fsync` the loss of power."""
        return self._durability

    def trouble(self) -> str:
        """Return why devices were refused just now, "" when none was."""
        lately = self._clock.monotonic_s() - self._refused_s < LATELY_S
        return self._refused_why if lately or self._failing else ""

    def lane(self, topic_name: str) -> int | None:
        """Return the lane that captures `topic_name`, or None when it is not captured."""
        topics = self._topics
        if any(matches(each, topic_name) for each in topics.ignore):
            return None
        if not any(matches(each, topic_name) for each in topics.topics):
            return None
        urgent = any(matches(each, topic_name) for each in topics.urgent)
        return Lane.URGENT if urgent else Lane.LIVE

    def exclusive(self, lane: int) -> bool:  # noqa: ARG002 - both lanes alike
        """Return False: subscribers on the gateway see what is captured."""
        return False

    def take(self, run: PublishRun) -> int:
        """Take a run, or return the reason code that refuses it."""
        # benchmarks/journal.py pays for the bare arithmetic: this runs once a run
        size = len(run.frames) + RUN_BYTES
        lane = run.lane
        room = self._room[lane] - size
        if room < 0:
            return self._refuse(lane, size)
        self._room[lane] = room
        self._gathered[lane].append(run)
        gathered = self._gathered_bytes = self._gathered_bytes + size
        if gathered >= self._wake_at:
            self._wake()
        return 0

    def saturated(self) -> bool:
        """Return True when enough is waiting for the disk."""
        if self._gathered_bytes + self._committing_bytes < self._waiting_bytes_max:
            return False
        self._saturated = True
        return True

    def when_relieved(self, callback: Callable[[], None]) -> None:
        """Call `callback` once, on the loop, when taking can go on."""
        self._callbacks.append(callback)
        self._relieve()

    def set_window_s(self, window_s: float) -> None:
        """Let so much time pass from one commit to the next, from the next on."""
        self._window_s = window_s

    async def close(self) -> None:
        """Take no more, commit what has gathered, and settle it."""
        if not self._closing:
            self._closing = True
            self._measure()
            self._wake()
        await self._task

    # --- commits ---------------------------------------------------------------------------------

    async def _drive(self) -> None:
        """Commit what gathers, until closed."""
        while True:
            if not self._gathered_bytes and not self._closing:
                await self._wait(1, None)
            rest_s = self._began_s + self._window_s - self._clock.monotonic_s()
            if rest_s > 0 and self._gathered_bytes < EARLY_BYTES and not self._closing:
                await self._wait(EARLY_BYTES, rest_s)
            if not self._gathered_bytes:
                if self._closing:
                    return
                continue
            self._began_s = self._clock.monotonic_s()
            runs = self._next_commit()
            code = await self._commit(runs)
            self._settle(runs, code)
            if code:
                await self._recover(code)

    def _next_commit(self) -> list[list[PublishRun]]:
        """Return the runs of the next commit by lane."""
        self._note_taken()
        if self._gathered_bytes <= 2 * COMMIT_BYTES:
            runs = self._gathered
            self._gathered = [[] for _ in Lane]
            self._committing = list(self._waiting)
        else:
            runs = []
            left = COMMIT_BYTES
            for lane, gathered in enumerate(self._gathered):
                at = size = 0
                while at < len(gathered) and size < left:
                    size += len(gathered[at].frames) + RUN_BYTES
                    at += 1
                runs.append(gathered[:at])
                del gathered[:at]
                self._committing[lane] = size
                left -= size
        self._committing_bytes = sum(self._committing)
        self._gathered_bytes -= self._committing_bytes
        return runs

    async def _commit(self, runs: list[list[PublishRun]]) -> int:
        """Commit runs; return 0 when durable, else the reason code that refuses them."""
        try:
            parts = [
                (lane, *pack_runs(of_lane))
                for lane, of_lane in zip(Lane, runs, strict=True)
                if of_lane
            ]
            await self._journal.append(parts)
        except JournalError as error:
            # the text of a JournalError is for operators, a traceback is not
            line = limited(log, "commit_failed", LOG_EVERY_S)
            line.error("commit_failed", error=str(error), kind=error.kind)
            return FULL if error.kind == "full" else BROKEN
        except Exception:  # this task's root: a client must get an answer whatever happened
            log.exception("commit_broke")
            return BROKEN
        stats = self.stats
        stats.readings += sum(count for _, count, _ in parts)
        stats.runs += sum(len(of_lane) for of_lane in runs)
        self._retry_s = 0.0
        return 0

    def _settle(self, runs: list[list[PublishRun]], code: int) -> None:
        """Tell the broker what became of runs."""
        for of_lane in runs:
            for run in of_lane:
                try:
                    run.settled(run, code)
                except Exception:  # one connection's fault must not cost the others their answer
                    log.exception("settle_broke", client_id=run.client.client_id)
        self._note_taken()
        self._waiting = [a - b for a, b in zip(self._waiting, self._committing, strict=True)]
        self._committing = [0 for _ in Lane]
        self._unmarked_bytes += self._committing_bytes
        self._committing_bytes = 0
        if self._unmarked_bytes >= MARK_BYTES:
            self._unmarked_bytes = 0
            self.on_much()
        if code:
            for lane, of_lane in enumerate(runs):
                if of_lane:
                    self._count_refused(code, len(of_lane))
                    self._tell_refused(lane, code)
        self._measure()

    async def _recover(self, code: int) -> None:
        """Refuse everything until the journal can be written again."""
        self._failing = code
        self._measure()
        while self._gathered_bytes:
            self._settle(self._next_commit(), code)
        while not self._closing:
            self._retry_s = min(max(self._retry_s * 2, RETRY_MIN_S), RETRY_MAX_S)
            await self._wait(NEVER, self._retry_s)
            try:
                await self._journal.probe()
            except JournalError:
                continue
            break
        self._failing = 0
        self._measure()

    async def _wait(self, wake_at: int, delay_s: float | None) -> None:
        """Wait until `wake_at` bytes have gathered, the delay is over, or the end has come."""
        self._signal = self._loop.create_future()
        self._wake_at = wake_at
        timer = None if delay_s is None else self._loop.call_later(delay_s, self._wake)
        await self._signal
        if timer is not None:
            timer.cancel()

    def _wake(self) -> None:
        self._wake_at = NEVER
        if not self._signal.done():
            self._signal.set_result(None)

    # --- refusal and relief ----------------------------------------------------------------------

    def _refuse(self, lane: int, size: int) -> int:
        code = self._failing or (BROKEN if self._closing else FULL)
        if not self._wanted[lane] and not self._failing:
            self._journal.look_again()
        self._wanted[lane] = max(self._wanted[lane], size)
        self._count_refused(code, 1)
        if not self._closing:
            self._tell_refused(lane, code)
        return code

    def _tell_refused(self, lane: int, code: int) -> None:
        self._refused_s = self._clock.monotonic_s()
        name = Lane(lane).name.lower()
        what = _FULL_WHY.format(name) if code == FULL else "the disk cannot be written"
        self._refused_why = f"journal: {what}; devices are refused"
        limited(log, ("publishes_refused", lane, code), LOG_EVERY_S).error(
            "publishes_refused",
            lane=name,
            reason_code=f"0x{code:02x}",
            reason=what,
            refused_full=self.stats.refused_full,
            refused_broken=self.stats.refused_broken,
        )

    def _count_refused(self, code: int, runs: int) -> None:
        if code == FULL:
            self.stats.refused_full += runs
        else:
            self.stats.refused_broken += runs

    def _note_taken(self) -> None:
        """Add what was taken since `_room` was set to what waits."""
        for lane in Lane:
            self._waiting[lane] += self._granted[lane] - self._room[lane]
            self._granted[lane] = self._room[lane]

    def _measure(self) -> None:
        """Set what each lane still takes, and ask clients back when that has become enough."""
        self._note_taken()
        self.stats.waiting_bytes = self._gathered_bytes + self._committing_bytes
        for lane in Lane:
            room = -1
            if not self._failing and not self._closing:
                room = self._journal.lane_room(lane) - self._waiting[lane]
            self._room[lane] = self._granted[lane] = room
        self._relieve()

    def _relieve(self) -> None:
        """Call those back who wait for relief, when there is some."""
        if not self._callbacks or self._failing or self._closing:
            return
        if self._gathered_bytes + self._committing_bytes > self._waiting_bytes_max // 2:
            return
        lacking = any(
            wanted and room < wanted + RELIEF_BYTES
            for wanted, room in zip(self._wanted, self._room, strict=True)
        )
        if lacking and not self._saturated:
            return
        # who waits for the disk is not to wait for room in another lane; who does is refused again
        self._saturated = False
        if not lacking:
            self._wanted = [0 for _ in Lane]
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self._loop.call_soon(callback)
