"""What leaves the journal: trims, evictions with their tombstones, and the room they make.

Theory of operation. A trim only moves the lane's `gone_seq`; its rows are deleted later, many in
one transaction, so that an acknowledgement from the cloud costs no sync. While the uplink drains a
backlog, live readings past it are acknowledged first: they are remembered as `ahead`, and their
rows are deleted where they lie. Only whole rows go, so a crash at any point leaves what was not
acknowledged, and at most something that was; and the transaction keeps the highest seq given out,
which the rows it deletes may have been the last to tell of.

A limit that is reached evicts the oldest rows of a lane that drops, a little more than is needed,
after thinning it where that is asked for (journal_thin.py). What is given up has a tombstone
(journal_losses.py).
Deleted pages are written again before the file grows; once next to nothing is in use, the file is
rewritten small.

Invariants:
- The caller holds the journal's writing lock in every coroutine.
- State changes after the transaction that makes it true, and not at all when that fails.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import structlog

from edge.config import JournalConfig, LaneConfig
from edge.contract import Lane, Tombstone
from edge.journal_file import JournalFile, Outline
from edge.journal_losses import Losses
from edge.journal_schema import ROW_BYTES, JournalError
from edge.journal_state import JournalState, LaneState, us_since_boot
from edge.journal_tail import Tail
from edge.journal_thin import Thinning, ThinningPass
from edge.limits import (
    DISK_FLOOR_BYTES,
    WAL_BYTES_MAX,
    Room,
    Space,
    cost_bytes,
    lane_room_bytes,
    room_of,
    slack_of,
)
from runtime.clock import Clock

__all__ = ["NO_LIMIT", "Keeper", "lane_config"]

log = structlog.get_logger(component="journal")

TRIM_DELAY_S = 5.0  # a trim lost in a crash costs a few readings sent twice, so it may wait
BLIND_TRIM_DELAY_S = 1.0
TRIM_BYTES = 8 * 1024 * 1024  # but not once this much could be freed
PRESSED_BYTES = 512 * 1024  # with less room than this, trims are carried out every second
DELETE_BYTES = 2 * 1024 * 1024  # freed in one transaction, so that a commit waits for little
DELETE_ROWS = 512
TOTALS_BYTES = 16 * 1024 * 1024  # appended between two notes of the totals
COMPACT_FREE_BYTES = 32 * 1024 * 1024  # free pages worth giving back ...
COMPACT_USED_BYTES = 2 * 1024 * 1024  # ... once so little is in use that copying it is nothing
LOW_DISK_BYTES = 32 * 1024 * 1024  # with less than this left to write, care is taken
LOG_FACTOR = 4  # a log this much longer than its limit was held up by readers, and is cut off
THIN_PASSES = 4  # at once, so that a commit waits for a bounded time
NO_LIMIT = 1 << 62


def lane_config(config: JournalConfig, lane: Lane) -> LaneConfig:
    """Return the limits of a lane."""
    return config.urgent if lane is Lane.URGENT else config.live


class Keeper:
    """Keeps the journal within its limits.

    Attributes:
        file: The open file; replaced after a repair.
        state: What is known of it; replaced after a repair.
        space: What the files took when last looked at.
        room: What may still be written by the journal as a whole, in pages' bytes.
        hold_seq: No row that ends past this seq is deleted for having been trimmed.
        reading: Held by whoever reads the file, or keeps others from reading it.
    """

    def __init__(
        self,
        path: Path,
        config: JournalConfig,
        clock: Clock,
        file: JournalFile,
        state: JournalState,
        tail: Tail,
    ) -> None:
        """Keep `file` within the limits of `config`."""
        self.file = file
        self.state = state
        self.space = Space(0, 0, 0, 0)
        self.room = Room(0, "evicted-bytes")
        self.hold_seq = NO_LIMIT
        self.reading = asyncio.Lock()
        self._path = path
        self._config = config
        self._clock = clock
        self._tail = tail
        self._thinning = Thinning({lane: lane_config(config, lane) for lane in Lane})
        self._losses = Losses()
        self._flush_at_s: dict[Lane, float] = {}  # when trims not yet carried out are to be
        self._kept_gone_seq: dict[Lane, int] = {}  # as the file has it
        self._trimmed_bytes = 0
        self._uncounted_bytes = 0

    @property
    def evicted(self) -> dict[str, int]:
        """Readings given up, by reason."""
        return self._losses.readings

    # --- trims -----------------------------------------------------------------------------------

    def trim(self, lane: Lane, up_to_seq: int, after_seq: int = 0) -> None:
        """Take note that readings of `lane` in a range are safe in the cloud; needs no lock."""
        state = self.state.lanes[lane]
        up_to_seq = min(up_to_seq, self.state.last_seq)
        if up_to_seq <= state.gone_seq or up_to_seq <= after_seq:
            return
        state.read.discard(after_seq + 1, up_to_seq)
        if after_seq > state.gone_seq:
            state.ahead.add(after_seq + 1, up_to_seq)
            at_s = self._clock.monotonic_s() + TRIM_DELAY_S
            self._flush_at_s.setdefault(lane, at_s)
            return
        in_tail = self._tail.after(lane) <= state.gone_seq
        deleted = state.deleted.copy()
        state.gone_seq = up_to_seq
        state.absorb_ahead()
        before = self._tail.bytes
        readings = self._tail.forget(lane, state.gone_seq, deleted)
        self._trimmed_bytes += before - self._tail.bytes
        state.trimmed += readings
        # rows that only the disk has are not counted until deleted: sooner, for true figures
        delay_s = TRIM_DELAY_S if in_tail else BLIND_TRIM_DELAY_S
        self._flush_at_s.setdefault(lane, self._clock.monotonic_s() + delay_s)

    def trim_due(self) -> bool:
        """Return True when trims have waited long enough, or would free enough."""
        if not self._flush_at_s:
            return False
        at_s = min(self._flush_at_s.values())
        return self._trimmed_bytes >= TRIM_BYTES or self._clock.monotonic_s() >= at_s

    def pressed(self) -> bool:
        """Return True when a lane that refuses for want of room has trims to carry out."""
        return any(self.lane_room(lane) < PRESSED_BYTES for lane in self._flush_at_s)

    async def flush_trims(self, lane: Lane) -> bool:
        """Delete some rows of a lane that are gone; return True when there may be more."""
        if self._flush_at_s.pop(lane, None) is None:
            return False
        self._trimmed_bytes = 0
        state = self.state.lanes[lane]
        gone_seq = state.gone_seq
        rows = await self.file.outlines(lane, DELETE_ROWS)
        gone = [row for row in rows if row.head.first_seq + row.head.count - 1 <= gone_seq]
        dead = self._not_held(gone)
        chosen = _of_bytes(dead, DELETE_BYTES)
        if chosen or gone_seq != self._kept_gone_seq.get(lane):
            await self._delete(lane, chosen, gone_seq, ())
            self._kept_gone_seq[lane] = gone_seq
        more = len(chosen) < len(dead) or len(dead) == DELETE_ROWS
        if not more:
            more = await self._flush_ahead(lane)
        if more:
            self._flush_at_s[lane] = self._clock.monotonic_s()
        elif len(dead) < len(gone):
            self._flush_at_s[lane] = self._clock.monotonic_s() + TRIM_DELAY_S
        return more

    def _not_held(self, rows: Sequence[Outline]) -> list[Outline]:
        return [row for row in rows if row.head.first_seq + row.head.count - 1 <= self.hold_seq]

    async def _flush_ahead(self, lane: Lane) -> bool:
        """Delete some rows trimmed out of order; return True when there may be more."""
        state = self.state.lanes[lane]
        for first, last in state.ahead.ranges():
            held = await self.file.outlines_within(lane, first, last, DELETE_ROWS)
            rows = self._not_held(held)
            if not rows:
                continue
            chosen = _of_bytes(rows, DELETE_BYTES)
            after = _without(state, chosen, state.gone_seq)
            state.head = await self.file.delete_ahead(lane, chosen, after, self.state.last_seq)
            state.readings, state.bytes = after.readings, after.bytes
            end = chosen[-1].head.first_seq + chosen[-1].head.count - 1
            if end > state.gone_seq:
                state.deleted.add(max(chosen[0].head.first_seq, state.gone_seq + 1), end)
            else:  # `gone_seq` has risen over it meanwhile, and counted it
                dead = sum(row.head.count for row in chosen)
                state.trimmed = max(0, state.trimmed - dead)
            return True
        return False

    # --- room ------------------------------------------------------------------------------------

    async def make_room(self, parts: Sequence[tuple[Lane, int, bytes]]) -> None:
        """Make room for a commit, evicting where the lane's policy says so.

        Raises:
            JournalError: kind "full": a limit is reached and nothing may be dropped for it.
        """
        need = 0
        for lane, _, body in parts:
            need += cost_bytes(len(body))
            limit = lane_config(self._config, lane).bytes_max
            over = self.state.lanes[lane].bytes + len(body) + ROW_BYTES - limit
            if limit and over > 0:
                await self._make_lane_room(lane, over, limit)
        if need > self.room.bytes:
            await self.survey()
        if need > self.room.bytes:
            await self._make_journal_room([lane for lane, _, _ in parts], need)
        self.room = replace(self.room, bytes=self.room.bytes - need)
        self._uncounted_bytes += need

    def lane_room(self, lane: Lane) -> int:
        """Return how many bytes of rows a lane takes before it refuses; needs no lock."""
        if lane_config(self._config, lane).policy == "drop-oldest":
            return NO_LIMIT
        return self.room_bytes(lane)

    def room_bytes(self, lane: Lane) -> int:
        """Return how many bytes of rows a lane takes before a limit is reached; needs no lock."""
        state = self.state.lanes[lane]
        return lane_room_bytes(lane, state.bytes, self.room.bytes, self._config)

    async def survey(self) -> None:
        """Look at what the files take and what the disk has left."""
        self.space = await self.file.space()
        self.room = room_of(self.space, self._config)

    async def _make_lane_room(self, lane: Lane, over: int, limit: int) -> None:
        before = self.state.lanes[lane].bytes
        while await self.flush_trims(lane):
            pass
        over -= before - self.state.lanes[lane].bytes
        if over <= 0:
            return
        if lane_config(self._config, lane).policy != "drop-oldest":
            raise self._full(f"the {lane.name.lower()} lane holds its {limit} bytes")
        wanted = over + slack_of(self._config, limit)
        thinned = await self._thin(lane, wanted)
        if thinned >= over:
            return
        await self._evict(lane, wanted - thinned, "evicted-bytes")
        if before - self.state.lanes[lane].bytes < over:
            raise self._full(f"one commit is more than the {limit} bytes of its lane")

    async def _make_journal_room(self, lanes: Sequence[Lane], need: int) -> None:
        for lane in Lane:
            while await self.flush_trims(lane):
                pass
        await self.survey()
        for lane in reversed(lanes):  # of a commit of both, live goes before urgent
            if lane_config(self._config, lane).policy != "drop-oldest":
                continue
            while need > self.room.bytes and self.state.lanes[lane].head is not None:
                short = need - self.room.bytes
                size = short + slack_of(self._config, 0)
                if not await self._thin(lane, size):
                    await self._evict(lane, size, self.room.reason)
                await self.survey()
        if need > self.room.bytes:
            if self.room.reason == "evicted-disk":
                raise self._full("the disk's reserve is reached", "free space on the disk")
            raise self._full("the files have reached file_bytes_max")

    def _full(self, what: str, way_out: str = "raise the limit") -> JournalError:
        hint = f"{what}; {way_out}, or let the lane drop its oldest readings"
        return JournalError(self._path, self.state.next_seq, hint, "full")

    # --- thinning --------------------------------------------------------------------------------

    async def _thin(self, lane: Lane, wanted: int) -> int:
        """Thin the oldest readings of a lane that may be; return the bytes freed, 0 for none."""
        freed = 0
        for _ in range(THIN_PASSES):
            if freed >= wanted:
                break
            async with self.reading:
                now = (self._clock.wall_us(), self.state.boot, us_since_boot(self._clock))
                each = await self._thinning.plan(self.file, lane, self.state.lanes[lane], now)
                if each is None:
                    break
                if each.worthwhile:
                    await self._replace_thinned(lane, each)
                    freed += each.thinned.freed_bytes
                self._thinning.done(lane, each.through_seq)
        return freed

    async def _replace_thinned(self, lane: Lane, each: ThinningPass) -> None:
        state = self.state.lanes[lane]
        thinned = each.thinned
        count = len(thinned.dropped)
        first, last = thinned.dropped[0], thinned.dropped[-1]
        stone = Tombstone(lane, first, last, count, "thinned", self._clock.wall_us())
        joined = self._losses.joined(self.state, stone)
        after = LaneState(
            state.last_seq,
            state.gone_seq,
            state.readings - count,
            state.bytes - thinned.freed_bytes,
        )
        state.head = await self.file.replace_rows(
            lane, thinned.gone, thinned.rows, after, joined, each.through_seq
        )
        state.readings, state.bytes = after.readings, after.bytes
        self._tail.forget(lane, each.through_seq)
        self._losses.given_up(self.state, stone, joined)
        log.info(
            "readings_thinned", lane=lane.name.lower(), first_seq=first, last_seq=last, count=count
        )

    # --- evictions -------------------------------------------------------------------------------

    async def evict_old(self) -> None:
        """Give up readings that are older than their lane allows."""
        now_us = self._clock.wall_us()
        boot_us = us_since_boot(self._clock)
        boot = self.state.boot
        for lane in Lane:
            age_max_us = lane_config(self._config, lane).age_max_s * 1e6
            head = self.state.lanes[lane].head
            while age_max_us and head and head.age_us(now_us, boot, boot_us) > age_max_us:
                rows = await self.file.outlines(lane, DELETE_ROWS)
                young = (
                    at
                    for at, row in enumerate(rows)
                    if row.head.age_us(now_us, boot, boot_us) <= age_max_us
                )
                old = rows[: next(young, len(rows))]
                await self._give_up(lane, _of_bytes(old, DELETE_BYTES), "evicted-age")
                head = self.state.lanes[lane].head

    async def _evict(self, lane: Lane, size: int, reason: str) -> None:
        """Give up the oldest rows of a lane that make up `size` bytes."""
        target = self.state.lanes[lane].bytes - size
        while self.state.lanes[lane].bytes > target:
            left = self.state.lanes[lane].bytes - target
            rows = await self.file.outlines(lane, DELETE_ROWS)
            if not rows:
                return
            await self._give_up(lane, _of_bytes(rows, min(left, DELETE_BYTES)), reason)

    async def _give_up(self, lane: Lane, rows: Sequence[Outline], reason: str) -> None:
        """Delete the oldest rows of a lane with a tombstone for what was not trimmed."""
        gone_seq = self.state.lanes[lane].gone_seq
        lost = 0
        first_seq = gone_seq + 1
        for row in rows:
            head = row.head
            kept_from = max(head.first_seq, gone_seq + 1)
            last_seq = head.first_seq + head.count - 1
            missing = self.state.lanes[lane].ahead.missing(kept_from, last_seq)
            count = sum(last - first + 1 for first, last in missing)
            if count and not lost:
                first_seq = kept_from
            lost += count
        last = rows[-1].head
        last_seq = last.first_seq + last.count - 1
        if not lost:
            await self._delete(lane, rows, gone_seq, ())
            return
        tombstone = Tombstone(lane, first_seq, last_seq, lost, reason, self._clock.wall_us())
        joined = self._losses.joined(self.state, tombstone)
        await self._delete(lane, rows, max(gone_seq, last_seq), (joined,))
        self._losses.given_up(self.state, tombstone, joined)
        log.warning(
            "readings_evicted",
            lane=lane.name.lower(),
            first_seq=first_seq,
            last_seq=last_seq,
            count=lost,
            reason=reason,
        )

    # --- tombstones ------------------------------------------------------------------------------

    def tombstones(self) -> list[Tombstone]:
        """Return the tombstones not acknowledged; none of them grows after this."""
        return self._losses.handed_out(self.state)

    async def forget_tombstones(self, sent: Sequence[Tombstone]) -> None:
        """Drop tombstones; one that has grown since it was handed out stays."""
        gone = self._losses.known(self.state, sent)
        if gone:
            await self.file.replace_tombstones(gone)
            self._losses.forgotten(self.state, gone)

    def record(self, tombstone: Tombstone) -> None:
        """Take note of a tombstone that is in the file already."""
        self._losses.recorded(self.state, tombstone)

    async def split_tombstones(self, seq: int) -> None:
        """Have no tombstone reach over a seq; how many lie in which part is not known: at most."""
        for stone in list(self.state.tombstones):
            if stone.first_seq <= seq < stone.last_seq:
                first = replace(
                    stone, last_seq=seq, count=min(stone.count, seq - stone.first_seq + 1)
                )
                rest = replace(
                    stone, first_seq=seq + 1, count=min(stone.count, stone.last_seq - seq)
                )
                await self.file.replace_tombstones([stone], [first, rest])
                self._losses.replaced(self.state, stone, [first, rest])

    # --- upkeep ----------------------------------------------------------------------------------

    async def tidy(self) -> None:
        """Look at the space, note the totals, and give room back where it is cheap."""
        await self.survey()
        if self._uncounted_bytes >= TOTALS_BYTES:
            await self.file.keep_totals(self.state.lanes)
            self._uncounted_bytes = 0
        space = self.space
        reserve = max(self._config.disk_reserve_bytes, DISK_FLOOR_BYTES)
        if space.disk_free_bytes < reserve + LOW_DISK_BYTES:
            # the database takes its pages while it can, so that deleting needs no new ones
            await self.file.checkpoint()
        compact = (
            space.free_page_bytes >= COMPACT_FREE_BYTES and space.used_bytes <= COMPACT_USED_BYTES
        )
        if compact or space.wal_bytes > WAL_BYTES_MAX * LOG_FACTOR:
            async with self.reading:
                await (self.file.compact() if compact else self.file.restart_log())
            await self.survey()

    async def _delete(
        self, lane: Lane, rows: Sequence[Outline], gone_seq: int, tombstones: Sequence[Tombstone]
    ) -> None:
        """Delete the oldest rows of a lane, and keep `gone_seq` with them."""
        state = self.state.lanes[lane]
        through = rows[-1].head.first_seq if rows else -1
        after = _without(state, rows, gone_seq)
        head = await self.file.delete(lane, through, after, tombstones)
        state.gone_seq = max(state.gone_seq, gone_seq)
        state.absorb_ahead()
        state.head = head
        # a damaged count may have been taken for true: an empty lane holds nothing
        state.readings = after.readings if head else 0
        state.bytes = after.bytes if head else 0
        dead = sum(row.head.count for row in rows)
        state.trimmed = max(0, state.trimmed - dead) if head else 0
        self._tail.forget(lane, gone_seq)


def _without(state: LaneState, rows: Sequence[Outline], gone_seq: int) -> LaneState:
    """Return what a lane is kept as once rows of it are deleted."""
    return LaneState(
        state.last_seq,
        gone_seq,
        state.readings - sum(row.head.count for row in rows),
        state.bytes - sum(row.bytes + ROW_BYTES for row in rows),
    )


def _of_bytes(rows: Sequence[Outline], size: int) -> list[Outline]:
    """Return rows from the front until they make up `size`: at least one if there is any."""
    chosen: list[Outline] = []
    for row in rows:
        chosen.append(row)
        size -= row.bytes + ROW_BYTES
        if size <= 0:
            break
    return chosen
