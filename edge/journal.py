"""The journal: readings on this machine's disk from their capture until the cloud has them.

A commit takes what was captured since the last one, gives each reading its seq, and is durable when
`append` returns; then, and only then, are its publishes acknowledged (capture.py). The uplink reads
by lane (contract.py's JournalReader) and trims what the cloud has acknowledged.
docs/journal-format.md is the file; docs/adr/0002-sqlite-journal.md says why SQLite.

Invariants:
- One writer at a time (`_writing`): what the state says is what the file holds.
- A seq is given out at most once, and only when reserved (journal_state.py).
- What a limit removes has a tombstone, in the same transaction (journal_keeper.py).
- Memory does not grow with the backlog: the tail is bounded, the rest is read when asked for.
- A damaged file is replaced while the edge goes on; what was lost has a tombstone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import structlog

from bridge.runs import Fork, Origin, Run
from edge.config import JournalConfig
from edge.contract import Commit, Lane, Tombstone
from edge.journal_commit import Committer, OnCommit, Part, row_of
from edge.journal_file import JournalFile
from edge.journal_keeper import NO_LIMIT, Keeper
from edge.journal_older import go_past
from edge.journal_open import Opened, lock_journal, open_journal
from edge.journal_parting import begin_parting, end_parting
from edge.journal_schema import ROW_BYTES, JournalError, key_of, row_crc32
from edge.journal_state import JournalStats, LaneStats, Parting, us_since_boot
from edge.journal_tail import Tail
from runtime.bell import Bell
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["Journal"]

log = structlog.get_logger(component="journal")

MAINTENANCE_S = 1.0
LOG_EVERY_S = 10.0
_REPAIRABLE = ("damaged", "closed")  # "closed": an earlier repair did not get through


class Journal:
    """One journal, open. It keeps what edge/contract.py's JournalReader asks for."""

    def __init__(
        self, path: Path, config: JournalConfig, clock: Clock, lock: int, keeper: Keeper, tail: Tail
    ) -> None:
        """Use `Journal.open`."""
        self._path = path
        self._config = config
        self._clock = clock
        self._lock = lock  # descriptor that holds the lock file
        self._keeper = keeper
        self._tail = tail
        self._writing = asyncio.Lock()
        self._reading = keeper.reading
        self._committer = Committer(path, clock, keeper, tail)
        self._news = Bell()
        self._on_room: Callable[[], None] = lambda: None
        self._due = asyncio.Event()
        self._closing = False
        self._maintenance: asyncio.Task[None] | None = None
        self._failed_commits = 0
        self._damaged_rows = 0
        self._dead_letters = 0

    @classmethod
    async def open(
        cls, path: Path, config: JournalConfig, clock: Clock, *, gateway: str = ""
    ) -> Journal:
        """Open the journal at `path` (`DIR/edge/journal.db`), made if it is not there.

        Args:
            path: The file.
            config: Its limits and durability.
            clock: For times and the boot id.
            gateway: Whose journal it is to be; empty leaves that as it is.

        Raises:
            JournalError: it is in use, another program's or gateway's, or cannot be written; not
                when damaged.
        """
        lock = lock_journal(path)
        try:
            opened = await asyncio.to_thread(
                open_journal, path, config.durability, clock, gateway=gateway
            )
            file = await JournalFile.connect(path, durable=config.durability == "power-loss")
            try:
                lasts = {lane: state.last_seq for lane, state in opened.state.lanes.items()}
                tail = Tail(config.tail_bytes_max, lasts)
                keeper = Keeper(path, config, clock, file, opened.state, tail)
                await keeper.survey()
            except BaseException:
                await file.close()
                raise
        except BaseException:
            os.close(lock)
            raise
        journal = cls(path, config, clock, lock, keeper, tail)
        journal._maintenance = asyncio.create_task(journal._keep(), name="journal-maintenance")
        return journal

    def on_commit(self, told: OnCommit) -> None:
        """Have `told` called before each commit is made; what it returns is waited for."""
        self._committer.on_commit = told

    # --- capture's side --------------------------------------------------------------------------

    async def append(self, parts: Sequence[Part]) -> None:
        """Commit readings: durable when this returns, none of them when it raises.

        Args:
            parts: At most one a lane, in lane order; seqs are given out in this order.

        Raises:
            JournalError: kind "full" when a limit or the disk is reached; others are in its docs.
        """
        async with self._writing:
            try:
                await self._committer.commit(parts)
            except JournalError as error:
                self._failed_commits += 1
                if error.kind in _REPAIRABLE and not self._closing:
                    await self._repair(error)
                raise
        self._news.ring()

    async def meet(self, held_seq: int) -> None:
        """Hear up to which seq of this epoch the cloud holds some, before anything is sent to it.

        The first word of a process counts: a journal that had given out less before is an older
        copy, and what was captured since gets new seqs (journal_older.py).

        Args:
            held_seq: The highest.

        Raises:
            JournalError: the disk is full or fails: nothing may be sent before it is done.
        """
        async with self._writing:
            keeper = self._keeper
            unmet_seq = keeper.state.unmet_seq
            if unmet_seq is None:
                return
            older = held_seq > unmet_seq
            if older:
                await go_past(
                    self._path, keeper, self._tail, self._clock, self._committer.on_commit,
                    held_seq,
                )  # fmt: skip
            await keeper.file.met()
            keeper.state.unmet_seq = None
        if older:
            self._news.ring()

    async def admitted(self) -> None:
        """Hear that the cloud knows this run, and none that has given out the same seqs.

        Raises:
            JournalError: the disk is full or fails: nothing may be sent before it is done.
        """
        async with self._writing:
            if self._keeper.state.unmet_seq is not None:
                await self._keeper.file.met()
                self._keeper.state.unmet_seq = None

    async def part(self, epoch: int, fork: Fork) -> bool:
        """Go on in an epoch of its own past a seq, once all up to it is settled.

        Of two words the lower counts: past that the cloud takes nothing in this epoch.

        Args:
            epoch: What the word was said of: one that came late may be of before a parting.
            fork: Where to, and past which seq.

        Returns:
            Whether the journal did not know: False when it parts there, or before, already.

        Raises:
            JournalError: the disk is full or fails: nothing may be sent before it is done.
        """
        async with self._writing:
            if self._keeper.state.epoch != epoch:
                return False
            parting = self._keeper.state.parting
            if parting is not None and parting.after_seq <= fork.after_seq:
                return False
            await begin_parting(self._keeper, fork)
            await end_parting(self._path, self._keeper)
        self._news.ring()
        return True

    def lane_room(self, lane: Lane) -> int:
        """Return how many bytes of rows `lane` takes now before it refuses."""
        return self._keeper.lane_room(lane)

    def room_bytes(self, lane: Lane) -> int:
        """Return how many bytes of rows `lane` takes before a limit is reached, whatever then."""
        return self._keeper.room_bytes(lane)

    def on_room(self, callback: Callable[[], None]) -> None:
        """Call `callback` whenever `lane_room` may have risen."""
        self._on_room = callback

    def look_again(self) -> None:
        """Have the room measured anew soon: something was refused for want of it."""
        self._due.set()

    async def probe(self) -> None:
        """Write something small after a failure.

        Raises:
            JournalError: the journal still cannot be written.
        """
        async with self._writing:
            state = self._keeper.state
            try:
                # a seq more, because SQLite does not write what has not changed
                await self._keeper.file.reserve(state.reserved_seq + 1)
                state.reserved_seq += 1
                await self._keeper.survey()
            except JournalError as error:
                if error.kind not in _REPAIRABLE:
                    raise
                await self._repair(error)

    # --- the uplink's side: JournalReader --------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The random 64-bit id made with this journal file."""
        return self._keeper.state.epoch

    @property
    def run(self) -> int:
        """The random 63-bit id of this opening."""
        return self._keeper.state.runs[-1].run

    @property
    def runs(self) -> Sequence[Run]:
        """The openings of this epoch that are known, oldest first, this one last."""
        return self._keeper.state.runs

    @property
    def origin(self) -> Origin | None:
        """Where this epoch parted from another; None if it did not."""
        return self._keeper.state.origin

    @property
    def parting(self) -> Parting | None:
        """What is to get another epoch, and waits until what lies before it is settled."""
        return self._keeper.state.parting

    @property
    def last_seq(self) -> int:
        """The highest seq made durable; 0 when nothing was ever captured."""
        return self._keeper.state.last_seq

    @property
    def settled_seq(self) -> int | None:
        """The seq up to which no reading waits; None while a tombstone is unacknowledged."""
        return self._keeper.state.settled_seq()

    def pending(self, lane: Lane, after_seq: int) -> bool:
        """Return True when `lane` holds readings past `after_seq`. Never blocks."""
        state = self._keeper.state.lanes[lane]
        return state.last_seq > after_seq and state.last_seq > state.gone_seq

    def seq_before(self, lane: Lane, time_us: int) -> int:
        """Return a seq up to which all commits of `lane` are older than `time_us`. Never blocks.

        The highest that is known without the disk; wall clock.
        """
        return self._tail.seq_before(lane, time_us)

    async def wait(self) -> None:
        """Return after the next commit or tombstone."""
        await self._news.wait()

    async def read(
        self, lane: Lane, after_seq: int, *, bytes_max: int, through_seq: int | None = None
    ) -> list[Commit]:
        """Return commits with readings past `after_seq`, oldest first; at least one if any.

        Recent ones come from a bounded tail in memory, older ones from disk. The first commit
        may begin before `after_seq`: the caller skips what it has had. None begins after
        `through_seq`. What was trimmed out of order may come again.

        Raises:
            JournalError: the disk could not be read; a damaged file is replaced meanwhile.
        """
        while self.pending(lane, after_seq):
            state = self._keeper.state.lanes[lane]
            after = max(after_seq, state.gone_seq)
            through = state.last_seq if through_seq is None else min(through_seq, state.last_seq)
            found = self._tail.read(lane, after, bytes_max, through)
            if found is not None:
                state.note_read(found)
                return found
            file = self._keeper.file
            try:
                async with self._reading:
                    rows = await file.read(lane, after, through, bytes_max)
                    commits = _checked(lane, rows)
                    state.note_read(commits)
            except JournalError as error:
                if error.kind not in _REPAIRABLE or self._closing:
                    raise
                async with self._writing:
                    if file is self._keeper.file:  # else somebody has repaired it meanwhile
                        await self._repair(error)
                continue
            if commits or (not rows and (through < state.last_seq or state.ahead)):
                return commits
            await self._give_up_unreadable(lane, after, rows)
        return []

    async def committed_after(self, after_seq: int, *, bytes_max: int) -> AsyncIterator[Commit]:
        """Yield the commits past a seq that are on disk, trimmed or not, a lane after the other.

        For who looks through them before anything is captured; a row that does not check ends
        its lane.
        """
        through = self._keeper.state.last_seq
        for lane in Lane:
            at = after_seq
            while at < through:
                async with self._reading:
                    rows = await self._keeper.file.read(lane, at, through, bytes_max)
                commits = _checked(lane, rows)
                for commit in commits:
                    yield commit
                if not commits or len(commits) < len(rows):
                    break
                at = commits[-1].first_seq + commits[-1].count - 1

    def hold_after(self, seq: int | None) -> None:
        """Delete no trimmed row past `seq` for now; None: all that are due."""
        self._keeper.hold_seq = NO_LIMIT if seq is None else seq

    async def trim(self, lane: Lane, up_to_seq: int, *, after_seq: int = 0) -> None:
        """Forget readings of `lane` past `after_seq` up to `up_to_seq`: the cloud has them."""
        self._keeper.trim(lane, up_to_seq, after_seq)
        if self._keeper.trim_due():
            self._due.set()

    async def set_aside(
        self, lane: Lane, first_seq: int, last_seq: int, cause: str, body: bytes
    ) -> None:
        """Move refused readings to the dead letters, with a tombstone; durable on return.

        Their rows stay until they are trimmed; setting them aside again changes nothing.
        """
        count = last_seq - first_seq + 1
        now_us = self._clock.wall_us()
        tombstone = Tombstone(lane, first_seq, last_seq, count, "refused", now_us)
        async with self._writing:
            keeper = self._keeper
            await keeper.file.add_dead_letter(tombstone, cause, body)
            keeper.record(tombstone)
            self._dead_letters += 1
            await keeper.file.trim_dead_letters(self._config.dead_letters_bytes_max)
        log.error(
            "readings_refused",
            lane=lane.name.lower(),
            first_seq=first_seq,
            last_seq=last_seq,
            cause=cause,
        )
        self._news.ring()

    def tombstones(self) -> Sequence[Tombstone]:
        """Return the tombstones the cloud has not acknowledged yet, oldest first."""
        return self._keeper.tombstones()

    async def forget_tombstones(self, up_to: Sequence[Tombstone]) -> None:
        """Drop tombstones the cloud has made durable."""
        async with self._writing:
            await self._keeper.forget_tombstones(up_to)

    # --- both ------------------------------------------------------------------------------------

    def stats(self) -> JournalStats:
        """Return figures; sizes on the disk are those of the last look, at most a second old."""
        keeper, committer = self._keeper, self._committer
        state = keeper.state
        now_us = self._clock.wall_us()
        boot_us = us_since_boot(self._clock)
        lanes = {}
        for lane, each in state.lanes.items():
            depth = each.depth()
            age_us = each.head.age_us(now_us, state.boot, boot_us) if each.head and depth else 0
            lanes[lane] = LaneStats(depth, each.bytes, age_us / 1e6, each.last_seq, each.gone_seq)
        return JournalStats(
            lanes=lanes,
            file_bytes=keeper.space.file_bytes,
            disk_free_bytes=keeper.space.disk_free_bytes,
            tail_bytes=self._tail.bytes,
            tombstones=len(state.tombstones),
            commits=committer.commits,
            readings=committer.readings,
            body_bytes=committer.body_bytes,
            failed_commits=self._failed_commits,
            evicted=dict(keeper.evicted),
            dead_letters=self._dead_letters,
            damaged_rows=self._damaged_rows,
            commit_s=committer.commit_s,
            epoch=state.epoch,
            last_seq=state.last_seq,
        )

    async def maintain(self) -> None:
        """Do what is due: carry out trims, keep limits, note totals; called once a second."""
        keeper = self._keeper
        if keeper.trim_due() or keeper.pressed():
            await self.flush()
        async with self._writing:
            before = len(keeper.state.tombstones)
            await keeper.evict_old()
            await keeper.tidy()
            parted = await end_parting(self._path, keeper)
        if parted or len(keeper.state.tombstones) != before:
            self._news.ring()
        self._on_room()

    async def flush(self) -> None:
        """Carry out all trims now."""
        for lane in Lane:
            more = True
            while more:  # the lock is free between two steps: commits go first
                async with self._writing:
                    more = await self._keeper.flush_trims(lane)

    async def close(self) -> None:
        """Finish what is under way, mark the file as clean and release it."""
        if self._closing:
            return
        self._closing = True
        self._due.set()
        if self._maintenance is not None:
            await self._maintenance
        try:
            await self.flush()
            async with self._writing:
                state = self._keeper.state
                await self._keeper.file.mark_clean(state.last_seq, state.lanes)
        except JournalError as error:
            log.error("journal_close_failed", error=str(error))  # noqa: TRY400 - no traceback
        finally:
            async with self._writing, self._reading:
                with suppress(JournalError):
                    await self._keeper.file.close()
            os.close(self._lock)
            self._news.ring()

    # --- inside ----------------------------------------------------------------------------------

    async def _give_up_unreadable(
        self, lane: Lane, after_seq: int, rows: Sequence[tuple[int, int, int, int, bytes]]
    ) -> None:
        """Deal with a read that brought nothing: a row that does not check, or none at all."""
        async with self._writing:
            keeper = self._keeper
            state = keeper.state.lanes[lane]
            if state.gone_seq > after_seq:
                return  # it was trimmed or evicted meanwhile
            if not rows:
                newest = await keeper.file.newest_seq(lane)
                if newest <= after_seq:
                    state.last_seq = max(newest, state.gone_seq)
                return
            key, count = rows[0][:2]
            first_seq = key - key_of(lane, 0)
            follows = rows[1][0] - key_of(lane, 0) if len(rows) > 1 else state.last_seq + 1
            count = min(max(count, 1), follows - first_seq)
            now_us = self._clock.wall_us()
            tombstone = Tombstone(lane, first_seq, first_seq + count - 1, count, "damaged", now_us)
            after = replace(
                state,
                readings=max(0, state.readings - count),
                bytes=max(0, state.bytes - len(rows[0][4]) - ROW_BYTES),
            )
            state.head = await keeper.file.give_up_row(lane, after, tombstone)
            state.readings = after.readings if state.head else 0
            state.bytes = after.bytes if state.head else 0
            keeper.record(tombstone)
            self._damaged_rows += 1
        log.error(
            "readings_lost",
            lane=lane.name.lower(),
            first_seq=first_seq,
            last_seq=tombstone.last_seq,
            count_max=count,
            reason="damaged",
        )
        self._news.ring()

    async def _repair(self, error: JournalError) -> None:
        """Replace a file that turned out to be damaged; what is in memory goes in the new one."""
        log.error("journal_repair", error=str(error))
        keeper = self._keeper
        state = keeper.state
        boot_us = us_since_boot(self._clock)
        rows = [
            row_of(c.lane, c.first_seq, c.count, c.time_us, state.boot, boot_us, c.body)
            for c in self._tail
            if not state.lanes[c.lane].ahead.covers(c.first_seq, c.first_seq + c.count - 1)
        ]
        async with self._reading:
            with suppress(JournalError):
                await keeper.file.close()
            durability = self._config.durability
            opened: Opened = await asyncio.to_thread(
                open_journal, self._path, durability, self._clock, known=state, rows=rows
            )
            keeper.file = await JournalFile.connect(self._path, durable=durability == "power-loss")
            opened.state.parting = state.parting
            keeper.state = opened.state
        await keeper.survey()
        self._news.ring()

    async def _keep(self) -> None:
        """Maintain until closed."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(MAINTENANCE_S):
                    await self._due.wait()
            self._due.clear()
            if self._closing:
                return
            try:
                await self._maintain_or_repair()
            except JournalError as error:
                line = limited(log, "journal_maintenance_failed", LOG_EVERY_S)
                line.warning("journal_maintenance_failed", error=str(error))
            except Exception:  # the task's root: the journal goes on without its upkeep
                log.exception("journal_maintenance_broke")

    async def _maintain_or_repair(self) -> None:
        file = self._keeper.file
        try:
            await self.maintain()
        except JournalError as error:
            if error.kind not in _REPAIRABLE:
                raise
            async with self._writing:
                if file is self._keeper.file:
                    await self._repair(error)


def _checked(lane: Lane, rows: Sequence[tuple[int, int, int, int, bytes]]) -> list[Commit]:
    """Return the rows up to the first that does not check."""
    low = key_of(lane, 0)
    commits: list[Commit] = []
    for key, count, time_us, crc32, body in rows:
        if crc32 != row_crc32(key, count, time_us, body):
            break
        commits.append(Commit(lane, key - low, count, time_us, body))
    return commits
