"""Finds the readings that were taken under a wrong clock, and says by how much it was wrong.

Theory of operation. The clock since boot cannot be set. The difference of the wall clock to it, the
*offset*, is constant while nobody sets the wall clock; every commit shows it. Where it changes by
more than `tolerance_s` a *segment* of seqs begins, and so it does with each boot. The cloud's
welcome tells the true time (bridge/commands.py), give or take half a round trip: hence the true
offset of this boot, and the error of each of its segments, the present one included, whether or not
the gateway's own clock is ever set. For each a *correction* goes up, however long its readings have
been gone; storage adds it to their times, once. Readings go up with the time they were given: so no
reading can be corrected at both ends, or at none.

The true offset of a boot is kept, so that what it took after it last heard from the cloud is
corrected as well, if need be in the next boot. A boot during which no cloud was reached tells
nothing of its own error: its readings keep their times, and that is logged.

Invariants:
- A segment is on the disk before the first reading that is taken in it.
- `corrected_to` of a segment and the corrections made of it are durable together; a correction
  leaves the file when the cloud has acknowledged it. Ranges of corrections never overlap.

docs/ledger.md, Clocks.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import partial
from pathlib import Path

import structlog

from bridge.commands import Correction, Welcome, seal_message
from bridge.envelope import SEQ_MAX
from bridge.runs import Origin
from edge.commands import CommandLink
from edge.config import ClockConfig
from edge.database import Database, Statement, make_file
from runtime.clock import Clock
from runtime.logs import limited

__all__ = ["ClockRepair", "ClockRepairError"]

log = structlog.get_logger(component="clock")

APPLICATION_ID = 0x5444434B  # "TDCK"
_SCHEMA = """
CREATE TABLE IF NOT EXISTS segments (
    epoch        INTEGER NOT NULL,
    first_seq    INTEGER NOT NULL,  -- it ends where the next begins
    boot_id      TEXT    NOT NULL,
    offset_us    INTEGER NOT NULL,  -- wall clock less the clock since boot
    corrected_to INTEGER NOT NULL,
    PRIMARY KEY (epoch, first_seq)
) STRICT;
CREATE TABLE IF NOT EXISTS corrections (
    epoch          INTEGER NOT NULL,
    first_seq      INTEGER NOT NULL,
    last_seq       INTEGER NOT NULL,
    delta_us       INTEGER NOT NULL,
    uncertainty_us INTEGER NOT NULL,
    PRIMARY KEY (epoch, first_seq)
) STRICT;
CREATE TABLE IF NOT EXISTS boots (
    boot_id        TEXT PRIMARY KEY,
    offset_us      INTEGER NOT NULL,  -- true time less the clock since boot, as a welcome told
    uncertainty_us INTEGER NOT NULL
) STRICT
"""
_LOOK_S = 1.0
_PRESENT_S = 10.0  # between two corrections of the segment that still grows
_SEGMENTS_MAX = 1_000
_UNCERTAINTY_US_MAX = 5_000_000  # a welcome that took longer tells too little
_ANSWERS_MAX = 8
_KEEP_SEGMENT = "INSERT OR REPLACE INTO segments VALUES (?, ?, ?, ?, ?)"
_KEEP = "INSERT INTO corrections VALUES (?, ?, ?, ?, ?)"
_FORGET = "DELETE FROM corrections WHERE epoch = ? AND first_seq = ?"


class ClockRepairError(Exception):
    """The file cannot be used; `str()` is one line for an operator."""


@dataclass(slots=True)
class Segment:
    """Seqs given out under one offset."""

    epoch: int
    first_seq: int
    boot_id: str
    offset_us: int
    corrected_to: int  # seqs up to here have their correction


class ClockRepair:
    """Corrections of one gateway.

    Args:
        path: DIR/edge/clock.db.
        config: When to correct.
        clock: This machine's clocks.
        journal: Returns epoch and last seq.
        owns: Returns False while what an epoch has up to a seq may be another gateway's: then
            no correction of it is said.
    """

    def __init__(
        self,
        path: Path,
        config: ClockConfig,
        clock: Clock,
        journal: Callable[[], tuple[int, int]],
        owns: Callable[[int, int], bool] = lambda _epoch, _seq: True,
    ) -> None:
        self.path = path
        self.corrected = 0  # readings, since the start
        self.steps = 0  # of the wall clock, since the start
        self._config = config
        self._clock = clock
        self._journal = journal
        self._owns = owns
        self._tolerance_us = round(config.tolerance_s * 1e6)
        self._boot_id = clock.boot_id()
        self._segments: list[Segment] = []
        self._unsaved: list[Segment] = []
        self._waiting: dict[tuple[int, int], Correction] = {}  # not acknowledged
        self._saying: set[tuple[int, int]] = set()
        self._done: list[tuple[int, int]] = []
        self._true: tuple[int, int] | None = None  # offset, uncertainty
        self._true_saved = True
        self._link: CommandLink | None = None
        self._present_at_s = 0.0
        self._database: Database | None = None
        self._turning = asyncio.Lock()  # held by whoever writes the file
        self._wake = asyncio.Event()
        self._stopping = False
        self._task: asyncio.Task[None] | None = None

    # ---- life ------------------------------------------------------------------------------------

    async def start(self, origin: Origin | None = None) -> None:
        """Read what is known and begin.

        Args:
            origin: Where the journal's epoch parted from another: the last process may have ended
                before that was noted here.

        Raises:
            ClockRepairError: the file cannot be used.
        """
        database = Database(partial(make_file, self.path, APPLICATION_ID, _SCHEMA), durable=True)
        try:
            await database
        except (sqlite3.Error, OSError) as error:
            raise ClockRepairError(f"{self.path}: {error}; move it away") from error
        self._database = database
        epoch, _ = self._journal()
        rows = await database.query(
            "SELECT epoch, first_seq, boot_id, offset_us, corrected_to FROM segments"
            " WHERE epoch IN (?, ?) ORDER BY first_seq",
            (epoch, epoch if origin is None else origin.epoch),
        )
        self._segments = [Segment(*row) for row in rows]
        for row in await database.query("SELECT * FROM corrections"):
            self._waiting[row[0], row[1]] = Correction(*row)
        if origin is not None:
            await self.parted(origin, epoch)
        known = {
            boot_id: (offset_us, uncertainty_us)
            for boot_id, offset_us, uncertainty_us in await database.query("SELECT * FROM boots")
        }
        self._true = known.get(self._boot_id)
        await self._forget_boots(known)
        self._task = asyncio.create_task(self._work(), name="clock-repair")

    async def stop(self) -> None:
        """Keep what is known and end; harmless when not started."""
        if self._task is not None:
            self._stopping = True
            self._wake.set()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
        if self._database is not None:
            await self._database.close()
            self._database = None

    # ---- what it is told -------------------------------------------------------------------------

    def committed(self, first_seq: int, wall_us: int, boot_us: int) -> Awaitable[None] | None:
        """Note a commit about to be made: next to nothing is done unless the clock was set.

        Returns:
            What to wait for before the commit: else a crash could take the segment and leave its
            readings, which would then be corrected by the error of another.
        """
        offset_us = wall_us - boot_us
        if self._segments:
            newest = self._segments[-1]
            same = newest.boot_id == self._boot_id
            if same and abs(offset_us - newest.offset_us) <= self._tolerance_us:
                return None
            if same:
                self.steps += 1
                log.warning("clock_stepped", seq=first_seq,
                            seconds=(offset_us - newest.offset_us) / 1e6)  # fmt: skip
        epoch, _ = self._journal()
        segment = Segment(epoch, first_seq, self._boot_id, offset_us, first_seq - 1)
        self._segments.append(segment)
        self._unsaved.append(segment)
        self._wake.set()
        return self._save_now()

    async def _save_now(self) -> None:
        """Save segments; what cannot be saved now is tried again, and holds up no commit."""
        try:
            async with self._turning:
                await self._save()
        except sqlite3.Error as error:
            limited(log, "clock", 60.0).error("clock_repair_failed", error=str(error))

    def welcomed(self, welcome: Welcome, asked_s: float) -> None:
        """Take the true time from the cloud's answer to a hello said at `asked_s`."""
        now_s = self._clock.monotonic_s()
        uncertainty_us = round((now_s - asked_s) * 1e6 / 2)
        if not welcome.time_us or uncertainty_us > _UNCERTAINTY_US_MAX:
            return
        true_us = welcome.time_us + uncertainty_us
        self._true = (true_us - round(now_s * 1e6), uncertainty_us)
        self._true_saved = False
        self._wake.set()

    async def parted(self, origin: Origin, epoch: int) -> None:
        """Have what is known of the seqs past an epoch that was parted from belong to the new one.

        Nothing of that was corrected under it yet, whatever was under the old one. Done again, it
        changes nothing.

        Raises:
            sqlite3.Error: the file cannot be written; done again, it goes on where it was.
        """
        first = origin.after_seq + 1
        async with self._turning:
            await self._save()
            assert self._database is not None
            kept: list[Segment] = []
            for each, end in self._ends(SEQ_MAX):
                if each.epoch != origin.epoch or each.first_seq < first:
                    kept.append(each)
                if each.epoch == origin.epoch and end >= first:
                    begins = max(each.first_seq, first)
                    kept.append(
                        replace(each, epoch=epoch, first_seq=begins, corrected_to=begins - 1)
                    )
            theirs = [one for one in self._waiting.values() if one.epoch == origin.epoch]
            reaching = [one for one in theirs if one.last_seq >= first]
            if kept == self._segments and not reaching:
                return
            cut = [replace(one, last_seq=first - 1) for one in reaching if one.first_seq < first]
            statements: list[Statement] = [
                ("DELETE FROM segments", ()),
                *((_KEEP_SEGMENT, astuple(each)) for each in kept),
                *((_FORGET, (one.epoch, one.first_seq)) for one in reaching),
                *((_KEEP, astuple(one)) for one in cut),
            ]
            await self._database.transact(statements)
            self._segments = kept
            for one in reaching:
                del self._waiting[one.epoch, one.first_seq]
            self._waiting |= {(one.epoch, one.first_seq): one for one in cut}

    def linked(self, link: CommandLink) -> None:
        """A connection to the cloud is up."""
        self._link = link
        self._saying.clear()
        self._wake.set()

    def unlinked(self) -> None:
        """It is gone; what was not acknowledged is said again."""
        self._link = None
        self._saying.clear()

    # ---- the loop --------------------------------------------------------------------------------

    async def _work(self) -> None:
        while not self._stopping:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._wake.wait()
            self._wake.clear()
            try:
                await self.turn()
            except sqlite3.Error as error:
                limited(log, "clock", 60.0).error("clock_repair_failed", error=str(error))
            except Exception:  # noqa: BLE001 - the task's root: what is not corrected now is later
                limited(log, "clock_broke", 60.0).exception("clock_repair_broke")
        await self._save_now()

    async def turn(self) -> None:
        """Do what is due now; the service's own task calls it whenever there is something.

        Raises:
            sqlite3.Error: the file cannot be written.
        """
        async with self._turning:
            await self._save()
            await self._correct()
            await self._forget_done()
            self._say()

    async def _save(self) -> None:
        assert self._database is not None
        while self._unsaved:
            one = self._unsaved[0]
            await self._database.query(_KEEP_SEGMENT, astuple(one))
            self._unsaved.pop(0)
        if self._true is not None and not self._true_saved:
            self._true_saved = True
            values = (self._boot_id, *self._true)
            await self._database.query("INSERT OR REPLACE INTO boots VALUES (?, ?, ?)", values)

    async def _correct(self) -> None:
        """Make the corrections that are due."""
        if self._true is None:
            return
        true_offset_us, uncertainty_us = self._true
        _, last_seq = self._journal()
        now_s = self._clock.monotonic_s()
        for segment, end in self._ends(last_seq):
            if end <= segment.corrected_to:
                continue
            delta_us = true_offset_us - segment.offset_us
            if not self._is_wrong(delta_us, uncertainty_us):
                segment.corrected_to = end  # it was right; what comes is looked at anew
                continue
            if end == last_seq:
                if now_s < self._present_at_s:
                    continue
                self._present_at_s = now_s + _PRESENT_S
            await self._add(segment, end, delta_us, uncertainty_us)

    def _is_wrong(self, delta_us: int, uncertainty_us: int) -> bool:
        return abs(delta_us) > max(self._tolerance_us, 2 * uncertainty_us)

    def _ends(self, last_seq: int) -> list[tuple[Segment, int]]:
        """Return the segments with the last seq of each."""
        ends = [one.first_seq - 1 for one in self._segments[1:]] + [last_seq]
        return list(zip(self._segments, ends, strict=False))  # without segments there is no end

    async def _add(self, segment: Segment, end: int, delta_us: int, uncertainty_us: int) -> None:
        assert self._database is not None
        correction = Correction(
            segment.epoch, segment.corrected_to + 1, end, delta_us, uncertainty_us
        )
        statements: list[Statement] = [
            (
                _KEEP,
                astuple(correction),
            ),
            (
                "UPDATE segments SET corrected_to = ? WHERE epoch = ? AND first_seq = ?",
                (end, segment.epoch, segment.first_seq),
            ),
        ]
        await self._database.transact(statements)
        segment.corrected_to = end
        self._waiting[correction.epoch, correction.first_seq] = correction
        self.corrected += end - correction.first_seq + 1
        log.info("clock_corrected", first_seq=correction.first_seq, last_seq=end,
                 seconds=delta_us / 1e6)  # fmt: skip

    # ---- saying it -------------------------------------------------------------------------------

    def _say(self) -> None:
        for key, correction in list(self._waiting.items()):
            if self._link is None or len(self._saying) >= _ANSWERS_MAX:
                return
            if key in self._saying or not self._owns(correction.epoch, correction.last_seq):
                continue
            if not self._link.say(seal_message(correction), self._answer(key)):
                return
            self._saying.add(key)

    def _answer(self, key: tuple[int, int]) -> Callable[[int], None]:
        def answered(code: int) -> None:
            self._saying.discard(key)
            if not code & 0x80:
                self._done.append(key)
                self._wake.set()

        return answered

    async def _forget_done(self) -> None:
        assert self._database is not None
        while self._done:
            key = self._done[0]
            await self._database.query(_FORGET, key)
            self._waiting.pop(key, None)
            self._done.pop(0)

    async def _forget_boots(self, known: Mapping[str, tuple[int, int]]) -> None:
        """Correct what other boots left uncorrected, as far as their error is known; forget them.

        Args:
            known: True offset and its uncertainty by boot.
        """
        assert self._database is not None
        _, last_seq = self._journal()
        unknown: list[Segment] = []
        for segment, end in self._ends(last_seq):
            if segment.boot_id == self._boot_id or end <= segment.corrected_to:
                continue
            if segment.boot_id not in known:
                unknown.append(segment)
                continue
            true_offset_us, uncertainty_us = known[segment.boot_id]
            delta_us = true_offset_us - segment.offset_us
            if self._is_wrong(delta_us, uncertainty_us):
                await self._add(segment, end, delta_us, uncertainty_us)
        if unknown:
            log.warning("clock_never_compared", first_seq=unknown[0].first_seq,
                        boots=len({one.boot_id for one in unknown}))  # fmt: skip
        self._segments = [one for one in self._segments if one.boot_id == self._boot_id]
        for table in ("segments", "boots"):
            sql = f"DELETE FROM {table} WHERE boot_id <> ?"  # noqa: S608 - one of our tables
            await self._database.query(sql, (self._boot_id,))
        del self._segments[:-_SEGMENTS_MAX]
